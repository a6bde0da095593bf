//! The model: topics in memory, and a writer's place in its owner's order. Pure.
//!
//! Everything happens at once and in order, so what makes a log hostile (delays, lost answers, late commits) is a matter of
//! *when* the simulator calls. Two things it does here that a log may do and a careless reader does not expect: offsets have
//! gaps where a commit ended, as Kafka's transaction markers leave them, and compaction takes records away.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use longshore_schemas::{Timestamp, topics};

use crate::{
    BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Batch, CommitError, Destination, Error, Position, RECORD_BYTES_MAX, ReadLimit,
    Record, StoredRecord, TopicConfig, TopicPartition,
};

#[derive(Debug)]
struct Topic {
    name: Arc<str>,
    compacted: bool,
    partitions: Vec<Partition>,
}

#[derive(Debug, Default)]
struct Partition {
    records: Vec<StoredRecord>,
    start: u64,
    end: u64,
    /// Of the last record: times never fall.
    last_at: Timestamp,
}

/// The right to commit for an owner, until a later one is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub owner: String,
    pub epoch: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Core {
    topics: BTreeMap<String, Topic>,
    epochs: BTreeMap<String, u64>,
    /// Whether each commit leaves a gap of one offset in the partitions that it wrote.
    pub gaps: bool,
}

impl Core {
    pub fn new(topics: impl IntoIterator<Item = TopicConfig>) -> Self {
        let topic = |config: TopicConfig| {
            let partitions = (0..config.partitions).map(|_| Partition::default()).collect();
            let name: Arc<str> = config.name.as_str().into();
            (config.name, Topic { name, compacted: config.compacted, partitions })
        };
        Self { topics: topics.into_iter().map(topic).collect(), epochs: BTreeMap::new(), gaps: false }
    }

    fn topic(&self, topic: &str) -> Result<&Topic, Error> {
        self.topics.get(topic).ok_or_else(|| Error::UnknownTopic { topic: topic.to_owned() })
    }

    pub fn partitions(&self, topic: &str) -> Result<u32, Error> {
        Ok(self.topic(topic)?.partitions.len() as u32)
    }

    fn partition(&self, of: &TopicPartition) -> Result<&Partition, Error> {
        let topic = self.topic(&of.topic)?;
        let partitions = topic.partitions.len() as u32;
        let partition = topic.partitions.get(of.partition as usize);
        partition.ok_or_else(|| Error::UnknownPartition { of: of.clone(), partitions })
    }

    pub fn end(&self, of: &TopicPartition) -> Result<u64, Error> {
        Ok(self.partition(of)?.end)
    }

    pub fn start(&self, of: &TopicPartition) -> Result<u64, Error> {
        Ok(self.partition(of)?.start)
    }

    pub fn offset_at(&self, of: &TopicPartition, at: Timestamp) -> Result<u64, Error> {
        let partition = self.partition(of)?;
        if partition.records.first().is_none_or(|first| at <= first.at) {
            return Ok(if partition.records.is_empty() { partition.end } else { partition.start });
        }
        let index = partition.records.partition_point(|record| record.at < at);
        Ok(partition.records.get(index).map_or(partition.end, |record| record.offset))
    }

    /// Every record that is there, for those who check.
    pub fn records(&self, of: &TopicPartition) -> &[StoredRecord] {
        self.partition(of).map_or(&[], |partition| &partition.records)
    }

    /// The records from the offset on, as many as the limit allows, and the position after them.
    pub fn read(&self, of: &TopicPartition, from: u64, limit: ReadLimit) -> Result<(Vec<StoredRecord>, u64), Error> {
        let partition = self.partition(of)?;
        if from > partition.end {
            return Err(Error::BeyondEnd { of: of.clone(), offset: from, end: partition.end });
        }
        let from = from.max(partition.start);
        let first = partition.records.partition_point(|record| record.offset < from);
        let (mut read, mut bytes) = (Vec::new(), 0);
        for record in &partition.records[first..] {
            bytes += record.record.bytes();
            if !read.is_empty() && (read.len() >= limit.records.max(1) || bytes > limit.bytes) {
                let position = record.offset;
                return Ok((read, position));
            }
            read.push(record.clone());
        }
        Ok((read, partition.end))
    }

    /// Writes each record on the partition of its key.
    pub fn append(&mut self, topic: &str, records: Vec<Record>, now: Timestamp) -> Result<Vec<Position>, Error> {
        let to: Arc<str> = self.topic(topic)?.name.clone();
        let records: Vec<_> = records.into_iter().map(|record| (Destination::Keyed(to.clone()), record)).collect();
        let placed = self.place(records)?;
        Ok(self.write(placed, now))
    }

