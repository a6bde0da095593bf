//! `longshore up` is killed again and again, at random moments, inside one run that goes on: builds are requested, services
//! deployed and rolled back, and a service that nobody touches is asked all the time.
//!
//! ```text
//! builds ──────▶ alpha, beta      deploys, rollbacks ──▶ alpha, beta      prober ──▶ steady, on every node
//!    │ every request has a key and is sent until it is answered, over as many kills as it takes
//!    ▼
//! longshore up ◀── SIGKILL, started again at once; each time: how long until a new request is answered with its facts
//! ```
//!
//! Afterwards, from the log alone: each request that was acknowledged is there once, each job has ended once, every goal is
//! reached, and the log has no gap, no duplicate and no torn output.
//!
//! `FULL=1` kills 200 times instead of 20.

#![allow(clippy::print_stdout, reason = "figures for people, seen with --nocapture")]

mod common;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use longshore_e2e::{Client, Cluster, client::Refusal, process::wait_for, quick::Quick, random::Random};
use longshore_schemas::{
    ArtifactId, JobId,
    events::{BuildFact, GoalFact, NodeStatus},
    http::{
        ArtifactStatus, ArtifactView, DeployBody, JobStatus, JobView, Page, QueueView, RollbackBody, RolloutStatus,
        ServiceView, Source,
    },
};
use tokio_util::sync::CancellationToken;

use common::{Left, folder, is_end, verify};

const REGIONS: [&str; 2] = ["eu", "us"];
const ROLLED: [&str; 2] = ["alpha", "beta"];
const STEADY: &str = "steady";
/// For what takes as long as it takes on a busy machine.
const BOUND: Duration = Duration::from_secs(120);
/// From one start to the next kill, at most.
const ALIVE_MAX: Duration = Duration::from_millis(5_500);
/// One in so many starts is killed within [`STARTING`], before it is ready.
const KILLED_EARLY: u64 = 4;
const STARTING: Duration = Duration::from_millis(400);
/// Jobs that may be under way at once.
const JOBS_MAX: u32 = 6;
const PROBE_EVERY: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_lose_nothing() -> Result<()> {
    let kills = if std::env::var_os("FULL").is_some() { 200 } else { 20 };
    let mut random = Random::from_environment();
    let folder = folder()?;
    let repository = Arc::new(Quick::create(&folder.path().join("repository"))?);
    let mut cluster = Cluster::start(folder.path(), &REGIONS).await?;
    cluster.start_workers(2)?;
    cluster.start_nodes(2).await?;
    deploy_steady(&cluster.client, &repository).await?;
    let prober = Prober::start(&cluster.client).await?;
    let pids = pids(&cluster, STEADY)?;

    let stop = CancellationToken::new();
    let client = cluster.client.clone();
    let began = Instant::now();
    let (requested, deployed, recoveries) = tokio::try_join!(
        Builds::run(client.clone(), repository, stop.clone()),
        deploy_and_roll_back(client, random.fork(), stop.clone()),
        async {
            let recoveries = kill(&mut cluster, kills, &mut random).await;
            stop.cancel();
            recoveries
        }
    )?;
    println!("{kills} kills in {:.0?}", began.elapsed());
    println!("{recoveries}");

    let ended = wait_for_jobs(&cluster.client, requested.values()).await?;
    ensure!(ended.values().all(|status| *status == JobStatus::Succeeded), "not all jobs succeeded: {ended:?}");
    for service in ROLLED {
        has_converged(&cluster.client, service).await?;
    }
    let probes = prober.stop()?;
    ensure!(self::pids(&cluster, STEADY)? == pids, "services that nobody touched were started anew");
    let (jobs, deploys) = (requested.len(), deployed.len());
    println!("{jobs} jobs, {deploys} deploys and rollbacks, {probes} probes of services that nobody touched");
    ensure!(jobs >= 5 && deploys >= 2, "too little happened between the kills");

    cluster.stop()?;
    verify(folder.path())?;
    let left = Left::open(folder.path())?;
    each_job_ended_once(&left, &requested).await?;
    each_deploy_was_decided_once(&left, &deployed).await?;
    left.equals_replay(&REGIONS).await
}

/// How long it took after each kill until a request was answered with its facts.
struct Recoveries {
    measured: Vec<Duration>,
    /// Killed again before that.
    unmeasured: usize,
}

