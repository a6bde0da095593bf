//! What claims to be durable is there after the power failed: the log, the embedded S3 server, the ledger.
//!
//! Each works under load on one file system, of which copies are taken at random moments as a power cut would leave them.
//! What was acknowledged before the copy was taken must be in it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use longshore_log::{
    Batch, Destination, Log, ReadLimit, Record, TopicConfig, TopicPartition,
    local::{Config as LogConfig, LocalLog},
};
use longshore_powercut::{Cut, PowerCut, cut::Dice};
use longshore_s3::{
    Bucket, BucketConfig, Error as BucketError,
    embedded::{Config as ServerConfig, Server},
};
use longshore_service::{durable, ledger::Ledger};

/// Power cuts of each.
const CUTS: u64 = 50;
/// Between two cuts at most.
const PAUSE_MILLIS_MAX: u64 = 15;

/// Ends the load when the test ends, however it does.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes copies at random moments until there were enough, and has each checked; `acknowledged` is looked at before the
/// copy is taken.
fn cut_again_and_again<T>(
    (disk, folder): (&PowerCut, &Path),
    cut: fn(u64) -> Cut,
    acknowledged: impl Fn() -> T,
    check: impl Fn(u64, &Path, T),
) {
    let mut dice = Dice::new(1);
    for seed in 0..CUTS {
        std::thread::sleep(Duration::from_millis(dice.below(PAUSE_MILLIS_MAX)));
        let known = acknowledged();
        let copy = disk.after_cut(&folder.join(format!("copy-{seed}")), cut(seed)).unwrap();
        check(seed, copy.folder(), known);
    }
}

fn topics() -> [TopicConfig; 2] {
    [TopicConfig::new("single", 1), TopicConfig::new("batch", 2)]
}

fn open(folder: &Path) -> Arc<LocalLog> {
    LocalLog::open(LogConfig::new(folder.join("data/log"), topics())).unwrap()
}

fn text(number: u64) -> Vec<u8> {
    format!("{number}").into_bytes()
}

/// Numbers of the records and batches that the log acknowledged. Records are appended in order, and so are batches.
#[derive(Default, Clone, Copy, Debug)]
struct Acknowledged {
    single: u64,
    batch: u64,
}

/// Appends and commits until it is told to stop; every now and then the log is closed and opened again, which rewrites files.
async fn load(folder: &Path, stop: &AtomicBool, acknowledged: &Mutex<Acknowledged>) {
    let (mut single, mut batch) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let log = open(folder);
        let mut writer = log.writer("owner").await.unwrap();
        for _ in 0..40 {
            let record = Record::new("key", text(single + 1)).with_header("fill", vec![7; (single % 5_000) as usize]);
            log.append("single", vec![record]).await.unwrap();
            single += 1;
            acknowledged.lock().unwrap().single = single;
            let records = (0..2).map(|partition| {
                let to = Destination::Exact(TopicPartition::new("batch", partition));
                (to, Record::new("key", text(batch + 1)))
            });
            writer.commit(Batch { records: records.collect(), consumed: vec![] }).await.unwrap();
            batch += 1;
            acknowledged.lock().unwrap().batch = batch;
        }
        log.close();
    }
}

async fn numbers(log: &LocalLog, of: TopicPartition) -> Vec<u64> {
    let end = log.end_offset(&of).await.unwrap();
    let mut numbers = Vec::new();
    let mut reader = log.reader(vec![(of.clone(), 0)]).unwrap();
    while reader.position(&of).unwrap() < end {
        for stored in reader.read(ReadLimit::default()).await.unwrap() {
            let text = stored.record.value.unwrap();
            numbers.push(std::str::from_utf8(&text).unwrap().parse().unwrap());
        }
    }
    numbers
}

#[test]
fn the_log_keeps_what_it_acknowledged_and_nothing_in_part() {
    let outside = tempfile::tempdir().unwrap();
    let disk = PowerCut::mount(&outside.path().join("disk")).unwrap();
    let (stop, acknowledged) = (AtomicBool::new(false), Mutex::new(Acknowledged::default()));
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(load(disk.folder(), &stop, &acknowledged));
        });
        let stopping = Stop(&stop);
        let know = || *acknowledged.lock().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        cut_again_and_again((&disk, outside.path()), Cut::in_order, know, |seed, folder, known: Acknowledged| {
            runtime.block_on(async {
                let log = open(folder);
                let single = numbers(&log, TopicPartition::new("single", 0)).await;
                let expected: Vec<u64> = (1..=single.len() as u64).collect();
                assert!(single == expected && expected.len() as u64 >= known.single, "{seed}: {known:?} {single:?}");
                let mut batches = Vec::new();
                for partition in 0..2 {
                    batches.push(numbers(&log, TopicPartition::new("batch", partition)).await);
                }
                assert_eq!(batches[0], batches[1], "{seed}: a batch is there in part");
                assert!(batches[0].len() as u64 >= known.batch, "{seed}: {known:?} {}", batches[0].len());
                log.append("single", vec![Record::new("key", text(0))]).await.unwrap();
                log.close();
            });
        });
        drop(stopping);
        loading.join().unwrap();
    });
    let Acknowledged { single, batch } = *acknowledged.lock().unwrap();
    println!("local log: {CUTS} power cuts, {single} records and {batch} batches acknowledged");
    assert!(single > 100 && batch > 100);
}

