//! The region role: everything between the log and the nodes of one region.
//!
//! ```text
//!  log: pack-hints ─▶ hints ──┐
//!  log: artifacts ──▶ copier ─┴─ main bucket ▶ own bucket ─▶ ReplicaReported ─┐
//!  log: goal-state ─▶ goal board ─┐                                           ├─▶ outbox ─▶ log: requests
//!                                 ▼                                           │
//!  nodes ◀═══ TLS ═══▶ session (one per node) ── beats, reports ─▶ levels ────┘ ◀─ peers ◀─ log: other processes' reports
//!                                 └── have, wanted ─▶ tracker ─▶ peers and tickets, back to the sessions
//! ```
//!
//! - `hints`: copies what builds that still run have uploaded; `turns`: whose pack is copied next, for both.
//! - `copier`: brings every replicated artifact into the region's bucket, verified pack by pack, and gives back to the main bucket
//!   what was lost there.
//! - `scrub`: looks at replicas all the time; `mender`: at packs that it or a node found damaged, and has them copied anew; `quarantine`: where wrong bytes go.
//! - `collection`: deletes what no artifact needs any more.
//! - `goals`: the newest goal of each service; each session sends what is newer than its node has.
//! - `identity`: the region's authority, which nodes enrol and are revoked by.
//! - `nodes`: the listener; `session`: one node's connection.
//! - `levels`, in the policy's crate: what the nodes are and run, batched per shard into at most one report a second.
//! - `peers`: what the other processes of the region told the log: which node is where, and who is gone.
//! - `queries`: what people ask of single nodes, handed on, and the answers.
//! - `tracker`: runs the swarm's policy and signs the tickets that it lends.
//! - `outbox`: writes reports in an order that survives restarts.
//!
//! A region has any number of such processes, each with a data folder of its own. They share its nodes, which use any of them, and
//! the copying; see `levels` for what holds when one of them dies.
//!
//! It decides nothing about rollouts: goals come from the log, and what the nodes say goes back to it. What it keeps on disk
//! only spares work after a restart. Nodes and their services go on without it.

mod catching_up;
mod collection;
mod copier;
mod copy;
mod error;
mod goals;
mod hints;
mod identity;
mod mender;
mod nodes;
mod outbox;
mod peers;
mod quarantine;
mod queries;
mod reports;
mod roots;
mod scrub;
mod session;
mod tracker;
mod turns;
mod walk;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use longshore_collector::Collector;
use longshore_identity::files::AuthorityFiles;
use longshore_log::{Log, clock};
use longshore_region_policy::levels;
use longshore_s3::Bucket;
use longshore_schemas::stream::FRAME_BYTES_MAX;
use longshore_schemas::{
    RegionName,
    auth::{KnownKeys, RequestKey},
};
use longshore_service::limits::{Limit, Settings, announce};
use longshore_signing::TrustedKeys;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use collection::{Collection, INCOMING, Retired};
use copier::Copier;
use copy::Copy;
pub use error::Error;
use goals::GoalBoard;
use hints::Hints;
use identity::Identity;
pub use longshore_collector::Settings as CollectionSettings;
use mender::Mender;
use nodes::Sessions;
use outbox::Outbox;
use peers::Peers;
use queries::Queries;
use reports::Reports;
use roots::Roots;
use scrub::Scrubber;
use turns::Turns;

/// What a region needs.
#[derive(Clone)]
pub struct RegionConfig {
    pub region: RegionName,
    pub log: Arc<dyn Log>,
    /// Where builds are published.
    pub main_bucket: Bucket,
    /// The region's own; nodes read it by tickets.
    pub bucket: Bucket,
    /// Where nodes connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The same for all of an installation, for ever.
    pub shards_per_region: u32,
    /// The list of tokens: those of [`longshore_schemas::http::Role::Node`] enrol. Read again while the region runs.
    pub tokens_file: PathBuf,
    /// Of the region's authority, the same for every process of the region. Read again while the region runs.
    pub authority: AuthorityFiles,
    /// The region's own, at least one: the first signs its reports, all are believed of its other processes. The control nodes
    /// know them too.
    pub request_keys: Vec<RequestKey>,
    /// Whose goals are believed.
    pub goal_keys: TrustedKeys,
    /// Kept between runs to spare work; losing it costs only that work.
    pub data_dir: PathBuf,
    pub limits: Limits,
}

/// Bounds and intervals.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Packs on their way between the buckets, 8 MiB of memory each.
    pub pack_copies_max: usize,
    /// Artifacts that are copied at the same time.
    pub artifact_copies_max: usize,
    /// Into the region's bucket, by all of its processes together.
    pub copy_bytes_per_second: u64,
    /// Whether a service that has both buckets is asked to copy by itself.
    pub copies_by_service: bool,
    /// Read of replicas to look at them, by each process.
    pub scrub_bytes_per_second: u64,
    /// Between the beginnings of two looks at an artifact, at least.
    pub scrub_interval: Duration,
    /// Between two rounds in which what no artifact needs is deleted.
    pub collect_interval: Duration,
    pub collection: longshore_collector::Settings,
    /// Nodes connected.
    pub connections_max: usize,
    /// A node beats this often; after three missed beats it is lost.
    pub beat: Duration,
    /// One shard reports at most this often.
    pub report_interval: Duration,
    /// An artifact's progress is reported at most this often.
    pub progress_interval: Duration,
    /// How long a ticket's URL works.
    pub ticket_lifetime: Duration,
}