impl std::fmt::Display for Recoveries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (median, worst) = (self.measured.get(self.measured.len() / 2), self.measured.last());
        write!(
            f,
            "from SIGKILL to the answer to a new request, its facts included: median {:.2?}, worst {:.2?} ({} measured, {} \
             killed again before)",
            median.copied().unwrap_or_default(),
            worst.copied().unwrap_or_default(),
            self.measured.len(),
            self.unmeasured
        )
    }
}

async fn kill(cluster: &mut Cluster, kills: usize, random: &mut Random) -> Result<Recoveries> {
    let (mut measured, mut unmeasured) = (Vec::new(), 0);
    let client = cluster.client.clone();
    let mut pulses = 0;
    for _ in 0..kills {
        let killed = Instant::now();
        cluster.kill_control()?;
        let (early, late) = ((Duration::ZERO, STARTING), (STARTING, ALIVE_MAX));
        let (from, to) = if random.below(KILLED_EARLY) == 0 { early } else { late };
        let alive = random.between(from, to);
        // A pulse that was not answered is sent again after the next kill, as the request that it is.
        let pulse = async {
            pulse(&client, &format!("pulse-{pulses}")).await?;
            anyhow::Ok(killed.elapsed())
        };
        match tokio::time::timeout(alive, pulse).await {
            Ok(recovered) => {
                measured.push(recovered?);
                pulses += 1;
            }
            Err(_) => unmeasured += 1,
        }
        tokio::time::sleep(alive.saturating_sub(killed.elapsed())).await;
        cluster.control.check_running()?;
    }
    cluster.control_ready().await?;
    // Also for a pulse that was accepted and not answered.
    pulse(&client, &format!("pulse-{pulses}")).await?;
    measured.sort();
    ensure!(!measured.is_empty(), "no request was answered between two kills");
    Ok(Recoveries { measured, unmeasured })
}

/// Asks for a build on a queue without workers, and takes it back.
async fn pulse(client: &Client, key: &str) -> Result<()> {
    let body = longshore_e2e::quick::nothing("pulse")?;
    let job: JobView = sent(client.post_until("/v1/builds", &body, key, BOUND).await?)?;
    let nothing = serde_json::json!({});
    let cancel = format!("/v1/jobs/{}/cancel", job.job);
    let canceled: JobView = sent(client.post_until(&cancel, &nothing, &format!("{key}-cancel"), BOUND).await?)?;
    ensure!(canceled.status == JobStatus::Canceled, "{canceled:?}");
    Ok(())
}

fn sent<T>(answer: Result<T, Refusal>) -> Result<T> {
    answer.map_err(anyhow::Error::from)
}

/// Asks for builds of both services, as long as few enough are under way.
struct Builds {
    client: Client,
    repository: Arc<Quick>,
    stop: CancellationToken,
    /// The job of each key.
    jobs: BTreeMap<String, JobId>,
}

impl Builds {
    async fn run(client: Client, repository: Arc<Quick>, stop: CancellationToken) -> Result<BTreeMap<String, JobId>> {
        let mut builds = Self { client, repository, stop, jobs: BTreeMap::new() };
        for number in 0_usize.. {
            let pause = tokio::time::sleep(Duration::from_millis(500));
            if builds.stop.run_until_cancelled(pause).await.is_none() {
                break;
            }
            // An answer may take until the next start, an error too.
            if builds.under_way().await.is_ok_and(|under_way| under_way < JOBS_MAX) {
                builds.request(number).await?;
            }
        }
        Ok(builds.jobs)
    }

    async fn under_way(&self) -> Result<u32> {
        let queues = self.client.get::<Page<QueueView>>("/v1/queues").await?.items;
        Ok(queues.iter().filter(|q| q.queue.as_str() == "default").map(|q| q.queued + q.running).sum())
    }

    async fn request(&mut self, number: usize) -> Result<()> {
        let name = ROLLED[number % ROLLED.len()];
        let version = format!("{name}-{number}");
        let repository = self.repository.clone();
        let commit = tokio::task::spawn_blocking(move || repository.commit(&version)).await??;
        let body = self.repository.build("default", name, commit, "sleep 0.5")?;
        let key = format!("build-{number}");
        let job: JobView = sent(self.client.post_until("/v1/builds", &body, &key, BOUND).await?)?;
        self.jobs.insert(key, job.job);
        Ok(())
    }
}

