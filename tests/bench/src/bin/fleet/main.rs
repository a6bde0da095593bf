//! `make bench-fleet`: 300,000 nodes in ten regions through the real processors, their log and the API; only the nodes and the regions that
//! speak for them are made up.
//!
//! ```text
//! made-up regions ──reports, signed──▶ log ──▶ fleet, goals, replication ──▶ log ──goals──▶ made-up regions
//!                                                     └──▶ projections ──▶ API ◀── queries, all the time
//! ```
//!
//! A region tells of its nodes by shard, as real ones do, but as soon as it can instead of once a second, and its nodes take no
//! time: what is measured is what the control node does with it.

#![allow(clippy::print_stderr, reason = "progress, for whoever waits")]

mod queries;
mod regions;
mod world;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Parser;
use longshore_bench::{Goal, Report, Usage};
use longshore_schemas::events::NodeStatus;

use self::{queries::Queries, world::World};

const REGIONS: u32 = 10;
/// As many as a region of 30,000 nodes would have.
const SHARDS: u32 = 8;
/// For each part: one that hangs is an error.
const BOUND: Duration = Duration::from_secs(240);

#[derive(Parser)]
struct Arguments {
    /// A million nodes
    #[arg(long)]
    full: bool,
    #[arg(long)]
    nodes: Option<u32>,
}

fn main() -> Result<ExitCode> {
    let Arguments { full, nodes } = Arguments::parse();
    let nodes = nodes.unwrap_or(if full { 1_000_000 } else { 300_000 });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(nodes))?;
    let mut report = Report::new("fleet");
    report.figure("nodes", f64::from(nodes), Goal::AtLeast(300_000.0));
    report.figure("joined_per_second", figures.joined_per_second, Goal::None);
    report.figure("reports_per_second", figures.reports_per_second, Goal::None);
    report.figure("rollout_s", figures.rollout_s, Goal::None);
    report.figure("waves", f64::from(REGIONS), Goal::None);
    report.figure("query_p50_ms", figures.query_p50_ms, Goal::None);
    report.figure("query_p99_ms", figures.query_p99_ms, Goal::AtMost(50.0));
    report.figure("busy_query_p99_ms", figures.busy_query_p99_ms, Goal::None);
    report.figure("queries", figures.queries as f64, Goal::None);
    report.figure("peak_rss_mib", figures.peak_rss_mib, Goal::None);
    report.print();
    Ok(ExitCode::SUCCESS)
}

struct Figures {
    joined_per_second: f64,
    /// Of nodes, not of regions: what one node now is with one service.
    reports_per_second: f64,
    rollout_s: f64,
    query_p50_ms: f64,
    query_p99_ms: f64,
    /// While the rollout is under way.
    busy_query_p99_ms: f64,
    queries: usize,
    peak_rss_mib: f64,
}

async fn measure(nodes: u32) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let world = World::start(folder.path()).await?;
    let mut regions = regions::all(nodes);

    eprintln!("fleet: {nodes} nodes join");
    let begun = Instant::now();
    world.join(&mut regions, BOUND).await?;
    let joined_per_second = f64::from(nodes) / begun.elapsed().as_secs_f64();

    eprintln!("fleet: a rollout of {REGIONS} waves");
    let artifact = world.artifact(BOUND).await?;
    let busy = Queries::start(world.client().await?);
    let begun = Instant::now();
    world.roll_out(artifact, &mut regions, BOUND).await?;
    let rollout_s = begun.elapsed().as_secs_f64();
    let busy = busy.stop().await?;

    eprintln!("fleet: every node fails and is well again");
    let begun = Instant::now();
    let statuses = [NodeStatus::RolledBack, NodeStatus::Healthy];
    let reports = world.report_each(&mut regions, &statuses, BOUND).await?;
    let reports_per_second = reports as f64 / begun.elapsed().as_secs_f64();

    eprintln!("fleet: queries");
    let quiet = Queries::start(world.client().await?);
    tokio::time::sleep(Duration::from_secs(15)).await;
    let quiet = quiet.stop().await?;
    let peak_rss_mib = Usage::of_this_process().map_or(0.0, |usage| usage.peak_rss_mib);
    world.stop().await;
    Ok(Figures {
        joined_per_second,
        reports_per_second,
        rollout_s,
        query_p50_ms: queries::quantile(&quiet, 0.5),
        query_p99_ms: queries::quantile(&quiet, 0.99),
        busy_query_p99_ms: queries::quantile(&busy, 0.99),
        queries: quiet.len() + busy.len(),
        peak_rss_mib,
    })
}