static CONNECTIONS: Limit =
    Limit::settable("region.connections", 15_000, "nodes of one region", "closed; the node comes back");
static STRANGERS: Limit = Limit::fixed(
    "region.strangers",
    4_096,
    "connections of those who have not shown yet who they are",
    "closed; the node comes back",
);
static HANDSHAKES: Limit = Limit::fixed(
    "region.handshakes",
    longshore_identity::HANDSHAKES_MAX as u64,
    "of these, who show it at the same time",
    "the others wait for their turn",
);
static PACK_COPIES: Limit =
    Limit::settable("region.pack_copies", 8, "packs on their way, 8 MiB of memory each", "the others wait");
static ARTIFACT_COPIES: Limit =
    Limit::settable("region.artifact_copies", 16, "artifacts copied at once", "the others wait");
static COPY_RATE: Limit = Limit::settable(
    "region.copy_mib_per_second",
    100_000,
    "MiB/s copied into the region, by its processes together",
    "packs wait for their turn",
);
static SCRUB_RATE: Limit = Limit::settable(
    "region.scrub_kib_per_second",
    4_096,
    "KiB/s read of replicas by each process, to look at them",
    "packs wait for their turn",
);
static HINTED: Limit = Limit::fixed(
    "region.hinted_packs",
    hints::HINTED_MAX as u64,
    "packs of builds that run, which wait to be copied",
    "the log keeps the others",
);
static FRAME_BYTES: Limit =
    Limit::fixed("region.frame_bytes", FRAME_BYTES_MAX as u64, "bytes of one message", "the connection is closed");
static NODE_SERVICES: Limit = Limit::fixed(
    "region.node_services",
    longshore_region_policy::levels::NODE_SERVICES_MAX as u64,
    "services of one node",
    "the connection is closed",
);
static OUTBOUND: Limit = Limit::fixed(
    "region.outbound_messages",
    session::OUTBOUND_MAX as u64,
    "messages that wait for one node",
    "the node is disconnected, and asks again",
);
static ANSWERS: Limit = Limit::fixed(
    "region.answers",
    queries::ANSWERS_MAX as u64,
    "answers of nodes to what people ask, on their way to the log",
    "dropped; who asks does so again",
);
static TRACKER_QUEUE: Limit =
    Limit::fixed("region.tracker_queue", tracker::QUEUE_MAX as u64, "events of nodes", "the nodes' connections wait");

/// The limits of a region.
pub static LIMITS: &[&Limit] = &[
    &CONNECTIONS,
    &STRANGERS,
    &HANDSHAKES,
    &PACK_COPIES,
    &ARTIFACT_COPIES,
    &COPY_RATE,
    &SCRUB_RATE,
    &HINTED,
    &FRAME_BYTES,
    &NODE_SERVICES,
    &OUTBOUND,
    &ANSWERS,
    &TRACKER_QUEUE,
];

