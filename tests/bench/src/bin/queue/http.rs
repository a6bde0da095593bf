//! The whole cycle over HTTP: request, claim, finish, by real connections to a real `longshore up`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use longshore_bench::builds;
use longshore_e2e::{Client, Cluster, read_token};
use longshore_schemas::{
    JobId,
    events::FailureReason,
    http::{Assignment, BuildBody, ClaimBody, FinishBody, JobView},
};
use reqwest::StatusCode;
use tokio::task::JoinSet;

pub(crate) const WORKERS: usize = 100;
/// Connections that request builds.
const REQUESTERS: usize = 64;
/// For everything: a run that hangs is an error.
const BOUND: Duration = Duration::from_secs(240);

pub(crate) struct Figures {
    pub(crate) jobs_per_second: f64,
    /// From the request being sent to the worker having the job.
    pub(crate) queue_to_start: Vec<Duration>,
}

/// Saturation with `jobs` jobs, three times, then `paced_seconds` at 100 jobs a second.
pub(crate) async fn measure(jobs: u64, paced_seconds: u64) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(folder.path(), &["eu"]).await?;
    let token = read_token(&cluster.up.tokens.worker)?;
    let starts = Arc::new(Starts::default());
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        let (client, starts) = (Client::new(&cluster.up.api, &token)?, starts.clone());
        workers.spawn(async move { work(client, number, &starts).await });
    }
    let mut rates = Vec::new();
    for _ in 0..3 {
        rates.push(tokio::time::timeout(BOUND, saturate(&cluster.client, &starts, jobs)).await??);
    }
    rates.sort_by(f64::total_cmp);
    starts.started.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let sent = tokio::time::timeout(BOUND, pace(&cluster.client, &starts, paced_seconds)).await??;
    let started = starts.started.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let waited = |(job, sent): (&JobId, &Instant)| started.get(job).map(|at| at.duration_since(*sent));
    let mut queue_to_start: Vec<Duration> = sent.iter().filter_map(waited).collect();
    ensure!(queue_to_start.len() == sent.len(), "{} of {} paced jobs started", queue_to_start.len(), sent.len());
    queue_to_start.sort();
    workers.shutdown().await;
    cluster.stop()?;
    Ok(Figures { jobs_per_second: rates[1], queue_to_start })
}

/// What the workers saw.
#[derive(Default)]
struct Starts {
    started: Mutex<BTreeMap<JobId, Instant>>,
    finished: AtomicU64,
}

/// A worker that ends every job at once: what is measured is the queue, not builds.
async fn work(client: Client, number: usize, starts: &Starts) -> Result<()> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
    for wish in 0u64.. {
        let claim = ClaimBody {
            worker: format!("bench-{number}").parse()?,
            claim: format!("bench-{number}-{wish}").parse()?,
            wait_seconds: 20,
        };
        let assignment = loop {
            let url = format!("{}/v1/queues/default/claims", client.api);
            let response = http.post(url).bearer_auth(&client.token).json(&claim).send().await?;
            match response.status() {
                StatusCode::OK => break response.json::<Assignment>().await?,
                StatusCode::NO_CONTENT => {}
                status => anyhow::bail!("a claim was answered {status}: {}", response.text().await?),
            }
        };
        let started = Instant::now();
        starts.started.lock().unwrap_or_else(PoisonError::into_inner).insert(assignment.job.clone(), started);
        let body = FinishBody::Failed { reason: FailureReason::CommandFailed, message: "a benchmark".into() };
        let path = format!("/v1/jobs/{}/attempts/{}/finish", assignment.job, assignment.attempt);
        let response =
            http.post(format!("{}{path}", client.api)).bearer_auth(&assignment.credential).json(&body).send().await?;
        ensure!(response.status().is_success(), "finish: {}", response.text().await?);
        starts.finished.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Requests `jobs` jobs as fast as they are taken; answers whole cycles per second.
async fn saturate(client: &Client, starts: &Starts, jobs: u64) -> Result<f64> {
    let before = starts.finished.load(Ordering::Relaxed);
    let begun = Instant::now();
    let left = Arc::new(AtomicU64::new(jobs));
    let mut requesters = JoinSet::new();
    for _ in 0..REQUESTERS {
        let (client, left) = (client.clone(), left.clone());
        requesters.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                client.build(&body()?).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = requesters.join_next().await {
        ended??;
    }
    while starts.finished.load(Ordering::Relaxed) < before + jobs {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(jobs as f64 / begun.elapsed().as_secs_f64())
}

/// Requests 100 jobs a second, each on time whatever became of the others; answers when each was sent.
async fn pace(client: &Client, starts: &Starts, seconds: u64) -> Result<BTreeMap<JobId, Instant>> {
    let before = starts.finished.load(Ordering::Relaxed);
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let mut requests: JoinSet<Result<(JobView, Instant)>> = JoinSet::new();
    for _ in 0..seconds * 100 {
        ticks.tick().await;
        let client = client.clone();
        requests.spawn(async move {
            let sent = Instant::now();
            Ok((client.build(&body()?).await?, sent))
        });
    }
    let mut sent = BTreeMap::new();
    while let Some(request) = requests.join_next().await {
        let (view, at) = request??;
        sent.insert(view.job, at);
    }
    while starts.finished.load(Ordering::Relaxed) < before + seconds * 100 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(sent)
}

fn body() -> Result<BuildBody> {
    Ok(BuildBody { queue: "default".parse()?, build: builds::spec()? })
}
