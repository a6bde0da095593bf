//! Full disks with real processes, each on a small file system of its own: what runs goes on running, the state is clear to
//! whoever asks, and all goes on by itself once there is space.

#![allow(clippy::print_stdout, reason = "what was measured is for whoever reads the test's output")]

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use longshore_e2e::{
    Cluster,
    client::Refusal,
    greeter::Repository,
    path_text,
    process::{binary_path, wait_for},
};
use longshore_schemas::{
    ArtifactId, JobId,
    events::NodeStatus,
    http::{
        ArtifactStatus, BuildBody, DeployBody, JobStatus, JobView, NodeServiceView, Problem, RolloutStatus, ServiceView,
    },
};

const BOUND: Duration = Duration::from_secs(120);
const REGIONS: [&str; 1] = ["eu"];
const MIB: u64 = 1024 * 1024;

/// A file system of a fixed size. Dropping it unmounts it.
struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    fn mount(folder: PathBuf, bytes: u64) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let output = Command::new("mount")
            .args(["-n", "-t", "tmpfs", "-o", &format!("size={bytes}"), "small"])
            .arg(&folder)
            .output()
            .context("tests of full disks need the command `mount`")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tests of full disks mount a tmpfs, for which they must run as root: {said}");
        Ok(Self { folder })
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }

    /// Fills it but for this much.
    fn fill(&self, free_bytes: u64) -> Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.ballast())?;
        for block in [vec![0; 64 * 1024], vec![0; 1024]] {
            while match ballast.write(&block) {
                Ok(_) => true,
                Err(error) if error.kind() == ErrorKind::StorageFull => false,
                Err(error) => return Err(error.into()),
            } {}
        }
        let full = ballast.metadata()?.len();
        ballast.set_len(full.checked_sub(free_bytes).context("it never had so much space")?)?;
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that does not end in time may still use it.
        let _ = Command::new("umount").args(["-n", "-l"]).arg(&self.folder).output();
    }
}

/// A cluster of one region, one worker and one node, which runs version "one" of the greeter.
struct Stage {
    cluster: Cluster,
    repository: Repository,
    /// Some build of it.
    any: BuildBody,
    pid: u64,
}

impl Stage {
    async fn begin(folder: &Path) -> Result<Self> {
        let repository = Repository::create(&folder.join("repository"))?;
        let mut cluster = Cluster::start(folder, &REGIONS).await?;
        cluster.start_workers(1)?;
        cluster.start_nodes(1).await?;
        let commit = repository.commit("one", 4, &[])?;
        let any = repository.build("greeter", commit)?;
        let mut stage = Self { cluster, repository, any, pid: 0 };
        let job = stage.cluster.client.build(&stage.any).await?;
        let artifact = stage.deployable(&stage.artifact_of(&job.job).await?).await?;
        stage.deploy(artifact).await?;
        stage.completes("one").await?;
        stage.pid = stage.service_pid()?;
        Ok(stage)
    }

    fn body(&self, version: &str, changed: &[(u32, u32)]) -> Result<BuildBody> {
        let commit = self.repository.commit(version, 4, changed)?;
        self.repository.build("greeter", commit)
    }

    async fn built(&self, version: &str, changed: &[(u32, u32)]) -> Result<ArtifactId> {
        let job = self.cluster.client.build(&self.body(version, changed)?).await?;
        self.artifact_of(&job.job).await
    }

    /// Asks for a build that takes no time. An error unless it is decided at once.
    async fn ask(&self) -> Result<JobView> {
        let mut body = self.any.clone();
        body.build.command = ["sh", "-c", "mkdir out && date > out/now"].map(str::to_owned).to_vec();
        body.build.name = "any".parse()?;
        self.cluster.client.build(&body).await
    }

    async fn artifact_of(&self, job: &JobId) -> Result<ArtifactId> {
        let job = self.cluster.client.job_ended(job, BOUND).await?;
        ensure!(job.status == JobStatus::Succeeded, "{:?}", job.failure);
        Ok(job.artifact.context("an artifact")?.artifact)
    }

    async fn deployable(&self, artifact: &ArtifactId) -> Result<ArtifactId> {
        wait_for("the artifact to be deployable", BOUND, async || {
            let view = self.cluster.client.artifact(artifact).await?;
            Ok((view.status == ArtifactStatus::Deployable).then_some(*artifact))
        })
        .await
    }

    async fn deploy(&self, artifact: ArtifactId) -> Result<()> {
        self.cluster.client.deploy("greeter", &DeployBody { artifact, plan: None }).await?;
        Ok(())
    }

