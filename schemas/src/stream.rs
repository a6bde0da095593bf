//! The stream between a node and its region: one long-lived TCP connection per node.
//!
//! Frames are a 4-byte big-endian length and that many bytes of JSON, at most [`FRAME_BYTES_MAX`]. The node speaks first:
//! [`FromNode::Hello`], or [`FromNode::Enrol`] the first time. Everything may be repeated: messages carry levels and
//! versions, not changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ArtifactId, NodeId, PackId, RackName, RegionName, ServiceName, ZoneName,
    events::{GoalVersion, NodeStatus, RegionalGoal},
};

/// Largest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromNode {
    /// A new machine asks for an identity with an enrolment token. Answered by [`FromRegion::Enrolled`].
    Enrol { token: String, node: NodeId },
    Hello(Hello),
    /// Sent as often as [`FromRegion::Welcome`] says, when nothing else is.
    Beat,
    Report(NodeReport),
    /// The complete packs of these artifacts that this node now has and serves; a level per artifact.
    Have { artifact: ArtifactId, packs: Vec<PackId> },
    /// The root object of an artifact, please. Answered by [`FromRegion::Root`].
    RootWanted { artifact: ArtifactId },
    /// Packs that no known peer has: tickets or peers, please. Answered by [`FromRegion::Sources`], now and when it changes.
    SourcesWanted { artifact: ArtifactId, packs: Vec<PackId> },
    /// A ticket was used, or could not be.
    TicketDone { artifact: ArtifactId, pack: PackId, ok: bool },
    /// A peer served bytes that are not what it said.
    PeerLied { peer: NodeId, pack: PackId },
    /// Nothing more is wanted of this artifact.
    Done { artifact: ArtifactId },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub node: NodeId,
    /// What [`FromRegion::Enrolled`] gave.
    pub credential: String,
    pub zone: ZoneName,
    pub rack: RackName,
    /// Where the node's services and its swarm port are reached.
    pub host: String,
    pub swarm_port: u16,
    pub agent_version: String,
    /// Grows with each start of the agent.
    pub boot: u64,
    /// The versions of the goals that the node holds.
    pub goals: BTreeMap<ServiceName, GoalVersion>,
}

/// Where the node stands with one service; it replaces what the node said of that service before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    pub service: ServiceName,
    pub version: GoalVersion,
    pub artifact: Option<ArtifactId>,
    pub status: NodeStatus,
    pub port: Option<u16>,
    pub message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromRegion {
    Enrolled { credential: String, region: RegionName },
    Welcome { region: RegionName, beat_seconds: u32 },
    /// The connection ends; `retry_seconds` is None if trying again cannot help.
    Refused { reason: String, retry_seconds: Option<u32> },
    /// Always the newest of its service.
    Goal(RegionalGoal),
    /// None: the region does not have the artifact.
    Root { artifact: ArtifactId, root: Option<serde_json::Value> },
    Sources { artifact: ArtifactId, peers: Vec<PeerPacks>, tickets: Vec<Ticket> },
}

/// A peer and which of the wanted packs it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerPacks {
    pub node: NodeId,
    /// `host:port` of its swarm listener.
    pub address: String,
    pub rack: RackName,
    pub packs: Vec<PackId>,
}

/// Leave to read one pack from the regional bucket, once, until it expires.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    pub pack: PackId,
    pub bytes: u64,
    pub url: String,
}
