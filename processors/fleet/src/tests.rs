//! Reports and the facts that they lead to, side by side; and random reports, after each of which every level is counted
//! anew and compared.

use std::{collections::BTreeMap, time::Duration};

use longshore_processor::{Outgoing, testing::Driver};
use longshore_schemas::{
    ArtifactId, NodeId, RegionName, ServiceName,
    events::{
        Cohort, CohortAnnounced, Convergence, ConvergenceReported, FleetFact, GoalRequest, GoalVersion,
        NodeDescription, NodeStatus, RefusalCode, RegionReported, StatusReport,
    },
    nodes::shard_of,
};
use proptest::prelude::*;

use crate::{Config, Fleet, levels::recount, tables};

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a test's name is valid")
}

fn driver(shards: u32) -> Driver<Fleet> {
    Driver::new(Fleet::new(Config { regions: vec![id("eu"), id("us")], shards_per_region: shards }))
}

fn report(shard: u32) -> RegionReported {
    let (seen, statuses, lost, returned) = Default::default();
    RegionReported { region: id("eu"), shard, seen, statuses, lost, returned }
}

fn description(node: &str, zone: &str) -> NodeDescription {
    NodeDescription {
        node: id(node),
        zone: id(zone),
        rack: id("r1"),
        host: format!("{node}.test"),
        agent_version: "1".into(),
        labels: Default::default(),
    }
}

fn joined(nodes: &[&str]) -> RegionReported {
    RegionReported { seen: nodes.iter().map(|node| description(node, "a")).collect(), ..report(0) }
}

fn artifact(number: u8) -> ArtifactId {
    ArtifactId::of(&[number])
}

fn version(revision: u64, step: u32) -> GoalVersion {
    GoalVersion { revision, step }
}

fn says(nodes: &[&str], version: GoalVersion, number: u8, status: NodeStatus) -> RegionReported {
    let status = StatusReport {
        service: id("web"),
        version,
        artifact: Some(artifact(number)),
        status,
        port: 8_000,
        message: status.is_failure().then(|| "exited with status 1".to_owned()),
        nodes: nodes.iter().map(|node| id(node)).collect(),
    };
    RegionReported { statuses: vec![status], ..report(0) }
}

fn announced(version: GoalVersion, number: u8, cohort: Cohort) -> CohortAnnounced {
    CohortAnnounced { region: id("eu"), shard: 0, service: id("web"), version, artifact: artifact(number), cohort }
}

/// The facts as short text.
fn facts(facts: &[FleetFact]) -> Vec<String> {
    facts
        .iter()
        .map(|fact| match fact {
            FleetFact::NodeJoined(e) => {
                format!("joined {} as {} in {}", e.description.node, e.number, e.description.zone)
            }
            FleetFact::NodesReported(e) => {
                format!("{:?} {} {:?}", e.nodes.iter().collect::<Vec<_>>(), e.version, e.status)
            }
            FleetFact::NodesLost(e) => format!("lost {:?}", e.nodes.iter().collect::<Vec<_>>()),
            FleetFact::NodesReturned(e) => format!("returned {:?}", e.nodes.iter().collect::<Vec<_>>()),
            FleetFact::CohortSet(e) => format!("cohort {}", e.version),
            FleetFact::Processed(_) => "processed".to_owned(),
        })
        .collect()
}

