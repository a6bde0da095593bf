//! Snapshots: what comes back from them, what is wrong with some, and what two nodes leave each other.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use longshore_log::{
    Error as LogError, Log, Membership, Position, ReadLimit, Reader, Record, StoredRecord, TopicConfig, TopicPartition,
    Writer, simulated::SimulatedLog,
};
use longshore_runtime::{
    Config, Handle, Rocks, Runtime, replay,
    snapshot::{Object, ObjectError, ObjectStore, Part, Restored, Settings, Snapshots, Snapshotter, Written, restore},
    system_clock,
};
use longshore_schemas::{Timestamp, read::Outcome, topics};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::toy::{COUNTS, Toy, gate, job, record, request};

const PATIENCE: Duration = Duration::from_secs(30);
const STORE: u8 = 9;
const DAY_MILLIS: i64 = 24 * 60 * 60 * 1_000;

/// A bucket in memory, which can be damaged.
#[derive(Default)]
struct Memory {
    objects: Mutex<BTreeMap<String, Bytes>>,
    puts: AtomicU64,
    /// Takes no descriptions: as if the writer had died before it.
    no_descriptions: AtomicBool,
}

impl Memory {
    fn keys(&self, prefix: &str) -> Vec<String> {
        let objects = self.objects.lock().expect("no panics");
        objects.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    fn descriptions(&self) -> Vec<String> {
        self.keys("snapshots/descriptions/")
    }

    fn pieces(&self) -> Vec<String> {
        self.keys("snapshots/pieces/")
    }

    fn change(&self, key: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut objects = self.objects.lock().expect("no panics");
        let object = objects.get_mut(key).expect("it is there");
        let mut bytes = object.to_vec();
        change(&mut bytes);
        *object = bytes.into();
    }

    fn remove(&self, key: &str) {
        self.objects.lock().expect("no panics").remove(key).expect("it was there");
    }
}

#[async_trait]
impl ObjectStore for Memory {
    async fn get(&self, key: &str, bytes_max: u64) -> Result<Option<Bytes>, ObjectError> {
        let object = self.objects.lock().expect("no panics").get(key).cloned();
        match object {
            Some(bytes) if bytes.len() as u64 > bytes_max => {
                Err(ObjectError { key: key.into(), source: "too large".into() })
            }
            object => Ok(object),
        }
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), ObjectError> {
        if key.contains("descriptions") && self.no_descriptions.load(Ordering::SeqCst) {
            return Err(ObjectError { key: key.to_owned(), source: "the writer is gone".into() });
        }
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.objects.lock().expect("no panics").insert(key.to_owned(), bytes);
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.objects.lock().expect("no panics").remove(key);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>, ObjectError> {
        let objects = self.objects.lock().expect("no panics");
        let begins = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(begins.map(|(key, bytes)| Object { key: key.clone(), bytes: bytes.len() as u64 }).collect())
    }
}

/// A log that counts the facts that are read.
struct Counting {
    log: SimulatedLog,
    facts: Arc<AtomicU64>,
}

struct CountingReader(Box<dyn Reader>, Arc<AtomicU64>);

#[async_trait]
impl Reader for CountingReader {
    async fn read(&mut self, limit: ReadLimit) -> Result<Vec<StoredRecord>, LogError> {
        let records = self.0.read(limit).await?;
        let facts = records.iter().filter(|record| &*record.source.topic == topics::BUILDS.name).count();
        self.1.fetch_add(facts as u64, Ordering::SeqCst);
        Ok(records)
    }

    fn position(&self, of: &TopicPartition) -> Option<u64> {
        self.0.position(of)
    }
}

#[async_trait]
impl Log for Counting {
    fn partitions(&self, topic: &str) -> Result<u32, LogError> {
        self.log.partitions(topic)
    }

    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<Vec<Position>, LogError> {
        self.log.append(topic, records).await
    }

    fn reader(&self, from: Vec<(TopicPartition, u64)>) -> Result<Box<dyn Reader>, LogError> {
        Ok(Box::new(CountingReader(self.log.reader(from)?, self.facts.clone())))
    }

