//! Fleet: which nodes there are, what they run, and how far each cohort is.
//!
//! ```text
//!   region ──RegionReported──▶ NodeJoined, NodesReported, NodesLost, NodesReturned
//!   goals ──CohortAnnounced──▶ CohortSet
//!                                  │ levels {eligible, converged, failed} of each shard's cohorts
//!                                  ▼ at most one per service, shard and second
//!   goals ◀──ConvergenceReported── wake
//! ```
//!
//! What happened to a node is remembered by its shard, an entry for all that a fact names ([`tables::history`]).
//!
//! Only changes become facts: a region may say everything again, as it does when it starts. A level is counted along with
//! each fact and never by looking at all nodes, except when a cohort is set.
//!
//! What fleet does not know: what a service should run (goals), how a region hears of its nodes, and when a node counts as
//! lost (its region says so).

mod announce;
mod apply;
mod levels;
mod reports;
pub mod tables;
#[cfg(test)]
mod tests;

use longshore_processor::{Decision, Processor, StateError, Store, StoreMut, TableInfo};
use longshore_schemas::{
    RegionName, Timestamp,
    events::{Fact, FleetFact, FleetReport, RefusalCode, Request},
};

pub use announce::Soft;

/// Nodes that may ever join one shard.
pub const NODES_PER_SHARD_MAX: u32 = 1 << 17;
/// Services that one shard's nodes may report.
pub const SERVICES_PER_SHARD_MAX: usize = 4_096;
/// Longest text that is kept of what a node says.
pub const MESSAGE_CHARS_MAX: usize = 1_000;
/// What is remembered of what happened to a shard's nodes; the log has all of it.
pub const SHARD_EVENTS_MAX: u64 = 10_000;
/// Time between two levels of one service and shard.
pub const LEVEL_INTERVAL_MS: u64 = 1_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Every region of the deployment.
    pub regions: Vec<RegionName>,
    pub shards_per_region: u32,
}

#[derive(Debug, Clone)]
pub struct Fleet {
    pub config: Config,
}

impl Fleet {
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Why there is no such shard, if there is none.
    fn unknown_shard(&self, region: &RegionName, shard: u32) -> Option<Decision<FleetFact>> {
        let shards = self.config.shards_per_region;
        if self.config.regions.contains(region) && shard < shards {
            return None;
        }
        let known: Vec<&str> = self.config.regions.iter().map(RegionName::as_str).collect();
        let reason = format!(
            "there is no shard {shard} of region {region}; there are regions {} with {shards} shards each",
            known.join(", ")
        );
        Some(Decision::refuse(RefusalCode::Invalid, reason))
    }
}

impl Processor for Fleet {
    const NAME: &'static str = "fleet";
    const STATE_VERSION: u32 = 3;
    const TABLES: &'static [TableInfo] = tables::ALL;

    type Request = FleetReport;
    type Fact = FleetFact;
    /// There are no signals to fleet.
    type Signal = FleetReport;
    type Soft = Soft;

    fn decide(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        request: &Request<FleetReport>,
        now: Timestamp,
    ) -> Result<Decision<FleetFact>, StateError> {
        let decision = match &request.event {
            FleetReport::RegionReported(event) => self.region_reported(state, soft, event, now)?,
            FleetReport::CohortAnnounced(event) => self.cohort_announced(state, soft, event, now)?,
        };
        for fact in &decision.facts {
            soft.touched_by(state, fact, now)?;
        }
        Ok(decision)
    }

    fn signal(
        &self,
        _: &dyn Store,
        _: &mut Soft,
        _: &Request<FleetReport>,
        _: Timestamp,
    ) -> Result<Decision<FleetFact>, StateError> {
        Ok(Decision::nothing())
    }

    fn evolve(state: &mut dyn StoreMut, fact: &Fact<FleetFact>) -> Result<(), StateError> {
        apply::apply(state, &fact.event, fact.at)
    }

    fn next_wake(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Result<Option<Timestamp>, StateError> {
        soft.load(state, now)?;
        Ok(soft.next())
    }

    fn wake(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Result<Decision<FleetFact>, StateError> {
        soft.load(state, now)?;
        soft.send_due(state, now)
    }
}
