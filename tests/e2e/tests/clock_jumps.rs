//! Wall clocks that jump an hour forward and back while builds run and nodes beat: nobody is lost, nothing changes its place.
//!
//! ```text
//! clocks of `longshore up`, of workers, of nodes ── each a file that libfaketime reads ── +1h ── 0 ── -1h ── 0
//!      a long build | short builds one after the other | a service is deployed in between | nodes beat
//! ```
//!
//! Only wall clocks jump; the monotonic clocks go on as real time does, as they do when a person or NTP sets the time.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Client, Cluster, Options, process::wait_for, quick::Quick};
use longshore_schemas::{
    CommitSha, JobId,
    events::{BuildFact, FleetFact, NodeStatus},
    http::{ArtifactStatus, DeployBody, JobStatus, JobView, RolloutStatus, ServiceView},
};

use common::{Left, folder, verify};

const BOUND: Duration = Duration::from_secs(120);
const REGIONS: [&str; 2] = ["eu", "us"];
/// Short, so that an hour, and also the pause after each jump, is long.
const LEASES: [&str; 6] = ["--worker-silence", "6s", "--worker-beat", "1s", "--worker-confirm", "5s"];
/// Short builds after each jump; together they take longer than a lease.
const BUILDS_PER_JUMP: usize = 3;

/// A wall clock that a test sets.
struct WallClock(PathBuf);

impl WallClock {
    fn new(file: PathBuf) -> Result<Self> {
        let clock = Self(file);
        clock.set("+0")?;
        Ok(clock)
    }

    /// Such as `+1h`. Renamed into place, so that nobody reads half of it.
    fn set(&self, offset: &str) -> Result<()> {
        let new = self.0.with_extension("new");
        fs::write(&new, offset)?;
        Ok(fs::rename(new, &self.0)?)
    }

    /// What makes a process go by this clock.
    fn environment(&self) -> Result<Vec<(String, String)>> {
        let file = self.0.to_str().context("a path of text")?;
        let variables = [
            ("LD_PRELOAD", libfaketime()?.to_str().context("a path of text")?.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", file.to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_RESET", "1".to_owned()),
        ];
        Ok(variables.map(|(name, value)| (name.to_owned(), value)).to_vec())
    }
}

fn libfaketime() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path());
    let found = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.context("libfaketime is missing; run: infra/setup.sh faketime")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_forward_and_back_loses_nobody_and_changes_no_order() -> Result<()> {
    let folder = folder()?;
    let repository = Quick::create(&folder.path().join("repository"))?;
    let control = WallClock::new(folder.path().join("control.time"))?;
    let machines = WallClock::new(folder.path().join("machines.time"))?;
    let mut cluster = start(folder.path(), &control, &machines).await?;
    cluster.start_workers(2)?;
    cluster.start_nodes(1).await?;
    let client = cluster.client.clone();
    jumps(&client, &control).await?;
    control.set("+0")?;

    // Runs through all the jumps, on one of the workers.
    let long = client.build(&build(&repository, "long", "sleep 25")?).await?.job;
    running(&client, &long).await?;
    let mut jobs = vec![long];
    for (round, (of_control, of_machines)) in
        [("+1h", "+0"), ("+0", "+0"), ("-1h", "+0"), ("-1h", "+1h"), ("+0", "-1h"), ("+0", "+0")]
            .into_iter()
            .enumerate()
    {
        control.set(of_control)?;
        machines.set(of_machines)?;
        let mut newest = None;
        for number in 0..BUILDS_PER_JUMP {
            let body = build(&repository, &format!("short-{round}-{number}"), "sleep 0.5")?;
            let job = client.build(&body).await?.job;
            jobs.push(job.clone());
            newest = Some(job);
        }
        let job = newest.context("a build")?;
        let view = ended(&client, &job).await?;
        if round % 2 == 0 {
            deploy(&client, &view).await?;
        }
    }
    for job in &jobs {
        let view = ended(&client, job).await?;
        ensure!(view.attempt == 1, "{view:?}");
    }
    ensure!(client.nodes().await?.iter().all(|node| !node.lost), "a node is lost");

    cluster.stop()?;
    verify(folder.path())?;
    let left = Left::open(folder.path())?;
    nobody_was_lost(&left).await?;
    first_in_first_out(&left, &jobs).await?;
    left.equals_replay(&REGIONS).await
}

