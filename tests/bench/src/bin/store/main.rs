//! Publishing and fetching a tree of 1 GiB, and publishing it again with 2 % of it changed.
//!
//! The parent makes the tree, and starts an S3 server, a publisher and a fetcher as processes of their own, so that
//! CPU time and memory are those of one role alone. What was fetched is compared byte by byte with what was published.

mod tree;

use std::{fs, path::PathBuf};

use anyhow::Result;
use clap::Parser;
use longshore_bench::{
    Goal, Report,
    roles::{Fetched, PublishedBy, Role, Server, child, text},
    s3::KEY,
    trees,
};

const MIB: u64 = 1024 * 1024;
const GB: f64 = 1e9;
/// Runs of changed bytes.
const RUNS: u64 = 32;
/// What cutting may add to each run: two chunks.
const RUN_OVERHEAD_BYTES: u64 = 2 * 256 * 1024;

#[derive(Parser)]
#[command(about = "Publishes and fetches a tree through an S3 server, and measures it.")]
struct Options {
    /// Size of the tree.
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// The same seed makes the same tree and the same changes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to work; about four times the size must be free. The system's temporary directory by default.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    match options.role {
        None => bench(&options),
        Some(role) => role.play(),
    }
}

fn bench(options: &Options) -> Result<()> {
    let work = trees::work_in(options.dir.as_deref())?;
    let (source, machine) = (work.path().join("source"), work.path().join("machine"));
    fs::create_dir(&machine)?;
    let size_bytes = tree::make(&source, options.size_mib * MIB, options.seed)?;
    let server = Server::start(&work.path().join("bucket"))?;

    let first: PublishedBy = child(&["publish", &server.endpoint, KEY, text(&source)?])?;
    let fetched: Fetched = child(&["fetch", &server.endpoint, KEY, &first.artifact, text(&machine)?])?;
    trees::compare(&source, &machine.join("releases").join(&first.artifact))?;

    let changed = tree::change(&source, RUNS, size_bytes / 50, options.seed)?;
    let second: PublishedBy = child(&["publish", &server.endpoint, KEY, text(&source)?, &first.artifact])?;
    let update: Fetched = child(&["fetch", &server.endpoint, KEY, &second.artifact, text(&machine)?, &first.artifact])?;
    trees::compare(&source, &machine.join("releases").join(&second.artifact))?;
    report(size_bytes, changed, &first, &fetched, &second, &update);
    Ok(())
}

fn report(
    size_bytes: u64,
    changed: u64,
    first: &PublishedBy,
    fetched: &Fetched,
    second: &PublishedBy,
    update: &Fetched,
) {
    let (size, upload_max) = (size_bytes as f64, (changed + RUNS * RUN_OVERHEAD_BYTES) as f64);
    let rss = first.usage.peak_rss_mib.max(second.usage.peak_rss_mib);
    let mut report = Report::new("store");
    report.figure("size_bytes", size, Goal::None);
    report.figure("publish_gb_per_cpu_second", size / GB / first.usage.cpu_seconds, Goal::None);
    report.figure("publish_wall_seconds", first.wall_seconds, Goal::None);
    report.figure("uploaded_bytes", first.uploaded_bytes as f64, Goal::None);
    report.figure("fetch_gb_per_cpu_second", size / GB / fetched.usage.cpu_seconds, Goal::None);
    report.figure("fetch_wall_seconds", fetched.wall_seconds, Goal::None);
    report.figure("fetch_peak_rss_mib", fetched.usage.peak_rss_mib, Goal::None);
    report.figure("peak_rss_mib", rss, Goal::AtMost(256.0));
    report.figure("changed_bytes", changed as f64, Goal::None);
    report.figure("second_upload_bytes", second.uploaded_bytes as f64, Goal::AtMost(upload_max));
    report.figure("second_publish_gb_per_cpu_second", size / GB / second.usage.cpu_seconds, Goal::None);
    report.figure("second_fetched_bytes", update.fetched_bytes as f64, Goal::None);
    report.print();
}
