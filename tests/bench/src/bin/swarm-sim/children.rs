//! Each run in a process of its own: what it took is its own, its memory is free after it, and one that takes too long is ended.
//!
//! The parent writes the scenario as one line and keeps the pipe open: a child whose parent is gone ends.

use std::{
    io::{self, BufRead, Read, Write},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use longshore_bench::Usage;
use longshore_swarm_sim::{Clock, Outcome, Scenario, simulate};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::plan::Run;

/// How often the parent looks whether a child is done.
const LOOK: Duration = Duration::from_millis(50);

/// What a child tells of its run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) nodes: u32,
    pub(crate) packs: u32,
    pub(crate) incomplete: u32,
    pub(crate) died: u32,
    pub(crate) p50_s: Option<f64>,
    pub(crate) p99_s: Option<f64>,
    /// When all that live were complete.
    pub(crate) last_s: Option<f64>,
    pub(crate) bound_s: f64,
    pub(crate) bucket_copies: f64,
    pub(crate) rack_copies_max: f64,
    pub(crate) cpu_s: f64,
    pub(crate) wall_s: f64,
    pub(crate) peak_rss_mib: f64,
}

impl Figures {
    pub(crate) fn last(&self) -> Result<f64, String> {
        Ok(self.times()?[2])
    }

    /// Median, p99 and last; nothing of a run that some did not finish.
    pub(crate) fn times(&self) -> Result<[f64; 3], String> {
        let all = (self.p50_s, self.p99_s, self.last_s);
        match all {
            (Some(p50), Some(p99), Some(last)) if self.incomplete == 0 => Ok([p50, p99, last]),
            _ => Err(format!("{} of {} nodes were not complete at the end", self.incomplete, self.nodes)),
        }
    }
}

/// A run and what came of it, or why nothing did.
pub(crate) struct Ran {
    pub(crate) run: Run,
    pub(crate) figures: Result<Figures, String>,
}

impl Ran {
    pub(crate) fn json(&self) -> Value {
        match &self.figures {
            Ok(figures) => json!({"name": self.run.name, "figures": figures}),
            Err(note) => json!({"name": self.run.name, "figures": null, "note": note}),
        }
    }
}

pub(crate) fn figures_of<'a>(runs: &'a [Ran], name: &str) -> Result<&'a Figures, String> {
    let ran = runs.iter().find(|ran| ran.run.name == name);
    ran.ok_or_else(|| "it was not run".to_owned())?.figures.as_ref().map_err(Clone::clone)
}

/// So many at once, in their order; what is not done at the deadline is ended.
pub(crate) fn run_all(runs: Vec<Run>, at_once: usize, deadline: Instant) -> Result<Vec<Ran>> {
    let count = runs.len();
    let (waiting, done) = (Mutex::new(runs.into_iter().enumerate()), Mutex::new(Vec::with_capacity(count)));
    let next = || waiting.lock().ok()?.next();
    thread::scope(|scope| {
        for _ in 0..at_once.min(count) {
            scope.spawn(|| {
                while let Some((number, run)) = next() {
                    let figures = run_one(&run, deadline);
                    if let Ok(mut done) = done.lock() {
                        done.push((number, Ran { run, figures }));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().map_err(|_| anyhow!("a thread died"))?;
    ensure!(done.len() == count, "{} of {count} runs have no answer", count - done.len());
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, ran)| ran).collect())
}

/// Memory that programs can have without others being moved out.
pub(crate) fn available_mib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

fn run_one(run: &Run, deadline: Instant) -> Result<Figures, String> {
    let begun = Instant::now();
    if begun >= deadline {
        return Err("there was no time left for it".to_owned());
    }
    eprintln!("swarm-sim: {} begins", run.name);
    let figures = in_a_child(&run.scenario, deadline).map_err(|error| format!("{error:#}"));
    let outcome = if figures.is_ok() { "is done" } else { "has no figures" };
    eprintln!("swarm-sim: {} {outcome} after {:.0} s", run.name, begun.elapsed().as_secs_f64());
    figures
}

fn in_a_child(scenario: &Scenario, deadline: Instant) -> Result<Figures> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    let mut child = command.arg("simulate").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("the child's input")?;
    writeln!(input, "{}", serde_json::to_string(scenario)?)?;
    let status = wait(&mut child, deadline)?;
    drop(input);
    ensure!(status.success(), "its process ended with {status}");
    let mut answer = String::new();
    child.stdout.take().context("the child's output")?.read_to_string(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// A child's answer is one short line, which a pipe holds: nobody need read meanwhile.
fn wait(child: &mut Child, deadline: Instant) -> Result<std::process::ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(anyhow!("it was ended after {:.0} s, as the time was up", begun.elapsed().as_secs_f64()));
        }
        thread::sleep(LOOK);
    }
}

/// In the child: the scenario on standard input, the figures on standard output.
pub(crate) fn simulate_one() -> Result<()> {
    let begun = Instant::now();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    thread::spawn(|| {
        let _ = io::stdin().lock().read(&mut [0]);
        std::process::exit(1);
    });
    let outcome = simulate(&Scenario::from_json(&line)?, Clock::NONE)?;
    let used = Usage::of_this_process().context("what this process used is not under /proc")?;
    println!("{}", serde_json::to_string(&figures(&outcome, used, begun.elapsed()))?);
    Ok(())
}

fn figures(outcome: &Outcome, used: Usage, wall: Duration) -> Figures {
    Figures {
        nodes: outcome.nodes,
        packs: outcome.packs,
        incomplete: outcome.incomplete,
        died: outcome.died,
        p50_s: outcome.p50_seconds,
        p99_s: outcome.p99_seconds,
        last_s: outcome.max_seconds,
        bound_s: outcome.bound_seconds,
        bucket_copies: outcome.bucket_copies,
        rack_copies_max: outcome.rack_copies_max,
        cpu_s: used.cpu_seconds,
        wall_s: wall.as_secs_f64(),
        peak_rss_mib: used.peak_rss_mib,
    }
}
