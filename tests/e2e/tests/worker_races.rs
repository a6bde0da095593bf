//! Workers that die or stand still in the middle of an attempt, many at once and at random moments; and what is left of them.
//!
//! ```text
//! lane (a queue, two workers):  job ─▶ attempt 1 on one ── SIGKILL ─▶ no process left ─▶ attempt 2 ─▶ SUCCEEDED, once
//!                                                       └─ SIGSTOP ─▶ silent ─▶ attempt 2 … SIGCONT ─▶ refused, claims again
//! ```
//!
//! A build leaves a process in a session of its own behind, so that the guard has something to find, and its output names
//! the attempt, so that two attempts can never publish the same artifact. A moment that comes after the finish is no race:
//! another one is made.
//!
//! `FULL=1` makes 200 races instead of 52.

#![allow(clippy::print_stdout, reason = "figures for people, seen with --nocapture")]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use longshore_e2e::{Client, Cluster, Options, Process, process::wait_for, quick::Quick, random::Random, read_token};
use longshore_schemas::{
    CommitSha, JobId,
    events::BuildFact,
    http::{ArtifactView, Assignment, BuildBody, JobStatus, JobView, Page},
};
use serde_json::{Value, json};
use tokio::task::{JoinSet, LocalSet};

use common::{Left, folder, is_end, verify};

const LANES: usize = 13;
const BOUND: Duration = Duration::from_secs(120);
/// From the start of an attempt: checkout, command (of a second), upload, finish, and now and then after it.
const MOMENT_MAX: Duration = Duration::from_millis(1_800);
/// Beats every second; each takes its turn among those of all the workers of a busy machine.
const LEASES: [&str; 6] = ["--worker-silence", "5s", "--worker-beat", "1s", "--worker-confirm", "5s"];

