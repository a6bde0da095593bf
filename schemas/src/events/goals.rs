//! Goals: which artifact a service should run, and how that spreads.

use std::fmt;

use apache_avro::AvroSchema;
use serde::{Deserialize, Serialize};

use super::{Processed, RunSpec, events};
use crate::{ArtifactId, RegionName, RequestId, ServiceName, ZoneName};

events! {
    /// Requests to goals. Key: the service.
    GoalRequest on GOAL_REQUESTS by |e| {
        DeployRequested => e.service,
        RollbackRequested => e.service,
        PauseRequested => e.service,
        ResumeRequested => e.service,
        LiftHoldRequested => e.service,
        PinAnswered => e.service,
        ConvergenceReported => e.service,
    }
}

events! {
    /// Facts of goals. Key: the service.
    GoalFact on GOALS by |e| {
        DeployAccepted => e.service,
        DeployRefused => e.service,
        GoalSet => e.service,
        WaveStarted => e.service,
        ConvergenceRecorded => e.service,
        WavePassed => e.service,
        RolloutPaused => e.service,
        RolloutResumed => e.service,
        RolloutHalted => e.service,
        RolledBack => e.service,
        RolloutCompleted => e.service,
        HoldLifted => e.service,
        Processed => { let _ = e; "processed" },
    }
}

events! {
    /// The regional key-value store. Key: `region/service`; the newest is what the region must run.
    GoalState on GOAL_STATE by |e| {
        RegionalGoal => format_args!("{}/{}", e.region, e.service),
    }
}

/// A goal's version: the revision grows with each deploy and rollback, the step with each wave, pause or resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct GoalVersion {
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub revision: u64,
    pub step: u32,
}

impl fmt::Display for GoalVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.revision, self.step)
    }
}

/// How a rollout spreads: one wave after the other, each only once the one before it has passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[serde(deny_unknown_fields)]
#[avro(namespace = "longshore")]
pub struct RolloutPlan {
    pub waves: Vec<Wave>,
    /// Share of a wave's nodes that may fail, in basis points (1/10,000); one more halts the rollout.
    #[serde(default)]
    pub failure_budget_bp: u32,
}

/// The nodes that a wave adds: those of these regions and zones whose slot is below the fraction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[serde(deny_unknown_fields)]
#[avro(namespace = "longshore")]
pub struct Wave {
    pub regions: Vec<RegionName>,
    /// Empty: every zone of the regions.
    #[serde(default)]
    pub zones: Vec<ZoneName>,
    /// In basis points (1/10,000) of the service's slots.
    #[serde(default = "everyone")]
    pub fraction_bp: u32,
    /// How long the wave must stay converged before the next starts.
    #[serde(default)]
    pub bake_seconds: u32,
}

fn everyone() -> u32 {
    10_000
}

/// Asks for a service to run an artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct DeployRequested {
    pub service: ServiceName,
    pub artifact: ArtifactId,
    pub plan: RolloutPlan,
}

/// Asks for an earlier revision's artifact, at once and everywhere, as a new revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct RollbackRequested {
    pub service: ServiceName,
    /// None: the last revision that completed before the present one.
    pub to: Option<ArtifactId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct PauseRequested {
    pub service: ServiceName,
}

/// Asks a paused or halted rollout to go on with its present wave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ResumeRequested {
    pub service: ServiceName,
}

/// Lets an artifact that was rolled back from be deployed again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct LiftHoldRequested {
    pub service: ServiceName,
    pub artifact: ArtifactId,
}

/// Replication's answer to a `PinRequested`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct PinAnswered {
    pub service: ServiceName,
    pub deploy: RequestId,
    pub artifact: ArtifactId,
    /// How to run it; None if refused.
    pub run: Option<RunSpec>,
    /// Why not, and what to do; None if pinned.
    pub refusal: Option<String>,
}

