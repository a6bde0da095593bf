//! Readers: waiting, dropping, limits, and finding an offset by its time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use longshore_schemas::Timestamp;

use super::{
    COMPACTED, PATIENCE, SINGLE, Subject, WIDE, all_of, briefly, commit, partition, record, soon, text, texts,
};
use crate::{Batch, Destination, Error, ReadLimit, Record, Size};

/// A read at the end waits, and the next record wakes it, every time.
pub async fn a_read_waits_for_records(subject: &dyn Subject) {
    let log = subject.create().await;
    let of = partition(SINGLE, 0);
    let mut reader = log.reader(vec![(of.clone(), 0)]).unwrap();
    assert!(briefly(reader.read(ReadLimit::default())).await.is_none(), "an empty partition has nothing to read");
    for round in 0..100 {
        let writing = tokio::spawn({
            let log = log.clone();
            async move { log.append(SINGLE, vec![record("key", round)]).await }
        });
        let mut seen = Vec::new();
        while seen.is_empty() {
            seen = soon(reader.read(ReadLimit::default())).await.unwrap();
        }
        assert_eq!(texts(&seen), [round.to_string()]);
        assert_eq!(reader.position(&of).map(|position| position > seen[0].offset), Some(true));
        soon(writing).await.unwrap().unwrap();
    }
    assert_eq!(reader.position(&partition(WIDE, 0)), None);
}

/// A reader of several partitions wakes for each of them.
pub async fn a_read_waits_on_many_partitions(subject: &dyn Subject) {
    let log = subject.create().await;
    let sources = (0..4).map(|number| (partition(WIDE, number), 0)).collect();
    let mut reader = log.reader(sources).unwrap();
    for round in 0..40 {
        let positions = soon(log.append(WIDE, vec![record(round, round)])).await.unwrap();
        let mut seen = Vec::new();
        while seen.is_empty() {
            seen = soon(reader.read(ReadLimit::default())).await.unwrap();
        }
        assert_eq!(texts(&seen), [round.to_string()]);
        assert_eq!((&seen[0].source, seen[0].offset), (&positions[0].source, positions[0].offset));
    }
}

/// Reads that are dropped at any moment neither lose nor repeat a record.
pub async fn a_dropped_read_loses_nothing(subject: &dyn Subject) {
    const COUNT: usize = 300;
    let log = subject.create().await;
    let mut reader = log.reader(vec![(partition(SINGLE, 0), 0)]).unwrap();
    let writing = tokio::spawn({
        let log = log.clone();
        async move {
            for i in 0..COUNT {
                log.append(SINGLE, vec![record("key", i)]).await.unwrap();
            }
        }
    });
    let mut seen: Vec<String> = Vec::new();
    let mut patience_micros = 0;
    let begun = Instant::now();
    while seen.len() < COUNT {
        assert!(begun.elapsed() < 2 * PATIENCE, "only {} records came", seen.len());
        patience_micros = (patience_micros + 37) % 3_000;
        let limit = ReadLimit { records: 3, ..ReadLimit::default() };
        let read = tokio::time::timeout(Duration::from_micros(patience_micros), reader.read(limit)).await;
        if let Ok(records) = read {
            seen.extend(texts(&records.unwrap()));
        }
    }
    assert_eq!(seen, (0..COUNT).map(|i| i.to_string()).collect::<Vec<_>>());
    soon(writing).await.unwrap();
}

/// A read returns no more records and bytes than asked, except one record that is larger.
pub async fn reads_keep_to_their_limit(subject: &dyn Subject) {
    let log = subject.create().await;
    let of = partition(SINGLE, 0);
    let mut records: Vec<Record> = (0..20).map(|i| record("key", i)).collect();
    records.insert(10, Record::new("key", Bytes::from(vec![b'x'; 100_000])));
    soon(log.append(SINGLE, records)).await.unwrap();
    let end = soon(log.end_offset(&of)).await.unwrap();
    for limit in [
        ReadLimit { records: 3, bytes: 1_000_000 },
        ReadLimit { records: 1_000, bytes: 2_000 },
        ReadLimit { records: 1, bytes: 1 },
        ReadLimit { records: 0, bytes: 0 },
    ] {
        let mut reader = log.reader(vec![(of.clone(), 0)]).unwrap();
        let mut count = 0;
        while reader.position(&of).unwrap() < end {
            let records = soon(reader.read(limit)).await.unwrap();
            let bytes: usize = records.iter().map(|record| record.record.bytes()).sum();
            assert!(records.len() <= limit.records.max(1), "{} records for {limit:?}", records.len());
            assert!(bytes <= limit.bytes || records.len() == 1, "{bytes} bytes for {limit:?}");
            count += records.len();
        }
        assert_eq!(count, 21, "{limit:?}");
    }
}

