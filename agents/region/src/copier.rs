//! Brings every replicated artifact from the main bucket into the region's own.
//!
//! ```text
//! artifacts facts ─fold▶ Ledger of pending artifacts ─▶ copy (a few at once) ─▶ Stored ─fact▶ no longer pending
//!                         ▲                               └─ failed: report, wait, again
//!                         └── Failed ◀─ mender
//! ```
//!
//! An artifact that was stored and of which something turned out to be damaged is reported as failed, and so is pending again.
//! If another region fails, the main bucket may have lost something: what this region has of it, it gives back.
//!
//! Several processes of a region share the work: each artifact is one's, and another's when that one is gone. Should two copy the
//! same, they write the same bytes under the same names, and the second to say so changes nothing.
//!
//! What is pending is a fold of the facts, [`Pending`]; it is written to disk with the offsets it was read up to, so that a
//! restart reads only what came since. A lost file costs reading the topic again. What the bucket has already is found
//! there, so an artifact that was half copied goes on where it stopped.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, LazyLock},
    time::Duration,
};

use longshore_log::{Log, ReadLimit, Reader, StoredRecord, TopicPartition};
use longshore_region_policy::pending::Pending;
use longshore_schemas::{
    ArtifactId, RegionName, codec,
    events::{ArtifactFact, ArtifactRequest, Fact, ReplicaReported, ReplicaStatus},
    topics,
};
use longshore_service::{ledger::Ledger, metrics::Counters, retry::Backoff};
use tokio::{
    sync::Semaphore,
    task::{self, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, RegionConfig,
    collection::Retired,
    copy::{Copied, Copy, Progress},
    mender::{What, Word, Words},
    outbox::Outbox,
    reports::Reports,
    roots::Roots,
    turns::sleep_until,
};

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
const REOPEN_WAIT: Duration = Duration::from_secs(1);
/// Artifacts that are copied or wait for their next try; further ones begin when one of these is done.
const JOBS_MAX: usize = 1_000;
/// How soon a process begins with what another, which is gone, had to do.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Offsets alone are written to disk at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// As long as another region lacks an artifact, the main bucket is looked at this often.
const GIVE_BACK_INTERVAL: Duration = Duration::from_secs(30);
/// Longest error text in a report, in characters.
const ERROR_CHARS_MAX: usize = 500;

static COPIES: LazyLock<Counters<1>> = LazyLock::new(|| {
    Counters::new("longshore_region_copies", "Tries to bring an artifact into the region", ["outcome"])
});
static COPIED_BYTES: LazyLock<Counters<0>> =
    LazyLock::new(|| Counters::new("longshore_region_copied_bytes", "Packs copied from the main bucket", []));

/// See the module.
pub(crate) struct Copier {
    region: RegionName,
    log: Arc<dyn Log>,
    outbox: Arc<Outbox>,
    reports: Arc<Reports>,
    copy: Copy,
    slots: Arc<Semaphore>,
    progress_interval: Duration,
    ledger: Ledger<Pending>,
    pending: Pending,
    saved_at: Instant,
    damaged: Words,
    retired: Arc<Retired>,
    roots: Arc<Roots>,
}

/// What one task is doing or has done.
struct Jobs {
    /// Each answers whether its artifact is stored and reported.
    running: JoinSet<bool>,
    ids: HashMap<task::Id, ArtifactId>,
    /// Running, or done and waiting for the fact that says so.
    taken: BTreeSet<ArtifactId>,
    /// Looking for what the main bucket lost; one at a time.
    giving_back: JoinSet<()>,
    /// When an artifact that another region lacks is to be looked for again; at once if it is not here.
    give_back_at: BTreeMap<ArtifactId, Instant>,
}

impl Jobs {
    fn new() -> Self {
        Self {
            running: JoinSet::new(),
            ids: HashMap::new(),
            taken: BTreeSet::new(),
            giving_back: JoinSet::new(),
            give_back_at: BTreeMap::new(),
        }
    }
}

impl Copier {
    pub(crate) fn open(
        config: &RegionConfig,
        copy: Copy,
        outbox: Arc<Outbox>,
        reports: Arc<Reports>,
        damaged: Words,
        (retired, roots): (Arc<Retired>, Arc<Roots>),
    ) -> Result<Self, Error> {
        let ledger = Ledger::open(config.data_dir.join("copier.json"), Pending::default())?;
        let pending = ledger.content().clone();
        retired.followed(&pending, true);
        Ok(Self {
            region: config.region.clone(),
            log: config.log.clone(),
            outbox,
            reports,
            copy,
            slots: Arc::new(Semaphore::new(config.limits.artifact_copies_max.max(1))),
            progress_interval: config.limits.progress_interval,
            ledger,
            pending,
            saved_at: Instant::now(),
            damaged,
            retired,
            roots,
        })
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            match self.follow(&shutdown).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(region = %self.region, %error, "artifacts cannot be followed; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(REOPEN_WAIT) => {}
                        () = shutdown.cancelled() => break,
                    }
                }
            }
        }
        self.save(Duration::ZERO);
    }

    /// Ends with `Ok` at shutdown, with an error when the log fails.
    async fn follow(&mut self, shutdown: &CancellationToken) -> Result<(), longshore_log::Error> {
        let mut reader = self.open_reader().await?;
        self.catch_up(&mut *reader, shutdown).await?;
        let mut jobs = Jobs::new();
        loop {
            let others_do = self.start_jobs(&mut jobs, shutdown);
            self.give_back(&mut jobs);
            let look_again = jobs.give_back_at.values().min().copied();
            tokio::select! {
                Some(_) = jobs.giving_back.join_next() => {}
                () = sleep_until(look_again), if jobs.giving_back.is_empty() => {}
                () = tokio::time::sleep(LOOK_INTERVAL), if others_do => {}
                records = reader.read(ReadLimit::default()) => self.take(&records?, &mut jobs),
                Some(done) = jobs.running.join_next_with_id() => self.ended(done, &mut jobs),
                () = shutdown.cancelled() => return Ok(()),
            }
            self.save(SAVE_INTERVAL);
        }
    }

    async fn open_reader(&mut self) -> Result<Box<dyn Reader>, longshore_log::Error> {
        let partitions = self.log.partitions(topics::ARTIFACTS.name)?;
        let of = |partition| TopicPartition::new(topics::ARTIFACTS.name, partition);
        let next = |pending: &Pending, partition| pending.offsets.get(&partition).copied().unwrap_or(0);
        for partition in 0..partitions {
            let end = self.log.end_offset(&of(partition)).await?;
            if next(&self.pending, partition) > end {
                // The file belongs to another log: what it says is of no use.
                tracing::warn!(region = %self.region, partition, end, "the log is shorter than remembered; reading it anew");
                self.pending = Pending::default();
                self.retired.followed(&self.pending, true);
                break;
            }
        }
        self.log.reader((0..partitions).map(|partition| (of(partition), next(&self.pending, partition))).collect())
    }

    /// Folds everything that is there now before anything is copied: most of it is long stored.
    async fn catch_up(
        &mut self,
        reader: &mut dyn Reader,
        shutdown: &CancellationToken,
    ) -> Result<(), longshore_log::Error> {
        let mut jobs = Jobs::new();
        for partition in 0..self.log.partitions(topics::ARTIFACTS.name)? {
            let of = TopicPartition::new(topics::ARTIFACTS.name, partition);
            let end = self.log.end_offset(&of).await?;
            while reader.position(&of).is_some_and(|position| position < end) {
                tokio::select! {
                    records = reader.read(ReadLimit::default()) => self.take(&records?, &mut jobs),
                    () = shutdown.cancelled() => return Ok(()),
                }
            }
        }
        tracing::info!(region = %self.region, pending = self.pending.artifacts.len(), "caught up with the artifacts");
        Ok(())
    }

    fn take(&mut self, records: &[StoredRecord], jobs: &mut Jobs) {
        let mut retired = false;
        for artifact in self.retired.forgotten() {
            retired |= self.pending.retired.remove(&artifact).is_some();
        }
        for stored in records {
            let Some(value) = &stored.record.value else { continue };
            match codec::decode::<Fact<ArtifactFact>>(value) {
                Ok(fact) => {
                    if let ArtifactFact::ReplicaFailed(failed) = &fact.event {
                        // Something changed: it need not wait.
                        jobs.give_back_at.remove(&failed.artifact);
                    }
                    self.roots.forget_of(&self.region, &fact.event);
                    let (before, is_retirement) =
                        (self.pending.retired.len(), matches!(fact.event, ArtifactFact::ArtifactRetired(_)));
                    self.pending.apply(&self.region, fact.event, fact.at);
                    retired |= is_retirement || self.pending.retired.len() != before;
                }
                Err(error) => {
                    tracing::error!(partition = %stored.source, offset = stored.offset, %error, "fact skipped");
                }
            }
            self.pending.offsets.insert(stored.source.partition, stored.offset + 1);
        }
        self.retired.followed(&self.pending, retired);
        let still: BTreeSet<ArtifactId> = self.pending.artifacts.iter().copied().collect();
        jobs.taken.retain(|artifact| still.contains(artifact));
    }

    /// Whether some of what is pending is for other processes to copy.
    fn start_jobs(&self, jobs: &mut Jobs, shutdown: &CancellationToken) -> bool {
        let mut others_do = false;
        for artifact in &self.pending.artifacts {
            if jobs.running.len() >= JOBS_MAX {
                break;
            }
            if !jobs.taken.contains(artifact) && !self.reports.is_to_do(self.outbox.sender(), &artifact.to_string()) {
                others_do = true;
                continue;
            }
            if jobs.taken.insert(*artifact) {
                let job = Job {
                    region: self.region.clone(),
                    artifact: *artifact,
                    copy: self.copy.clone(),
                    slots: self.slots.clone(),
                    outbox: self.outbox.clone(),
                    progress_interval: self.progress_interval,
                };
                let shutdown = shutdown.clone();
                let running = jobs.running.spawn(async move { job.run(&shutdown).await });
                jobs.ids.insert(running.id(), *artifact);
            }
        }
        others_do
    }

    /// Looks for one artifact that another region lacks and this one has, whether the main bucket has all of it.
    fn give_back(&self, jobs: &mut Jobs) {
        let failed = &self.pending.failed_elsewhere;
        jobs.give_back_at.retain(|artifact, _| failed.contains_key(artifact));
        if !jobs.giving_back.is_empty() {
            return;
        }
        let now = Instant::now();
        let is_due = |artifact: &&ArtifactId| {
            !self.pending.artifacts.contains(artifact) && jobs.give_back_at.get(artifact).is_none_or(|at| *at <= now)
        };
        let Some(artifact) = failed.keys().find(is_due).copied() else { return };
        jobs.give_back_at.insert(artifact, now + GIVE_BACK_INTERVAL);
        let (region, copy, damaged) = (self.region.clone(), self.copy.clone(), self.damaged.clone());
        jobs.giving_back.spawn(async move { give_back(&region, &copy, artifact, &damaged).await });
    }

    fn ended(&mut self, done: Result<(task::Id, bool), task::JoinError>, jobs: &mut Jobs) {
        let (id, stored) = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(region = %self.region, %error, "a copy failed unexpectedly; it begins anew");
                (error.id(), false)
            }
        };
        if let Some(artifact) = jobs.ids.remove(&id) {
            // The log has the report. A fact need not follow: replication may have known already.
            if stored {
                self.pending.remove(&artifact);
            }
            jobs.taken.remove(&artifact);
        }
    }

    fn save(&mut self, interval: Duration) {
        let moved = self.ledger.content() != &self.pending;
        let urgent = self.ledger.content().artifacts != self.pending.artifacts
            || self.ledger.content().failed_elsewhere != self.pending.failed_elsewhere;
        if !moved || (!urgent && self.saved_at.elapsed() < interval) {
            return;
        }
        self.saved_at = Instant::now();
        if let Err(error) = self.ledger.store(self.pending.clone()) {
            tracing::warn!(region = %self.region, %error, "the copier's position is not on disk; a restart reads more of the log");
        }
    }
}

