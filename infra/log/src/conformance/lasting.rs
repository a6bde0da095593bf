//! What a record keeps, what a log keeps over a restart, and what compaction keeps.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{COMPACTED, SINGLE, Subject, WIDE, all_in, all_of, commit, partition, record, soon};
use crate::{Batch, Destination, Record};

/// Keys, values, tombstones and headers come back byte for byte.
pub async fn everything_of_a_record_comes_back(subject: &dyn Subject) {
    let log = subject.create().await;
    let every_byte = Bytes::from_iter(0..=255u8);
    let records = vec![
        record("key", "value"),
        Record::new("empty value", ""),
        Record::tombstone("tombstone"),
        Record::new("", "empty key"),
        Record::new(every_byte.clone(), every_byte.clone()),
        Record::tombstone("").with_header("only", "a header"),
        record("headers", "in order")
            .with_header("b", "1")
            .with_header("a", every_byte)
            .with_header("b", "")
            .with_header("ü", "2"),
    ];
    soon(log.append(SINGLE, records.clone())).await.unwrap();
    let stored: Vec<Record> =
        all_of(&*log, &partition(SINGLE, 0)).await.into_iter().map(|stored| stored.record).collect();
    assert_eq!(stored, records);
}

/// A new process finds every record where it was, and goes on after it.
pub async fn reopening_keeps_everything(subject: &dyn Subject) {
    let mut log = subject.create().await;
    for round in 0..3 {
        soon(log.append(WIDE, (0..50).map(|i| record(i, format!("{round} {i}"))).collect())).await.unwrap();
        let mut writer = soon(log.writer("owner")).await.unwrap();
        let records = (0..5).map(|i| (Destination::Exact(partition(SINGLE, 0)), record("key", i))).collect();
        commit(&*log, &mut *writer, Batch { records, consumed: vec![(partition(WIDE, 0), round)] }).await;
        drop(writer);
        let before = (all_in(&*log, WIDE).await, all_in(&*log, SINGLE).await);
        let end = soon(log.end_offset(&partition(SINGLE, 0))).await.unwrap();
        log = subject.reopen(log).await;
        assert_eq!((all_in(&*log, WIDE).await, all_in(&*log, SINGLE).await), before);
        assert_eq!(soon(log.end_offset(&partition(SINGLE, 0))).await.unwrap(), end);
        let next = soon(log.append(SINGLE, vec![record("key", "next")])).await.unwrap();
        assert!(next[0].offset >= end);
        let last = all_of(&*log, &partition(SINGLE, 0)).await.pop().unwrap();
        assert!(last.at >= before.1.last().unwrap().at, "times do not fall over a restart");
    }
}

/// A writer that outlives its log's process cannot write into the new one's log.
pub async fn a_writer_of_before_is_gone_after_reopening(subject: &dyn Subject) {
    let log = subject.create().await;
    let mut old = soon(log.writer("owner")).await.unwrap();
    let log = subject.reopen(log).await;
    let _new = soon(log.writer("owner")).await.unwrap();
    let records = vec![(Destination::Exact(partition(SINGLE, 0)), record("key", "zombie"))];
    assert!(soon(old.commit(Batch { records, consumed: vec![] })).await.is_err());
    assert!(all_of(&*log, &partition(SINGLE, 0)).await.is_empty());
}

/// Whatever compaction has removed, the newest record of each key is there, at its offset and in order.
pub async fn compaction_keeps_the_newest(subject: &dyn Subject) {
    let log = subject.create().await;
    let of = partition(COMPACTED, 0);
    let mut newest = BTreeMap::new();
    for round in 0..30 {
        let key = |i: i32| format!("key {}", (round * i) % 11);
        let records: Vec<Record> =
            (0..5)
                .map(|i| {
                    if (round + i) % 9 == 0 {
                        Record::tombstone(key(i))
                    } else {
                        record(key(i), format!("{round} {i}"))
                    }
                })
                .collect();
        let positions = soon(log.append(COMPACTED, records.clone())).await.unwrap();
        for (position, record) in positions.into_iter().zip(records) {
            newest.insert(record.key.clone(), (position.offset, record));
        }
    }
    let log = subject.reopen(log).await;
    let stored = all_of(&*log, &of).await;
    assert!(stored.windows(2).all(|two| two[0].offset < two[1].offset));
    let mut found = BTreeMap::new();
    for stored in stored {
        found.insert(stored.record.key.clone(), (stored.offset, stored.record));
    }
    assert_eq!(found, newest);
}
