//! The log with a meter on it: how long appends and commits take, and how large they are. Changes nothing else.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Instant,
};

use async_trait::async_trait;
use longshore_log::{Batch, CommitError, Error, Log, Membership, Position, Reader, Record, TopicPartition, Writer};
use longshore_schemas::{Timestamp, topics};
use longshore_service::metrics::{Counters, Histograms, OTHER};

static APPENDED: LazyLock<Counters<1>> = LazyLock::new(|| {
    Counters::new("longshore_log_appended_records", "Records appended, outside of transactions", ["topic"])
});
static APPEND_SECONDS: LazyLock<Histograms<1>> =
    LazyLock::new(|| Histograms::seconds("longshore_log_append_seconds", "Until an append is durable", ["topic"]));
static COMMITTED: LazyLock<Counters<1>> = LazyLock::new(|| {
    Counters::new("longshore_log_committed_records", "Records committed in transactions", ["processor"])
});
static COMMIT_SECONDS: LazyLock<Histograms<1>> = LazyLock::new(|| {
    Histograms::seconds("longshore_log_commit_seconds", "Until a transaction is durable", ["processor"])
});
static COMMIT_BYTES: LazyLock<Histograms<1>> =
    LazyLock::new(|| Histograms::bytes("longshore_log_commit_bytes", "Content of a transaction", ["processor"]));
static ERRORS: LazyLock<Counters<1>> =
    LazyLock::new(|| Counters::new("longshore_log_errors", "Appends and commits that failed", ["operation"]));

/// See the module.
pub struct Metered(Arc<dyn Log>);

impl Metered {
    pub fn new(log: Arc<dyn Log>) -> Arc<Self> {
        Arc::new(Self(log))
    }
}

/// A topic as a label: those of the table, and none that someone made up.
fn label(topic: &str) -> &'static str {
    topics::ALL.iter().find(|known| known.name == topic).map_or(OTHER, |known| known.name)
}

#[async_trait]
impl Log for Metered {
    fn partitions(&self, topic: &str) -> Result<u32, Error> {
        self.0.partitions(topic)
    }

    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<Vec<Position>, Error> {
        let begun = Instant::now();
        let appended = self.0.append(topic, records).await;
        match &appended {
            Ok(positions) => {
                APPENDED.count([label(topic)], positions.len() as u64);
                APPEND_SECONDS.observe([label(topic)], begun.elapsed().as_secs_f64());
            }
            Err(_) => ERRORS.count(["append"], 1),
        }
        appended
    }

    fn reader(&self, from: Vec<(TopicPartition, u64)>) -> Result<Box<dyn Reader>, Error> {
        self.0.reader(from)
    }

    async fn end_offset(&self, of: &TopicPartition) -> Result<u64, Error> {
        self.0.end_offset(of).await
    }

    async fn start_offset(&self, of: &TopicPartition) -> Result<u64, Error> {
        self.0.start_offset(of).await
    }

    async fn owners(&self, group: &str, topic: &str) -> Result<BTreeMap<u32, String>, Error> {
        self.0.owners(group, topic).await
    }

    fn trouble(&self) -> Option<String> {
        self.0.trouble()
    }

    async fn offset_at(&self, of: &TopicPartition, at: Timestamp) -> Result<u64, Error> {
        self.0.offset_at(of, at).await
    }

    async fn join(&self, group: &str, topic: &str) -> Result<Box<dyn Membership>, Error> {
        self.0.join(group, topic).await
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>, Error> {
        // Owners are called `queue-3`: one for each partition.
        let processor = owner.rsplit_once('-').map_or(owner, |(processor, _)| processor).to_owned();
        Ok(Box::new(MeteredWriter { writer: self.0.writer(owner).await?, processor }))
    }
}

struct MeteredWriter {
    writer: Box<dyn Writer>,
    processor: String,
}

#[async_trait]
impl Writer for MeteredWriter {
    async fn commit(&mut self, batch: Batch) -> Result<Vec<Position>, CommitError> {
        let bytes: usize = batch.records.iter().map(|(_, record)| record.bytes()).sum();
        let begun = Instant::now();
        let committed = self.writer.commit(batch).await;
        match &committed {
            Ok(positions) => {
                let of = [self.processor.as_str()];
                COMMITTED.count(of, positions.len() as u64);
                COMMIT_SECONDS.observe(of, begun.elapsed().as_secs_f64());
                COMMIT_BYTES.observe(of, bytes as f64);
            }
            Err(_) => ERRORS.count(["commit"], 1),
        }
        committed
    }
}
