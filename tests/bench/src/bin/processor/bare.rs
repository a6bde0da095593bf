//! The ceiling: consume, produce the same bytes, commit with the offsets in the transaction. No decoding, no state.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use longshore_bench::bare::{client, create};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::OwnedMessage,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};

pub(crate) const PARTITIONS: i32 = 4;
/// As much as Longshore's runtime puts into one transaction.
const BATCH: usize = 2_000;
const TIME: Duration = Duration::from_secs(10);
const BOUND: Duration = Duration::from_secs(200);

/// Events per second, all partitions at once, from the first client's start to the last commit.
pub(crate) fn run(brokers: &str, requests: &str, facts: &str, count: u64) -> Result<f64> {
    let out = format!("{facts}-bare");
    create(brokers, &out, PARTITIONS)?;
    let begun = Instant::now();
    let partition = |partition| {
        let (brokers, requests, out) = (brokers.to_owned(), requests.to_owned(), out.clone());
        thread::spawn(move || copy(&brokers, &requests, &out, partition))
    };
    let threads: Vec<_> = (0..PARTITIONS).map(partition).collect();
    let mut copied = 0;
    for thread in threads {
        copied += thread.join().map_err(|_| anyhow!("a bare loop panicked"))??;
    }
    ensure!(copied == count, "the bare loops copied {copied} of {count}");
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// Copies one partition up to where it ends now.
fn copy(brokers: &str, requests: &str, out: &str, partition: i32) -> Result<u64> {
    let consumer: BaseConsumer = client(brokers)
        .set("group.id", format!("{out}-group"))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("fetch.queue.backoff.ms", "5")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(requests, partition, Offset::Beginning)?;
    consumer.assign(&assignment)?;
    let producer: ThreadedProducer<DefaultProducerContext> = client(brokers)
        .set("transactional.id", format!("{out}-{partition}"))
        .set("queue.buffering.max.messages", "1000000")
        .set("linger.ms", "0")
        .create()?;
    producer.init_transactions(TIME)?;
    let (_, end) = consumer.fetch_watermarks(requests, partition, TIME)?;
    let (mut position, mut copied, begun) = (0, 0, Instant::now());
    while position < end {
        ensure!(begun.elapsed() < BOUND, "the bare loop did not end in time");
        let batch = take(&consumer)?;
        let Some(last) = batch.last() else { continue };
        position = last.offset() + 1;
        producer.begin_transaction()?;
        for message in &batch {
            let key = message.key().context("a request has a key")?;
            let payload = message.payload().context("a request has a value")?;
            let record = BaseRecord::to(out).partition(partition).key(key).payload(payload);
            if let Err((error, _)) = producer.send(record) {
                bail!("the bare loop cannot produce: {error}");
            }
        }
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(requests, partition, Offset::Offset(position))?;
        let group = consumer.group_metadata().context("the consumer has a group")?;
        // To commit while a message is in flight waits in steps of 100 ms.
        while producer.in_flight_count() > 0 {
            thread::sleep(Duration::from_micros(100));
        }
        producer.send_offsets_to_transaction(&offsets, &group, TIME)?;
        producer.commit_transaction(TIME)?;
        copied += batch.len() as u64;
    }
    Ok(copied)
}

fn take(consumer: &BaseConsumer) -> Result<Vec<OwnedMessage>> {
    let mut batch = Vec::with_capacity(BATCH);
    while batch.len() < BATCH {
        let wait = if batch.is_empty() { Duration::from_millis(100) } else { Duration::ZERO };
        match consumer.poll(wait) {
            Some(message) => batch.push(message?.detach()),
            None => break,
        }
    }
    Ok(batch)
}
