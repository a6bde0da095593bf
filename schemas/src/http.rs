//! The HTTP API's types, under `/v1`. JSON; times are RFC 3339 in answers, sizes are bytes, durations carry their unit in
//! the name. Errors are `application/problem+json` ([`Problem`]).
//!
//! Views are what the read model answers. Bodies refuse unknown fields, so that a misspelt option is never ignored.

mod nodes;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ArtifactId, ArtifactName, ClaimId, CommitSha, JobId, PackId, QueueName, RegionName, RequestId, ServiceName,
    Timestamp, WorkerId,
    events::{
        ArtifactOrigin, ArtifactSource, ArtifactSummary, BuildSpec, Convergence, FailureReason, GoalVersion,
        ReplicaStatus, RolloutPlan, RunSpec,
    },
};

pub use nodes::*;

/// The header that makes a state-changing call idempotent; its value is a [`RequestId`].
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The header in which the answer to a call that changed something names its request's place: `topic,partition,offset`.
pub const REQUEST_PLACE: &str = "longshore-request";

/// The field of a view's query that takes such a place: the view includes what became of that request.
pub const AFTER_REQUEST: &str = "after_request";

/// RFC 9457.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI reference that names the kind of problem, such as `/problems/artifact-not-deployable`.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// What is wrong here, and what to do.
    pub detail: String,
    /// The request's id, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
}

impl Problem {
    /// Whether it is of this kind.
    pub fn is(&self, kind: &str) -> bool {
        self.kind.strip_prefix("/problems/") == Some(kind)
    }
}

/// The kind of problem of a finish whose packs are not all there, or not any more: publish again, and finish again.
pub const PACKS_MISSING: &str = "packs-missing";

/// A time in answers: RFC 3339.
pub mod rfc3339 {
    use crate::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
        Ok(Timestamp(time.as_millisecond()))
    }

    pub mod option {
        use super::{Deserialize, Deserializer, Serializer, Timestamp};

        pub fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => serializer.collect_str(time),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
            #[derive(Deserialize)]
            struct Wrapped(#[serde(with = "super")] Timestamp);
            Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|Wrapped(time)| time))
        }
    }
}

/// One page of a list; `next` is passed as `?after=` to get the next page. Every list is answered so, `/v1/queues`,
/// `/v1/services` and `/v1/regions` too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `POST /v1/builds` asks for a build; the answer is its [`JobView`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildBody {
    pub queue: QueueName,
    pub build: BuildSpec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    Queued,
    Running,
    Succeeded,
    Failed,
    Canceled,
}

impl JobStatus {
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }
}

/// `GET /v1/jobs/{job}` and the items of `GET /v1/jobs?queue=&status=&name=&after=&limit=`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    pub job: JobId,
    pub status: JobStatus,
    pub build: BuildSpec,
    /// The last attempt that started; 0 if none did.
    pub attempt: u32,
    pub worker: Option<WorkerId>,
    #[serde(with = "rfc3339")]
    pub queued_at: Timestamp,
    #[serde(with = "rfc3339::option")]
    pub started_at: Option<Timestamp>,
    #[serde(with = "rfc3339::option")]
    pub ended_at: Option<Timestamp>,
    /// How many older jobs wait in the queue, while this one does.
    pub ahead: Option<u32>,
    pub artifact: Option<ArtifactSummary>,
    pub failure: Option<JobFailure>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobFailure {
    pub reason: FailureReason,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactStatus {
    Replicating,
    /// In every region: it can be deployed.
    Deployable,
    Retired,
}

/// `GET /v1/artifacts/{artifact}` and the items of `GET /v1/artifacts?name=&after=&limit=`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArtifactView {
    #[serde(flatten)]
    pub summary: ArtifactSummary,
    pub status: ArtifactStatus,
    pub source: Source,
    pub run: RunSpec,
    #[serde(with = "rfc3339")]
    pub built_at: Timestamp,
    #[serde(with = "rfc3339::option")]
    pub completed_at: Option<Timestamp>,
    pub replicas: Vec<ReplicaView>,
    /// Services that keep it.
    pub pinned_by: Vec<ServiceName>,
    /// Since when it may not be deployed any more.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<Timestamp>,
    /// The person who wants it kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted_by: Option<WantedView>,
}

/// Why a person wants an artifact kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedView {
    pub by: String,
    pub reason: String,
    #[serde(with = "rfc3339")]
    pub since: Timestamp,
}

/// What `POST /v1/artifacts/{artifact}/keep` takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepBody {
    /// For people.
    #[serde(default)]
    pub reason: String,
}

