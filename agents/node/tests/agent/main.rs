//! The agent, its shims and real services, against a region that the test plays.

mod checks;
mod disk;
mod drift;
mod fetches;
mod hooks;
mod identity;
mod kills;
mod node;
mod queries;
mod region;
mod takeover;

use std::{
    io::{Read, Write},
    net::TcpListener,
};

use longshore_schemas::{ArtifactId, events::NodeStatus};
use node::{Node, SERVE, ask, goal, lives, release, signal, wait_until};
use region::{Region, provenance_key};
use rustls::crypto::ring;

/// The service's side: answers each request with the version of the release in whose folder it runs, and its own process.
#[test]
#[ignore = "it is started by the agent, as a service"]
fn serves_its_version() {
    let Ok(port) = std::env::var("PORT") else { return };
    let version = std::fs::read_to_string("version").expect("part of the release");
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).expect("the port is free");
    for stream in listener.incoming() {
        let mut stream = stream.expect("a client");
        let body = format!("{version} {}", std::process::id());
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        // Whoever asks may have gone.
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(answer.as_bytes());
    }
}

/// Publishes a release that serves its version and has these assets, on top of another one.
async fn with_assets(region: &Region, version: &str, assets: &[u8], base: Option<ArtifactId>) -> ArtifactId {
    let folder = tempfile::tempdir().expect("a folder");
    release(folder.path(), version, SERVE);
    std::fs::write(folder.path().join("assets"), assets).expect("written");
    region.publish(folder.path(), base).await
}

/// Publishes a release of a script and a version.
async fn published(region: &Region, version: &str, script: &str) -> ArtifactId {
    let folder = tempfile::tempdir().expect("a folder");
    release(folder.path(), version, script);
    region.publish(folder.path(), None).await
}

/// A region and a node on which this version of `web` is healthy; with its port.
async fn running(version: &str) -> (Region, Node, u16) {
    let _ = ring::default_provider().install_default();
    let region = Region::start().await;
    let artifact = published(&region, version, SERVE).await;
    region.push(goal("web", 1, Some(artifact)));
    let node = Node::start("n-1", &region);
    let report = region.wait_status("web", 1, NodeStatus::Healthy).await;
    (region, node, report.port.expect("it has one"))
}

