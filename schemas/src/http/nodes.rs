//! What is asked and answered of machines: one, many, and all that run a service.

use serde::{Deserialize, Serialize};

use super::rfc3339;
use crate::{
    ArtifactId, NodeId, RackName, RegionName, ServiceName, Timestamp, ZoneName,
    events::{GoalVersion, NodeStatus, StringMap},
};

/// The items of `GET /v1/nodes?region=&service=&after=&limit=`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub node: NodeId,
    pub region: RegionName,
    pub zone: ZoneName,
    pub rack: RackName,
    pub host: String,
    pub agent_version: String,
    #[serde(default)]
    pub labels: StringMap,
    pub lost: bool,
    #[serde(with = "rfc3339")]
    pub seen_at: Timestamp,
    pub services: Vec<NodeServiceView>,
}

/// `GET /v1/nodes/{node}?region=&limit=`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeHistoryView {
    #[serde(flatten)]
    pub node: NodeView,
    /// The newest first. Of how it was described, the last one alone.
    pub history: Vec<NodeEventView>,
    /// Whether there is more, for a larger `limit`.
    pub has_more: bool,
    /// What was before this is in the log alone; None: nothing was.
    #[serde(with = "rfc3339::option")]
    pub remembered_since: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeEventView {
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    #[serde(flatten)]
    pub event: NodeEvent,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum NodeEvent {
    /// It joined, or said otherwise what it is.
    Described {
        zone: ZoneName,
        rack: RackName,
        host: String,
        agent_version: String,
        labels: StringMap,
    },
    Said(NodeServiceView),
    Lost,
    Returned,
}

/// Filters of `GET /v1/nodes/{node}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeHistoryQuery {
    /// Needed where nodes of several regions are called so.
    pub region: Option<RegionName>,
    pub limit: Option<u32>,
}

/// Filters of `GET /v1/nodes/{node}/services/{service}/log`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeLogQuery {
    pub region: Option<RegionName>,
    /// So much of the log's end, at most 131072.
    pub bytes: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeServiceView {
    pub service: ServiceName,
    pub version: GoalVersion,
    pub artifact: Option<ArtifactId>,
    pub status: NodeStatus,
    pub port: Option<u16>,
    pub message: Option<String>,
}

/// `GET /v1/services/{service}/fleet`: where a service runs, counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetView {
    pub service: ServiceName,
    /// Nodes that ever said something of it.
    pub nodes: u64,
    pub counts: Vec<FleetCountView>,
    /// Nodes that are in none of the counts, because there are too many of those.
    pub not_counted: u64,
    /// Failures alike, the most frequent first.
    pub failures: Vec<FailureView>,
    /// Failed nodes that are in none of these.
    pub not_grouped: u64,
    /// Nodes that are lost, not healthy, or behind the newest goal; those first that have said so for longest.
    pub stragglers: Vec<StragglerView>,
    pub stragglers_total: u64,
}

/// Nodes that said the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FleetCountView {
    pub region: RegionName,
    pub zone: ZoneName,
    pub version: GoalVersion,
    pub artifact: Option<ArtifactId>,
    pub status: NodeStatus,
    pub lost: bool,
    pub nodes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailureView {
    /// The first line of what they said, with # for numbers and … for names of bytes.
    pub cause: String,
    pub nodes: u64,
    pub regions: Vec<RegionName>,
    /// Some of the nodes.
    pub examples: Vec<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StragglerView {
    pub region: RegionName,
    pub node: NodeId,
    pub zone: ZoneName,
    pub rack: RackName,
    pub version: GoalVersion,
    pub artifact: Option<ArtifactId>,
    pub status: NodeStatus,
    pub lost: bool,
    #[serde(with = "rfc3339")]
    pub since: Timestamp,
    pub message: Option<String>,
}

/// Filters of `GET /v1/nodes`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeQuery {
    pub region: Option<RegionName>,
    pub service: Option<ServiceName>,
    /// Conditions with commas between, as `zone=eu-a,status=failed,version<7`. Of the page's items, which may be fewer then.
    #[serde(rename = "where")]
    pub conditions: Option<String>,
    pub after: Option<String>,
    pub limit: Option<u32>,
}

/// What nodes can be asked for in [`NodeQuery::conditions`], and how much at a time.
pub const NODE_KEYS: [&str; 10] =
    ["node", "zone", "rack", "host", "agent", "label.NAME", "lost", "status", "artifact", "version"];
pub const NODE_WHERE_MAX: usize = 20;
