//! The page of limits against the code: every limit is on it with its default, and it lists no other.
//!
//! `LONGSHORE_WRITE_LIMITS=1 cargo test -p longshore-e2e --test limits` writes the table anew.

use std::collections::BTreeSet;

use longshore_service::limits::{FLAG, Limit};

const PAGE: &str = "../../infra/docs/limits.md";
const BEGIN: &str = "<!-- the table is written by tests/e2e/tests/limits.rs -->\n";

fn all() -> Vec<&'static Limit> {
    [
        longshore_api::limits::LIMITS,
        longshore_control::limits::LIMITS,
        longshore_region::LIMITS,
        longshore_worker::limits::LIMITS,
        longshore_node::limits::LIMITS,
    ]
    .concat()
}

fn table() -> String {
    let row = |limit: &&Limit| {
        let Limit { name, default, unit, set, above } = limit;
        let set = if *set { format!("`{FLAG} {name}=N`") } else { "fixed".to_owned() };
        format!("| `{name}` | {default} {unit} | {set} | {above} |\n")
    };
    let rows: String = all().iter().map(row).collect();
    format!("{BEGIN}| limit | default | set by | above it |\n|---|---|---|---|\n{rows}")
}

#[test]
fn the_page_is_what_the_code_says() {
    let page = std::fs::read_to_string(PAGE).expect("infra/docs/limits.md is there");
    let (before, _) = page.split_once(BEGIN).expect("the page has a table");
    let expected = format!("{before}{}", table());
    if std::env::var_os("LONGSHORE_WRITE_LIMITS").is_some() {
        std::fs::write(PAGE, &expected).expect("the page is writable");
        return;
    }
    assert_eq!(page, expected, "run this test with LONGSHORE_WRITE_LIMITS=1");
}

#[test]
fn every_limit_has_a_name_of_its_own_and_says_what_happens() {
    let limits = all();
    let names: BTreeSet<_> = limits.iter().map(|limit| limit.name).collect();
    assert_eq!(names.len(), limits.len(), "two limits have the same name");
    for limit in limits {
        let is_name = limit.name.split_once('.').is_some_and(|(part, rest)| !part.is_empty() && !rest.is_empty());
        assert!(is_name && limit.default > 0 && !limit.above.is_empty() && !limit.unit.is_empty(), "{limit:?}");
    }
}
