//! `make bench-swarm-sim`: a region of 100,000 machines that gets 10 GB, simulated with the policy that runs; how far such a
//! simulation is from finer ones and from measurements; and what of half an hour a whole release of that size takes.
//!
//! ```text
//! plan (scenarios) ─▶ children: a process for each run, so many at once as cores ─▶ figures ─┬─▶ table of runs
//!  `swarm lab` ─▶ lab: the same topologies, simulated ─▶ error ─────────────────────────────┼─▶ table of hops (pipeline)
//!                                                                                            └─▶ report
//! ```
//!
//! A run is deterministic, so that a busy machine changes nothing but how long it takes. What is not done in time is null.

#![allow(clippy::print_stdout, reason = "a benchmark's result is what it prints")]
#![allow(clippy::print_stderr, reason = "progress is told to people")]

mod children;
mod lab;
mod pipeline;
mod plan;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use longshore_bench::{Goal, Report};
use serde_json::json;

use self::children::Ran;

/// All runs together; what is not done then is null.
const QUICK: Duration = Duration::from_secs(450);
const FULL: Duration = Duration::from_secs(3 * 60 * 60);

#[derive(Parser)]
#[command(about = "Simulates large regions with the policy that runs.")]
struct Options {
    /// A million nodes as well, 100,000 in every run, and three hours for all of it
    #[arg(long)]
    full: bool,
    /// What a laboratory measured before: lines of JSON, {"topology": {fields of a scenario}, "measured_s": seconds, "calibrates": false};
    /// without it, `swarm lab` measures now
    #[arg(long, env = "LAB", value_name = "FILE")]
    lab: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// One run, of the scenario on standard input
    #[command(hide = true)]
    Simulate,
}

fn main() -> Result<()> {
    let options = Options::parse();
    match options.role {
        None => bench(&options),
        Some(Role::Simulate) => children::simulate_one(),
    }
}

