//! Goals' State: what is known of each service, folded from the facts.
//!
//! A *deploy* is counted by its order per service, from 1, when it is accepted; it becomes a *revision*, with a number of
//! its own, once its artifact is pinned. So refused deploys have an order and no revision.

use std::ops::ControlFlow;

use longshore_processor::{Order, Range, StateError, Store, Table, TableInfo};
use longshore_schemas::{
    ArtifactId, RegionName, RequestId, ServiceName, Timestamp,
    events::{Cohort, Convergence, GoalVersion, RolloutPlan, RunSpec},
    http::RolloutStatus,
};
use serde::{Deserialize, Serialize};

/// Each service that was ever deployed.
pub const SERVICES: Table<ServiceName, Service> = Table::new(0, "goal_services");
/// Each deploy by its order: the history, newest last. Scan it in descending order for people.
pub const REVISIONS: Table<(ServiceName, u64), Revision> = Table::new(1, "goal_revisions");
/// What each region was told to run. A row stays once a region was told of a service.
pub const REGIONS: Table<(ServiceName, RegionName), Regional> = Table::new(2, "goal_regions");
/// The newest level of each region's shard. It counts if its revision is the present one.
pub const LEVELS: Table<(ServiceName, RegionName, u32), Level> = Table::new(3, "goal_levels");
/// Artifacts that were rolled back from.
pub const HOLDS: Table<(ServiceName, ArtifactId), Hold> = Table::new(4, "goal_holds");

pub(crate) const ALL: &[TableInfo] = &[SERVICES.info(), REVISIONS.info(), REGIONS.info(), LEVELS.info(), HOLDS.info()];

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Service {
    /// The goal's version; 0.0 before the first.
    pub version: GoalVersion,
    /// The order of the present goal's deploy; None before the first goal.
    pub present: Option<u64>,
    /// The order of the deploy whose artifact is being pinned.
    pub pending: Option<u64>,
    /// The order of the last deploy that was accepted.
    pub last_order: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// 0 while pending, and for good if refused.
    pub revision: u64,
    pub deploy: RequestId,
    pub artifact: ArtifactId,
    /// How to run it; None until it is pinned.
    pub run: Option<RunSpec>,
    pub plan: RolloutPlan,
    pub actor: String,
    pub status: RolloutStatus,
    /// Index of the present or last wave.
    pub wave: u32,
    /// The version at which the present wave's shards were last told their cohort: only levels of this version say
    /// whether the wave may pass.
    pub announced: GoalVersion,
    pub requested_at: Timestamp,
    /// When it was refused, completed or superseded.
    pub ended_at: Option<Timestamp>,
    /// Why it was refused or halted.
    pub reason: Option<String>,
    pub rollback_of: Option<u64>,
}

/// What a region was told of one service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Regional {
    /// Cohorts that the present rollout reached here, newest first; empty once it is completed.
    pub reached: Vec<Cohort>,
    /// What completed rollouts left here, newest first.
    pub base: Vec<Base>,
}

impl Regional {
    /// Whether any node of the region was told to run the service.
    pub fn runs(&self) -> bool {
        !self.reached.is_empty() || !self.base.is_empty()
    }
}

/// A cohort, and the order of the completed deploy whose artifact it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    pub order: u64,
    pub cohort: Cohort,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    pub version: GoalVersion,
    pub level: Convergence,
    /// One of the failures, for people.
    pub failure: Option<String>,
    pub at: Timestamp,
    /// Since when, at this version, every eligible node is converged or failed.
    pub settled_since: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The revision that was rolled back from.
    pub revision: u64,
    pub at: Timestamp,
    pub actor: String,
}

/// The newest deploys of a service, newest first.
pub fn history(state: &dyn Store, service: &ServiceName, limit: usize) -> Result<Vec<(u64, Revision)>, StateError> {
    let range = Range::prefix(service);
    let rows = REVISIONS.list(state, &range, Order::Descending, limit)?;
    Ok(rows.into_iter().map(|((_, order), revision)| (order, revision)).collect())
}

/// The artifacts of a service that are held, and why.
pub fn held(state: &dyn Store, service: &ServiceName) -> Result<Vec<(ArtifactId, Hold)>, StateError> {
    let mut holds = Vec::new();
    HOLDS.scan(state, &Range::prefix(service), Order::Ascending, |(_, artifact), hold| {
        holds.push((artifact, hold));
        ControlFlow::Continue(())
    })?;
    Ok(holds)
}

/// Each region's level of a service's present goal, by region.
pub fn region_levels(state: &dyn Store, service: &ServiceName) -> Result<Vec<(RegionName, Convergence)>, StateError> {
    let present = SERVICES.get(state, service)?.unwrap_or_default().version.revision;
    let mut regions: Vec<(RegionName, Convergence)> = Vec::new();
    LEVELS.scan(state, &Range::prefix(service), Order::Ascending, |(_, region, _), row| {
        if row.version.revision == present {
            match regions.last_mut() {
                Some((last, sum)) if *last == region => *sum += row.level,
                _ => regions.push((region, row.level)),
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(regions)
}

/// A service's regions, by name.
pub(crate) fn regions(state: &dyn Store, service: &ServiceName) -> Result<Vec<(RegionName, Regional)>, StateError> {
    let mut rows = Vec::new();
    REGIONS.scan(state, &Range::prefix(service), Order::Ascending, |(_, region), row| {
        rows.push((region, row));
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

/// The present goal's deploy, if there is one.
pub fn present(state: &dyn Store, service: &ServiceName, row: &Service) -> Result<Option<(u64, Revision)>, StateError> {
    let Some(order) = row.present else { return Ok(None) };
    let revision = REVISIONS.expect(state, &(service.clone(), order))?;
    Ok(Some((order, revision)))
}
