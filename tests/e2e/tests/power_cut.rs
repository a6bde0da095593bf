//! Power cuts with real processes: `longshore up` and a node on a file system that loses what was not synced, killed at
//! random moments under load. What was acknowledged is there afterwards, whole.
//!
//! `FULL=1` cuts more often.

#![allow(clippy::print_stdout, reason = "what was measured is for whoever reads the test's output")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use longshore_artifact::{ArtifactRoot, pack_key, root_key};
use longshore_e2e::{
    Client, Cluster, Joins,
    greeter::Repository,
    machine::Machine,
    path_text,
    process::{binary_path, wait_for},
};
use longshore_powercut::{Cut, PowerCut, Unsynced, cut::Dice};
use longshore_schemas::{
    ArtifactId, JobId,
    events::{GoalVersion, NodeStatus},
    http::{ArtifactStatus, BuildBody, DeployBody, JobStatus, RolloutStatus, ServiceView},
};

const BOUND: Duration = Duration::from_secs(120);
const REGIONS: [&str; 1] = ["eu"];

fn cuts(usual: u64) -> u64 {
    if std::env::var_os("FULL").is_some() { usual * 10 } else { usual }
}

/// The random moment at which the power fails: the one wait of these tests that waits for nothing.
async fn some_time(dice: &mut Dice, millis_max: u64) {
    tokio::time::sleep(Duration::from_millis(dice.below(millis_max))).await;
}

/// What the test found, and that there was something to lose.
fn say(what: &str, mut times: Vec<Duration>, unsynced: Unsynced) -> Result<()> {
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{what}: {} power cuts with {} names and writes to {} files not synced, recovered after {median:.1?} (median), \
         {longest:.1?} (longest)",
        times.len(),
        unsynced.names,
        unsynced.files
    );
    ensure!(unsynced.files as u64 >= times.len() as u64, "nothing was at stake: {unsynced:?}");
    Ok(())
}

/// What the API said, and so what must be true for ever.
#[derive(Default)]
struct Said {
    jobs: BTreeSet<JobId>,
    succeeded: BTreeMap<JobId, ArtifactId>,
    deployable: BTreeSet<ArtifactId>,
}

/// Asks for builds and looks at what became of them until it is told to stop; errors are what a power cut looks like.
async fn load(client: Client, body: BuildBody, said: Arc<Mutex<Said>>, stop: Arc<AtomicBool>) {
    let mut open: Vec<JobId> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if open.len() < 4
            && let Ok(job) = client.build(&body).await
        {
            said.lock().expect("no panic").jobs.insert(job.job.clone());
            open.push(job.job);
        }
        let mut rest = Vec::new();
        for job in open {
            match look(&client, &job, &said).await {
                Ok(true) => {}
                Ok(false) | Err(_) => rest.push(job),
            }
        }
        open = rest;
    }
}

/// Whether there is nothing more to be said of the job.
async fn look(client: &Client, job: &JobId, said: &Mutex<Said>) -> Result<bool> {
    let view = client.job(job).await?;
    let Some(artifact) = view.artifact.map(|summary| summary.artifact) else { return Ok(view.status.is_ended()) };
    if view.status == JobStatus::Succeeded {
        said.lock().expect("no panic").succeeded.insert(job.clone(), artifact);
    }
    let deployable = client.artifact(&artifact).await?.status == ArtifactStatus::Deployable;
    if deployable {
        said.lock().expect("no panic").deployable.insert(artifact);
    }
    Ok(deployable)
}

