//! Agents, shims and services that are killed or replaced, files that are nonsense, and releases that break after they were proved.

use std::{process::Command, time::Duration};

use longshore_schemas::events::NodeStatus;
use rustls::crypto::ring;
use tokio::time::{Instant, sleep};

use crate::{
    node::{Node, SERVE, ask, goal, lives, signal, wait_until},
    published,
    region::{Heard, Region},
    running,
};

/// How often a status was reported on a revision.
fn times(heard: &Heard, revision: u64, status: NodeStatus) -> usize {
    let is = |report: &&_| {
        let report: &longshore_schemas::stream::NodeReport = report;
        report.version.revision == revision && report.status == status
    };
    heard.reports.iter().filter(is).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_breaks_after_it_was_proved_is_reported_and_never_rolled_back() {
    let (region, node, port) = running("one").await;
    let two = published(&region, "two", SERVE).await;
    region.push(goal("web", 2, Some(two)));
    region.wait_status("web", 2, NodeStatus::Healthy).await;

    let first = ask(port).await.expect("it answers").pid;
    let begun = Instant::now();
    signal(first, "KILL");
    let report = region.wait_status("web", 2, NodeStatus::Starting).await;
    // The first report of that kind was that of the start.
    let starting = |heard: &Heard| {
        let mut of_two = heard.reports.iter().filter(|r| r.version.revision == 2 && r.status == NodeStatus::Starting);
        of_two.next_back().filter(|report| report.message.is_some()).cloned()
    };
    assert_eq!(report.message, None);
    let message = region.wait_for("word of the end", starting).await.message.expect("it says why");
    println!("a release that ends is reported after {:?}", begun.elapsed());
    assert!(message.contains("signal: 9"), "{message}");

    wait_until("it runs again", async || ask(port).await.is_some_and(|answer| answer.pid != first)).await;
    signal(ask(port).await.expect("it answers").pid, "KILL");
    let report = region.wait_status("web", 2, NodeStatus::Failed).await;
    println!("a release that ends again is reported as failed after {:?}", begun.elapsed());
    assert!(report.port.is_some(), "its shim goes on starting it");

    region.wait_for("recovery", |heard| (times(heard, 2, NodeStatus::Healthy) == 2).then_some(())).await;
    println!("that it is well again is believed after {:?}", begun.elapsed());
    assert_eq!(ask(port).await.expect("it answers").version, "two");
    region.wait_for("reports", |heard| (times(heard, 2, NodeStatus::RolledBack) == 0).then_some(())).await;
    assert!(node.status().contains(&two.short().to_string()), "{}", node.status());
}

/// A machine comes back by itself to what it ran, and when its region is there again, to what that wants then: nothing in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_runs_its_goal_and_skips_what_it_missed() {
    let (region, mut node, port) = running("one").await;
    region.go_away(true);
    let shim = node.shim_pid();
    let service = ask(port).await.expect("it answers").pid;
    node.kill_agent();
    signal(shim, "KILL");
    signal(service, "KILL");
    wait_until("nothing is left of it", async || !lives(service) && !lives(shim)).await;
    node.start_agent(&[]);
    wait_until("it runs again", async || ask(port).await.is_some_and(|answer| answer.version == "one")).await;

    let mut last = None;
    for (revision, version) in (2..).zip(["two", "three", "four", "five", "six", "seven"]) {
        let artifact = published(&region, version, SERVE).await;
        region.push(goal("web", revision, Some(artifact)));
        last = Some((revision, artifact));
    }
    let (revision, artifact) = last.expect("some");
    region.go_away(false);
    region.wait_status("web", revision, NodeStatus::Healthy).await;
    assert_eq!(ask(port).await.expect("it answers").version, "seven");
    let missed =
        |heard: &Heard| heard.reports.iter().filter(|report| (2..revision).contains(&report.version.revision)).count();
    assert_eq!(region.wait_for("reports", |heard| Some(missed(heard))).await, 0, "nothing of what it missed");
    let releases = std::fs::read_dir(node.data().join("releases")).expect("there").flatten();
    let names: Vec<_> = releases.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let whole = names.iter().filter(|name| name.len() == artifact.to_string().len()).count();
    assert_eq!(whole, 2, "the one before and this one: {names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_any_moment_of_an_upgrade_comes_back_to_one_release() {
    let (region, mut node, port) = running("a").await;
    let artifacts = [published(&region, "a", SERVE).await, published(&region, "b", SERVE).await];
    let (mut revision, mut answers) = (1, 0);
    for round in 0..14u64 {
        revision += 1;
        region.push(goal("web", revision, Some(artifacts[revision as usize % 2])));
        // This waits for nothing: the moment is what is tried. An upgrade takes about half a second.
        sleep(Duration::from_millis(67 * round % 800)).await;
        node.kill_agent();
        if let Some(answer) = ask(port).await {
            assert!(["a", "b"].contains(&answer.version.as_str()), "{answer:?}");
            answers += 1;
        }
        let (_, shims) = node.processes();
        assert!(shims.len() <= 1, "round {round}: shims {shims:?}");
        if round % 5 == 4 {
            node.replace_program();
        }
        let begun = Instant::now();
        node.start_agent(&[]);
        if round % 3 == 2 {
            let healthy = |heard: &Heard| (times(heard, revision, NodeStatus::Healthy) > 0).then_some(());
            region.wait_for("healthy service", healthy).await;
            println!("round {round}: the new release is healthy {:?} after the agent came back", begun.elapsed());
            let wanted = ["a", "b"][revision as usize % 2];
            let answer = ask(port).await.expect("it answers");
            assert_eq!(answer.version, wanted, "round {round}");
            let current = std::fs::read_to_string(node.service_file("current/version")).expect("there");
            assert_eq!(current, wanted, "round {round}");
            assert_eq!(node.processes().0, [answer.pid], "round {round}: nothing of the other release is left");
        }
    }
    assert!(answers > 0, "it never answered while the agent was away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_agent_takes_the_services_over() {
    let (region, mut node, port) = running("one").await;
    for replaced in 1..=2 {
        let before = ask(port).await.expect("it answers");
        node.kill_agent();
        node.replace_program();
        node.start_agent(&[]);
        let back = |heard: &Heard| (heard.hellos.len() == 1 + replaced).then_some(());
        region.wait_for("hello of the new agent", back).await;
        assert_eq!(ask(port).await.as_ref(), Some(&before), "the same process");
        // What the new agent starts, it can hand on to the next.
        let version = format!("v{replaced}");
        let next = published(&region, &version, SERVE).await;
        let revision = 1 + replaced as u64;
        region.push(goal("web", revision, Some(next)));
        region.wait_status("web", revision, NodeStatus::Healthy).await;
        assert_eq!(ask(port).await.expect("it answers").version, version);
        assert!(!lives(before.pid), "the old release ended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_service_whose_shim_was_killed_is_left() {
    let _ = ring::default_provider().install_default();
    let (region, pids) = (Region::start().await, tempfile::tempdir().expect("a folder"));
    let file = pids.path().join("pid");
    let daemon = format!("(setsid sh -c 'trap \"\" TERM; echo $$ > {}; sleep 1000' &)\n{SERVE}", file.display());
    let artifact = published(&region, "one", &daemon).await;
    region.push(goal("web", 1, Some(artifact)));
    let node = Node::start("n-1", &region);
    let port = region.wait_status("web", 1, NodeStatus::Healthy).await.port.expect("it has one");
    wait_until("the daemon runs", async || std::fs::read_to_string(&file).is_ok_and(|pid| pid.ends_with('\n'))).await;
    let daemon: u32 = std::fs::read_to_string(&file).expect("there").trim().parse().expect("a number");
    let service = ask(port).await.expect("it answers").pid;
    let begun = Instant::now();
    // The daemon is then in no group and under no parent that anybody knows of.
    signal(node.shim_pid(), "KILL");
    signal(service, "KILL");
    wait_until("a new shim runs it", async || ask(port).await.is_some_and(|answer| answer.pid != service)).await;
    println!("a service whose shim was killed answers again after {:?}", begun.elapsed());
    assert!(!lives(daemon), "the daemon of the killed shim");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_nonsense_stop_nobody() {
    let (region, mut node, port) = running("a").await;
    let artifacts = [published(&region, "a", SERVE).await, published(&region, "b", SERVE).await];
    let mut innocent = Command::new("sleep").arg("300").spawn().expect("starts");
    let of_another = format!("{{\"shim_pid\":{0},\"pid\":{0},\"exits\":0}}", innocent.id());
    let table = [
        ("status.json", ""),
        ("status.json", "{\"shim_pid\": 1"),
        ("status.json", of_another.as_str()),
        ("shim.json", "\0\0\0\0"),
        ("state.json", "{\"generation\": 3, \"content\": {"),
        ("state.json", ""),
    ];
    for (revision, (file, content)) in (2..).zip(table) {
        node.kill_agent();
        std::fs::write(node.service_file(file), content).expect("written");
        node.start_agent(&[]);
        region.push(goal("web", revision, Some(artifacts[revision as usize % 2])));
        let report = region.wait_status("web", revision, NodeStatus::Healthy).await;
        assert_eq!(report.port, Some(port), "{file} {content:?}");
        let answer = ask(port).await.expect("it answers");
        assert_eq!(answer.version, ["a", "b"][revision as usize % 2], "{file} {content:?}");
        assert_eq!(node.processes().0, [answer.pid], "{file} {content:?}: one process");
    }
    assert!(innocent.try_wait().expect("asked").is_none(), "a process that a broken status named was signalled");
    innocent.kill().expect("it runs");
    innocent.wait().expect("it ends");
    assert!(node.service_file("state.json.broken").exists(), "people may look at it");

    // A shim that does nothing any more is killed, with what it ran, once its grace is over.
    let (stuck, service) = (node.shim_pid(), ask(port).await.expect("it answers").pid);
    signal(stuck, "STOP");
    region.push(goal("web", 20, Some(artifacts[0])));
    region.wait_status("web", 20, NodeStatus::Healthy).await;
    assert!(!lives(stuck) && !lives(service));
}
