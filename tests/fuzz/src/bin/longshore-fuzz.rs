//! `make fuzz MINUTES=n`: hunts through every target in turn; what it finds is put into the corpus, and the exit status is 1.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::Parser;
use longshore_fuzz::{
    corpus,
    hunt::Hunt,
    supervise::{FOUND, hunt_apart, hunt_inside, share},
    targets,
};

#[derive(Parser)]
struct Arguments {
    /// For all targets together
    #[arg(long, conflicts_with = "seconds")]
    minutes: Option<f64>,
    /// For each target
    #[arg(long)]
    seconds: Option<f64>,
    /// Inputs for each target, at most
    #[arg(long, default_value_t = u64::MAX)]
    cases: u64,
    /// Repeats a run; without it, another one each time
    #[arg(long)]
    seed: Option<u64>,
    /// Only these
    #[arg(long)]
    target: Vec<String>,
    /// Where inputs lie, and findings are put
    #[arg(long)]
    corpus: Option<PathBuf>,
    #[arg(long, hide = true)]
    running: Option<PathBuf>,
    /// Also says how often each kind of outcome was seen; with one --target, in this process
    #[arg(long, requires = "target")]
    kinds: bool,
    #[arg(long, hide = true)]
    inside: bool,
}

#[allow(clippy::print_stdout, reason = "what was found is what this program is for")]
fn main() -> Result<ExitCode> {
    let Arguments { minutes, seconds, cases, seed, target, corpus, running, inside, kinds } = Arguments::parse();
    let chosen: Vec<_> =
        targets::ALL.iter().filter(|t| target.is_empty() || target.iter().any(|n| n == t.name)).collect();
    if let Some(unknown) = target.iter().find(|name| targets::ALL.iter().all(|t| t.name != name.as_str())) {
        let names: Vec<_> = targets::ALL.iter().map(|t| t.name).collect();
        bail!("there is no target {unknown:?}; there are {}", names.join(", "));
    }
    let fresh = || std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |now| now.subsec_nanos().into());
    let time = match (seconds, minutes) {
        (Some(seconds), _) => Duration::from_secs_f64(seconds),
        (None, minutes) => share(minutes.unwrap_or(1.0), chosen.len()),
    };
    let corpus = corpus.unwrap_or_else(corpus::folder);
    let options = Hunt { seed: seed.unwrap_or_else(fresh), cases, time, corpus, running };
    if !inside {
        println!("seed {}: repeat with --seed {}", options.seed, options.seed);
    }
    let mut found = false;
    for target in chosen {
        found |= if inside || kinds { hunt_inside(target, &options, kinds)? } else { hunt_apart(target, &options)? };
    }
    Ok(match (found, inside) {
        (false, _) => ExitCode::SUCCESS,
        (true, true) => ExitCode::from(FOUND as u8),
        (true, false) => ExitCode::FAILURE,
    })
}
