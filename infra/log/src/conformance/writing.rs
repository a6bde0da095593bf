//! Appends, commits, fencing and limits.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{SINGLE, Subject, WIDE, all_in, all_of, commit, partition, record, soon, text, texts};
use crate::{
    BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Batch, CommitError, Destination, Error, Log, RECORD_BYTES_MAX, Record,
};

/// Records of one key stay in the order of their appends, offsets rise, and times never fall.
pub async fn order_is_kept(subject: &dyn Subject) {
    let log = subject.create().await;
    for round in 0..20 {
        let records = (0..50).map(|i| record(i % 7, format!("{:05}", round * 50 + i))).collect();
        soon(log.append(WIDE, records)).await.unwrap();
    }
    let mut count = 0;
    for number in 0..4 {
        let records = all_of(&*log, &partition(WIDE, number)).await;
        assert!(records.windows(2).all(|two| two[0].offset < two[1].offset), "offsets rise");
        assert!(records.windows(2).all(|two| two[0].at <= two[1].at), "times never fall");
        assert!(texts(&records).windows(2).all(|two| two[0] < two[1]), "records stay in order");
        count += records.len();
    }
    assert_eq!(count, 1_000);
}

/// The positions that append gives are where the records are found.
pub async fn offsets_are_what_append_says(subject: &dyn Subject) {
    let log = subject.create().await;
    let records: Vec<Record> = (0..100).map(|i| record(i, i)).collect();
    let positions = soon(log.append(WIDE, records.clone())).await.unwrap();
    assert_eq!(positions.len(), records.len());
    let stored = all_in(&*log, WIDE).await;
    for (position, record) in positions.iter().zip(&records) {
        let found = stored.iter().find(|stored| stored.source == position.source && stored.offset == position.offset);
        assert_eq!(&found.unwrap().record, record);
        assert!(position.offset < log.end_offset(&position.source).await.unwrap());
    }
    assert_eq!(soon(log.append(WIDE, Vec::new())).await.unwrap(), Vec::new());
}

/// The partition of a key is what Kafka's Java client chooses: murmur2 of these keys, as its own tests have them.
pub async fn keys_choose_partitions_as_in_kafka(subject: &dyn Subject) {
    let log = subject.create().await;
    let table: [(&str, i32); 6] = [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ];
    let mut writer = soon(log.writer("partitioner")).await.unwrap();
    for (key, hash) in table {
        let expected = (hash & 0x7fff_ffff) as u32 % 4;
        let appended = soon(log.append(WIDE, vec![record(key, "appended")])).await.unwrap();
        assert_eq!(appended[0].source, partition(WIDE, expected), "append of {key}");
        let batch =
            Batch { records: vec![(Destination::Keyed(WIDE.into()), record(key, "committed"))], consumed: vec![] };
        let committed = soon(writer.commit(batch)).await.unwrap();
        assert_eq!(committed[0].source, partition(WIDE, expected), "commit of {key}");
    }
}

/// What does not exist is an error that names it.
pub async fn unknown_names_are_errors(subject: &dyn Subject) {
    let log = subject.create().await;
    let nowhere = partition("conformance-nowhere", 0);
    let outside = partition(WIDE, 4);
    assert!(
        matches!(log.partitions("conformance-nowhere"), Err(Error::UnknownTopic { topic }) if topic == "conformance-nowhere")
    );
    assert_eq!(log.partitions(WIDE).unwrap(), 4);
    let append = soon(log.append("conformance-nowhere", vec![record(1, 1)])).await;
    assert!(matches!(append, Err(Error::UnknownTopic { .. })));
    assert!(matches!(soon(log.end_offset(&nowhere)).await, Err(Error::UnknownTopic { .. })));
    assert!(
        matches!(soon(log.end_offset(&outside)).await, Err(Error::UnknownPartition { of, partitions: 4 }) if of == outside)
    );
    assert!(matches!(log.reader(vec![(outside.clone(), 0)]).err(), Some(Error::UnknownPartition { .. })));
    let twice = vec![(partition(WIDE, 1), 0), (partition(WIDE, 1), 5)];
    assert!(matches!(log.reader(twice).err(), Some(Error::RepeatedPartition { .. })));
    assert!(soon(log.join("group", "conformance-nowhere")).await.is_err());
    let mut writer = soon(log.writer("owner")).await.unwrap();
    let batch = Batch { records: vec![(Destination::Exact(outside), record(1, 1))], consumed: vec![] };
    let refused = soon(writer.commit(batch)).await;
    assert!(matches!(refused, Err(CommitError::Failed(Error::UnknownPartition { .. }))));
}

