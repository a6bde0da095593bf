//! Runs scenarios and prints what they came to: names of presets or files, `packs=N`, `nodes=N`, `seed=N`, `svg=FILE` for all that follow.
#![expect(clippy::print_stdout, reason = "figures for people")]

use std::{
    error::Error,
    fs,
    sync::LazyLock,
    time::{Duration, Instant},
};

use longshore_swarm_sim::{Clock, Outcome, Scenario, simulate, svg};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn elapsed() -> Duration {
    START.elapsed()
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut runs, mut changes, mut picture) = (Vec::<Outcome>::new(), Vec::new(), None);
    for argument in std::env::args().skip(1) {
        if let Some(path) = argument.strip_prefix("svg=") {
            picture = Some(path.to_owned());
        } else if let Some((field, value)) = argument.split_once('=') {
            changes.push((field.to_owned(), value.to_owned()));
        } else {
            let scenario = changed(&argument, &changes)?;
            let outcome = simulate(&scenario, Clock::new(elapsed))?;
            print(&outcome, runs.first());
            runs.push(outcome);
        }
    }
    if let Some(path) = picture {
        let named: Vec<(&str, &Outcome)> = runs.iter().map(|run| (run.scenario.as_str(), run)).collect();
        fs::write(path, svg(&named))?;
    }
    Ok(())
}

/// A field may be of an object within: `policy.requests_max=4`.
fn changed(name: &str, changes: &[(String, String)]) -> Result<Scenario, Box<dyn Error>> {
    let base = if name.ends_with(".json") {
        Scenario::from_json(&fs::read_to_string(name)?)?
    } else {
        Scenario::preset(name)?
    };
    let packs = changes.iter().rfind(|(field, _)| field == "packs");
    let base = match packs {
        Some((_, packs)) => base.with_packs(packs.parse()?),
        None => base,
    };
    let mut json = serde_json::to_value(base)?;
    for (field, value) in changes.iter().filter(|(field, _)| field != "packs") {
        let place = json.pointer_mut(&format!("/{}", field.replace('.', "/"))).ok_or("no such field")?;
        *place = serde_json::from_str(value)?;
    }
    Ok(Scenario::from_json(&json.to_string())?)
}

fn print(run: &Outcome, first: Option<&Outcome>) {
    println!("{run}");
    let memory = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = memory.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM unknown");
    println!("  memory           {}", peak.split_whitespace().collect::<Vec<_>>().join(" "));
    if let Some(first) = first {
        println!(
            "against {} with {} packs: p50, p99, max {:.3?}",
            first.scenario,
            first.packs,
            run.error_against(first)
        );
    }
}