/// Whoever asks for what the log never had learns so.
pub async fn a_read_beyond_the_end_is_an_error(subject: &dyn Subject) {
    let log = subject.create().await;
    let of = partition(SINGLE, 0);
    soon(log.append(SINGLE, vec![record("key", "value")])).await.unwrap();
    let end = soon(log.end_offset(&of)).await.unwrap();
    let mut reader = log.reader(vec![(of.clone(), end + 1)]).unwrap();
    let error = soon(reader.read(ReadLimit::default())).await.err();
    assert!(matches!(error, Some(Error::BeyondEnd { offset, end: found, .. }) if offset == end + 1 && found == end));
    let mut reader = log.reader(vec![(of, end)]).unwrap();
    assert!(briefly(reader.read(ReadLimit::default())).await.is_none());
}

/// A partition with much to read does not keep the others waiting.
pub async fn no_partition_starves(subject: &dyn Subject) {
    let log = subject.create().await;
    // Much, so that it takes longer to read than the first fetch of the other one.
    for _ in 0..10 {
        soon(log.append(SINGLE, (0..500).map(|i| record("key", i)).collect())).await.unwrap();
    }
    let position = soon(log.append(WIDE, vec![record("key", "small")])).await.unwrap().remove(0);
    let mut reader = log.reader(vec![(partition(SINGLE, 0), 0), (position.source.clone(), 0)]).unwrap();
    let limit = ReadLimit { records: 10, ..ReadLimit::default() };
    let mut reads = 0;
    loop {
        reads += 1;
        let records = soon(reader.read(limit)).await.unwrap();
        if records.iter().any(|record| record.source == position.source) {
            break;
        }
        assert!(reads < 250, "half of the large partition was read before the small one");
    }
}

/// `offset_at` finds the first record of a time or later.
pub async fn times_lead_to_offsets(subject: &dyn Subject) {
    let log = subject.create().await;
    let of = partition(SINGLE, 0);
    assert_eq!(soon(log.offset_at(&of, Timestamp::from_millis(0))).await.unwrap(), 0);
    for round in 0..20 {
        let records = (0..5).map(|i| record("key", format!("{round} {i}"))).collect();
        soon(log.append(SINGLE, records)).await.unwrap();
    }
    let records = all_of(&*log, &of).await;
    let end = soon(log.end_offset(&of)).await.unwrap();
    let times =
        records.iter().flat_map(|record| [-1, 0, 1].map(|delta| Timestamp::from_millis(record.at.millis() + delta)));
    for at in times.collect::<std::collections::BTreeSet<_>>() {
        let expected = records.iter().find(|record| record.at >= at);
        let found = soon(log.offset_at(&of, at)).await.unwrap();
        match expected {
            Some(expected) => assert_eq!(found, expected.offset, "at {at}, which is {}", text(expected)),
            None => assert_eq!(found, end, "nothing is as late as {at}"),
        }
    }
    assert_eq!(soon(log.offset_at(&of, Timestamp::from_millis(i64::MAX))).await.unwrap(), end);
    assert_eq!(soon(log.offset_at(&of, Timestamp::from_millis(i64::MIN))).await.unwrap(), 0);
}

/// What is small is counted, what is large estimated, ends of transactions and large records among them.
pub async fn sizes_are_told(subject: &dyn Subject) {
    let log = subject.create().await;
    let size = async |topic: &str| {
        let of = partition(topic, 0);
        let (start, end) = (log.start_offset(&of).await.unwrap(), log.end_offset(&of).await.unwrap());
        soon(crate::size(&*log, &of, start..end)).await.unwrap()
    };
    assert_eq!(size(SINGLE).await, Size { bytes: 0, exact: true });
    let small = Record::new("key", "value").with_header("name", "content");
    let mut bytes = small.bytes() as u64;
    log.append(SINGLE, vec![small.clone()]).await.unwrap();
    assert_eq!(size(SINGLE).await, Size { bytes, exact: true });

    let mut writer = soon(log.writer("sizes")).await.unwrap();
    for _ in 0..3 {
        let records = vec![(Destination::Keyed(SINGLE.into()), small.clone()); 2];
        commit(&*log, &mut *writer, Batch { records, ..Batch::default() }).await;
        bytes += 2 * small.bytes() as u64;
    }
    assert_eq!(size(SINGLE).await, Size { bytes, exact: true });

    let records: Vec<Record> = (0..3_000).map(|number| record(number, "x".repeat(100 + number % 7))).collect();
    bytes = records.iter().map(|record| record.bytes() as u64).sum();
    log.append(COMPACTED, records).await.unwrap();
    let found = size(COMPACTED).await;
    assert!(!found.exact && found.bytes.abs_diff(bytes) < bytes / 10, "{found:?} of {bytes}");

    // Three of these are read, and what is before them weighs nothing.
    let large = Record::new("key", vec![7; 700_000]);
    log.append(SINGLE, vec![large.clone(); 20]).await.unwrap();
    let (found, all) = (size(SINGLE).await, 20 * large.bytes() as u64);
    assert!(!found.exact && found.bytes > all / 3 && found.bytes < 2 * all, "{found:?} of {all}");
}