/// The largest record and batch are taken, one byte more is refused, and refusing leaves nothing.
pub async fn limits_hold(subject: &dyn Subject) {
    let log = subject.create().await;
    let sized = |bytes: usize| Record::new("key", Bytes::from(vec![b'x'; bytes - 3]));
    soon(log.append(SINGLE, vec![sized(RECORD_BYTES_MAX)])).await.unwrap();
    let refused = soon(log.append(SINGLE, vec![sized(10), sized(RECORD_BYTES_MAX + 1)])).await;
    assert!(matches!(refused, Err(Error::RecordTooLarge { bytes, .. }) if bytes == RECORD_BYTES_MAX + 1));
    let largest = vec![sized(RECORD_BYTES_MAX); BATCH_BYTES_MAX / RECORD_BYTES_MAX];
    soon(log.append(SINGLE, largest.clone())).await.unwrap();
    let refused = soon(log.append(SINGLE, [largest.clone(), vec![sized(10)]].concat())).await;
    assert!(matches!(refused, Err(Error::BatchTooLarge { .. })));
    let refused = soon(log.append(SINGLE, vec![record("", ""); BATCH_RECORDS_MAX + 1])).await;
    assert!(matches!(refused, Err(Error::BatchTooLarge { .. })));
    let headers = vec![("name".to_owned(), Bytes::new()); 100_000];
    let refused = soon(log.append(SINGLE, vec![Record { headers, ..record(1, 1) }])).await;
    assert!(matches!(refused, Err(Error::RecordTooLarge { .. })));
    assert_eq!(all_of(&*log, &partition(SINGLE, 0)).await.len(), 1 + largest.len());
}

/// Appends and commits from many tasks: everything acknowledged is there, once.
pub async fn many_writers_at_once_lose_nothing(subject: &dyn Subject) {
    let log = subject.create().await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..16 {
        let log = log.clone();
        tasks.spawn(async move {
            let mut writer = log.writer(&format!("owner-{task}")).await.unwrap();
            for i in 0..20 {
                log.append(WIDE, vec![record(i, format!("append {task} {i}"))]).await.unwrap();
                let committed = (Destination::Keyed(WIDE.into()), record(i, format!("commit {task} {i}")));
                commit(&*log, &mut *writer, Batch { records: vec![committed], consumed: vec![] }).await;
            }
        });
    }
    soon(tasks.join_all()).await;
    let mut found = texts(&all_in(&*log, WIDE).await);
    found.sort();
    let kinds = ["append", "commit"].into_iter();
    let mut expected: Vec<String> = kinds
        .flat_map(|kind| (0..16).flat_map(move |task| (0..20).map(move |i| format!("{kind} {task} {i}"))))
        .collect();
    expected.sort();
    assert_eq!(found, expected);
}

/// A batch of three partitions in two topics, with this text.
fn spread(text: &str) -> Batch {
    let at = |topic, number| (Destination::Exact(partition(topic, number)), record("key", text));
    Batch { records: vec![at(WIDE, 0), at(WIDE, 3), at(SINGLE, 0)], consumed: vec![(partition(WIDE, 1), 7)] }
}

/// How many times each text is there, over all topics.
async fn counts(log: &dyn Log) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for topic in [WIDE, SINGLE] {
        for record in all_in(log, topic).await {
            *counts.entry(text(&record)).or_insert(0) += 1;
        }
    }
    counts
}

fn whole(texts: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    texts.into_iter().map(|text| (text, 3)).collect()
}

/// A commit over several partitions is there as a whole when it returns, with the positions it says.
pub async fn a_commit_is_all_or_nothing(subject: &dyn Subject) {
    let log = subject.create().await;
    let mut writer = soon(log.writer("owner")).await.unwrap();
    for round in 0..10 {
        let positions = commit(&*log, &mut *writer, spread(&round.to_string())).await;
        let sources: Vec<_> = positions.iter().map(|position| position.source.clone()).collect();
        assert_eq!(sources, [partition(WIDE, 0), partition(WIDE, 3), partition(SINGLE, 0)]);
        for position in positions {
            let records = all_of(&*log, &position.source).await;
            let found = records.iter().find(|record| record.offset == position.offset);
            assert_eq!(text(found.unwrap()), round.to_string());
        }
    }
    assert_eq!(soon(writer.commit(Batch::default())).await.unwrap(), Vec::new());
}

