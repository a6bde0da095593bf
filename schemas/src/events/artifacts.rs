//! Artifacts: a stored build reaches every region's bucket and may be deployed.

use apache_avro::AvroSchema;
use serde::{Deserialize, Serialize};

use super::{ArtifactSummary, Processed, RunSpec, events, symbols};
use crate::{ArtifactId, CommitSha, JobId, RegionName, RequestId, ServiceName, auth::Speaker};

events! {
    /// Requests to replication. Key: the artifact.
    ArtifactRequest on ARTIFACT_REQUESTS by |e| {
        ReplicationRequested => e.summary.artifact,
        ReplicaReported => e.artifact,
        PinRequested => e.artifact,
        UnpinRequested => e.artifact,
        ImportRequested => e.summary.artifact,
        KeepRequested => e.artifact,
        LetGoRequested => e.artifact,
    } spoken {
        ReplicaReported => Speaker::Region(&e.region),
    }
}

events! {
    /// Facts of replication. Key: the artifact.
    ArtifactFact on ARTIFACTS by |e| {
        ReplicationStarted => e.summary.artifact,
        ReplicaProgressed => e.artifact,
        ReplicaStored => e.artifact,
        ReplicaFailed => e.artifact,
        ReplicationCompleted => e.artifact,
        ArtifactPinned => e.artifact,
        ArtifactUnpinned => e.artifact,
        ArtifactRetired => e.artifact,
        Processed => { let _ = e; "processed" },
        ReplicaRegionsSet => e.artifact,
        ArtifactImported => e.summary.artifact,
        ArtifactKept => e.artifact,
        ArtifactLetGo => e.artifact,
    }
}

/// Asks for an artifact of the main bucket to be in every region. Sent by the queue once a build succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ReplicationRequested {
    pub summary: ArtifactSummary,
    pub source: ArtifactSource,
    pub run: RunSpec,
}

/// What an artifact was built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ArtifactSource {
    pub job: JobId,
    pub repository: String,
    pub commit: CommitSha,
}

/// Asks for an artifact that was built elsewhere to be in every region. The API has seen every pack of it in the main bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ImportRequested {
    pub summary: ArtifactSummary,
    pub origin: ArtifactOrigin,
    pub run: RunSpec,
}

/// Where an artifact comes from that no job here built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ArtifactOrigin {
    /// Where it was built, or taken from: a URL, as the one who imported it says.
    pub url: String,
    /// Whose word that is.
    pub imported_by: String,
}

/// A region's level for one artifact; it replaces the region's earlier ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ReplicaReported {
    pub artifact: ArtifactId,
    pub region: RegionName,
    pub status: ReplicaStatus,
    pub packs_done: u32,
    /// Copied from the main bucket for this artifact; packs that the region had already are not counted.
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub bytes_copied: u64,
    /// What went wrong, if something did.
    pub error: Option<String>,
}

symbols! {
    pub enum ReplicaStatus {
        Copying,
        /// Every pack is in the region's bucket and was verified.
        Stored,
        /// Tried and not done; the region goes on trying.
        Failed,
    }
}

/// Asks that an artifact be kept for a service, and whether all of these regions have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct PinRequested {
    pub artifact: ArtifactId,
    pub service: ServiceName,
    /// The deploy that asks, which the answer names.
    pub deploy: RequestId,
    pub regions: Vec<RegionName>,
}

/// The service needs the artifact no longer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct UnpinRequested {
    pub artifact: ArtifactId,
    pub service: ServiceName,
}

/// A person wants the artifact kept, whatever its age, until it is let go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct KeepRequested {
    pub artifact: ArtifactId,
    /// For people; may be empty.
    pub reason: String,
}

/// No person wants the artifact kept any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct LetGoRequested {
    pub artifact: ArtifactId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ReplicationStarted {
    pub summary: ArtifactSummary,
    pub source: ArtifactSource,
    pub run: RunSpec,
    pub regions: Vec<RegionName>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ReplicaProgressed {
    pub artifact: ArtifactId,
    pub region: RegionName,
    pub packs_done: u32,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub bytes_copied: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ReplicaStored {
    pub artifact: ArtifactId,
    pub region: RegionName,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub bytes_copied: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ReplicaFailed {
    pub artifact: ArtifactId,
    pub region: RegionName,
    pub error: String,
}

/// Every region has the artifact: it is deployable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ReplicationCompleted {
    pub artifact: ArtifactId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ArtifactPinned {
    pub artifact: ArtifactId,
    pub service: ServiceName,
    pub deploy: RequestId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ArtifactUnpinned {
    pub artifact: ArtifactId,
    pub service: ServiceName,
}

/// The artifact may be deployed no more, and its packs may be collected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ArtifactRetired {
    pub artifact: ArtifactId,
}

/// The installation's regions have changed, and so has where the artifact must be. Copies in regions that stay are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ReplicaRegionsSet {
    pub artifact: ArtifactId,
    /// Every one, the new ones included.
    pub regions: Vec<RegionName>,
    /// Those that have it to copy.
    pub added: Vec<RegionName>,
}

/// An artifact that was built elsewhere has to be in these regions, as one that was built here has after ReplicationStarted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ArtifactImported {
    pub summary: ArtifactSummary,
    pub origin: ArtifactOrigin,
    pub run: RunSpec,
    pub regions: Vec<RegionName>,
}

/// Kept from retirement because a person, who is the fact's actor, wants it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ArtifactKept {
    pub artifact: ArtifactId,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ArtifactLetGo {
    pub artifact: ArtifactId,
}
