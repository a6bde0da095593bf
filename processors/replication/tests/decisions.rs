//! What replication decides: inputs, and the expected facts beside them.

mod common;

use common::{PACKS, Step::*, check, driver, id, run};
use longshore_processor::{Memory, Order, Processor, Range, Store};
use longshore_replication::{Config, ERROR_BYTES_MAX, Replication, Soft, tables};
use longshore_schemas::{
    ArtifactId, ArtifactName, RegionName, Timestamp,
    events::{ArtifactFact, ArtifactRetired, Cause, Fact, ReplicaStatus, TimerFired, Trigger},
};

fn name(text: &str) -> ArtifactName {
    text.parse().expect("valid")
}

fn region(text: &str) -> RegionName {
    text.parse().expect("valid")
}

fn status(state: &dyn Store, artifact: &str) -> tables::Status {
    tables::ARTIFACTS.expect(state, &id(artifact)).expect("a row").status
}

fn newest(state: &dyn Store, of: &str) -> Vec<ArtifactId> {
    let rows = tables::BY_NAME.list(state, &Range::prefix(&name(of)), Order::Descending, 10).expect("memory");
    rows.into_iter().map(|((_, _, artifact), ())| artifact).collect()
}

#[test]
fn an_artifact_becomes_deployable_when_the_last_region_has_it() {
    let mut driver = driver("eu us");
    check(
        &mut driver,
        &[
            (Stored("one", "eu"), "NotFound: there is no artifact one"),
            (Built("one", "greeter", "./a"), "started one in eu us"),
            (Copying("one", "eu", 12), "progressed eu: 12"),
            (Copying("one", "eu", 12), ""),
            (Copying("one", "ap", 12), "NotFound: artifact one is not replicated to region ap, but to eu, us"),
            (Stored("one", "us"), "stored us"),
            (Stored("one", "us"), ""),
            (Copying("one", "us", 29), ""),
            (Failed("one", "eu", "bucket is full"), "failed eu: bucket is full"),
            (Failed("one", "eu", "bucket is full"), ""),
            (Failed("one", "eu", "bucket is gone"), "failed eu: bucket is gone"),
            (Copying("one", "eu", 12), "progressed eu: 12"),
            (Copying("one", "eu", PACKS + 1), "progressed eu: 30"),
        ],
    );
    assert_eq!(status(driver.state(), "one"), tables::Status::Replicating);
    check(&mut driver, &[(Stored("one", "eu"), "stored eu, completed one")]);
    let artifact = tables::ARTIFACTS.expect(driver.state(), &id("one")).expect("a row");
    assert_eq!((artifact.status, artifact.completed_at), (tables::Status::Deployable, Some(driver.now())));
    let replica = tables::REPLICAS.expect(driver.state(), &(id("one"), region("eu"))).expect("a row");
    assert_eq!((replica.status, replica.packs_done, replica.error), (Some(ReplicaStatus::Stored), PACKS, None));
}

#[test]
fn what_was_built_elsewhere_is_replicated_and_deployed_alike() {
    let mut driver = driver("eu us");
    check(
        &mut driver,
        &[
            (Imported("one", "tool", "https://vendor.example/tool"), "imported one from https://vendor.example/tool"),
            (Imported("one", "tool", "https://vendor.example/tool"), ""),
            (Stored("one", "eu"), "stored eu"),
            (
                Pin("one", "web", "d-1", "eu us"),
                "answer d-1: artifact one is not in region us yet (0 of 30 packs); wait until it is deployable",
            ),
            (Stored("one", "us"), "stored us, completed one"),
            (Pin("one", "web", "d-2", "eu us"), "pinned one by web, answer d-2: run web"),
            (
                Imported("one", "other", "https://vendor.example/2"),
                "imported one from https://vendor.example/2, completed one",
            ),
            (
                Imported("two", "tool", ""),
                "Invalid: origin must be a URL of 1 to 2048 bytes that says where this was built",
            ),
            (
                Imported("two", "tool", "no url"),
                "Invalid: origin must be a URL, such as https://host/path, without spaces or control characters",
            ),
        ],
    );
    let artifact = tables::ARTIFACTS.expect(driver.state(), &id("one")).expect("a row");
    let tables::Source::Imported(origin) = artifact.source else { panic!("it was imported") };
    assert_eq!((origin.url.as_str(), origin.imported_by.as_str()), ("https://vendor.example/2", "alice"));
    assert_eq!(newest(driver.state(), "tool"), [id("one")]);
    // Built here as well, it is what was built here.
    check(&mut driver, &[(Built("one", "tool", "./a"), "started one in eu us, completed one")]);
    let artifact = tables::ARTIFACTS.expect(driver.state(), &id("one")).expect("a row");
    assert!(matches!(artifact.source, tables::Source::Built(_)));
}

