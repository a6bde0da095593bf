//! What is retired, and what is kept though its time is up.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use common::{Step::*, built, check, id, pin, retaining};
use longshore_processor::{Order, Range};
use longshore_replication::{
    Kept,
    tables::{self, Status},
};
use longshore_schemas::{
    ArtifactId, Timestamp,
    events::{ArtifactFact, KeepRequested, LetGoRequested, UnpinRequested},
};
use proptest::prelude::*;

#[test]
fn what_is_old_and_not_among_the_newest_is_retired() {
    let mut driver = retaining(2, 100);
    check(
        &mut driver,
        &[
            (Built("one", "web", "./a"), "started one in eu"),
            (Wait(10), ""),
            (Built("two", "web", "./a"), "started two in eu"),
            (Wait(200), ""),
            (Built("three", "web", "./a"), "started three in eu"),
            (Wait(2), "retired one"),
            (Wait(200), ""),
            (Stored("one", "eu"), "Conflict: artifact one is retired; its copy in region eu is no longer wanted"),
            (Pin("one", "web", "d1", "eu"), "answer d1: artifact one is retired; build it again"),
            (Keep("one", "late"), "Conflict: artifact one is retired; build it again"),
            // Built again it is the newest, and two is not among them any more.
            (Built("one", "web", "./a"), "started one in eu"),
            (Wait(2), "retired two"),
        ],
    );
    let live = tables::LIVE.list(driver.state(), &Range::all(), Order::Ascending, 10).expect("memory");
    let live: Vec<_> = live.into_iter().map(|((_, artifact), ())| artifact).collect();
    assert_eq!(live, [id("three"), id("one")]);
    let two = tables::ARTIFACTS.expect(driver.state(), &id("two")).expect("a row");
    assert_eq!(two.status, Status::Retired);
    assert!(two.retired_at.is_some());
}

#[test]
fn what_somebody_needs_or_wants_is_kept_until_they_do_not() {
    let mut driver = retaining(0, 100);
    check(
        &mut driver,
        &[
            (Built("one", "web", "./a"), "started one in eu"),
            (Stored("one", "eu"), "stored eu, completed one"),
            (Built("two", "web", "./a"), "started two in eu"),
            (Built("three", "web", "./a"), "started three in eu"),
            (Pin("one", "api", "d1", "eu"), "pinned one by api, answer d1: run ./a"),
            (Keep("two", "an audit"), "kept two: an audit"),
            (Keep("two", "an audit"), ""),
            (Wait(99), ""),
            (Wait(2), "retired three"),
            (Wait(1_000), ""),
            (Unpin("one", "api"), "unpinned one by api"),
            (Wait(2), "retired one"),
            (LetGo("two"), "let go two"),
            (LetGo("two"), "NotFound: nobody has asked for artifact two to be kept; there is nothing to let go"),
            (Keep("two", "another"), "kept two: another"),
            (Wait(2), ""),
            (LetGo("two"), "let go two"),
            (Wait(2), "retired two"),
            (LetGo("two"), "NotFound: nobody has asked for artifact two to be kept; there is nothing to let go"),
        ],
    );
}

#[test]
fn a_name_may_have_a_rule_of_its_own_and_the_most_generous_name_counts() {
    let mut driver = retaining(0, 100);
    check(
        &mut driver,
        &[
            (Built("one", "web", "./a"), "started one in eu"),
            (Built("one", "keep-web", "./a"), "started one in eu"),
            (Built("two", "web", "./a"), "started two in eu"),
            (Wait(200), "retired two"),
        ],
    );
}

#[test]
fn what_is_built_again_while_it_is_worn_is_as_new() {
    let mut driver = retaining(0, 100);
    check(
        &mut driver,
        &[
            (Built("one", "web", "./a"), "started one in eu"),
            (Stored("one", "eu"), "stored eu, completed one"),
            (Wait(40), ""),
            (Built("one", "web", "./a"), ""),
            (Wait(20), ""),
            // Its copies are still there.
            (Built("one", "web", "./a"), "started one in eu, completed one"),
            (Wait(90), ""),
            (Wait(12), "retired one"),
        ],
    );
}

/// A setting or a clock that is wrong does less harm before somebody sees it.
#[test]
fn many_are_retired_some_at_a_time_and_a_new_leader_goes_on() {
    let mut driver = retaining(3, 10);
    for number in 0..1_000 {
        driver.request(built(&format!("artifact-{number}"), "web", "./a"));
    }
    driver.advance(Duration::from_secs(9));
    let mut retired = 0;
    for look in 0..25 {
        let some = driver.advance(Duration::from_secs(1)).facts;
        assert!(some.iter().all(|fact| matches!(fact, ArtifactFact::ArtifactRetired(_))));
        assert!(some.len() <= 64, "{} in one look", some.len());
        retired += some.len();
        if look == 5 {
            assert!(retired < 500);
            driver.takeover();
        }
    }
    assert_eq!(retired, 1_000 - 3);
    driver.assert_replay();
}

