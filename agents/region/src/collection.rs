//! Collecting in the region's bucket what no artifact needs any more.
//!
//! ```text
//! artifacts facts ─fold (copier)▶ Retired: what is not needed any more, and since when ─▶ rounds over the bucket ─▶ forgotten here
//! ```
//!
//! One process of the region does it at a time; if two do, nothing is lost: see `longshore_artifact::collect`. What a process that died
//! had the service copy to `incoming/` goes when it starts again, or after a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use longshore_collector::{Announced, Collector, Known, Standing};
use longshore_log::{Log, TopicPartition, clock, end_of_records};
use longshore_region_policy::pending::Pending;
use longshore_s3::{Bucket, Object};
use longshore_schemas::{ArtifactId, Timestamp, topics};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{outbox::Outbox, reports::Reports};

/// How long a round waits for the facts that the log has.
const CATCH_UP: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// What collectors that are gone leave is in the way of copies, and is looked for this often.
const TIDY_EVERY: Duration = Duration::from_secs(2 * 60);
/// What is shared out among the processes of a region by this word.
const DUTY: &str = "collect";
/// Where the service copies packs to, until they were looked at.
pub(crate) const INCOMING: &str = "incoming/";

/// What the copier has folded, for the collector.
#[derive(Default)]
pub(crate) struct Retired(Mutex<Fold>);

#[derive(Default)]
struct Fold {
    offsets: BTreeMap<u32, u64>,
    retired: BTreeMap<ArtifactId, Timestamp>,
    /// Those of them whose roots were seen in this round.
    seen: BTreeSet<ArtifactId>,
    /// For the copier, which keeps the list.
    forgotten: Vec<ArtifactId>,
}

impl Retired {
    fn fold(&self) -> MutexGuard<'_, Fold> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what was folded; `retired` says whether that list is another than before.
    pub(crate) fn followed(&self, pending: &Pending, retired: bool) {
        let mut fold = self.fold();
        fold.offsets.clone_from(&pending.offsets);
        if retired {
            fold.retired.clone_from(&pending.retired);
        }
    }

    pub(crate) fn forgotten(&self) -> Vec<ArtifactId> {
        std::mem::take(&mut self.fold().forgotten)
    }

    /// What was retired before this and has no root any more need not be known any longer.
    fn forget(&self, before: Timestamp) {
        let mut fold = self.fold();
        let Fold { retired, seen, forgotten, .. } = &mut *fold;
        let gone = retired.iter().filter(|(artifact, since)| **since < before && !seen.contains(*artifact));
        forgotten.extend(gone.map(|(artifact, _)| *artifact));
        seen.clear();
    }
}

/// See the module.
pub(crate) struct Collection {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) bucket: Bucket,
    /// Where this run of this process has packs copied to.
    pub(crate) incoming: Arc<str>,
    pub(crate) collector: Collector,
    pub(crate) every: Duration,
    pub(crate) grace: Duration,
    pub(crate) retired: Arc<Retired>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) reports: Arc<Reports>,
}

impl Collection {
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let own = format!("{INCOMING}{}/", self.outbox.process());
        let removed = shutdown.run_until_cancelled(self.remove_incoming(&own, Duration::ZERO)).await;
        if let Some(Err(error)) = removed {
            tracing::warn!(%error, "what was left in incoming/ could not be removed");
        }
        let mut next = Instant::now() + self.every;
        while shutdown.run_until_cancelled(tokio::time::sleep(self.every.min(TIDY_EVERY))).await.is_some() {
            if !self.reports.is_to_do(self.outbox.sender(), DUTY) {
                continue;
            }
            if let Err(error) = self.collector.tidy().await {
                tracing::warn!(%error, "what others have condemned cannot be looked at");
            }
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + self.every;
            let before = Timestamp::from_millis(clock::now().millis().saturating_sub(millis(self.grace)));
            match shutdown.run_until_cancelled(self.collector.round(&self)).await {
                Some(Ok(_)) => {
                    self.retired.forget(before);
                    if let Err(error) = self.remove_incoming(INCOMING, self.grace).await {
                        tracing::warn!(%error, "what was left in incoming/ could not be removed");
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "what nothing needs could not be collected; trying again later");
                }
                None => return,
            }
        }
    }

    /// Removes what has been there for so long, and is not of this run of this process.
    async fn remove_incoming(&self, prefix: &str, age: Duration) -> Result<(), longshore_s3::Error> {
        let mut pages = self.bucket.list(prefix);
        let is_old = |object: &Object| age.is_zero() || object.modified.elapsed().is_ok_and(|passed| passed >= age);
        let is_over = |object: &&Object| is_old(object) && !object.key.starts_with(&*self.incoming);
        while let Some(page) = pages.next().await? {
            for object in page.iter().filter(is_over) {
                self.bucket.delete(&object.key).await?;
            }
        }
        Ok(())
    }

    /// Reads up to where the log ends now, and waits until the copier is as far.
    async fn follow(&self) -> Result<(), longshore_log::Error> {
        let of = |partition| TopicPartition::new(topics::ARTIFACTS.name, partition);
        let from = self.retired.fold().offsets.clone();
        let start = |partition| (of(partition), from.get(&partition).copied().unwrap_or(0));
        let from = (0..self.log.partitions(topics::ARTIFACTS.name)?).map(start).collect();
        let ends = end_of_records(&*self.log, from).await?;
        let is_there = |fold: &Fold| ends.iter().all(|(of, end)| fold.offsets.get(&of.partition) >= Some(end));
        while !is_there(&self.retired.fold()) {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

#[async_trait]
impl Known for Collection {
    async fn catch_up(&self) -> Result<(), String> {
        match tokio::time::timeout(CATCH_UP, self.follow()).await {
            Ok(followed) => followed.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the artifacts' facts could not be followed within {} s", CATCH_UP.as_secs())),
        }
    }

    fn standing(&self, artifact: &ArtifactId) -> Standing {
        let mut fold = self.retired.fold();
        match fold.retired.get(artifact).copied() {
            Some(since) => {
                fold.seen.insert(*artifact);
                Standing::RetiredSince(since)
            }
            // What the region has a root of was started once, and is not retired.
            None => Standing::Live,
        }
    }

    /// What has no root here is not stored here either, and is copied again.
    fn without_roots(
        &self,
        _: Option<&ArtifactId>,
        _: Option<&ArtifactId>,
        _: &BTreeSet<ArtifactId>,
    ) -> Result<Vec<ArtifactId>, String> {
        Ok(Vec::new())
    }

    /// What is retired nobody copies; all else is copied until its root is there.
    fn is_settled(&self, announced: &Announced, root_is_there: bool) -> bool {
        root_is_there || self.retired.fold().retired.contains_key(&announced.artifact)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
