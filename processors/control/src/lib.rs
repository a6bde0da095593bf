//! The control role: wires the four processors to the log, and answers queries from their projections.
//!
//! ```text
//!   log ──▶ queue, replication, goals, fleet (each a runtime over its partitions) ──▶ one RocksDB
//!                     │ facts applied                                                    │ tables
//!                     ▼                                                                  ▼
//!              waiters: claims, services ──wake──▶ ReadModel (`read`) ◀── snapshots ─────┘
//! ```
//!
//! The processors know nothing of each other: what one asks of the next goes through the log. What is known here is which
//! processors there are, and how their tables become the views of the API; and how to see that a log and its projections
//! are whole ([`verify`]). [`Control::begin`] starts from a snapshot in the main bucket ([`snapshots`]) if there is no state yet.
//! Not known here: HTTP, tokens, what else is in buckets.

mod collection;
pub mod limits;
mod metered;
mod metrics;
mod read;
pub mod snapshots;
pub mod verify;
mod waiters;

use std::{path::PathBuf, sync::Arc};

use longshore_fleet::Fleet;
use longshore_goals::Goals;
use longshore_log::Log;
use longshore_processor::Fingerprint;
use longshore_queue::Queue;
use longshore_replication::Replication;
pub use longshore_replication::{Keep, Retention, Rule};
pub use longshore_runtime::{AcceptError, Health, Lost, Refused, Role, Status, chain, system_clock};
use longshore_runtime::{
    Applied, Clock, Config, Gate, Handle, Rocks, Runtime, Wire, replay,
    snapshot::{self, Restored, Snapshotter},
};
use longshore_schemas::{RegionName, read::ReadModel};
use longshore_service::{
    limits::{Settings, announce},
    request_keys::RequestKeys,
};
use longshore_signing::SigningKey;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use crate::{collection::Collection, metered::Metered, metrics::role_name};
use crate::{
    metrics::Counting,
    read::Projections,
    snapshots::{Shown, SnapshotConfig, SnapshotState},
    waiters::{ClaimWaiters, ServiceWaiters},
};

