//! `longshore up` whose projections are gone: they come from a snapshot in its bucket, and what it knew it knows again.

use std::time::Duration;

use anyhow::{Result, ensure};
use longshore_e2e::{Cluster, Options, process::wait_for};
use longshore_schemas::http::JobView;

const BOUND: Duration = Duration::from_secs(60);

fn build(queue: &str) -> serde_json::Value {
    serde_json::json!({"queue": queue, "build": {
        "name": "web", "repository": "https://example.com/web.git",
        "commit": "0123456789012345678901234567890123456789", "command": ["make"], "output": "out",
        "run": {"command": ["./web"]}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_folder_that_was_deleted_comes_back_from_a_snapshot() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let setting = |name: &str, value: &str| (format!("LONGSHORE_SNAPSHOTS_{name}"), value.to_owned());
    let options =
        Options { up_environment: vec![setting("INTERVAL", "1s"), setting("FACTS", "1")], ..Options::default() };
    let mut cluster = Cluster::start_with(folder.path(), &["eu"], options).await?;
    let mut jobs = Vec::new();
    for queue in ["a", "b", "c", "d"] {
        jobs.push(cluster.client.post::<JobView>("/v1/builds", &build(queue)).await?);
    }
    wait_for("a snapshot with the jobs", BOUND, async || {
        let metrics = cluster.client.text("/metrics").await?;
        let facts = metrics.lines().find_map(|line| line.strip_prefix("longshore_snapshot_facts{} ")).unwrap_or("0");
        // JobQueued and Processed of each.
        Ok((facts.parse::<u64>()? >= 2 * jobs.len() as u64).then_some(()))
    })
    .await?;
    cluster.control.kill()?;
    std::fs::remove_dir_all(folder.path().join("up/state"))?;
    cluster.restart_control().await?;
    let log = cluster.control.log_text();
    ensure!(log.contains("the state comes from a snapshot"), "{log}");
    for job in &jobs {
        ensure!(cluster.client.job(&job.job).await?.job == job.job);
    }
    let one_more: JobView = cluster.client.post("/v1/builds", &build("a")).await?;
    ensure!(one_more.job.number == jobs[0].job.number + 1, "{one_more:?} follows {:?}", jobs[0]);
    Ok(())
}
