//! The fleet: which nodes there are and what they run.

use apache_avro::AvroSchema;
use serde::{Deserialize, Serialize};

use super::{Cohort, GoalVersion, NodeStatus, Processed, StringMap, events};
use crate::{ArtifactId, NodeId, NodeSet, RackName, RegionName, ServiceName, ZoneName, auth::Speaker};

/// The key of a shard: `region/shard`.
pub fn shard_key(region: &RegionName, shard: u32) -> String {
    format!("{region}/{shard}")
}

events! {
    /// Requests to fleet. Key: region and shard.
    FleetReport on FLEET_REPORTS by |e| {
        RegionReported => shard_key(&e.region, e.shard),
        CohortAnnounced => shard_key(&e.region, e.shard),
    } spoken {
        RegionReported => Speaker::Region(&e.region),
    }
}

events! {
    /// Facts of fleet. Key: region and shard.
    FleetFact on FLEET by |e| {
        NodeJoined => shard_key(&e.region, e.shard),
        NodesReported => shard_key(&e.region, e.shard),
        NodesLost => shard_key(&e.region, e.shard),
        NodesReturned => shard_key(&e.region, e.shard),
        CohortSet => shard_key(&e.region, e.shard),
        Processed => { let _ = e; "processed" },
    }
}

/// What changed in one shard since the region's last report: at most one a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct RegionReported {
    pub region: RegionName,
    pub shard: u32,
    /// New nodes, and known ones whose description changed.
    pub seen: Vec<NodeDescription>,
    pub statuses: Vec<StatusReport>,
    /// Nodes whose beats stopped.
    pub lost: Vec<NodeId>,
    /// Nodes that were lost and beat again.
    pub returned: Vec<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct NodeDescription {
    pub node: NodeId,
    pub zone: ZoneName,
    pub rack: RackName,
    /// Where the node's services can be reached: a host name or an IP address.
    pub host: String,
    pub agent_version: String,
    /// What people call the machine, to find it by; see [`crate::labels`].
    #[serde(with = "crate::avro::string_map", default)]
    #[avro(with, default = "{}")]
    pub labels: StringMap,
}

/// Nodes of one shard that now stand alike with one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct StatusReport {
    pub service: ServiceName,
    /// The goal's version that the nodes act on.
    pub version: GoalVersion,
    /// The artifact that the goal wants there; None for [`NodeStatus::Stopped`].
    pub artifact: Option<ArtifactId>,
    pub status: NodeStatus,
    /// The service's port on these nodes; 0 if it does not run.
    pub port: u32,
    /// For people: why it failed.
    pub message: Option<String>,
    pub nodes: Vec<NodeId>,
}

/// Goals tells a shard which of its nodes a goal is for, and so whose levels to report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct CohortAnnounced {
    pub region: RegionName,
    pub shard: u32,
    pub service: ServiceName,
    pub version: GoalVersion,
    pub artifact: ArtifactId,
    pub cohort: Cohort,
}

/// A node has its number in its shard, for good; sets of nodes are sets of these numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct NodeJoined {
    pub region: RegionName,
    pub shard: u32,
    pub number: u32,
    pub description: NodeDescription,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct NodesReported {
    pub region: RegionName,
    pub shard: u32,
    pub service: ServiceName,
    pub version: GoalVersion,
    pub artifact: Option<ArtifactId>,
    pub status: NodeStatus,
    pub port: u32,
    pub message: Option<String>,
    pub nodes: NodeSet,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct NodesLost {
    pub region: RegionName,
    pub shard: u32,
    pub nodes: NodeSet,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct NodesReturned {
    pub region: RegionName,
    pub shard: u32,
    pub nodes: NodeSet,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct CohortSet {
    pub region: RegionName,
    pub shard: u32,
    pub service: ServiceName,
    pub version: GoalVersion,
    pub artifact: ArtifactId,
    pub cohort: Cohort,
}
