//! The roles apart on a Kafka cluster: what one process took another decides and a third one shows; a region's processes
//! share its nodes and survive each other.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use longshore_control::verify::Report;
use longshore_e2e::{
    apart::{Apart, Layout},
    path_text,
    process::{binary_path, wait_for},
    quick,
};
use longshore_log::{
    Log, Record,
    kafka::{Config as KafkaConfig, KafkaLog},
};
use longshore_schemas::{
    http::{AFTER_REQUEST, DeadLetterView, JobView, Page, PartitionView, ProcessingView, REQUEST_PLACE, RetryView},
    topics,
};
use tokio::task::spawn_blocking;

/// For any one thing; a region's process is taken for gone after half a minute.
const BOUND: Duration = Duration::from_secs(120);
const NODES: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn roles_share_the_work_and_survive_each_other() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kafka = spawn_blocking(|| longshore_kafka::Cluster::start(&longshore_kafka::Config::new(1))).await??;
    let mut apart = Apart::start(folder.path(), kafka.brokers(), Layout::new(&["eu"], 1)).await?;
    let result = play(&mut apart, kafka.brokers()).await;
    if result.is_err() {
        // The test's output is shown when it fails.
        eprintln!("{}", apart.log_ends());
    }
    result?;
    apart.stop()?;
    verify_without_control(folder.path())
}

/// The log can be looked at when nobody serves it.
fn verify_without_control(folder: &Path) -> Result<()> {
    let mut verify = Command::new(binary_path("longshore")?);
    verify.args(["log", "verify", "--output", "json", "--config", path_text(&folder.join("longshore.toml"))?]);
    let output = verify.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Report = serde_json::from_slice(&output.stdout)?;
    ensure!(report.is_clean() && report.requests > 0 && report.projections == 0, "{report:?}");
    ensure!(report.partitions.iter().any(|partition| partition.facts > 0), "{report:?}");
    Ok(())
}

async fn play(apart: &mut Apart, brokers: &str) -> Result<()> {
    share_partitions(apart).await?;
    read_elsewhere(apart).await?;
    look_after_the_log(apart, brokers).await?;
    refuse_a_folder_in_use(apart)?;
    apart.start_nodes(NODES).await?;
    lose_a_region_process(apart).await
}

/// Each control node leads something.
async fn share_partitions(apart: &Apart) -> Result<()> {
    wait_for("every control node to lead partitions", BOUND, async || {
        let leaders = apart.leaders().await?;
        Ok((0..apart.controls.len()).all(|index| leaders.values().any(|of| of == &[index])).then_some(()))
    })
    .await
}

/// What one control node has answered, every other shows, if it is told to wait for it.
async fn read_elsewhere(apart: &Apart) -> Result<()> {
    let http = reqwest::Client::new();
    let token = &apart.client.token;
    for (index, queue) in ["one", "two", "three", "four", "five", "six"].into_iter().enumerate() {
        let taker = &apart.controls[index % apart.controls.len()].address;
        let url = format!("http://{taker}/v1/builds");
        let asked = http.post(url).bearer_auth(token).json(&quick::nothing(queue)?).send().await?;
        let place = asked.headers().get(REQUEST_PLACE).context("its place is told")?.to_str()?.to_owned();
        let job: JobView = asked.error_for_status()?.json().await?;
        for member in &apart.controls {
            let url = format!("http://{}/v1/jobs?queue={queue}&{AFTER_REQUEST}={place}", member.address);
            let answer = http.get(url).bearer_auth(token).send().await?.error_for_status()?;
            let jobs: Page<JobView> = answer.json().await?;
            ensure!(jobs.items.iter().any(|shown| shown.job == job.job), "{} does not show {}", member.name, job.job);
        }
    }
    Ok(())
}

