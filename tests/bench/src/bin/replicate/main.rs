//! From the last uploaded byte of a build until every region has its artifact: copied while the build uploads, against copied after
//! its end.
//!
//! ```text
//! worker ──▶ proxy, rate R ──▶ main S3 server ──▶ 10 regions ──▶ a proxy each, rate R (or R/2) ──▶ an S3 server each
//!    └─ hints ─▶ API ─▶ log ────────────────────────────┘
//! ```
//!
//! Everything but the proxies is the real thing: API, processors, worker and regions, on a local log. Copying after the end is the
//! same program on a log that loses every hint. What a build makes does not compress, so its size is what must be copied.

mod world;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use longshore_bench::{Goal, Report};

use world::{Setting, World};

const MIB: u64 = 1024 * 1024;
/// Beyond what the rates allow for.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(about = "Replicates an artifact while it is uploaded, and after, and measures what is left at the end.")]
struct Options {
    /// Size of what is built.
    #[arg(long, default_value_t = 64)]
    size_mib: u64,
    /// Of the upload, and into each region.
    #[arg(long, default_value_t = 4)]
    rate_mib_per_second: u64,
    #[arg(long, default_value_t = 10)]
    regions: usize,
    /// Four times the size.
    #[arg(long)]
    full: bool,
}

/// What one run came to.
struct Outcome {
    tail: Duration,
    /// Reads of packs in the main bucket, for each pack and region.
    reads: f64,
}

fn main() -> Result<()> {
    let mut options = Options::parse();
    if options.full {
        options.size_mib *= 4;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let rate = options.rate_mib_per_second * MIB;
    let run = |hints, region_rate, upload_rate| runtime.block_on(run(&options, hints, region_rate, upload_rate));
    let pipelined = run(true, rate, Some(rate))?;
    let half_pipelined = run(true, rate / 2, Some(rate))?;
    // How fast it was uploaded does not matter to what comes after.
    let after_end = run(false, rate, None)?;
    let half_after_end = run(false, rate / 2, None)?;

    let seconds = |outcome: &Outcome| outcome.tail.as_secs_f64();
    let ratio = |ours: &Outcome, other: &Outcome| seconds(other) / seconds(ours);
    let mut report = Report::new("replicate");
    report.figure("regions", options.regions as f64, Goal::AtLeast(10.0));
    report.figure("size_mib", options.size_mib as f64, Goal::None);
    report.figure("rate_mib_per_second", options.rate_mib_per_second as f64, Goal::None);
    report.figure("pipelined_tail_s", seconds(&pipelined), Goal::None);
    report.figure("after_end_s", seconds(&after_end), Goal::None);
    report.figure("ratio", ratio(&pipelined, &after_end), Goal::AtLeast(3.0));
    report.figure("half_pipelined_tail_s", seconds(&half_pipelined), Goal::None);
    report.figure("half_after_end_s", seconds(&half_after_end), Goal::None);
    report.figure("half_rate_ratio", ratio(&half_pipelined, &half_after_end), Goal::None);
    report.figure("main_reads_per_pack_and_region", pipelined.reads, Goal::None);
    report.print();
    Ok(())
}

async fn run(options: &Options, hints: bool, region_rate: u64, upload_rate: Option<u64>) -> Result<Outcome> {
    let size = options.size_mib * MIB;
    let world = World::start(&Setting { regions: options.regions, hints, region_rate, upload_rate }).await?;
    let slowest = Duration::from_secs(size / region_rate.min(upload_rate.unwrap_or(u64::MAX)));
    let (packs, tail) = world.build(size, slowest * 2 + PATIENCE).await?;
    let reads = world.reads_of_packs() as f64 / packs as f64 / options.regions as f64;
    ensure!(reads >= 1.0, "a region has packs that nobody has copied");
    world.assert_everywhere().await?;
    world.stop().await;
    Ok(Outcome { tail, reads })
}