#[test]
fn a_region_that_finds_wrong_bytes_is_not_deployable_until_it_is_mended() {
    let mut driver = driver("eu us");
    check(
        &mut driver,
        &[
            (Built("one", "greeter", "./a"), "started one in eu us"),
            (Stored("one", "eu"), "stored eu"),
            (Stored("one", "us"), "stored us, completed one"),
            (Failed("one", "eu", "pack 7 has wrong bytes"), "failed eu: pack 7 has wrong bytes"),
            (
                Pin("one", "web", "d1", "us eu"),
                "answer d1: artifact one is not in region eu yet (failed: pack 7 has wrong bytes); wait until it is \
                 deployable",
            ),
            (Pin("one", "web", "d2", "us"), "pinned one by web, answer d2: run ./a"),
        ],
    );
    assert_eq!(status(driver.state(), "one"), tables::Status::Replicating);
    check(
        &mut driver,
        &[
            (Copying("one", "eu", 29), "progressed eu: 29"),
            (Stored("one", "eu"), "stored eu, completed one"),
            (Pin("one", "web", "d3", "us eu"), "pinned one by web, answer d3: run ./a"),
        ],
    );
}

#[test]
fn pins_are_answered_and_name_what_is_missing() {
    let mut driver = driver("ap eu us");
    check(
        &mut driver,
        &[
            (Pin("one", "web", "d0", "eu"), "answer d0: there is no artifact one; deploy one that a build has made"),
            (Built("one", "greeter", "./a"), "started one in ap eu us"),
            (Stored("one", "eu"), "stored eu"),
            (Copying("one", "ap", 12), "progressed ap: 12"),
            (
                Pin("one", "web", "d1", "eu ap us"),
                "answer d1: artifact one is not in region ap yet (12 of 30 packs), nor in region us yet (0 of 30 packs); \
                 wait until it is deployable",
            ),
            (
                Pin("one", "web", "d2", "eu mars"),
                "answer d2: artifact one is not replicated to region mars, but to ap, eu, us",
            ),
            (Pin("one", "web", "d3", "eu"), "pinned one by web, answer d3: run ./a"),
            (Pin("one", "web", "d3", "eu"), "answer d3: run ./a"),
            (Pin("one", "api", "d4", "eu"), "pinned one by api, answer d4: run ./a"),
            (Unpin("one", "web"), "unpinned one by web"),
            (Unpin("one", "web"), ""),
            (Unpin("two", "web"), ""),
        ],
    );
    let pins = tables::PINS.list(driver.state(), &Range::prefix(&id("one")), Order::Ascending, 10).expect("memory");
    let services: Vec<_> = pins.iter().map(|((_, service), _)| service.as_str()).collect();
    assert_eq!(services, ["api"]);
}

#[test]
fn the_same_artifact_built_again_keeps_its_copies() {
    let mut driver = driver("eu us");
    check(
        &mut driver,
        &[
            (Built("one", "greeter", "./a"), "started one in eu us"),
            (Built("one", "greeter", "./a"), ""),
            (Stored("one", "eu"), "stored eu"),
            // The same bytes, run in another way: what was said last counts.
            (Built("one", "greeter", "./b"), "started one in eu us"),
            (Stored("one", "us"), "stored us, completed one"),
            (Built("one", "greeter", "./b"), ""),
            (Pin("one", "web", "d1", "eu us"), "pinned one by web, answer d1: run ./b"),
            (Built("one", "hello", "./b"), "started one in eu us, completed one"),
            (Built("two", "greeter", "./a"), "started two in eu us"),
        ],
    );
    assert_eq!(status(driver.state(), "one"), tables::Status::Deployable);
    assert_eq!(newest(driver.state(), "hello"), [id("one")]);
    let greeters = newest(driver.state(), "greeter");
    assert_eq!(greeters.len(), 2, "each artifact stands once under a name");
    let times = tables::BY_TIME.list(driver.state(), &Range::all(), Order::Descending, 10).expect("memory");
    assert_eq!(times.len(), 2, "each artifact stands once");
}

#[test]
fn the_newest_artifact_of_a_name_comes_first() {
    let mut driver = driver("eu");
    check(&mut driver, &[(Built("one", "greeter", "./a"), "started one in eu")]);
    driver.advance(std::time::Duration::from_secs(1));
    check(&mut driver, &[(Built("two", "greeter", "./a"), "started two in eu")]);
    assert_eq!(newest(driver.state(), "greeter"), [id("two"), id("one")]);
    driver.advance(std::time::Duration::from_secs(1));
    check(&mut driver, &[(Built("one", "greeter", "./b"), "started one in eu")]);
    assert_eq!(newest(driver.state(), "greeter"), [id("one"), id("two")]);
}