/// Deploys what is new of each service, and now and then rolls back. Answers the keys that were acknowledged, with their
/// services.
async fn deploy_and_roll_back(
    client: Client,
    mut random: Random,
    stop: CancellationToken,
) -> Result<BTreeMap<String, &'static str>> {
    let (mut acknowledged, mut newest) = (BTreeMap::new(), BTreeMap::new());
    for number in 0_usize.. {
        if stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(300))).await.is_none() {
            break;
        }
        let service = ROLLED[number % ROLLED.len()];
        let Ok(Some(artifact)) = newest_deployable(&client, service).await else { continue };
        if newest.insert(service, artifact) == Some(artifact) {
            continue;
        }
        let (key, path) = (format!("deploy-{number}"), format!("/v1/services/{service}/deploys"));
        let body = DeployBody { artifact, plan: None };
        sent(client.post_until::<ServiceView>(&path, &body, &key, BOUND).await?)?;
        acknowledged.insert(key, service);
        // With luck it completes, so that there is something to roll back to.
        let completed = |view: &ServiceView| view.revisions[0].status == RolloutStatus::Completed;
        let _ = client.service_when(service, "to complete", Duration::from_secs(4), completed).await;
        if random.below(3) > 0 {
            continue;
        }
        let (key, path) = (format!("rollback-{number}"), format!("/v1/services/{service}/rollbacks"));
        match client.post_until::<ServiceView>(&path, &RollbackBody::default(), &key, BOUND).await? {
            Ok(_) => drop(acknowledged.insert(key, service)),
            Err(refused) => ensure!(matches!(refused.0.status, 404 | 409), "{key}: {refused}"),
        }
    }
    Ok(acknowledged)
}

async fn newest_deployable(client: &Client, name: &str) -> Result<Option<ArtifactId>> {
    let artifacts = client.get::<Page<ArtifactView>>(&format!("/v1/artifacts?name={name}&limit=10")).await?.items;
    let deployable = artifacts.iter().find(|artifact| artifact.status == ArtifactStatus::Deployable);
    Ok(deployable.map(|artifact| artifact.summary.artifact))
}

async fn deploy_steady(client: &Client, repository: &Quick) -> Result<()> {
    let commit = repository.commit(STEADY)?;
    let job = client.build(&repository.build("default", STEADY, commit, "true")?).await?;
    let job = client.job_ended(&job.job, BOUND).await?;
    ensure!(job.status == JobStatus::Succeeded, "{:?}", job.failure);
    let artifact = wait_for("it to be deployable", BOUND, async || newest_deployable(client, STEADY).await).await?;
    client.deploy(STEADY, &DeployBody { artifact, plan: None }).await?;
    has_converged(client, STEADY).await
}

/// Waits until the newest revision is completed, and every node runs it and answers its version.
async fn has_converged(client: &Client, service: &str) -> Result<()> {
    let completed = |view: &ServiceView| view.revisions[0].status == RolloutStatus::Completed;
    let view = client.service_when(service, "to complete", BOUND, completed).await?;
    let (artifact, revision) = (view.revisions[0].artifact, view.revisions[0].revision);
    let version = version(client, &artifact).await?;
    wait_for(&format!("every node to run {service} {version}"), BOUND, async || {
        for address in addresses(client, service, |running| {
            ensure!(running.status == NodeStatus::Healthy, "{running:?}");
            ensure!(running.version.revision == revision && running.artifact == Some(artifact), "{running:?}");
            Ok(())
        })
        .await?
        {
            let answer = ask(address)?;
            ensure!(answer == version, "{address} answers {answer:?} instead of {version:?}");
        }
        Ok(Some(()))
    })
    .await
}

/// The version is the message of the commit that the artifact was built from; the build's log would say as much.
async fn version(client: &Client, artifact: &ArtifactId) -> Result<String> {
    let Source::Built(source) = client.artifact(artifact).await?.source else { bail!("nothing is imported here") };
    let repository = source.repository.strip_prefix("file://").context("a folder")?.to_owned();
    let arguments = ["-C", &repository, "log", "-1", "--format=%s", source.commit.as_str()];
    let output = std::process::Command::new("git").args(arguments).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Where the service runs, on every node.
async fn addresses(
    client: &Client,
    service: &str,
    check: impl Fn(&longshore_schemas::http::NodeServiceView) -> Result<()>,
) -> Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for node in client.nodes().await? {
        let running = node.services.iter().find(|running| running.service.as_str() == service);
        let running = running.with_context(|| format!("{} does not run {service}", node.node))?;
        check(running)?;
        addresses.push(SocketAddr::new(node.host.parse()?, running.port.context("a port")?));
    }
    ensure!(addresses.len() == 2 * REGIONS.len(), "{} nodes", addresses.len());
    Ok(addresses)
}

