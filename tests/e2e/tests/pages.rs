//! The page on operation against the code: every metric that is counted anywhere is on it, and it names no other.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = "../..";
const PREFIX: &str = "longshore_";
/// Where code is that counts. Tests have metrics of their own.
const FOLDERS: [&str; 4] = ["agents", "infra", "processors", "producers"];
const OF_TESTS: &str = "longshore_test_";

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("node_modules") {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The names between these quotes that are metrics.
fn names(text: &str, quote: char) -> BTreeSet<String> {
    let is_name = |part: &&str| {
        part.starts_with(PREFIX) && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    text.split(quote).filter(is_name).map(str::to_owned).filter(|name| !name.starts_with(OF_TESTS)).collect()
}

#[test]
fn every_metric_is_on_the_page() {
    let mut files = Vec::new();
    for folder in FOLDERS {
        sources(&Path::new(ROOT).join(folder), &mut files);
    }
    let mut counted = BTreeSet::new();
    for file in files {
        counted.extend(names(&fs::read_to_string(&file).expect("text"), '"'));
    }
    assert!(counted.len() > 30, "the search finds them: {counted:?}");
    let page = fs::read_to_string(Path::new(ROOT).join("infra/docs/operation.md")).expect("the page");
    let (_, table) = page.split_once("| metric |").expect("a table");
    assert_eq!(names(table, '`'), counted);
}
