//! The HTTP API under `/v1`, a schema registry under `/registry`, and the console at `/`.
//!
//! ```text
//! request ─▶ serve ─▶ routes ─▶ limits ─▶ access ─▶ extract ─▶ handler ──append──▶ log
//!          (bounded)  (table)  (gates)    (role)   (checked)     │ ◀──outcome──── read model
//!                                                                ▼
//!                                                    view, or problem+json
//! ```
//!
//! - **Asking** (`builds`, `imports`, `services`): a call becomes one request on a topic. The answer is what became of it: the view,
//!   the refusal, or 202 if that takes longer than a few seconds ([`Limits::outcome_wait`]).
//! - **Reading** (`reads`): the read model's views; `after` makes one wait for a request.
//! - **Machines** (`nodes`): what happened to one, and what a service says there, which its region fetches.
//! - **Looking after** (`topics`, `dead_letters`): the log itself, for operators.
//! - **Decoding** (`registry`): the schemas of all topics, at `/registry`, for every client of a schema registry.
//! - **Watching** (`facts`, `job_log`): streams, each with its own reader and a bounded buffer, so a slow one holds up nobody.
//! - **Files** (`files`, `download`): what an artifact's tree holds, and the bytes of its files, put together from packs.
//! - **Working** (`claims`, `attempts`): what workers call. They see the bucket through presigned URLs only.
//!
//! The API decides nothing: whether a request is allowed is for its processor, and what the API checks beforehand is only
//! what would be refused anyway. It does not know how projections are kept, and it holds no state of its own that a
//! restart could lose.

mod access;
mod after;
mod attempts;
mod builds;
mod claims;
mod console;
mod dead_letters;
mod decode;
mod download;
mod extract;
mod facts;
mod files;
mod finish;
mod imports;
mod indexes;
mod job_log;
pub mod limits;
mod losses;
mod nodes;
mod problem;
mod reads;
mod registry;
mod repository;
mod retention;
mod routes;
mod serve;
mod services;
mod streams;
mod submit;
mod topics;

use std::{sync::Arc, time::Duration};

use longshore_log::Log;
use longshore_s3::Bucket;
use longshore_schemas::{
    RegionName,
    auth::KnownKeys,
    http::{AcceptedLossView, CheckView},
    read::ReadModel,
};
use longshore_service::{limits::Settings, request_keys::RequestKeys, signed::Signer, tokens::Tokens};
use longshore_signing::SigningKey;
use tokio_util::sync::CancellationToken;

pub use crate::serve::Error;

/// What the API needs from the process that it is part of.
pub struct ApiConfig {
    pub log: Arc<dyn Log>,
    pub read: Arc<dyn ReadModel>,
    pub main_bucket: Bucket,
    /// Every region of this installation; a deploy without a plan goes to all of them.
    pub regions: Vec<RegionName>,
    pub tokens: Tokens,
    /// Makes the credentials of attempts; all API processes of an installation must have the same key.
    pub signer: Signer,
    /// What requests are signed with, so that processors believe them: the control nodes' key; and those that regions' answers are.
    pub request_keys: RequestKeys,
    /// What queries to nodes are signed with, as goals are.
    pub goal_key: Arc<SigningKey>,
    /// What an artifact's provenance is signed with once it is published: the same on all API processes.
    pub provenance_key: Arc<SigningKey>,
    /// How long collectors heed what is announced; publishing takes half of it at most.
    pub announced_lasts: Duration,
    pub limits: Limits,
    /// Answers `GET /v1/checks`.
    pub checks: Arc<dyn Checks>,
    /// Whether builds may come from `file://` URLs and absolute paths: only where API and workers share a machine.
    pub allow_file_repositories: bool,
}

/// What the process that the API is part of finds when it looks at itself.
#[async_trait::async_trait]
pub trait Checks: Send + Sync + 'static {
    async fn checks(&self) -> Vec<CheckView>;

    /// Accepts that the log has lost requests: exactly those, or the error says which are.
    async fn accept_loss(&self, loss: &AcceptedLossView) -> Result<(), NotAccepted> {
        Err(NotAccepted::NoPartition(format!("no processor {} runs in this process", loss.processor)))
    }
}

/// Why a loss is not accepted, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAccepted {
    NoPartition(String),
    /// Nothing is lost, or something else.
    Other(String),
    /// For now.
    Unavailable(String),
}

