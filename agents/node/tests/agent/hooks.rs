//! Hooks of real releases: which run when, what a failure of each means, and what an agent that is killed in one leaves.

use std::path::{Path, PathBuf};

use longshore_schemas::{
    ArtifactId,
    events::{Hook, Hooks, NodeStatus, RunSpec},
};
use rustls::crypto::ring;
use tempfile::TempDir;

use crate::{
    node::{Node, SERVE, ask, goal, goal_of, lives, wait_until},
    published,
    region::Region,
    running,
};

const NAMES: [&str; 6] = ["before_fetch", "before_stop", "after_stop", "before_start", "after_start", "validate"];

fn hook(script: &str, timeout_seconds: u32) -> Hook {
    Hook { command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), timeout_seconds }
}

fn slot<'a>(hooks: &'a mut Hooks, name: &str) -> &'a mut Option<Hook> {
    match name {
        "before_fetch" => &mut hooks.before_fetch,
        "before_stop" => &mut hooks.before_stop,
        "after_stop" => &mut hooks.after_stop,
        "before_start" => &mut hooks.before_start,
        "after_start" => &mut hooks.after_start,
        "validate" => &mut hooks.validate,
        other => panic!("no hook is called {other}"),
    }
}

/// A run with this one hook.
fn with(name: &str, script: &str, timeout_seconds: u32) -> impl FnOnce(&mut RunSpec) {
    let (name, hook) = (name.to_owned(), hook(script, timeout_seconds));
    move |run| *slot(&mut run.hooks, &name) = Some(hook)
}

