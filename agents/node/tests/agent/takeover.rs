//! The agent as a service of its own: a new one takes over while services run, and the old one comes back if it does not come up.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use longshore_schemas::{
    ArtifactId,
    events::{HealthCheck, NodeStatus, RegionalGoal},
};

use crate::{
    node::{Node, PROGRAM, ask, goal_of, wait_until},
    region::{Heard, Region},
    running,
};

/// What an agent is that ends at once, hangs, or is none: started as one, it is the script; else it is a real one that says it is the script.
fn broken(as_agent: &str) -> String {
    format!(
        "#!/bin/sh\ncase $1 in\nrun) {as_agent} ;;\n*) exec {PROGRAM} \"$@\" --program \"$PWD/longshore-node\" ;;\nesac\n"
    )
}

async fn published(region: &Region, mark: &str, program: impl FnOnce(&Path)) -> ArtifactId {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("longshore-node");
    program(&path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    fs::write(folder.path().join("mark"), mark).expect("written");
    region.publish(folder.path(), None).await
}

fn agent(revision: u64, artifact: ArtifactId) -> RegionalGoal {
    goal_of("agent", revision, Some(artifact), |run| {
        run.command = ["./longshore-node", "take-over", "--within-seconds", "20"].map(str::to_owned).to_vec();
        run.health = HealthCheck {
            exec: ["./longshore-node", "came-up"].map(str::to_owned).to_vec(),
            successes: 1,
            interval_ms: 100,
            deadline_seconds: 60,
            ..HealthCheck::default()
        };
    })
}

/// Which program is the agent.
fn program(node: &Node) -> String {
    let running = fs::read(node.data().join("running.json")).expect("there");
    let running: serde_json::Value = serde_json::from_slice(&running).expect("JSON");
    running["program"].as_str().expect("a path").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_takes_over_and_services_go_on() {
    let (region, mut node, port) = running("one").await;
    let before = ask(port).await.expect("it answers");
    let first = program(&node);
    let copy = |path: &Path| assert!(fs::copy(PROGRAM, path).expect("copied") > 0);
    let two = published(&region, "two", copy).await;
    region.push(agent(1, two));
    region.wait_status("agent", 1, NodeStatus::Healthy).await;
    assert!(program(&node).contains(&two.to_string()), "{} was {first}", program(&node));
    assert_eq!(ask(port).await.as_ref(), Some(&before), "the service is the same process");
    let hellos = |heard: &Heard| (heard.hellos.len() >= 2).then(|| heard.hellos.clone());
    let hellos = region.wait_for("second hello", hellos).await;
    assert_ne!(hellos[0].instance, hellos[1].instance);

    // A restart of the machine's service starts the program that was installed first, which gives way.
    node.kill_agent();
    node.start_agent(&[]);
    let greeted = hellos.len();
    region.wait_for("another hello", |heard| (heard.hellos.len() > greeted).then_some(())).await;
    assert!(program(&node).contains(&two.to_string()));
    assert_eq!(ask(port).await.as_ref(), Some(&before));
}

/// Whatever a release does that is to be the agent: there is one that works, in the end.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_come_up_gives_way_to_the_one_before() {
    for (revision, as_agent) in [(1, "exit 1"), (2, "exec sleep 600")] {
        let (region, mut node, port) = running("one").await;
        let before = ask(port).await.expect("it answers");
        let first = program(&node);
        let bad = published(&region, as_agent, |path| fs::write(path, broken(as_agent)).expect("written")).await;
        region.push(agent(revision, bad));
        // As systemd does: whatever has ended is started again.
        let failed = region.wait_status("agent", revision, NodeStatus::Failed);
        let mut failed = std::pin::pin!(failed);
        let report = loop {
            tokio::select! {
                report = &mut failed => break report,
                () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {
                    if node.has_ended() {
                        node.start_agent(&[]);
                    }
                }
            }
        };
        let message = report.message.expect("it says why");
        assert!(message.contains("exit") || message.contains("connected"), "{as_agent}: {message}");
        wait_until("the first one is the agent", async || program(&node) == first).await;
        assert_eq!(ask(port).await.as_ref(), Some(&before), "{as_agent}: the service is the same process");
    }
}