#[test]
fn only_changes_become_facts() {
    use NodeStatus::{Fetching, Healthy};
    let moved = RegionReported { seen: vec![description("n1", "b")], ..report(0) };
    let lost = RegionReported { lost: vec![id("n1"), id("n2")], ..report(0) };
    let back = RegionReported { returned: vec![id("n2")], ..report(0) };
    let flapped = RegionReported { returned: vec![id("n1")], lost: vec![id("n1")], ..report(0) };
    let one_unknown = says(&["n1", "ghost"], version(2, 1), 2, Healthy);
    let table: Vec<(&str, RegionReported, &[&str])> = vec![
        ("two nodes join", joined(&["n1", "n2"]), &["joined n1 as 0 in a", "joined n2 as 1 in a"]),
        ("they are known", joined(&["n2", "n1"]), &[]),
        ("one joins twice in one report", joined(&["n3", "n3"]), &["joined n3 as 2 in a"]),
        ("one is described anew", moved, &["joined n1 as 0 in b"]),
        ("two say the same", says(&["n2", "n1"], version(1, 1), 1, Fetching), &["[0, 1] 1.1 Fetching"]),
        ("they say it again", says(&["n1", "n2"], version(1, 1), 1, Fetching), &[]),
        ("one says something new", says(&["n1", "n2"], version(1, 2), 1, Fetching), &["[0, 1] 1.2 Fetching"]),
        ("an older version comes late", says(&["n1"], version(1, 1), 1, Healthy), &[]),
        ("two are lost", lost.clone(), &["lost [0, 1]"]),
        ("they are lost already", lost, &[]),
        ("one returns", back.clone(), &["returned [1]"]),
        ("it is back already", back, &[]),
        (
            "one is seen again by a new region process",
            RegionReported { seen: vec![description("n1", "b")], ..report(0) },
            &["returned [0]"],
        ),
        ("it is lost while it was back", flapped, &["lost [0]"]),
        ("an unknown node is ignored beside a known one", one_unknown, &["[0] 2.1 Healthy"]),
    ];
    let mut driver = driver(1);
    for (what, report, expected) in table {
        let decision = driver.request(report);
        assert_eq!(facts(&decision.facts), expected, "{what}");
        assert_eq!(decision.refusal, None, "{what}");
    }
    assert_eq!(driver.soft().ignored(), 1);
    driver.assert_replay();
}

#[test]
fn reports_that_cannot_be_are_refused_with_a_reason() {
    let mut port = says(&["n1"], version(1, 1), 1, NodeStatus::Healthy);
    port.statuses[0].port = 70_000;
    let elsewhere = (0..).map(|n| format!("n{n}")).find(|node| shard_of(&id(node), 2) == 1).expect("one of many");
    let table: Vec<(RegionReported, RefusalCode, &str)> = vec![
        (report(2), RefusalCode::Invalid, "shard 2 of region eu"),
        (RegionReported { region: id("mars"), ..report(0) }, RefusalCode::Invalid, "region mars"),
        (port, RefusalCode::Invalid, "port 70000"),
        (joined(&[&elsewhere]), RefusalCode::Invalid, "belongs to shard 1"),
        (RegionReported { lost: vec![id("ghost")], ..report(0) }, RefusalCode::NotFound, "ghost"),
    ];
    let mut driver = driver(2);
    for (report, code, text) in table {
        let refused = driver.request(report).refusal.expect(text);
        assert_eq!(refused.code, code);
        assert!(refused.reason.contains(text), "{}", refused.reason);
    }
}

/// What is remembered of a node, the newest first, as short text; whether there is more, and whether there was.
fn remembered(driver: &Driver<Fleet>, node: &str, limit: usize) -> (Vec<String>, bool, bool) {
    let number = tables::NUMBERS.expect(driver.state(), &(id("eu"), 0, id(node))).expect("it joined");
    let history = tables::history(driver.state(), &id("eu"), 0, number, limit).expect("readable");
    let texts = history.events.into_iter().map(|event| match event.what {
        tables::What::Said(service, status) => format!("{service} {} {:?}", status.version, status.status),
        tables::What::Lost => "lost".to_owned(),
        tables::What::Returned => "returned".to_owned(),
    });
    (texts.collect(), history.has_more, history.remembered_since.is_some())
}

#[test]
fn what_happened_to_a_node_is_remembered_up_to_a_bound() {
    let mut driver = driver(1);
    driver.request(joined(&["n1", "n2"]));
    driver.request(says(&["n1", "n2"], version(1, 1), 1, NodeStatus::Healthy));
    driver.request(RegionReported { lost: vec![id("n2")], ..report(0) });
    driver.advance(Duration::from_secs(1));
    let labels = [("gpu".to_owned(), "a100".to_owned())].into();
    let described = NodeDescription { labels, ..description("n2", "a") };
    driver.request(RegionReported { seen: vec![described.clone()], ..report(0) });
    let node = tables::NODES.expect(driver.state(), &(id("eu"), 0, 1)).expect("it joined");
    assert_eq!((node.description, node.described_at), (described.clone(), driver.now()));
    let said = "web 1.1 Healthy".to_owned();
    assert_eq!(remembered(&driver, "n1", 10), (vec![said.clone()], false, false));
    let all = ["returned".to_owned(), "lost".to_owned(), said];
    assert_eq!(remembered(&driver, "n2", 10), (all.to_vec(), false, false));
    assert_eq!(remembered(&driver, "n2", 2), (all[..2].to_vec(), true, false));
    assert_eq!(remembered(&driver, "n2", 0), (vec![], false, false));

    let too_long = [("gpu".to_owned(), "x".repeat(200))].into();
    let described = NodeDescription { labels: too_long, ..described };
    let refused = driver.request(RegionReported { seen: vec![described], ..report(0) }).refusal.expect("no label");
    assert!(refused.code == RefusalCode::Invalid && refused.reason.contains("label gpu"), "{}", refused.reason);

    for _ in 0..crate::SHARD_EVENTS_MAX / 2 {
        driver.request(RegionReported { lost: vec![id("n1")], ..report(0) });
        driver.request(RegionReported { returned: vec![id("n1")], ..report(0) });
    }
    let (events, has_more, was_more) = remembered(&driver, "n1", usize::MAX);
    assert_eq!((events.len() as u64, has_more, was_more), (crate::SHARD_EVENTS_MAX, false, true));
    assert_eq!(remembered(&driver, "n2", 10), (vec![], false, true), "it is in the log");
    driver.assert_replay();
}

