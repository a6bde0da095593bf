//! Fleet's State: which nodes there are, what they last said, and the levels of the cohorts they are in.
//!
//! Nodes are known by their number within their shard, which they keep for good. Rows of statuses come in the order
//! (region, shard, service, node): one service's nodes are neighbours, which is how levels are counted and how the nodes
//! of a service are listed. The services of one node are looked up one by one ([`node_statuses`]).

use std::ops::ControlFlow;

use longshore_processor::{Order, Range, StateError, Store, Table, TableInfo};
use longshore_schemas::{
    ArtifactId, NodeId, NodeSet, RegionName, ServiceName, Timestamp,
    events::{Cohort, Convergence, GoalVersion, NodeDescription, NodeStatus},
};
use serde::{Deserialize, Serialize};

use crate::SHARD_EVENTS_MAX;

/// Each shard that has nodes.
pub const SHARDS: Table<(RegionName, u32), Shard> = Table::new(0, "fleet_shards");
/// Each node by its number.
pub const NODES: Table<(RegionName, u32, u32), Node> = Table::new(1, "fleet_nodes");
/// Each node's number.
pub const NUMBERS: Table<(RegionName, u32, NodeId), u32> = Table::new(2, "fleet_numbers");
/// What a node last said of a service.
pub const STATUSES: Table<(RegionName, u32, ServiceName, u32), Status> = Table::new(3, "fleet_statuses");
/// The services that a shard has statuses of.
pub const SERVICES: Table<(RegionName, u32, ServiceName), ()> = Table::new(4, "fleet_services");
/// The newest cohort of each service, with its level.
pub const COHORTS: Table<(RegionName, u32, ServiceName), ShardCohort> = Table::new(5, "fleet_cohorts");

/// What happened to nodes of a shard, counted from 0: the last [`SHARD_EVENTS_MAX`](crate::SHARD_EVENTS_MAX).
pub const EVENTS: Table<(RegionName, u32, u64), ShardEvent> = Table::new(6, "fleet_events");

pub(crate) const ALL: &[TableInfo] =
    &[SHARDS.info(), NODES.info(), NUMBERS.info(), STATUSES.info(), SERVICES.info(), COHORTS.info(), EVENTS.info()];

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Shard {
    /// Nodes that ever joined; they have the numbers below this.
    pub nodes: u32,
    /// Of those, the ones that are lost.
    pub lost: u32,
    /// What ever happened to them, in numbers of events.
    pub events: u64,
}

/// What happened to some nodes of a shard at once: a fact, without what its key says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEvent {
    pub at: Timestamp,
    pub nodes: NodeSet,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    Said(ServiceName, Status),
    Lost,
    Returned,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub description: NodeDescription,
    pub lost: bool,
    /// When it joined, was described anew, was lost or returned. Its statuses carry times of their own, see [`seen_at`].
    pub at: Timestamp,
    /// When it joined or was described anew.
    pub described_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: GoalVersion,
    /// The bytes of an [`ArtifactId`]: half as long as its text, and there is a row for each node and service.
    artifact: Option<[u8; 32]>,
    pub status: NodeStatus,
    /// 0 if the service does not run.
    pub port: u16,
    pub message: Option<String>,
    pub at: Timestamp,
}

impl Status {
    pub fn new(
        version: GoalVersion,
        artifact: Option<ArtifactId>,
        status: NodeStatus,
        port: u16,
        message: Option<String>,
        at: Timestamp,
    ) -> Self {
        Self { version, artifact: artifact.map(|artifact| *artifact.as_bytes()), status, port, message, at }
    }

    pub fn artifact(&self) -> Option<ArtifactId> {
        self.artifact.map(ArtifactId::from_bytes)
    }

    /// Whether both say the same, whenever they said it.
    pub(crate) fn says_same(&self, other: &Self) -> bool {
        (self.version, self.artifact, self.status, self.port, &self.message)
            == (other.version, other.artifact, other.status, other.port, &other.message)
    }
}

/// A service's cohort in one shard, and how far its nodes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCohort {
    pub version: GoalVersion,
    pub artifact: ArtifactId,
    pub cohort: Cohort,
    pub level: Convergence,
    /// One of the failures, for people.
    pub failure: Option<String>,
}

/// What a node last said of each service.
pub fn node_statuses(
    state: &dyn Store,
    region: &RegionName,
    shard: u32,
    number: u32,
) -> Result<Vec<(ServiceName, Status)>, StateError> {
    let mut statuses = Vec::new();
    for service in services(state, region, shard)? {
        let key = (region.clone(), shard, service, number);
        if let Some(status) = STATUSES.get(state, &key)? {
            statuses.push((key.2, status));
        }
    }
    Ok(statuses)
}

/// The services that a shard has statuses of, by name.
pub fn services(state: &dyn Store, region: &RegionName, shard: u32) -> Result<Vec<ServiceName>, StateError> {
    let mut services = Vec::new();
    let range = Range::prefix(&(region.clone(), shard));
    SERVICES.scan(state, &range, Order::Ascending, |(_, _, service), ()| {
        services.push(service);
        ControlFlow::Continue(())
    })?;
    Ok(services)
}

/// What is remembered of a node.
#[derive(Debug, Default)]
pub struct History {
    /// The newest first.
    pub events: Vec<ShardEvent>,
    /// Whether more is remembered.
    pub has_more: bool,
    /// What was before this is forgotten; None: nothing is.
    pub remembered_since: Option<Timestamp>,
}

/// What happened to a node since it was described, of so many events at most.
pub fn history(
    state: &dyn Store,
    region: &RegionName,
    shard: u32,
    number: u32,
    limit: usize,
) -> Result<History, StateError> {
    let mut history = History::default();
    let range = Range::prefix(&(region.clone(), shard));
    if SHARDS.get(state, &(region.clone(), shard))?.unwrap_or_default().events > SHARD_EVENTS_MAX {
        history.remembered_since = EVENTS.first(state, &range, Order::Ascending)?.map(|(_, event)| event.at);
    }
    if limit == 0 {
        return Ok(history);
    }
    EVENTS.scan(state, &range, Order::Descending, |_, event| {
        if event.nodes.contains(number) {
            history.has_more = history.events.len() == limit;
            if history.has_more {
                return ControlFlow::Break(());
            }
            history.events.push(event);
        }
        ControlFlow::Continue(())
    })?;
    Ok(history)
}

/// When anything was last recorded of a node.
pub fn seen_at(node: &Node, statuses: &[(ServiceName, Status)]) -> Timestamp {
    statuses.iter().map(|(_, status)| status.at).fold(node.at, Timestamp::max)
}

/// A shard's cohorts, by service.
pub fn cohorts(
    state: &dyn Store,
    region: &RegionName,
    shard: u32,
) -> Result<Vec<(ServiceName, ShardCohort)>, StateError> {
    let mut cohorts = Vec::new();
    let range = Range::prefix(&(region.clone(), shard));
    COHORTS.scan(state, &range, Order::Ascending, |(_, _, service), cohort| {
        cohorts.push((service, cohort));
        ControlFlow::Continue(())
    })?;
    Ok(cohorts)
}