/// Artifacts that a [`RetentionView`] lists of each kind.
pub const RETENTION_ITEMS_MAX: usize = 1_000;

/// What would be retired and collected now, and why all else is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RetentionView {
    /// What nothing keeps, oldest first; perhaps not all.
    pub retired: Vec<RetiringView>,
    pub retired_total: u64,
    pub kept: Vec<KeptView>,
    pub kept_total: u64,
    /// What would be deleted of the main bucket once these have been retired, and those before them, for as long as this.
    pub grace_seconds: u64,
    pub collected: CollectedView,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetiringView {
    pub artifact: ArtifactId,
    pub name: ArtifactName,
    #[serde(with = "rfc3339")]
    pub built_at: Timestamp,
    /// Some of it may be other artifacts' as well.
    pub pack_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptView {
    pub artifact: ArtifactId,
    pub name: ArtifactName,
    #[serde(with = "rfc3339")]
    pub built_at: Timestamp,
    pub pack_bytes: u64,
    /// For people.
    pub because: String,
}

/// What a round over a bucket deletes and keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedView {
    pub roots_kept: u64,
    pub roots_deleted: u64,
    pub packs_kept: u64,
    pub pack_bytes_kept: u64,
    pub packs_deleted: u64,
    pub pack_bytes_deleted: u64,
}

/// What an artifact was made from: a commit, by a job; or something elsewhere, by an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    Built(ArtifactSource),
    Imported(ArtifactOrigin),
}

impl Source {
    /// The job that built it.
    pub fn job(&self) -> Option<&JobId> {
        match self {
            Self::Built(source) => Some(&source.job),
            Self::Imported(_) => None,
        }
    }
}

/// `POST /v1/imports` publishes what was built elsewhere; the answer is its [`ArtifactView`]. Its packs are uploaded before, where
/// `POST /v1/imports/uploads` says: an [`UploadsBody`], an [`UploadsAnswer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportBody {
    pub name: ArtifactName,
    /// Where it was built, or taken from: a URL.
    pub origin: String,
    pub run: RunSpec,
    /// The artifact's root object, as [`FinishBody`] has it.
    pub root: serde_json::Value,
    pub new_pack_bytes: u64,
}

/// One cell of the replication matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaView {
    pub region: RegionName,
    /// None: the region has not reported yet.
    pub status: Option<ReplicaStatus>,
    pub packs_done: u32,
    pub packs: u32,
    pub bytes_copied: u64,
    /// Of the packs that are done, copied or not; reckoned from their number while it is being copied.
    #[serde(default)]
    pub bytes_done: u64,
    #[serde(default)]
    pub bytes: u64,
    /// Of late, while it is being copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// When it will be done at that rate.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expected_at: Option<Timestamp>,
    /// Why it is not there, if the region failed last.
    pub error: Option<String>,
    /// What went wrong last, though it goes on since, and how often something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    #[serde(default)]
    pub failures: u32,
    #[serde(with = "rfc3339::option")]
    pub reported_at: Option<Timestamp>,
}

/// `GET /v1/artifacts/{artifact}/files?under=&after=&limit=`: what its tree holds, sorted by the bytes of the paths. `under`
/// names a folder or one entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FilesView {
    pub artifact: ArtifactId,
    pub name: ArtifactName,
    #[serde(flatten)]
    pub page: Page<FileView>,
}

/// `GET /v1/artifacts/{artifact}/files/{path}` answers a file's bytes: whole, or as `Range` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileView {
    pub path: String,
    pub kind: FileKind,
    /// Permissions in octal digits, of files only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    pub size_bytes: u64,
    /// Where a link points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    File,
    Link,
    /// An empty one; others exist by what they hold.
    Directory,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesQuery {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// `POST /v1/artifacts/{artifact}/packs`: where packs that its root (`GET …/root`) names can be read, at most [`UPLOADS_MAX`] a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacksBody {
    pub packs: Vec<PackId>,
}

/// Presigned GETs, one for each pack that was asked for, in its order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PacksAnswer {
    pub packs: Vec<PackUrl>,
}

/// `POST /v1/services/{service}/deploys`; the answer is the [`ServiceView`] with its new revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployBody {
    pub artifact: ArtifactId,
    /// None: every region in one wave, no failures allowed.
    #[serde(default)]
    pub plan: Option<RolloutPlan>,
}

/// `POST /v1/services/{service}/rollbacks`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackBody {
    /// None: what ran before the present revision.
    #[serde(default)]
    pub to: Option<ArtifactId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutStatus {
    /// The artifact is being pinned.
    Pending,
    /// The artifact could not be pinned.
    Refused,
    Rolling,
    Paused,
    Halted,
    Completed,
    /// A newer revision took its place before it completed.
    Superseded,
}

