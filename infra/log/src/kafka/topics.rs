//! What the topics are called here and there: without the installation's prefix, and with it.

use std::{collections::HashMap, sync::Arc};

use crate::{
    BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Destination, Error, RECORD_BYTES_MAX, Record, TopicConfig, TopicPartition,
};

/// Headers of one record.
const HEADERS_MAX: usize = 10_000;

/// A topic that the process uses.
pub(super) struct Topic {
    /// Without the prefix.
    pub(super) name: Arc<str>,
    /// As the brokers know it.
    pub(super) kafka: String,
    pub(super) partitions: u32,
}

pub(super) struct Topics(HashMap<Arc<str>, Arc<Topic>>);

impl Topics {
    pub(super) fn new(prefix: &str, configs: &[TopicConfig]) -> Self {
        let topic = |config: &TopicConfig| {
            let name: Arc<str> = config.name.as_str().into();
            let kafka = format!("{prefix}{name}");
            (name.clone(), Arc::new(Topic { name, kafka, partitions: config.partitions }))
        };
        Self(configs.iter().map(topic).collect())
    }

    pub(super) fn get(&self, name: &str) -> Result<&Arc<Topic>, Error> {
        self.0.get(name).ok_or_else(|| Error::UnknownTopic { topic: name.to_owned() })
    }

    /// The topic of a partition that exists.
    pub(super) fn of(&self, of: &TopicPartition) -> Result<&Arc<Topic>, Error> {
        let topic = self.get(&of.topic)?;
        if of.partition >= topic.partitions {
            return Err(Error::UnknownPartition { of: of.clone(), partitions: topic.partitions });
        }
        Ok(topic)
    }

    /// Where a record goes.
    pub(super) fn place(&self, destination: &Destination, record: &Record) -> Result<(Arc<Topic>, u32), Error> {
        match destination {
            Destination::Keyed(topic) => {
                let topic = self.get(topic)?;
                Ok((topic.clone(), topic.partition_of(record)))
            }
            Destination::Exact(of) => Ok((self.of(of)?.clone(), of.partition)),
        }
    }
}

impl Topic {
    pub(super) fn partition_of(&self, record: &Record) -> u32 {
        longshore_schemas::topics::partition_of(&record.key, self.partitions)
    }
}

/// What one append or commit has so far, held to the limits.
#[derive(Default)]
pub(super) struct Size {
    records: usize,
    bytes: usize,
}

impl Size {
    pub(super) fn add(&mut self, topic: &Arc<str>, record: &Record) -> Result<(), Error> {
        let bytes = record.bytes();
        if bytes > RECORD_BYTES_MAX || record.headers.len() > HEADERS_MAX {
            return Err(Error::RecordTooLarge { topic: topic.clone(), bytes });
        }
        self.records += 1;
        self.bytes += bytes;
        if self.records > BATCH_RECORDS_MAX || self.bytes > BATCH_BYTES_MAX {
            return Err(Error::BatchTooLarge { records: self.records, bytes: self.bytes });
        }
        Ok(())
    }

    pub(super) fn records(&self) -> usize {
        self.records
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
