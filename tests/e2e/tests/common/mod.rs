//! What a stopped `longshore up` left: its log, read by the tests and by `longshore log verify`, and its projections.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::print_stdout, reason = "for people, seen with --nocapture")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use longshore_control::{Control, ControlConfig, replay_fingerprints};
use longshore_e2e::process::binary_path;
use longshore_log::{
    Log, ReadLimit, StoredRecord, TopicPartition,
    local::{Config as LogConfig, LocalLog},
};
use longshore_schemas::{
    JobId,
    codec::{self, Message},
    events::{BuildFact, Event, Fact},
    topics::{self, Topic},
};
use longshore_service::request_keys::RequestKeys;
use longshore_signing::SigningKey;
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

/// `longshore log verify` on what the cluster in this folder left: no gap, no duplicate, no torn output, nothing set aside,
/// and projections that say what the log says.
pub(crate) fn verify(folder: &Path) -> Result<()> {
    let mut verify = Command::new(binary_path("longshore")?);
    let output = verify.args(["log", "verify", "--data"]).arg(folder.join("up")).output()?;
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    ensure!(output.status.success(), "longshore log verify: {out}{err}");
    ensure!(out.contains("no gap, no duplicate, no torn output"), "{out}");
    ensure!(out.contains(", 0 dead letters"), "{out}");
    Ok(())
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
        let regions: Vec<_> = regions.iter().map(|region| region.parse()).collect::<Result<_, _>>()?;
        let keys = RequestKeys::load(&self.data.join("secrets").join("requests"))?;
        let stop = CancellationToken::new();
        let mut config = ControlConfig::new(
            self.log.clone(),
            self.data.join("state"),
            regions,
            keys,
            Arc::new(SigningKey::from_seed(&[8; 32])),
        );
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
