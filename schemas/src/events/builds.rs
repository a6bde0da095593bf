//! Builds: a commit becomes an artifact.

use apache_avro::AvroSchema;
use serde::{Deserialize, Serialize};

use super::{Processed, RunSpec, StringMap, events, symbols};
use crate::{
    ArtifactId, ArtifactName, ClaimId, CommitSha, JobId, PackId, QueueName, RequestId, Timestamp, WorkerId,
    auth::Speaker,
};

events! {
    /// Requests to the queue. Key: the queue.
    BuildRequest on BUILD_REQUESTS by |e| {
        BuildRequested => e.queue,
        CancelRequested => e.job.queue,
        AttemptFinished => e.job.queue,
    } spoken {
        BuildRequested => Speaker::Anyone,
    }
}

events! {
    /// What workers say all the time: kept a few hours, and by the queue's leader in memory only. Key: the queue.
    WorkerSignal on WORKER_SIGNALS by |e| {
        WorkerReady => e.queue,
        Heartbeat => e.job.queue,
    }
}

events! {
    /// Facts of the queue. Key: the queue.
    BuildFact on BUILDS by |e| {
        JobQueued => e.job.queue,
        JobStarted => e.job.queue,
        JobRequeued => e.job.queue,
        JobCanceled => e.job.queue,
        BuildSucceeded => e.job.queue,
        BuildFailed => e.job.queue,
        WorkerLost => e.job.queue,
        // One partition's transaction, whatever the queues in it.
        Processed => { let _ = e; "processed" },
    }
}

events! {
    /// Where a build's output can be read. Key: the attempt.
    BuildLog on BUILD_LOGS by |e| {
        LogSegmentStored => format_args!("{}/{}", e.job, e.attempt),
    }
}

events! {
    /// What of a build that still runs is in the main bucket already. Key: the attempt.
    PackHint on PACK_HINTS by |e| {
        PacksUploaded => format_args!("{}/{}", e.job, e.attempt),
    }
}

/// Asks for a commit to be built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct BuildRequested {
    pub queue: QueueName,
    pub build: BuildSpec,
}

/// What to build, how, and how to run what comes out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[serde(deny_unknown_fields)]
#[avro(namespace = "longshore")]
pub struct BuildSpec {
    pub name: ArtifactName,
    /// A git URL: https, ssh, or file where the deployment allows it.
    pub repository: String,
    pub commit: CommitSha,
    /// Program and arguments, run in the checkout's root; no shell is implied.
    pub command: Vec<String>,
    /// The file or directory that the command leaves, relative to the checkout's root.
    pub output: String,
    /// Added to the few variables that a build sees.
    #[serde(with = "crate::avro::string_map", default)]
    #[avro(with)]
    pub environment: StringMap,
    #[serde(default = "default_time_limit")]
    pub time_limit_seconds: u32,
    #[serde(with = "crate::avro::string_map", default)]
    #[avro(with)]
    pub labels: StringMap,
    /// Travels with the artifact: what nodes execute.
    pub run: RunSpec,
}

fn default_time_limit() -> u32 {
    15 * 60
}

/// Asks for a job to end without a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct CancelRequested {
    pub job: JobId,
}

/// A worker's word, checked by the API, on how an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct AttemptFinished {
    pub job: JobId,
    pub attempt: u32,
    pub worker: WorkerId,
    pub outcome: AttemptOutcome,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(repr = "bare_union")]
pub enum AttemptOutcome {
    AttemptSucceeded(AttemptSucceeded),
    AttemptFailed(AttemptFailed),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct AttemptSucceeded {
    pub artifact: ArtifactSummary,
}

/// What an artifact amounts to. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ArtifactSummary {
    pub artifact: ArtifactId,
    pub name: ArtifactName,
    /// Of the files, as they will lie on a node.
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub size_bytes: u64,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub files: u64,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub chunks: u64,
    /// Packs of data, manifest and layout.
    pub packs: u32,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub pack_bytes: u64,
    /// Of the packs, those that no earlier artifact had.
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub new_pack_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct AttemptFailed {
    pub reason: FailureReason,
    /// For people: what went wrong and what to do.
    pub message: String,
}

symbols! {
    /// Why a build failed, for programs.
    pub enum FailureReason {
        /// The repository could not be reached or read.
        RepositoryUnreachable,
        /// The repository does not have the commit.
        CommitNotFound,
        CommandNotFound,
        /// The command ended with another status than 0.
        CommandFailed,
        TimeLimitExceeded,
        /// The command left nothing at the output path.
        OutputMissing,
        /// The output holds what an artifact cannot.
        OutputInvalid,
        /// Packs could not be stored.
        UploadFailed,
        /// The worker's own fault: disk full, cannot start processes.
        WorkerFault,
        /// Every attempt was lost with its worker.
        AttemptsExhausted,
    }
}

/// A worker waits for a job. Repeated while it waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct WorkerReady {
    pub queue: QueueName,
    pub worker: WorkerId,
    pub claim: ClaimId,
    pub expires_at: Timestamp,
}

/// A worker is at work on an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct Heartbeat {
    pub job: JobId,
    pub attempt: u32,
    pub worker: WorkerId,
}

/// A job stands in its queue. Its number there is its place in the order, for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct JobQueued {
    pub job: JobId,
    /// The request that asked for it.
    pub request: RequestId,
    pub build: BuildSpec,
}

/// The oldest queued job went to a worker's claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct JobStarted {
    pub job: JobId,
    /// Counts from 1, and fences what earlier attempts still send.
    pub attempt: u32,
    pub worker: WorkerId,
    pub claim: ClaimId,
}

/// An attempt was given up; the job is at the head of its queue again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct JobRequeued {
    pub job: JobId,
    /// The attempt that ended.
    pub attempt: u32,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct JobCanceled {
    pub job: JobId,
    /// The attempt that ran, or 0.
    pub attempt: u32,
}

/// The artifact is stored and named; no other will be for this job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct BuildSucceeded {
    pub job: JobId,
    pub attempt: u32,
    pub worker: WorkerId,
    pub artifact: ArtifactSummary,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct BuildFailed {
    pub job: JobId,
    pub attempt: u32,
    pub reason: FailureReason,
    pub message: String,
}

/// A worker fell silent in the middle of an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct WorkerLost {
    pub worker: WorkerId,
    pub job: JobId,
    pub attempt: u32,
    pub silent_seconds: u32,
}

/// A piece of a build's output is in the main bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct LogSegmentStored {
    pub job: JobId,
    pub attempt: u32,
    /// Counts from 0, without gaps.
    pub index: u32,
    pub bytes: u32,
    /// The object's key in the main bucket.
    pub object: String,
}

/// Packs that an attempt has uploaded, by its worker's word: who copies one looks at its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct PacksUploaded {
    pub job: JobId,
    pub attempt: u32,
    pub packs: Vec<UploadedPack>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct UploadedPack {
    pub pack: PackId,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub bytes: u64,
}
