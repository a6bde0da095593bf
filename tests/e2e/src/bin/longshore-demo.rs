//! The main job on one machine, with nothing faked: git commits are built, replicated to three regions and deployed to
//! twelve nodes, which feed each other.
//!
//! By default all roles are in one process, `longshore up`; with `--log kafka` there are three brokers, three control nodes and two
//! processes of each region, and the same is asked of them.
//!
//! Prints what each step took and what moved. Stays up for a look at the console, or with `--once` ends: with status 0
//! when everything answered right, 1 otherwise.

#![expect(clippy::print_stdout, reason = "it is what this program is for")]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use longshore_e2e::{
    Client, Cluster, Node,
    apart::{Apart, Layout},
    greeter::{ASSET_BYTES, Repository},
    process::wait_for,
    traffic::{BucketReads, transfers},
};
use longshore_schemas::{
    ArtifactId,
    events::{RolloutPlan, Wave},
    http::{ArtifactStatus, ArtifactView, DeployBody, JobStatus, JobView, RolloutStatus, ServiceView},
};

const REGIONS: [&str; 3] = ["eu", "us", "ap"];
const NODES_PER_REGION: usize = 4;
const WORKERS: usize = 2;
const BROKERS: u32 = 3;
const ASSETS: u32 = 64;
/// Assets that the second commit changes.
const CHANGED: [(u32, u32); 3] = [(7, 2), (30, 2), (31, 2)];
/// For any one step.
const BOUND: Duration = Duration::from_secs(180);

#[derive(Parser)]
struct Arguments {
    /// End when done, with status 0 if everything answered right
    #[arg(long)]
    once: bool,
    /// Keep everything in this folder instead of a temporary one
    #[arg(long)]
    folder: Option<PathBuf>,
    /// What it runs on
    #[arg(long, value_enum, default_value = "local")]
    log: Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Log {
    Local,
    Kafka,
}

/// What the demo is played on. What depends on others comes first, and ends first.
enum Place {
    One(Box<Cluster>),
    Apart { apart: Box<Apart>, _kafka: longshore_kafka::Cluster },
}

impl Place {
    async fn start(log: Log, folder: &Path) -> Result<Self> {
        match log {
            Log::Local => {
                println!("starting `longshore up` with regions {}, {WORKERS} workers, 12 nodes", REGIONS.join(", "));
                let mut cluster = Cluster::start(folder, &REGIONS).await?;
                cluster.start_workers(WORKERS)?;
                cluster.start_nodes(NODES_PER_REGION).await?;
                Ok(Self::One(Box::new(cluster)))
            }
            Log::Kafka => {
                let layout = Layout::new(&REGIONS, u16::try_from(BROKERS)?);
                let (controls, processes) = (layout.controls, layout.processes_per_region);
                println!(
                    "starting {BROKERS} Kafka brokers, {controls} control nodes, {processes} processes of each of the \
                     regions {}, {WORKERS} workers, 12 nodes",
                    REGIONS.join(", ")
                );
                let kafka = longshore_kafka::Config::new(BROKERS);
                let kafka = tokio::task::spawn_blocking(move || longshore_kafka::Cluster::start(&kafka)).await??;
                let mut apart = Apart::start(folder, kafka.brokers(), layout).await?;
                apart.start_workers(WORKERS)?;
                apart.start_nodes(NODES_PER_REGION).await?;
                Ok(Self::Apart { apart: Box::new(apart), _kafka: kafka })
            }
        }
    }

    fn client(&self) -> &Client {
        match self {
            Self::One(cluster) => &cluster.client,
            Self::Apart { apart, .. } => &apart.client,
        }
    }

    /// Where the S3 server's counters are read.
    fn s3_client(&self) -> Result<Client> {
        match self {
            Self::One(cluster) => Ok(cluster.client.clone()),
            Self::Apart { apart, .. } => apart.s3_client(),
        }
    }

    fn nodes(&self) -> &[Node] {
        match self {
            Self::One(cluster) => &cluster.nodes,
            Self::Apart { apart, .. } => &apart.nodes,
        }
    }

