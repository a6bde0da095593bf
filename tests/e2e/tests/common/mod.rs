//! What a stopped `longshore up` left: its log, read by the tests, and its projections.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{collections::BTreeMap, path::Path, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use longshore_control::{Control, ControlConfig, replay_fingerprints};
use longshore_log::{
    Log, ReadLimit, StoredRecord, TopicPartition,
    local::{Config as LogConfig, LocalLog},
};
use longshore_schemas::{
    JobId,
    codec::{self, Message},
    events::{ArtifactFact, BuildFact, Event, Fact, FleetFact, GoalFact},
    topics::{self, Topic},
};
use tokio_util::sync::CancellationToken;

/// A folder for a test's processes. `KEEP=1` leaves it, for their logs.
pub(crate) fn folder() -> Result<tempfile::TempDir> {
    let mut folder = tempfile::tempdir()?;
    if std::env::var_os("KEEP").is_some() {
        println!("{}", folder.path().display());
        folder.disable_cleanup(true);
    }
    Ok(folder)
}

pub(crate) struct Left {
    log: Arc<LocalLog>,
    data: PathBuf,
}

impl Left {
    /// Of the cluster in this folder.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let data = folder.join("up");
        Ok(Self { log: LocalLog::open(LogConfig::new(data.join("log"), topics::ALL))?, data })
    }

    /// Compares the projections with a replay of the log from zero.
    pub(crate) async fn equals_replay(&self, regions: &[&str]) -> Result<()> {
        let regions = regions.iter().map(|region| region.parse()).collect::<Result<_, _>>()?;
        let stop = CancellationToken::new();
        let mut config = ControlConfig::new(self.log.clone(), self.data.join("state"), regions);
        config.shards_per_region = 4;
        let control = Control::start(config, &stop)?;
        stop.cancel();
        control.stopped().await;
        let live = control.fingerprints()?;
        let replayed = replay_fingerprints(&*self.log, &live).await?;
        ensure!(live.len() == 4 + 4 + 4 + 16, "{} partitions", live.len());
        for processor in ["queue", "replication", "goals", "fleet"] {
            let facts: u64 = live.iter().filter(|p| p.processor == processor).map(|p| p.applied.fact_offset).sum();
            ensure!(facts > 0, "{processor} has facts");
        }
        for (live, replayed) in live.iter().zip(&replayed) {
            let place = format!("{}/{}", live.processor, live.partition);
            ensure!(live.fingerprint == replayed.fingerprint, "{place} is not what its facts say");
        }
        Ok(())
    }

    /// No fact is missing, twice, torn or out of order, and no record was set aside.
    pub(crate) async fn is_sound(&self) -> Result<()> {
        let builds = self.are_sound::<BuildFact>().await?;
        ensure!(builds > 0, "there are no facts of builds");
        self.are_sound::<ArtifactFact>().await?;
        self.are_sound::<GoalFact>().await?;
        self.are_sound::<FleetFact>().await?;
        let dead = self.records(topics::DEAD_LETTERS).await?.concat();
        ensure!(dead.is_empty(), "{} dead letters", dead.len());
        Ok(())
    }

    /// Answers how many there are.
    async fn are_sound<E: Event>(&self) -> Result<usize>
    where
        Fact<E>: Message,
    {
        let mut total = 0;
        for (partition, facts) in self.facts::<E>().await?.iter().enumerate() {
            let place = format!("{}/{partition}", E::TOPIC.name);
            for (sequence, fact) in (1..).zip(facts) {
                ensure!(fact.sequence == sequence, "{place}: sequence {} where {sequence} is next", fact.sequence);
            }
            for pair in facts.windows(2) {
                let [one, next] = pair else { continue };
                let sequence = next.sequence;
                ensure!(one.at <= next.at, "{place}: time goes back at {sequence}: {} to {}", one.at, next.at);
                let (before, cause) = (&one.cause, &next.cause);
                let goes_on = before.trigger == cause.trigger && before.index + 1 == cause.index;
                let begins = before.index + 1 == before.count && cause.index == 0;
                ensure!(goes_on || begins, "{place}: torn at {sequence}: {cause:?} after {before:?}");
            }
            if let Some(Fact { cause, .. }) = facts.last() {
                ensure!(cause.index + 1 == cause.count, "{place}: torn at its end: {cause:?}");
            }
            total += facts.len();
        }
        Ok(total)
    }

    /// Every fact of a topic, by partition.
    pub(crate) async fn facts<E: Event>(&self) -> Result<Vec<Vec<Fact<E>>>>
    where
        Fact<E>: Message,
    {
        let decode = |record: &StoredRecord| -> Result<Fact<E>> {
            Ok(codec::decode(record.record.value.as_deref().context("a fact has a value")?)?)
        };
        self.records(E::TOPIC).await?.iter().map(|records| records.iter().map(decode).collect()).collect()
    }

    async fn records(&self, topic: Topic) -> Result<Vec<Vec<StoredRecord>>> {
        let mut partitions = Vec::new();
        for partition in 0..topic.partitions {
            let of = TopicPartition::new(topic.name, partition);
            let (start, end) = (self.log.start_offset(&of).await?, self.log.end_offset(&of).await?);
            let mut reader = self.log.reader(vec![(of.clone(), start)])?;
            let mut records = Vec::new();
            while reader.position(&of).is_some_and(|position| position < end) {
                records.extend(reader.read(ReadLimit::default()).await?);
            }
            partitions.push(records);
        }
        Ok(partitions)
    }

    /// What was decided of each job, in order.
    pub(crate) async fn jobs(&self) -> Result<BTreeMap<JobId, Vec<Fact<BuildFact>>>> {
        let mut jobs = BTreeMap::<JobId, Vec<_>>::new();
        for fact in self.facts::<BuildFact>().await?.into_iter().flatten() {
            let job = match &fact.event {
                BuildFact::JobQueued(e) => &e.job,
                BuildFact::JobStarted(e) => &e.job,
                BuildFact::JobRequeued(e) => &e.job,
                BuildFact::JobCanceled(e) => &e.job,
                BuildFact::BuildSucceeded(e) => &e.job,
                BuildFact::BuildFailed(e) => &e.job,
                BuildFact::WorkerLost(e) => &e.job,
                BuildFact::Processed(_) => continue,
            };
            jobs.entry(job.clone()).or_default().push(fact);
        }
        Ok(jobs)
    }
}

/// Whether a job has ended with this fact.
pub(crate) fn is_end(fact: &BuildFact) -> bool {
    matches!(fact, BuildFact::JobCanceled(_) | BuildFact::BuildSucceeded(_) | BuildFact::BuildFailed(_))
}
