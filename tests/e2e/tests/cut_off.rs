//! A whole deployment while the control plane and Kafka are away, and one whose region is killed at each step. Real processes; each machine is
//! a world of its own that can lose its power.
//!
//! ```text
//! hook: asked-VERSION-HOOK-NODE is written ─▶ the test sees that the machine stands there, does its worst ─▶ go-VERSION-HOOK ─▶ on it goes
//! ```

#![allow(clippy::print_stderr, reason = "the logs of all roles, for whoever looks into a failure")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Joins,
    apart::{Apart, Layout},
    machine::Machine,
    process::wait_for,
    quick::Quick,
};
use longshore_kafka::{Cluster, Config as ClusterConfig};
use longshore_powercut::{Cut, PowerCut};
use longshore_schemas::{
    ArtifactId,
    events::{Hook, Hooks},
    http::{ArtifactStatus, DeployBody, JobStatus, RolloutStatus, ServiceView},
};
use tokio::task::spawn_blocking;

const BOUND: Duration = Duration::from_secs(120);
const HOOK_SECONDS: u32 = 300;
const MACHINES: usize = 2;
/// What is deployed, and what nothing must happen to meanwhile.
const DEPLOYED: &str = "alpha";
const STILL: &str = "still";

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_needs_neither_kafka_nor_control_nor_a_region_that_stays() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kafka = Arc::new(spawn_blocking(|| Cluster::start(&ClusterConfig::new(1))).await??);
    let layout = Layout { controls: 1, processes_per_region: 1, ..Layout::new(&["eu"], 1) };
    let mut apart = Apart::start(folder.path(), kafka.brokers(), layout).await?;
    apart.start_workers(1)?;
    let result = play(&mut apart, &kafka).await;
    if result.is_err() {
        eprintln!("{}", apart.log_ends());
    }
    result?;
    apart.stop()
}

async fn play(apart: &mut Apart, kafka: &Arc<Cluster>) -> Result<()> {
    let gates = Gates::create(&apart.folder.join("gates"))?;
    let repository = Arc::new(Quick::create(&apart.folder.join("repository"))?);
    let mut artifacts = BTreeMap::new();
    for version in ["one", "two", "three"] {
        artifacts.insert(version, build(apart, &repository, version, gates.hooks(version)).await?);
    }
    let mut fleet = Fleet::start(apart)?;
    gates.open("one", &Gates::ALL)?;
    for service in [STILL, DEPLOYED] {
        deploy(apart, service, artifacts["one"]).await?;
        completed(apart, service).await?;
    }
    fleet.find_ports(apart).await?;
    fleet.all_answer(DEPLOYED, "one").await?;

    without_control(apart, kafka, &gates, &mut fleet, artifacts["two"]).await?;
    region_killed_at_each_step(apart, &gates, &fleet, artifacts["three"]).await
}

/// The goal has reached the machines and nothing of the release has, when Kafka and control are killed.
async fn without_control(
    apart: &mut Apart,
    kafka: &Arc<Cluster>,
    gates: &Gates,
    fleet: &mut Fleet,
    two: ArtifactId,
) -> Result<()> {
    let untouched = fleet.processes(STILL)?;
    deploy(apart, DEPLOYED, two).await?;
    gates.all_asked("two", "before_fetch").await?;
    let cluster = kafka.clone();
    spawn_blocking(move || cluster.kill(1)).await??;
    apart.controls[0].kill()?;
    gates.open("two", &Gates::ALL)?;
    fleet.all_answer(DEPLOYED, "two").await.context("without Kafka and control")?;
    fleet.all_proved(DEPLOYED, two).await?;
    ensure!(fleet.processes(STILL)? == untouched, "{STILL} was touched");

    // A machine loses its power, and all that it had not synced.
    fleet.lose_power().await?;
    for (service, version) in [(DEPLOYED, "two"), (STILL, "one")] {
        fleet.all_answer(service, version).await.with_context(|| format!("{service} after the power was back"))?;
    }
    let cluster = kafka.clone();
    spawn_blocking(move || cluster.restart(1).and_then(|()| cluster.wait_whole(BOUND))).await??;
    apart.controls[0].restart()?;
    apart.controls[0].listens().await?;
    apart.all_led().await?;
    completed(apart, DEPLOYED).await.context("once Kafka and control are back")
}