/// `GET /v1/services/{service}` and the items of `GET /v1/services`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    pub service: ServiceName,
    /// The goal; 0 before the first.
    pub version: GoalVersion,
    /// Newest first, at most 50.
    pub revisions: Vec<RevisionView>,
    /// Artifacts that were rolled back from, until a person lifts the hold.
    pub held: Vec<ArtifactId>,
    /// By region, of the present goal.
    pub regions: Vec<RegionConvergence>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RevisionView {
    /// 0 while pending, and for good if refused.
    pub revision: u64,
    pub deploy: RequestId,
    pub artifact: ArtifactId,
    pub actor: String,
    pub plan: RolloutPlan,
    pub status: RolloutStatus,
    /// Index of the present or last wave.
    pub wave: u32,
    #[serde(with = "rfc3339")]
    pub requested_at: Timestamp,
    #[serde(with = "rfc3339::option")]
    pub ended_at: Option<Timestamp>,
    /// Why it was refused or halted.
    pub reason: Option<String>,
    pub rollback_of: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegionConvergence {
    pub region: RegionName,
    #[serde(flatten)]
    pub level: Convergence,
}

/// `GET /v1/queues`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueView {
    pub queue: QueueName,
    pub queued: u32,
    pub running: u32,
}

/// `POST /v1/queues/{queue}/claims`: a worker waits for a job, up to `wait_seconds`. Answers [`Assignment`], or 204 when
/// none came; the same claim may be repeated, and gets the same job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimBody {
    pub worker: WorkerId,
    pub claim: ClaimId,
    #[serde(default = "default_wait")]
    pub wait_seconds: u32,
}

fn default_wait() -> u32 {
    30
}

/// A job for a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    pub job: JobId,
    pub attempt: u32,
    pub build: BuildSpec,
    /// Bearer token for this attempt's beats, uploads, log and finish; void once the attempt is over.
    pub credential: String,
    pub beat_seconds: u32,
    /// The last artifacts of that name, newest first: what they have need not be uploaded again.
    pub bases: Vec<BaseArtifact>,
}

/// An earlier artifact, and where its manifest and layout can be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseArtifact {
    pub artifact: ArtifactId,
    /// The artifact's root object, as stored.
    pub root: serde_json::Value,
    /// Presigned GETs of the packs of its manifest and layout.
    pub packs: Vec<PackUrl>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackUrl {
    pub pack: PackId,
    pub url: String,
}

/// `POST /v1/jobs/{job}/attempts/{attempt}/beats` has an empty body and answers this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BeatAnswer {
    /// False: the attempt is over (canceled, or given to another worker). Stop and clean up.
    pub current: bool,
}

/// `POST /v1/jobs/{job}/attempts/{attempt}/uploads`: at most [`UPLOADS_MAX`] packs a call, of each kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadsBody {
    /// Those to upload.
    pub packs: Vec<PackSize>,
    /// Those that are uploaded, and of which no earlier call said so: regions are told, and copy them while the build still runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stored: Vec<PackSize>,
}

pub const UPLOADS_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackSize {
    pub pack: PackId,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadsAnswer {
    /// One for each pack that was asked for.
    pub uploads: Vec<Upload>,
    /// Those of them that are in the main bucket already, with the size that was named: they need no upload.
    #[serde(default)]
    pub already_stored: Vec<PackId>,
}

/// A presigned PUT. The headers are signed and must be sent as they are. Status 412 means that it is there already.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Upload {
    pub pack: PackId,
    pub url: String,
    pub headers: Vec<(String, String)>,
}

/// `POST /v1/jobs/{job}/attempts/{attempt}/log`: registers the segments stored so far, asks where to PUT the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogBody {
    pub stored: Vec<LogSegment>,
    /// Index and size of the next segment; None at the end.
    pub next: Option<LogSegment>,
}

pub const LOG_SEGMENT_BYTES_MAX: u32 = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSegment {
    pub index: u32,
    pub bytes: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogAnswer {
    pub url: Option<String>,
    pub headers: Vec<(String, String)>,
}

/// `POST /v1/jobs/{job}/attempts/{attempt}/finish`. On success the artifact's root object comes with it; the API stores
/// it after it checked that every pack is there with its size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "outcome", rename_all = "snake_case")]
pub enum FinishBody {
    Succeeded { root: serde_json::Value, new_pack_bytes: u64 },
    Failed { reason: FailureReason, message: String },
}

/// The items of `GET /v1/checks`: what the API's process found when it looked at itself and at what it needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckView {
    /// What was looked at, such as `processor queue` or `disk`.
    pub check: String,
    pub state: CheckState,
    /// What was found.
    pub says: String,
    /// What to do, if something is not as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    Ok,
    /// It works, and someone should look at it.
    Warn,
    Fail,
}

