//! Writes that really fail: the kernel refuses to let files grow, as on a full disk, and later allows it again.
//!
//! The limit is one of the whole process, so this test has a process of its own: one test in this file.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use longshore_log::{
    Batch, CommitError, Destination, Error, Log, ReadLimit, Record, TopicConfig, TopicPartition,
    local::{Config, LocalLog},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Linux sends it to a process that writes beyond the limit, and ends it if nobody listens.
const SIGXFSZ: i32 = 25;
/// What a file may have at most, in turn. The write-ahead log reaches the first after a few appends, and then the store can
/// still be opened again; with the second it cannot, until there is room.
const FILE_BYTES_MAX: [u64; 4] = [256 * 1024, 1024, 256 * 1024, 1024];

fn limit_files_to(bytes: Option<u64>) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
}

fn record(text: String) -> Record {
    Record::new(text, vec![b'x'; 10_000])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_goes_on_when_writes_succeed_again() {
    let _heard = signal(SignalKind::from_raw(SIGXFSZ)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let topics = || [TopicConfig::new("topic", 1)];
    let of = TopicPartition::new("topic", 0);
    let log = LocalLog::open(Config::new(folder.path(), topics())).unwrap();
    let mut writer = log.writer("owner").await.unwrap();
    let (mut acknowledged, mut unsure, mut number) = (Vec::new(), Vec::new(), 0);

    for file_bytes_max in FILE_BYTES_MAX {
        limit_files_to(Some(file_bytes_max));
        let (mut appends, mut failures) = (0, 0);
        while failures < 5 {
            assert!(appends < 1_000, "no write failed");
            appends += 1;
            number += 1;
            let key = format!("{number}");
            match log.append("topic", vec![record(key.clone())]).await {
                Ok(_) => acknowledged.push(key),
                Err(Error::Unconfirmed { .. }) => {
                    unsure.push(key);
                    failures += 1;
                }
                Err(error) => {
                    assert!(matches!(error, Error::Storage { .. }), "{error}");
                    failures += 1;
                }
            }
        }
        limit_files_to(None);
        let again = async {
            loop {
                number += 1;
                let key = format!("{number}");
                let records = vec![(Destination::Exact(of.clone()), record(key.clone()))];
                match writer.commit(Batch { records, consumed: vec![] }).await {
                    Ok(_) => return acknowledged.push(key),
                    Err(CommitError::Failed(Error::Storage { .. })) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), again).await.expect("the log did not go on");
    }
    assert!(!unsure.is_empty(), "the store was never beyond opening again");
    assert_holds(&log, &of, &acknowledged, &unsure).await;
    log.close();
    let log = LocalLog::open(Config::new(folder.path(), topics())).unwrap();
    assert_holds(&log, &of, &acknowledged, &unsure).await;
}

/// Every acknowledged record is there once and in order, beside at most those that nobody was sure of.
async fn assert_holds(log: &LocalLog, of: &TopicPartition, acknowledged: &[String], unsure: &[String]) {
    let end = log.end_offset(of).await.unwrap();
    let mut reader = log.reader(vec![(of.clone(), 0)]).unwrap();
    let mut found = Vec::new();
    while reader.position(of).unwrap() < end {
        for stored in reader.read(ReadLimit::default()).await.unwrap() {
            assert_eq!(stored.offset, found.len() as u64);
            found.push(String::from_utf8(stored.record.key.to_vec()).unwrap());
        }
    }
    found.retain(|key| !unsure.contains(key));
    assert_eq!(found, acknowledged);
}
