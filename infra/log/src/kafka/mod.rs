//! The log on Apache Kafka.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use longshore_schemas::Timestamp;

use crate::{Error, Log, Membership, Position, Reader, Record, TopicConfig, TopicPartition, Writer};

/// How to reach a cluster, and what it must hold.
#[derive(Debug, Clone)]
pub struct Config {
    /// `host:port` of some brokers, with commas between.
    pub brokers: String,
    /// Before the name of every topic, group and transactional id, so that several installations can share a cluster.
    pub prefix: String,
    /// How this process is called in the brokers' logs and quotas.
    pub client_id: String,
    /// Further settings of librdkafka, such as `security.protocol` and `sasl.*`, passed on as they are.
    pub properties: BTreeMap<String, String>,
    /// Those that the process uses.
    pub topics: Vec<TopicConfig>,
    /// Whether to create topics that are missing and to check the settings of those that are there; without, they only have
    /// to exist with the right number of partitions. Needs the right to do so.
    pub manage_topics: bool,
    /// Replicas of a topic that is created. With 3, two must have what is acknowledged.
    pub replication: u16,
}

impl Config {
    pub fn new(brokers: impl Into<String>, topics: impl IntoIterator<Item = impl Into<TopicConfig>>) -> Self {
        Self {
            brokers: brokers.into(),
            prefix: "longshore.".to_owned(),
            client_id: "longshore".to_owned(),
            properties: BTreeMap::new(),
            topics: topics.into_iter().map(Into::into).collect(),
            manage_topics: true,
            replication: 3,
        }
    }
}

/// The log on a Kafka cluster.
pub struct KafkaLog {}

impl KafkaLog {
    /// Connects, and makes sure of the topics.
    pub async fn connect(_config: Config) -> Result<Arc<Self>, Error> {
        Err(Error::Closed)
    }
}

#[async_trait]
impl Log for KafkaLog {
    fn partitions(&self, _topic: &str) -> Result<u32, Error> {
        Err(Error::Closed)
    }

    async fn append(&self, _topic: &str, _records: Vec<Record>) -> Result<Vec<Position>, Error> {
        Err(Error::Closed)
    }

    fn reader(&self, _from: Vec<(TopicPartition, u64)>) -> Result<Box<dyn Reader>, Error> {
        Err(Error::Closed)
    }

    async fn end_offset(&self, _of: &TopicPartition) -> Result<u64, Error> {
        Err(Error::Closed)
    }

    async fn start_offset(&self, _of: &TopicPartition) -> Result<u64, Error> {
        Err(Error::Closed)
    }

    async fn offset_at(&self, _of: &TopicPartition, _at: Timestamp) -> Result<u64, Error> {
        Err(Error::Closed)
    }

    async fn join(&self, _group: &str, _topic: &str) -> Result<Box<dyn Membership>, Error> {
        Err(Error::Closed)
    }

    async fn writer(&self, _owner: &str) -> Result<Box<dyn Writer>, Error> {
        Err(Error::Closed)
    }
}