async fn give_back(region: &RegionName, copy: &Copy, artifact: ArtifactId, damaged: &Words) {
    match copy.give_back(&artifact).await {
        Ok(back) => {
            if back.packs > 0 || back.root {
                let (packs, root) = (back.packs, back.root);
                tracing::warn!(%region, %artifact, packs, root, "what the main bucket had lost was given back");
            }
            for pack in back.damaged {
                damaged.say(Word { node: None, artifact, what: What::Pack(pack) });
            }
        }
        Err(error) => tracing::warn!(%region, %artifact, %error, "what the main bucket may lack cannot be given back"),
    }
}

/// One artifact's way into the region.
struct Job {
    region: RegionName,
    artifact: ArtifactId,
    copy: Copy,
    /// Held while bytes are copied, and not while a failed copy rests: broken artifacts must not keep good ones out.
    slots: Arc<Semaphore>,
    outbox: Arc<Outbox>,
    progress_interval: Duration,
}

impl Job {
    /// Tries until it is done and reported; `false` if `shutdown` came first.
    async fn run(&self, shutdown: &CancellationToken) -> bool {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let progress = Progress::default();
        loop {
            let copying = async {
                let _slot = self.slots.acquire().await;
                self.copy.artifact(&self.artifact, &progress).await
            };
            let copied = tokio::select! {
                copied = copying => copied,
                never = self.report_progress(&progress, shutdown) => match never {},
                () = shutdown.cancelled() => return false,
            };
            let error = match copied {
                Ok(Copied { packs }) => {
                    let bytes = progress.bytes_copied();
                    tracing::info!(region = %self.region, artifact = %self.artifact, packs, bytes, "artifact stored");
                    COPIES.count(["stored"], 1);
                    COPIED_BYTES.count([], bytes);
                    return self.report(ReplicaStatus::Stored, packs, bytes, None, shutdown).await;
                }
                Err(error) => error,
            };
            COPIES.count(["failed"], 1);
            let wait = backoff.next_wait(&mut rand::rng());
            let (artifact, retry_ms) = (self.artifact, wait.as_millis());
            tracing::warn!(region = %self.region, %artifact, %error, retry_ms, "artifact not stored yet");
            // What is just being collected says nothing of a replica that may be there already.
            if !error.is_passing() {
                let text = error.to_string().chars().take(ERROR_CHARS_MAX).collect();
                let (packs, bytes) = (progress.packs_done(), progress.bytes_copied());
                if !self.report(ReplicaStatus::Failed, packs, bytes, Some(text), shutdown).await {
                    return false;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return false,
            }
        }
    }

    /// Reports whenever there is something new, until it is dropped.
    async fn report_progress(&self, progress: &Progress, shutdown: &CancellationToken) -> std::convert::Infallible {
        let mut told = (0, 0);
        loop {
            tokio::time::sleep(self.progress_interval).await;
            let now = (progress.packs_done(), progress.bytes_copied());
            if now != told {
                told = now;
                self.report(ReplicaStatus::Copying, now.0, now.1, None, shutdown).await;
            }
        }
    }

    async fn report(
        &self,
        status: ReplicaStatus,
        packs_done: u32,
        bytes_copied: u64,
        error: Option<String>,
        shutdown: &CancellationToken,
    ) -> bool {
        let (artifact, region) = (self.artifact, self.region.clone());
        let reported = ReplicaReported { artifact, region, status, packs_done, bytes_copied, error };
        self.outbox.send(vec![ArtifactRequest::from(reported)], shutdown).await
    }
}