    /// Fences every earlier claim of the owner.
    pub fn take(&mut self, owner: &str) -> Claim {
        let epoch = self.epochs.entry(owner.to_owned()).or_default();
        *epoch += 1;
        Claim { owner: owner.to_owned(), epoch: *epoch }
    }

    /// Whether a later claim of the owner was taken.
    pub fn is_fenced(&self, claim: &Claim) -> bool {
        self.epochs.get(&claim.owner) != Some(&claim.epoch)
    }

    /// Writes the whole batch or nothing of it.
    pub fn commit(&mut self, claim: &Claim, batch: Batch, now: Timestamp) -> Result<Vec<Position>, CommitError> {
        if self.is_fenced(claim) {
            return Err(CommitError::Fenced);
        }
        for (of, _) in &batch.consumed {
            self.partition(of).map_err(CommitError::Failed)?;
        }
        let placed = self.place(batch.records).map_err(CommitError::Failed)?;
        let positions = self.write(placed, now);
        if self.gaps {
            let written: BTreeSet<&TopicPartition> = positions.iter().map(|position| &position.source).collect();
            for of in written {
                if let Some(partition) = self.partition_mut(of) {
                    partition.end += 1;
                }
            }
        }
        Ok(positions)
    }

    fn partition_mut(&mut self, of: &TopicPartition) -> Option<&mut Partition> {
        self.topics.get_mut(&*of.topic)?.partitions.get_mut(of.partition as usize)
    }

    /// Retention: what is before the offset is gone.
    pub fn trim(&mut self, of: &TopicPartition, start: u64) {
        if let Some(partition) = self.partition_mut(of) {
            partition.start = partition.start.max(start.min(partition.end));
            let start = partition.start;
            partition.records.retain(|record| record.offset >= start);
        }
    }

    /// Where each record goes, if all of them can.
    fn place(&self, records: Vec<(Destination, Record)>) -> Result<Vec<(TopicPartition, Record)>, Error> {
        let bytes: usize = records.iter().map(|(_, record)| record.bytes()).sum();
        let mut placed = Vec::with_capacity(records.len());
        let count = records.len();
        for (to, record) in records {
            let of = match to {
                Destination::Exact(of) => of,
                Destination::Keyed(topic) => {
                    let partitions = self.partitions(&topic)?;
                    TopicPartition { partition: topics::partition_of(&record.key, partitions), topic }
                }
            };
            self.partition(&of)?;
            if record.bytes() > RECORD_BYTES_MAX {
                return Err(Error::RecordTooLarge { topic: of.topic, bytes: record.bytes() });
            }
            placed.push((of, record));
        }
        if count > BATCH_RECORDS_MAX || bytes > BATCH_BYTES_MAX {
            return Err(Error::BatchTooLarge { records: count, bytes });
        }
        Ok(placed)
    }

    fn write(&mut self, placed: Vec<(TopicPartition, Record)>, now: Timestamp) -> Vec<Position> {
        let mut positions = Vec::with_capacity(placed.len());
        for (source, record) in placed {
            let Some(topic) = self.topics.get_mut(&*source.topic) else { continue };
            let Some(partition) = topic.partitions.get_mut(source.partition as usize) else { continue };
            if topic.compacted {
                partition.records.retain(|earlier| earlier.record.key != record.key);
            }
            let (offset, at) = (partition.end, now.max(partition.last_at));
            partition.records.push(StoredRecord { source: source.clone(), offset, at, record });
            partition.end = offset + 1;
            partition.last_at = at;
            positions.push(Position { source, offset });
        }
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Batch {
        let to = Destination::Exact(TopicPartition::new("t", 0));
        Batch { records: vec![(to, Record::new("k", text.to_owned()))], consumed: Vec::new() }
    }

    #[test]
    fn a_late_commit_of_a_predecessor_is_fenced_and_gaps_are_skipped() {
        let mut core = Core::new([TopicConfig::new("t", 1)]);
        core.gaps = true;
        let of = TopicPartition::new("t", 0);
        let old = core.take("owner");
        core.commit(&old, one("a"), Timestamp(5)).expect("the owner's");
        let new = core.take("owner");
        assert!(matches!(core.commit(&old, one("late"), Timestamp(6)), Err(CommitError::Fenced)));
        core.commit(&new, one("b"), Timestamp(4)).expect("the owner's");
        let (records, position) = core.read(&of, 0, ReadLimit::default()).expect("there");
        let offsets: Vec<_> = records.iter().map(|record| (record.offset, record.at)).collect();
        assert_eq!(offsets, [(0, Timestamp(5)), (2, Timestamp(5))], "times never fall");
        assert_eq!((position, core.end(&of).expect("there")), (4, 4));
    }
}
