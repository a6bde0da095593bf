//! What only the local log promises: its folder, retention, compaction at once, closing.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::{sync::Arc, time::Duration};

use longshore_log::{
    Batch, CommitError, Error, Log, ReadLimit, Record, StoredRecord, TopicConfig, TopicPartition,
    local::{Config, LocalLog, Maintained, TOMBSTONE_KEPT},
};
use longshore_schemas::Timestamp;

const HOUR: Duration = Duration::from_secs(3_600);

fn topics() -> Vec<TopicConfig> {
    vec![
        TopicConfig::new("kept", 2),
        TopicConfig { retention: Some(HOUR), ..TopicConfig::new("hourly", 1) },
        TopicConfig { compacted: true, ..TopicConfig::new("newest", 1) },
    ]
}

fn open(folder: &tempfile::TempDir) -> Arc<LocalLog> {
    LocalLog::open(Config::new(folder.path(), topics())).unwrap()
}

fn of(topic: &str) -> TopicPartition {
    TopicPartition::new(topic, 0)
}

async fn append(log: &LocalLog, topic: &str, records: Vec<Record>) -> Vec<u64> {
    log.append(topic, records).await.unwrap().into_iter().map(|position| position.offset).collect()
}

async fn read(log: &LocalLog, of: &TopicPartition, from: u64) -> Vec<StoredRecord> {
    let end = log.end_offset(of).await.unwrap();
    let mut reader = log.reader(vec![(of.clone(), from)]).unwrap();
    let mut records = Vec::new();
    while reader.position(of).unwrap() < end {
        records.extend(reader.read(ReadLimit::default()).await.unwrap());
    }
    records
}

#[tokio::test]
async fn a_folder_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    let error = LocalLog::open(Config::new(folder.path(), topics())).err().unwrap();
    assert!(matches!(&error, Error::InUse { path } if path == folder.path()), "{error}");
    assert!(error.to_string().contains("already in use by another longshore process"), "{error}");
    drop(log);
    open(&folder);
}

#[tokio::test]
async fn a_topic_cannot_change_its_shape() {
    let folder = tempfile::tempdir().unwrap();
    open(&folder);
    let mut changed = topics();
    changed[0].partitions = 3;
    let error = LocalLog::open(Config::new(folder.path(), changed)).err().unwrap().to_string();
    assert!(error.contains("\"kept\" was created with 2 partitions and no compaction"), "{error}");
    let mut changed = topics();
    changed[2].compacted = false;
    assert!(matches!(LocalLog::open(Config::new(folder.path(), changed)), Err(Error::TopicChanged { .. })));
    let more = [topics(), vec![TopicConfig::new("added", 5)]].concat();
    let log = LocalLog::open(Config::new(folder.path(), more)).unwrap();
    assert_eq!(log.partitions("added").unwrap(), 5);
}

#[test]
fn wrong_topics_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let both = TopicConfig { compacted: true, retention: Some(HOUR), ..TopicConfig::new("a", 1) };
    let table = [
        vec![TopicConfig::new("", 1)],
        vec![TopicConfig::new("a", 0)],
        vec![both],
        vec![TopicConfig::new("a", 1), TopicConfig::new("a", 1)],
    ];
    for topics in table {
        let opened = LocalLog::open(Config::new(folder.path(), topics.clone()));
        assert!(matches!(opened, Err(Error::InvalidTopic { .. })), "{topics:?}");
    }
}

#[tokio::test]
async fn retention_removes_what_is_old_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    append(&log, "hourly", (0..10).map(|i| Record::new("key", format!("{i}"))).collect()).await;
    append(&log, "kept", vec![Record::new("key", "value")]).await;
    let newest = read(&log, &of("hourly"), 0).await.last().unwrap().at;
    let too_early = log.maintain(newest).await.unwrap();
    assert_eq!(too_early, Maintained::default());
    let reader_of_all = read(&log, &of("hourly"), 0).await;
    assert_eq!(reader_of_all.len(), 10);

    let done = log.maintain(newest + HOUR + Duration::from_millis(1)).await.unwrap();
    assert_eq!(done, Maintained { expired: 10, tombstones: 0 });
    log.close();
    let log = open(&folder);
    assert_eq!(log.start_offset(&of("hourly")).await.unwrap(), 10);
    assert_eq!(log.end_offset(&of("hourly")).await.unwrap(), 10, "offsets are never given twice");
    assert_eq!(append(&log, "hourly", vec![Record::new("key", "next")]).await, [10]);
    let records = read(&log, &of("hourly"), 3).await;
    assert_eq!(records.len(), 1, "reading from below the start reads from the start on");
    assert!(records[0].at >= newest);
    assert_eq!(log.offset_at(&of("hourly"), Timestamp::from_millis(0)).await.unwrap(), 10);
}