impl Limits {
    /// The defaults, but for what was set.
    pub fn of(settings: &Settings) -> Self {
        announce(&LIMITS[2..], settings);
        Self {
            connections_max: settings.count(&CONNECTIONS),
            pack_copies_max: settings.count(&PACK_COPIES),
            artifact_copies_max: settings.count(&ARTIFACT_COPIES),
            copy_bytes_per_second: settings.of(&COPY_RATE) * MIB,
            scrub_bytes_per_second: settings.of(&SCRUB_RATE) * KIB,
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let count = |limit: &Limit| Settings::default().count(limit);
        Self {
            pack_copies_max: count(&PACK_COPIES),
            artifact_copies_max: count(&ARTIFACT_COPIES),
            copy_bytes_per_second: COPY_RATE.default * MIB,
            copies_by_service: true,
            scrub_bytes_per_second: SCRUB_RATE.default * KIB,
            scrub_interval: Duration::from_secs(10 * 60),
            collect_interval: Duration::from_secs(6 * 60 * 60),
            collection: longshore_collector::Settings::default(),
            connections_max: count(&CONNECTIONS),
            beat: Duration::from_secs(10),
            report_interval: Duration::from_secs(1),
            progress_interval: Duration::from_secs(1),
            ticket_lifetime: Duration::from_secs(10 * 60),
        }
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Beats that a node may miss.
pub const MISSED_BEATS_MAX: u32 = 3;

/// A running region.
pub struct Region {
    address: SocketAddr,
    sessions: Arc<Sessions>,
    tasks: JoinSet<()>,
}

/// Looks at a region's connections, for as long as anyone wants to.
#[derive(Clone)]
pub struct Connections(Arc<Sessions>);

impl Connections {
    pub fn count(&self) -> usize {
        self.0.connected()
    }
}

impl Region {
    /// Starts the region's tasks; they end when `shutdown` is cancelled. Returns once nodes can connect and get the newest goals.
    pub async fn start(config: RegionConfig, shutdown: CancellationToken) -> Result<Self, Error> {
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|source| Error::DataDir { path: config.data_dir.clone(), source })?;
        let request_key = config.request_keys.first().ok_or(Error::NoRequestKey)?;
        let outbox = Arc::new(Outbox::open(config.log.clone(), &config.region, request_key.clone(), &config.data_dir)?);
        let identity =
            Identity::open(&config.region, config.authority.clone(), config.tokens_file.clone(), config.bucket.clone());
        let identity = Arc::new(identity?);
        let goals = Arc::new(GoalBoard::new(config.region.clone()));
        let reports = Arc::new(Reports::open(&config)?);
        let (mender, damaged) = Mender::new(config.region.clone(), config.bucket.clone(), outbox.clone());
        let roots = Arc::new(Roots::new(config.bucket.clone(), damaged.clone()));
        let turns = Turns::new(config.limits.pack_copies_max, config.limits.copy_bytes_per_second);
        let by_service = config.limits.copies_by_service && config.bucket.may_copy_from(&config.main_bucket);
        let copy = Copy {
            main: config.main_bucket.clone(),
            own: config.bucket.clone(),
            turns: turns.clone(),
            by_service: Arc::new(AtomicBool::new(by_service)),
            incoming: format!("{INCOMING}{}/{:08x}/", outbox.process(), rand::random::<u32>()).into(),
            process: outbox.process().into(),
            announced_lasts: config.limits.collection.announced_lasts,
        };
        let retired = Arc::new(Retired::default());
        let folded = (retired.clone(), roots.clone());
        let copier = Copier::open(&config, copy.clone(), outbox.clone(), reports.clone(), damaged.clone(), folded)?;
        let collection = Collection {
            log: config.log.clone(),
            bucket: config.bucket.clone(),
            incoming: copy.incoming.clone(),
            collector: Collector::new(config.bucket.clone(), config.limits.collection, clock::now),
            every: config.limits.collect_interval,
            grace: config.limits.collection.grace,
            retired,
            outbox: outbox.clone(),
            reports: reports.clone(),
        };
        let hints = Hints::new(config.region.clone(), config.log.clone(), outbox.clone(), reports.clone(), copy);
        let scrubber = Scrubber::open(
            config.bucket.clone(),
            &config.limits,
            &config.data_dir,
            damaged.clone(),
            outbox.clone(),
            reports.clone(),
        )?;
        let (tracker, tracker_events) = tracker::channel();
        let (answers, answered) = mpsc::channel(queries::ANSWERS_MAX);
        let sessions = Arc::new(Sessions::new(
            &config,
            identity.clone(),
            goals.clone(),
            reports.clone(),
            roots.clone(),
            tracker,
            (damaged, answers),
        ));

        let listener = nodes::bind(config.listen).await?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address: config.listen, source })?;
        let mut tasks = JoinSet::new();
        let follower = goals::Follower::catch_up(config.log.clone(), goals, config.goal_keys.clone()).await?;
        let peers = Peers::catch_up(
            config.log.clone(),
            &config.region,
            config.shards_per_region,
            outbox.sender(),
            KnownKeys::new(config.request_keys.iter().cloned()),
            reports.clone(),
            sessions.clone(),
        );
        tasks.spawn(peers.await?.run(shutdown.clone()));
        tasks.spawn(follower.run(shutdown.clone()));
        tasks.spawn(turns.run(reports.clone(), shutdown.clone()));
        tasks.spawn(copier.run(shutdown.clone()));
        tasks.spawn(hints.run(shutdown.clone()));
        tasks.spawn(scrubber.run(shutdown.clone()));
        tasks.spawn(mender.run(shutdown.clone()));
        tasks.spawn(collection.run(shutdown.clone()));
        let queries =
            Queries::open(config.log.clone(), config.goal_keys.clone(), outbox.clone(), sessions.clone(), answered);
        tasks.spawn(queries.await?.run(shutdown.clone()));
        tasks.spawn(reports.run(outbox, shutdown.clone()));
        tasks.spawn(identity.run(shutdown.clone()));
        tasks.spawn(nodes::put_out(sessions.clone(), shutdown.clone()));
        let actor = tracker::Actor::new(tracker_events, sessions.clone(), roots, config.bucket, &config.limits);
        tasks.spawn(actor.run(shutdown.clone()));
        tasks.spawn(nodes::accept(listener, sessions.clone(), shutdown));
        tracing::info!(region = %config.region, %address, "region is ready for nodes");
        Ok(Self { address, sessions, tasks })
    }

    /// Where nodes connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Nodes that are connected now.
    pub fn connected(&self) -> usize {
        self.sessions.connected()
    }

    /// To count them later.
    pub fn connections(&self) -> Connections {
        Connections(self.sessions.clone())
    }

    /// Waits until every task has ended, which they do after `shutdown`.
    pub async fn stopped(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the region failed");
            }
        }
    }
}
