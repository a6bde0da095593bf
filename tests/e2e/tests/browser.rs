//! The console in a real browser: the deploy button is pressed, and every node converges.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Cluster, greeter::Repository, path_text, process::wait_for};
use longshore_schemas::http::{ArtifactStatus, JobStatus};

const BOUND: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn the_deploy_button_brings_every_node_to_the_goal() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(&folder.path().join("repository"))?;
    let mut cluster = Cluster::start(folder.path(), &["eu", "us"]).await?;
    cluster.start_workers(1)?;
    cluster.start_nodes(3).await?;
    let commit = repository.commit("one", 4, &[])?;
    let job = cluster.client.build(&repository.build("greeter", commit)?).await?;
    let job = cluster.client.job_ended(&job.job, BOUND).await?;
    ensure!(job.status == JobStatus::Succeeded, "{:?}", job.failure);
    let artifact = job.artifact.context("an artifact")?.artifact;
    wait_for("the artifact to be deployable", BOUND, async || {
        Ok((cluster.client.artifact(&artifact).await?.status == ArtifactStatus::Deployable).then_some(()))
    })
    .await?;

    // Kept for people to look at: tests are built into TARGET/debug/deps.
    let screenshot = longshore_e2e::process::binary_path("longshore")?.with_file_name("console.png");
    let url = format!("{}/?access_token={}", cluster.up.api, cluster.client.token);
    let output = Command::new("node")
        .args(["deploy.mjs", &url, "greeter", "6", path_text(&screenshot)?])
        .current_dir("browser")
        .output()
        .context("Node.js cannot be started; infra/setup.sh browser installs it")?;
    ensure!(
        output.status.success(),
        "the browser did not see it: {} (screenshot: {})",
        String::from_utf8_lossy(&output.stderr),
        screenshot.display()
    );
    let nodes = cluster.client.nodes().await?;
    ensure!(nodes.iter().all(|node| node.services.iter().any(|s| s.artifact == Some(artifact))));
    cluster.stop()
}
