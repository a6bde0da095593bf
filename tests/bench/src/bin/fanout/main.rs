//! `make bench-fanout`: one goal to thousands of nodes over one region process, and all of them back after it was killed; against etcd's
//! watches over the same TLS, from as many clients.
//!
//! ```text
//! this process: N nodes ══TLS══▶ a region process (log, bucket, all real)      then     N watchers ══TLS══▶ etcd
//!        └── "the next goal" ──▶┘                                                            └── put ──▶┘
//! ```
//!
//! What counts is when a client has the goal's bytes, from before it is written. Each runs alone, one after the other.

#![allow(clippy::print_stderr, reason = "progress, for whoever waits")]

mod arrivals;
mod etcd;
mod nodes;
mod region;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use longshore_bench::{Goal, Report, Usage};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::arrivals::Arrivals;

const CONNECTIONS: usize = 9_000;
/// Longest wait for all clients to have something.
const BOUND: Duration = Duration::from_secs(120);
/// Clients that connect at a time, when nothing is measured.
const AT_ONCE: usize = 256;
/// Files that are open besides the connections.
const OTHER_FILES: u64 = 1_000;

#[derive(Parser)]
struct Arguments {
    /// 30 goals each
    #[arg(long)]
    full: bool,
    #[arg(long, default_value_t = CONNECTIONS)]
    connections: usize,
    /// Be the region process, on this folder
    #[arg(long, hide = true)]
    region: Option<PathBuf>,
    /// Where it listens
    #[arg(long, hide = true, default_value_t = 0)]
    port: u16,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    allow_files(arguments.connections)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(folder) = arguments.region {
        runtime.block_on(region::serve(&folder, arguments.port, arguments.connections))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rounds = if arguments.full { 30 } else { 9 };
    let (ours, theirs) = runtime.block_on(measure(arguments.connections, rounds))?;
    let mut report = Report::new("fanout");
    report.figure("connections", arguments.connections as f64, Goal::None);
    report.figure("ours_p50_ms", ours.p50_ms, Goal::None);
    report.figure("ours_max_ms", ours.max_ms, Goal::None);
    report.figure("etcd_p50_ms", theirs.p50_ms, Goal::None);
    report.figure("etcd_max_ms", theirs.max_ms, Goal::None);
    report.figure("ratio", theirs.max_ms / ours.max_ms, Goal::AtLeast(3.0));
    report.figure("kib_per_connection", ours.kib_per_connection, Goal::AtMost(24.0));
    report.figure("etcd_kib_per_connection", theirs.kib_per_connection, Goal::None);
    report.figure("reconnect_all_s", ours.reconnect_all_s, Goal::None);
    report.figure("etcd_reconnect_all_s", theirs.reconnect_all_s, Goal::None);
    report.figure("restart_s", ours.restart_s, Goal::None);
    report.figure("etcd_restart_s", theirs.restart_s, Goal::None);
    report.figure("lost_goals", ours.lost as f64, Goal::AtMost(0.0));
    report.figure("etcd_lost", theirs.lost as f64, Goal::None);
    report.figure("rounds", rounds as f64, Goal::None);
    report.detail("etcd_version", etcd::version()?.into());
    report.print();
    Ok(ExitCode::SUCCESS)
}

fn allow_files(connections: usize) -> Result<()> {
    let needed = connections as u64 + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        let maximum = limit.maximum.map(|maximum| maximum.max(needed));
        setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum }).with_context(|| {
            format!("{needed} open files are not allowed here: raise the limit, or lower --connections")
        })?;
    }
    Ok(())
}

/// How one of the two did.
struct Figures {
    p50_ms: f64,
    max_ms: f64,
    kib_per_connection: f64,
    /// From the kill until the server takes connections.
    restart_s: f64,
    /// From the kill until all clients have what was published meanwhile.
    reconnect_all_s: f64,
    /// Goals that some client never had.
    lost: u64,
}

/// What is measured: a server that can be killed, and clients that stay with it.
trait Side {
    /// Makes the clients connect, and returns when all have.
    async fn connect_all(&mut self, arrivals: &Arc<Arrivals>) -> Result<()>;
    /// Publishes a version; returns once that is acknowledged.
    async fn publish(&mut self, version: u64) -> Result<()>;
    fn rss_kib(&self) -> Result<f64>;
    /// Kills the server and starts it again, which then has a version that no client has; returns when it takes connections.
    async fn restart(&mut self, version: u64) -> Result<()>;
    async fn stop(self) -> Result<()>;
}

async fn measure(connections: usize, rounds: u64) -> Result<(Figures, Figures)> {
    let folder = tempfile::tempdir()?;
    eprintln!("fanout: {connections} nodes of a region process");
    let ours = run(nodes::Nodes::start(&folder.path().join("ours"), connections).await?, connections, rounds).await?;
    eprintln!("fanout: {connections} watchers of etcd");
    let authority = region::authority(&folder.path().join("ours"));
    let etcd = etcd::Etcd::start(&folder.path().join("etcd"), &authority, connections).await?;
    let theirs = run(etcd, connections, rounds).await?;
    Ok((ours, theirs))
}

async fn run(mut side: impl Side, connections: usize, rounds: u64) -> Result<Figures> {
    let arrivals = Arrivals::new(connections);
    let before = side.rss_kib()?;
    side.connect_all(&arrivals).await?;
    let connected = side.rss_kib()?;
    let (mut p50, mut max, mut lost) = (Vec::new(), Vec::new(), 0);
    for version in 1..=rounds {
        let begun = Instant::now();
        arrivals.expect(version, begun);
        side.publish(version).await?;
        lost += arrivals.all(BOUND).await;
        let mut times = arrivals.times_ms(BOUND);
        times.sort_by(f64::total_cmp);
        p50.push(times[times.len() / 2]);
        max.push(times[times.len() - 1]);
        // The next one should find a machine that is as idle as this one did.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // Once with all connections, and once when they have been used.
    let kib_per_connection = (side.rss_kib()?.max(connected) - before) / connections as f64;
    let (version, killed) = (rounds + 1, Instant::now());
    arrivals.expect(version, killed);
    side.restart(version).await?;
    let restart_s = killed.elapsed().as_secs_f64();
    lost += arrivals.all(BOUND).await;
    let reconnect_all_s = killed.elapsed().as_secs_f64();
    side.stop().await?;
    Ok(Figures { p50_ms: median(p50), max_ms: median(max), kib_per_connection, restart_s, reconnect_all_s, lost })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Memory of a process now.
fn rss_kib(process: &tokio::process::Child) -> Result<f64> {
    let pid = process.id().context("it has ended")?.to_string();
    let usage = Usage::of(&pid).with_context(|| format!("/proc/{pid} cannot be read"))?;
    Ok(usage.rss_mib * 1024.0)
}

/// Where the log of a server goes.
fn log_file(folder: &Path, name: &str) -> Result<std::fs::File> {
    std::fs::create_dir_all(folder)?;
    Ok(std::fs::File::options().create(true).append(true).open(folder.join(name))?)
}
