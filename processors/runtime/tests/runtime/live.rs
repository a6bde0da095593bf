//! Runtimes over a local log: restarts at every point, fencing, handover, and what breaks staying where it is.

use std::{path::Path, sync::Arc, time::Duration};

use longshore_log::{
    Batch, Destination, Log, Record, TopicConfig, TopicPartition,
    local::{self, LocalLog},
    simulated::SimulatedLog,
};
use longshore_processor::Memory;
use longshore_runtime::{
    Applied, Config, Handle, Lost, Rocks, Role, Runtime, replay,
    step::{Leader, Place},
    system_clock,
};
use longshore_schemas::{read::Outcome, topics};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::toy::{COUNTS, Toy, beat, gate, job, record, request};

/// Nothing here takes nearly so long.
const PATIENCE: Duration = Duration::from_secs(20);
const PARTITIONS: u32 = 4;

fn open(folder: &Path) -> Arc<LocalLog> {
    LocalLog::open(local::Config::new(folder, topics::ALL)).expect("the log opens")
}

/// A runtime, and what ends it.
struct Running<const V: u32> {
    handle: Handle<Toy<V>>,
    shutdown: CancellationToken,
}

impl<const V: u32> Running<V> {
    fn start(log: &Arc<LocalLog>, state: &Path) -> Self {
        let shutdown = CancellationToken::new();
        let rocks = Rocks::open(state).expect("the state opens");
        let config =
            Config { log: log.clone(), rocks, store_id: 9, signals: true, clock: system_clock(), gate: gate() };
        let handle = Runtime::start(Toy::<V>, &config, Arc::new(()), &shutdown).expect("starts");
        Self { handle, shutdown }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.handle.stopped()).await.expect("stops in time");
    }

    fn count(&self, text: &str) -> u32 {
        let job = job(text);
        COUNTS.get(self.handle.store_of(job.queue.as_str()), &job).expect("readable").unwrap_or(0)
    }

    /// Invariant 2: the state equals a replay from zero.
    async fn assert_replay(&self, log: &LocalLog) {
        for (partition, applied, fingerprint) in self.handle.fingerprints().expect("readable") {
            let again = replay::<Toy<V>>(log, partition, applied.fact_offset).await.expect("replays");
            assert_eq!((again.applied, again.fingerprint), (applied, fingerprint), "partition {partition}");
        }
    }

    async fn role(&self, partition: usize, role: Role) {
        wait_until(async || self.handle.health().await[partition].status.role == role).await;
    }
}

async fn wait_until(condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the condition comes true in time");
}

/// Appends requests `id` for each of the jobs and answers where they stand.
async fn ask(log: &LocalLog, prefix: &str, jobs: &[&str]) -> Vec<(u32, u64)> {
    let requests = jobs.iter().enumerate().map(|(n, job)| record(&request(&format!("{prefix}-{n}"), job)));
    let positions = log.append(topics::BUILD_REQUESTS.name, requests.collect()).await.expect("appends");
    positions.into_iter().map(|position| (position.source.partition, position.offset)).collect()
}

async fn done<const V: u32>(running: &Running<V>, positions: &[(u32, u64)]) {
    for (partition, offset) in positions {
        let outcome = running.handle.outcome(*partition, *offset, PATIENCE).await;
        assert_eq!(outcome, Outcome::Processed, "{partition}/{offset}");
    }
}

