//! What the log holds, and how it is named.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use longshore_schemas::{Timestamp, topics};

/// One partition of a topic. Written `topic/3`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: u32,
}

impl TopicPartition {
    pub fn new(topic: impl Into<Arc<str>>, partition: u32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// What a caller writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Chooses the partition, and in a compacted topic says which older records this one replaces.
    pub key: Bytes,
    /// `None` is a tombstone: in a compacted topic the key is gone.
    pub value: Option<Bytes>,
    /// In the caller's order; names may repeat.
    pub headers: Vec<(String, Bytes)>,
}

impl Record {
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: Some(value.into()), headers: Vec::new() }
    }

    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: None, headers: Vec::new() }
    }

    /// The values of the headers of this name.
    pub fn headers_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_ref())
    }

    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// What counts against [`crate::RECORD_BYTES_MAX`]: the content, and a little for each header.
    pub fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| HEADER_BYTES + name.len() + value.len()).sum();
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + headers
    }
}

/// What a header costs beside its content, so that empty headers are not for free.
const HEADER_BYTES: usize = 8;

/// A record as the log gives it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    pub source: TopicPartition,
    pub offset: u64,
    /// When the log took it. Never decreases within a partition.
    pub at: Timestamp,
    pub record: Record,
}

/// Where a record came to stand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub source: TopicPartition,
    pub offset: u64,
}

/// Where a record of a [`Batch`] goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The topic, on the partition of the record's key.
    Keyed(Arc<str>),
    /// Exactly this partition, whatever the key.
    Exact(TopicPartition),
}

/// What one commit writes: all of it or nothing.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In order; records for the same partition get consecutive places in this order.
    pub records: Vec<(Destination, Record)>,
    /// For each partition consumed, the first offset *not* consumed yet. Only lag tools read it: what was processed
    /// is said by the facts themselves.
    pub consumed: Vec<(TopicPartition, u64)>,
}

/// A topic as the log must have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    pub name: String,
    /// Fixed at creation.
    pub partitions: u32,
    /// How long a record is kept at least; `None` is for ever.
    pub retention: Option<Duration>,
    /// Keep the newest record of each key and nothing else. Excludes `retention`.
    pub compacted: bool,
}

impl TopicConfig {
    /// A topic that is kept for ever.
    pub fn new(name: impl Into<String>, partitions: u32) -> Self {
        Self { name: name.into(), partitions, retention: None, compacted: false }
    }
}

impl From<topics::Topic> for TopicConfig {
    fn from(topic: topics::Topic) -> Self {
        let (retention, compacted) = match topic.retention {
            topics::Retention::Forever => (None, false),
            topics::Retention::For(duration) => (Some(duration), false),
            topics::Retention::Compacted => (None, true),
        };
        Self { name: topic.name.to_owned(), partitions: topic.partitions, retention, compacted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_table_converts() {
        let topics: Vec<TopicConfig> = topics::ALL.into_iter().map(TopicConfig::from).collect();
        for (topic, config) in topics::ALL.iter().zip(&topics) {
            assert_eq!((topic.name, topic.partitions), (config.name.as_str(), config.partitions));
            assert_eq!(config.compacted, topic.retention == topics::Retention::Compacted);
            assert!(!(config.compacted && config.retention.is_some()));
        }
    }
}
