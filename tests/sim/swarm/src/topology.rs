//! Which links there are, and which of them lie between two places.
//!
//! ```text
//! node up ─▶ rack up ─▶ spine ─▶ rack down ─▶ node down          within a rack: node up ─▶ node down
//!                bucket ─▶ rack down ─▶ node down
//! ```

use crate::{
    network::{Network, Path},
    random::Random,
    scenario::Scenario,
};

const FREE: u32 = Network::FREE;
const BITS: f64 = 8.0;

/// Where a flow goes through: its delays and its losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Rack,
    Region,
    Bucket,
}

#[derive(Debug)]
pub(crate) struct Topology {
    nodes: u32,
    racks: u32,
    nodes_per_rack: u32,
    rack_up: f64,
    rack_down: f64,
    pub(crate) bucket: f64,
    /// Up and down of each node, in bytes a second.
    rates: Vec<(f64, f64)>,
    spine: f64,
}

impl Topology {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let rate = |bits: Option<f64>| bits.map_or(f64::INFINITY, |bits| bits / BITS);
        let disk = scenario.node_disk_bytes_per_second.unwrap_or(f64::INFINITY);
        let (up, down) = (scenario.node_up_bits_per_second / BITS, scenario.node_down_bits_per_second / BITS);
        let mut rates = vec![(up, down.min(disk)); scenario.nodes as usize];
        let stragglers = (f64::from(scenario.nodes) * scenario.straggler_fraction).round() as u32;
        for straggler in Random::new(scenario.seed, "stragglers").some_of(scenario.nodes, stragglers) {
            let factor = scenario.straggler_rate_factor;
            rates[straggler as usize] = (up * factor, (down * factor).min(disk));
        }
        Self {
            nodes: scenario.nodes,
            racks: scenario.racks(),
            nodes_per_rack: scenario.nodes_per_rack,
            rack_up: rate(scenario.rack_up_bits_per_second),
            rack_down: rate(scenario.rack_down_bits_per_second),
            bucket: scenario.bucket_bits_per_second / BITS,
            rates,
            spine: rate(scenario.spine_bits_per_second),
        }
    }

    pub(crate) fn network(&self) -> Network {
        let up = self.rates.iter().map(|(up, _)| *up);
        let down = self.rates.iter().map(|(_, down)| *down);
        let racks = self.racks as usize;
        let rack_up = std::iter::repeat_n(self.rack_up, racks);
        let rack_down = std::iter::repeat_n(self.rack_down, racks);
        Network::new(up.chain(down).chain(rack_up).chain(rack_down).chain([self.spine, self.bucket]))
    }

    pub(crate) fn rack(&self, node: u32) -> u32 {
        node / self.nodes_per_rack
    }

    pub(crate) fn nodes_of(&self, rack: u32) -> std::ops::Range<u32> {
        let first = rack * self.nodes_per_rack;
        first..(first + self.nodes_per_rack).min(self.nodes)
    }

    pub(crate) fn bucket_link(&self) -> u32 {
        2 + 2 * self.nodes + 2 * self.racks
    }

    /// Up and down.
    pub(crate) fn node_links(&self, node: u32) -> [u32; 2] {
        [1 + node, 1 + self.nodes + node]
    }

    pub(crate) fn node_rates(&self, node: u32) -> [f64; 2] {
        let (up, down) = self.rates[node as usize];
        [up, down]
    }

    pub(crate) fn rack_links(&self, rack: u32) -> [u32; 2] {
        [1 + 2 * self.nodes + rack, 1 + 2 * self.nodes + self.racks + rack]
    }

    pub(crate) fn rack_rates(&self) -> [f64; 2] {
        [self.rack_up, self.rack_down]
    }

    pub(crate) fn path_from_peer(&self, peer: u32, node: u32) -> (Reach, Path) {
        let ([up, _], [_, down]) = (self.node_links(peer), self.node_links(node));
        let (there, here) = (self.rack(peer), self.rack(node));
        if there == here {
            return (Reach::Rack, [up, down, FREE, FREE, FREE]);
        }
        let spine = if self.spine.is_finite() { 1 + 2 * self.nodes + 2 * self.racks } else { FREE };
        let ([rack_up, _], [_, rack_down]) = (self.rack_links(there), self.rack_links(here));
        (Reach::Region, [up, down, rack_up, rack_down, spine])
    }

    pub(crate) fn path_from_bucket(&self, node: u32) -> (Reach, Path) {
        let ([_, down], [_, rack_down]) = (self.node_links(node), self.rack_links(self.rack(node)));
        (Reach::Bucket, [self.bucket_link(), rack_down, down, FREE, FREE])
    }
}