async fn region_killed_at_each_step(apart: &mut Apart, gates: &Gates, fleet: &Fleet, three: ArtifactId) -> Result<()> {
    let untouched = fleet.processes(STILL)?;
    deploy(apart, DEPLOYED, three).await?;
    let steps = [
        ("three", "before_fetch"),
        ("two", "before_stop"),
        ("two", "after_stop"),
        ("three", "before_start"),
        ("three", "after_start"),
        ("three", "validate"),
    ];
    for (version, hook) in steps {
        gates.all_asked(version, hook).await?;
        apart.regions[0].kill()?;
        gates.open(version, &[hook])?;
        apart.regions[0].restart()?;
        apart.regions[0].listens().await.with_context(|| format!("killed at {hook}"))?;
    }
    completed(apart, DEPLOYED).await?;
    fleet.all_answer(DEPLOYED, "three").await?;
    ensure!(fleet.processes(STILL)? == untouched, "{STILL} was touched");
    Ok(())
}

async fn build(apart: &Apart, repository: &Arc<Quick>, version: &'static str, hooks: Hooks) -> Result<ArtifactId> {
    let repository = repository.clone();
    let body = spawn_blocking(move || {
        let commit = repository.commit(version)?;
        let mut body = repository.build("default", "alpha", commit, "")?;
        body.build.run.hooks = hooks;
        anyhow::Ok(body)
    });
    let job = apart.client.build(&body.await??).await?;
    let job = apart.client.job_ended(&job.job, BOUND).await?;
    ensure!(job.status == JobStatus::Succeeded, "{version}: {:?}", job.failure);
    let artifact = job.artifact.context("an artifact")?.artifact;
    wait_for("the artifact to be deployable", BOUND, async || {
        Ok((apart.client.artifact(&artifact).await?.status == ArtifactStatus::Deployable).then_some(artifact))
    })
    .await
}

async fn deploy(apart: &Apart, service: &str, artifact: ArtifactId) -> Result<()> {
    apart.client.deploy(service, &DeployBody { artifact, plan: None }).await.map(drop)
}

async fn completed(apart: &Apart, service: &str) -> Result<()> {
    let done = |view: &ServiceView| view.revisions[0].status == RolloutStatus::Completed;
    apart.client.service_when(service, "to complete", BOUND, done).await.map(drop)
}

/// Where hooks wait.
struct Gates {
    folder: PathBuf,
}

impl Gates {
    const ALL: [&str; 6] = ["before_fetch", "before_stop", "after_stop", "before_start", "after_start", "validate"];

    fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Each says on which machine it is, and waits. One service is asked about; the other has nothing to wait for.
    fn hooks(&self, version: &str) -> Hooks {
        let hook = |hook: &str| {
            let (folder, name) = (self.folder.display(), format!("{version}-{hook}"));
            let script = format!(
                "[ $SERVICE = {STILL} ] && exit; touch {folder}/asked-{name}-$NODE; while [ ! -e {folder}/go-{name} ]; do sleep 0.02; done"
            );
            Some(Hook { command: vec!["/bin/sh".into(), "-c".into(), script], timeout_seconds: HOOK_SECONDS })
        };
        Hooks {
            before_fetch: hook("before_fetch"),
            before_stop: hook("before_stop"),
            after_stop: hook("after_stop"),
            before_start: hook("before_start"),
            after_start: hook("after_start"),
            validate: hook("validate"),
        }
    }

    fn open(&self, version: &str, hooks: &[&str]) -> Result<()> {
        // The stop hooks of a release are for the next one to wait at.
        let is_later = |hook: &str| hooks.len() > 1 && matches!(hook, "before_stop" | "after_stop");
        for hook in hooks.iter().filter(|hook| version == "one" || !is_later(hook)) {
            std::fs::write(self.folder.join(format!("go-{version}-{hook}")), "")?;
        }
        Ok(())
    }

