//! Owners that come late, brokers that die, connections that are cut at the worst moment, readers that are slow.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use longshore_kafka::Cluster;
use longshore_log::{CommitError, Error, Log, ReadLimit, Record, end_of_records, kafka::KafkaLog};

use crate::{
    TOPIC, batch, config, first,
    proxy::{Cut, Proxy},
    shared, soon, values,
};

/// The one who took over last is the owner, also if it is the one who was there first.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_take_over_of_the_old_owner_fences_the_new_one() {
    let config = config(shared().brokers(), 1);
    let (old, new) = (KafkaLog::connect(config.clone()), KafkaLog::connect(config));
    let (old, new) = (soon(old).await.unwrap(), soon(new).await.unwrap());
    let mut first_of_old = soon(old.writer("owner")).await.unwrap();
    soon(first_of_old.commit(batch("old", 1))).await.unwrap();
    let mut of_new = soon(new.writer("owner")).await.unwrap();
    soon(of_new.commit(batch("new", 1))).await.unwrap();
    let mut late = soon(old.writer("owner")).await.unwrap();
    assert!(matches!(soon(of_new.commit(batch("fenced", 1))).await, Err(CommitError::Fenced)));
    assert!(matches!(soon(first_of_old.commit(batch("fenced", 1))).await, Err(CommitError::Fenced)));
    soon(late.commit(batch("late", 1))).await.unwrap();
    let mut again = soon(new.writer("owner")).await.unwrap();
    soon(again.commit(batch("again", 1))).await.unwrap();
    let _last = soon(new.writer("owner")).await.unwrap();
    assert_eq!(values(&new).await, ["old/0", "new/0", "late/0", "again/0"]);
}

/// A transaction leaves a mark behind its records: whoever waits for all records must not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn records_end_before_the_mark_of_their_transaction() {
    let log = soon(KafkaLog::connect(config(shared().brokers(), 1))).await.unwrap();
    let ends = async |from| soon(end_of_records(&*log, vec![(first(), from)])).await.unwrap().remove(&first());
    assert_eq!(ends(0).await, None);
    let mut writer = soon(log.writer("owner")).await.unwrap();
    soon(writer.commit(batch("three", 3))).await.unwrap();
    // Nobody takes over before the mark is written.
    let _next = soon(log.writer("owner")).await.unwrap();
    assert_eq!(soon(log.end_offset(&first())).await.unwrap(), 4, "with the mark");
    assert_eq!(ends(0).await, Some(3));
    assert_eq!(ends(2).await, Some(3));
    assert_eq!(ends(3).await, None, "nothing is left to wait for");
    soon(log.append(TOPIC, vec![Record::new("key", "one more")])).await.unwrap();
    assert_eq!(ends(0).await, Some(5));
}

/// The brokers have committed, and the answer never comes. Whatever the writer says then, the log has the batch once.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_between_commit_and_answer_leaves_the_batch_once() {
    let proxy = Proxy::bind().await;
    let mut cluster = longshore_kafka::Config::new(1);
    cluster.settings.push(format!("advertised.listeners=PLAINTEXT://{}", proxy.address()));
    let cluster = Cluster::start(&cluster).unwrap();
    proxy.serve(cluster.brokers());
    let log = soon(KafkaLog::connect(config(&proxy.address(), 1))).await.unwrap();
    let mut expected = Vec::new();
    for (round, cut) in [Cut::Once, Cut::ForGood, Cut::Once].into_iter().enumerate() {
        let mut writer = soon(log.writer("owner")).await.unwrap();
        soon(writer.commit(batch(&format!("before {round}"), 1))).await.unwrap();
        proxy.cut_after_the_next_commit(cut);
        let text = format!("cut {round}");
        let outcome = soon(writer.commit(batch(&text, 3))).await;
        assert!(proxy.has_cut(), "the commit did not go through the proxy");
        match outcome {
            Ok(positions) => assert_eq!(positions.len(), 3),
            Err(CommitError::Ambiguous(_)) => {
                let after = soon(writer.commit(batch("of no use", 1))).await;
                assert!(matches!(after, Err(CommitError::Failed(Error::WriterSpent))), "{after:?}");
            }
            Err(other) => panic!("{other}"),
        }
        proxy.mend();
        let _next = soon(log.writer("owner")).await.unwrap();
        expected.push(format!("before {round}/0"));
        expected.extend((0..3).map(|number| format!("{text}/{number}")));
        assert_eq!(values(&log).await, expected);
    }
}