    async fn end_offset(&self, of: &TopicPartition) -> Result<u64, LogError> {
        self.log.end_offset(of).await
    }

    async fn start_offset(&self, of: &TopicPartition) -> Result<u64, LogError> {
        self.log.start_offset(of).await
    }

    async fn offset_at(&self, of: &TopicPartition, at: Timestamp) -> Result<u64, LogError> {
        self.log.offset_at(of, at).await
    }

    async fn join(&self, group: &str, topic: &str) -> Result<Box<dyn Membership>, LogError> {
        self.log.join(group, topic).await
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>, LogError> {
        self.log.writer(owner).await
    }
}

fn new_log() -> SimulatedLog {
    SimulatedLog::new(topics::ALL.map(TopicConfig::from))
}

/// A log, a bucket, and a clock that is set by hand.
struct World {
    log: SimulatedLog,
    bucket: Arc<Memory>,
    clock: Arc<AtomicI64>,
    facts_read: Arc<AtomicU64>,
    folder: TempDir,
}

/// A process: its runtime and its snapshots.
struct Node {
    handle: Handle<Toy<1>>,
    snapshotter: Snapshotter,
    restored: Option<Restored>,
    shutdown: CancellationToken,
}

impl World {
    fn new() -> Self {
        Self {
            log: new_log(),
            bucket: Arc::default(),
            clock: Arc::new(AtomicI64::new(1_000)),
            facts_read: Arc::default(),
            folder: TempDir::new().expect("a temporary folder"),
        }
    }

    fn log(&self) -> Arc<dyn Log> {
        Arc::new(Counting { log: self.log.clone(), facts: self.facts_read.clone() })
    }

    fn later(&self, millis: i64) {
        self.clock.fetch_add(millis, Ordering::SeqCst);
    }

    fn snapshots<const V: u32>(&self, installation: &str) -> Snapshots {
        let (log, clock) = (self.log(), self.clock.clone());
        let settings = Settings { facts_min: 1, keep: 2, ..Settings::new(installation, "node") };
        Snapshots {
            objects: self.bucket.clone(),
            parts: vec![Part::of::<Toy<V>>(STORE, &*log).expect("a topic")],
            log,
            settings,
            clock: Arc::new(move || Timestamp(clock.load(Ordering::SeqCst))),
        }
    }

    /// Restores into a folder if it is empty, and starts.
    async fn start(&self, name: &str) -> Node {
        let state = self.folder.path().join(name);
        let snapshots = self.snapshots::<1>("here");
        let restored = restore(&snapshots, &state).await.expect("the log and the disk work");
        let rocks = Rocks::open(&state).expect("opens");
        let shutdown = CancellationToken::new();
        let config = Config {
            log: self.log(),
            rocks: rocks.clone(),
            store_id: STORE,
            signals: true,
            clock: system_clock(),
            gate: gate(),
        };
        let handle = Runtime::start(Toy::<1>, &config, Arc::new(()), &shutdown).expect("starts");
        let snapshotter = Snapshotter::new(snapshots, rocks).expect("a folder");
        Node { handle, snapshotter, restored, shutdown }
    }

    /// What would be taken from the bucket now.
    async fn restored(&self, name: &str) -> Option<Restored> {
        restore(&self.snapshots::<1>("here"), &self.folder.path().join(name)).await.expect("the log and the disk work")
    }

    async fn ask(&self, node: &Node, prefix: &str, jobs: &[&str]) {
        let requests = jobs.iter().enumerate().map(|(n, job)| record(&request(&format!("{prefix}-{n}"), job)));
        let positions = self.log.append(topics::BUILD_REQUESTS.name, requests.collect()).await.expect("appends");
        for Position { source, offset } in positions {
            assert_eq!(node.handle.outcome(source.partition, offset, PATIENCE).await, Outcome::Processed);
        }
    }

