//! Sends the levels to the log: a shard at most once a second, at once if it was quiet before; and keeps on disk which
//! nodes are known, and how far the other processes of the region were followed.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use longshore_schemas::{
    NodeId,
    events::{FleetReport, NodeDescription, RegionReported},
    nodes::weight,
    stream::NodeReport,
};
use longshore_service::ledger::Ledger;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, MISSED_BEATS_MAX, RegionConfig,
    levels::{Known, Levels, Moment},
    outbox::Outbox,
};

/// What nodes say within this goes into one report.
const GATHER: Duration = Duration::from_millis(50);
/// Known nodes are written to disk at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// What is kept on disk.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Kept {
    nodes: BTreeMap<NodeId, Known>,
    /// Where to go on reading what other processes told the log, by partition.
    offsets: BTreeMap<u32, u64>,
}

pub(crate) struct Reports {
    started: Instant,
    levels: Mutex<Levels>,
    offsets: Mutex<BTreeMap<u32, u64>>,
    changed: Notify,
    interval: Duration,
    beat_interval: Duration,
    sweep_interval: Duration,
    path: PathBuf,
}

impl Reports {
    pub(crate) fn open(config: &RegionConfig) -> Result<Self, Error> {
        let path = config.data_dir.join("levels.json");
        let Kept { nodes, offsets } = Ledger::open(&path, Kept::default())?.content().clone();
        let lost_after = config.limits.beat * MISSED_BEATS_MAX;
        let levels = Levels::new(config.region.clone(), config.shards_per_region, lost_after, nodes);
        Ok(Self {
            started: Instant::now(),
            levels: Mutex::new(levels),
            offsets: Mutex::new(offsets),
            changed: Notify::new(),
            interval: config.limits.report_interval,
            beat_interval: config.limits.beat,
            sweep_interval: (config.limits.beat / 4).max(Duration::from_millis(20)),
            path,
        })
    }

    pub(crate) fn hello(&self, description: NodeDescription) {
        let now = self.now();
        self.with(|levels| levels.hello(description, now));
    }

    pub(crate) fn heard(&self, node: &NodeId) {
        let now = self.now();
        // Every message comes by here: it wakes nobody, for the next sweep tells what it changes.
        self.with_levels(|levels| levels.heard(node, now));
    }

    /// `false` if the node reports on more services than it may.
    pub(crate) fn report(&self, node: &NodeId, report: NodeReport) -> bool {
        self.with(|levels| levels.report(node, report))
    }

    /// Takes in what a process of the region told the log; `None` is this one. Returns the nodes that have gone to another.
    pub(crate) fn read(&self, sender: Option<&str>, report: &RegionReported) -> Vec<NodeId> {
        let gone = self.with_levels(|levels| levels.read(sender, report));
        if sender.is_some() {
            self.changed.notify_one();
        }
        gone
    }

    /// What was told before this offset has been taken in.
    pub(crate) fn read_to(&self, partition: u32, offset: u64) {
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, offset);
    }

    pub(crate) fn offset(&self, partition: u32) -> Option<u64> {
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).copied()
    }

    pub(crate) fn is_elsewhere(&self, node: &NodeId) -> bool {
        self.with_levels(|levels| levels.is_elsewhere(node))
    }

    /// How many processes of the region are there, this one included.
    pub(crate) fn processes(&self) -> u64 {
        self.with_levels(|levels| levels.others().count() as u64 + 1)
    }

    /// Of the processes of the region that are there, each thing is one's to do; when that one is gone, it is another's.
    pub(crate) fn is_to_do(&self, own: &str, what: &str) -> bool {
        let mine = (weight(own, what), own);
        self.with_levels(|levels| levels.others().all(|other| (weight(other, what), other) < mine))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Levels) -> T) -> T {
        let changed = self.with_levels(change);
        self.changed.notify_one();
        changed
    }

    fn now(&self) -> Moment {
        self.started.elapsed()
    }

    pub(crate) async fn run(self: Arc<Self>, outbox: Arc<Outbox>, shutdown: CancellationToken) {
        let mut pace = Pace { interval: self.interval, sent: BTreeMap::new() };
        let mut saved = Saved { at: Instant::now(), generation: 0 };
        let mut swept = Instant::now();
        let mut beaten: Option<Instant> = None;
        loop {
            let wait = self.sweep_interval.min(pace.wait(&self.with_levels(|levels| levels.untold())));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.changed.notified() => tokio::time::sleep(GATHER).await,
                () = shutdown.cancelled() => break,
            }
            if swept.elapsed() >= self.sweep_interval {
                swept = Instant::now();
                self.sweep();
            }
            let due = pace.due(&self.with_levels(|levels| levels.untold()));
            let mut reports =
                self.with_levels(|levels| due.iter().filter_map(|shard| levels.take(*shard)).collect::<Vec<_>>());
            if beaten.is_none_or(|at| at.elapsed() >= self.beat_interval)
                || self.with_levels(|levels| levels.owes_beat())
            {
                beaten = Some(Instant::now());
                reports.extend(self.with_levels(Levels::beat));
            }
            if !reports.is_empty() {
                let reports = reports.into_iter().map(FleetReport::from).collect();
                if !outbox.send(reports, &shutdown).await {
                    break;
                }
            }
            self.save(&mut saved, SAVE_INTERVAL).await;
        }
        self.save(&mut saved, Duration::ZERO).await;
    }

    fn sweep(&self) {
        let now = self.now();
        for node in self.with_levels(|levels| levels.sweep(now)) {
            tracing::warn!(%node, "node lost: its beats stopped");
        }
    }

    fn with_levels<T>(&self, ask: impl FnOnce(&mut Levels) -> T) -> T {
        ask(&mut self.levels.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn save(&self, saved: &mut Saved, interval: Duration) {
        let generation = self.with_levels(|levels| levels.generation());
        if generation == saved.generation || saved.at.elapsed() < interval {
            return;
        }
        // Offsets first: what is read again because it was read meanwhile changes nothing.
        let offsets = self.offsets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let nodes = self.with_levels(|levels| levels.known());
        let path = self.path.clone();
        let write = move || Ledger::open(path, Kept::default())?.store(Kept { nodes, offsets });
        *saved = Saved { at: Instant::now(), generation };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "known nodes are not on disk; a restart may miss one that is lost");
            }
            Err(error) => tracing::error!(%error, "writing the known nodes failed"),
        }
    }
}

struct Saved {
    at: Instant,
    generation: u64,
}

/// When each shard last reported.
struct Pace {
    interval: Duration,
    sent: BTreeMap<u32, Instant>,
}

impl Pace {
    /// Those of the shards that may report now; they are taken to do so.
    fn due(&mut self, shards: &[u32]) -> Vec<u32> {
        let now = Instant::now();
        let rested = |shard: &&u32| self.sent.get(shard).is_none_or(|at| *at + self.interval <= now);
        let due: Vec<u32> = shards.iter().filter(rested).copied().collect();
        self.sent.extend(due.iter().map(|shard| (*shard, now)));
        due
    }

    /// Until the first of them may report.
    fn wait(&self, shards: &[u32]) -> Duration {
        let now = Instant::now();
        let rest =
            |shard: &u32| self.sent.get(shard).map_or(Duration::ZERO, |at| (*at + self.interval).duration_since(now));
        shards.iter().map(rest).min().unwrap_or(Duration::MAX)
    }
}