fn ask(address: SocketAddr) -> Result<String> {
    let patience = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: service\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {answer:?}"))?;
    Ok(body.trim().to_owned())
}

/// Asks the service that nobody touches, on every node, all the time. It must always answer.
struct Prober {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    failed: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Prober {
    async fn start(client: &Client) -> Result<Self> {
        let mut prober =
            Self { stop: Arc::default(), asked: Arc::default(), failed: Arc::default(), threads: Vec::new() };
        for address in addresses(client, STEADY, |_| Ok(())).await? {
            let (stop, asked, failed) = (prober.stop.clone(), prober.asked.clone(), prober.failed.clone());
            prober.threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match ask(address) {
                        Ok(answer) if answer == STEADY => drop(asked.fetch_add(1, Ordering::Relaxed)),
                        wrong => failed.lock().expect("no thread panics").push(format!("{address}: {wrong:?}")),
                    }
                    std::thread::sleep(PROBE_EVERY);
                }
            }));
        }
        Ok(prober)
    }

    /// How often it was answered.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            if thread.join().is_err() {
                bail!("a prober panicked");
            }
        }
        let failed = self.failed.lock().expect("no thread panics");
        ensure!(failed.is_empty(), "{} probes failed, such as {:?}", failed.len(), failed.first());
        Ok(self.asked.load(Ordering::Relaxed))
    }
}

/// The pids of a service on every node, as its shims know them.
fn pids(cluster: &Cluster, service: &str) -> Result<Vec<u64>> {
    let pid = |folder: &Path| -> Result<u64> {
        let status = std::fs::read(folder.join("services").join(service).join("status.json"))?;
        serde_json::from_slice::<serde_json::Value>(&status)?["pid"].as_u64().context("it runs")
    };
    cluster.nodes.iter().map(|node| pid(&node.folder)).collect()
}

async fn wait_for_jobs(client: &Client, jobs: impl Iterator<Item = &JobId>) -> Result<BTreeMap<JobId, JobStatus>> {
    let mut ended = BTreeMap::new();
    for job in jobs {
        ended.insert(job.clone(), client.job_ended(job, BOUND).await?.status);
    }
    Ok(ended)
}

async fn each_job_ended_once(left: &Left, requested: &BTreeMap<String, JobId>) -> Result<()> {
    let jobs = left.jobs().await?;
    let mut keys = BTreeMap::<String, Vec<JobId>>::new();
    for (job, facts) in &jobs {
        let ends = facts.iter().filter(|fact| is_end(&fact.event)).count();
        ensure!(ends == 1, "job {job} has ended {ends} times: {facts:?}");
        for fact in facts {
            if let BuildFact::JobQueued(queued) = &fact.event {
                keys.entry(queued.request.to_string()).or_default().push(job.clone());
            }
        }
    }
    for (key, job) in requested {
        ensure!(keys.get(key) == Some(&vec![job.clone()]), "{key} was answered with {job} and is {:?}", keys.get(key));
    }
    let twice = keys.iter().find(|(_, jobs)| jobs.len() > 1);
    ensure!(twice.is_none(), "a request became more than one job: {twice:?}");
    Ok(())
}

async fn each_deploy_was_decided_once(left: &Left, acknowledged: &BTreeMap<String, &'static str>) -> Result<()> {
    let mut accepted = BTreeMap::<String, Vec<String>>::new();
    for fact in left.facts::<GoalFact>().await?.into_iter().flatten() {
        if let GoalFact::DeployAccepted(event) = fact.event {
            accepted.entry(event.deploy.to_string()).or_default().push(event.service.to_string());
        }
    }
    for (key, service) in acknowledged {
        let found = accepted.get(key).map(Vec::as_slice);
        ensure!(found == Some(&[(*service).to_owned()][..]), "{key} of {service} was accepted for {found:?}");
    }
    let twice = accepted.iter().find(|(_, services)| services.len() > 1);
    ensure!(twice.is_none(), "a deploy was accepted more than once: {twice:?}");
    Ok(())
}
