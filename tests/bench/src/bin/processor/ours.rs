//! Longshore's runtime on the Kafka log; then the state from zero, from the facts alone.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use longshore_bench::s3;
use longshore_control::snapshots::BucketObjects;
use longshore_log::{Log, TopicPartition};
use longshore_runtime::{
    Applied, Config, Handle, Rocks, Runtime, Wire,
    snapshot::{self, Part, Settings, Snapshots, Snapshotter},
    system_clock,
};
use longshore_schemas::topics;
use tokio_util::sync::CancellationToken;

use crate::requests::Filled;

const STORE: u8 = 1;
const BOUND: Duration = Duration::from_secs(200);

pub(crate) struct Run {
    /// From the start to the last commit, joining the group and taking over included.
    pub(crate) events_per_second: f64,
    pub(crate) rebuild_facts_per_second: f64,
    /// From an empty folder to the state of all facts, by a snapshot in a bucket.
    pub(crate) snapshot_start_seconds: f64,
}

pub(crate) async fn run<P: Wire>(filled: &Filled, count: u64, processor: impl Fn() -> P) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let ends = ends(&*filled.log, topics::BUILD_REQUESTS).await?;
    ensure!(ends.iter().sum::<u64>() == count, "the request topic has not {count} records");
    let (seconds, sequences) = timed(filled, &folder.path().join("state"), processor(), |applied, partition| {
        (applied.request_offset >= ends[partition]).then_some(applied.sequence)
    })
    .await?;
    let facts: u64 = sequences.iter().sum();
    // Every request has become a job; the facts more than that say what was consumed.
    ensure!(facts > count, "{facts} facts for {count} requests");
    let (rebuild, again) = timed(filled, &folder.path().join("again"), processor(), |applied, partition| {
        (applied.sequence >= sequences[partition]).then_some(applied.sequence)
    })
    .await?;
    ensure!(again == sequences, "the state from zero is another one");
    let snapshot = from_snapshot(filled, folder.path(), processor(), &sequences).await?;
    Ok(Run {
        events_per_second: count as f64 / seconds,
        rebuild_facts_per_second: facts as f64 / rebuild,
        snapshot_start_seconds: snapshot,
    })
}

/// Writes a snapshot of the state that was built first, and starts from it. Seconds of the start.
async fn from_snapshot<P: Wire>(filled: &Filled, folder: &Path, processor: P, sequences: &[u64]) -> Result<f64> {
    let server = s3::serve(folder.join("s3")).await?;
    let log: Arc<dyn Log> = filled.log.clone();
    let snapshots = Snapshots {
        objects: Arc::new(BucketObjects(s3::bucket(server.endpoint()).await?)),
        parts: vec![Part::of::<P>(STORE, &*log)?],
        log,
        settings: Settings::new("benchmark", "benchmark"),
        clock: system_clock(),
    };
    let written = Snapshotter::new(snapshots.clone(), Rocks::open(&folder.join("state"))?)?.write().await?;
    ensure!(written.facts == sequences.iter().sum::<u64>(), "the snapshot has {} facts", written.facts);
    let target = folder.join("restored");
    let begun = Instant::now();
    let restored = snapshot::restore(&snapshots, &target).await?.context("the snapshot is of no use")?;
    ensure!(restored.facts == written.facts, "{} facts were restored of {}", restored.facts, written.facts);
    let restoring = begun.elapsed().as_secs_f64();
    let (starting, again) = timed(filled, &target, processor, |applied, partition| {
        (applied.sequence >= sequences[partition]).then_some(applied.sequence)
    })
    .await?;
    ensure!(again == sequences, "the state from the snapshot is another one");
    server.shutdown().await;
    Ok(restoring + starting)
}

/// Runs the processor on this state until every partition says what is asked of it.
async fn timed<P: Wire>(
    filled: &Filled,
    state: &Path,
    processor: P,
    done: impl Fn(Applied, usize) -> Option<u64>,
) -> Result<(f64, Vec<u64>)> {
    let rocks = Rocks::open(state)?;
    let log: Arc<dyn Log> = filled.log.clone();
    let config = Config {
        log,
        rocks,
        store_id: STORE,
        signals: false,
        clock: system_clock(),
        gate: longshore_bench::keys::gate(),
    };
    let shutdown = CancellationToken::new();
    let begun = Instant::now();
    let handle = Runtime::start(processor, &config, Arc::new(()), &shutdown)?;
    let found =
        tokio::time::timeout(BOUND, all(&handle, done)).await.context("the processor did not end in time")??;
    let seconds = begun.elapsed().as_secs_f64();
    shutdown.cancel();
    handle.stopped().await;
    Ok((seconds, found))
}

async fn all<P: Wire>(handle: &Handle<P>, done: impl Fn(Applied, usize) -> Option<u64>) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for partition in 0..handle.partitions() {
        let mut applied = handle.applied(partition).context("a partition")?;
        let reached = applied.wait_for(|applied| done(*applied, partition as usize).is_some()).await?;
        found.push(done(*reached, partition as usize).context("it was reached")?);
    }
    Ok(found)
}

async fn ends(log: &dyn Log, topic: topics::Topic) -> Result<Vec<u64>> {
    let mut ends = Vec::new();
    for partition in 0..topic.partitions {
        ends.push(log.end_offset(&TopicPartition::new(topic.name, partition)).await?);
    }
    Ok(ends)
}