const JOBS: [&str; 6] = ["a-1", "b-1", "c-1", "d-1", "e-1", "a-1"];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_counts_once_whatever_state_a_restart_finds() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = open(&folder.path().join("log"));
    let (kept, old) = (folder.path().join("kept"), folder.path().join("old"));
    let running = Running::<1>::start(&log, &kept);
    done(&running, &ask(&log, "first", &JOBS).await).await;
    running.stop().await;
    copy(&kept, &old);

    let running = Running::<1>::start(&log, &kept);
    done(&running, &ask(&log, "second", &JOBS).await).await;
    assert_eq!((running.count("a-1"), running.count("b-1")), (4, 2));
    running.stop().await;

    // Nothing was lost, some was, all was: the log has it, and the requests are not processed again.
    for state in [&kept, &old, &folder.path().join("empty")] {
        let running = Running::<1>::start(&log, state);
        let again = ask(&log, "second", &JOBS).await;
        done(&running, &again).await;
        assert_eq!((running.count("a-1"), running.count("b-1")), (4, 2), "{}", state.display());
        running.assert_replay(&log).await;
        running.stop().await;
    }
    // Another state version: rebuilt from the log.
    let running = Running::<2>::start(&log, &kept);
    done(&running, &ask(&log, "third", &JOBS).await).await;
    assert_eq!(running.count("a-1"), 6);
    running.assert_replay(&log).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_never_applied_is_applied_at_takeover() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = open(&folder.path().join("log"));
    let positions = ask(&log, "r", &["a-1", "a-1"]).await;
    let partition = positions[0].0;
    // A leader that dies between the commit and RocksDB, and another one before its commit.
    let place = Place { partition, partitions: PARTITIONS };
    let step = |count| {
        let mut leader = Leader::new(Arc::new(Toy::<1>), gate(), place, Applied::default());
        let records = [request("r-0", "a-1"), request("r-1", "a-1")].map(|request| record(&request));
        let stored = records
            .into_iter()
            .zip(0..)
            .map(|(record, offset)| crate::toy::stored(topics::BUILD_REQUESTS.name, partition, offset, record));
        leader.offer_requests(stored.take(count), count as u64);
        leader.step(&Memory::default(), longshore_schemas::Timestamp(1)).expect("memory").transaction.expect("consumed")
    };
    let mut writer = log.writer(&format!("toy-{partition}")).await.expect("a writer");
    writer.commit(step(1).batch).await.expect("commits");
    let _never_committed = step(2);

    let running = Running::<1>::start(&log, &folder.path().join("state"));
    let outcome = running.handle.outcome(positions[1].0, positions[1].1, PATIENCE).await;
    assert_eq!(outcome, Outcome::Processed);
    assert_eq!(running.count("a-1"), 2);
    running.assert_replay(&log).await;
    writer.commit(step(1).batch).await.expect_err("the predecessor is fenced");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_and_dead_letters_reach_those_who_ask() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = open(&folder.path().join("log"));
    let running = Running::<1>::start(&log, &folder.path().join("state"));
    let positions = ask(&log, "r", &["a-13", "a-66", "a-1"]).await;
    let (partition, offset) = positions[0];
    let outcome = running.handle.outcome(partition, offset, PATIENCE).await;
    assert!(matches!(&outcome, Outcome::Refused(refusal) if refusal.reason.contains("thirteen")), "{outcome:?}");
    done(&running, &positions[1..]).await;
    let letters = TopicPartition::new(topics::DEAD_LETTERS.name, 0);
    assert_eq!(log.end_offset(&letters).await.expect("readable"), 1);
    let later = running.handle.outcome(partition, 1_000, Duration::from_millis(1)).await;
    assert_eq!(later, Outcome::Pending);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_a_request_is_known_after_a_restart() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = open(&folder.path().join("log"));
    let state = folder.path().join("state");
    let running = Running::<1>::start(&log, &state);
    let mut asked = Vec::new();
    for round in 0..20 {
        // Every third round is refused.
        let job = if round % 3 == 0 { "a-13" } else { "a-1" };
        let positions = ask(&log, &format!("r-{round}"), &[job]).await;
        let outcome = running.handle.outcome(positions[0].0, positions[0].1, PATIENCE).await;
        asked.push((positions[0], outcome));
    }
    running.stop().await;
    let running = Running::<1>::start(&log, &state);
    for ((partition, offset), outcome) in asked {
        let refused = matches!(&outcome, Outcome::Refused(refusal) if refusal.offset == offset);
        assert!(refused || outcome == Outcome::Processed, "{outcome:?}");
        assert_eq!(running.handle.outcome(partition, offset, PATIENCE).await, outcome, "{partition}/{offset}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_leader_that_is_still_assigned_takes_over_again() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = open(&folder.path().join("log"));
    let running = Running::<1>::start(&log, &folder.path().join("state"));
    let first = ask(&log, "first", &["a-1"]).await;
    done(&running, &first).await;
    log.writer(&format!("toy-{}", first[0].0)).await.expect("a writer");
    done(&running, &ask(&log, "second", &["a-1"]).await).await;
    assert_eq!(running.count("a-1"), 2);
    running.role(first[0].0 as usize, Role::Leading).await;
    running.assert_replay(&log).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_come_due_by_themselves() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = open(&folder.path().join("log"));
    let running = Running::<1>::start(&log, &folder.path().join("state"));
    let positions = ask(&log, "r", &["a-30"]).await;
    done(&running, &positions).await;
    log.append(topics::WORKER_SIGNALS.name, vec![record(&beat("a-30"))]).await.expect("appends");
    // JobCanceled, JobStarted, Processed, and then JobRequeued, Processed.
    let mut applied = running.handle.applied(positions[0].0).expect("a partition");
    let due = applied.wait_for(|applied| applied.sequence == 5);
    tokio::time::timeout(PATIENCE, due).await.expect("comes due").expect("lives");
    running.assert_replay(&log).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fact_that_cannot_be_applied_halts_its_partition_only() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = open(&folder.path().join("log"));
    let broken = longshore_schemas::topics::partition_of(b"a", PARTITIONS);
    let to = Destination::Exact(TopicPartition::new(topics::BUILDS.name, broken));
    let batch = Batch { records: vec![(to, Record::new("a", "not a fact"))], consumed: Vec::new() };
    log.writer("someone").await.expect("a writer").commit(batch).await.expect("commits");
    let running = Running::<1>::start(&log, &folder.path().join("state"));
    running.role(broken as usize, Role::Halted).await;
    let health = running.handle.health().await;
    let error = health[broken as usize].status.error.clone().expect("says why");
    assert!(error.contains(&format!("fact 0 of builds/{broken}")), "{error}");
    let positions = ask(&log, "r", &JOBS).await;
    let others: Vec<_> = positions.iter().copied().filter(|(partition, _)| *partition != broken).collect();
    assert!(!others.is_empty());
    done(&running, &others).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_follows_and_takes_over() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = open(&folder.path().join("log"));
    let one = Running::<1>::start(&log, &folder.path().join("one"));
    let two = Running::<1>::start(&log, &folder.path().join("two"));
    let positions = ask(&log, "first", &JOBS).await;
    // Whoever leads, both know.
    done(&one, &positions).await;
    done(&two, &positions).await;
    one.stop().await;
    done(&two, &ask(&log, "second", &JOBS).await).await;
    assert_eq!((two.count("a-1"), two.count("b-1")), (4, 2));
    for partition in 0..PARTITIONS as usize {
        two.role(partition, Role::Leading).await;
    }
    two.assert_replay(&log).await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_retention_took_before_they_were_processed_halt_their_partition_until_that_is_accepted() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = open(&folder.path().join("log"));
    let (partition, _) = ask(&log, "lost", &["a-1", "a-1", "a-1"]).await[0];
    let week_and_more = system_clock()() + Duration::from_secs(8 * 24 * 60 * 60);
    log.maintain(week_and_more).await.expect("retention");
    let requests = TopicPartition::new(topics::BUILD_REQUESTS.name, partition);
    assert_eq!(log.start_offset(&requests).await.expect("readable"), 3);

    let state = folder.path().join("state");
    let running = Running::<1>::start(&log, &state);
    let standby = Running::<1>::start(&log, &folder.path().join("standby"));
    let halted = async || {
        let health = running.handle.health().await;
        [&running, &standby].iter().any(|node| node.handle.statuses()[partition as usize].role == Role::Halted)
            && health.len() == PARTITIONS as usize
    };
    wait_until(halted).await;
    // Others go on, and what comes to this one waits.
    let others = ask(&log, "other", &["b-1", "c-1", "d-1", "e-1"]).await;
    let others: Vec<_> = others.into_iter().filter(|(of, _)| *of != partition).collect();
    assert!(!others.is_empty());
    done(&running, &others).await;
    let later = ask(&log, "later", &["a-1"]).await;
    assert_eq!(running.handle.outcome(partition, later[0].1, Duration::from_millis(20)).await, Outcome::Pending);

    let now = system_clock()();
    let accept = async |from, to| standby.handle.accept_loss(partition, Lost { from, to }, "ada", now).await;
    accept(0, 2).await.expect_err("that is not what is lost");
    accept(0, 3).await.expect("that is");
    done(&running, &later).await;
    assert_eq!(running.count("a-1"), 1);
    for offset in 0..3 {
        let outcome = running.handle.outcome(partition, offset, PATIENCE).await;
        assert!(matches!(&outcome, Outcome::Refused(refusal) if refusal.reason.contains("ada")), "{outcome:?}");
    }
    accept(0, 3).await.expect_err("nothing is lost any more");
    // Whoever leads after that knows of it from the log.
    running.stop().await;
    standby.stop().await;
    let running = Running::<1>::start(&log, &folder.path().join("empty"));
    done(&running, &ask(&log, "last", &["a-1"]).await).await;
    assert_eq!(running.count("a-1"), 2);
    running.assert_replay(&log).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_that_are_lost_halt_who_needs_them_and_nobody_else() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = SimulatedLog::new(topics::ALL.map(TopicConfig::from));
    let start = |state: &str| {
        let shutdown = CancellationToken::new();
        let rocks = Rocks::open(&folder.path().join(state)).expect("the state opens");
        let config = Config {
            log: Arc::new(log.clone()),
            rocks,
            store_id: 9,
            signals: true,
            clock: system_clock(),
            gate: gate(),
        };
        let handle = Runtime::start(Toy::<1>, &config, Arc::new(()), &shutdown).expect("starts");
        Running { handle, shutdown }
    };
    let running = start("kept");
    let requests = (0..9).map(|n| record(&request(&format!("r-{n}"), "a-1")));
    let positions = log.append(topics::BUILD_REQUESTS.name, requests.collect()).await.expect("appends");
    let partition = positions[0].source.partition;
    done(&running, &positions.iter().map(|at| (partition, at.offset)).collect::<Vec<_>>()).await;
    running.stop().await;
    let facts = TopicPartition::new(topics::BUILDS.name, partition);
    let end = log.end_offset(&facts).await.expect("there");
    log.trim(&facts, end);

    // Who has applied them goes on.
    let running = start("kept");
    running.role(partition as usize, Role::Leading).await;
    running.stop().await;
    let running = start("empty");
    running.role(partition as usize, Role::Halted).await;
    let error = running.handle.health().await[partition as usize].status.error.clone().expect("says why");
    assert!(error.contains(&format!("facts 0 to {} of {facts}", end - 1)), "{error}");
    running.stop().await;
}