fn bench(options: &Options) -> Result<()> {
    let begun = Instant::now();
    let deadline = begun + if options.full { FULL } else { QUICK };
    // Before anything else, as it needs the machine for itself; and a file that is wrong is said at once.
    let lab_error = match &options.lab {
        Some(file) => Ok(lab::error_percent(file)?),
        None => lab::measure_and_judge().map_err(|error| format!("{error:#}")),
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut runs = children::run_all(plan::runs(options.full), cores, deadline)?;
    if options.full {
        runs.extend(children::run_all(vec![plan::million_base()], 1, deadline)?);
        runs.extend(million(&runs, deadline)?);
    }
    print_runs(&runs);
    let hops = pipeline::hops(last_of(&runs, plan::REGION).ok());
    println!("{}", pipeline::table(&hops));
    report(&runs, &hops, lab_error, options.full, begun);
    Ok(())
}

/// Alone, and only where a tenth of it says that there is memory for it: a machine that swaps is of no use to others.
fn million(runs: &[Ran], deadline: Instant) -> Result<Vec<Ran>> {
    let run = plan::million();
    let needed = children::figures_of(runs, plan::MILLION_BASE).map(|base| {
        let times = f64::from(run.scenario.nodes) / f64::from(base.nodes);
        (base.peak_rss_mib * times, children::available_mib())
    });
    let figures = match needed {
        Ok((needed, Some(available))) if needed > available => {
            Err(format!("it needs about {needed:.0} MiB of memory, and {available:.0} are free"))
        }
        Ok(_) => return children::run_all(vec![run], 1, deadline),
        Err(note) => Err(format!("what it needs is not known: {note}")),
    };
    Ok(vec![Ran { run, figures }])
}

fn print_runs(runs: &[Ran]) {
    let mut table = Table::new();
    let header =
        ["run", "nodes", "packs", "p50 s", "p99 s", "last s", "at least s", "bucket", "rack", "MiB", "CPU s", "wall s"];
    table.load_style(UTF8_BORDERS_ONLY).set_header(header);
    for Ran { run, figures } in runs {
        let time = |seconds: Option<f64>| seconds.map_or("–".to_owned(), |seconds| format!("{seconds:.3}"));
        match figures {
            Ok(f) => table.add_row([
                run.name.to_owned(),
                f.nodes.to_string(),
                f.packs.to_string(),
                time(f.p50_s),
                time(f.p99_s),
                time(f.last_s),
                time(Some(f.bound_s)),
                format!("{:.3}", f.bucket_copies),
                format!("{:.3}", f.rack_copies_max),
                format!("{:.0}", f.peak_rss_mib),
                format!("{:.1}", f.cpu_s),
                format!("{:.1}", f.wall_s),
            ]),
            Err(_) => table.add_row([run.name, "–"]),
        };
    }
    println!("{table}");
    for Ran { run, figures } in runs {
        if let Err(note) = figures {
            println!("{}: {note}", run.name);
        }
    }
}

/// When the last node of a run was complete, or why that is not known.
fn last_of(runs: &[Ran], name: &str) -> Result<f64, String> {
    children::figures_of(runs, name)?.last()
}

/// How far coarse packs are from true ones, the worst of median, p99 and last.
fn fluid_error_percent(runs: &[Ran]) -> Result<f64, String> {
    let times = |name| children::figures_of(runs, name)?.times();
    let (coarse, exact) = (times(plan::FLUID_COARSE)?, times(plan::FLUID_TRUE)?);
    Ok(coarse.iter().zip(exact).map(|(coarse, exact)| 100.0 * (coarse / exact - 1.0).abs()).fold(0.0, f64::max))
}

fn million_over_100k(runs: &[Ran], full: bool) -> Result<f64, String> {
    if !full {
        return Err("a million nodes take too long; FULL=1 runs them".to_owned());
    }
    Ok(last_of(runs, plan::MILLION)? / last_of(runs, plan::MILLION_BASE)?)
}

fn report(runs: &[Ran], hops: &[pipeline::Hop], lab_error: Result<f64, String>, full: bool, begun: Instant) {
    let mut report = Report::new("swarm-sim");
    let mut tell = |key: &str, value: Result<f64, String>, goal: Goal| match value {
        Ok(value) => report.figure(key, value, goal),
        Err(note) => report.missing(key, &note),
    };
    let network = children::figures_of(runs, plan::NETWORK);
    tell("nodes", Ok(f64::from(plan::NODES)), Goal::None);
    tell("network_only_s", last_of(runs, plan::NETWORK), Goal::AtMost(3.6));
    tell("ten_gbit_s", last_of(runs, plan::TEN_GBIT), Goal::None);
    tell("with_disk_s", last_of(runs, plan::DISK), Goal::AtMost(5.6));
    tell("reuse95_s", last_of(runs, plan::REUSE), Goal::AtMost(1.5));
    // The last one is a slow machine, whatever the swarm does.
    let faults = children::figures_of(runs, plan::FAULTS).and_then(|figures| Ok(figures.times()?[1]));
    tell("faults_p99_s", faults, Goal::None);
    tell("million_over_100k", million_over_100k(runs, full), Goal::None);
    tell("bucket_copies", network.map(|figures| figures.bucket_copies), Goal::AtMost(1.02));
    tell("fluid_error_percent", fluid_error_percent(runs), Goal::AtMost(5.0));
    tell("lab_error_percent", lab_error, Goal::AtMost(5.0));
    tell("wall_s", Ok(begun.elapsed().as_secs_f64()), Goal::None);
    let done = runs.iter().filter_map(|ran| ran.figures.as_ref().ok());
    let peak = done.map(|figures| figures.peak_rss_mib).reduce(f64::max);
    tell("peak_rss_mib", peak.ok_or_else(|| "no run was done".to_owned()), Goal::None);
    let minutes = pipeline::minutes(hops).ok_or_else(|| "the region's run has no figure".to_owned());
    tell("whole_pipeline_minutes", minutes, Goal::AtMost(30.0));
    report.detail("note", json!(plan::note(full)));
    report.detail("runs", runs.iter().map(Ran::json).collect());
    report.detail("hops", pipeline::json(hops));
    report.print();
}