/// After a restart the wall clock is the only one there is. It was an hour ahead when the last facts were written: time must
/// not stand still until it has caught up, or nobody would be missed for an hour, and no claim be heard.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_hour_back_and_a_restart_deadlines_still_come() -> Result<()> {
    let folder = folder()?;
    let repository = Quick::create(&folder.path().join("repository"))?;
    let control = WallClock::new(folder.path().join("control.time"))?;
    control.set("+1h")?;
    let machines = WallClock::new(folder.path().join("machines.time"))?;
    let mut cluster = start(folder.path(), &control, &machines).await?;
    cluster.start_workers(1)?;
    let client = cluster.client.clone();
    let job = client.build(&build(&repository, "ahead", "true")?).await?.job;
    ended(&client, &job).await?;

    control.set("+0")?;
    cluster.restart_control().await?;
    let job = client.build(&build(&repository, "behind", "sleep 60")?).await?.job;
    running(&client, &job).await?;
    cluster.workers[0].kill()?;
    cluster.start_workers(1)?;
    wait_for("the second attempt", BOUND, async || {
        let view = client.job(&job).await?;
        Ok((view.status == JobStatus::Running && view.attempt == 2).then_some(()))
    })
    .await?;
    let canceled: JobView = client.post(&format!("/v1/jobs/{job}/cancel"), &serde_json::json!({})).await?;
    ensure!(canceled.status == JobStatus::Canceled);
    cluster.stop()?;
    verify(folder.path())
}

async fn start(folder: &Path, control: &WallClock, machines: &WallClock) -> Result<Cluster> {
    let options = Options {
        up: LEASES.map(str::to_owned).to_vec(),
        up_environment: control.environment()?,
        environment: machines.environment()?,
    };
    Cluster::start_with(folder, &REGIONS, options).await
}

/// Makes sure that a jump is real: the answers of `longshore up` carry a date, which is its machine's wall clock.
async fn jumps(client: &Client, clock: &WallClock) -> Result<()> {
    clock.set("+1h")?;
    let day = 24 * 60 * 60;
    let ahead = async || {
        let date = client.date().await?;
        let time = date.split(' ').nth(4).context("a time of day")?;
        let parts: Vec<u64> = time.split(':').map(str::parse).collect::<Result<_, _>>()?;
        let shown = parts.iter().fold(0, |seconds, part| seconds * 60 + part);
        let own = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() % day;
        anyhow::Ok((day + shown - own) % day)
    };
    wait_for("the clock of longshore up to jump", BOUND, async || {
        Ok((3_500..3_700).contains(&ahead().await?).then_some(()))
    })
    .await
}

fn build(repository: &Quick, version: &str, before: &str) -> Result<longshore_schemas::http::BuildBody> {
    let commit: CommitSha = repository.commit(version)?;
    repository.build("default", "timed", commit, before)
}

async fn running(client: &Client, job: &JobId) -> Result<()> {
    wait_for(&format!("{job} to run"), BOUND, async || {
        Ok((client.job(job).await?.status == JobStatus::Running).then_some(()))
    })
    .await
}

async fn ended(client: &Client, job: &JobId) -> Result<JobView> {
    let view = client.job_ended(job, BOUND).await?;
    ensure!(view.status == JobStatus::Succeeded, "{job}: {:?} {:?}", view.status, view.failure);
    Ok(view)
}

async fn deploy(client: &Client, job: &JobView) -> Result<()> {
    let artifact = job.artifact.as_ref().context("an artifact")?.artifact;
    wait_for("the artifact to be deployable", BOUND, async || {
        Ok((client.artifact(&artifact).await?.status == ArtifactStatus::Deployable).then_some(()))
    })
    .await?;
    client.deploy("timed", &DeployBody { artifact, plan: None }).await?;
    let done = |view: &ServiceView| view.revisions[0].status == RolloutStatus::Completed;
    client.service_when("timed", "to complete", BOUND, done).await?;
    for node in client.nodes().await? {
        let running = node.services.first().context("runs something")?;
        ensure!(running.artifact == Some(artifact) && running.status == NodeStatus::Healthy, "{running:?}");
    }
    Ok(())
}

async fn nobody_was_lost(left: &Left) -> Result<()> {
    for fact in left.facts::<BuildFact>().await?.into_iter().flatten() {
        ensure!(!matches!(fact.event, BuildFact::WorkerLost(_) | BuildFact::JobRequeued(_)), "{fact:?}");
    }
    for fact in left.facts::<FleetFact>().await?.into_iter().flatten() {
        ensure!(!matches!(fact.event, FleetFact::NodesLost(_)), "{fact:?}");
    }
    Ok(())
}

/// The jobs started in the order in which they were asked for.
async fn first_in_first_out(left: &Left, asked: &[JobId]) -> Result<()> {
    let mut started = Vec::new();
    for fact in left.facts::<BuildFact>().await?.into_iter().flatten() {
        if let BuildFact::JobStarted(event) = fact.event {
            started.push(event.job);
        }
    }
    ensure!(started == asked, "asked for {asked:?}, started {started:?}");
    Ok(())
}
