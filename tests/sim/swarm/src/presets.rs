//! Scenarios with a name.

use crate::scenario::{Churn, Policy, Scenario};

pub const NAMES: [&str; 8] = [
    "lab",
    "region-10k-25g",
    "region-100k-25g",
    "region-100k-10g",
    "region-100k-25g-disk",
    "region-100k-25g-reuse",
    "region-100k-25g-faults",
    "region-1m-25g",
];

/// True packs, as the artifact format makes them.
const PACK_BYTES: u64 = 8 << 20;
const ARTIFACT_BYTES: u64 = 10_000_000_000;
/// Packs of a region that is too large for true ones.
const COARSE_PACKS: u64 = 64;
const VERY_COARSE_PACKS: u64 = 32;

pub(crate) fn find(name: &str) -> Option<Scenario> {
    let scenario = match name {
        "lab" => lab(),
        "region-10k-25g" => region(10_000, 25e9),
        "region-100k-25g" => region(100_000, 25e9).with_packs(COARSE_PACKS),
        "region-100k-10g" => region(100_000, 10e9).with_packs(COARSE_PACKS),
        "region-100k-25g-disk" => {
            Scenario { node_disk_bytes_per_second: Some(2e9), ..region(100_000, 25e9).with_packs(COARSE_PACKS) }
        }
        // Few packs are left to fetch: they can be smaller.
        "region-100k-25g-reuse" => Scenario { reuse_fraction: 0.95, ..region(100_000, 25e9).with_packs(1_000) },
        "region-100k-25g-faults" => faults(),
        "region-1m-25g" => region(1_000_000, 25e9).with_packs(VERY_COARSE_PACKS),
        _ => return None,
    };
    Some(Scenario { name: name.to_owned(), ..scenario })
}

/// 20 machines of a laboratory; as `make bench-swarm` shapes them.
fn lab() -> Scenario {
    Scenario {
        nodes: 20,
        nodes_per_rack: 5,
        artifact_bytes: 64 << 20,
        pack_bytes: 4 << 20,
        node_up_bits_per_second: 100e6,
        node_down_bits_per_second: 100e6,
        rack_up_bits_per_second: Some(125e6),
        rack_down_bits_per_second: Some(125e6),
        bucket_bits_per_second: 400e6,
        step_seconds: Some(0.01),
        ..Scenario::default()
    }
}

/// Racks of 40 nodes, their uplinks oversubscribed 4:1.
fn region(nodes: u32, bits_per_second: f64) -> Scenario {
    let (nodes_per_rack, oversubscribed) = (40, 4.0);
    let rack = Some(bits_per_second * f64::from(nodes_per_rack) / oversubscribed);
    Scenario {
        nodes,
        nodes_per_rack,
        artifact_bytes: ARTIFACT_BYTES,
        pack_bytes: PACK_BYTES,
        node_up_bits_per_second: bits_per_second,
        node_down_bits_per_second: bits_per_second,
        rack_up_bits_per_second: rack,
        rack_down_bits_per_second: rack,
        timer_slack_seconds: 0.02,
        policy: Policy::default(),
        ..Scenario::default()
    }
}

/// One in two hundred is slow, one in two hundred dies.
fn faults() -> Scenario {
    Scenario {
        straggler_fraction: 0.005,
        churn: Churn { fraction: 0.005, from_seconds: 0.5, until_seconds: 3.0, restart_after_seconds: None },
        ..region(100_000, 25e9).with_packs(COARSE_PACKS)
    }
}