/// Where each processor's tables are in RocksDB. Never changed, never used again.
const QUEUE_STORE: u8 = 1;
const REPLICATION_STORE: u8 = 2;
const GOALS_STORE: u8 = 3;
const FLEET_STORE: u8 = 4;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the processors cannot run")]
    Runtime(#[from] longshore_runtime::Error),
    #[error("the log cannot be read")]
    Log(#[from] longshore_log::Error),
    #[error("snapshots cannot be used")]
    Snapshots(#[from] snapshot::Error),
    #[error("{field}: {reason}")]
    Config { field: &'static str, reason: &'static str },
}

/// What the control role works with.
#[derive(Clone)]
pub struct ControlConfig {
    pub log: Arc<dyn Log>,
    /// A folder for the projections. It may be deleted while nothing runs: they are rebuilt from the log.
    pub state_dir: PathBuf,
    /// Every region of the deployment.
    pub regions: Vec<RegionName>,
    /// Groups of nodes within a region, at least 1. Regions must be told the same number.
    pub shards_per_region: u32,
    pub queue: longshore_queue::Config,
    pub clock: Clock,
    /// Where snapshots of the projections are written; without, there are none.
    pub snapshots: Option<SnapshotConfig>,
    /// What is kept of artifacts.
    pub retention: Retention,
    /// Where what no artifact needs is collected; without, nowhere.
    pub collection: Option<Collection>,
    /// What requests are believed by, and what processors sign with.
    pub request_keys: RequestKeys,
    /// What goals are signed with, for regions and nodes to believe.
    pub goal_key: Arc<SigningKey>,
}

impl ControlConfig {
    /// With the usual limits and the machine's clock.
    pub fn new(
        log: Arc<dyn Log>,
        state_dir: impl Into<PathBuf>,
        regions: Vec<RegionName>,
        request_keys: RequestKeys,
        goal_key: Arc<SigningKey>,
    ) -> Self {
        Self {
            log,
            state_dir: state_dir.into(),
            regions,
            shards_per_region: 1,
            queue: longshore_queue::Config::default(),
            clock: system_clock(),
            snapshots: None,
            retention: Retention::default(),
            collection: None,
            request_keys,
            goal_key,
        }
    }

    /// Takes over what was set of the processors' limits, and shows them all in the metrics.
    pub fn set_limits(&mut self, settings: &Settings) {
        let count = |limit| u32::try_from(settings.of(limit)).unwrap_or(u32::MAX);
        self.queue.queued_max = count(&limits::QUEUED);
        self.queue.claims_max = count(&limits::OPEN_CLAIMS);
        announce(limits::LIMITS, settings);
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |field, reason| Err(Error::Config { field, reason });
        if self.regions.is_empty() {
            return wrong("regions", "name at least one region");
        }
        let mut names: Vec<_> = self.regions.iter().collect();
        names.sort_unstable();
        names.dedup();
        if names.len() < self.regions.len() {
            return wrong("regions", "a region is named twice");
        }
        if self.shards_per_region == 0 {
            return wrong("shards_per_region", "use at least 1");
        }
        Ok(())
    }
}

/// The four processors, running.
pub struct Control {
    log: Arc<dyn Log>,
    clock: Clock,
    projections: Arc<Projections>,
    snapshots: Shown,
    background: TaskTracker,
}

/// One partition's fingerprint, and how far its state was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionFingerprint {
    pub processor: &'static str,
    pub partition: u32,
    pub applied: Applied,
    pub fingerprint: Fingerprint,
}

impl Control {
    /// As [`Control::start`], but if there is no state yet, it is taken from the newest snapshot that is of use first.
    pub async fn begin(config: ControlConfig, shutdown: &CancellationToken) -> Result<(Self, Option<Restored>), Error> {
        config.check()?;
        let restored = match config.snapshots.clone() {
            Some(snapshots) => {
                let snapshots = snapshots.of(config.log.clone(), config.clock.clone())?;
                snapshot::restore(&snapshots, &config.state_dir).await?
            }
            None => None,
        };
        Ok((Self::start(config, shutdown)?, restored))
    }

    /// Starts following and leading, and writing snapshots. Blocks on the disk; needs a tokio runtime. Everything ends with
    /// `shutdown`.
    pub fn start(config: ControlConfig, shutdown: &CancellationToken) -> Result<Self, Error> {
        config.check()?;
        let ControlConfig {
            log,
            state_dir,
            regions,
            shards_per_region,
            queue,
            clock,
            snapshots,
            retention,
            collection,
            request_keys,
            goal_key,
        } = config;
        let gate: Arc<dyn Gate> = Arc::new(metrics::CountingGate::new(&request_keys, goal_key));
        let rocks = Rocks::open(&state_dir)?;
        let (background, shown) = (TaskTracker::new(), Shown::default());
        if let Some(config) = snapshots {
            let interval = config.settings.interval;
            let snapshotter = Snapshotter::new(config.of(log.clone(), clock.clone())?, rocks.clone())?;
            background.spawn(snapshots::write(snapshotter, interval, shown.clone(), shutdown.clone()));
        }
        let (own_log, own_clock) = (log.clone(), clock.clone());
        let base = move |store_id, signals| Config {
            log: log.clone(),
            rocks: rocks.clone(),
            store_id,
            signals,
            clock: clock.clone(),
            gate: gate.clone(),
        };
        let (claims, services) = (Arc::new(ClaimWaiters::default()), Arc::new(ServiceWaiters::default()));
        let kept = longshore_replication::Config { regions: regions.clone(), retention: retention.clone() };
        let replication = Replication::new(kept);
        let goals = Goals::new(longshore_goals::Config::new(regions.clone(), shards_per_region));
        let fleet = Fleet::new(longshore_fleet::Config { regions, shards_per_region });
        let nothing = Arc::new(());
        let counted = Arc::new(Counting(nothing));
        let projections = Projections {
            log: own_log.clone(),
            queue: Runtime::start(
                Queue::new(queue),
                &base(QUEUE_STORE, true),
                Arc::new(Counting(claims.clone())),
                shutdown,
            )?,
            replication: Runtime::start(replication, &base(REPLICATION_STORE, false), counted.clone(), shutdown)?,
            goals: Runtime::start(goals, &base(GOALS_STORE, false), Arc::new(Counting(services.clone())), shutdown)?,
            summaries: read::Summaries::default(),
            fleet: Runtime::start(fleet, &base(FLEET_STORE, false), counted, shutdown)?,
            claims,
            services,
            retention,
            collection: collection.clone(),
        };
        let projections = Arc::new(projections);
        if let Some(collection) = collection {
            background.spawn(collection::run(projections.clone(), collection, shutdown.clone()));
        }
        background.close();
        Ok(Self { log: own_log, clock: own_clock, projections, snapshots: shown, background })
    }

    /// What the API asks its questions of.
    pub fn read_model(&self) -> Arc<dyn ReadModel> {
        self.projections.clone()
    }

    /// How every partition of every processor is.
    pub async fn health(&self) -> Vec<Health> {
        let Projections { queue, replication, goals, fleet, .. } = &*self.projections;
        let mut health = queue.health().await;
        health.extend(replication.health().await);
        health.extend(goals.health().await);
        health.extend(fleet.health().await);
        health
    }

    /// Brings the metrics up to date that are levels and not counts; to be called before they are read.
    pub async fn show_metrics(&self) {
        let health = self.health().await;
        let queues = self.projections.queues().unwrap_or_default();
        metrics::show(&*self.log, &health, &queues, (self.clock)()).await;
    }

    /// The live state in one hash per partition.
    pub fn fingerprints(&self) -> Result<Vec<PartitionFingerprint>, Error> {
        self.projections.fingerprints()
    }

    /// Accepts, in the name of `by`, that the log has lost these requests. None if there is no such processor.
    pub async fn accept_loss(
        &self,
        processor: &str,
        partition: u32,
        lost: Lost,
        by: &str,
    ) -> Option<Result<(), AcceptError>> {
        let Projections { queue, replication, goals, fleet, .. } = &*self.projections;
        let now = (self.clock)();
        Some(match processor {
            <Queue as longshore_processor::Processor>::NAME => queue.accept_loss(partition, lost, by, now).await,
            <Replication as longshore_processor::Processor>::NAME => {
                replication.accept_loss(partition, lost, by, now).await
            }
            <Goals as longshore_processor::Processor>::NAME => goals.accept_loss(partition, lost, by, now).await,
            <Fleet as longshore_processor::Processor>::NAME => fleet.accept_loss(partition, lost, by, now).await,
            _ => return None,
        })
    }

    /// How the snapshots of this process go.
    pub fn snapshots(&self) -> SnapshotState {
        snapshots::look(&self.snapshots)
    }

    /// Waits until every task has ended, after the shutdown.
    pub async fn stopped(&self) {
        let Projections { queue, replication, goals, fleet, .. } = &*self.projections;
        queue.stopped().await;
        replication.stopped().await;
        goals.stopped().await;
        fleet.stopped().await;
        self.background.wait().await;
    }
}

fn live<P: Wire>(handle: &Handle<P>) -> Result<Vec<PartitionFingerprint>, Error> {
    let all = handle.fingerprints()?.into_iter().map(|(partition, applied, fingerprint)| PartitionFingerprint {
        processor: P::NAME,
        partition,
        applied,
        fingerprint,
    });
    Ok(all.collect())
}

/// Builds the state of each of these partitions from the first fact up to where it was, in memory: what
/// [`Control::fingerprints`] answers is right if this answers the same.
pub async fn replay_fingerprints(
    log: &dyn Log,
    live: &[PartitionFingerprint],
) -> Result<Vec<PartitionFingerprint>, Error> {
    let mut replayed = Vec::with_capacity(live.len());
    for PartitionFingerprint { processor, partition, applied, .. } in live.iter().copied() {
        let to = applied.fact_offset;
        let again = match processor {
            <Queue as longshore_processor::Processor>::NAME => replay::<Queue>(log, partition, to).await?,
            <Replication as longshore_processor::Processor>::NAME => replay::<Replication>(log, partition, to).await?,
            <Goals as longshore_processor::Processor>::NAME => replay::<Goals>(log, partition, to).await?,
            <Fleet as longshore_processor::Processor>::NAME => replay::<Fleet>(log, partition, to).await?,
            _ => return Err(Error::Config { field: "processor", reason: "there is no processor of this name" }),
        };
        let (applied, fingerprint) = (again.applied, again.fingerprint);
        replayed.push(PartitionFingerprint { processor, partition, applied, fingerprint });
    }
    Ok(replayed)
}
