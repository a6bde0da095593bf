//! `make bench-publish`: gigabytes of real files, published new and unchanged, and fetched, against `rclone copy` of a tarball of them.
//!
//! The parent gathers the tree, and starts an S3 server, publishers, fetchers and rclone as processes of their own, so that CPU time and
//! memory are those of one role alone. Everything that is timed begins with its input in the page cache and nothing left to write
//! to disk. What was fetched is compared byte by byte with what was published.

#![allow(clippy::print_stderr, reason = "what the disk has no room for is said to people")]

mod content;
mod rclone;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use clap::Parser;
use longshore_bench::{
    Goal, Report,
    roles::{Fetched, PublishedBy, Role, Server, child, text},
    s3::KEY,
    trees,
};

const GB: u64 = 1_000_000_000;
/// The tree, its tarball, the bucket, and rclone's copy or the fetched tree; with some room.
const COPIES: u64 = 5;
/// What is left free on the disk for others.
const SPARE_BYTES: u64 = 10 * GB;
/// Publishing new and rclone take turns so often, and the fastest run of each counts.
const ROUNDS: usize = 2;
const UNCHANGED_ROUNDS: usize = 3;

#[derive(Parser)]
#[command(about = "Publishes and fetches real files through an S3 server on disk, beside rclone.")]
struct Options {
    /// 10 GB instead of 4
    #[arg(long)]
    full: bool,
    /// So many GB
    #[arg(long)]
    size_gb: Option<u64>,
    /// Where to work; five times the size must be free. The system's temporary directory by default.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Leaves rclone out, to look at ours alone
    #[arg(long)]
    only_ours: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    match &options.role {
        None => bench(&options),
        Some(role) => role.play(),
    }
}

fn bench(options: &Options) -> Result<()> {
    let work = trees::work_in(options.dir.as_deref())?;
    let work = work.path();
    let wanted = options.size_gb.unwrap_or(if options.full { 10 } else { 4 }) * GB;
    let room = trees::room(work, COPIES, SPARE_BYTES)?;
    if room < wanted {
        eprintln!("publish: the disk has room for {} MB only, instead of {} MB", room / 1_000_000, wanted / 1_000_000);
    }
    let source = work.join("source");
    // The first gigabyte is a tree of its own, to see whether memory grows with the tree.
    let (first, rest) = (source.join("first"), source.join("rest"));
    let size = content::gather(&first, &rest, GB, wanted.min(room))?;

    let server = Server::start(&work.join("server"))?;
    settle();
    let small: PublishedBy = child(&["publish", &server.endpoint, "small", text(&first)?])?;
    let mut runs = Runs { new: Vec::new(), unchanged: Vec::new(), rclone: Vec::new() };
    let tarball = work.join("tree.tar");
    let stored = work.join("server/buckets").join(rclone::BUCKET).join(rclone::OBJECT);
    if !options.only_ours {
        rclone::tar(&source, &tarball)?;
    }
    for _ in 0..ROUNDS {
        bucket_removed(work, KEY)?;
        settle();
        runs.new.push(child(&["publish", &server.endpoint, KEY, text(&source)?])?);
        if !options.only_ours {
            for settings in rclone::SETTINGS {
                settle();
                runs.rclone.push(rclone::copy(&server.endpoint, &tarball, &stored, settings)?);
                bucket_removed(work, rclone::BUCKET)?;
            }
        }
    }
    fs::remove_file(&tarball).or_else(|error| if options.only_ours { Ok(()) } else { Err(error) })?;
    let artifact = runs.new[0].artifact.clone();
    for _ in 0..UNCHANGED_ROUNDS {
        settle();
        runs.unchanged.push(child(&["publish", &server.endpoint, KEY, text(&source)?, &artifact])?);
    }
    let same = runs.new.iter().chain(&runs.unchanged).all(|run: &PublishedBy| run.artifact == artifact);
    ensure!(same, "the same tree was published under different names");

    let machine = work.join("machine");
    fs::create_dir(&machine)?;
    settle();
    let fetched: Fetched = child(&["fetch", &server.endpoint, KEY, &artifact, text(&machine)?])?;
    trees::compare(&source, &machine.join("releases").join(&artifact))?;
    runs.report(&small, &fetched, size);
    Ok(())
}

/// Nothing of what came before is still being written while the next is timed.
fn settle() {
    rustix::fs::sync();
}

fn bucket_removed(work: &Path, bucket: &str) -> Result<()> {
    match fs::remove_dir_all(work.join("server/buckets").join(bucket)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

struct Runs {
    new: Vec<PublishedBy>,
    unchanged: Vec<PublishedBy>,
    rclone: Vec<f64>,
}

impl Runs {
    fn report(self, small: &PublishedBy, fetched: &Fetched, size: u64) {
        let gb = size as f64 / GB as f64;
        let fastest = |runs: &[PublishedBy]| runs.iter().map(|run| run.wall_seconds).fold(f64::INFINITY, f64::min);
        let least_cpu =
            |runs: &[PublishedBy]| runs.iter().map(|run| run.usage.cpu_seconds).fold(f64::INFINITY, f64::min);
        let publishers = self.new.iter().chain(&self.unchanged).map(|run| run.usage.peak_rss_mib);
        let rss = publishers.fold(fetched.usage.peak_rss_mib, f64::max);
        let mut report = Report::new("publish");
        report.figure("size_gb", gb, Goal::None);
        report.figure("files", self.new[0].files as f64, Goal::None);
        report.figure("unique_share", fetched.unique_bytes as f64 / size as f64, Goal::None);
        report.figure("uploaded_gb", self.new[0].uploaded_bytes as f64 / GB as f64, Goal::None);
        report.figure("new_seconds", fastest(&self.new), Goal::None);
        report.figure("new_gb_per_cpu_second", gb / least_cpu(&self.new), Goal::None);
        report.figure("unchanged_seconds", fastest(&self.unchanged), Goal::None);
        report.figure("unchanged_gb_per_core_second", gb / least_cpu(&self.unchanged), Goal::AtLeast(1.0));
        report.figure("unchanged_uploaded_bytes", self.unchanged[0].uploaded_bytes as f64, Goal::None);
        if self.rclone.is_empty() {
            report.missing("rclone_ratio", "left out");
        } else {
            let rclone = self.rclone.iter().copied().fold(f64::INFINITY, f64::min);
            report.figure("rclone_seconds", rclone, Goal::None);
            report.figure("rclone_ratio", rclone / fastest(&self.new), Goal::AtLeast(1.0));
        }
        report.figure("fetch_seconds", fetched.wall_seconds, Goal::None);
        report.figure("fetch_gb_per_cpu_second", gb / fetched.usage.cpu_seconds, Goal::None);
        report.figure("fetch_peak_rss_mib", fetched.usage.peak_rss_mib, Goal::None);
        report.figure("one_gb_peak_rss_mib", small.usage.peak_rss_mib, Goal::None);
        report.figure("peak_rss_mib", rss, Goal::AtMost(256.0));
        report.print();
    }
}