/// One shard's cumulative level for a service's present goal. It replaces the shard's earlier ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ConvergenceReported {
    pub service: ServiceName,
    pub region: RegionName,
    pub shard: u32,
    pub version: GoalVersion,
    pub level: Convergence,
    /// One of the failures, for people.
    pub failure: Option<String>,
}

/// Numbers of nodes in a cohort. Nodes that are lost are in none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct Convergence {
    pub eligible: u32,
    pub converged: u32,
    pub failed: u32,
}

impl std::ops::AddAssign for Convergence {
    fn add_assign(&mut self, other: Self) {
        self.eligible = self.eligible.saturating_add(other.eligible);
        self.converged = self.converged.saturating_add(other.converged);
        self.failed = self.failed.saturating_add(other.failed);
    }
}

/// A deploy is wanted; its artifact is being pinned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct DeployAccepted {
    pub service: ServiceName,
    pub deploy: RequestId,
    pub artifact: ArtifactId,
    pub plan: RolloutPlan,
    /// The revision that this rolls back from, if it is a rollback.
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub rollback_of: u64,
}

/// The artifact could not be pinned; the service's goal stays as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct DeployRefused {
    pub service: ServiceName,
    pub deploy: RequestId,
    pub artifact: ArtifactId,
    pub reason: String,
}

/// The service's goal from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct GoalSet {
    pub service: ServiceName,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub revision: u64,
    pub deploy: RequestId,
    pub artifact: ArtifactId,
    pub run: RunSpec,
    pub plan: RolloutPlan,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct WaveStarted {
    pub service: ServiceName,
    pub version: GoalVersion,
    /// Index into the plan's waves.
    pub wave: u32,
}

/// A shard's level, as reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ConvergenceRecorded {
    pub service: ServiceName,
    pub region: RegionName,
    pub shard: u32,
    pub version: GoalVersion,
    pub level: Convergence,
    pub failure: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct WavePassed {
    pub service: ServiceName,
    pub version: GoalVersion,
    pub wave: u32,
    pub level: Convergence,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct RolloutPaused {
    pub service: ServiceName,
    pub version: GoalVersion,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct RolloutResumed {
    pub service: ServiceName,
    pub version: GoalVersion,
}

/// More of a wave's nodes failed than its budget allows: no further node gets the artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct RolloutHalted {
    pub service: ServiceName,
    pub version: GoalVersion,
    pub wave: u32,
    pub level: Convergence,
    /// Failures that the budget allowed.
    pub allowed: u32,
    /// One of the failures, for people.
    pub failure: Option<String>,
}

/// The goal went back to an earlier artifact; the one before is held until a person lifts the hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct RolledBack {
    pub service: ServiceName,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub from_revision: u64,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub revision: u64,
    pub held: ArtifactId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct RolloutCompleted {
    pub service: ServiceName,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub revision: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct HoldLifted {
    pub service: ServiceName,
    pub artifact: ArtifactId,
}

/// What a region's nodes must run of one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct RegionalGoal {
    pub region: RegionName,
    pub service: ServiceName,
    pub version: GoalVersion,
    /// A node runs the first target whose cohort it is in, and nothing if it is in none.
    pub targets: Vec<Target>,
}

/// An artifact, and the nodes that run it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct Target {
    pub cohort: Cohort,
    /// The revision that brought this artifact.
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub revision: u64,
    pub artifact: ArtifactId,
    pub run: RunSpec,
}

/// A set of nodes, without a list: membership is computed from the service and the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct Cohort {
    /// Empty: every zone.
    pub zones: Vec<ZoneName>,
    pub fraction_bp: u32,
}

impl Cohort {
    pub const EVERYONE_BP: u32 = 10_000;

    pub fn everyone() -> Self {
        Self { zones: Vec::new(), fraction_bp: Self::EVERYONE_BP }
    }

    /// Whether a node of this slot and zone is in the cohort.
    pub fn contains(&self, slot: u32, zone: &ZoneName) -> bool {
        slot < self.fraction_bp && (self.zones.is_empty() || self.zones.contains(zone))
    }
}
