//! What the handles (appends, writers, readers, memberships) and the writer thread share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    format::{self, Encoded},
    groups::Groups,
    store::{Bounds, Store},
    write::{Op, Outcome},
};
use crate::{
    BATCH_BYTES_MAX, BATCH_RECORDS_MAX, CommitError, Error, RECORD_BYTES_MAX, Record, TopicConfig, TopicPartition,
};

/// What may wait for the writer thread.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The least that one operation counts for, so that the queue is bounded in number too.
const OPERATION_BYTES_MIN: usize = 1024;
/// Permits are counted in this unit.
const PERMIT_BYTES: usize = 1024;
/// Readers of one partition.
const READERS_MAX: usize = 10_000;

// One batch of the largest size, with what encoding adds to every record, must fit the queue.
const _: () = assert!(BATCH_BYTES_MAX + BATCH_RECORDS_MAX * format::FIXED_BYTES < QUEUE_BYTES_MAX);

/// The index of a partition in [`Shared::partitions`].
pub(super) type Slot = usize;

pub(super) struct Partition {
    pub(super) name: TopicPartition,
    /// In RocksDB's keys.
    pub(super) id: u32,
    pub(super) compacted: bool,
    pub(super) retention: Option<Duration>,
    /// What readers may see ends here: all below is durable.
    end: AtomicU64,
    start: AtomicU64,
    /// Woken when the end moves.
    readers: Mutex<Vec<Weak<Notify>>>,
}

impl Partition {
    pub(super) fn new(name: TopicPartition, id: u32, topic: &TopicConfig, bounds: Bounds) -> Self {
        Self {
            name,
            id,
            compacted: topic.compacted,
            retention: topic.retention,
            end: AtomicU64::new(bounds.end),
            start: AtomicU64::new(bounds.start),
            readers: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub(super) fn start(&self) -> u64 {
        self.start.load(Ordering::Acquire)
    }

    /// Shows readers what is durable now.
    pub(super) fn publish(&self, start: u64, end: u64) {
        self.start.store(start, Ordering::Release);
        self.end.store(end, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        for reader in self.readers().iter() {
            if let Some(reader) = reader.upgrade() {
                reader.notify_one();
            }
        }
    }

    pub(super) fn subscribe(&self, reader: &Arc<Notify>) -> Result<(), Error> {
        let mut readers = self.readers();
        readers.retain(|reader| reader.strong_count() > 0);
        if readers.len() >= READERS_MAX {
            return Err(Error::TooMany { what: "readers of one partition", limit: READERS_MAX });
        }
        readers.push(Arc::downgrade(reader));
        Ok(())
    }

    /// Forgets the reader, and those that are gone.
    pub(super) fn unsubscribe(&self, reader: &Arc<Notify>) {
        self.readers().retain(|other| other.strong_count() > 0 && !std::ptr::eq(other.as_ptr(), Arc::as_ptr(reader)));
    }

    fn readers(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Notify>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct TopicSlots {
    pub(super) name: Arc<str>,
    pub(super) first: Slot,
    pub(super) partitions: u32,
}

pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) topics: HashMap<Arc<str>, TopicSlots>,
    pub(super) partitions: Vec<Partition>,
    pub(super) groups: Groups,
    closed: AtomicBool,
    /// Why the last group could not be written, while that is so.
    trouble: Mutex<Option<String>>,
    queue: mpsc::UnboundedSender<Op>,
    /// Bounds the queue; closed with the log.
    room: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn new(
        store: Store,
        topics: HashMap<Arc<str>, TopicSlots>,
        partitions: Vec<Partition>,
    ) -> (Self, mpsc::UnboundedReceiver<Op>) {
        let (queue, operations) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX / PERMIT_BYTES));
        let shared = Self {
            store,
            topics,
            partitions,
            groups: Groups::default(),
            closed: AtomicBool::new(false),
            trouble: Mutex::default(),
            queue,
            room,
        };
        (shared, operations)
    }

    pub(super) fn topic(&self, topic: &str) -> Result<&TopicSlots, Error> {
        self.topics.get(topic).ok_or_else(|| Error::UnknownTopic { topic: topic.to_owned() })
    }

    pub(super) fn slot(&self, of: &TopicPartition) -> Result<Slot, Error> {
        let topic = self.topic(&of.topic)?;
        if of.partition >= topic.partitions {
            return Err(Error::UnknownPartition { of: of.clone(), partitions: topic.partitions });
        }
        Ok(topic.first + of.partition as usize)
    }

    pub(super) fn partition(&self, of: &TopicPartition) -> Result<&Partition, Error> {
        Ok(&self.partitions[self.slot(of)?])
    }

    pub(super) fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Makes the log refuse what is new, and everyone who waits wake up to learn so.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.close();
        // The writer thread may have ended already, which is as good.
        let _ = self.queue.send(Op::Close);
        self.partitions.iter().for_each(Partition::wake);
        self.groups.close();
    }

    /// Waits for room in the queue.
    pub(super) async fn room_for(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let permits = bytes.max(OPERATION_BYTES_MIN).div_ceil(PERMIT_BYTES) as u32;
        self.room.clone().acquire_many_owned(permits).await.map_err(|_| Error::Closed)
    }

    /// Hands an operation to the writer thread and waits for its outcome.
    pub(super) async fn ask<T>(&self, op: Op, answer: oneshot::Receiver<Outcome<T>>) -> Outcome<T> {
        self.queue.send(op).map_err(|_| CommitError::Failed(Error::Closed))?;
        // An operation that is dropped unanswered was in the hands of a thread that ended abnormally.
        answer.await.unwrap_or_else(|gone| Err(CommitError::Ambiguous(Error::Unconfirmed { source: Arc::new(gone) })))
    }
}

/// Records checked against the limits, encoded, and with their partitions chosen.
#[derive(Default)]
pub(super) struct Prepared {
    pub(super) records: Vec<(Slot, Encoded)>,
    content_bytes: usize,
}

impl Prepared {
    pub(super) fn with_capacity(records: usize) -> Self {
        Self { records: Vec::with_capacity(records.min(BATCH_RECORDS_MAX)), content_bytes: 0 }
    }

    pub(super) fn push(&mut self, slot: Slot, topic: &Arc<str>, record: &Record) -> Result<(), Error> {
        let bytes = record.bytes();
        if bytes > RECORD_BYTES_MAX || record.headers.len() > format::HEADERS_MAX {
            return Err(Error::RecordTooLarge { topic: topic.clone(), bytes });
        }
        self.content_bytes += bytes;
        if self.content_bytes > BATCH_BYTES_MAX || self.records.len() >= BATCH_RECORDS_MAX {
            return Err(Error::BatchTooLarge { records: self.records.len() + 1, bytes: self.content_bytes });
        }
        self.records.push((slot, Encoded::new(record)));
        Ok(())
    }

    pub(super) fn bytes(&self) -> usize {
        self.records.iter().map(|(_, record)| record.len()).sum()
    }

    pub(super) fn slots(&self) -> Vec<Slot> {
        self.records.iter().map(|(slot, _)| *slot).collect()
    }
}