/// One bad record refuses the whole batch, and the writer goes on.
pub async fn a_refused_batch_leaves_nothing(subject: &dyn Subject) {
    let log = subject.create().await;
    let mut writer = soon(log.writer("owner")).await.unwrap();
    let mut batch = spread("refused");
    let large = Record::new("key", Bytes::from(vec![0; RECORD_BYTES_MAX + 1]));
    batch.records.push((Destination::Keyed(SINGLE.into()), large));
    let refused = soon(writer.commit(batch)).await;
    assert!(matches!(refused, Err(CommitError::Failed(Error::RecordTooLarge { .. }))));
    assert_eq!(counts(&*log).await, BTreeMap::new());
    commit(&*log, &mut *writer, spread("taken")).await;
    assert_eq!(counts(&*log).await, whole(["taken".to_owned()]));
}

/// After dropping a commit midway and taking a new writer, the batch is there as a whole or not at all, and stays so.
pub async fn a_dropped_commit_is_all_or_nothing(subject: &dyn Subject) {
    let log = subject.create().await;
    for round in 0..30 {
        let mut writer = soon(log.writer("owner")).await.unwrap();
        let mut commit = writer.commit(spread(&round.to_string()));
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(commit.as_mut().poll(context).is_ready()));
        let done = polled.await;
        drop(commit);
        if !done {
            let after = soon(writer.commit(spread("of no use"))).await;
            assert!(after.is_err(), "a writer with an abandoned commit is of no further use");
        }
        let mut next = soon(log.writer("owner")).await.unwrap();
        let seen = counts(&*log).await;
        assert!(seen.values().all(|count| *count == 3), "{seen:?}");
        soon(next.commit(Batch::default())).await.unwrap();
        assert_eq!(counts(&*log).await, seen, "nothing appears after the take-over");
    }
}

/// The commit of a writer whose owner has a later one fails, and nothing of it is visible.
pub async fn a_zombie_is_fenced(subject: &dyn Subject) {
    let log = subject.create().await;
    let mut zombie = soon(log.writer("owner")).await.unwrap();
    soon(zombie.commit(spread("first"))).await.unwrap();
    let mut successor = soon(log.writer("owner")).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(soon(zombie.commit(spread("zombie"))).await, Err(CommitError::Fenced)));
    }
    commit(&*log, &mut *successor, spread("second")).await;
    assert_eq!(counts(&*log).await, whole(["first".to_owned(), "second".to_owned()]));
}

/// Take-overs race with commits: after a take-over returned, nothing more of the predecessor appears, and what it was
/// told is committed is there.
pub async fn fencing_is_in_order_with_commits(subject: &dyn Subject) {
    let log = subject.create().await;
    let mut expected = Vec::new();
    for round in 0..10 {
        let mut old = soon(log.writer("owner")).await.unwrap();
        let committing = tokio::spawn(async move {
            let mut committed = Vec::new();
            for i in 0..1_000 {
                let text = format!("{round} {i}");
                match old.commit(spread(&text)).await {
                    Ok(_) => committed.push(text),
                    Err(CommitError::Fenced) => break,
                    Err(other) => panic!("{other}"),
                }
            }
            committed
        });
        let first = partition(SINGLE, 0);
        let mut reader = log.reader(vec![(first.clone(), log.end_offset(&first).await.unwrap())]).unwrap();
        soon(reader.read(crate::ReadLimit::default())).await.unwrap();
        let _successor = soon(log.writer("owner")).await.unwrap();
        let at_take_over = counts(&*log).await;
        expected.extend(soon(committing).await.unwrap());
        assert_eq!(at_take_over, whole(expected.clone()));
        assert_eq!(counts(&*log).await, at_take_over);
    }
}

/// Taking a writer fences its own owner only.
pub async fn owners_are_independent(subject: &dyn Subject) {
    let log = subject.create().await;
    let mut one = soon(log.writer("one")).await.unwrap();
    let mut other = soon(log.writer("other")).await.unwrap();
    commit(&*log, &mut *one, spread("one")).await;
    commit(&*log, &mut *other, spread("other")).await;
    commit(&*log, &mut *one, spread("one more")).await;
    assert_eq!(counts(&*log).await, whole(["one", "other", "one more"].map(str::to_owned)));
}