/// A build that takes no time; each leaves other bytes.
fn quick(repository: &Repository) -> Result<BuildBody> {
    let commit = repository.commit("quick", 1, &[])?;
    let mut body = repository.build("noise", commit)?;
    let command = "mkdir out && head -c 300000 /dev/urandom > out/noise";
    body.build.command = ["sh", "-c", command].map(str::to_owned).to_vec();
    Ok(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn longshore_up_keeps_what_it_acknowledged() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let body = quick(&Repository::create(&folder.path().join("repository"))?)?;
    let data = folder.path().join("up");
    let mut disk = PowerCut::mount(&data)?;
    let mut cluster = Cluster::start(folder.path(), &REGIONS).await?;
    cluster.start_workers(2)?;
    let said = Arc::new(Mutex::new(Said::default()));
    let (mut dice, mut recovered, mut unsynced) = (Dice::new(7), Vec::new(), Unsynced::default());
    for round in 0..cuts(5) {
        let stop = Arc::new(AtomicBool::new(false));
        let loading: Vec<_> = (0..2)
            .map(|_| tokio::spawn(load(cluster.client.clone(), body.clone(), said.clone(), stop.clone())))
            .collect();
        some_time(&mut dice, 4_000).await;
        cluster.control.kill()?;
        stop.store(true, Ordering::Relaxed);
        for loading in loading {
            loading.await?;
        }
        unsynced += disk.cut(Cut::in_order(round))?;
        let begun = Instant::now();
        cluster.restart_control().await?;
        let job = cluster.client.build(&body).await.with_context(|| format!("after cut {round}"))?;
        recovered.push(begun.elapsed());
        said.lock().expect("no panic").jobs.insert(job.job);
    }
    let jobs = said.lock().expect("no panic").jobs.clone();
    ensure!(jobs.len() as u64 >= 2 * cuts(5), "there was no load: {} jobs", jobs.len());
    for job in &jobs {
        let ended = cluster.client.job_ended(job, BOUND).await?;
        ensure!(ended.status == JobStatus::Succeeded, "{job}: {:?}", ended.failure);
        wait_for(&format!("what came of {job} to be deployable"), BOUND, async || {
            Ok(look(&cluster.client, job, &said).await?.then_some(()))
        })
        .await?;
    }
    {
        let said = said.lock().expect("no panic");
        ensure!(said.succeeded.keys().eq(jobs.iter()), "every job succeeded, once");
        for artifact in said.succeeded.values() {
            has_all(&data.join("s3/buckets/longshore-main"), artifact)?;
            has_all(&data.join("s3/buckets/longshore-eu"), artifact)?;
        }
    }
    for bucket in ["longshore-main", "longshore-eu"] {
        every_pack_is_whole(&data.join("s3/buckets").join(bucket).join("packs"))?;
    }
    cluster.stop()?;
    verify_log(&data)?;
    say("longshore up", recovered, unsynced)
}

/// Every pack of the artifact is in the bucket.
fn has_all(bucket: &Path, artifact: &ArtifactId) -> Result<()> {
    let path = bucket.join(root_key(artifact));
    let root = std::fs::read(&path).with_context(|| path.display().to_string())?;
    for pack in ArtifactRoot::from_json(artifact, &root)?.all_packs() {
        let path = bucket.join(pack_key(&pack.pack));
        let length = std::fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        ensure!(length == pack.bytes, "{} has {length} bytes", path.display());
    }
    Ok(())
}

/// Each holds the bytes that its name says, those of builds that were cut short included.
fn every_pack_is_whole(packs: &Path) -> Result<()> {
    for entry in std::fs::read_dir(packs)? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        let found = blake3::hash(&std::fs::read(&path)?).to_hex();
        ensure!(found.as_str() == name, "{} holds other bytes", path.display());
    }
    Ok(())
}

/// As a person would.
fn verify_log(data: &Path) -> Result<()> {
    let longshore = binary_path("longshore")?;
    let output =
        Command::new(longshore).args(["log", "verify", "--output", "json", "--data", path_text(data)?]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&text)?;
    let facts = report["partitions"].as_array().context("partitions")?.iter();
    let facts: u64 = facts.filter_map(|partition| partition["facts"].as_u64()).sum();
    ensure!(facts > 100 && report["projections"].as_u64() > Some(0), "{text}");
    Ok(())
}

/// The power fails at once for everything that runs there.
async fn cut(machine: &mut Machine, disk: &mut PowerCut, cut: Cut) -> Result<Unsynced> {
    machine.kill()?;
    // Its processes end a moment after it.
    wait_for("the node's processes to end", BOUND, async || disk.cut(cut).map(Some)).await
}

async fn build(cluster: &Cluster, repository: &Repository, version: &str) -> Result<ArtifactId> {
    let commit = repository.commit(version, 2, &[])?;
    let job = cluster.client.build(&repository.build("greeter", commit)?).await?;
    let job = cluster.client.job_ended(&job.job, BOUND).await?;
    ensure!(job.status == JobStatus::Succeeded, "{:?}", job.failure);
    let artifact = job.artifact.context("an artifact")?.artifact;
    wait_for("the artifact to be deployable", BOUND, async || {
        Ok((cluster.client.artifact(&artifact).await?.status == ArtifactStatus::Deployable).then_some(artifact))
    })
    .await
}

