//! The embedded log: one process, one RocksDB with a synced write-ahead log, one thread that writes.
//!
//! ```text
//! append, commit ──bounded queue──▶ writer thread (`write`) ──group, synced──▶ RocksDB (`store`)
//!                                        │ publishes each partition's end            ▲
//!                                        └──wakes──▶ readers (`reader`) ──scan below the end
//! ```
//!
//! - **Durable before acknowledged, durable before visible**: ends move only after the sync.
//! - **Exclusive**: RocksDB's lock. That is why epochs and groups live in memory: nobody of an earlier process is left.
//! - **Storage that fails**: what was being written fails, the thread opens RocksDB again until that works, and the log
//!   goes on.
//! - **Closing**: [`LocalLog::close`], or dropping the log. Readers, writers and memberships that are left then get
//!   [`Error::Closed`]; they do not keep the log open.
//!
//! The in-process pieces are in `shared`, the bytes in `format`, membership in `groups`, retention in `maintenance`.

mod format;
mod groups;
mod maintenance;
mod reader;
mod shared;
mod store;
mod write;
mod writer;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use async_trait::async_trait;
use longshore_schemas::Timestamp;

use self::{
    groups::Groups,
    reader::LocalReader,
    shared::{Partition, Shared, TopicSlots},
    store::Store,
    write::WriterThread,
};
use crate::{Error, Log, Membership, Position, Reader, Record, TopicConfig, TopicPartition, Writer, clock};

pub use self::maintenance::{Maintained, TOMBSTONE_KEPT};

/// Reads a record as the log's folder holds it, for tests that bring bytes of their choice; `None` if these are none.
#[doc(hidden)]
pub fn decode_stored(stored: bytes::Bytes) -> Option<(Timestamp, Record)> {
    format::decode(stored)
}

/// The bytes of a record as the log's folder holds it.
#[doc(hidden)]
pub fn encode_stored(at: Timestamp, record: &Record) -> Vec<u8> {
    format::Encoded::new(record).stamped(at).to_vec()
}

/// Partitions of all topics together.
const PARTITIONS_MAX: usize = 100_000;
/// Longest name of a topic.
const TOPIC_BYTES_MAX: usize = 249;

/// What a local log needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// A folder of its own, made if it is not there.
    pub path: PathBuf,
    /// Those that are not there yet are created. Topics in the folder but not here stay untouched and unreachable.
    pub topics: Vec<TopicConfig>,
}

impl Config {
    pub fn new(path: impl Into<PathBuf>, topics: impl IntoIterator<Item = impl Into<TopicConfig>>) -> Self {
        Self { path: path.into(), topics: topics.into_iter().map(Into::into).collect() }
    }
}

/// The log in a folder of this machine.
pub struct LocalLog {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl LocalLog {
    /// Opens the log, recovering what was written before. Blocks on the disk.
    pub fn open(config: Config) -> Result<Arc<Self>, Error> {
        let Config { path, topics } = config;
        check(&topics)?;
        let store = Store::open(&path)?;
        let first_ids = store.create_topics(&topics)?;
        let (mut slots, mut partitions, mut bounds) = (HashMap::new(), Vec::new(), Vec::new());
        for (topic, first_id) in topics.iter().zip(first_ids) {
            let name: Arc<str> = topic.name.as_str().into();
            let first = partitions.len();
            slots.insert(name.clone(), TopicSlots { name: name.clone(), first, partitions: topic.partitions });
            for number in 0..topic.partitions {
                let id = first_id + number;
                let of = store.with(|view| view.bounds(id))?;
                partitions.push(Partition::new(TopicPartition::new(name.clone(), number), id, topic, of));
                bounds.push(of);
            }
        }
        // What is stamped from now on, and whatever is counted by the same clock, comes after what is there.
        clock::begin_after(bounds.iter().map(|bounds| bounds.at).max().unwrap_or_default());
        let group = store.with(|view| view.group())?;
        let (shared, queue) = Shared::new(store, slots, partitions);
        let shared = Arc::new(shared);
        let thread = WriterThread::new(shared.clone(), queue, bounds, group);
        let writer = std::thread::Builder::new().name("log-writer".to_owned()).spawn(move || thread.run());
        let writer =
            writer.map_err(|source| Error::Storage { doing: "starting its thread", source: Arc::new(source) })?;
        tracing::info!(path = %path.display(), topics = topics.len(), "the log is open");
        Ok(Arc::new(Self { shared, writer: Mutex::new(Some(writer)) }))
    }