/// Who leads is told, what is no request is set aside and can be tried again, and the log is whole while it is written.
async fn look_after_the_log(apart: &Apart, brokers: &str) -> Result<()> {
    let client = &apart.client;
    let topics: Page<PartitionView> = client.get("/v1/topics").await?;
    let mut of_requests = topics.items.iter().filter_map(|view| view.processing.as_ref());
    let led = |of: &ProcessingView| of.owner.as_ref().is_some_and(|owner| owner.starts_with("longshore-control at "));
    ensure!(of_requests.clone().count() == 28 && of_requests.all(led), "{topics:?}");
    wait_for("the sizes of all partitions", BOUND, async || {
        let topics: Page<PartitionView> = client.get("/v1/topics").await?;
        let told = topics.items.iter().all(|view| view.bytes.is_some());
        let builds = topics.items.iter().filter(|view| view.topic == topics::BUILDS.name);
        Ok((told && builds.map(|view| view.bytes.unwrap_or(0)).sum::<u64>() > 0).then_some(()))
    })
    .await?;

    let config = KafkaConfig { manage_topics: false, ..KafkaConfig::new(brokers, topics::ALL) };
    let log = KafkaLog::connect(config).await?;
    log.append(topics::GOAL_REQUESTS.name, vec![Record::new("web", "no request")]).await?;
    log.close().await;
    let letter = wait_for("the dead letter", BOUND, async || {
        let letters: Page<DeadLetterView> = client.get("/v1/dead-letters").await?;
        Ok(letters.items.into_iter().next())
    })
    .await?;
    let retry = format!("/v1/dead-letters/{}/retry", letter.offset);
    let first: RetryView = client.post(&retry, &()).await?;
    ensure!(first.retried, "{first:?}");
    let second: RetryView = client.post(&retry, &()).await?;
    ensure!(!second.retried, "{second:?}");
    wait_for("a dead letter again", BOUND, async || {
        let letters: Page<DeadLetterView> = client.get("/v1/dead-letters").await?;
        Ok((letters.items.len() == 2).then_some(()))
    })
    .await?;
    let verified = client.text("/v1/verify").await?;
    ensure!(verified.contains("event: Report") && verified.contains(r#""faults_total":0"#), "{verified}");
    Ok(())
}

fn refuse_a_folder_in_use(apart: &Apart) -> Result<()> {
    for (role, set) in [("control", "api.listen=127.0.0.1:0"), ("region", "region.name=eu")] {
        let data: PathBuf = apart.folder.join(if role == "control" { "control-1" } else { "region-eu-1" });
        let config = apart.folder.join("longshore.toml");
        let mut second = Command::new(binary_path("longshore")?);
        second.args([role, "--config", path_text(&config)?, "--data", path_text(&data)?, "--set", set]);
        let output = second.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains("another process uses the data folder"), "{said}");
    }
    Ok(())
}

/// A region's process dies together with one of its nodes: that node is lost, and no other.
async fn lose_a_region_process(apart: &mut Apart) -> Result<()> {
    let connected = |process: &str, node: &str| process.contains(&format!("node connected node={node} "));
    let logs: Vec<String> = apart.regions.iter().map(|member| plain(&member.process.log_text())).collect();
    let first = apart.nodes[0].name.clone();
    let home = logs.iter().position(|log| connected(log, &first)).context("the node is connected somewhere")?;
    let with_it = apart.nodes.iter().filter(|node| connected(&logs[home], &node.name)).count();
    apart.nodes[0].process.kill()?;
    apart.regions[home].kill()?;
    wait_for("the dead node to be lost", BOUND, async || {
        let nodes = apart.client.nodes().await?;
        let lost: Vec<_> = nodes.iter().filter(|node| node.lost).map(|node| node.node.as_str()).collect();
        ensure!(lost.iter().all(|lost| *lost == first), "{with_it} nodes had to move, and lost are {lost:?}");
        Ok((lost.len() == 1).then_some(()))
    })
    .await?;
    let text = apart.client.text("/metrics").await?;
    let lost = text.lines().find(|line| line.starts_with(r#"longshore_facts_total{topic="fleet",kind="NodesLost"}"#));
    ensure!(lost.is_some_and(|line| line.ends_with(" 1")), "nobody was called lost besides: {lost:?}");
    // The other takes all of them, and the first comes back and shares again.
    apart.regions[home].restart()?;
    apart.regions[home].listens().await
}

/// Without the colours of a terminal.
fn plain(log: &str) -> String {
    let mut text = String::new();
    let mut parts = log.split('\u{1b}');
    text += parts.next().unwrap_or_default();
    for part in parts {
        text += part.split_once('m').map_or(part, |(_, rest)| rest);
    }
    text
}