/// The levels that goals was told since the last call.
fn told(driver: &Driver<Fleet>, read: &mut usize) -> Vec<(GoalVersion, u32, u32, u32)> {
    let sent = &driver.sent()[*read..];
    *read = driver.sent().len();
    let level = |outgoing: &Outgoing| match outgoing {
        Outgoing::Goal(GoalRequest::ConvergenceReported(ConvergenceReported { version, level, .. })) => {
            (*version, level.eligible, level.converged, level.failed)
        }
        other => panic!("fleet sends {other:?}"),
    };
    sent.iter().map(level).collect()
}

#[test]
fn goals_is_told_levels_at_most_once_a_second() {
    let (mut driver, mut read) = (driver(1), 0);
    let second = Duration::from_secs(1);
    driver.request(announced(version(1, 1), 1, Cohort::everyone()));
    driver.advance(Duration::ZERO);
    assert_eq!(told(&driver, &mut read), [(version(1, 1), 0, 0, 0)], "a cohort of no nodes is answered");

    driver.request(joined(&["n1", "n2", "n3"]));
    driver.request(says(&["n1"], version(1, 1), 1, NodeStatus::Healthy));
    driver.advance(second - Duration::from_millis(1));
    assert!(told(&driver, &mut read).is_empty(), "the second is not over");
    driver.request(says(&["n2"], version(1, 1), 1, NodeStatus::RolledBack));
    driver.advance(Duration::from_millis(1));
    assert_eq!(told(&driver, &mut read), [(version(1, 1), 3, 1, 1)], "the newest level only");

    driver.request(RegionReported { lost: vec![id("n3")], ..report(0) });
    driver.request(RegionReported { returned: vec![id("n3")], ..report(0) });
    driver.advance(second);
    assert!(told(&driver, &mut read).is_empty(), "the level is what it was");

    driver.request(announced(version(1, 1), 1, Cohort::everyone()));
    driver.advance(second);
    assert_eq!(told(&driver, &mut read), [(version(1, 1), 3, 1, 1)], "asked again, told again");
    driver.takeover();
    driver.advance(second);
    assert_eq!(told(&driver, &mut read), [(version(1, 1), 3, 1, 1)], "a new leader tells all");
    let refused = driver.request(announced(version(1, 0), 1, Cohort::everyone())).refusal.expect("older");
    assert_eq!(refused.code, RefusalCode::Stale);
    driver.assert_replay();
}

