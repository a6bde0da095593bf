//! `make bench-failover`: how long facts stop when the leading control node, or a broker, is killed, and whether anything is lost
//! or doubled.
//!
//! ```text
//! load: 500 requests/s ──▶ Kafka × 3 ◀──▶ longshore control × 3      one of them is killed with SIGKILL, again and again
//!                              └──facts──▶ watch: which request became a job, when, and how often
//! ```
//!
//! Facts flow again once each partition has told of a request that was written after the kill.

#![allow(clippy::print_stderr, reason = "progress, for whoever waits")]

mod load;
mod watch;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use longshore_bench::{Goal, Report};
use longshore_e2e::{
    apart::{Apart, Layout},
    process::wait_for,
};
use longshore_kafka::{Cluster, Config as ClusterConfig};
use longshore_log::kafka::{Config, KafkaLog};
use longshore_schemas::topics;
use tokio_util::sync::CancellationToken;

use self::{load::Load, watch::Watch};

const BROKERS: u32 = 3;
const PER_SECOND: u64 = 500;
const BOUND: Duration = Duration::from_secs(90);
/// Between that all is well again and the next kill.
const CALM: Duration = Duration::from_secs(1);

#[derive(Parser)]
struct Arguments {
    /// 20 kills of control nodes and 50 of brokers
    #[arg(long)]
    full: bool,
    /// So many kills of control nodes
    #[arg(long)]
    controls: Option<u32>,
    /// So many kills of brokers
    #[arg(long)]
    brokers: Option<u32>,
}

fn main() -> Result<ExitCode> {
    let Arguments { full, controls, brokers } = Arguments::parse();
    let usual = if full { (20, 50) } else { (10, 5) };
    let (controls, brokers) = (controls.unwrap_or(usual.0), brokers.unwrap_or(usual.1));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(controls, brokers))?;
    let mut report = Report::new("failover");
    report.figure("control_worst_s", worst(&figures.control), Goal::AtMost(10.0));
    report.figure("control_median_s", median(figures.control), Goal::None);
    report.figure("broker_worst_s", worst(&figures.broker), Goal::AtMost(10.0));
    report.figure("broker_median_s", median(figures.broker), Goal::None);
    report.figure("kills", f64::from(controls + brokers), Goal::None);
    report.figure("requests", figures.requests as f64, Goal::None);
    report.figure("lost", figures.lost as f64, Goal::AtMost(0.0));
    report.figure("doubled", figures.doubled as f64, Goal::AtMost(0.0));
    report.print();
    Ok(ExitCode::SUCCESS)
}

struct Figures {
    control: Vec<f64>,
    broker: Vec<f64>,
    requests: u64,
    lost: u64,
    doubled: u64,
}

async fn measure(controls: u32, brokers: u32) -> Result<Figures> {
    eprintln!("{controls} kills of control nodes, {brokers} of brokers");
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(&ClusterConfig::new(BROKERS))).await??;
    let cluster = Arc::new(cluster);
    let folder = tempfile::tempdir()?;
    let mut apart = Apart::start(folder.path(), cluster.brokers(), Layout::new(&["eu"], 3)).await?;
    let mut config = Config::new(cluster.brokers(), topics::ALL);
    config.manage_topics = false;
    let log = KafkaLog::connect(config).await?;
    let stop = CancellationToken::new();
    let watch = Arc::new(Watch::default());
    let watching = tokio::spawn(watch.clone().run(log.clone()));
    let load = Arc::new(Load::new(log));
    let loading = tokio::spawn(load.clone().run(PER_SECOND, stop.child_token()));

    let (mut control, mut broker) = (Vec::new(), Vec::new());
    for _ in 0..controls {
        tokio::time::sleep(CALM).await;
        let leader = leader(&apart).await?;
        let killed = Instant::now();
        apart.controls[leader].kill()?;
        let flowing = flows(&watch, &load, killed).await;
        control.push(told(&apart, "control node", flowing)?);
        apart.controls[leader].restart()?;
        apart.controls[leader].listens().await?;
        apart.all_led().await?;
    }
    for number in 0..brokers {
        tokio::time::sleep(CALM).await;
        let node = number % BROKERS + 1;
        let killed = Instant::now();
        on_cluster(&cluster, move |cluster| cluster.kill(node)).await?;
        let flowing = flows(&watch, &load, killed).await;
        broker.push(told(&apart, "broker", flowing)?);
        on_cluster(&cluster, move |cluster| cluster.restart(node)).await?;
        on_cluster(&cluster, |cluster| cluster.wait_whole(BOUND)).await?;
        // As the brokers do by themselves, but only every five minutes: otherwise the last one leads everything.
        on_cluster(&cluster, |cluster| cluster.balance()).await?;
    }
    stop.cancel();
    let acknowledged = loading.await??;
    wait_for("every acknowledged request to become a job", BOUND, async || {
        Ok(acknowledged.iter().all(|id| watch.times(*id) > 0).then_some(()))
    })
    .await
    .ok();
    let lost = acknowledged.iter().filter(|id| watch.times(**id) == 0).count() as u64;
    let doubled = watch.doubled();
    watching.abort();
    apart.stop()?;
    Ok(Figures { control, broker, requests: acknowledged.len() as u64, lost, doubled })
}

/// The control node that leads most of the queue's partitions.
async fn leader(apart: &Apart) -> Result<usize> {
    let leaders = apart.leaders().await?;
    let of_queue = leaders.iter().filter(|(partition, _)| partition.starts_with("queue/"));
    let leading: Vec<usize> = of_queue.flat_map(|(_, leaders)| leaders.iter().copied()).collect();
    let count = |index: &usize| leading.iter().filter(|leader| *leader == index).count();
    (0..apart.controls.len()).max_by_key(count).context("there are control nodes")
}

/// Seconds until each partition told of a request that was written after the kill.
async fn flows(watch: &Watch, load: &Load, killed: Instant) -> Result<f64> {
    let first = load.next();
    wait_for("facts to flow again", BOUND, async || Ok(watch.all_beyond(first).then_some(()))).await.with_context(
        || format!("facts of requests from {first} on: {}; {} are not acknowledged", watch.told(), load.open()),
    )?;
    Ok(killed.elapsed().as_secs_f64())
}

/// Says how it went, with the logs of all roles if it went wrong.
fn told(apart: &Apart, of: &str, flowing: Result<f64>) -> Result<f64> {
    match &flowing {
        Ok(seconds) => eprintln!("a {of} was killed: facts flow again after {seconds:.2} s"),
        Err(_) => eprintln!("a {of} was killed: {}", apart.log_ends()),
    }
    flowing
}

async fn on_cluster(cluster: &Arc<Cluster>, task: impl FnOnce(&Cluster) -> Result<()> + Send + 'static) -> Result<()> {
    let cluster = cluster.clone();
    tokio::task::spawn_blocking(move || task(&cluster)).await?
}

fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