/// Bytes that do not compress, the same for the same seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..bytes / 8).flat_map(|_| next().to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_moves_only_the_difference() {
    let _ = ring::default_provider().install_default();
    let (region, folder) = (Region::start().await, tempfile::tempdir().expect("a folder"));
    release(folder.path(), "one", SERVE);
    let mut assets = noise(1, 12_000_000);
    std::fs::write(folder.path().join("assets"), &assets).expect("written");
    let one = region.publish(folder.path(), None).await;
    region.push(goal("web", 1, Some(one)));
    let node = Node::start("n-1", &region);
    let report = region.wait_status("web", 1, NodeStatus::Healthy).await;
    let port = report.port.expect("it has one");
    assert_eq!(report.artifact, Some(one));
    assert_eq!(ask(port).await.expect("it answers").version, "one");

    release(folder.path(), "two", SERVE);
    assets[5_000_000..5_000_100].copy_from_slice(&noise(2, 104)[..100]);
    std::fs::write(folder.path().join("assets"), &assets).expect("written");
    let two = region.publish(folder.path(), Some(one)).await;
    region.push(goal("web", 2, Some(two)));
    let report = region.wait_status("web", 2, NodeStatus::Healthy).await;
    assert_eq!(report.port, Some(port), "the port stays");
    assert_eq!(ask(port).await.expect("it answers").version, "two");

    let transfers = node.transfers();
    let [first, second] = &transfers[..] else { panic!("{transfers:?}") };
    assert!(first.needed_bytes > 12_000_000 && first.from_bucket_bytes == first.needed_bytes, "{first:?}");
    assert!(second.from_bucket_bytes < 1_000_000 && second.reused_bytes > 11_000_000, "{second:?}");
    assert!(node.status().contains(&two.short().to_string()), "{}", node.status());

    // Another node gets all of it from this one, and nothing from the bucket.
    region.only_peer(&region.wait_for("hello", |heard| heard.hellos.first().cloned()).await);
    let other = Node::start("n-2", &region);
    let both = |heard: &region::Heard| {
        let healthy =
            |r: &&longshore_schemas::stream::NodeReport| r.version.revision == 2 && r.status == NodeStatus::Healthy;
        (heard.reports.iter().filter(healthy).count() == 2).then_some(())
    };
    region.wait_for("second healthy node", both).await;
    let transfers = other.transfers();
    assert!(transfers.iter().all(|transfer| transfer.from_bucket_bytes == 0), "{transfers:?}");
    assert!(transfers.iter().map(|transfer| transfer.from_peers_bytes).sum::<u64>() > 12_000_000, "{transfers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_crashes_gives_way_to_the_one_before() {
    let (region, node, port) = running("good").await;
    let bad = published(&region, "bad", "echo the disk is on fire >&2; exit 3").await;
    region.push(goal("web", 2, Some(bad)));
    let report = region.wait_status("web", 2, NodeStatus::RolledBack).await;
    let message = report.message.expect("it says why");
    assert!(message.contains("exit status: 3") && message.contains("the disk is on fire"), "{message}");
    assert!(!message.contains("running 1 test"), "that is the output of another release: {message}");
    assert_eq!(ask(port).await.expect("it answers").version, "good");
    let current = std::fs::read_to_string(node.data().join("services/web/current/version")).expect("there");
    assert_eq!(current, "good");

    // Not tried again, and its bytes are removed; a newer revision that is good runs.
    let gone = node.data().join("releases").join(bad.to_string());
    wait_until("the bad release is removed", async || !gone.exists()).await;
    let better = published(&region, "better", SERVE).await;
    region.push(goal("web", 3, Some(better)));
    region.wait_status("web", 3, NodeStatus::Healthy).await;
    assert_eq!(ask(port).await.expect("it answers").version, "better");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_release_that_crashes_or_cannot_start_has_failed() {
    let _ = ring::default_provider().install_default();
    let region = Region::start().await;
    let crashes = published(&region, "bad", "exit 3").await;
    region.push(goal("web", 1, Some(crashes)));
    let mut absent = goal("absent", 1, Some(crashes));
    absent.targets[0].run.command = vec!["./no-such-program".into()];
    region.push(absent);
    let _node = Node::start("n-1", &region);
    let report = region.wait_status("web", 1, NodeStatus::Failed).await;
    assert!(report.message.expect("it says why").contains("exit status: 3"));
    assert_eq!(report.port, None);
    let report = region.wait_status("absent", 1, NodeStatus::Failed).await;
    let message = report.message.expect("it says why");
    assert!(message.contains("no-such-program"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_finds_its_services_again() {
    let (region, mut node, port) = running("one").await;
    let before = ask(port).await.expect("it answers");
    node.kill_agent();
    assert_eq!(ask(port).await.as_ref(), Some(&before), "it needs no agent");
    node.start_agent(&[]);
    let again = |heard: &region::Heard| {
        let healthy = heard.reports.iter().filter(|report| report.status == NodeStatus::Healthy).count();
        (heard.hellos.len() == 2 && healthy == 2).then(|| heard.hellos[1].clone())
    };
    let hello = region.wait_for("second hello and report", again).await;
    assert_eq!(hello.boot, 2);
    assert_eq!(hello.goals.len(), 1, "it remembers its goals");
    assert_eq!(region.wait_for("enrolment", |heard| Some(heard.enrolments)).await, 1, "it enrols once");
    assert_eq!(ask(port).await.as_ref(), Some(&before), "the same process");

    // A service that ends is started again, and one whose shim was killed is replaced.
    signal(before.pid, "KILL");
    let new_process = |before: u32| async move { ask(port).await.is_some_and(|answer| answer.pid != before) };
    wait_until("it is restarted", async || new_process(before.pid).await).await;
    let orphan = ask(port).await.expect("it answers");
    let status = std::fs::read(node.data().join("services/web/status.json")).expect("there");
    let status: longshore_node::shim::ShimStatus = serde_json::from_slice(&status).expect("a status");
    signal(status.shim_pid, "KILL");
    wait_until("a new shim runs it", async || new_process(orphan.pid).await).await;
    assert!(!lives(orphan.pid));

    // SIGTERM ends the agent alone, unless it is asked to take the services along.
    let last = ask(port).await.expect("it answers");
    node.stop_agent();
    assert_eq!(ask(port).await.as_ref(), Some(&last));
    node.start_agent(&["--stop-services-on-exit"]);
    region.wait_for("third hello", |heard| (heard.hellos.len() == 3).then_some(())).await;
    node.stop_agent();
    assert!(!lives(last.pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_version_is_refused_and_services_do_not_mind_each_other() {
    let (region, node, port) = running("one").await;
    let two = published(&region, "two", SERVE).await;
    region.push(goal("web", 5, Some(two)));
    region.wait_status("web", 5, NodeStatus::Healthy).await;
    let old = published(&region, "old", SERVE).await;
    region.push(goal("web", 4, Some(old)));
    // Said after it: when this is there, the other was heard.
    region.push(goal("mail", 1, Some(old)));
    let mail = region.wait_status("mail", 1, NodeStatus::Healthy).await.port.expect("it has one");
    assert_ne!(mail, port);
    assert_eq!(ask(mail).await.expect("it answers").version, "old");
    assert_eq!(ask(port).await.expect("it answers").version, "two");
    let refused = |heard: &region::Heard| Some(heard.reports.iter().any(|report| report.version.revision == 4));
    assert!(!region.wait_for("reports", refused).await);
    drop(node);
}

/// What the region passes on and nobody trusted signed is not run; and the service says why.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_trusted_signed_is_not_run() {
    let (region, node, port) = running("one").await;
    let two = published(&region, "two", SERVE).await;
    region.push_by(goal("web", 2, Some(two)), &provenance_key());
    // Said after it: when this is there, the other was heard.
    let said = region.wait_for("trouble", |heard| {
        let told = |report: &&longshore_schemas::stream::NodeReport| report.message.is_some();
        heard.reports.iter().rev().find(told).cloned()
    });
    let message = said.await.message.expect("it says why");
    assert!(message.contains("goal 2.1 is not taken") && message.contains("none of the 1 keys"), "{message}");
    assert_eq!(ask(port).await.expect("it answers").version, "one");

    let known = region.origin(&two);
    for (origin, says) in
        [(None, "no provenance"), (region.origin(&published(&region, "three", SERVE).await), "not of")]
    {
        region.change_origin(&two, origin);
        region.push(goal("web", if says == "not of" { 4 } else { 3 }, Some(two)));
        let refused = region.wait_for("refusal", |heard| {
            let why = |report: &&longshore_schemas::stream::NodeReport| {
                report.message.as_deref().is_some_and(|m| m.contains(says))
            };
            heard.reports.iter().rev().find(why).cloned()
        });
        assert_eq!(refused.await.status, NodeStatus::Fetching);
        assert_eq!(ask(port).await.expect("it answers").version, "one");
        assert!(!node.data().join("releases").join(two.to_string()).exists(), "nothing of it is here");
    }
    region.change_origin(&two, known);
    region.wait_status("web", 4, NodeStatus::Healthy).await;
    assert_eq!(ask(port).await.expect("it answers").version, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_stopped_service_is_left() {
    let _ = ring::default_provider().install_default();
    let (region, pids) = (Region::start().await, tempfile::tempdir().expect("a folder"));
    let file = pids.path().join("pid");
    // A child in a session of its own, deaf to the stop signal, whose parent is gone.
    let daemon = format!("(setsid sh -c 'trap \"\" TERM; echo $$ > {}; sleep 1000' &)\n{SERVE}", file.display());
    let artifact = published(&region, "one", &daemon).await;
    region.push(goal("web", 1, Some(artifact)));
    let node = Node::start("n-1", &region);
    let port = region.wait_status("web", 1, NodeStatus::Healthy).await.port.expect("it has one");
    let service = ask(port).await.expect("it answers").pid;
    wait_until("the daemon runs", async || std::fs::read_to_string(&file).is_ok_and(|pid| pid.ends_with('\n'))).await;
    let daemon: u32 = std::fs::read_to_string(&file).expect("there").trim().parse().expect("a number");
    assert!(lives(service) && lives(daemon));
    region.push(goal("web", 2, None));
    let report = region.wait_status("web", 2, NodeStatus::Stopped).await;
    assert_eq!((report.artifact, report.port), (None, None));
    assert!(!lives(service), "the service");
    assert!(!lives(daemon), "its daemon");
    assert!(!node.data().join("services/web/current").exists());
}
