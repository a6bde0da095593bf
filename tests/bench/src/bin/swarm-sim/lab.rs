//! The simulator against machines: topologies that a laboratory measured, simulated; `swarm lab` measures some.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use longshore_e2e::process::binary_path;
use longshore_swarm_sim::{Clock, Scenario, simulate};
use serde::Deserialize;
use serde_json::Value;

/// A line of the file; what else it says is for others.
#[derive(Deserialize)]
struct Measured {
    /// Fields of a [`Scenario`], with the rates that plain TCP has there.
    topology: Value,
    /// Until the last node was complete.
    measured_s: f64,
    /// Whether the simulator may be fitted to it; then it is not judged by it.
    #[serde(default)]
    calibrates: bool,
}

/// What machines add that a scenario does not say; found once, and the same for all.
#[derive(Debug, Clone, Copy)]
struct Fit {
    /// Of plain TCP's rate.
    goodput: f64,
    /// Before the first byte and after the last.
    lead_s: f64,
}

const AS_IT_IS: Fit = Fit { goodput: 1.0, lead_s: 0.0 };

/// Measures now, on networks of this machine.
pub(crate) fn measure_and_judge() -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("lab.jsonl");
    let measuring = Command::new(binary_path("swarm")?).arg("lab").arg(&file).status()?;
    ensure!(measuring.success(), "`swarm lab` could not measure; it says why above");
    error_percent(&file)
}

/// The worst of all lines that are judged, in percent of what was measured.
pub(crate) fn error_percent(path: &Path) -> Result<f64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))?;
    worst(&text).with_context(|| format!("{path:?}"))
}

fn worst(text: &str) -> Result<f64> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let lines: Vec<Measured> =
        lines.map(|(at, line)| read(line).with_context(|| format!("line {}", at + 1))).collect::<Result<_>>()?;
    let (fitted, judged): (Vec<Measured>, Vec<Measured>) = lines.into_iter().partition(|line| line.calibrates);
    ensure!(
        !judged.is_empty(),
        "it has no lines to judge by; each is {{\"topology\": {{…}}, \"measured_s\": seconds}}"
    );
    let fit = fit_to(&fitted)?;
    eprintln!("swarm-sim: fitted to {} networks: {fit:?}", fitted.len());
    for line in &fitted {
        simulated(line, fit)?.tell(line);
    }
    let mut worst: f64 = 0.0;
    for line in &judged {
        let simulated = simulated(line, fit)?;
        simulated.tell(line);
        worst = worst.max(simulated.error_percent(line));
    }
    Ok(worst)
}

fn read(line: &str) -> Result<Measured> {
    let line: Measured = serde_json::from_str(line)?;
    ensure!(
        line.measured_s > 0.0 && line.measured_s.is_finite(),
        "`measured_s` is {}; give a number above 0",
        line.measured_s
    );
    scenario(&line, AS_IT_IS)?;
    Ok(line)
}

/// By which the worst of these lines is least wrong.
fn fit_to(lines: &[Measured]) -> Result<Fit> {
    let mut best = (f64::INFINITY, AS_IT_IS);
    for percent in (80..=100u8).filter(|_| !lines.is_empty()) {
        let goodput = f64::from(percent) / 100.0;
        let without = Fit { goodput, lead_s: 0.0 };
        let late: Vec<f64> =
            lines.iter().map(|line| Ok(line.measured_s - simulated(line, without)?.seconds)).collect::<Result<_>>()?;
        let lead_s = (late.iter().sum::<f64>() / late.len() as f64).max(0.0);
        let wrong = |(late, line): (&f64, &Measured)| (late - lead_s).abs() / line.measured_s;
        let worst = late.iter().zip(lines).map(wrong).fold(0.0, f64::max);
        if worst < best.0 {
            best = (worst, Fit { goodput, lead_s });
        }
    }
    Ok(best.1)
}

fn scenario(line: &Measured, fit: Fit) -> Result<Scenario> {
    let Fit { goodput, .. } = fit;
    let scenario = Scenario::from_json(&line.topology.to_string())?;
    Ok(Scenario { goodput_rack: goodput, goodput_region: goodput, goodput_bucket: goodput, ..scenario })
}

struct Simulated {
    seconds: f64,
    scenario: String,
}

impl Simulated {
    fn error_percent(&self, line: &Measured) -> f64 {
        100.0 * (self.seconds / line.measured_s - 1.0).abs()
    }

    fn tell(&self, line: &Measured) {
        let (name, error) = (&self.scenario, self.error_percent(line));
        let Measured { measured_s, calibrates, .. } = line;
        let what = if *calibrates { "fitted" } else { "judged" };
        eprintln!(
            "swarm-sim: {name} ({what}): measured {measured_s:.3} s, simulated {:.3} s: {error:.1} %",
            self.seconds
        );
    }
}

fn simulated(line: &Measured, fit: Fit) -> Result<Simulated> {
    let outcome = simulate(&scenario(line, fit)?, Clock::NONE)?;
    let complete = outcome.max_seconds.filter(|_| outcome.incomplete == 0);
    let seconds = complete.with_context(|| format!("{} nodes are never complete", outcome.incomplete))?;
    Ok(Simulated { seconds: seconds + fit.lead_s, scenario: outcome.scenario })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_worst_line_counts() {
        let scenario = r#"{"nodes": 2, "artifact_bytes": 16777216, "bucket_bits_per_second": 1e8, "node_down_bits_per_second": 1e8}"#;
        let outcome = simulate(&Scenario::from_json(scenario).expect("sound"), Clock::NONE).expect("it runs");
        let took = outcome.max_seconds.expect("complete");
        let line = |measured_s: f64| format!("{{\"topology\": {scenario}, \"measured_s\": {measured_s}}}\n");
        let error = worst(&(line(took) + &line(took / 1.25))).expect("two lines");
        assert!((error - 25.0).abs() < 1e-6, "{error}");
    }

    #[test]
    fn a_wrong_line_is_named() {
        let table = [
            ("", "it has no lines to judge by"),
            ("{\"topology\": {}, \"measured_s\": 1, \"calibrates\": true}", "it has no lines to judge by"),
            ("\n{\"topology\": {\"nodes\": 0}, \"measured_s\": 1}", "line 2"),
            ("{\"topology\": {}, \"measured_s\": 0}", "give a number above 0"),
            ("{\"topology\": {}}", "measured_s"),
        ];
        for (text, expected) in table {
            let error = format!("{:#}", worst(text).expect_err(expected));
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_machines_add_is_found_where_it_may_be_fitted() {
        let rate = |mbit: f64| format!("\"bucket_bits_per_second\": {mbit}e6, \"node_down_bits_per_second\": {mbit}e6");
        let topology = |mbit: f64| format!("{{\"nodes\": 2, \"artifact_bytes\": 67108864, {}}}", rate(mbit));
        let true_one = Fit { goodput: 0.93, lead_s: 0.4 };
        let line = |mbit: f64, calibrates: bool| {
            let topology = serde_json::from_str(&topology(mbit)).expect("JSON");
            let mut line = Measured { topology, measured_s: 1.0, calibrates };
            line.measured_s = simulated(&line, true_one).expect("it runs").seconds;
            json!({ "topology": line.topology, "measured_s": line.measured_s, "calibrates": calibrates }).to_string()
        };
        let error = worst(&[line(100.0, true), line(40.0, true), line(70.0, false)].join("\n")).expect("three lines");
        assert!(error < 0.5, "{error}");
    }
}
