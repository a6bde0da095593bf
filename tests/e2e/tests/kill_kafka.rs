//! The roles apart on three brokers, and one process after the other is killed: control nodes, brokers, region processes,
//! workers. Meanwhile builds are requested, each with a key and until it is answered, at whichever control node.
//!
//! Afterwards, from the log alone, read through a running control node and through Kafka: each request is one job, each job has
//! ended once, and the log has no gap, no duplicate, no torn output, and the projections say what a replay says.
//!
//! `FULL=1` kills 1,000 times instead of 20.

#![allow(clippy::print_stdout, reason = "figures for people, seen with --nocapture")]
#![allow(clippy::print_stderr, reason = "the logs of all roles, for whoever looks into a failure")]

use std::{
    collections::BTreeMap,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Client,
    apart::{Apart, Layout},
    path_text,
    process::binary_path,
    quick::Quick,
    random::Random,
};
use longshore_kafka::{Cluster, Config as ClusterConfig};
use longshore_log::{
    Log, ReadLimit, TopicPartition,
    kafka::{Config, KafkaLog},
};
use longshore_schemas::{
    JobId, codec,
    events::{BuildFact, Fact},
    http::{JobStatus, JobView},
    topics,
};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

const BROKERS: u32 = 3;
const WORKERS: usize = 2;
/// For what takes as long as it takes on a busy machine.
const BOUND: Duration = Duration::from_secs(180);
/// Between a kill and the next.
const ALIVE_MAX: Duration = Duration::from_secs(4);
const REQUEST_EVERY: Duration = Duration::from_millis(400);

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_every_role_and_of_brokers_lose_nothing() -> Result<()> {
    let kills = if std::env::var_os("FULL").is_some() { 1_000 } else { 20 };
    let folder = tempfile::tempdir()?;
    let kafka = Arc::new(spawn_blocking(|| Cluster::start(&ClusterConfig::new(BROKERS))).await??);
    let mut layout = Layout::new(&["eu"], 3);
    // A worker that is killed costs its silence.
    layout.set.extend(["worker.silence=5s", "worker.beat=1s", "worker.confirm=5s"].map(str::to_owned));
    let mut apart = Apart::start(folder.path(), kafka.brokers(), layout).await?;
    let result = play(&mut apart, &kafka, kills).await;
    if result.is_err() {
        eprintln!("{}", apart.log_ends());
    }
    result?;
    apart.stop()
}

async fn play(apart: &mut Apart, kafka: &Arc<Cluster>, kills: usize) -> Result<()> {
    let repository = Arc::new(Quick::create(&apart.folder.join("repository"))?);
    apart.start_workers(WORKERS)?;
    apart.start_nodes(1).await?;
    let stop = CancellationToken::new();
    let clients = (0..apart.controls.len()).map(|control| apart.client_of(control)).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    let (jobs, counts) = tokio::try_join!(request_builds(clients, repository, stop.clone()), async {
        let counts = kill(apart, kafka, kills, &mut Random::from_environment()).await;
        stop.cancel();
        counts
    })?;
    println!("{kills} kills in {:.0?}: {counts:?}; {} builds", began.elapsed(), jobs.len());
    ensure!(jobs.len() >= 5, "too little happened between the kills");
    for job in jobs.values() {
        let ended = apart.client.job_ended(job, BOUND).await?;
        ensure!(ended.status == JobStatus::Succeeded, "{job}: {:?}", ended.failure);
    }
    apart.all_led().await?;
    verify(apart)?;
    each_ended_once(kafka, &jobs).await
}

/// Builds with a key each, until `stop`; the job of each key.
async fn request_builds(
    clients: Vec<Client>,
    repository: Arc<Quick>,
    stop: CancellationToken,
) -> Result<BTreeMap<String, JobId>> {
    let mut jobs = BTreeMap::new();
    for (number, client) in clients.iter().cycle().enumerate() {
        if stop.run_until_cancelled(tokio::time::sleep(REQUEST_EVERY)).await.is_none() {
            break;
        }
        let (repository, key) = (repository.clone(), format!("build-{number}"));
        let version = key.clone();
        let body = spawn_blocking(move || {
            let commit = repository.commit(&version)?;
            repository.build("default", "alpha", commit, "sleep 0.2")
        });
        let job: JobView = client.post_until("/v1/builds", &body.await??, &key, BOUND).await??;
        jobs.insert(key, job.job);
    }
    Ok(jobs)
}

