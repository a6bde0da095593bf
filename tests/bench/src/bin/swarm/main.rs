//! `make bench-swarm`: one file from a bucket to all nodes of a region, on a network of namespaces whose links have real rates, against
//! BitTorrent clients on the same one.
//!
//! No tool can be done before T* = max(F/bucket, F/node, F/uplink, N·F/(bucket + all nodes)), by the rates that plain TCP has there.
//!
//! `swarm lab FILE` measures ours alone on networks of several shapes, for the simulator to be held against.

#![allow(clippy::print_stderr, reason = "progress, for whoever waits")]

mod lab;
mod measured;
mod ours;
mod rates;
mod torrents;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use longshore_bench::{Goal, Report, bittorrent::tracker, memory};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};

use crate::{
    lab::{Counted, Lab, Layout},
    ours::{Installed, Ours},
    rates::Rates,
    torrents::Tool,
};

/// 32 Mbit/s to a node, an uplink of a quarter of its rack, 128 from the bucket: at higher rates two cores are busy with what twenty
/// machines do, and a run says nothing of the tool.
const LAYOUT: Layout =
    Layout { racks: 4, nodes_per_rack: 5, node_kbit: 32_000, uplink_kbit: 40_000, bucket_kbit: 128_000 };
/// A run during which the machine's cores were busier says something of the machine, not of the tool.
const BUSY_MAX: f64 = 0.75;
/// A quick run begins no round of another tool that would end later, by what its last one took. The fastest of them comes first.
const QUICK: Duration = Duration::from_secs(420);
const MIB: usize = 1024 * 1024;
const MEMORY: &str = "/dev/shm";
const FOLDER_MARK: &str = "longshore-swarm-";
const CHANGED: f64 = 0.05;

#[derive(Parser)]
struct Arguments {
    /// 128 MiB and ten rounds instead of 64 MiB and three
    #[arg(long)]
    full: bool,
    /// Only ours, for who works on it
    #[arg(long)]
    ours: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// What ours takes on five networks, each a line for `swarm-sim`
    Lab { file: PathBuf },
    #[command(hide = true, subcommand)]
    Play(Play),
}

/// What a child process does, on a machine of the lab.
#[derive(Subcommand)]
enum Play {
    Source,
    Sink { address: String },
    Tracker { port: u16 },
}

/// One distribution.
#[derive(Debug)]
pub(crate) struct Round {
    /// Of each node, until it had all.
    pub(crate) seconds: Vec<f64>,
    /// Share of the machine's CPU time that was used meanwhile.
    pub(crate) busy: f64,
    pub(crate) before: Counted,
    pub(crate) after: Counted,
}

impl Round {
    fn is_valid(&self) -> bool {
        self.busy <= BUSY_MAX
    }

    fn max(&self) -> f64 {
        self.seconds.iter().copied().fold(0.0, f64::max)
    }

    fn percentile(&self, percent: usize) -> f64 {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds[((seconds.len() * percent).div_ceil(100)).clamp(1, seconds.len()) - 1]
    }

    /// Copies of the file that left the bucket, and that came into the rack with most of them.
    fn copies(&self, bytes: usize, rates: &Rates) -> (f64, f64) {
        let copies = |before: u64, after: u64| (after - before) as f64 * rates.payload_share / bytes as f64;
        let racks = self.before.racks.iter().zip(&self.after.racks).map(|(before, after)| copies(*before, *after));
        (copies(self.before.bucket, self.after.bucket), racks.fold(0.0, f64::max))
    }
}

/// How busy the machine's cores are, from here on.
pub(crate) struct Busy {
    busy: u64,
    all: u64,
}

impl Busy {
    pub(crate) fn begin() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("a line")?;
        let ticks: Vec<u64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
        ensure!(ticks.len() >= 5, "/proc/stat says {line:?}");
        // Idle, and waiting for a disk. The guests' time is part of the user's.
        let all = ticks.iter().take(8).sum();
        Ok(Self { busy: all - ticks[3] - ticks[4], all })
    }

    pub(crate) fn share(&self) -> Result<f64> {
        let now = Self::begin()?;
        Ok((now.busy - self.busy) as f64 / (now.all - self.all).max(1) as f64)
    }
}