/// Bounds of one API process.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a state-changing call waits for what becomes of it.
    pub outcome_wait: Duration,
    /// How long a node may take to answer what it is asked.
    pub answer_wait: Duration,
    /// Open connections.
    pub connections_max: usize,
    /// Views that are read at the same time.
    pub reads_max: usize,
    /// Calls at the same time that write a request and wait for its outcome.
    pub asks_max: usize,
    /// Calls of workers at their attempts at the same time.
    pub attempt_calls_max: usize,
    /// Open streams of facts and logs together.
    pub streams_max: usize,
    /// Files that are sent at the same time.
    pub downloads_max: usize,
    /// Calls at the same time for what a service says on a node.
    pub node_logs_max: usize,
    /// Workers that wait for a job at the same time.
    pub claims_max: usize,
    /// How often workers shall say that they are at work; the queue gives an attempt up after several of them.
    pub beat_seconds: u32,
}

impl Limits {
    /// The defaults, but for what was set.
    pub fn of(settings: &Settings) -> Self {
        Self {
            outcome_wait: Duration::from_secs(5),
            answer_wait: Duration::from_secs(15),
            connections_max: settings.count(&limits::CONNECTIONS),
            reads_max: settings.count(&limits::READS),
            asks_max: settings.count(&limits::ASKS),
            attempt_calls_max: settings.count(&limits::ATTEMPT_CALLS),
            streams_max: settings.count(&limits::STREAMS),
            downloads_max: settings.count(&limits::DOWNLOADS),
            node_logs_max: settings.count(&limits::NODE_LOGS),
            claims_max: settings.count(&limits::CLAIMS),
            beat_seconds: 10,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(&Settings::default())
    }
}

/// Before the topics' names on the brokers, unless the installation says otherwise.
const TOPIC_PREFIX: &str = "longshore.";

/// The API, ready to be served.
pub struct Api {
    shared: Arc<Shared>,
}

/// What every handler can reach.
struct Shared {
    log: Arc<dyn Log>,
    read: Arc<dyn ReadModel>,
    bucket: Bucket,
    regions: Vec<RegionName>,
    tokens: Tokens,
    attempts: Signer,
    request_keys: RequestKeys,
    known_keys: KnownKeys,
    goal_key: Arc<SigningKey>,
    provenance_key: Arc<SigningKey>,
    announced_lasts: Duration,
    limits: Limits,
    checks: Arc<dyn Checks>,
    allow_file_repositories: bool,
    /// What the registry's subjects begin with.
    topic_prefix: String,
    gates: limits::Gates,
    indexes: indexes::Indexes,
    /// Cancelled when the API stops: streams and waits end then.
    stop: CancellationToken,
}

impl Api {
    pub fn new(config: ApiConfig) -> Self {
        Self::with_topic_prefix(config, TOPIC_PREFIX)
    }

    /// As [`Api::new`], where topics are called otherwise on the brokers: the registry's subjects are named after them.
    pub fn with_topic_prefix(config: ApiConfig, topic_prefix: &str) -> Self {
        let ApiConfig {
            log,
            read,
            main_bucket,
            regions,
            tokens,
            signer,
            request_keys,
            goal_key,
            provenance_key,
            announced_lasts,
            limits,
            checks,
            allow_file_repositories,
        } = config;
        let shared = Shared {
            log,
            read,
            bucket: main_bucket,
            regions,
            tokens,
            attempts: signer.for_purpose(access::ATTEMPT_PURPOSE),
            known_keys: request_keys.known(),
            request_keys,
            goal_key,
            provenance_key,
            announced_lasts,
            gates: limits::Gates::new(&limits),
            indexes: indexes::Indexes::default(),
            limits,
            checks,
            allow_file_repositories,
            topic_prefix: topic_prefix.to_owned(),
            stop: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The routes, for whoever brings connections of their own.
    pub fn router(&self) -> axum::Router {
        routes::router(&self.shared)
    }

    /// Serves until `shutdown`, then finishes what runs; streams and waiting claims end at once.
    pub async fn serve(&self, listener: tokio::net::TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
        self.serve_router(self.router(), listener, shutdown).await
    }

    /// As [`Api::serve`], with routes of the process's own beside those of [`Api::router`].
    pub async fn serve_router(
        &self,
        router: axum::Router,
        listener: tokio::net::TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        serve::serve(router, listener, shutdown, &self.shared).await
    }
}

#[cfg(test)]
mod tests;
