//! `longshore up` that has lost something: projections come from a snapshot in its bucket; requests that the log has removed
//! before they were processed halt their partition, until a person accepts that.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Cluster, Options, path_text,
    process::{binary_path, wait_for},
};
use longshore_log::{
    Log as _, Record, clock,
    local::{Config as LogConfig, LocalLog},
};
use longshore_schemas::{
    Timestamp, codec,
    events::{BuildRequest, CancelRequested, Event as _, Request},
    http::JobView,
    topics,
};
use serde_json::Value;

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

/// A log with requests that nobody processed in eight days; the partition that they were on.
async fn log_that_lost_requests(folder: &Path) -> Result<u32> {
    let log = LocalLog::open(LogConfig::new(folder, topics::ALL))?;
    let request = |n: u32| -> Result<Record> {
        let event: BuildRequest = CancelRequested { job: "a-1".parse()? }.into();
        let key = event.key();
        let id = format!("lost-{n}").parse()?;
        let request = Request { id, at: Timestamp(0), actor: "test".to_owned(), trace: None, report: None, event };
        Ok(Record::new(key, codec::encode(&request)?))
    };
    let requests = (0..3).map(request).collect::<Result<_>>()?;
    let positions = log.append(topics::BUILD_REQUESTS.name, requests).await?;
    log.maintain(clock::now() + Duration::from_secs(8 * 24 * 60 * 60)).await?;
    log.close();
    Ok(positions.first().context("a position")?.source.partition)
}

/// What a command says, and whether it succeeded.
fn longshore(cluster: &Cluster, arguments: &[&str]) -> Result<(bool, String)> {
    let data = cluster.folder.join("up");
    let mut command = Command::new(binary_path("longshore")?);
    let output = command.args(arguments).args(["--data", path_text(&data)?]).env_remove("LONGSHORE_API").output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_the_log_has_lost_halt_their_partition_until_a_person_accepts_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("up");
    std::fs::create_dir_all(&data)?;
    let partition = log_that_lost_requests(&data.join("log")).await?.to_string();
    let cluster = Cluster::start(folder.path(), &["eu"]).await?;
    let lost = format!("requests 0 to 2 of build-requests/{partition} were removed");
    wait_for("the partition to halt", BOUND, async || {
        let health: Value = cluster.client.get("/v1/health").await?;
        Ok((health["status"] == "degraded" && health.to_string().contains(&lost)).then_some(()))
    })
    .await?;
    let metrics = cluster.client.text("/metrics").await?;
    let role = format!("longshore_partition_role{{processor=\"queue\",partition=\"{partition}\",role=\"halted\"}} 1");
    ensure!(metrics.contains(&role), "{metrics}");
    let (well, doctor) = longshore(&cluster, &["doctor"])?;
    ensure!(!well && doctor.contains("halted") && doctor.contains("longshore log accept-loss"), "{doctor}");

    let accept = |to| longshore(&cluster, &["log", "accept-loss", "queue", &partition, "--from", "0", "--to", to]);
    let (done, told) = accept("2")?;
    ensure!(!done && told.contains("requests 0 to 2 are lost"), "{told}");
    let (done, told) = accept("3")?;
    ensure!(done, "{told}");
    // The queue of that partition works.
    let job: JobView = cluster.client.post("/v1/builds", &build("a")).await?;
    ensure!(job.job.number == 1, "{job:?}");
    wait_for("health", BOUND, async || {
        let health: Value = cluster.client.get("/v1/health").await?;
        Ok((health["status"] == "ok").then_some(()))
    })
    .await?;
    let (done, told) = accept("3")?;
    ensure!(!done && told.contains("nothing of build-requests"), "{told}");
    Ok(())
}
