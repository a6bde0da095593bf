//! `make bench-queue`: how many jobs the queue carries, over HTTP and in the processor alone, and how soon one starts.

mod http;
mod processor;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use longshore_bench::{Goal, Report};

const PROCESSOR_GOAL: Goal = Goal::AtLeast(30_000.0);

#[derive(Parser)]
struct Arguments {
    /// More jobs, longer runs
    #[arg(long)]
    full: bool,
    /// Only the processor, without HTTP
    #[arg(long)]
    processor: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let times = if arguments.full { 5 } else { 1 };
    let processor = runtime.block_on(processor::measure(60_000 * times))?;
    let mut report = Report::new("queue");
    if arguments.processor {
        report.figure("processor_jobs_per_second", processor.jobs_per_second, PROCESSOR_GOAL);
        report.figure("processor_cpu_us_per_job", processor.cpu_us_per_job, Goal::None);
        report.print();
        return Ok(ExitCode::SUCCESS);
    }
    let http = runtime.block_on(http::measure(10_000 * times, 20 * times))?;
    report.figure("jobs_per_second", http.jobs_per_second, Goal::AtLeast(2_000.0));
    report.figure("processor_jobs_per_second", processor.jobs_per_second, PROCESSOR_GOAL);
    report.figure("processor_cpu_us_per_job", processor.cpu_us_per_job, Goal::None);
    let percentile = |share: f64| {
        let index = (http.queue_to_start.len() as f64 * share) as usize;
        http.queue_to_start.get(index.min(http.queue_to_start.len() - 1)).map_or(0.0, millis)
    };
    report.figure("queue_to_start_p50_ms", percentile(0.50), Goal::None);
    report.figure("queue_to_start_p99_ms", percentile(0.99), Goal::AtMost(100.0));
    report.figure("workers", http::WORKERS as f64, Goal::None);
    report.print();
    Ok(ExitCode::SUCCESS)
}

fn millis(duration: &Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
