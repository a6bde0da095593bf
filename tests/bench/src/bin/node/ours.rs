//! Ours: a whole `longshore up`, and two agents in one rack. The first one has the bucket to fetch from; the second one, which comes later, has
//! the first.

use std::{
    path::{Path, PathBuf},
    slice,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use longshore_bench::{memory, trees};
use longshore_e2e::{
    Cluster, Node, Options,
    process::wait_for,
    quick::Quick,
    traffic::{Transfer, transfers},
};
use longshore_node::Folders;
use longshore_schemas::{
    ArtifactId,
    http::{DeployBody, RolloutStatus, ServiceView},
};

use crate::{
    BOUND,
    readings::{Passage, Reading, Spent, idle},
};

const SERVICE: &str = "data";
/// The artifact's, beside a small server.
const FILES: u64 = 8;
const BUILD_SECONDS_MAX: u32 = 1_800;
/// After the deployment, until all has calmed down.
const CALM: Duration = Duration::from_secs(5);

pub(crate) struct Ours {
    /// To the first agent, until all packs were there.
    pub(crate) from_bucket: Spent,
    pub(crate) from_bucket_bytes: u64,
    /// From the first agent to the second, likewise.
    pub(crate) passage: Passage,
    /// By the second, from then on until the release was in place.
    pub(crate) installed: Spent,
    pub(crate) release_bytes: u64,
    /// The release of the first agent.
    pub(crate) release: PathBuf,
}

/// Everything is in `folder`, and nothing runs any more.
pub(crate) async fn measure(folder: &Path, bytes: u64) -> Result<Ours> {
    let mut cluster = Cluster::start_with(folder, &["eu"], options()).await?;
    cluster.start_workers(1)?;
    cluster.start_nodes(1).await?;
    let artifact = cluster.client.publish(&build(folder, bytes)?, BOUND).await?;
    memory::warm(bytes);
    cluster.client.deploy(SERVICE, &DeployBody { artifact, plan: None }).await?;
    let sender = cluster.nodes.first().context("a node")?;
    let (goal, here) = fetched(sender).await?;
    let from_bucket_bytes = installed(sender, artifact).await?.from_bucket_bytes;
    let runs = |view: &ServiceView| view.revisions.first().is_some_and(|rev| rev.status == RolloutStatus::Completed);
    cluster.client.service_when(SERVICE, "to run", BOUND, runs).await?;
    let (passage, installed) = second(&mut cluster, artifact, bytes).await?;
    cluster.stop()?;
    let releases = Folders { data: cluster.nodes.first().context("a node")?.folder.clone() }.releases();
    let release = releases.join(artifact.to_string());
    Ok(Ours {
        from_bucket: here.since(&goal),
        from_bucket_bytes,
        passage,
        installed,
        release_bytes: trees::bytes(&release)?,
        release,
    })
}

/// Agents write their log for programs, and do not look for drift meanwhile.
fn options() -> Options {
    let environment = [("LONGSHORE_LOG_FORMAT", "json"), ("LONGSHORE_NODE_DRIFT_INTERVAL", "86400")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Options { environment, ..Options::default() }
}

/// Files that cannot be compressed.
fn build(folder: &Path, bytes: u64) -> Result<longshore_schemas::http::BuildBody> {
    let quick = Quick::create(&folder.join("repository"))?;
    let each = bytes / FILES;
    let files = (1..=FILES).map(|number| format!("head -c {each} /dev/urandom > out/data-{number}\n"));
    let before = ["mkdir out\n".to_owned()].into_iter().chain(files).collect::<String>();
    let mut body = quick.build("default", SERVICE, quick.commit("one")?, &before)?;
    body.build.time_limit_seconds = BUILD_SECONDS_MAX;
    Ok(body)
}

/// Another agent gets the release from the first one: what both used until it had all packs, and the second one until it had the release.
async fn second(cluster: &mut Cluster, artifact: ArtifactId, bytes: u64) -> Result<(Passage, Spent)> {
    let region = cluster.up.regions.first().context("a region")?.clone();
    tokio::time::sleep(CALM).await;
    // Nothing of what came before is still being written.
    rustix::fs::sync();
    let idle = idle(&cluster.nodes.first().context("a node")?.process).await?;
    memory::warm(bytes);
    cluster.start_node(&region)?;
    let [sender, receiver] = &cluster.nodes[..] else { anyhow::bail!("there are {} nodes", cluster.nodes.len()) };
    let sender_before = Reading::of(&sender.process)?;
    let (goal, here) = fetched(receiver).await?;
    let sender_after = Reading::of(&sender.process)?;
    let Transfer { from_peers_bytes, from_bucket_bytes, .. } = installed(receiver, artifact).await?;
    let in_place = Reading::of(&receiver.process)?;
    ensure!(from_peers_bytes > 0, "the second node got nothing from the first one");
    let passage = Passage {
        received_bytes: from_peers_bytes + from_bucket_bytes,
        sent_bytes: from_peers_bytes,
        receiver: here.since(&goal),
        sender: sender_after.since(&sender_before),
        idle,
    };
    Ok((passage, in_place.since(&here)))
}

/// What a new agent had used when it heard of its goal, and when all packs were there, verified.
async fn fetched(node: &Node) -> Result<(Reading, Reading)> {
    Ok((told(node, "goal").await?, told(node, "all packs are here").await?))
}

/// What an agent had used when it first said something, or a look later.
async fn told(node: &Node, message: &str) -> Result<Reading> {
    let said = format!("\"message\":\"{message}\"");
    wait_for(&format!("{} to say {message:?}", node.name), BOUND, async || {
        node.process.log_text().contains(&said).then(|| Reading::of(&node.process)).transpose()
    })
    .await
}

/// Waits until the release is in place; what came from where.
async fn installed(node: &Node, artifact: ArtifactId) -> Result<Transfer> {
    wait_for(&format!("{} to have the release", node.name), BOUND, async || {
        Ok(transfers(slice::from_ref(node), SERVICE, &artifact.to_string())?.pop())
    })
    .await
}
