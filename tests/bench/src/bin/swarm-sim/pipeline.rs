//! What a whole release takes, hop by hop: 10 GB for 300,000 machines in ten regions, from the commit until they run it.
//!
//! Each hop is a figure of another benchmark, read from infra/docs/benchmarks.md, times what it is for; the swarm's is simulated in the same run.

use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use serde_json::{Value, json};

use crate::plan::REGION_NODES;

const GB: f64 = 10.0;
const REGIONS: f64 = 10.0;
/// Given: what the build itself may take.
const BUILD_MINUTES: f64 = 15.0;

/// What the other benchmarks printed.
const PAGE: &str = include_str!("../../../../../infra/docs/benchmarks.md");

pub(crate) struct Hop {
    name: &'static str,
    input: String,
    source: &'static str,
    /// None: what it follows from is not known.
    seconds: Option<f64>,
    /// Others are shown beside the sum.
    counts: bool,
}

/// A figure of a benchmark, by the line of JSON that the page has of it.
fn printed(bench: &str, key: &str) -> Option<f64> {
    let begins = format!("{{\"bench\":\"{bench}\",");
    let line = PAGE.lines().find(|line| line.starts_with(&begins))?;
    serde_json::from_str::<Value>(line).ok()?.get(key)?.as_f64()
}

/// `swarm` is how long a region takes whose disks are as slow as most.
pub(crate) fn hops(swarm: Option<f64>) -> Vec<Hop> {
    let goal = goal();
    let publish = printed("publish", "new_gb_per_cpu_second");
    let fetch = printed("publish", "fetch_gb_per_cpu_second");
    let node = fetch.map(|rate| GB / rate);
    let hop = |name, input: String, source, seconds| Hop { name, input, source, seconds, counts: true };
    let region = format!("{GB} GB to {REGION_NODES} nodes, 25 Gbit/s, disks of 2 GB/s");
    let deploy = "one of all regions, without a bake, as there is no --waves".to_owned();
    let mut hops = vec![
        hop("build", format!("{BUILD_MINUTES} min"), "given", Some(BUILD_MINUTES * 60.0)),
        hop(
            "publish",
            format!("{GB} GB by one core"),
            "bench-publish, new_gb_per_cpu_second",
            publish.map(|rate| GB / rate),
        ),
        hop(
            "replicate",
            "after the last byte, whatever the size; links as fast as the publisher's".to_owned(),
            "bench-replicate, pipelined_tail_s",
            printed("replicate", "pipelined_tail_s"),
        ),
        hop("waves", deploy, "longshore deploy --help", Some(0.0)),
        hop(
            "goal",
            format!("to {REGION_NODES} nodes by one process"),
            "bench-fanout, ours_max_ms by connections",
            goal,
        ),
        hop("swarm", region, "simulated in this run", swarm),
        hop(
            "node",
            format!("verify, assemble, switch: {GB} GB by one core"),
            "bench-publish, fetch_gb_per_cpu_second",
            node,
        ),
        hop("reports", "of 300,000 nodes".to_owned(), "bench-fleet, rollout_s", printed("fleet", "rollout_s")),
    ];
    let again = [goal, swarm, node].into_iter().sum::<Option<f64>>().map(|seconds| seconds * (REGIONS - 1.0));
    let input = "one region after the other: goal, swarm and node nine times more".to_owned();
    hops.push(Hop { name: "(ten waves)", input, source: "the rows above", seconds: again, counts: false });
    hops
}

/// All of a region's nodes, as one process would tell them: it took so long for fewer.
fn goal() -> Option<f64> {
    let (ms, nodes) = (printed("fanout", "ours_max_ms")?, printed("fanout", "connections")?);
    Some(f64::from(REGION_NODES) / nodes * ms / 1_000.0)
}

/// Of all that counts; none if one of them is not known.
pub(crate) fn minutes(hops: &[Hop]) -> Option<f64> {
    let seconds: Option<f64> = hops.iter().filter(|hop| hop.counts).map(|hop| hop.seconds).sum();
    seconds.map(|seconds| seconds / 60.0)
}

pub(crate) fn table(hops: &[Hop]) -> Table {
    let seconds = |seconds: Option<f64>| seconds.map_or("–".to_owned(), |seconds| format!("{seconds:.1}"));
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["hop", "seconds", "what", "from"]);
    for hop in hops {
        table.add_row([hop.name, &seconds(hop.seconds), &hop.input, hop.source]);
    }
    table.add_row([
        "in all",
        &seconds(minutes(hops).map(|minutes| minutes * 60.0)),
        "without what stands in brackets",
        "",
    ]);
    table
}

pub(crate) fn json(hops: &[Hop]) -> Value {
    hops.iter()
        .map(|hop| json!({"hop": hop.name, "seconds": hop.seconds, "counts": hop.counts, "from": hop.source}))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_of_what_is_known() {
        let known = hops(Some(6.0));
        let sum: f64 = known.iter().filter(|hop| hop.counts).filter_map(|hop| hop.seconds).sum();
        assert_eq!(minutes(&known), Some(sum / 60.0));
        assert!(sum > 900.0 && known.last().is_some_and(|hop| hop.seconds > Some(54.0)));
        assert_eq!(minutes(&hops(None)), None);
        assert!(table(&hops(None)).to_string().contains('–'));
    }

    #[test]
    fn the_page_has_what_is_needed() {
        let missing: Vec<&str> =
            hops(Some(6.0)).iter().filter(|hop| hop.seconds.is_none()).map(|hop| hop.name).collect();
        assert_eq!(missing, [""; 0]);
        assert!(printed("publish", "no such key").is_none() && printed("no-such-bench", "nodes").is_none());
    }
}