#[test]
fn a_dry_run_says_why_each_is_kept() {
    let mut driver = retaining(1, 100);
    check(
        &mut driver,
        &[
            (Built("one", "web", "./a"), "started one in eu"),
            (Stored("one", "eu"), "stored eu, completed one"),
            (Pin("one", "api", "d1", "eu"), "pinned one by api, answer d1: run ./a"),
            (Keep("one", "an audit"), "kept one: an audit"),
            (Wait(1), ""),
            (Built("two", "web", "./a"), "started two in eu"),
            (Wait(1), ""),
            (Built("three", "web", "./a"), "started three in eu"),
        ],
    );
    let retention = &longshore_replication::Retention {
        otherwise: longshore_replication::Keep { last: 1, lately: Duration::from_secs(100) },
        ..Default::default()
    };
    let why = |driver: &longshore_processor::testing::Driver<_>, artifact, now| {
        let row = tables::ARTIFACTS.expect(driver.state(), &id(artifact)).expect("a row");
        retention.keeps(driver.state(), id(artifact), &row, now).expect("memory")
    };
    let (now, late) = (driver.now(), driver.now() + Duration::from_secs(1_000));
    assert_eq!(why(&driver, "one", late), Some(Kept::Pinned("api".parse().expect("valid"))));
    assert_eq!(why(&driver, "three", late), Some(Kept::Newest("web".parse().expect("valid"))));
    assert_eq!(why(&driver, "two", late), None);
    let until = Timestamp(now.millis() + 99_000);
    assert_eq!(why(&driver, "two", now), Some(Kept::Young { until }));
    check(&mut driver, &[(Unpin("one", "api"), "unpinned one by api")]);
    let wanted = Kept::Wanted { by: "test".into(), reason: "an audit".into() };
    assert_eq!(why(&driver, "one", late), Some(wanted));
}

#[derive(Debug, Clone)]
enum Input {
    Built(usize, usize),
    Pin(usize),
    Unpin(usize),
    Keep(usize),
    LetGo(usize),
    Wait(u64),
}

const ARTIFACTS: usize = 6;

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let input = prop_oneof![
        3 => (0..ARTIFACTS, 0usize..2).prop_map(|(artifact, name)| Input::Built(artifact, name)),
        2 => (0..ARTIFACTS).prop_map(Input::Pin),
        1 => (0..ARTIFACTS).prop_map(Input::Unpin),
        1 => (0..ARTIFACTS).prop_map(Input::Keep),
        1 => (0..ARTIFACTS).prop_map(Input::LetGo),
        3 => (1u64..40).prop_map(Input::Wait),
    ];
    prop::collection::vec(input, 0..80)
}

/// What must not be retired, from the facts alone.
#[derive(Default)]
struct Model {
    built: BTreeMap<ArtifactId, Timestamp>,
    /// Newest last.
    names: BTreeMap<String, Vec<ArtifactId>>,
    held: BTreeSet<(ArtifactId, &'static str)>,
    retired: BTreeSet<ArtifactId>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_needed_is_retired_and_all_else_is(inputs in inputs()) {
        let (last, lately) = (2, 30);
        let mut driver = retaining(last, lately);
        let mut model = Model::default();
        for (step, input) in inputs.iter().enumerate() {
            let word = |artifact: usize| format!("artifact-{artifact}");
            let seen = driver.facts().len();
            match input {
                Input::Built(artifact, name) => {
                    driver.request(built(&word(*artifact), ["a", "b"][*name], "./a"));
                    // No two at the same time: which is newer then, only their names tell.
                    driver.advance(Duration::from_millis(1));
                }
                Input::Pin(artifact) => {
                    driver.request(pin(&word(*artifact), "web", &format!("d{step}"), ""));
                }
                Input::Unpin(artifact) => {
                    let service = "web".parse().expect("valid");
                    driver.request(UnpinRequested { artifact: id(&word(*artifact)), service });
                }
                Input::Keep(artifact) => {
                    driver.request(KeepRequested { artifact: id(&word(*artifact)), reason: String::new() });
                }
                Input::LetGo(artifact) => {
                    driver.request(LetGoRequested { artifact: id(&word(*artifact)) });
                }
                Input::Wait(seconds) => {
                    driver.advance(Duration::from_secs(*seconds));
                }
            }
            for fact in &driver.facts()[seen..] {
                match &fact.event {
                    ArtifactFact::ReplicationStarted(e) => {
                        let artifact = e.summary.artifact;
                        model.built.insert(artifact, fact.at);
                        model.retired.remove(&artifact);
                        let name = model.names.entry(e.summary.name.to_string()).or_default();
                        name.retain(|other| *other != artifact);
                        name.push(artifact);
                    }
                    ArtifactFact::ArtifactPinned(e) => drop(model.held.insert((e.artifact, "pin"))),
                    ArtifactFact::ArtifactUnpinned(e) => drop(model.held.remove(&(e.artifact, "pin"))),
                    ArtifactFact::ArtifactKept(e) => drop(model.held.insert((e.artifact, "wish"))),
                    ArtifactFact::ArtifactLetGo(e) => drop(model.held.remove(&(e.artifact, "wish"))),
                    ArtifactFact::ArtifactRetired(e) => {
                        let id = e.artifact;
                        prop_assert!(model.retired.insert(id), "retired twice");
                        prop_assert!(!model.held.iter().any(|(held, _)| *held == id), "it was needed");
                        let age = fact.at.since(model.built[&id]);
                        prop_assert!(age >= Duration::from_secs(lately), "it was {age:?} old");
                        let newest = |name: &Vec<ArtifactId>| name.iter().rev().take(last as usize).any(|n| *n == id);
                        prop_assert!(!model.names.values().any(newest), "it was among the newest");
                    }
                    _ => {}
                }
            }
        }
        driver.advance(Duration::from_secs(1_000));
        let live = tables::LIVE.list(driver.state(), &Range::all(), Order::Ascending, 100).expect("memory");
        for ((_, artifact), ()) in live {
            let newest = |name: &Vec<ArtifactId>| name.iter().rev().take(last as usize).any(|n| *n == artifact);
            let needed = model.held.iter().any(|(held, _)| *held == artifact) || model.names.values().any(newest);
            prop_assert!(needed, "nothing keeps what is still there");
        }
        driver.assert_replay();
    }
}