    fn admin_token(&self) -> &Path {
        match self {
            Self::One(cluster) => &cluster.up.tokens.admin,
            Self::Apart { apart, .. } => &apart.tokens.admin,
        }
    }

    fn log_ends(&self) -> String {
        match self {
            Self::One(cluster) => format!("end of the log of `longshore up`:\n{}", cluster.control.log_end()),
            Self::Apart { apart, .. } => apart.log_ends(),
        }
    }

    fn stop(&mut self) -> Result<()> {
        match self {
            Self::One(cluster) => cluster.stop(),
            Self::Apart { apart, .. } => apart.stop(),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            println!("demo: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("demo: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    let temporary = tempfile::Builder::new().prefix("longshore-demo-").tempdir()?;
    let folder = arguments.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    let mut demo = Demo::start(folder, arguments.log).await?;
    let played = demo.play().await;
    demo.print_tables();
    if let Err(error) = played {
        println!("{}", demo.place.log_ends());
        return Err(error);
    }
    println!("\nEverything answered right.");
    if !arguments.once {
        let client = demo.place.client();
        println!("Console: {}/?access_token={}", client.api, client.token);
        println!("Try:     longshore --api {} nodes", client.api);
        println!("         with LONGSHORE_TOKEN_FILE={}", demo.place.admin_token().display());
        println!("Ctrl-C ends it.");
        tokio::signal::ctrl_c().await?;
    }
    demo.place.stop()
}

struct Step {
    what: String,
    took: Duration,
    result: String,
}

/// What one artifact moved on its way.
struct Moved {
    what: String,
    changed: u64,
    uploaded: u64,
    replicated_per_region: u64,
    /// Bytes that all nodes lacked.
    needed: u64,
    from_peers: u64,
    /// Copies of the needed packs taken from each regional bucket.
    copies: Vec<f64>,
}

struct Demo {
    place: Place,
    repository: Repository,
    steps: Vec<Step>,
    moved: Vec<Moved>,
    /// What had been read from the buckets when an artifact was last counted.
    reads: BucketReads,
}

impl Demo {
    async fn start(folder: PathBuf, log: Log) -> Result<Self> {
        let begun = Instant::now();
        std::fs::create_dir_all(&folder)?;
        let repository = Repository::create(&folder.join("repository"))?;
        let place = Place::start(log, &folder).await?;
        println!("console: {}/?access_token={}", place.client().api, place.client().token);
        let mut demo = Self { place, repository, steps: Vec::new(), moved: Vec::new(), reads: BucketReads::default() };
        demo.step(begun, "start", "12 nodes joined");
        Ok(demo)
    }

    fn client(&self) -> Client {
        self.place.client().clone()
    }

    fn step(&mut self, begun: Instant, what: &str, result: impl Into<String>) {
        self.record(begun.elapsed(), what, result.into());
    }

    fn record(&mut self, took: Duration, what: &str, result: String) {
        println!("{:>7.2} s  {what}: {result}", took.as_secs_f64());
        self.steps.push(Step { what: what.to_owned(), took, result });
    }

    async fn play(&mut self) -> Result<()> {
        let everywhere = || vec![wave(&REGIONS)];
        let one = self.build_and_replicate("one", &[]).await?;
        self.deploy_and_ask("greeter", &one, everywhere(), "one").await?;
        self.count(&one, "greeter", "first version", u64::from(ASSETS) * ASSET_BYTES).await?;

        let failing = self.start_failing_build().await?;
        let two = self.build_and_replicate("two", &CHANGED).await?;
        self.expect_failed(&failing).await?;
        let client = self.client();
        let begun = Instant::now();
        let by_region = REGIONS.iter().map(|region| wave(&[region])).collect();
        let second = deploy(client, "second", one.summary.artifact, everywhere());
        tokio::try_join!(second, self.deploy_and_ask("greeter", &two, by_region, "two"))?;
        self.ask_all("second", "one").await?;
        self.step(begun, "deploy a second service at the same time", "12 of 12 answer \"one\"");
        self.count(&two, "greeter", "second version", CHANGED.len() as u64 * ASSET_BYTES).await?;

        let crashing = self.build_and_replicate("crash-three", &CHANGED).await?;
        self.deploy_crashing(&crashing).await
    }

    async fn build_and_replicate(&mut self, version: &str, changed: &[(u32, u32)]) -> Result<ArtifactView> {
        let client = self.client();
        let begun = Instant::now();
        let commit = self.repository.commit(version, ASSETS, changed)?;
        let job = client.build(&self.repository.build("greeter", commit)?).await?;
        let job = client.job_ended(&job.job, BOUND).await?;
        ensure!(job.status == JobStatus::Succeeded, "{}: {:?}", job.job, job.failure);
        let summary = job.artifact.context("a job that succeeded has an artifact")?;
        let result = format!("{} is artifact {}", job.job, summary.artifact.short());
        self.step(begun, &format!("build \"{version}\""), result);
        let begun = Instant::now();
        let artifact = wait_for("the artifact to be deployable", BOUND, async || {
            Ok(Some(client.artifact(&summary.artifact).await?).filter(|a| a.status == ArtifactStatus::Deployable))
        })
        .await?;
        self.step(begun, &format!("replicate \"{version}\""), format!("in {} regions", artifact.replicas.len()));
        Ok(artifact)
    }

    async fn start_failing_build(&self) -> Result<JobView> {
        let commit = self.repository.commit("broken", ASSETS, &[])?;
        let mut body = self.repository.build("broken", commit)?;
        let script = "echo 'error: cannot find value `greeting` in this scope'; exit 101";
        body.build.command = vec!["sh".into(), "-c".into(), script.into()];
        self.client().build(&body).await
    }

    async fn expect_failed(&mut self, job: &JobView) -> Result<()> {
        let job = self.client().job_ended(&job.job, BOUND).await?;
        ensure!(job.status == JobStatus::Failed, "{} should have failed: {:?}", job.job, job.status);
        let failure = job.failure.context("a job that failed says why")?;
        let took = job.ended_at.zip(job.started_at).map_or(Duration::ZERO, |(ended, started)| ended.since(started));
        self.record(took, "a failing build beside it", format!("{}: {}", job.job, last_line(&failure.message)));
        Ok(())
    }

    async fn deploy_and_ask(
        &mut self,
        service: &str,
        artifact: &ArtifactView,
        waves: Vec<Wave>,
        version: &str,
    ) -> Result<()> {
        let begun = Instant::now();
        let count = waves.len();
        deploy(self.client(), service, artifact.summary.artifact, waves).await?;
        self.ask_all(service, version).await?;
        let how = if count == 1 { "everywhere at once".to_owned() } else { format!("in {count} waves") };
        self.step(begun, &format!("deploy \"{version}\" {how}"), format!("12 of 12 answer \"{version}\""));
        Ok(())
    }

    /// Asks the service on every node for its version, over HTTP.
    async fn ask_all(&self, service: &str, version: &str) -> Result<()> {
        let nodes = self.client().nodes().await?;
        ensure!(nodes.len() == REGIONS.len() * NODES_PER_REGION, "{} nodes", nodes.len());
        for node in nodes {
            let running = node.services.iter().find(|s| s.service.as_str() == service);
            let port = running.and_then(|s| s.port).with_context(|| format!("{} runs no {service}", node.node))?;
            let url = format!("http://{}:{port}/", node.host);
            let answer = reqwest::get(&url).await?.error_for_status()?.text().await?;
            if answer.trim() != version {
                bail!("{service} on {} answers {:?}, not {version:?}", node.node, answer.trim());
            }
        }
        Ok(())
    }

    async fn deploy_crashing(&mut self, artifact: &ArtifactView) -> Result<()> {
        let begun = Instant::now();
        let client = self.client();
        let plan = RolloutPlan { waves: vec![wave(&["eu"]), wave(&["us", "ap"])], failure_budget_bp: 0 };
        client.deploy("greeter", &DeployBody { artifact: artifact.summary.artifact, plan: Some(plan) }).await?;
        let view = client
            .service_when("greeter", "to halt", BOUND, |view| newest(view).status == RolloutStatus::Halted)
            .await?;
        let reason = newest(&view).reason.clone().unwrap_or_default();
        self.step(begun, "deploy a release that crashes", format!("halted: {}", last_line(&reason)));
        let begun = Instant::now();
        wait_for("every node to be back on the old release", BOUND, async || {
            self.ask_all("greeter", "two").await.map(Some)
        })
        .await?;
        self.step(begun, "every node is back", "12 of 12 answer \"two\"");
        Ok(())
    }

    async fn count(&mut self, artifact: &ArtifactView, service: &str, what: &str, changed: u64) -> Result<()> {
        let id = artifact.summary.artifact.to_string();
        let transfers = transfers(self.place.nodes(), service, &id)?;
        let needed = transfers.iter().map(|t| t.needed_bytes).sum();
        let from_peers = transfers.iter().map(|t| t.from_peers_bytes).sum();
        let mut copies = Vec::new();
        let reads = BucketReads::now(&self.place.s3_client()?).await?;
        for region in REGIONS {
            let earlier = self.reads.clone();
            let needed_once = transfers.iter().map(|t| t.needed_bytes).max().unwrap_or(0).max(1);
            copies.push(reads.since(&earlier, region) as f64 / needed_once as f64);
        }
        self.reads = reads;
        let replicated_per_region = artifact.replicas.iter().map(|r| r.bytes_copied).max().unwrap_or(0);
        let uploaded = artifact.summary.new_pack_bytes;
        let what = what.to_owned();
        self.moved.push(Moved { what, changed, uploaded, replicated_per_region, needed, from_peers, copies });
        Ok(())
    }

    fn print_tables(&self) {
        let mut steps = table(&["step", "seconds", "result"]);
        for step in &self.steps {
            steps.add_row([step.what.clone(), format!("{:.2}", step.took.as_secs_f64()), step.result.clone()]);
        }
        right_align(&mut steps, 1..2);
        println!("\n{steps}");
        let mut moved = table(&[
            "MiB moved",
            "changed",
            "worker → main",
            "main → region",
            "needed by 12 nodes",
            "from peers",
            "copies from the buckets eu/us/ap",
        ]);
        for row in &self.moved {
            let copies: Vec<String> = row.copies.iter().map(|copies| format!("{copies:.2}")).collect();
            moved.add_row([
                row.what.clone(),
                mib(row.changed),
                mib(row.uploaded),
                mib(row.replicated_per_region),
                mib(row.needed),
                mib(row.from_peers),
                copies.join(" / "),
            ]);
        }
        right_align(&mut moved, 1..7);
        println!("{moved}");
    }
}

async fn deploy(client: Client, service: &str, artifact: ArtifactId, waves: Vec<Wave>) -> Result<()> {
    let plan = Some(RolloutPlan { waves, failure_budget_bp: 0 });
    let view = client.deploy(service, &DeployBody { artifact, plan }).await?;
    let deploy = newest(&view).deploy.clone();
    let ended = |view: &ServiceView| {
        let status = view.revisions.iter().find(|r| r.deploy == deploy).map(|r| r.status);
        matches!(status, Some(RolloutStatus::Completed | RolloutStatus::Halted | RolloutStatus::Refused))
    };
    let view = client.service_when(service, "to complete", BOUND, ended).await?;
    ensure!(newest(&view).status == RolloutStatus::Completed, "{service}: {:?}", newest(&view));
    Ok(())
}

fn newest(view: &ServiceView) -> &longshore_schemas::http::RevisionView {
    view.revisions.first().expect("a service that was deployed has a revision")
}

fn wave(regions: &[&str]) -> Wave {
    let regions = regions.iter().map(|region| region.parse().expect("a valid region")).collect();
    Wave { regions, zones: Vec::new(), fraction_bp: 10_000, bake_seconds: 0 }
}

/// Where a program says what is wrong; lines in brackets are its shim's.
fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.starts_with("[longshore]")).unwrap_or_default()
}

fn mib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1024.0 / 1024.0)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    table
}

fn right_align(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
