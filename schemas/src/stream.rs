//! The stream between a node and its region: one long-lived TLS connection per node.
//!
//! Frames are a 4-byte big-endian length and that many bytes of JSON, at most [`FRAME_BYTES_MAX`]. The node speaks first:
//! [`FromNode::Hello`] if it showed its certificate, [`FromNode::Enrol`] or [`FromNode::Restore`] if it has none that is valid; with
//! what it gets for those it connects anew. Everything may be repeated: messages carry levels and versions, not changes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    ArtifactId, NodeId, PackId, RackName, RegionName, RequestId, ServiceName, ZoneName,
    envelope::Envelope,
    events::{GoalVersion, NodeStatus, StringMap},
};

/// Largest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromNode {
    /// A new machine asks for an identity with an enrolment token. Answered by [`FromRegion::Certified`].
    Enrol {
        token: String,
        node: NodeId,
        /// For a certificate, in PEM.
        request: String,
    },
    /// A node whose certificate ran out while it was away asks for the next one, for the same key. Answered as an enrolment.
    Restore {
        certificate: String,
        request: String,
    },
    /// A node that is connected asks for its next certificate, before the present one runs out. Answered by [`FromRegion::Certified`].
    Renew {
        request: String,
    },
    Hello(Hello),
    /// Sent as often as [`FromRegion::Welcome`] says, when nothing else is.
    Beat,
    Report(NodeReport),
    /// All packs of this artifact that the node serves now, whatever they were fetched for. Replaces what it said before
    /// of this artifact: sent after each Hello and when packs are removed.
    Have {
        artifact: ArtifactId,
        packs: Vec<PackId>,
    },
    /// Further packs that the node verified and serves from now on.
    HaveMore {
        artifact: ArtifactId,
        packs: Vec<PackId>,
    },
    /// The root object of an artifact, please. Answered by [`FromRegion::Root`].
    RootWanted {
        artifact: ArtifactId,
    },
    /// The node lacks these packs: peers or tickets, please. Answered by [`FromRegion::Sources`] as sources appear, until
    /// the node has them or says [`FromNode::Done`]. Adds to what was wanted; a pack named again says that the sources
    /// told so far did not help.
    SourcesWanted {
        artifact: ArtifactId,
        packs: Vec<PackId>,
    },
    /// A ticket was used and the pack is verified and served; or not, and the ticket is given back.
    TicketDone {
        artifact: ArtifactId,
        pack: PackId,
        ok: bool,
    },
    /// A peer served bytes that are not what it said.
    PeerLied {
        peer: NodeId,
        pack: PackId,
    },
    /// A peer did not give a pack that it was said to have: it was silent, too slow, away, or did not have it. No lie: the
    /// fault may be the network's, or this node's own.
    PeerFailed {
        peer: NodeId,
        pack: PackId,
    },
    /// A ticket was used, and the bucket gave other bytes than the pack's, or none.
    PackDamaged {
        artifact: ArtifactId,
        pack: PackId,
    },
    /// Nothing more is wanted of this artifact.
    Done {
        artifact: ArtifactId,
    },
    /// What was asked with [`FromRegion::Query`]; each is answered once, or not at all.
    Answer {
        query: RequestId,
        answer: Answer,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The end of a service's log, whole lines.
    Log(String),
    /// Why there is no answer, for people.
    None(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// As in the certificate that it showed.
    pub node: NodeId,
    /// Made anew at each start of the agent: two machines with one identity are told apart by it.
    pub instance: String,
    pub zone: ZoneName,
    pub rack: RackName,
    /// Where the node's services and its swarm port are reached.
    pub host: String,
    pub swarm_port: u16,
    pub agent_version: String,
    /// Grows with each start of the agent.
    pub boot: u64,
    /// As [`crate::labels`] has them.
    #[serde(default)]
    pub labels: StringMap,
    /// Whether it knows [`FromRegion::Query`].
    #[serde(default)]
    pub answers_queries: bool,
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
    /// The node's certificate in PEM, for the key that its request named.
    Certified {
        certificate: String,
    },
    /// Whom to believe from now on: the region's authorities in PEM, and nodes that are not believed whatever they show.
    Trust {
        authorities: String,
        revoked: BTreeSet<NodeId>,
    },
    Welcome {
        region: RegionName,
        beat_seconds: u32,
    },
    /// The connection ends; `retry_seconds` is None if trying again cannot help.
    Refused {
        reason: String,
        retry_seconds: Option<u32>,
    },
    /// Always the newest of its service; believed for its signature alone.
    Goal(Envelope),
    /// A query of somebody's; believed for its signature alone.
    Query(Envelope),
    /// None: the region does not have the artifact.
    Root {
        artifact: ArtifactId,
        root: Option<serde_json::Value>,
    },
    /// Adds to the sources that were told before.
    Sources {
        artifact: ArtifactId,
        peers: Vec<PeerPacks>,
        tickets: Vec<Ticket>,
    },
}

/// A peer and which of the wanted packs it has, or will have: then it lets the node wait there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerPacks {
    pub node: NodeId,
    /// `host:port` of its swarm listener.
    pub address: String,
    pub rack: RackName,
    pub packs: Vec<PackId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<Planned>,
}

/// By the region's plan, these packs come from this peer, and not from whoever was planned before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Planned {
    /// Packs of different ones go different ways: one that is late holds up no other.
    pub stripe: u8,
    /// Whoever was planned before is gone, or does not help: nothing of what it sends is waited for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_once: bool,
}

/// Leave to read one pack from the regional bucket, once, until it expires.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    pub pack: PackId,
    pub bytes: u64,
    pub url: String,
    /// What verifies its blocks of 64 KiB one by one, in base64, if the region has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outline: Option<String>,
}