#[test]
fn a_deployment_without_regions_has_nothing_to_wait_for() {
    check(&mut driver(""), &[(Built("one", "greeter", "./a"), "started one in , completed one")]);
}

#[test]
fn a_long_error_is_cut() {
    let mut driver = driver("eu");
    check(&mut driver, &[(Built("one", "greeter", "./a"), "started one in eu")]);
    let error = "ä".repeat(ERROR_BYTES_MAX);
    driver.request(common::report("one", "eu", ReplicaStatus::Failed, 0, Some(&error)));
    let replica = tables::REPLICAS.expect(driver.state(), &(id("one"), region("eu"))).expect("a row");
    assert_eq!(replica.error.map(|error| error.len()), Some(ERROR_BYTES_MAX));
}

/// Nothing retires artifacts yet; what it will mean is fixed already.
#[test]
fn a_retired_artifact_is_not_deployable_and_starts_again_from_nothing() {
    let mut driver = driver("eu");
    check(
        &mut driver,
        &[(Built("one", "greeter", "./a"), "started one in eu"), (Stored("one", "eu"), "stored eu, completed one")],
    );
    let mut state = driver.state().clone();
    let trigger = Trigger::TimerFired(TimerFired { due: driver.now() });
    let cause = Cause { index: 0, count: 1, trigger };
    let event = ArtifactFact::ArtifactRetired(ArtifactRetired { artifact: id("one") });
    let fact = Fact { sequence: 0, at: driver.now(), actor: "timer".into(), trace: None, cause, event };
    Replication::evolve(&mut state, &fact).expect("applies");
    assert_eq!(status(&state, "one"), tables::Status::Retired);
    assert_eq!(
        decide(&state, common::pin("one", "web", "d", "eu")),
        "answer d: artifact one is retired; build it again"
    );
    assert_eq!(
        decide(&state, common::report("one", "eu", ReplicaStatus::Stored, PACKS, None)),
        "Conflict: artifact one is retired; its copy in region eu is no longer wanted"
    );
    assert_eq!(decide(&state, common::built("one", "greeter", "./a")), "started one in eu");
    let started = longshore_schemas::events::ReplicationStarted {
        summary: common::built("one", "greeter", "./a").summary,
        source: common::built("one", "greeter", "./a").source,
        run: run("./a"),
        regions: vec![region("eu")],
    };
    Replication::evolve(&mut state, &Fact { event: started.into(), ..fact }).expect("applies");
    let replica = tables::REPLICAS.expect(&state, &(id("one"), region("eu"))).expect("a row");
    assert_eq!(replica, tables::Replica::default(), "its copies may have been collected");
}

#[test]
fn a_new_region_gets_what_is_built_again() {
    let mut driver = driver("eu");
    check(
        &mut driver,
        &[(Built("one", "greeter", "./a"), "started one in eu"), (Stored("one", "eu"), "stored eu, completed one")],
    );
    let wider = Replication::new(Config::new(vec![region("eu"), region("us")]));
    let shown = decide_by(&wider, driver.state(), common::built("one", "greeter", "./a"));
    assert_eq!(shown, "started one in eu us");
}

/// Takes over with these regions, and does all that is to do then.
fn take_over(regions: &[&str], state: &mut Memory) -> Vec<String> {
    let replication = Replication::new(Config::new(regions.iter().map(|name| region(name)).collect()));
    let (mut soft, now, mut shown) = (Soft::default(), Timestamp(1_000_000), Vec::new());
    while replication.next_wake(state, &mut soft, now).expect("memory").is_some_and(|due| due <= now) {
        let decision = replication.wake(state, &mut soft, now).expect("memory");
        for event in decision.facts {
            shown.push(common::in_words(&common::show_fact(&event)));
            let trigger = Trigger::TimerFired(TimerFired { due: now });
            let cause = Cause { index: 0, count: 1, trigger };
            let fact = Fact { sequence: 0, at: now, actor: "timer".into(), trace: None, cause, event };
            Replication::evolve(state, &fact).expect("applies");
        }
    }
    shown
}

