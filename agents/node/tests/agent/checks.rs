//! Health checks of every kind, environment files, and users, of real services.

use std::path::Path;

use longshore_schemas::events::{HealthCheck, NodeStatus, RunLimits};

use crate::{
    node::SERVE,
    node::{ask, goal_of, lives, signal, wait_until},
    published, running,
};

fn exec(script: &str) -> HealthCheck {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    HealthCheck { exec: command, interval_ms: 50, timeout_ms: 300, deadline_seconds: 3, ..HealthCheck::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_of_every_kind_tell_good_releases_from_bad_ones() {
    let (region, node, port) = running("good").await;
    let folder = tempfile::tempdir().expect("a folder");
    let pids = folder.path().join("pids");
    let two = published(&region, "two", SERVE).await;
    let hangs = format!("setsid sleep 1000 & echo $! >> {0}; echo $$ >> {0}; exec sleep 1000", pids.display());
    let tcp = HealthCheck { tcp: true, interval_ms: 50, ..HealthCheck::default() };
    // Its own release, its own environment.
    let knows = exec("test \"$(cat version)\" = two && test \"$SERVICE\" = web");
    let fails =
        HealthCheck { grace_seconds: Some(0), failures: 2, deadline_seconds: 20, ..exec("echo not yet; exit 4") };
    let elsewhere = HealthCheck { deadline_seconds: 1, ..tcp.clone() };
    let table = [
        (tcp, "./run.sh", None),
        (knows, "./run.sh", None),
        (exec(&hangs), "./run.sh", Some("not healthy within 3 s: the health check did not end within 300ms")),
        (fails, "./run.sh", Some("2 health checks in a row failed: the health check failed: exit status: 4")),
        (elsewhere, "/bin/sleep", Some("takes no connection")),
    ];
    for (revision, (check, program, failure)) in (2..).zip(table) {
        region.push(goal_of("web", revision, Some(two), |run| {
            run.health = check;
            run.command = vec![program.to_owned()];
            run.command.extend((program == "/bin/sleep").then(|| "1000".to_owned()));
        }));
        let expected = if failure.is_some() { NodeStatus::RolledBack } else { NodeStatus::Healthy };
        let report = region.wait_status("web", revision, expected).await;
        if let Some(failure) = failure {
            let message = report.message.expect("it says why");
            assert!(message.contains(failure), "{message}");
        }
        assert_eq!(ask(port).await.expect("it answers").version, "two", "revision {revision}");
    }
    let left = std::fs::read_to_string(&pids).expect("checks hung");
    assert!(left.lines().all(|pid| !lives(pid.parse().expect("a number"))), "what checks left: {left}");
    drop(node);
}

/// A variable of a process.
fn variable(pid: u32, name: &str) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let environment = String::from_utf8_lossy(&environment).into_owned();
    environment.split('\0').find_map(|entry| Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_come_from_files_and_stay_with_their_release() {
    let (region, node, port) = running("good").await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("web.env");
    let two = published(&region, "two", SERVE).await;
    let wants = |file: &Path| {
        let file = file.to_string_lossy().into_owned();
        move |run: &mut longshore_schemas::events::RunSpec| run.environment_files = vec![file]
    };
    // A missing file: nothing is touched.
    let before = ask(port).await.expect("it answers");
    region.push(goal_of("web", 2, Some(two), wants(&file)));
    let message = region.wait_status("web", 2, NodeStatus::RolledBack).await.message.expect("it says why");
    assert!(message.contains(&*file.to_string_lossy()) && message.contains("No such file"), "{message}");
    assert_eq!(ask(port).await.as_ref(), Some(&before));

    std::fs::write(&file, "TOKEN=one\n").expect("written");
    region.push(goal_of("web", 3, Some(two), wants(&file)));
    region.wait_status("web", 3, NodeStatus::Healthy).await;
    let first = ask(port).await.expect("it answers").pid;
    assert_eq!(variable(first, "TOKEN").as_deref(), Some("one"));
    // Whoever starts it again, the shim or a new shim, has the values of then.
    std::fs::write(&file, "TOKEN=two\n").expect("written");
    signal(first, "KILL");
    let another = |not: u32| async move { ask(port).await.map(|answer| answer.pid).filter(|pid| *pid != not) };
    wait_until("the shim starts it again", async || another(first).await.is_some()).await;
    let second = another(first).await.expect("it answers");
    assert_eq!(variable(second, "TOKEN").as_deref(), Some("one"));
    signal(node.shim_pid(), "KILL");
    wait_until("a new shim starts it", async || another(second).await.is_some()).await;
    assert_eq!(variable(another(second).await.expect("it answers"), "TOKEN").as_deref(), Some("one"));

    region.push(goal_of("web", 4, Some(two), |run| {
        wants(&file)(run);
        run.environment.insert("NEWER".into(), "yes".into());
    }));
    region.wait_status("web", 4, NodeStatus::Healthy).await;
    assert_eq!(variable(ask(port).await.expect("it answers").pid, "TOKEN").as_deref(), Some("two"));
    assert!(!node.log().contains("TOKEN"), "no secret is logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_runs_as_its_user() {
    let (region, node, _) = running("good").await;
    let two = published(&region, "two", SERVE).await;
    let as_user = |user: &str| {
        let user = user.to_owned();
        move |run: &mut longshore_schemas::events::RunSpec| {
            run.command = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
            run.health.http_path = String::new();
            run.user = Some(user);
        }
    };
    region.push(goal_of("web", 2, Some(two), as_user("no-such-user")));
    let message = region.wait_status("web", 2, NodeStatus::RolledBack).await.message.expect("it says why");
    assert!(message.contains("no-such-user") && message.contains("run.user"), "{message}");
    region.push(goal_of("web", 3, Some(two), as_user("65534")));
    if !rustix::process::geteuid().is_root() {
        let message = region.wait_status("web", 3, NodeStatus::RolledBack).await.message.expect("it says why");
        assert!(message.contains("may not change users"), "{message}");
        return;
    }
    region.wait_status("web", 3, NodeStatus::Healthy).await;
    let pids = node.processes().0;
    let status = std::fs::read_to_string(format!("/proc/{}/status", pids[0])).expect("it runs");
    let words = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("there");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(words("Uid:"), ["65534"; 4]);
    assert_eq!(words("Groups:"), [""; 0], "none of the agent's groups");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_held_to_its_limits_and_status_says_how() {
    let (region, node, port) = running("good").await;
    let two = published(&region, "two", SERVE).await;
    region.push(goal_of("web", 2, Some(two), |run| {
        run.limits = RunLimits { open_files: Some(77), memory_mib: Some(8_192), ..RunLimits::default() };
    }));
    region.wait_status("web", 2, NodeStatus::Healthy).await;
    let pid = ask(port).await.expect("it answers").pid;
    assert_eq!(node.processes().0, [pid], "it took the place of the step in between");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("there");
    assert_eq!(line.split_whitespace().nth(3), Some("77"), "{line}");
    let status = node.status();
    assert!(
        status.contains("77 open files of each process by rlimit") && status.contains("memory 8192 MiB"),
        "{status}"
    );

    // A program that is not there fails as without limits.
    region.push(goal_of("web", 3, Some(two), |run| {
        run.command = vec!["./no-such-program".into()];
        run.limits.open_files = Some(77);
    }));
    let message = region.wait_status("web", 3, NodeStatus::RolledBack).await.message.expect("it says why");
    assert!(message.contains("no-such-program"), "{message}");
}
