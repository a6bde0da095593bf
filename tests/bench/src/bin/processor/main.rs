//! `make bench-processor`: build requests into facts and RocksDB state, exactly once, on a real broker.
//!
//! Three programs do it one after the other, on fresh topics of the same broker: the bare loop, which only consumes and produces in
//! transactions and is the ceiling; Longshore's runtime; and Kafka Streams with the same projection.

mod bare;
mod ours;
mod requests;
mod streams;
mod tally;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use longshore_bench::{Goal, Report};
use longshore_kafka::{Cluster, Config};

#[derive(Parser)]
struct Arguments {
    /// Five rounds instead of three
    #[arg(long)]
    full: bool,
    /// So many requests
    #[arg(long, default_value_t = 1_000_000)]
    requests: u64,
    /// Leaves the comparators out, to look at ours alone
    #[arg(long)]
    only_ours: bool,
    /// So many rounds
    #[arg(long)]
    rounds: Option<u32>,
}

fn main() -> Result<ExitCode> {
    let Arguments { full, requests, only_ours, rounds } = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let cluster = Cluster::start(&Config { heap: "1g".to_owned(), ..Config::new(1) })?;
    let (mut ceiling, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rebuilds, mut starts, mut restores) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds.unwrap_or(if full { 5 } else { 3 }) {
        let log = runtime.block_on(requests::fill(cluster.brokers(), &format!("ours-{round}."), requests))?;
        if !only_ours {
            ceiling.push(bare::run(cluster.brokers(), &log.requests, &log.facts, requests)?);
        }
        let run = runtime.block_on(ours::run(&log, requests, || tally::Tally))?;
        ours.push(run.events_per_second);
        rebuilds.push(run.rebuild_facts_per_second);
        starts.push(run.snapshot_start_seconds);
        if !only_ours {
            let run = streams::run(cluster.brokers(), &log.requests, requests)?;
            ensure!(run.sum == requests, "Streams has counted {} of {requests}", run.sum);
            theirs.push(run.events_per_second);
            restores.push(run.restore_records_per_second);
        }
    }
    let mut report = Report::new("processor");
    report.figure("requests", requests as f64, Goal::None);
    let (ours, rebuild, start) = (median(ours), median(rebuilds), median(starts));
    if only_ours {
        report.figure("ours_events_per_second", ours, Goal::None);
        report.figure("rebuild_facts_per_second", rebuild, Goal::AtLeast(300_000.0));
        report.figure("snapshot_start_seconds", start, Goal::None);
        report.print();
        return Ok(ExitCode::SUCCESS);
    }
    let (ceiling, theirs, restore) = (median(ceiling), median(theirs), median(restores));
    report.figure("ceiling_events_per_second", ceiling, Goal::None);
    report.figure("ours_events_per_second", ours, Goal::None);
    report.figure("streams_events_per_second", theirs, Goal::None);
    report.figure("ratio", ours / theirs, Goal::AtLeast(2.0));
    report.figure("of_ceiling", ours / ceiling, Goal::AtLeast(0.8));
    report.figure("rebuild_facts_per_second", rebuild, Goal::AtLeast(300_000.0));
    report.figure("streams_restore_records_per_second", restore, Goal::None);
    report.figure("rebuild_ratio", rebuild / restore, Goal::AtLeast(3.0));
    report.figure("snapshot_start_seconds", start, Goal::None);
    report.print();
    Ok(ExitCode::SUCCESS)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
