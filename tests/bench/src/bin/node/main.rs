//! `make bench-node`: what an agent spends on each GB that it gets from another one, and that it sends, and how much memory it takes meanwhile;
//! beside one aria2 that gets the same files from another.
//!
//! ```text
//!  bucket ──▶ first agent ──▶ second agent          aria2 (seed) ──▶ aria2 (leech)
//!                   └─ its release is the seed's content ─┘
//! ```
//!
//! Everything is on the loopback interface and one disk. CPU seconds are those of one process alone, in user and kernel mode, its children
//! not among them; they are read within 20 ms of what they are read for.

#![allow(clippy::print_stderr, reason = "progress, for whoever waits")]

mod aria2;
mod ours;
mod readings;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::Parser;
use longshore_bench::{Goal, Report, trees};

use crate::{
    ours::Ours,
    readings::{Passage, per_gb},
};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
/// Of content, usually and with `--full`.
const USUAL_BYTES: u64 = 2 * GIB;
const FULL_BYTES: u64 = 10_000_000_000;
/// Two buckets, and packs and release of two agents. What the worker has is gone before the agents have anything, and all but one before
/// aria2 has.
const COPIES: u64 = 6;
/// What is left free on the disk for others.
const SPARE_BYTES: u64 = 4 * GIB;
/// Of each step.
pub(crate) const BOUND: Duration = Duration::from_secs(600);

#[derive(Parser)]
struct Arguments {
    /// 10 GB instead of 2 GiB
    #[arg(long)]
    full: bool,
    /// So many MiB, for who works on it
    #[arg(long)]
    mib: Option<u64>,
    /// Where to work; six times the size must be free. The system's temporary directory by default.
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let Arguments { full, mib, dir } = Arguments::parse();
    let wanted = mib.map_or(if full { FULL_BYTES } else { USUAL_BYTES }, |mib| mib * MIB);
    let work = trees::work_in(dir.as_deref())?;
    let room = trees::room(work.path(), COPIES, SPARE_BYTES)?;
    ensure!(room > MIB, "the disk of {} is full", work.path().display());
    if room < wanted {
        eprintln!("node: the disk has room for {} MiB only, instead of {} MiB", room / MIB, wanted / MIB);
    }
    let bytes = wanted.min(room);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (ours, aria2) = runtime.block_on(measure(work.path(), bytes))?;
    report(bytes, &ours, aria2).print();
    Ok(ExitCode::SUCCESS)
}

/// One after the other, so that neither has to share the cores. Without aria2 there is a figure less, and not none.
async fn measure(work: &Path, bytes: u64) -> Result<(Ours, Result<Passage>)> {
    let folder = work.join("ours");
    let ours = ours::measure(&folder, bytes).await?;
    eprintln!("node: ours took {:.1} s from peer to peer; now aria2", ours.passage.receiver.seconds);
    let content = work.join("content");
    fs::rename(&ours.release, &content)?;
    fs::remove_dir_all(&folder)?;
    rustix::fs::sync();
    let aria2 = aria2::measure(work, &content).await;
    Ok((ours, aria2))
}

fn report(bytes: u64, ours: &Ours, aria2: Result<Passage>) -> Report {
    let Ours { passage, installed, .. } = ours;
    let mut report = Report::new("node");
    report.figure("receive_cpu_s_per_gb", passage.receive_cpu_s_per_gb(), Goal::AtMost(1.0));
    report.figure("send_cpu_s_per_gb", passage.send_cpu_s_per_gb(), Goal::AtMost(0.4));
    report.figure("active_rss_mib", passage.receiver.peak_rss_mib, Goal::AtMost(64.0));
    report.figure("install_cpu_s_per_gb", per_gb(installed.cpu_seconds, ours.release_bytes), Goal::None);
    report.figure("installed_rss_mib", installed.peak_rss_mib, Goal::None);
    let from_bucket = per_gb(ours.from_bucket.cpu_seconds, ours.from_bucket_bytes);
    report.figure("bucket_receive_cpu_s_per_gb", from_bucket, Goal::None);
    let share = passage.sent_bytes as f64 / passage.received_bytes as f64;
    report.figure("from_peers_share", share, Goal::AtLeast(0.99));
    report.figure("fetch_seconds", passage.receiver.seconds, Goal::None);
    report.figure("install_seconds", installed.seconds, Goal::None);
    report.figure("idle_cpu_percent", passage.idle * 100.0, Goal::None);
    compare(&mut report, aria2);
    report.figure("gib", bytes as f64 / GIB as f64, Goal::None);
    report
}

fn compare(report: &mut Report, aria2: Result<Passage>) {
    match aria2 {
        Ok(passage) => {
            report.figure("aria2_receive_cpu_s_per_gb", passage.receive_cpu_s_per_gb(), Goal::None);
            report.figure("aria2_send_cpu_s_per_gb", passage.send_cpu_s_per_gb(), Goal::None);
            report.figure("aria2_rss_mib", passage.receiver.peak_rss_mib, Goal::None);
            report.figure("aria2_fetch_seconds", passage.receiver.seconds, Goal::None);
        }
        Err(error) => {
            let note = format!("{error:#}");
            for key in ["aria2_receive_cpu_s_per_gb", "aria2_send_cpu_s_per_gb", "aria2_rss_mib", "aria2_fetch_seconds"]
            {
                report.missing(key, &note);
            }
        }
    }
}