fn options() -> Options {
    Options { up: LEASES.map(str::to_owned).to_vec(), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_die_or_stand_still_never_spoil_a_build() -> Result<()> {
    let races = if std::env::var_os("FULL").is_some() { 200_usize.div_ceil(LANES) } else { 4 };
    let mut random = Random::from_environment();
    let folder = folder()?;
    let repository = Arc::new(Quick::create(&folder.path().join("repository"))?);
    let commit = repository.commit("raced")?;
    let cluster = Arc::new(Cluster::start_with(folder.path(), &["eu"], options()).await?);
    let (began, local, mut lanes) = (Instant::now(), LocalSet::new(), JoinSet::new());
    for number in 1..=LANES {
        let (cluster, repository, random) = (cluster.clone(), repository.clone(), random.fork());
        let lane = Lane::start(cluster, repository, commit.clone(), number, random)?;
        lanes.spawn_local_on(lane.run(races), &local);
    }
    let mut results = Vec::new();
    while let Some(lane) = local.run_until(lanes.join_next()).await {
        results.extend(lane??);
    }
    println!("{} races in {:.0?}", results.len(), began.elapsed());
    report("killed: from SIGKILL to the start of the next attempt", &results, |r| r.killed);
    report("killed: from SIGKILL until no process of the build was left", &results, |r| r.cleaned);
    report("paused: from SIGCONT until the worker knew that its attempt was over", &results, |r| r.refused);
    let late = results.iter().filter(|result| result.at_finish).count();
    println!("{late} of those that were paused learnt it when they finished");
    ensure!(results.len() >= 50, "{} races", results.len());

    published_once(&cluster.client).await?;
    let mut cluster = Arc::into_inner(cluster).context("the lanes have ended")?;
    cluster.stop()?;
    verify(folder.path())?;
    let left = Left::open(folder.path())?;
    let mut again = 0;
    for (job, facts) in left.jobs().await? {
        let ends: Vec<_> = facts.iter().filter(|fact| is_end(&fact.event)).collect();
        ensure!(matches!(ends[..], [end] if matches!(end.event, BuildFact::BuildSucceeded(_))), "{job}: {ends:?}");
        let attempts = facts.iter().filter_map(|fact| match &fact.event {
            BuildFact::JobStarted(started) => Some(started.attempt),
            _ => None,
        });
        let attempts: Vec<u32> = attempts.collect();
        ensure!((1..).zip(&attempts).all(|(expected, found)| expected == *found), "{job}: attempts {attempts:?}");
        again += usize::from(attempts.len() > 1);
    }
    ensure!(again >= results.len(), "{again} jobs had a second attempt");
    Ok(())
}

/// What one race took.
#[derive(Default)]
struct Race {
    killed: Option<Duration>,
    cleaned: Option<Duration>,
    refused: Option<Duration>,
    /// The worker that came back learnt from the answer to its finish, and not to a beat, that it was too late.
    at_finish: bool,
}

fn report(what: &str, races: &[Race], figure: impl Fn(&Race) -> Option<Duration>) {
    let mut times: Vec<Duration> = races.iter().filter_map(figure).collect();
    times.sort();
    if let (Some(median), Some(worst)) = (times.get(times.len() / 2), times.last()) {
        println!("{what}: median {median:.2?}, worst {worst:.2?} ({} races)", times.len());
    }
}

/// A queue and its two workers, on which one race follows the other.
struct Lane {
    cluster: Arc<Cluster>,
    repository: Arc<Quick>,
    commit: CommitSha,
    queue: String,
    workers: Vec<(String, Process)>,
    random: Random,
}

impl Lane {
    fn start(
        cluster: Arc<Cluster>,
        repository: Arc<Quick>,
        commit: CommitSha,
        number: usize,
        random: Random,
    ) -> Result<Self> {
        let queue = format!("lane-{number}");
        let names = ["a", "b"].map(|letter| format!("{queue}-{letter}"));
        let workers = names.into_iter().map(|name| {
            let process = cluster.worker(&name, &queue)?;
            Ok((name, process))
        });
        let workers = workers.collect::<Result<_>>()?;
        Ok(Self { cluster, repository, commit, queue, workers, random })
    }

    async fn run(mut self, races: usize) -> Result<Vec<Race>> {
        let mut done = Vec::new();
        while done.len() < races {
            let kill = self.random.below(2) == 0;
            let race = if kill { self.killed().await } else { self.paused().await };
            done.extend(race.with_context(|| format!("{}, kill: {kill}", self.queue))?);
        }
        self.both_workers_work().await?;
        for (_, worker) in &mut self.workers {
            worker.terminate()?;
        }
        for (_, worker) in &mut self.workers {
            worker.wait_ended(Duration::from_secs(60))?;
        }
        Ok(done)
    }

    /// None if the attempt had finished before.
    async fn killed(&mut self) -> Result<Option<Race>> {
        let (job, victim) = self.attempted().await?;
        self.workers[victim].1.kill()?;
        let killed = Instant::now();
        self.no_process_left(&job).await?;
        let cleaned = killed.elapsed();
        // Before or after the lease ends: the one that comes instead may itself get the next attempt.
        if self.random.below(2) == 0 {
            self.restart(victim)?;
        }
        let next = self.next_attempt(&job).await?;
        let started = killed.elapsed();
        let view = self.cluster.client.job_ended(&job, BOUND).await?;
        self.workers[victim].1.check_running().or_else(|_| self.restart(victim))?;
        if !next {
            return Ok(None);
        }
        self.succeeded(&view)?;
        self.no_process_left(&job).await?;
        Ok(Some(Race { killed: Some(started), cleaned: Some(cleaned), ..Race::default() }))
    }

    async fn paused(&mut self) -> Result<Option<Race>> {
        let (job, victim) = self.attempted().await?;
        self.workers[victim].1.pause()?;
        let next = self.next_attempt(&job).await?;
        // While the next attempt runs, or after it has published.
        if self.random.below(2) == 0 {
            self.cluster.client.job_ended(&job, BOUND).await?;
        }
        self.workers[victim].1.resume()?;
        let resumed = Instant::now();
        if !next {
            return Ok(None);
        }
        let Some(at_finish) = self.refused(&job, victim).await? else { return Ok(None) };
        let refused = resumed.elapsed();
        let view = self.cluster.client.job_ended(&job, BOUND).await?;
        self.succeeded(&view)?;
        self.no_process_left(&job).await?;
        Ok(Some(Race { refused: Some(refused), at_finish, ..Race::default() }))
    }

    /// A job whose first attempt has come to a random moment, and the worker that has it.
    async fn attempted(&mut self) -> Result<(JobId, usize)> {
        let client = &self.cluster.client;
        let job = client.build(&self.build("sleep 1")?).await?.job;
        let running = wait_for(&format!("{job} to run"), BOUND, async || {
            Ok(Some(client.job(&job).await?).filter(|view| view.status == JobStatus::Running))
        })
        .await?;
        let name = running.worker.context("a worker")?;
        let victim = self.workers.iter().position(|(worker, _)| *worker == name.as_str());
        let moment = self.random.between(Duration::ZERO, MOMENT_MAX);
        tokio::time::sleep(moment).await;
        Ok((job, victim.with_context(|| format!("{name} is none of {}", self.queue))?))
    }

    /// Waits until the second attempt runs, or is over even; false if the first one has ended the job.
    async fn next_attempt(&self, job: &JobId) -> Result<bool> {
        let what = format!("another attempt of {job}");
        wait_for(&what, BOUND, async || {
            let view = self.cluster.client.job(job).await?;
            Ok((view.attempt > 1 || view.status.is_ended()).then_some(view.attempt > 1))
        })
        .await
    }

    fn succeeded(&self, view: &JobView) -> Result<()> {
        ensure!(view.status == JobStatus::Succeeded && view.attempt > 1, "{view:?}");
        Ok(())
    }

    /// Waits until the worker's log says that its first attempt is over; true if it was told when it finished. None if it
    /// was paused before it had heard of the attempt, and gave its claim up when it came back.
    async fn refused(&self, job: &JobId, victim: usize) -> Result<Option<bool>> {
        let (beat, finish) = (format!("job={job} attempt=1"), format!("{job} attempt 1"));
        wait_for(&format!("{} to give up {job}", self.workers[victim].0), BOUND, async || {
            let text = self.workers[victim].1.log_text();
            let line = text.lines().find_map(|line| {
                let at_finish = line.contains("the result came too late") && line.contains(&finish);
                let at_beat = line.contains("the attempt is over") && line.contains(&beat);
                (at_finish || at_beat).then_some(Some(at_finish))
            });
            let began = text.lines().any(|line| line.contains("attempt started") && line.contains(&beat));
            let unheard = !began && text.contains("a claim did not get through");
            Ok(line.or(unheard.then_some(None)))
        })
        .await
    }

    /// Two jobs at once: each worker takes one.
    async fn both_workers_work(&self) -> Result<()> {
        let client = &self.cluster.client;
        let body = self.build("sleep 2")?;
        let jobs = [client.build(&body).await?.job, client.build(&body).await?.job];
        let mut workers = BTreeSet::new();
        for job in &jobs {
            let view = client.job_ended(job, BOUND).await?;
            ensure!(view.status == JobStatus::Succeeded, "{view:?}");
            workers.extend(view.worker.map(|worker| worker.to_string()));
        }
        ensure!(workers.len() == 2, "of {}, only {workers:?} works", self.queue);
        Ok(())
    }

    fn restart(&mut self, victim: usize) -> Result<()> {
        let (name, process) = &mut self.workers[victim];
        *process = self.cluster.worker(name, &self.queue)?;
        Ok(())
    }

    fn build(&self, before: &str) -> Result<BuildBody> {
        let fled = "setsid sh -c 'sleep 300 & sleep 300' </dev/null >/dev/null 2>&1 &";
        let named = r#"echo "$LONGSHORE_JOB attempt $LONGSHORE_ATTEMPT" >version.txt"#;
        let script = format!("{fled}\n{named}\n{before}");
        let mut body = self.repository.build(&self.queue, "raced", self.commit.clone(), &script)?;
        body.build.environment.insert("RACE_FOLDER".to_owned(), self.cluster.folder.display().to_string());
        Ok(body)
    }

    async fn no_process_left(&self, job: &JobId) -> Result<()> {
        let marks = [format!("RACE_FOLDER={}", self.cluster.folder.display()), format!("LONGSHORE_JOB={job}")];
        // A paused worker's guard goes on; those that are killed must be gone soon.
        wait_for(&format!("all processes of {job} to be gone"), BOUND, async || {
            let left = processes_with(&marks)?;
            if left.is_empty() { Ok(Some(())) } else { bail!("{left:?}") }
        })
        .await
    }
}

/// The command lines of the processes whose environment has all these variables.
fn processes_with(marks: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let is_process = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        // One that ends while we look is not left.
        let environment = is_process.then(|| fs::read(entry.path().join("environ")).ok()).flatten();
        let Some(environment) = environment else { continue };
        let variables: Vec<&[u8]> = environment.split(|byte| *byte == 0).collect();
        if marks.iter().all(|mark| variables.contains(&mark.as_bytes())) {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(format!("{}: {}", entry.file_name().display(), String::from_utf8_lossy(&command)));
        }
    }
    Ok(found)
}

/// There is one artifact for each job that succeeded, and no other. The queue knows of a success first, and tells replication.
async fn published_once(client: &Client) -> Result<()> {
    let jobs = client.get::<Page<JobView>>("/v1/jobs?status=succeeded&limit=1000").await?.items;
    let artifacts = wait_for("replication to know of every artifact", BOUND, async || {
        let artifacts = client.get::<Page<ArtifactView>>("/v1/artifacts?limit=1000").await?.items;
        Ok((artifacts.len() >= jobs.len()).then_some(artifacts))
    })
    .await?;
    let published: BTreeSet<_> =
        artifacts.iter().filter_map(|view| Some((view.source.job()?.clone(), view.summary.artifact))).collect();
    let succeeded: BTreeSet<_> =
        jobs.iter().filter_map(|view| Some((view.job.clone(), view.artifact.as_ref()?.artifact))).collect();
    ensure!(artifacts.len() == jobs.len() && published == succeeded, "{published:?} instead of {succeeded:?}");
    Ok(())
}

/// The same seen from the wire, where nothing is left to chance: a worker that was silent for too long gets no word in.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_comes_back_too_late_is_refused_everything_and_may_claim_again() -> Result<()> {
    let folder = folder()?;
    let repository = Quick::create(&folder.path().join("repository"))?;
    let commit = repository.commit("late")?;
    let mut cluster = Cluster::start_with(folder.path(), &["eu"], options()).await?;
    let late = Client::new(&cluster.up.api, &read_token(&cluster.up.tokens.worker)?)?;
    let job = cluster.client.build(&repository.build("default", "late", commit, "true")?).await?.job;
    let first = claim(&late, "default", "first").await?;
    ensure!(first.job == job && first.attempt == 1 && first.beat_seconds == 1, "{first:?}");
    let attempt = Client::new(&cluster.up.api, &first.credential)?;
    let path = format!("/v1/jobs/{job}/attempts/1");
    let beat: Value = attempt.post(&format!("{path}/beats"), &json!({})).await?;
    ensure!(beat["current"] == true, "{beat}");

    // Silent from here on. Another worker does the job.
    cluster.start_workers(1)?;
    let view = cluster.client.job_ended(&job, BOUND).await?;
    ensure!(view.status == JobStatus::Succeeded && view.attempt == 2, "{view:?}");

    let beat: Value = attempt.post(&format!("{path}/beats"), &json!({})).await?;
    ensure!(beat["current"] == false, "{beat}");
    let pack = json!({ "pack": "0".repeat(64), "bytes": 10 });
    let root = stored_root(folder.path())?;
    let calls = [
        ("uploads", json!({ "packs": [pack] })),
        ("log", json!({ "stored": [], "next": { "index": 0, "bytes": 10 } })),
        ("finish", json!({ "outcome": "succeeded", "root": root, "new_pack_bytes": 0 })),
        ("finish", json!({ "outcome": "failed", "reason": "CommandFailed", "message": "late" })),
    ];
    for (route, body) in calls {
        let answer = attempt.post::<Value>(&format!("{path}/{route}"), &body).await;
        let refused = answer.expect_err(route).to_string();
        ensure!(refused.starts_with("409") && refused.contains("attempt 1 of default-1 is over"), "{route}: {refused}");
    }
    let after = cluster.client.job(&job).await?;
    ensure!(after == view, "a late worker changed {view:?} to {after:?}");
    published_once(&cluster.client).await?;

    let again = repository.build("another", "late", repository.commit("again")?, "true")?;
    let job = cluster.client.build(&again).await?.job;
    let second = claim(&late, "another", "second").await?;
    ensure!((&second.job, second.attempt) == (&job, 1), "{second:?}");
    let canceled: JobView = cluster.client.post(&format!("/v1/jobs/{job}/cancel"), &json!({})).await?;
    ensure!(canceled.status == JobStatus::Canceled);
    cluster.stop()
}

async fn claim(client: &Client, queue: &str, claim: &str) -> Result<Assignment> {
    let body = json!({ "worker": "late", "claim": claim, "wait_seconds": 30 });
    client.post(&format!("/v1/queues/{queue}/claims"), &body).await
}

/// The root of the one artifact that there is: what a late worker that built the same would finish with.
fn stored_root(folder: &Path) -> Result<Value> {
    let mut open = vec![folder.join("up/s3/buckets/longshore-main")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path)?.flatten().map(|entry| entry.path()));
        } else if path.parent().is_some_and(|parent| parent.ends_with("artifacts")) {
            return Ok(serde_json::from_slice(&fs::read(path)?)?);
        }
    }
    bail!("no root was stored")
}
