//! What no policy can beat.

use serde::Serialize;

use crate::{scenario::Scenario, topology::Topology};

/// Seconds that each part of the network needs at least, with nothing lost and nobody waiting.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bound {
    /// One copy leaves the bucket.
    pub bucket_seconds: f64,
    /// A usual node receives, and stores, one copy.
    pub node_seconds: f64,
    /// One copy enters each rack.
    pub rack_seconds: f64,
    /// All copies leave somewhere.
    pub upload_seconds: f64,
}

impl Bound {
    /// `bytes` is what a usual node lacks.
    pub(crate) fn new(scenario: &Scenario, topology: &Topology, bytes: f64) -> Self {
        let disk = scenario.node_disk_bytes_per_second.unwrap_or(f64::INFINITY);
        let uploads: f64 = (0..scenario.nodes).map(|node| topology.node_rates(node)[0]).sum();
        Self {
            bucket_seconds: bytes / topology.bucket,
            node_seconds: bytes / (scenario.node_down_bits_per_second / 8.0).min(disk),
            rack_seconds: bytes / topology.rack_rates()[1],
            upload_seconds: bytes * f64::from(scenario.nodes) / (topology.bucket + uploads),
        }
    }

    pub fn seconds(&self) -> f64 {
        [self.bucket_seconds, self.node_seconds, self.rack_seconds, self.upload_seconds].into_iter().fold(0.0, f64::max)
    }
}
