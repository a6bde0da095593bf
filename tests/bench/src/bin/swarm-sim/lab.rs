//! The simulator against machines: topologies that a laboratory measured, simulated.

use std::path::Path;

use anyhow::{Context, Result, ensure};
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
}

/// The worst of all lines, in percent of what was measured.
pub(crate) fn error_percent(path: &Path) -> Result<f64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))?;
    worst(&text).with_context(|| format!("{path:?}"))
}

fn worst(text: &str) -> Result<f64> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let errors: Vec<f64> =
        lines.map(|(at, line)| error(line).with_context(|| format!("line {}", at + 1))).collect::<Result<_>>()?;
    ensure!(!errors.is_empty(), "it has no lines; each is {{\"topology\": {{…}}, \"measured_s\": seconds}}");
    Ok(errors.into_iter().fold(0.0, f64::max))
}

fn error(line: &str) -> Result<f64> {
    let Measured { topology, measured_s } = serde_json::from_str(line)?;
    ensure!(measured_s > 0.0 && measured_s.is_finite(), "`measured_s` is {measured_s}; give a number above 0");
    let outcome = simulate(&Scenario::from_json(&topology.to_string())?, Clock::NONE)?;
    let complete = outcome.max_seconds.filter(|_| outcome.incomplete == 0);
    let simulated_s = complete.with_context(|| format!("{} nodes are never complete", outcome.incomplete))?;
    eprintln!("swarm-sim: {}: measured {measured_s:.3} s, simulated {simulated_s:.3} s", outcome.scenario);
    Ok(100.0 * (simulated_s / measured_s - 1.0).abs())
}

#[cfg(test)]
mod tests {
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
            ("", "it has no lines"),
            ("\n{\"topology\": {\"nodes\": 0}, \"measured_s\": 1}", "line 2"),
            ("{\"topology\": {}, \"measured_s\": 0}", "give a number above 0"),
            ("{\"topology\": {}}", "measured_s"),
        ];
        for (text, expected) in table {
            let error = format!("{:#}", worst(text).expect_err(expected));
            assert!(error.contains(expected), "{error}");
        }
    }
}