fn main() -> Result<ExitCode> {
    let Arguments { full, ours, command } = Arguments::parse();
    match command {
        Some(Command::Play(Play::Source)) => rates::source()?,
        Some(Command::Play(Play::Sink { address })) => rates::sink(&address)?,
        Some(Command::Play(Play::Tracker { port })) => tracker::serve(&TcpListener::bind(("0.0.0.0", port))?),
        Some(Command::Lab { file }) => as_root()?.block_on(measured::write(&file))?,
        None => {
            let (bytes, rounds) = if full { (128 * MIB, 10) } else { (64 * MIB, 3) };
            let until = (!full).then(|| Instant::now() + QUICK);
            as_root()?.block_on(measure((bytes, rounds), until, ours))?.print();
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn as_root() -> Result<tokio::runtime::Runtime> {
    ensure!(rustix::process::geteuid().is_root(), "network namespaces are made by root: run this as root");
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Memory, for no disk of this machine is that of twenty. What a run left there that was killed is removed.
fn folder() -> Result<tempfile::TempDir> {
    for entry in fs::read_dir(MEMORY)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| lab::is_abandoned(name, FOLDER_MARK)) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let prefix = format!("{FOLDER_MARK}{}-", std::process::id());
    Ok(tempfile::Builder::new().prefix(&prefix).tempdir_in(MEMORY)?)
}

/// Of one tool.
#[derive(Default)]
struct Measured {
    rounds: Vec<Round>,
    void: usize,
    errors: Vec<String>,
    /// Its last round, with all that starts and ends it.
    took: Duration,
}

impl Measured {
    fn take(&mut self, name: &str, played: Result<Round>) {
        match played {
            Ok(round) if round.is_valid() => {
                eprintln!("swarm: {name}: {:.2} s, CPU {:.0} %", round.max(), round.busy * 100.0);
                self.rounds.push(round);
            }
            Ok(round) => {
                eprintln!("swarm: {name}: void, CPU {:.0} % ({:.2} s)", round.busy * 100.0, round.max());
                self.void += 1;
            }
            Err(error) => {
                eprintln!("swarm: {name}: {error:#}");
                self.errors.push(format!("{error:#}"));
            }
        }
    }

    fn median(&self, of: impl Fn(&Round) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = self.rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    fn note(&self) -> String {
        format!(
            "no round counts: {} were void, as the CPU was busy above 75 %; {} failed",
            self.void,
            self.errors.len()
        )
    }
}

async fn measure((bytes, rounds): (usize, usize), until: Option<Instant>, only_ours: bool) -> Result<Report> {
    let folder = folder()?;
    let lab = Lab::build(LAYOUT)?;
    let rates = Rates::measure(&lab)?;
    let mbit = |rate: f64| rate * 8.0 / 1e6;
    eprintln!(
        "swarm: {} nodes; TCP carries {:.1} Mbit/s to a node, {:.1} over an uplink, {:.1} from the bucket; T* is {:.2} s",
        LAYOUT.nodes(),
        mbit(rates.node),
        mbit(rates.uplink),
        mbit(rates.bucket),
        rates.bound(&lab, bytes as u64)
    );
    let mut ours = Measured::default();
    let mut others: Vec<(Tool, Measured)> = Tool::ALL.into_iter().map(|tool| (tool, Measured::default())).collect();
    let (mut changed, mut from_bucket, mut assembled) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let files = Files::make(folder.path(), bytes, round as u64)?;
        // What all nodes hold is in memory.
        let held = (bytes * LAYOUT.nodes()) as u64;
        memory::warm(held);
        match play_ours(&lab, &folder.path().join("ours"), &files).await {
            Ok(played) => {
                from_bucket.push(played.from_bucket / bytes as f64);
                assembled.push(played.assembled);
                if played.changed.0.is_valid() {
                    changed.push(played.changed);
                }
                ours.take("ours", Ok(played.all_new));
            }
            Err(error) => ours.take("ours", Err(error)),
        }
        if !only_ours {
            for (tool, measured) in &mut others {
                let begun = Instant::now();
                if until.is_none_or(|until| begun + measured.took <= until) {
                    memory::warm(held);
                    measured.take(tool.name(), torrents::round(&lab, *tool, folder.path(), &files.new));
                    measured.took = begun.elapsed();
                } else {
                    eprintln!("swarm: {}: no time for another round; FULL=1 takes it", tool.name());
                }
            }
        }
    }
    Ok(report(&Figures {
        rates,
        bound: rates.bound(&lab, bytes as u64),
        bytes,
        rounds,
        ours,
        others,
        changed,
        from_bucket,
        assembled,
    }))
}

struct Files {
    new: PathBuf,
    changed: PathBuf,
}

impl Files {
    /// Bytes that nobody has yet; and the same with a twentieth of them replaced, in one piece.
    fn make(folder: &Path, bytes: usize, seed: u64) -> Result<Self> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut content = vec![0; bytes];
        random.fill(&mut content[..]);
        let files = Self { new: folder.join("file"), changed: folder.join("changed") };
        fs::write(&files.new, &content)?;
        let (from, length) = (bytes / 3, (bytes as f64 * CHANGED) as usize);
        random.fill(&mut content[from..from + length]);
        fs::write(&files.changed, &content)?;
        Ok(files)
    }
}

struct Played {
    all_new: Round,
    /// Of all nodes.
    from_bucket: f64,
    changed: (Round, f64),
    /// When the last node had the release in its place.
    assembled: f64,
}

async fn play_ours(lab: &Lab, folder: &Path, files: &Files) -> Result<Played> {
    let played = async {
        let ours = Ours::start(lab, folder).await?;
        let (all_new, installed) = ours.deploy(ours.publish(&files.new).await?).await?;
        let from_bucket = sum(&installed, |node| node.from_bucket);
        let assembled = installed.iter().map(|node| node.at).fold(0.0, f64::max);
        let (changed, installed) = ours.deploy(ours.publish(&files.changed).await?).await?;
        let needed = sum(&installed, |node| node.needed) / installed.len() as f64;
        anyhow::Ok(Played { all_new, from_bucket, changed: (changed, needed), assembled })
    };
    let played = played.await;
    // The next round begins with nothing.
    tokio::time::sleep(Duration::from_millis(200)).await;
    if played.is_ok() {
        fs::remove_dir_all(folder)?;
    }
    played
}

fn sum(installed: &[Installed], of: impl Fn(&Installed) -> f64) -> f64 {
    installed.iter().map(of).sum()
}

struct Figures {
    rates: Rates,
    bound: f64,
    bytes: usize,
    rounds: usize,
    ours: Measured,
    others: Vec<(Tool, Measured)>,
    changed: Vec<(Round, f64)>,
    /// Copies, by what the nodes say.
    from_bucket: Vec<f64>,
    assembled: Vec<f64>,
}

fn report(figures: &Figures) -> Report {
    let Figures { rates, bound, bytes, rounds, ours, others, changed, from_bucket, assembled } = figures;
    let mut report = Report::new("swarm");
    report.figure("bound_s", *bound, Goal::None);
    let mut put = |key: &str, value: Option<f64>, goal: Goal, note: &str| match value {
        Some(value) => report.figure(key, value, goal),
        None => report.missing(key, note),
    };
    let note = ours.note();
    let ours_max = ours.median(Round::max);
    put("ours_max_s", ours_max, Goal::None, &note);
    put("ours_p50_s", ours.median(|round| round.percentile(50)), Goal::None, &note);
    put("ours_p99_s", ours.median(|round| round.percentile(99)), Goal::None, &note);
    put("ours_assembled_s", median(assembled), Goal::None, &note);
    put("times_bound", ours_max.map(|max| max / bound), Goal::AtMost(1.15), &note);
    put("bucket_copies", median(from_bucket), Goal::AtMost(1.05), &note);
    put("rack_copies_worst", ours.median(|round| round.copies(*bytes, rates).1), Goal::AtMost(1.10), &note);
    let mut best: Option<f64> = None;
    for (tool, measured) in others {
        let (name, note) = (tool.name(), measured.note());
        let max = measured.median(Round::max);
        best = [best, max].into_iter().flatten().reduce(f64::min);
        put(&format!("{name}_max_s"), max, Goal::None, &note);
        put(
            &format!("{name}_bucket_copies"),
            measured.median(|round| round.copies(*bytes, rates).0),
            Goal::None,
            &note,
        );
        put(
            &format!("{name}_rack_copies_worst"),
            measured.median(|round| round.copies(*bytes, rates).1),
            Goal::None,
            &note,
        );
    }
    let ratio = best.zip(ours_max).map(|(best, ours)| best / ours);
    put("ratio_best_peer", ratio, Goal::AtLeast(1.0), "nobody to compare with");
    let times: Vec<f64> = changed.iter().map(|(round, _)| round.max()).collect();
    let needed: Vec<f64> = changed.iter().map(|(_, needed)| needed / (*bytes as f64 * CHANGED)).collect();
    put("changed5_max_s", median(&times), Goal::None, &note);
    put("changed5_bytes_over_missing", median(&needed), Goal::AtMost(1.05), &note);
    put("cpu_busy", ours.median(|round| round.busy), Goal::AtMost(BUSY_MAX), &note);
    report.figure("nodes", LAYOUT.nodes() as f64, Goal::None);
    report.figure("mib", (*bytes / MIB) as f64, Goal::None);
    report.figure("rounds", *rounds as f64, Goal::None);
    let counted = others.iter().map(|(tool, measured)| (tool.name().to_owned(), json!(measured.rounds.len())));
    report.detail("rounds_of_others", Value::Object(counted.collect()));
    report.detail(
        "mbit",
        json!({
            "node": rates.node * 8.0 / 1e6, "uplink": rates.uplink * 8.0 / 1e6, "bucket": rates.bucket * 8.0 / 1e6,
        }),
    );
    let failed = others.iter().filter(|(_, measured)| !measured.errors.is_empty());
    let failed = failed.map(|(tool, measured)| (tool.name().to_owned(), json!(measured.errors)));
    report.detail("errors", Value::Object(failed.collect()));
    report
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