    async fn completes(&self, version: &str) -> Result<()> {
        let done = |view: &ServiceView| view.revisions[0].status == RolloutStatus::Completed;
        self.cluster.client.service_when("greeter", "to complete", BOUND, done).await?;
        let answer = self.answer().await?;
        ensure!(answer == version, "it answers {answer:?}");
        Ok(())
    }

    async fn service(&self) -> Result<NodeServiceView> {
        let nodes = self.cluster.client.nodes().await?;
        nodes.into_iter().flat_map(|node| node.services).next().context("the node reports")
    }

    async fn answer(&self) -> Result<String> {
        let port = self.service().await?.port.context("it has a port")?;
        let answer = reqwest::get(format!("http://127.0.0.1:{port}/")).await?.text().await?;
        Ok(answer.trim().to_owned())
    }

    fn service_pid(&self) -> Result<u64> {
        let status = fs::read(self.cluster.nodes[0].folder.join("services/greeter/status.json"))?;
        serde_json::from_slice::<serde_json::Value>(&status)?["pid"].as_u64().context("it runs")
    }

    /// Version "one" never stopped.
    async fn old_release_runs(&mut self) -> Result<()> {
        ensure!(self.service_pid()? == self.pid, "the service was started anew");
        let answer = self.answer().await?;
        ensure!(answer == "one", "it answers {answer:?}");
        self.cluster.control.check_running()?;
        self.cluster.nodes[0].process.check_running()
    }

    async fn health(&self) -> Result<(String, String)> {
        let health: serde_json::Value = self.cluster.client.get("/v1/health").await?;
        Ok((health["status"].as_str().unwrap_or_default().to_owned(), health["trouble"].to_string()))
    }

    async fn healthy(&self) -> Result<()> {
        wait_for("the health to be ok", BOUND, async || {
            let (status, trouble) = self.health().await?;
            if status != "ok" {
                bail!("{status}: {trouble}")
            }
            Ok(Some(()))
        })
        .await
    }

    /// Stops everything, and checks the log as a person would.
    fn end(&mut self) -> Result<()> {
        self.cluster.stop()?;
        let data = self.cluster.folder.join("up");
        let longshore = binary_path("longshore")?;
        let output = Command::new(longshore).args(["log", "verify", "--data", path_text(&data)?]).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{out}{err}");
        Ok(())
    }
}