fn lines(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn pid_in(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.strip_suffix('\n')?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_in_order_and_those_of_a_stop_are_of_what_is_stopped() {
    let _ = ring::default_provider().install_default();
    let (region, folder) = (Region::start().await, tempfile::tempdir().expect("a folder"));
    let journal = folder.path().join("journal");
    let write = format!(
        "echo $LONGSHORE_HOOK $LONGSHORE_SERVICE $PORT $(cat version) \
         \"${{LONGSHORE_OLD_ARTIFACT:-none}}\" \"${{LONGSHORE_NEW_ARTIFACT:-none}}\" >> {}",
        journal.display()
    );
    let all = |run: &mut RunSpec| NAMES.iter().for_each(|name| *slot(&mut run.hooks, name) = Some(hook(&write, 10)));
    let (one, two) = (published(&region, "one", SERVE).await, published(&region, "two", SERVE).await);
    region.push(goal_of("web", 1, Some(one), all));
    let node = Node::start("n-1", &region);
    let port = region.wait_status("web", 1, NodeStatus::Healthy).await.port.expect("it has one");
    region.push(goal_of("web", 2, Some(two), all));
    region.wait_status("web", 2, NodeStatus::Healthy).await;
    region.push(goal("web", 3, None));
    region.wait_status("web", 3, NodeStatus::Stopped).await;
    let line = |name: &str, version: &str, old: Option<ArtifactId>, new: Option<ArtifactId>| {
        let text = |artifact: Option<ArtifactId>| artifact.map_or("none".to_owned(), |artifact| artifact.to_string());
        let words = [name, "web", &port.to_string(), version, &text(old), &text(new)];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    };
    let (one, two) = (Some(one), Some(two));
    let expected = [
        line("before_fetch", "", None, one),
        line("before_start", "one", None, one),
        line("after_start", "one", None, one),
        line("validate", "one", None, one),
        line("before_fetch", "", one, two),
        line("before_stop", "one", one, two),
        line("after_stop", "one", one, two),
        line("before_start", "two", one, two),
        line("after_start", "two", one, two),
        line("validate", "two", one, two),
        line("before_stop", "two", two, None),
        line("after_stop", "two", two, None),
    ];
    assert_eq!(lines(&journal), expected, "{}", node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_fails_its_release_and_the_one_before_runs_again() {
    let (region, node, port) = running("good").await;
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = folder.path().join("daemon");
    let bad = published(&region, "bad", SERVE).await;
    let forks = format!("setsid sleep 1000 & echo $! > {}; echo the pool is empty; exit 3", daemon.display());
    let hangs = format!("setsid sleep 1000 & echo $! > {}; echo still waiting; sleep 1000", daemon.display());
    let table = [
        ("before_fetch", forks.as_str(), "exit status: 3; its output ends:\nthe pool is empty"),
        ("before_fetch", &hangs, "did not end within 1s and was killed; its output ends:\nstill waiting"),
        ("before_start", &forks, "exit status: 3; its output ends:\nthe pool is empty"),
        ("before_start", "exec /no/such/program", "failed: exit status: 127"),
        ("after_start", &hangs, "did not end within 1s and was killed; its output ends:\nstill waiting"),
        ("validate", &forks, "exit status: 3; its output ends:\nthe pool is empty"),
    ];
    for (revision, (name, script, expected)) in (2..).zip(table) {
        let before = ask(port).await.expect("it answers");
        region.push(goal_of("web", revision, Some(bad), with(name, script, 1)));
        let message = region.wait_status("web", revision, NodeStatus::RolledBack).await.message.expect("it says why");
        assert!(message.contains(&format!("the hook {name} ")) && message.contains(expected), "{message}");
        let after = ask(port).await.expect("it answers");
        assert_eq!(after.version, "good", "{name}");
        assert_eq!(after.pid == before.pid, name == "before_fetch", "{name}: what runs was stopped");
        if let Some(daemon) = pid_in(&daemon) {
            assert!(!lives(daemon), "{name}: what the hook left");
        }
        assert_eq!(node.processes().0, [after.pid], "{name}: nothing of the failed release is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_goes_on_when_its_hooks_fail_and_says_so() {
    let _ = ring::default_provider().install_default();
    let (region, folder) = (Region::start().await, tempfile::tempdir().expect("a folder"));
    let daemon = folder.path().join("daemon");
    // Deaf to the stop signal, and so is what it left in a session of its own.
    let deaf = format!("trap '' TERM\nsetsid sleep 1000 &\necho $! > {}\n{SERVE}", daemon.display());
    let (one, two) = (published(&region, "one", &deaf).await, published(&region, "two", SERVE).await);
    region.push(goal_of("web", 1, Some(one), |run| {
        run.stop_seconds = 1;
        run.hooks.before_stop = Some(hook("echo no such backend; exit 1", 5));
        run.hooks.after_stop = Some(hook("sleep 1000", 1));
    }));
    let node = Node::start("n-1", &region);
    let port = region.wait_status("web", 1, NodeStatus::Healthy).await.port.expect("it has one");
    let old = ask(port).await.expect("it answers").pid;
    region.push(goal("web", 2, Some(two)));
    let message = region.wait_status("web", 2, NodeStatus::Healthy).await.message.expect("it says what failed");
    let expected = ["before_stop failed: exit status: 1", "no such backend", "after_stop did not end within 1s"];
    assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    assert!(!lives(old) && !lives(pid_in(&daemon).expect("it ran")), "nothing of the old release is left");
    assert_eq!(node.processes().0, [ask(port).await.expect("it answers").pid]);
}

/// A hook that notes its process and waits, unless `go` is there.
struct Gate(TempDir);

impl Gate {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn script(&self) -> String {
        let (runs, pid, go) = (self.file("runs"), self.file("pid"), self.file("go"));
        let (runs, pid, go) = (runs.display(), pid.display(), go.display());
        format!("echo run >> {runs}; [ -e {go} ] && exit 0; echo $$ > {pid}; exec sleep 1000")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_a_hook_comes_back_to_one_release() {
    let (region, mut node, port) = running("0").await;
    let mut revision = 1;
    for name in NAMES {
        let gate = Gate::new();
        if name.ends_with("_stop") {
            // Of the release that is stopped then.
            revision += 1;
            let artifact = published(&region, &revision.to_string(), SERVE).await;
            region.push(goal_of("web", revision, Some(artifact), with(name, &gate.script(), 60)));
            region.wait_status("web", revision, NodeStatus::Healthy).await;
        }
        revision += 1;
        let artifact = published(&region, &revision.to_string(), SERVE).await;
        if name.ends_with("_stop") {
            region.push(goal("web", revision, Some(artifact)));
        } else {
            region.push(goal_of("web", revision, Some(artifact), with(name, &gate.script(), 60)));
        }
        wait_until("the hook runs", async || pid_in(&gate.file("pid")).is_some()).await;
        let pid = pid_in(&gate.file("pid")).expect("it runs");
        assert!(lives(pid), "{name}");
        node.kill_agent();
        wait_until("the hook is ended", async || !lives(pid)).await;
        std::fs::write(gate.file("go"), "").expect("written");
        node.start_agent(&[]);
        region.wait_status("web", revision, NodeStatus::Healthy).await;
        let answer = ask(port).await.expect("it answers");
        assert_eq!(answer.version, revision.to_string(), "{name}");
        assert_eq!(node.processes().0, [answer.pid], "{name}: one process");
        assert_eq!(lines(&gate.file("runs")).len(), 2, "{name}: begun anew, once");
        assert!(!node.service_file("stopping").exists(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_resumed_registers_again() {
    let _ = ring::default_provider().install_default();
    let (region, folder) = (Region::start().await, tempfile::tempdir().expect("a folder"));
    let journal = folder.path().join("journal");
    let write = format!("echo $LONGSHORE_HOOK >> {}", journal.display());
    let one = published(&region, "one", SERVE).await;
    region.push(goal_of("web", 1, Some(one), |run| {
        NAMES.iter().for_each(|name| *slot(&mut run.hooks, name) = Some(hook(&write, 10)));
    }));
    let mut node = Node::start("n-1", &region);
    region.wait_status("web", 1, NodeStatus::Healthy).await;
    node.kill_agent();
    let (shim, pids) = (node.shim_pid(), node.processes().0);
    // As a reboot does.
    [&[shim][..], &pids].concat().into_iter().for_each(|pid| crate::node::signal(pid, "KILL"));
    std::fs::remove_file(&journal).expect("it was there");
    node.start_agent(&[]);
    wait_until("it registers", async || lines(&journal).last().is_some_and(|last| last == "after_start")).await;
    assert_eq!(lines(&journal), ["before_start", "after_start"]);
    wait_until("nothing is owed", async || !node.service_file("resuming").exists()).await;
}
