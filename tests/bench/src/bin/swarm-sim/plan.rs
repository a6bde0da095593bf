//! Which scenarios are run.

use longshore_swarm_sim::{Scenario, presets};

pub(crate) const NODES: u32 = 100_000;
/// Of the 1,193 true ones of 8 MiB, with which 10^5 nodes would take hours. More than a rack has nodes: with fewer, not every node has one
/// to pass on, and all takes twice as long.
const PACKS: u64 = 64;
/// Small enough for true packs.
const FLUID_NODES: u32 = 1_000;
const FLUID_NODES_FULL: u32 = 2_000;
/// Of one region, where 300,000 are in ten; and in a quick run of those that there is no time for with more.
pub(crate) const REGION_NODES: u32 = 30_000;

pub(crate) const NETWORK: &str = "network only";
pub(crate) const TEN_GBIT: &str = "10 Gbit/s";
pub(crate) const DISK: &str = "disks of 2 GB/s";
pub(crate) const REUSE: &str = "95 % reused";
pub(crate) const FAULTS: &str = "1 % slow or dying";
pub(crate) const REGION: &str = "30,000, disks";
pub(crate) const FLUID_TRUE: &str = "true packs";
pub(crate) const FLUID_COARSE: &str = "coarse packs";
pub(crate) const MILLION: &str = "a million";
pub(crate) const MILLION_BASE: &str = "100,000, as coarse";

/// A scenario with the name under which its figures are found.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) scenario: Scenario,
}

/// In the order in which they begin: what takes little first, then by what is worth most, for what is late is left out.
pub(crate) fn runs(full: bool) -> Vec<Run> {
    let preset = |name: &'static str, preset: &str, nodes: u32| {
        let scenario = Scenario { nodes, ..named(preset) };
        // Of what is reused few are left to fetch, so that the preset's are nearly as small as true ones.
        Run { name, scenario: if name == REUSE { scenario } else { scenario.with_packs(PACKS) } }
    };
    let others = if full { NODES } else { REGION_NODES };
    let exact = Scenario { nodes: fluid_nodes(full), ..named("region-10k-25g") };
    vec![
        Run { name: FLUID_COARSE, scenario: exact.clone().with_packs(PACKS) },
        Run { name: FLUID_TRUE, scenario: exact },
        preset(REGION, "region-100k-25g-disk", REGION_NODES),
        preset(NETWORK, "region-100k-25g", NODES),
        preset(DISK, "region-100k-25g-disk", NODES),
        preset(REUSE, "region-100k-25g-reuse", others),
        preset(TEN_GBIT, "region-100k-10g", others),
        preset(FAULTS, "region-100k-25g-faults", others),
    ]
}

fn fluid_nodes(full: bool) -> u32 {
    if full { FLUID_NODES_FULL } else { FLUID_NODES }
}

/// Ten times as many nodes.
pub(crate) fn million() -> Run {
    Run { name: MILLION, scenario: named("region-1m-25g") }
}

/// The usual number of nodes, with packs as coarse.
pub(crate) fn million_base() -> Run {
    Run { name: MILLION_BASE, scenario: Scenario { nodes: NODES, ..million().scenario } }
}

/// What is coarser or smaller than it would be.
pub(crate) fn note(full: bool) -> String {
    let fewer = if full {
        String::new()
    } else {
        format!("; reuse95_s, ten_gbit_s and faults_p99_s are of {REGION_NODES} nodes")
    };
    format!(
        "{PACKS} packs instead of 1,193 of 8 MiB, 1,000 for reuse95_s; what that changes is fluid_error_percent, of {} nodes{fewer}",
        fluid_nodes(full)
    )
}

/// In a region that has been up for long: its tracker does not wait for nodes that may be about to say what they have.
fn named(name: &str) -> Scenario {
    let mut scenario = Scenario::preset(name).unwrap_or_else(|error| panic!("{error}, of {:?}", presets::NAMES));
    scenario.policy.settle_seconds = Some(0.0);
    scenario
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_sound_and_has_its_name_alone() {
        for full in [false, true] {
            let runs: Vec<Run> = runs(full).into_iter().chain([million(), million_base()]).collect();
            let names: std::collections::BTreeSet<&str> = runs.iter().map(|run| run.name).collect();
            assert_eq!(names.len(), runs.len());
            for run in runs {
                run.scenario.check().unwrap_or_else(|error| panic!("{}: {error}", run.name));
            }
        }
    }
}