impl CheckView {
    pub fn ok(check: impl Into<String>, says: impl Into<String>) -> Self {
        Self { check: check.into(), state: CheckState::Ok, says: says.into(), advice: None }
    }

    pub fn warn(check: impl Into<String>, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check: check.into(), state: CheckState::Warn, says: says.into(), advice: Some(advice.into()) }
    }

    pub fn fail(check: impl Into<String>, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: CheckState::Fail, ..Self::warn(check, says, advice) }
    }
}

/// `POST /v1/partitions/{processor}/{partition}/accept-loss`: requests that the log has lost, from one on and before another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptLossBody {
    pub from: u64,
    pub to: u64,
}

/// A loss that was accepted, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedLossView {
    pub processor: String,
    pub partition: u32,
    pub from: u64,
    pub to: u64,
    pub by: String,
}

/// The items of `GET /v1/topics`: one partition of one topic, as the API's process sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionView {
    pub topic: String,
    pub partition: u32,
    /// The first offset that retention has left, and the one that comes next.
    pub start: u64,
    pub end: u64,
    /// Places between the two. Kafka uses some of them itself.
    pub records: u64,
    /// Of the keys, values and headers of these records, each counted once and uncompressed; none if the log did not let them be
    /// read in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// `bytes` is an estimate from some of the records.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bytes_estimated: bool,
    /// Of a request topic: who processes it, as far as this process knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing: Option<ProcessingView>,
}

/// How far a partition of requests is processed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessingView {
    pub processor: String,
    /// What the answering process does for the partition: `leading`, `following`, `taking over`, `halted` or `stopped`.
    pub role: String,
    /// Who leads it, as the log calls that process; not known on a log that has one process only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The first request that is not processed yet, as applied here.
    pub processed: u64,
    /// Requests that wait.
    pub lag: u64,
    /// What went wrong last, if the partition is not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The items of `GET /v1/dead-letters`, and with the content `GET /v1/dead-letters/{offset}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetterView {
    /// Its own, by which it is named.
    pub offset: u64,
    /// When it was set aside.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// Where the record stood, and why it could not be processed.
    pub topic: String,
    pub partition: u32,
    pub record: u64,
    pub error: String,
    pub key: String,
    /// Bytes of the body, of a large one only the first 512 KiB.
    pub bytes: u64,
    /// Who tried it again, and when; what came of it is a record, or a dead letter, of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retried: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<LetterContent>,
}

/// What the record held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LetterContent {
    pub headers: BTreeMap<String, String>,
    /// The event's type and the request, if the body can be decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<serde_json::Value>,
    /// The first bytes in hexadecimal digits, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
}

/// `POST /v1/dead-letters/{offset}/retry`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryView {
    pub offset: u64,
    /// Whether this call tried it again; otherwise an earlier one had.
    pub retried: bool,
    /// Where the record stands now, as `topic/partition/offset`; not known of an earlier retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// What became of it, in words.
    pub outcome: String,
}

/// `GET /v1/whoami`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub subject: String,
    pub role: Role,
}

/// What a token may do. Each role includes the ones before it, except worker and node, which stand alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Requests and cancels builds.
    Builder,
    /// Deploys and rolls back.
    Deployer,
    Admin,
    /// Claims jobs.
    Worker,
    /// Enrols nodes with a region.
    Node,
}

/// Filters of `GET /v1/jobs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobQuery {
    pub queue: Option<QueueName>,
    pub status: Option<JobStatus>,
    pub name: Option<ArtifactName>,
    pub commit: Option<CommitSha>,
    pub after: Option<String>,
    pub limit: Option<u32>,
}

/// Filters of `GET /v1/artifacts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactQuery {
    pub name: Option<ArtifactName>,
    pub after: Option<String>,
    pub limit: Option<u32>,
}

/// Items of a page unless the query says otherwise, and at most.
pub const PAGE_ITEMS_DEFAULT: u32 = 100;
pub const PAGE_ITEMS_MAX: u32 = 1_000;

/// A claim that became a job: what the read model knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedJob {
    pub job: JobId,
    pub attempt: u32,
    pub worker: WorkerId,
    pub claim: ClaimId,
    pub build: BuildSpec,
}