#[test]
fn new_regions_get_what_there_is_and_what_services_need_comes_first() {
    let mut driver = driver("eu us");
    let second = std::time::Duration::from_secs(1);
    check(&mut driver, &[(Built("one", "greeter", "./a"), "started one in eu us"), (Stored("one", "eu"), "stored eu")]);
    driver.advance(second);
    check(&mut driver, &[(Built("two", "greeter", "./a"), "started two in eu us"), (Stored("two", "eu"), "stored eu")]);
    driver.advance(second);
    check(
        &mut driver,
        &[
            (Built("three", "greeter", "./a"), "started three in eu us"),
            (Stored("three", "eu"), "stored eu"),
            (Stored("three", "us"), "stored us, completed three"),
            (Stored("one", "us"), "stored us, completed one"),
            (Pin("one", "web", "d1", "eu us"), "pinned one by web, answer d1: run ./a"),
        ],
    );
    let (mut state, times) = (driver.state().clone(), |state: &Memory| {
        tables::BY_TIME.list(state, &Range::all(), Order::Ascending, 10).expect("memory")
    });
    let before = times(&state);
    assert_eq!(take_over(&["us", "eu"], &mut state), [""; 0], "the same regions in another order");
    assert_eq!(
        take_over(&["eu", "us", "ap"], &mut state),
        [
            "regions of one: eu us ap; new: ap",
            "regions of three: eu us ap; new: ap",
            "regions of two: eu us ap; new: ap"
        ]
    );
    assert_eq!(take_over(&["eu", "us", "ap"], &mut state), [""; 0], "once");
    assert_eq!(status(&state, "one"), tables::Status::Replicating);
    assert_eq!(times(&state), before, "nothing is newer than it was");
    // Where it was it may be deployed meanwhile.
    let deploy = |state: &Memory, regions| decide(state, common::pin("one", "web", "d2", regions));
    assert_eq!(deploy(&state, "eu us"), "pinned one by web, answer d2: run ./a");
    assert!(deploy(&state, "eu ap").contains("not in region ap yet (0 of 30 packs)"), "{}", deploy(&state, "eu ap"));

    // One goes: what only waited for it is complete.
    assert_eq!(
        take_over(&["eu"], &mut state),
        [
            "regions of one: eu; new: ",
            "completed one",
            "regions of three: eu; new: ",
            "completed three",
            "regions of two: eu; new: ",
            "completed two"
        ]
    );
    let replicas = tables::REPLICAS.list(&state, &Range::prefix(&id("one")), Order::Ascending, 10).expect("memory");
    assert_eq!(replicas.len(), 1, "nobody reports for a region that is gone");
}

#[test]
fn many_artifacts_are_back_filled_in_parts() {
    let mut driver = driver("eu");
    let names: Vec<&'static str> = (0..200).map(|n| &*format!("artifact-{n}").leak()).collect();
    for name in &names {
        driver.request(common::built(name, "greeter", "./a"));
    }
    let mut state = driver.state().clone();
    assert_eq!(take_over(&["eu", "us"], &mut state).len(), names.len());
    let plans = tables::PLANS.list(&state, &Range::all(), Order::Ascending, 10).expect("memory");
    assert_eq!(plans, [("eu,us".to_owned(), names.len() as u64)]);
}

#[test]
fn progress_has_a_rate_and_what_failed_is_remembered() {
    let mut driver = driver("eu");
    let second = std::time::Duration::from_secs(1);
    check(&mut driver, &[(Built("one", "greeter", "./a"), "started one in eu")]);
    let replica = |driver: &longshore_processor::testing::Driver<Replication>| {
        tables::REPLICAS.expect(driver.state(), &(id("one"), region("eu"))).expect("a row")
    };
    // Packs done, of 1,000 bytes each, and the rate after it; a second between each two.
    for (done, rate) in [(2, 0), (5, 3_000), (11, 4_000), (11, 4_000), (12, 2_832)] {
        driver.request(common::report("one", "eu", ReplicaStatus::Copying, done, None));
        assert_eq!(replica(&driver).bytes_per_second, rate, "after {done} packs");
        driver.advance(second);
    }
    driver.request(common::report("one", "eu", ReplicaStatus::Failed, 12, Some("the bucket is away")));
    driver.request(common::report("one", "eu", ReplicaStatus::Copying, 13, None));
    let seen = replica(&driver);
    assert_eq!((seen.bytes_per_second, seen.error.as_deref(), seen.failures), (0, None, 1));
    assert_eq!(seen.last_error.as_deref(), Some("the bucket is away"));
    driver.request(common::report("one", "eu", ReplicaStatus::Stored, PACKS, None));
    assert_eq!(replica(&driver).bytes_per_second, 0);
    driver.assert_replay();
}

fn decide(state: &Memory, event: impl Into<longshore_schemas::events::ArtifactRequest>) -> String {
    decide_by(&Replication::new(Config::new(vec![region("eu")])), state, event)
}

fn decide_by(
    replication: &Replication,
    state: &Memory,
    event: impl Into<longshore_schemas::events::ArtifactRequest>,
) -> String {
    let request = longshore_schemas::events::Request {
        id: "direct".parse().expect("valid"),
        at: Timestamp(0),
        actor: "test".into(),
        trace: None,
        report: None,
        event: event.into(),
    };
    common::show(&replication.decide(state, &mut Soft::default(), &request, Timestamp(0)).expect("memory"))
}
