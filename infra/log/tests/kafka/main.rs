//! What only the log on Kafka promises, and its faults: dangerous topics, brokers that die, connections that are cut, storms of
//! members. One broker serves all of it but where a test needs one of its own.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod faults;
mod members;
mod proxy;
mod topics;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use longshore_kafka::Cluster;
use longshore_log::{
    Batch, Destination, Log, ReadLimit, Record, TopicConfig, TopicPartition,
    kafka::{Config, KafkaLog},
};

/// For what must happen, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) const TOPIC: &str = "topic";

/// The broker that tests share.
pub(crate) fn shared() -> &'static Cluster {
    static BROKER: OnceLock<Cluster> = OnceLock::new();
    BROKER.get_or_init(|| Cluster::start(&longshore_kafka::Config::new(1)).unwrap())
}

/// A topic of its own for each test.
pub(crate) fn config(brokers: &str, partitions: u32) -> Config {
    static TESTS: AtomicU64 = AtomicU64::new(0);
    let mut config = Config::new(brokers, [TopicConfig::new(TOPIC, partitions)]);
    config.prefix = format!("test-{}.", TESTS.fetch_add(1, Ordering::Relaxed));
    config.replication = 1;
    config
}

pub(crate) async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(PATIENCE, what).await.expect("nothing happened for too long")
}

pub(crate) fn first() -> TopicPartition {
    TopicPartition::new(TOPIC, 0)
}

pub(crate) fn batch(text: &str, records: usize) -> Batch {
    let record = |number| (Destination::Exact(first()), Record::new("key", format!("{text}/{number}")));
    Batch { records: (0..records).map(record).collect(), consumed: Vec::new() }
}

/// The values of the first partition, in their order.
pub(crate) async fn values(log: &Arc<KafkaLog>) -> Vec<String> {
    let end = soon(log.end_offset(&first())).await.unwrap();
    let mut reader = log.reader(vec![(first(), 0)]).unwrap();
    let mut values = Vec::new();
    while reader.position(&first()).unwrap() < end {
        for stored in soon(reader.read(ReadLimit::default())).await.unwrap() {
            values.push(String::from_utf8(stored.record.value.unwrap().to_vec()).unwrap());
        }
    }
    values
}