/// A broker that is killed and comes back: appends and commits go on, and nothing acknowledged is missing or there twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_and_comes_back_loses_nothing() {
    let cluster = Cluster::start(&longshore_kafka::Config::new(1)).unwrap();
    let log = soon(KafkaLog::connect(config(cluster.brokers(), 1))).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let appending = tokio::spawn(append_until(log.clone(), stop.clone()));
    let committing = tokio::spawn(commit_until(log.clone(), stop.clone()));
    let cluster = Arc::new(cluster);
    for _ in 0..2 {
        let before = written(&log).await;
        soon(async { while !more(before, written(&log).await) {} }).await;
        let of_thread = cluster.clone();
        let restarted = move || {
            of_thread.kill(1).unwrap();
            of_thread.restart(1).unwrap();
        };
        tokio::task::spawn_blocking(restarted).await.unwrap();
    }
    soon(async { while log.append(TOPIC, vec![Record::new("key", "alive")]).await.is_err() {} }).await;
    stop.store(true, Ordering::Release);
    let (mut acknowledged, mut unsure) = soon(appending).await.unwrap();
    let committed = soon(committing).await.unwrap();
    assert!(!acknowledged.is_empty() && !committed.is_empty());
    acknowledged.extend(committed);
    let mut found = values(&log).await;
    found.retain(|value| value != "alive");
    unsure.retain(|value| !acknowledged.contains(value));
    found.retain(|value| !unsure.contains(value));
    found.sort();
    acknowledged.sort();
    assert_eq!(found, acknowledged);
}

/// Far more appends than go to the broker at once: those that wait behind others end with them, and not one group after the other.
#[tokio::test(flavor = "multi_thread")]
async fn appends_that_wait_for_a_broker_that_is_gone_all_get_an_answer() {
    let cluster = Cluster::start(&longshore_kafka::Config::new(1)).unwrap();
    let log = soon(KafkaLog::connect(config(cluster.brokers(), 1))).await.unwrap();
    soon(log.append(TOPIC, vec![Record::new("key", "there")])).await.unwrap();
    cluster.kill(1).unwrap();
    let appends: Vec<_> = (0..20_000)
        .map(|number| {
            let log = log.clone();
            tokio::spawn(async move { log.append(TOPIC, vec![Record::new("key", format!("gone {number}"))]).await })
        })
        .collect();
    for append in appends {
        assert!(soon(append).await.unwrap().is_err(), "nobody has it");
    }
}

/// How many records are there that were appended, and that were committed.
async fn written(log: &Arc<KafkaLog>) -> [usize; 2] {
    let values = values(log).await;
    ["append ", "commit "].map(|kind| values.iter().filter(|value| value.starts_with(kind)).count())
}

/// Enough of both kinds.
fn more([appended, committed]: [usize; 2], now: [usize; 2]) -> bool {
    now[0] >= appended + 10 && now[1] >= committed + 5
}

/// What was acknowledged, and what nobody knows of.
async fn append_until(log: Arc<KafkaLog>, stop: Arc<AtomicBool>) -> (Vec<String>, Vec<String>) {
    let (mut acknowledged, mut unsure) = (Vec::new(), Vec::new());
    for number in 0.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let value = format!("append {number}");
        match log.append(TOPIC, vec![Record::new("key", value.clone())]).await {
            Ok(_) => acknowledged.push(value),
            Err(_) => unsure.push(value),
        }
    }
    (acknowledged, unsure)
}

/// Commits as a processor does: after anything that is not known it takes over, looks, and writes what is not there.
async fn commit_until(log: Arc<KafkaLog>, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut committed = Vec::new();
    let mut writer = None;
    while !stop.load(Ordering::Acquire) {
        let text = format!("commit {}", committed.len());
        let taken = match writer.take() {
            Some(writer) => writer,
            None => {
                let Ok(taken) = log.writer("owner").await else { continue };
                if values(&log).await.contains(&format!("{text}/0")) {
                    committed.push(format!("{text}/0"));
                    writer = Some(taken);
                    continue;
                }
                taken
            }
        };
        let mut taken = taken;
        if taken.commit(batch(&text, 1)).await.is_ok() {
            committed.push(format!("{text}/0"));
            writer = Some(taken);
        }
    }
    committed
}

/// A reader that takes little at a time gets everything in order while much more is written than it may hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_slower_than_the_writer_gets_everything() {
    const RECORDS: usize = 30_000;
    const BATCH: usize = 1_000;
    let log = soon(KafkaLog::connect(config(shared().brokers(), 1))).await.unwrap();
    let mut reader = log.reader(vec![(first(), 0)]).unwrap();
    let writing = tokio::spawn({
        let log = log.clone();
        async move {
            for from in (0..RECORDS).step_by(BATCH) {
                let record = |number: usize| Record::new("key", format!("{number:>1000}"));
                log.append(TOPIC, (from..from + BATCH).map(record).collect()).await.unwrap();
            }
        }
    });
    let mut next = 0;
    while next < RECORDS {
        for stored in soon(reader.read(ReadLimit { records: 100, bytes: 50_000 })).await.unwrap() {
            let value = stored.record.value.unwrap();
            assert_eq!(std::str::from_utf8(&value).unwrap().trim(), next.to_string());
            next += 1;
        }
        if next % 1_000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    soon(writing).await.unwrap();
}
