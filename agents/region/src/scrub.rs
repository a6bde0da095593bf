//! Looks at replicas all the time: some packs of one artifact after the other, within a rate.
//!
//! ```text
//! [scrubber] every artifact of the bucket, over and over ─▶ a few of its packs, others at each visit ─▶ right: the next
//!                                                                                                   └─▶ not: a word to the mender
//! ```
//!
//! What is damaged is the mender's to move away and report, and the copier's to copy anew; the artifact is not deployable in the region
//! meanwhile. The processes of a region share the artifacts. Visits are counted on disk, so that a region that is
//! often started anew looks at all packs nevertheless.

use std::{
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use longshore_artifact::PackRef;
use longshore_region_policy::scrub::sample;
use longshore_s3::Bucket;
use longshore_schemas::ArtifactId;
use longshore_service::{ledger::Ledger, metrics::Counters};
use longshore_swarm_policy::Rate;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Limits,
    mender::{What, Word, Words},
    outbox::Outbox,
    quarantine::{Held, inspect},
    reports::Reports,
    walk::{self, Walk},
};

/// Packs of one artifact that are looked at in one visit.
const PACKS_AT_ONCE: usize = 4;
/// A look costs something, however little was there.
const LOOK_BYTES: u64 = 64 * 1024;
/// Where it is is written to disk at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
const RETRY_WAIT: Duration = Duration::from_secs(10);

static LOOKS: LazyLock<Counters<1>> =
    LazyLock::new(|| Counters::new("longshore_region_scrubs", "Packs of replicas that were looked at", ["outcome"]));

/// Where the scrubber is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Place {
    visit: u64,
    /// Looked at in this visit, and all before it.
    last: Option<ArtifactId>,
}

/// See the module.
pub(crate) struct Scrubber {
    bucket: Bucket,
    damaged: Words,
    outbox: Arc<Outbox>,
    reports: Arc<Reports>,
    begun: Instant,
    rate: Rate,
    /// Between the beginnings of two visits, at least.
    interval: Duration,
    ledger: Ledger<Place>,
    place: Place,
    saved_at: Instant,
}

impl Scrubber {
    pub(crate) fn open(
        bucket: Bucket,
        limits: &Limits,
        data_dir: &Path,
        damaged: Words,
        outbox: Arc<Outbox>,
        reports: Arc<Reports>,
    ) -> Result<Self, Error> {
        let ledger = Ledger::open(data_dir.join("scrub.json"), Place::default())?;
        let (place, begun, interval) = (*ledger.content(), Instant::now(), limits.scrub_interval);
        let rate = Rate::new(limits.scrub_bytes_per_second);
        Ok(Self { bucket, damaged, outbox, reports, begun, rate, interval, ledger, place, saved_at: begun })
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(async { self.visits().await }).await;
    }

    async fn visits(&mut self) {
        loop {
            let next = Instant::now() + self.interval;
            tokio::time::sleep_until(next).await;
            while let Err(error) = self.visit().await {
                tracing::warn!(bucket = self.bucket.name(), %error, "replicas cannot be looked at; trying again");
                tokio::time::sleep(RETRY_WAIT).await;
            }
            let visit = self.place.visit + 1;
            self.keep(Place { visit, last: None }, Duration::ZERO);
        }
    }

    /// Goes on where it stopped.
    async fn visit(&mut self) -> Result<(), longshore_s3::Error> {
        let mut walk = Walk::new(&self.bucket);
        while let Some(artifact) = walk.next().await? {
            let Place { visit, last } = self.place;
            let is_done = last.is_some_and(|last| artifact <= last);
            if is_done || !self.reports.is_to_do(self.outbox.sender(), &artifact.to_string()) {
                continue;
            }
            self.look_at(&artifact, visit).await?;
            self.keep(Place { visit, last: Some(artifact) }, SAVE_INTERVAL);
        }
        Ok(())
    }

    async fn look_at(&mut self, artifact: &ArtifactId, visit: u64) -> Result<(), longshore_s3::Error> {
        self.pace(LOOK_BYTES).await;
        let packs = match walk::read(&self.bucket, artifact).await? {
            Some(Ok(root)) => root.all_packs(),
            Some(Err(_)) => {
                self.say(*artifact, What::Root);
                return Ok(());
            }
            None => return Ok(()),
        };
        for pack in sample(&packs, visit, PACKS_AT_ONCE) {
            self.look_at_pack(artifact, *pack).await?;
        }
        Ok(())
    }

    async fn look_at_pack(&mut self, artifact: &ArtifactId, pack: PackRef) -> Result<(), longshore_s3::Error> {
        self.pace(pack.bytes.max(LOOK_BYTES)).await;
        let held = inspect(&self.bucket, &pack.pack, pack.bytes).await?;
        if matches!(held, Held::Right(_)) {
            LOOKS.count(["right"], 1);
            return Ok(());
        }
        // Of an artifact that is being removed, the root goes first.
        if walk::read(&self.bucket, artifact).await?.is_some() {
            self.say(*artifact, What::Pack(pack));
        }
        Ok(())
    }

    fn say(&self, artifact: ArtifactId, what: What) {
        LOOKS.count(["damaged"], 1);
        self.damaged.say(Word { node: None, artifact, what });
    }

    async fn pace(&mut self, bytes: u64) {
        tokio::time::sleep_until(self.begun + self.rate.free_at()).await;
        self.rate.take(bytes, self.begun.elapsed());
    }

    fn keep(&mut self, place: Place, interval: Duration) {
        self.place = place;
        if self.saved_at.elapsed() < interval {
            return;
        }
        self.saved_at = Instant::now();
        if let Err(error) = self.ledger.store(place) {
            tracing::warn!(%error, "where the scrubber is is not on disk; after a restart it looks again at what it has seen");
        }
    }
}