/// The goal's version of which the node said that it has it.
async fn said_version(cluster: &Cluster) -> Result<Option<GoalVersion>> {
    let nodes = cluster.client.nodes().await?;
    Ok(nodes.iter().flat_map(|node| &node.services).map(|service| service.version).max())
}

fn held_version(data: &Path) -> Result<GoalVersion> {
    let goals: serde_json::Value = serde_json::from_slice(&std::fs::read(data.join("goals.json"))?)?;
    let envelope = serde_json::from_value(goals["content"]["greeter"].clone())?;
    Ok(longshore_signing::goal::read(&envelope).context("a goal")?.version)
}

async fn runs(cluster: &Cluster, version: &str) -> Result<()> {
    let done = |view: &ServiceView| view.revisions[0].status == RolloutStatus::Completed;
    cluster.client.service_when("greeter", "to complete", BOUND, done).await?;
    wait_for(&format!("the node to answer {version:?}"), BOUND, async || {
        let nodes = cluster.client.nodes().await?;
        let running = nodes.iter().flat_map(|node| &node.services).find(|s| s.status == NodeStatus::Healthy);
        let port = running.and_then(|running| running.port).context("it runs")?;
        let answer = reqwest::get(format!("http://127.0.0.1:{port}/")).await?.text().await?;
        Ok((answer.trim() == version).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_comes_back_with_its_goals_and_runs_what_it_verified() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(&folder.path().join("repository"))?;
    let data = folder.path().join("nodes/eu-1");
    let mut disk = PowerCut::mount(&data)?;
    let mut cluster = Cluster::start(folder.path(), &REGIONS).await?;
    cluster.start_workers(1)?;
    let versions = ["one", "two"];
    let mut artifacts = Vec::new();
    for version in versions {
        artifacts.push(build(&cluster, &repository, version).await?);
    }
    let region = cluster.up.regions.first().context("a region")?;
    let joins = Joins { token_file: &cluster.up.tokens.node, authority: &region.authority, keys: &cluster.up.keys };
    let log = folder.path().join("node.log");
    let mut machine = Machine::start(&data, ("eu", 0), &region.address, &joins, log)?;
    wait_for("the node to join", BOUND, async || {
        machine.process.check_running()?;
        Ok((!cluster.client.nodes().await?.is_empty()).then_some(()))
    })
    .await?;
    let (mut dice, mut recovered, mut unsynced) = (Dice::new(11), Vec::new(), Unsynced::default());
    for round in 0..cuts(6) {
        let which = usize::try_from(round % 2)?;
        cluster.client.deploy("greeter", &DeployBody { artifact: artifacts[which], plan: None }).await?;
        some_time(&mut dice, 2_000).await;
        let said = said_version(&cluster).await?;
        unsynced += cut(&mut machine, &mut disk, Cut::seeded(round)).await?;
        if let Some(said) = said {
            let held = held_version(&data).with_context(|| format!("after cut {round} it must hold {said:?}"))?;
            ensure!(held >= said, "after cut {round} it holds {held:?}, and said {said:?}");
        }
        let begun = Instant::now();
        machine.restart()?;
        let ran = runs(&cluster, versions[which]).await;
        ran.with_context(|| format!("after cut {round}; its log ends:\n{}", machine.process.log_end()))?;
        recovered.push(begun.elapsed());
    }
    cut(&mut machine, &mut disk, Cut::Everything).await?;
    cluster.stop()?;
    verify_node(&data, &artifacts)?;
    say("longshore-node", recovered, unsynced)
}

/// Of the releases that are there, each is what its name says.
fn verify_node(data: &Path, artifacts: &[ArtifactId]) -> Result<()> {
    let releases = data.join("releases");
    let mut found = 0;
    for artifact in artifacts.iter().filter(|artifact| releases.join(artifact.to_string()).is_dir()) {
        let installed = longshore_artifact::load_installed(&releases, artifact)?;
        longshore_artifact::verify(&installed.dir, &installed.manifest)?;
        found += 1;
    }
    ensure!(found > 0, "no release is there");
    Ok(())
}
