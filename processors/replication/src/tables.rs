//! Replication's State. Written by [`crate::Replication`]'s facts only; the control role reads it to answer queries.
//!
//! What an artifact is ([`ARTIFACTS`]) seldom changes; what a region says of it ([`REPLICAS`]) does, and is small.

use std::collections::BTreeSet;

use longshore_processor::{Table, TableInfo};
use longshore_schemas::{
    ArtifactId, ArtifactName, RegionName, RequestId, ServiceName, Timestamp,
    events::{ArtifactOrigin, ArtifactSource, ArtifactSummary, ReplicaStatus, RunSpec},
    http::{self, ArtifactStatus},
};
use serde::{Deserialize, Serialize};

/// Every artifact that ever was.
pub const ARTIFACTS: Table<ArtifactId, Artifact> = Table::new(0, "artifacts");
/// What each region said last. An artifact has a row for each of its regions.
pub const REPLICAS: Table<(ArtifactId, RegionName), Replica> = Table::new(1, "replicas");
/// The services that keep an artifact.
pub const PINS: Table<(ArtifactId, ServiceName), Pin> = Table::new(2, "pins");
/// Artifacts by the names they were built under, oldest first: read it in descending order for the newest. The same
/// artifact may have been built under several names.
pub const BY_NAME: Table<(ArtifactName, Timestamp, ArtifactId), ()> = Table::new(3, "by_name");
/// Every artifact once, by when it was built last, oldest first.
pub const BY_TIME: Table<(Timestamp, ArtifactId), ()> = Table::new(4, "by_time");
/// When an artifact was last built under a name: its place in [`BY_NAME`].
pub const NAMES: Table<(ArtifactId, ArtifactName), Timestamp> = Table::new(5, "names");

/// How many artifacts that are not retired must be in just these regions, by [`plan`].
pub const PLANS: Table<String, u64> = Table::new(6, "plans");

/// Every artifact that is not retired, as in [`BY_TIME`].
pub const LIVE: Table<(Timestamp, ArtifactId), ()> = Table::new(7, "live");
/// What people want kept.
pub const KEPT: Table<ArtifactId, Wish> = Table::new(8, "kept");

pub const ALL: &[TableInfo] = &[
    ARTIFACTS.info(),
    REPLICAS.info(),
    PINS.info(),
    BY_NAME.info(),
    BY_TIME.info(),
    NAMES.info(),
    PLANS.info(),
    LIVE.info(),
    KEPT.info(),
];

/// A set of regions as a text.
pub fn plan(regions: &[RegionName]) -> String {
    let regions: BTreeSet<&str> = regions.iter().map(RegionName::as_str).collect();
    regions.into_iter().collect::<Vec<_>>().join(",")
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// As last built.
    pub summary: ArtifactSummary,
    pub source: Source,
    pub run: RunSpec,
    pub status: Status,
    /// Where it must be.
    pub regions: Vec<RegionName>,
    /// When it was built last.
    pub built_at: Timestamp,
    /// Since when every region has it.
    pub completed_at: Option<Timestamp>,
    /// Since when it may not be deployed any more.
    pub retired_at: Option<Timestamp>,
}

/// What made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    Built(ArtifactSource),
    Imported(ArtifactOrigin),
}

impl From<Source> for http::Source {
    fn from(source: Source) -> Self {
        match source {
            Source::Built(source) => Self::Built(source),
            Source::Imported(origin) => Self::Imported(origin),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Replicating,
    /// In every region.
    Deployable,
    Retired,
}

impl From<Status> for ArtifactStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Replicating => Self::Replicating,
            Status::Deployable => Self::Deployable,
            Status::Retired => Self::Retired,
        }
    }
}

/// Where a region stands with an artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Replica {
    /// None: the region has not reported yet.
    pub status: Option<ReplicaStatus>,
    pub packs_done: u32,
    /// Copied from the main bucket for this artifact.
    pub bytes_copied: u64,
    /// Of late; 0 if it is not known, or nothing is copied.
    pub bytes_per_second: u64,
    /// Why the region failed, if that is what it said last.
    pub error: Option<String>,
    /// Why it failed last, whatever it said since.
    pub last_error: Option<String>,
    pub failures: u32,
    /// When it last said something new.
    pub reported_at: Option<Timestamp>,
}

impl Replica {
    pub fn is_stored(&self) -> bool {
        self.status == Some(ReplicaStatus::Stored)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The deploy that asked last.
    pub deploy: RequestId,
    pub pinned_at: Timestamp,
}

/// Why a person wants an artifact kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    pub by: String,
    pub reason: String,
    pub since: Timestamp,
}