    async fn all_asked(&self, version: &str, hook: &str) -> Result<()> {
        wait_for(&format!("every machine to be at {hook} of {version}"), BOUND, async || {
            let at = |machine: &usize| self.folder.join(format!("asked-{version}-{hook}-eu-{}", machine + 1)).exists();
            Ok((0..MACHINES).all(|machine| at(&machine)).then_some(()))
        })
        .await
    }
}

/// The machines, each with a disk that loses what was not synced.
struct Fleet {
    // They end before what they stand on.
    machines: Vec<Machine>,
    disks: Vec<PowerCut>,
    folders: Vec<PathBuf>,
    /// Of each service, on each machine.
    ports: BTreeMap<String, Vec<u16>>,
}

impl Fleet {
    fn start(apart: &Apart) -> Result<Self> {
        let addresses = apart.region_addresses(0).join(",");
        let authority = apart.folder.join("secrets/authorities/eu.pem");
        let joins = Joins { token_file: &apart.tokens.node, authority: &authority, keys: &apart.keys };
        let (mut machines, mut disks, mut folders) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..MACHINES {
            let data = apart.folder.join(format!("machines/{index}"));
            disks.push(PowerCut::mount(&data)?);
            let log = apart.folder.join(format!("machine-{index}.log"));
            machines.push(Machine::start(&data, ("eu", index), &addresses, &joins, log)?);
            folders.push(data);
        }
        Ok(Self { machines, disks, folders, ports: BTreeMap::new() })
    }

    async fn find_ports(&mut self, apart: &Apart) -> Result<()> {
        for service in [STILL, DEPLOYED] {
            let ports = wait_for("the services' ports", BOUND, async || {
                let nodes = apart.client.nodes().await?;
                let of = nodes.iter().flat_map(|node| &node.services).filter(|found| found.service.as_str() == service);
                let ports: Vec<u16> = of.filter_map(|found| found.port).collect();
                Ok((ports.len() == MACHINES).then_some(ports))
            });
            self.ports.insert(service.to_owned(), ports.await?);
        }
        Ok(())
    }

    async fn all_answer(&self, service: &str, version: &str) -> Result<()> {
        for port in &self.ports[service] {
            wait_for(&format!("{service} to answer {version:?}"), BOUND, async || {
                let answer = reqwest::get(format!("http://127.0.0.1:{port}/")).await?.text().await?;
                Ok((answer.trim() == version).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until each machine has it on its disk that this release is healthy.
    async fn all_proved(&self, service: &str, artifact: ArtifactId) -> Result<()> {
        for folder in &self.folders {
            wait_for(&format!("{service} to be healthy"), BOUND, async || {
                let state = std::fs::read(folder.join(format!("services/{service}/state.json")))?;
                let state: serde_json::Value = serde_json::from_slice(&state)?;
                let current = &state["content"]["current"];
                let is_it = current["artifact"] == artifact.to_string() && current["healthy"] == true;
                Ok(is_it.then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// What runs of a service, on each machine, and how often it has ended.
    fn processes(&self, service: &str) -> Result<Vec<String>> {
        let one = |folder: &PathBuf| {
            let path = folder.join(format!("services/{service}/status.json"));
            let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
            let status: serde_json::Value = serde_json::from_slice(&text)?;
            ensure!(status["pid"].is_u64(), "{service} does not run: {status}");
            Ok(format!("{} under {}, ended {} times", status["pid"], status["shim_pid"], status["exits"]))
        };
        self.folders.iter().map(one).collect()
    }

    /// The last one, and back: the worlds of the others are older than its disk, and hold nothing of it.
    async fn lose_power(&mut self) -> Result<()> {
        let (machine, disk) = self.machines.last_mut().zip(self.disks.last_mut()).context("a machine")?;
        machine.kill()?;
        // Its processes end a moment after it.
        wait_for("the machine's processes to end", BOUND, async || disk.cut(Cut::Everything).map(Some)).await?;
        machine.restart()
    }
}
