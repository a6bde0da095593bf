//! The main path with real processes: a commit becomes a running process on every node, through a crash of `longshore up`
//! in the middle, and what is projected afterwards is what a replay from zero gives.

mod common;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Cluster, greeter::Repository, process::wait_for};
use longshore_schemas::{
    ArtifactId,
    events::NodeStatus,
    http::{ArtifactStatus, DeployBody, JobStatus, RollbackBody, RolloutStatus, ServiceView},
};

use common::{Left, verify};

const BOUND: Duration = Duration::from_secs(120);
const REGIONS: [&str; 2] = ["eu", "us"];

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_becomes_a_process_and_the_projections_equal_a_replay() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(&folder.path().join("repository"))?;
    let mut cluster = Cluster::start(folder.path(), &REGIONS).await?;
    cluster.start_workers(1)?;
    cluster.start_nodes(2).await?;

    let one = build(&cluster, &repository, "one").await?;
    deploy(&cluster, one).await?;
    ask_all(&cluster, "one").await?;
    let pids = service_pids(&cluster)?;

    cluster.restart_control().await?;
    ensure!(service_pids(&cluster)? == pids, "services stopped with the control plane");
    let two = build(&cluster, &repository, "two").await?;
    deploy(&cluster, two).await?;
    ask_all(&cluster, "two").await?;

    let rolled_back = cluster.client.rollback("greeter", &RollbackBody { to: None }).await?;
    ensure!(rolled_back.held == [two], "what was rolled back from is held: {:?}", rolled_back.held);
    completed(&cluster).await?;
    ask_all(&cluster, "one").await?;
    let again = cluster.client.deploy("greeter", &DeployBody { artifact: two, plan: None }).await;
    let refused = again.expect_err("a held artifact cannot be deployed").to_string();
    ensure!(refused.starts_with("409") && refused.contains("hold"), "{refused}");

    cluster.stop()?;
    verify(folder.path())?;
    Left::open(folder.path())?.equals_replay(&REGIONS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_loses_only_its_attempt() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(&folder.path().join("repository"))?;
    let mut cluster = Cluster::start(folder.path(), &["eu"]).await?;
    cluster.start_workers(1)?;
    let commit = repository.commit("slow", 1, &[])?;
    let mut body = repository.build("greeter", commit)?;
    body.build.command = ["sh", "-c", "sleep 300"].map(str::to_owned).to_vec();
    let job = cluster.client.build(&body).await?.job;
    wait_for("the job to run", BOUND, async || {
        Ok((cluster.client.job(&job).await?.status == JobStatus::Running).then_some(()))
    })
    .await?;
    cluster.workers[0].kill()?;
    let canceled: longshore_schemas::http::JobView =
        cluster.client.post(&format!("/v1/jobs/{job}/cancel"), &serde_json::json!({})).await?;
    ensure!(canceled.status == JobStatus::Canceled);
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_that_cannot_succeed_say_why_and_what_to_do() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(&folder.path().join("repository"))?;
    let mut cluster = Cluster::start(folder.path(), &["eu"]).await?;
    cluster.start_workers(2)?;
    let commit = repository.commit("one", 1, &[])?;
    let good = repository.build("greeter", commit)?;

    let mut unknown_commit = good.clone();
    unknown_commit.build.commit = "0123456789abcdef0123456789abcdef01234567".parse()?;
    let mut no_output = good.clone();
    no_output.build.output = "nowhere".into();
    let mut no_command = good.clone();
    no_command.build.command = vec!["no-such-compiler".into()];
    let mut no_repository = good.clone();
    no_repository.build.repository = "file:///no/such/repository".into();
    let mut too_long = good.clone();
    too_long.build.command = ["sh", "-c", "sleep 300"].map(str::to_owned).to_vec();
    too_long.build.time_limit_seconds = 1;

    let cases = [
        (unknown_commit, "CommitNotFound", "0123456789abcdef"),
        (no_output, "OutputMissing", "nowhere"),
        (no_command, "CommandNotFound", "no-such-compiler"),
        (no_repository, "RepositoryUnreachable", "/no/such/repository"),
        (too_long, "TimeLimitExceeded", "1 s"),
    ];
    let mut jobs = Vec::new();
    for (body, _, _) in &cases {
        jobs.push(cluster.client.build(body).await?.job);
    }
    for (job, (_, reason, named)) in jobs.iter().zip(&cases) {
        let view = cluster.client.job_ended(job, BOUND).await?;
        ensure!(view.status == JobStatus::Failed, "{reason}: {:?}", view.status);
        let failure = view.failure.context("a reason")?;
        ensure!(format!("{:?}", failure.reason) == *reason, "{reason}: {failure:?}");
        ensure!(failure.message.contains(named), "{reason} should name {named:?}: {}", failure.message);
    }
    ensure!(cluster.client.get::<serde_json::Value>("/v1/artifacts").await?["items"] == serde_json::json!([]));
    cluster.stop()
}

async fn build(cluster: &Cluster, repository: &Repository, version: &str) -> Result<ArtifactId> {
    let commit = repository.commit(version, 4, &[])?;
    let job = cluster.client.build(&repository.build("greeter", commit)?).await?;
    let job = cluster.client.job_ended(&job.job, BOUND).await?;
    ensure!(job.status == JobStatus::Succeeded, "{:?}", job.failure);
    let artifact = job.artifact.context("an artifact")?.artifact;
    wait_for("the artifact to be deployable", BOUND, async || {
        Ok((cluster.client.artifact(&artifact).await?.status == ArtifactStatus::Deployable).then_some(artifact))
    })
    .await
}

async fn deploy(cluster: &Cluster, artifact: ArtifactId) -> Result<()> {
    cluster.client.deploy("greeter", &DeployBody { artifact, plan: None }).await?;
    completed(cluster).await
}

async fn completed(cluster: &Cluster) -> Result<()> {
    let done = |view: &ServiceView| view.revisions[0].status == RolloutStatus::Completed;
    cluster.client.service_when("greeter", "to complete", BOUND, done).await?;
    Ok(())
}

async fn ask_all(cluster: &Cluster, version: &str) -> Result<()> {
    wait_for(&format!("every node to answer {version:?}"), BOUND, async || {
        for node in cluster.client.nodes().await? {
            let running = node.services.first().context("runs something")?;
            ensure!(running.status == NodeStatus::Healthy, "{}: {running:?}", node.node);
            let url = format!("http://{}:{}/", node.host, running.port.context("a port")?);
            let answer = reqwest::get(url).await?.text().await?;
            ensure!(answer.trim() == version, "{} answers {answer:?}", node.node);
        }
        Ok(Some(()))
    })
    .await
}

/// The pids of the services, as their shims know them.
fn service_pids(cluster: &Cluster) -> Result<Vec<u64>> {
    let pid = |folder: &Path| -> Result<u64> {
        let status = std::fs::read(folder.join("services/greeter/status.json"))?;
        serde_json::from_slice::<serde_json::Value>(&status)?["pid"].as_u64().context("it runs")
    };
    cluster.nodes.iter().map(|node| pid(&node.folder)).collect()
}