    /// Two snapshots of a state that grows: the keys of their descriptions.
    async fn two_snapshots(&self) -> [Written; 2] {
        let node = self.start("first").await;
        self.ask(&node, "one", &JOBS).await;
        let one = node.snapshotter.write().await.expect("writes");
        self.later(1_000);
        self.ask(&node, "two", &JOBS).await;
        let two = node.snapshotter.write().await.expect("writes");
        node.stop().await;
        [one, two]
    }
}

impl Node {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.handle.stopped()).await.expect("stops in time");
    }

    fn count(&self, text: &str) -> u32 {
        let job = job(text);
        COUNTS.get(self.handle.store_of(job.queue.as_str()), &job).expect("readable").unwrap_or(0)
    }
}

const JOBS: [&str; 6] = ["a-1", "b-1", "c-1", "d-1", "e-1", "a-1"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_reads_only_the_facts_that_a_snapshot_lacks() {
    let world = World::new();
    let first = world.start("first").await;
    assert_eq!(first.restored, None);
    world.ask(&first, "one", &JOBS).await;
    let written = first.snapshotter.write_if_due().await.expect("writes").expect("there was none");
    assert!(written.facts > 6 && written.uploaded_bytes == written.bytes, "{written:?}");
    world.ask(&first, "two", &["a-1", "b-1"]).await;
    let all: u64 = first.handle.fingerprints().expect("readable").iter().map(|(_, applied, _)| applied.sequence).sum();
    let before = first.handle.fingerprints().expect("readable");
    first.stop().await;

    world.facts_read.store(0, Ordering::SeqCst);
    let restored = world.restored("looked at").await.expect("there is one");
    let to_recognise = world.facts_read.swap(0, Ordering::SeqCst);
    assert_eq!((restored.key, restored.facts), (written.key.clone(), written.facts));
    let second = world.start("second").await;
    assert_eq!(second.restored.as_ref().map(|restored| &restored.key), Some(&written.key));
    world.ask(&second, "three", &["a-1"]).await;
    assert_eq!((second.count("a-1"), second.count("b-1"), second.count("c-1")), (4, 2, 1));
    second.stop().await;
    let read = world.facts_read.load(Ordering::SeqCst) - to_recognise;
    assert_eq!(read, all - written.facts, "of {all} facts, {} were in the snapshot", written.facts);

    // The restored state is what the first node had, and what all facts make.
    let third = world.start("second").await;
    assert_eq!(third.restored, None, "it has a state");
    for (partition, applied, fingerprint) in third.handle.fingerprints().expect("readable") {
        let again = replay::<Toy<1>>(&world.log, partition, applied.fact_offset).await.expect("replays");
        assert_eq!((again.applied, again.fingerprint), (applied, fingerprint), "partition {partition}");
    }
    for (partition, applied, fingerprint) in before {
        let again = replay::<Toy<1>>(&world.log, partition, applied.fact_offset).await.expect("replays");
        assert_eq!(again.fingerprint, fingerprint, "partition {partition}");
    }
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_damaged_is_passed_over_for_the_one_before_it() {
    /// A snapshot's own pieces, which the one before it has not.
    type Damage = fn(&Memory, &str, &[String]);
    let table: [(&str, Damage); 6] = [
        ("a piece is truncated", |bucket, _, own| bucket.change(&own[0], |bytes| bytes.truncate(bytes.len() / 2))),
        ("a piece is empty", |bucket, _, own| bucket.change(&own[0], Vec::clear)),
        ("a byte of a piece is another", |bucket, _, own| {
            bucket.change(own.last().expect("some"), |bytes| *bytes.last_mut().expect("some") ^= 1);
        }),
        ("a piece is missing", |bucket, _, own| bucket.remove(&own[0])),
        ("the description is truncated", |bucket, key, _| bucket.change(key, |bytes| bytes.truncate(200))),
        ("a byte of the description is another", |bucket, key, _| bucket.change(key, |bytes| bytes[300] ^= 1)),
    ];
    let world = World::new();
    let node = world.start("first").await;
    world.ask(&node, "one", &JOBS).await;
    let one = node.snapshotter.write().await.expect("writes");
    let shared = world.bucket.pieces();
    world.later(1_000);
    world.ask(&node, "two", &JOBS).await;
    let two = node.snapshotter.write().await.expect("writes");
    node.stop().await;
    let own: Vec<_> = world.bucket.pieces().into_iter().filter(|piece| !shared.contains(piece)).collect();
    assert!(!own.is_empty() && two.uploaded_bytes < two.bytes, "{two:?} shares what did not change");
    let whole = world.bucket.objects.lock().expect("no panics").clone();
    for (n, (what, damage)) in table.into_iter().enumerate() {
        damage(&world.bucket, &two.key, &own);
        let restored = world.restored(&format!("damaged-{n}")).await;
        assert_eq!(restored.map(|restored| restored.key).as_ref(), Some(&one.key), "{what}");
        // Without that one, from the beginning.
        world.bucket.remove(&one.key);
        assert_eq!(world.restored(&format!("from-zero-{n}")).await, None, "{what}");
        *world.bucket.objects.lock().expect("no panics") = whole.clone();
    }
    assert_eq!(world.restored("whole").await.map(|restored| restored.key), Some(two.key));
    // And a node that begins so is well.
    world.bucket.change(&two_key(&world), |bytes| bytes.truncate(9));
    let node = world.start("goes on").await;
    assert_eq!(node.restored.as_ref().map(|restored| &restored.key), Some(&one.key));
    world.ask(&node, "three", &["a-1"]).await;
    assert_eq!(node.count("a-1"), 5);
    node.stop().await;
}

fn two_key(world: &World) -> String {
    world.bucket.descriptions().pop().expect("some")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_another_log_or_version_is_not_taken() {
    let mut world = World::new();
    let [_, two] = world.two_snapshots().await;
    let folder = |name: &str| world.folder.path().join(name);
    let other = restore(&world.snapshots::<1>("elsewhere"), &folder("elsewhere")).await.expect("works");
    assert_eq!(other, None, "of another installation");
    let other = restore(&world.snapshots::<2>("here"), &folder("later")).await.expect("works");
    assert_eq!(other, None, "of another state version");

    // The log was lost, and is empty: the snapshot is beyond its end.
    let lost = std::mem::replace(&mut world.log, new_log());
    assert_eq!(world.restored("empty").await, None);
    // The log was lost and has grown again: its facts are others.
    let node = world.start("again").await;
    for round in 0..4 {
        world.ask(&node, &format!("again-{round}"), &["a-2", "b-2", "c-2", "d-2", "e-2", "a-2", "b-2"]).await;
    }
    node.stop().await;
    assert_eq!(world.restored("other facts").await, None);
    world.log = lost;
    assert_eq!(world.restored("the right one").await.map(|restored| restored.key), Some(two.key));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_dies_leaves_no_snapshot() {
    let world = World::new();
    let [_, two] = world.two_snapshots().await;
    world.later(1_000);
    let node = world.start("first").await;
    world.ask(&node, "three", &JOBS).await;
    world.bucket.no_descriptions.store(true, Ordering::SeqCst);
    node.snapshotter.write().await.expect_err("the description cannot be written");
    assert!(!world.folder.path().join("first/snapshot").exists(), "the copy is gone");
    assert_eq!(world.restored("second").await.map(|restored| restored.key), Some(two.key));
    // What it uploaded is used by the next, or removed by it.
    world.bucket.no_descriptions.store(false, Ordering::SeqCst);
    let three = node.snapshotter.write().await.expect("writes");
    node.stop().await;
    assert_eq!(world.restored("third").await.map(|restored| restored.key), Some(three.key));
    assert_eq!(world.bucket.descriptions().len(), 2, "so many are kept");
    assert_referred(&world);
}

/// Every piece that is there is of a description that is there, and the other way round.
fn assert_referred(world: &World) {
    let objects = world.bucket.objects.lock().expect("no panics");
    let descriptions = objects.iter().filter(|(key, _)| key.contains("descriptions"));
    let mut referred = std::collections::BTreeSet::new();
    for (key, bytes) in descriptions {
        let (_, node) = key.split_once('-').expect("a name");
        let text = std::str::from_utf8(bytes).expect("text");
        let (_, json) = text.split_once('\n').expect("a first line");
        let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
        for file in json["files"].as_array().expect("files") {
            for piece in file["pieces"].as_array().expect("pieces") {
                referred.insert(format!("snapshots/pieces/{node}/{}", piece["blake3"].as_str().expect("a hash")));
            }
        }
    }
    let there: std::collections::BTreeSet<_> = objects.keys().filter(|key| key.contains("pieces")).cloned().collect();
    assert_eq!(there, referred);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_leave_each_others_snapshots_alone_until_one_is_gone_for_good() {
    let world = World::new();
    let (one, two) = (world.start("one").await, world.start("two").await);
    for round in 0..4 {
        for node in [&one, &two] {
            world.ask(node, &format!("round-{round}"), &JOBS).await;
            node.snapshotter.write().await.expect("writes");
            world.later(1_000);
            assert_referred(&world);
        }
    }
    assert_eq!(world.bucket.descriptions().len(), 4, "two of each");
    // At the same time.
    let (first, second) = tokio::join!(one.snapshotter.write(), two.snapshotter.write());
    assert_eq!(first.expect("writes").facts, second.expect("writes").facts);
    assert_referred(&world);
    one.stop().await;
    world.later(8 * DAY_MILLIS);
    let last = two.snapshotter.write().await.expect("writes");
    assert_eq!(world.bucket.descriptions().len(), 2, "of the one that is left");
    assert_referred(&world);
    two.stop().await;
    assert_eq!(world.restored("third").await.map(|restored| restored.key), Some(last.key));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_due_after_a_time_and_enough_facts_and_one_node_writes_it() {
    let world = World::new();
    let interval = Settings::new("here", "node").interval.as_millis() as i64;
    let (one, two) = (world.start("one").await, world.start("two").await);
    assert_eq!(one.snapshotter.write_if_due().await.expect("works"), None, "nothing is there yet");
    world.ask(&one, "first", &JOBS).await;
    world.ask(&two, "first", &JOBS).await;
    one.snapshotter.write_if_due().await.expect("works").expect("there is none");
    world.later(interval);
    assert_eq!(one.snapshotter.write_if_due().await.expect("works"), None, "nothing new");
    world.ask(&one, "second", &JOBS).await;
    world.ask(&two, "second", &JOBS).await;
    assert_eq!(two.snapshotter.write_if_due().await.expect("works"), None, "the other node goes on");
    one.snapshotter.write_if_due().await.expect("works").expect("it is due");
    // That one is gone: the other steps in.
    one.stop().await;
    world.ask(&two, "third", &JOBS).await;
    world.later(interval);
    assert_eq!(two.snapshotter.write_if_due().await.expect("works"), None, "it may only be late");
    world.later(interval / 2);
    two.snapshotter.write_if_due().await.expect("works").expect("it is late");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restoration_that_is_broken_off_is_begun_again() {
    let world = World::new();
    let [_, two] = world.two_snapshots().await;
    let state = world.folder.path().join("second");
    // What a process leaves that died while it moved files: all but the one that makes them a RocksDB.
    assert!(world.restored("second").await.is_some());
    std::fs::remove_file(state.join("CURRENT")).expect("it was there");
    std::fs::create_dir(state.join("restoring")).expect("a folder");
    std::fs::write(state.join("000077.sst"), "not one").expect("writes");
    std::fs::write(state.join("of somebody else"), "left alone").expect("writes");
    let node = world.start("second").await;
    assert_eq!(node.restored.as_ref().map(|restored| &restored.key), Some(&two.key));
    assert_eq!(node.count("a-1"), 4);
    assert!(state.join("of somebody else").exists() && !state.join("000077.sst").exists());
    assert!(!Path::new(&state.join("restoring")).exists());
    node.stop().await;
}