#[tokio::test]
async fn a_reader_overtaken_by_retention_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    append(&log, "hourly", vec![Record::new("key", "old")]).await;
    let mut reader = log.reader(vec![(of("hourly"), 0)]).unwrap();
    let at = read(&log, &of("hourly"), 0).await[0].at;
    log.maintain(at + HOUR + HOUR).await.unwrap();
    assert_eq!(reader.read(ReadLimit::default()).await.unwrap(), []);
    assert_eq!(reader.position(&of("hourly")), Some(1));
}

#[tokio::test]
async fn a_compacted_topic_has_one_record_for_each_key() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    for round in 0..5 {
        let twice = |key: &str| {
            [Record::new(key.to_owned(), format!("{round}")), Record::new(key.to_owned(), format!("{round}!"))]
        };
        append(&log, "newest", [twice("a"), twice("b")].concat()).await;
    }
    append(&log, "newest", vec![Record::tombstone("a")]).await;
    let found: Vec<(u64, Record)> =
        read(&log, &of("newest"), 0).await.into_iter().map(|stored| (stored.offset, stored.record)).collect();
    assert_eq!(found, [(19, Record::new("b", "4!")), (20, Record::tombstone("a"))]);

    let at = read(&log, &of("newest"), 0).await.last().unwrap().at;
    append(&log, "newest", vec![Record::tombstone("b")]).await;
    append(&log, "newest", vec![Record::new("b", "back")]).await;
    let done = log.maintain(at + TOMBSTONE_KEPT + Duration::from_secs(3_600)).await.unwrap();
    assert_eq!(done.tombstones, 1);
    log.close();
    let log = open(&folder);
    let found: Vec<u64> = read(&log, &of("newest"), 0).await.iter().map(|stored| stored.offset).collect();
    assert_eq!(found, [22]);
    append(&log, "newest", vec![Record::tombstone("b")]).await;
    log.maintain(at + TOMBSTONE_KEPT + Duration::from_secs(3_600)).await.unwrap();
    log.close();
    let log = open(&folder);
    assert!(read(&log, &of("newest"), 0).await.is_empty());
    assert_eq!(log.end_offset(&of("newest")).await.unwrap(), 24);
}

#[tokio::test]
async fn consumed_offsets_are_part_of_the_commit() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    let mut old = log.writer("owner").await.unwrap();
    assert_eq!(log.consumed("owner", &of("kept")).await.unwrap(), None);
    old.commit(Batch { records: vec![], consumed: vec![(of("kept"), 5)] }).await.unwrap();
    let _new = log.writer("owner").await.unwrap();
    let zombie = old.commit(Batch { records: vec![], consumed: vec![(of("kept"), 9)] }).await;
    assert!(matches!(zombie, Err(CommitError::Fenced)));
    log.close();
    let log = open(&folder);
    assert_eq!(log.consumed("owner", &of("kept")).await.unwrap(), Some(5));
    assert_eq!(log.consumed("other", &of("kept")).await.unwrap(), None);
}

#[tokio::test]
async fn closing_wakes_and_refuses_everyone() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    let mut writer = log.writer("owner").await.unwrap();
    let mut member = log.join("group", "kept").await.unwrap();
    member.next().await.unwrap();
    let mut reader = log.reader(vec![(of("kept"), 0)]).unwrap();
    let reading = tokio::spawn(async move { reader.read(ReadLimit::default()).await });
    let waiting = tokio::spawn(async move { member.next().await });
    tokio::task::yield_now().await;
    log.close();
    let bound = Duration::from_secs(30);
    assert!(matches!(tokio::time::timeout(bound, reading).await.unwrap().unwrap(), Err(Error::Closed)));
    assert!(matches!(tokio::time::timeout(bound, waiting).await.unwrap().unwrap(), Err(Error::Closed)));
    assert!(matches!(writer.commit(Batch::default()).await, Err(CommitError::Failed(Error::Closed))));
    assert!(matches!(log.append("kept", vec![Record::new("key", "value")]).await, Err(Error::Closed)));
    assert!(matches!(log.end_offset(&of("kept")).await, Err(Error::Closed)));
    assert!(matches!(log.offset_at(&of("kept"), Timestamp::from_millis(0)).await, Err(Error::Closed)));
    assert!(matches!(log.maintain(Timestamp::from_millis(0)).await, Err(Error::Closed)));
    log.close();
    open(&folder);
}