#[test]
fn health_and_failures_count_for_the_revision_that_they_were_reported_for() {
    let mut driver = driver(1);
    driver.request(joined(&["n1", "n2"]));
    driver.request(says(&["n1"], version(1, 1), 1, NodeStatus::Healthy));
    driver.request(says(&["n2"], version(1, 1), 1, NodeStatus::Failed));
    let key = (id::<RegionName>("eu"), 0, id::<ServiceName>("web"));
    for (at, converged, failed) in [(version(1, 2), 1, 1), (version(2, 1), 0, 0)] {
        driver.request(announced(at, 1, Cohort::everyone()));
        let row = tables::COHORTS.get(driver.state(), &key).expect("state").expect("set");
        assert_eq!(row.level, Convergence { eligible: 2, converged, failed }, "at {at}");
        let failure = (failed > 0).then(|| "node n2: exited with status 1".to_owned());
        assert_eq!(row.failure, failure);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Report { seen: Vec<(u8, bool)>, statuses: Vec<(u8, u64, u8, u8, Vec<u8>)>, lost: Vec<u8>, returned: Vec<u8> },
    Announce { service: u8, revision: u64, step: u32, artifact: u8, zoned: bool, fraction_bp: u32 },
    Advance(u64),
    Takeover,
}

fn steps() -> impl Strategy<Value = Step> {
    let nodes = || prop::collection::vec(0u8..12, 0..6);
    let seen = prop::collection::vec((0u8..12, any::<bool>()), 0..6);
    let statuses = prop::collection::vec((0u8..3, 1u64..4, 0u8..3, 0u8..7, nodes()), 0..5);
    prop_oneof![
        6 => (seen, statuses, nodes(), nodes())
            .prop_map(|(seen, statuses, lost, returned)| Step::Report { seen, statuses, lost, returned }),
        2 => (0u8..3, 1u64..4, 0u32..3, 0u8..3, any::<bool>(), 1u32..=10_000).prop_map(
            |(service, revision, step, artifact, zoned, fraction_bp)| {
                Step::Announce { service, revision, step, artifact, zoned, fraction_bp }
            }
        ),
        2 => (0u64..1_500).prop_map(Step::Advance),
        1 => Just(Step::Takeover),
    ]
}

fn perform(driver: &mut Driver<Fleet>, step: Step) {
    use NodeStatus::{Failed, Fetching, Healthy, RolledBack, Staged, Starting, Stopped};
    let node = |number: u8| -> NodeId { id(&format!("n{number}")) };
    let service = |number: u8| -> ServiceName { id(&format!("s{number}")) };
    match step {
        Step::Report { seen, statuses, lost, returned } => {
            let described = |(number, b): (u8, bool)| description(node(number).as_str(), if b { "b" } else { "a" });
            let status = |(number, revision, of, status, nodes): (u8, u64, u8, u8, Vec<u8>)| StatusReport {
                service: service(number),
                version: version(revision, 1),
                artifact: Some(artifact(of)),
                status: [Fetching, Staged, Starting, Healthy, Failed, RolledBack, Stopped][usize::from(status)],
                port: 1,
                message: None,
                nodes: nodes.into_iter().map(node).collect(),
            };
            driver.request(RegionReported {
                seen: seen.into_iter().map(described).collect(),
                statuses: statuses.into_iter().map(status).collect(),
                lost: lost.into_iter().map(node).collect(),
                returned: returned.into_iter().map(node).collect(),
                ..report(0)
            });
        }
        Step::Announce { service: number, revision, step, artifact: of, zoned, fraction_bp } => {
            let zones = if zoned { vec![id("b")] } else { Vec::new() };
            let cohort = Cohort { zones, fraction_bp };
            let service = service(number);
            driver.request(CohortAnnounced { service, ..announced(version(revision, step), of, cohort) });
        }
        Step::Advance(millis) => drop(driver.advance(Duration::from_millis(millis))),
        Step::Takeover => driver.takeover(),
    }
}

/// Every node's newest version by service, which never goes back.
fn versions(driver: &Driver<Fleet>, before: &mut BTreeMap<(u32, ServiceName), GoalVersion>) {
    for number in 0..12 {
        for (service, status) in tables::node_statuses(driver.state(), &id("eu"), 0, number).expect("state") {
            let last = before.insert((number, service), status.version).unwrap_or_default();
            assert!(status.version >= last, "node {number} goes from {last} back to {}", status.version);
        }
    }
}

proptest! {
    #[test]
    fn levels_equal_a_count_of_all_nodes(steps in prop::collection::vec(steps(), 1..40)) {
        let mut driver = driver(1);
        let mut newest = BTreeMap::new();
        for step in steps {
            perform(&mut driver, step);
            let (region, state) = (id("eu"), driver.state());
            for (service, row) in tables::cohorts(state, &region, 0).expect("state") {
                let mut counted = row.clone();
                recount(state, &region, 0, &service, &mut counted).expect("state");
                prop_assert_eq!(counted.level, row.level, "of {}", service);
                prop_assert_eq!(row.failure.is_some(), row.level.failed > 0);
            }
            versions(&driver, &mut newest);
        }
        driver.assert_replay();
    }
}
