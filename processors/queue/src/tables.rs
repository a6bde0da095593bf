//! The queue's State. Written by [`crate::Queue`]'s facts only; the control role reads it to answer queries.
//!
//! A job has two rows: what was asked for ([`SPECS`], large, written once) and where it stands ([`JOBS`], small, written
//! with each step), so that a step never reads or writes the whole specification.

use longshore_processor::{Table, TableInfo};
use longshore_schemas::{
    ArtifactName, ClaimId, JobId, QueueName, RequestId, Timestamp, WorkerId,
    events::{ArtifactSummary, BuildSpec, FailureReason},
    http::JobStatus,
};
use serde::{Deserialize, Serialize};

/// Where each job stands. Every job that ever was has a row; a queue's jobs are neighbours, oldest first.
pub const JOBS: Table<JobId, Job> = Table::new(0, "jobs");
/// What each job was asked to build.
pub const SPECS: Table<JobId, Spec> = Table::new(1, "specs");
/// The jobs that wait, oldest first within each queue.
pub const QUEUED: Table<JobId, ()> = Table::new(2, "queued");
/// The jobs that run.
pub const RUNNING: Table<JobId, ()> = Table::new(3, "running");
/// Jobs by what they build, oldest first: read it in descending order for the newest.
pub const BY_NAME: Table<(ArtifactName, Timestamp, JobId), ()> = Table::new(4, "by_name");
/// The job that a request became.
pub const BY_REQUEST: Table<RequestId, JobId> = Table::new(5, "by_request");
/// The job that a claim was given, whatever became of it: a claim never gets a second one. The claim still has the job
/// if the job runs and its row names this claim.
pub const CLAIMS: Table<ClaimId, JobId> = Table::new(6, "claims");
/// Every queue that ever had a job.
pub const QUEUES: Table<QueueName, Counts> = Table::new(7, "queues");

pub const ALL: &[TableInfo] = &[
    JOBS.info(),
    SPECS.info(),
    QUEUED.info(),
    RUNNING.info(),
    BY_NAME.info(),
    BY_REQUEST.info(),
    CLAIMS.info(),
    QUEUES.info(),
];

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub status: Status,
    /// The last attempt that started; 0 if none did.
    pub attempt: u32,
    /// Whom the last attempt was given to.
    pub worker: Option<WorkerId>,
    /// The claim that the last attempt answered.
    pub claim: Option<ClaimId>,
    pub queued_at: Timestamp,
    /// When the last attempt started.
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Status {
    /// For the first time, or again after an attempt was given up.
    Queued,
    Running,
    Succeeded(ArtifactSummary),
    Failed(Failure),
    Canceled,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub reason: FailureReason,
    /// For people.
    pub message: String,
}

/// What a job was asked to build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    pub request: RequestId,
    pub build: BuildSpec,
}

/// A [`Spec`] by reference, which serialises alike.
#[derive(Serialize)]
pub(crate) struct SpecRef<'a> {
    pub(crate) request: &'a RequestId,
    pub(crate) build: &'a BuildSpec,
}

/// A queue in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    pub queued: u32,
    pub running: u32,
    /// The number of the newest job; they count from 1.
    pub last_number: u64,
    /// No job below this number waits. It spares the search for the oldest one the numbers that are long gone.
    pub head: u64,
}

impl Job {
    pub fn queued(at: Timestamp) -> Self {
        Self {
            status: Status::Queued,
            attempt: 0,
            worker: None,
            claim: None,
            queued_at: at,
            started_at: None,
            ended_at: None,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.status, Status::Running)
    }

    pub fn artifact(&self) -> Option<&ArtifactSummary> {
        match &self.status {
            Status::Succeeded(artifact) => Some(artifact),
            _ => None,
        }
    }

    pub fn failure(&self) -> Option<&Failure> {
        match &self.status {
            Status::Failed(failure) => Some(failure),
            _ => None,
        }
    }
}

impl Status {
    pub fn kind(&self) -> JobStatus {
        match self {
            Self::Queued => JobStatus::Queued,
            Self::Running => JobStatus::Running,
            Self::Succeeded(_) => JobStatus::Succeeded,
            Self::Failed(_) => JobStatus::Failed,
            Self::Canceled => JobStatus::Canceled,
        }
    }

    /// For messages.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded(_) => "succeeded",
            Self::Failed(_) => "failed",
            Self::Canceled => "canceled",
        }
    }
}