    /// Applies retention and removes old tombstones, as of `now`. To be called every few minutes.
    pub async fn maintain(&self, now: Timestamp) -> Result<Maintained, Error> {
        self.shared.check_open()?;
        maintenance::maintain(&self.shared, now).await
    }

    /// The first offset of the partition that this owner's commits have not said they consumed. For lag tools only.
    pub async fn consumed(&self, owner: &str, of: &TopicPartition) -> Result<Option<u64>, Error> {
        let slot = self.shared.slot(of)?;
        let owner = owner.to_owned();
        maintenance::blocking(&self.shared, move |shared| {
            shared.store.with(|view| view.consumed(shared.partitions[slot].id, &owner))
        })
        .await
    }

    /// Finishes the write under way, refuses everything else and lets the folder go. Blocks until that is done.
    pub fn close(&self) {
        self.shared.close();
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the log's writer thread had panicked");
        }
    }
}

impl Drop for LocalLog {
    fn drop(&mut self) {
        self.close();
    }
}

#[async_trait]
impl Log for LocalLog {
    fn partitions(&self, topic: &str) -> Result<u32, Error> {
        Ok(self.shared.topic(topic)?.partitions)
    }

    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<Vec<Position>, Error> {
        writer::append(&self.shared, topic, &records).await
    }

    fn reader(&self, from: Vec<(TopicPartition, u64)>) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(LocalReader::new(self.shared.clone(), &from)?))
    }

    async fn end_offset(&self, of: &TopicPartition) -> Result<u64, Error> {
        self.shared.check_open()?;
        Ok(self.shared.partition(of)?.end())
    }

    async fn start_offset(&self, of: &TopicPartition) -> Result<u64, Error> {
        self.shared.check_open()?;
        Ok(self.shared.partition(of)?.start())
    }

    async fn offset_at(&self, of: &TopicPartition, at: Timestamp) -> Result<u64, Error> {
        let slot = self.shared.slot(of)?;
        maintenance::blocking(&self.shared, move |shared| {
            shared.store.with(|view| maintenance::offset_at(view, &shared.partitions[slot], at))
        })
        .await
    }

    async fn join(&self, group: &str, topic: &str) -> Result<Box<dyn Membership>, Error> {
        Ok(Box::new(Groups::join(&self.shared, group, topic)?))
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>, Error> {
        Ok(Box::new(writer::take_over(&self.shared, owner).await?))
    }
}

fn check(topics: &[TopicConfig]) -> Result<(), Error> {
    let mut names = std::collections::HashSet::new();
    for topic in topics {
        let invalid = |reason| Err(Error::InvalidTopic { topic: topic.name.clone(), reason });
        if topic.name.is_empty() || topic.name.len() > TOPIC_BYTES_MAX {
            return invalid("its name must have 1 to 249 bytes");
        }
        if !names.insert(&topic.name) {
            return invalid("it is there twice");
        }
        if topic.partitions == 0 {
            return invalid("it needs at least one partition");
        }
        if topic.compacted && topic.retention.is_some() {
            return invalid("it cannot be both compacted and kept for a time");
        }
    }
    let partitions: usize = topics.iter().map(|topic| topic.partitions as usize).sum();
    if partitions > PARTITIONS_MAX {
        return Err(Error::TooMany { what: "partitions", limit: PARTITIONS_MAX });
    }
    Ok(())
}