async fn bucket(folder: &Path) -> (Server, Bucket) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (access_key, secret_key) = ("access".to_owned(), "secret".to_owned());
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let root = folder.join("data/s3");
    let server = Server::start(ServerConfig { root, listen, access_key, secret_key }).await.unwrap();
    let config = BucketConfig {
        endpoint: Some(server.endpoint().to_owned()),
        region: "embedded".to_owned(),
        bucket: "main".to_owned(),
        access_key: Some("access".to_owned()),
        secret_key: Some("secret".to_owned()),
        path_style: true,
        ..BucketConfig::default()
    };
    let bucket = Bucket::connect(&config).await.unwrap();
    bucket.ensure_exists().await.unwrap();
    (server, bucket)
}

/// What a key's object holds; each key is written once.
fn object(number: u64) -> (String, Vec<u8>) {
    let bytes = vec![number as u8; (number * 7_919 % 100_000) as usize];
    // A new folder for every third.
    (format!("packs-{}/{}", number / 3, number), bytes)
}

#[test]
fn the_embedded_s3_server_keeps_what_it_acknowledged_and_nothing_in_part() {
    let outside = tempfile::tempdir().unwrap();
    let disk = PowerCut::mount(&outside.path().join("disk")).unwrap();
    let stop = AtomicBool::new(false);
    // Whether the object is there; while a request is under way its number is not here.
    let acknowledged = Mutex::new(BTreeMap::<u64, bool>::new());
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let (server, bucket) = bucket(disk.folder()).await;
                let one = async || {
                    while !stop.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let (key, bytes) = object(number);
                        if number.is_multiple_of(2) {
                            assert!(bucket.put_if_absent(&key, bytes.into()).await.unwrap());
                        } else {
                            bucket.put(&key, bytes.into()).await.unwrap();
                        }
                        acknowledged.lock().unwrap().insert(number, true);
                        if number % 5 == 4 {
                            acknowledged.lock().unwrap().remove(&number);
                            bucket.delete(&key).await.unwrap();
                            acknowledged.lock().unwrap().insert(number, false);
                        }
                    }
                };
                tokio::join!(one(), one(), one(), one());
                server.shutdown().await;
            });
        });
        let stopping = Stop(&stop);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let know = || acknowledged.lock().unwrap().clone();
        cut_again_and_again((&disk, outside.path()), Cut::seeded, know, |seed, folder, known: BTreeMap<u64, bool>| {
            runtime.block_on(async {
                let (server, bucket) = bucket(folder).await;
                let last = next.load(Ordering::Relaxed);
                // All of the newest, and some of the others.
                for number in (0..last).filter(|number| number + 40 > last || number % 50 == seed) {
                    let (key, bytes) = object(number);
                    match (bucket.get(&key, 1 << 20).await, known.get(&number)) {
                        (Ok(found), Some(true) | None) => assert!(found == bytes, "{seed}: {key} has other bytes"),
                        (Err(BucketError::NotFound { .. }), Some(false) | None) => {}
                        (found, known) => panic!("{seed}: {key} known {known:?}: {:?}", found.map(|b| b.len())),
                    }
                }
                let (key, bytes) = object(last + 1_000_000);
                bucket.put(&key, bytes.into()).await.unwrap();
                server.shutdown().await;
            });
        });
        drop(stopping);
        loading.join().unwrap();
    });
    let acknowledged = acknowledged.lock().unwrap().len();
    println!("embedded S3 server: {CUTS} power cuts, {acknowledged} objects acknowledged");
    assert!(acknowledged > 100);
}

#[test]
fn the_ledger_never_goes_back_and_its_folder_is_there() {
    let outside = tempfile::tempdir().unwrap();
    let disk = PowerCut::mount(&outside.path().join("disk")).unwrap();
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let ledger = |folder: &Path| Ledger::open(folder.join("a/node/goals.json"), Vec::<u64>::new()).unwrap();
    // The n-th file lies in a folder of its own.
    let file = |folder: &Path, number: u64| folder.join(format!("services/{number}/deep/state.json"));
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let mut ledger = ledger(disk.folder());
            while !stop.load(Ordering::Relaxed) {
                let number = ledger.generation() + 1;
                ledger.store(vec![number; (number % 2_000) as usize]).unwrap();
                durable::write(&file(disk.folder(), number), &text(number), durable::PRIVATE_MODE).unwrap();
                acknowledged.store(number, Ordering::SeqCst);
                // A power cut does not wait for the ledger, and the disk is not to fill up.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let stopping = Stop(&stop);
        let know = || acknowledged.load(Ordering::SeqCst);
        cut_again_and_again((&disk, outside.path()), Cut::seeded, know, |seed, folder, known| {
            let mut ledger = ledger(folder);
            let generation = ledger.generation();
            assert!(generation >= known, "{seed}: {generation} after {known}");
            assert_eq!(*ledger.content(), vec![generation; (generation % 2_000) as usize], "{seed}");
            for number in known.saturating_sub(50).max(1)..=known {
                let found = durable::read(&file(folder, number)).unwrap();
                assert_eq!(found, Some(text(number)), "{seed}: file {number} of {known}");
            }
            ledger.store(vec![]).unwrap();
        });
        drop(stopping);
        loading.join().unwrap();
    });
    println!("ledger: {CUTS} power cuts, {} generations acknowledged", acknowledged.load(Ordering::SeqCst));
}
