//! The queue's processor alone: whole cycles from the request topic to facts, on the local log, synced.
//!
//! A driver plays the producers: it appends requests and claims in batches, and finishes every job as soon as it sees that
//! it started. Its own work is in the figure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use longshore_bench::{Usage, builds, keys};
use longshore_log::{
    Log, Record,
    local::{Config as LogConfig, LocalLog},
};
use longshore_queue::Queue;
use longshore_runtime::{Config, Observer, Rocks, Runtime, seal, system_clock};
use longshore_schemas::{
    QueueName, Timestamp, WorkerId,
    codec::{self, Message},
    events::{
        AttemptFailed, AttemptFinished, AttemptOutcome, BuildFact, BuildRequest, Event, Fact, FailureReason,
        JobStarted, Request, WorkerReady, WorkerSignal,
    },
    topics,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// One queue for each partition, so that all are at work.
const QUEUES: u32 = topics::BUILD_REQUESTS.partitions;
/// Claims that are open at any time, in each queue.
const WORKERS: u32 = 1_000;
/// Records of one append.
const BATCH: usize = 500;
/// Appends of the driver that are under way: one that waits for its sync holds up none of the next.
const APPENDS_MAX: usize = 8;
const RUNS: u64 = 3;
const BOUND: Duration = Duration::from_secs(200);

pub(crate) struct Figures {
    /// Whole cycles, the median of three runs on fresh logs.
    pub(crate) jobs_per_second: f64,
    /// Of the whole process, the driver included, over all runs: says more than the rate where others use the machine.
    pub(crate) cpu_us_per_job: f64,
}

pub(crate) async fn measure(jobs: u64) -> Result<Figures> {
    let cpu = || Usage::of_this_process().map(|usage| usage.cpu_seconds).context("no usage under /proc");
    let before = cpu()?;
    let mut rates = Vec::new();
    for _ in 0..RUNS {
        rates.push(tokio::time::timeout(BOUND, run(jobs)).await.context("the processor did not end in time")??);
    }
    rates.sort_by(f64::total_cmp);
    let cpu_us_per_job = (cpu()? - before) * 1e6 / (jobs * RUNS) as f64;
    Ok(Figures { jobs_per_second: rates[1], cpu_us_per_job })
}

struct Watch {
    started: mpsc::UnboundedSender<(Timestamp, JobStarted)>,
    ended: AtomicU64,
}

impl Observer<BuildFact> for Watch {
    fn applied(&self, _: u32, facts: &[Fact<BuildFact>]) {
        for fact in facts {
            match &fact.event {
                // The driver is gone only when the run is over.
                BuildFact::JobStarted(started) => drop(self.started.send((fact.at, started.clone()))),
                BuildFact::BuildFailed(_) => drop(self.ended.fetch_add(1, Ordering::Relaxed)),
                _ => {}
            }
        }
    }
}

async fn run(jobs: u64) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let log: Arc<dyn Log> = LocalLog::open(LogConfig::new(folder.path().join("log"), topics::ALL))?;
    let rocks = Rocks::open(&folder.path().join("state"))?;
    let (started, starts) = mpsc::unbounded_channel();
    let watch = Arc::new(Watch { started, ended: AtomicU64::new(0) });
    let shutdown = CancellationToken::new();
    let config =
        Config { log: log.clone(), rocks, store_id: 1, signals: true, clock: system_clock(), gate: keys::gate() };
    let handle = Runtime::start(Queue::default(), &config, watch.clone(), &shutdown)?;

    let queues = queues()?;
    let mut claims = Vec::new();
    for queue in &queues {
        for number in 0..WORKERS {
            claims.push(claim(queue, &format!("w-{number}").parse()?, 0)?);
        }
    }
    append(&*log, topics::WORKER_SIGNALS.name, claims).await?;

    let begun = Instant::now();
    let requester = tokio::spawn(request_all(log.clone(), queues, jobs));
    let finisher = tokio::spawn(finish_all(log.clone(), starts, jobs));
    requester.await??;
    finisher.await??;
    while watch.ended.load(Ordering::Relaxed) < jobs {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let rate = jobs as f64 / begun.elapsed().as_secs_f64();
    shutdown.cancel();
    handle.stopped().await;
    Ok(rate)
}

/// A queue name for each partition.
fn queues() -> Result<Vec<QueueName>> {
    let on = |partition| {
        let name = |n: &u32| topics::partition_of(format!("bench-{n}").as_bytes(), QUEUES) == partition;
        (0..).find(name).expect("every partition gets some name")
    };
    (0..QUEUES).map(|partition| Ok(format!("bench-{}", on(partition)).parse()?)).collect()
}

async fn request_all(log: Arc<dyn Log>, queues: Vec<QueueName>, jobs: u64) -> Result<()> {
    let build = builds::spec()?;
    let mut records = Vec::with_capacity(BATCH);
    for (number, queue) in (0..jobs).zip(queues.iter().cycle()) {
        records.push(builds::record(&build, queue.as_str(), &format!("bench-{number}"))?);
        if records.len() == BATCH {
            append(&*log, topics::BUILD_REQUESTS.name, std::mem::take(&mut records)).await?;
        }
    }
    append(&*log, topics::BUILD_REQUESTS.name, records).await
}

/// Finishes jobs as they start, and lets their workers claim again.
async fn finish_all(
    log: Arc<dyn Log>,
    mut starts: mpsc::UnboundedReceiver<(Timestamp, JobStarted)>,
    jobs: u64,
) -> Result<()> {
    let mut done = 0;
    let mut batch = Vec::with_capacity(BATCH);
    let mut appends = JoinSet::new();
    while done < jobs {
        starts.recv_many(&mut batch, BATCH).await;
        let (mut finishes, mut claims) = (Vec::new(), Vec::new());
        for (_, started) in batch.drain(..) {
            done += 1;
            claims.push(claim(&started.job.queue, &started.worker, done)?);
            let failed = AttemptFailed { reason: FailureReason::CommandFailed, message: "a benchmark".into() };
            let outcome = AttemptOutcome::AttemptFailed(failed);
            let JobStarted { job, attempt, worker, .. } = started;
            let event = BuildRequest::from(AttemptFinished { job, attempt, worker, outcome });
            finishes.push(record(event, &format!("finish-{done}"))?);
        }
        if appends.len() == APPENDS_MAX {
            appends.join_next().await.context("some append is under way")???;
        }
        let log = log.clone();
        appends.spawn(async move {
            let finished = append(&*log, topics::BUILD_REQUESTS.name, finishes);
            let claimed = append(&*log, topics::WORKER_SIGNALS.name, claims);
            tokio::try_join!(finished, claimed)
        });
    }
    while let Some(appended) = appends.join_next().await {
        appended??;
    }
    Ok(())
}

fn claim(queue: &QueueName, worker: &WorkerId, wish: u64) -> Result<Record> {
    let claim = format!("{queue}-{worker}-{wish}").parse()?;
    let expires_at = system_clock()() + Duration::from_secs(300);
    let event = WorkerReady { queue: queue.clone(), worker: worker.clone(), claim, expires_at };
    record(WorkerSignal::from(event), &format!("claim-{queue}-{worker}-{wish}"))
}

fn record<E: Event>(event: E, id: &str) -> Result<Record>
where
    Request<E>: Message,
{
    let key = event.key();
    let at = system_clock()();
    let request = Request { id: id.parse()?, at, actor: "bench".into(), trace: None, report: None, event };
    let record = Record::new(Bytes::from(key), codec::encode(&request)?);
    // As the API does: what anyone may say, it signs too.
    Ok(seal(&keys::CONTROL, E::TOPIC.name, record))
}

async fn append(log: &dyn Log, topic: &str, records: Vec<Record>) -> Result<()> {
    if !records.is_empty() {
        log.append(topic, records).await?;
    }
    Ok(())
}
