//! The region role: everything between the log and the nodes of one region.
//!
//! ```text
//!  log: artifacts ──▶ copier ── main bucket ▶ own bucket ──▶ ReplicaReported ─┐
//!  log: goal-state ─▶ goal board ─┐                                           ├─▶ outbox ─▶ log: requests
//!                                 ▼                                           │
//!  nodes ◀═══ TCP ═══▶ session (one per node) ── beats, reports ─▶ levels ────┘
//!                                 └── have, wanted ─▶ tracker ─▶ peers and tickets, back to the sessions
//! ```
//!
//! - `copier`: brings every replicated artifact into the region's bucket, verified pack by pack, and gives back to the main bucket
//!   what was lost there.
//! - `mender`: looks at packs that a node found damaged, and has them copied anew; `quarantine`: where wrong bytes go.
//! - `goals`: the newest goal of each service; each session sends what is newer than its node has.
//! - `nodes`: the listener; `session`: one node's connection.
//! - `levels`, in the policy's crate: what the nodes are and run, batched per shard into at most one report a second.
//! - `tracker`: runs the swarm's policy and signs the tickets that it lends.
//! - `outbox`: writes reports in an order that survives restarts.
//!
//! It decides nothing about rollouts: goals come from the log, and what the nodes say goes back to it. What it keeps on disk
//! only spares work after a restart. Nodes and their services go on without it.

mod copier;
mod copy;
mod error;
mod goals;
mod mender;
mod nodes;
mod outbox;
mod quarantine;
mod reports;
mod roots;
mod session;
mod tracker;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use longshore_log::Log;
use longshore_region_policy::levels;
use longshore_s3::Bucket;
use longshore_schemas::RegionName;
use longshore_service::{signed::Signer, tokens::Tokens};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use copier::Copier;
pub use error::Error;
use goals::GoalBoard;
use mender::Mender;
use nodes::Sessions;
use outbox::Outbox;
use reports::Reports;
use roots::Roots;

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
    /// Enrolment tokens: those of [`longshore_schemas::http::Role::Node`].
    pub tokens: Tokens,
    /// Makes and checks the credentials of nodes. Every process of the region has the same.
    pub signer: Signer,
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

impl Default for Limits {
    fn default() -> Self {
        Self {
            pack_copies_max: 8,
            artifact_copies_max: 4,
            connections_max: 15_000,
            beat: Duration::from_secs(10),
            report_interval: Duration::from_secs(1),
            progress_interval: Duration::from_secs(1),
            ticket_lifetime: Duration::from_secs(10 * 60),
        }
    }
}

/// Beats that a node may miss.
pub const MISSED_BEATS_MAX: u32 = 3;

/// A running region.
pub struct Region {
    address: SocketAddr,
    sessions: Arc<Sessions>,
    tasks: JoinSet<()>,
}

impl Region {
    /// Starts the region's tasks; they end when `shutdown` is cancelled. Returns once nodes can connect and get the newest goals.
    pub async fn start(config: RegionConfig, shutdown: CancellationToken) -> Result<Self, Error> {
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|source| Error::DataDir { path: config.data_dir.clone(), source })?;
        let outbox = Arc::new(Outbox::open(config.log.clone(), &config.region, &config.data_dir)?);
        let goals = Arc::new(GoalBoard::new(config.region.clone()));
        let reports = Arc::new(Reports::open(&config)?);
        let (mender, damaged) = Mender::new(config.region.clone(), config.bucket.clone(), outbox.clone());
        let roots = Arc::new(Roots::new(config.bucket.clone(), damaged.clone()));
        let copier = Copier::open(&config, outbox.clone(), damaged.clone())?;
        let (tracker, tracker_events) = tracker::channel();
        let sessions =
            Arc::new(Sessions::new(&config, goals.clone(), reports.clone(), roots.clone(), tracker, damaged));

        let listener = nodes::bind(config.listen).await?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address: config.listen, source })?;
        let mut tasks = JoinSet::new();
        let follower = goals::Follower::catch_up(config.log.clone(), goals).await?;
        tasks.spawn(follower.run(shutdown.clone()));
        tasks.spawn(copier.run(shutdown.clone()));
        tasks.spawn(mender.run(shutdown.clone()));
        tasks.spawn(reports.run(outbox, shutdown.clone()));
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

    /// Waits until every task has ended, which they do after `shutdown`.
    pub async fn stopped(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the region failed");
            }
        }
    }
}