/// One process after the other, with SIGKILL; each is started again at once, a broker before the next one is killed.
async fn kill(
    apart: &mut Apart,
    kafka: &Arc<Cluster>,
    kills: usize,
    random: &mut Random,
) -> Result<BTreeMap<&'static str, usize>> {
    let mut counts = BTreeMap::new();
    for number in 0..kills {
        tokio::time::sleep(random.between(Duration::ZERO, ALIVE_MAX)).await;
        let of = match number % 5 {
            0 | 2 => {
                let control = random.below(apart.controls.len() as u64) as usize;
                apart.controls[control].kill()?;
                apart.controls[control].restart()?;
                "control"
            }
            1 => {
                let (cluster, node) = (kafka.clone(), random.below(u64::from(BROKERS)) as u32 + 1);
                let again = move || {
                    cluster.kill(node)?;
                    cluster.restart(node)?;
                    cluster.wait_whole(BOUND)
                };
                spawn_blocking(again).await??;
                "broker"
            }
            3 => {
                let region = random.below(apart.regions.len() as u64) as usize;
                apart.regions[region].kill()?;
                apart.regions[region].restart()?;
                "region"
            }
            _ => {
                apart.workers.remove(0).kill()?;
                apart.start_workers(1)?;
                "worker"
            }
        };
        *counts.entry(of).or_insert(0) += 1;
    }
    for member in apart.controls.iter_mut().chain(&mut apart.regions) {
        member.listens().await?;
    }
    Ok(counts)
}

/// `longshore log verify` at a running control node.
fn verify(apart: &Apart) -> Result<()> {
    let mut verify = Command::new(binary_path("longshore")?);
    verify.args(["log", "verify", "--output", "json", "--api", &apart.client.api]);
    verify.args(["--token-file", path_text(&apart.tokens.admin)?]);
    let output = verify.output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "longshore log verify: {out}{err}");
    Ok(())
}

/// What Kafka holds: one job for each request, and one end for each job.
async fn each_ended_once(kafka: &Cluster, jobs: &BTreeMap<String, JobId>) -> Result<()> {
    let mut config = Config::new(kafka.brokers(), topics::ALL);
    config.manage_topics = false;
    let log = KafkaLog::connect(config).await?;
    let (mut queued, mut ended): (BTreeMap<String, Vec<JobId>>, BTreeMap<JobId, u32>) = Default::default();
    for partition in 0..topics::BUILDS.partitions {
        let of = TopicPartition::new(topics::BUILDS.name, partition);
        let end = log.end_offset(&of).await?;
        let mut reader = log.reader(vec![(of.clone(), 0)])?;
        while reader.position(&of).context("it reads it")? < end {
            for record in reader.read(ReadLimit::default()).await? {
                let value = record.record.value.context("a fact has a value")?;
                let fact: Fact<BuildFact> = codec::decode(&value)?;
                match fact.event {
                    BuildFact::JobQueued(event) => {
                        queued.entry(event.request.to_string()).or_default().push(event.job);
                    }
                    BuildFact::BuildSucceeded(event) => *ended.entry(event.job).or_default() += 1,
                    BuildFact::BuildFailed(event) => *ended.entry(event.job).or_default() += 1,
                    _ => {}
                }
            }
        }
    }
    for (key, job) in jobs {
        let of = queued.iter().filter(|(request, _)| request.ends_with(key.as_str())).map(|(_, jobs)| jobs);
        let of: Vec<&JobId> = of.flatten().collect();
        ensure!(of == [job], "{key} was answered with {job}, and the log has {of:?}");
        ensure!(ended.get(job) == Some(&1), "{job} has ended {:?} times", ended.get(job));
    }
    Ok(())
}