fn problem(error: &anyhow::Error) -> Option<&Problem> {
    error.downcast_ref::<Refusal>().map(|refusal| &refusal.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn control_goes_on_when_its_log_or_its_projections_have_space_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // So small that RocksDB cannot take space in advance, which it would live on for a while.
    let disk = SmallDisk::mount(folder.path().join("up"), 32 * MIB)?;
    let state = SmallDisk::mount(folder.path().join("up/state"), 12 * MIB)?;
    let mut stage = Stage::begin(folder.path()).await?;

    let mut jobs = Vec::new();
    wait_for("full projections to be told", BOUND, async || {
        // Opening RocksDB again sets some space free, which something else on the disk takes.
        state.fill(0)?;
        // Accepted, or answered 202: it is on the log either way.
        if let Ok(job) = stage.ask().await {
            jobs.push(job.job);
        }
        let (status, trouble) = stage.health().await?;
        ensure!(status == "degraded" && trouble.contains("No space left"), "{status}: {trouble}");
        Ok(Some(()))
    })
    .await?;
    stage.old_release_runs().await?;
    ensure!(!stage.cluster.client.service("greeter").await?.revisions.is_empty(), "what is known can be asked");
    state.free()?;
    let begun = Instant::now();
    jobs.push(wait_for("requests to be processed again", BOUND, async || stage.ask().await.map(Some)).await?.job);
    println!("control, projections full: processing again after {:.1?}", begun.elapsed());
    stage.healthy().await?;

    let refused = wait_for("a full log to refuse", BOUND, async || {
        disk.fill(0)?;
        match stage.ask().await {
            Ok(job) => {
                jobs.push(job.job);
                Ok(None)
            }
            Err(error) if problem(&error).is_some_and(|problem| problem.status == 507) => Ok(Some(error)),
            // As long as the processors are the first to notice.
            Err(_) => Ok(None),
        }
    })
    .await?;
    let refused = problem(&refused).context("a problem")?;
    ensure!(refused.kind.ends_with("/disk-full") && refused.detail.contains("free space"), "{refused:?}");
    wait_for("a full log to be told", BOUND, async || {
        // As above: opening the log again may have set some space free, and a write of the process's own gone through.
        disk.fill(0)?;
        if let Ok(job) = stage.ask().await {
            jobs.push(job.job);
        }
        let (status, trouble) = stage.health().await?;
        ensure!(status == "degraded" && trouble.contains("the log: "), "{status}: {trouble}");
        ensure!(trouble.contains("No space left"), "{trouble}");
        Ok(Some(()))
    })
    .await?;
    for _ in 0..5 {
        disk.fill(0)?;
        if let Ok(job) = stage.ask().await {
            jobs.push(job.job);
        }
        stage.old_release_runs().await?;
    }
    ensure!(!stage.cluster.client.service("greeter").await?.revisions.is_empty(), "what is known can be asked");
    disk.free()?;
    let begun = Instant::now();
    let two = stage.body("two", &[])?;
    let job =
        wait_for("builds to be taken again", BOUND, async || stage.cluster.client.build(&two).await.map(Some)).await?;
    println!("control, log full: requests taken again after {:.1?}", begun.elapsed());
    stage.healthy().await?;
    for job in &jobs {
        let ended = stage.cluster.client.job_ended(job, BOUND).await?;
        ensure!(ended.status == JobStatus::Succeeded, "{job}: {:?}", ended.failure);
    }
    let artifact = stage.deployable(&stage.artifact_of(&job.job).await?).await?;
    stage.deploy(artifact).await?;
    stage.completes("two").await?;
    stage.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_copies_on_when_its_bucket_has_space_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path().join("up/s3"), 32 * MIB)?;
    let own = SmallDisk::mount(folder.path().join("up/regions"), MIB / 4)?;
    let mut stage = Stage::begin(folder.path()).await?;
    own.fill(0)?;
    // The main bucket takes one copy of what is new, about 5 MiB; then the region's has no place for a pack of 4 MiB.
    disk.fill(7 * MIB)?;
    let artifact = stage.built("two", &[(0, 20), (1, 21), (2, 22), (3, 23)]).await?;
    let error = wait_for("the region to say that its bucket is full", BOUND, async || {
        let view = stage.cluster.client.artifact(&artifact).await?;
        ensure!(view.status == ArtifactStatus::Replicating, "{:?}", view.status);
        Ok(view.replicas.into_iter().find_map(|replica| replica.error))
    })
    .await?;
    ensure!(error.contains("no space left") && error.contains("free some"), "{error}");
    stage.old_release_runs().await?;
    let refused = stage.deploy(artifact).await.expect_err("it is not in its region");
    ensure!(problem(&refused).is_some_and(|problem| problem.status == 409), "{refused}");
    disk.free()?;
    let begun = Instant::now();
    stage.deployable(&artifact).await?;
    println!("region, bucket full: copied after {:.1?}", begun.elapsed());
    stage.deploy(artifact).await?;
    stage.completes("two").await?;
    own.free()?;
    stage.end()
}

/// Waits until the node says that it lacks space, in these words.
async fn told(stage: &Stage, words: [&str; 2]) -> Result<NodeServiceView> {
    wait_for("the node to say that its disk is full", BOUND, async || {
        let service = stage.service().await?;
        let said = service.message.as_deref().is_some_and(|text| words.iter().all(|word| text.contains(word)));
        ensure!(said, "{service:?}");
        Ok(Some(service))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_keeps_its_old_release_until_it_has_space_for_the_new_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path().join("nodes/eu-1"), 32 * MIB)?;
    let mut stage = Stage::begin(folder.path()).await?;
    let artifact = stage.built("two", &[(0, 20), (1, 21), (2, 22), (3, 23)]).await?;
    stage.deployable(&artifact).await?;

    // Not even the goal finds a place.
    disk.fill(0)?;
    stage.deploy(artifact).await?;
    let service = told(&stage, ["cannot be kept", "No space left"]).await?;
    ensure!(service.status == NodeStatus::Healthy && service.version.revision == 1, "the old goal holds: {service:?}");
    stage.old_release_runs().await?;

    // The goal does, the release does not.
    disk.fill(2 * MIB)?;
    let service = wait_for("the new goal to be held", BOUND, async || {
        Ok(Some(stage.service().await?).filter(|now| now.version.revision == 2))
    })
    .await?;
    ensure!(service.status == NodeStatus::Fetching, "{service:?}");
    told(&stage, ["no room for", "too little: free some space"]).await?;
    stage.old_release_runs().await?;

    disk.free()?;
    let begun = Instant::now();
    stage.completes("two").await?;
    println!("node, disk full: the new release runs after {:.1?}", begun.elapsed());
    stage.end()
}
