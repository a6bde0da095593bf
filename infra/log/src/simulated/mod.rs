//! The log of simulations: in memory, one core, two faces.
//!
//! ```text
//!   SimulatedLog (the Log trait, for tests with tasks) ──┐
//!                                                        ├─▶ Core: topics, offsets, fencing
//!   tests/sim (calls when its virtual time says so) ─────┘
//! ```
//!
//! [`Core`] is deterministic and knows no time of its own. [`SimulatedLog`] is as calm as a log can be; the conformance
//! suite holds it to what all logs promise, and so holds the core that the simulator maltreats.

mod core;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use longshore_schemas::Timestamp;
use tokio::sync::{Notify, watch};

pub use self::core::{Claim, Core};
use crate::{
    Batch, CommitError, Error, Log, Membership, Ownership, Position, ReadLimit, Reader, Record, StoredRecord,
    TopicConfig, TopicPartition, Writer,
    group::{Change, Group},
};

/// How long a commit takes: as on a disk, others get on meanwhile.
const COMMIT: Duration = Duration::from_millis(1);

/// A log in memory. Clones share it.
#[derive(Clone)]
pub struct SimulatedLog {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    /// Grows with each change of the log, and when it is closed.
    changed: watch::Sender<u64>,
}

struct Inner {
    core: Core,
    groups: BTreeMap<(String, String), Group>,
    /// As if the process had ended.
    closed: bool,
}

impl SimulatedLog {
    pub fn new(topics: impl IntoIterator<Item = TopicConfig>) -> Self {
        Self::over(Core::new(topics))
    }

    fn over(core: Core) -> Self {
        let inner = Inner { core, groups: BTreeMap::new(), closed: false };
        Self { shared: Arc::new(Shared { inner: Mutex::new(inner), changed: watch::Sender::new(0) }) }
    }

    /// Retention: what is before the offset is gone.
    pub fn trim(&self, of: &TopicPartition, start: u64) {
        self.shared.lock().core.trim(of, start);
        self.shared.wake_readers();
    }

    /// The same log as a new process finds it; nothing that holds this one can use it any more.
    #[must_use]
    pub fn reopen(&self) -> Self {
        let mut inner = self.shared.lock();
        inner.closed = true;
        let core = std::mem::replace(&mut inner.core, Core::new([]));
        inner.groups.values().for_each(Group::wake);
        drop(inner);
        self.shared.changed.send_modify(|changes| *changes += 1);
        Self::over(core)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, Inner>, Error> {
        let inner = self.lock();
        if inner.closed { Err(Error::Closed) } else { Ok(inner) }
    }

    fn wake_readers(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[async_trait]
impl Log for SimulatedLog {
    fn partitions(&self, topic: &str) -> Result<u32, Error> {
        self.shared.open()?.core.partitions(topic)
    }

    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<Vec<Position>, Error> {
        let positions = self.shared.open()?.core.append(topic, records, now())?;
        self.shared.wake_readers();
        Ok(positions)
    }

    fn reader(&self, from: Vec<(TopicPartition, u64)>) -> Result<Box<dyn Reader>, Error> {
        let inner = self.shared.open()?;
        for (index, (of, _)) in from.iter().enumerate() {
            inner.core.end(of)?;
            if from[..index].iter().any(|(earlier, _)| earlier == of) {
                return Err(Error::RepeatedPartition { of: of.clone() });
            }
        }
        drop(inner);
        Ok(Box::new(SimulatedReader {
            shared: self.shared.clone(),
            changed: self.shared.changed.subscribe(),
            sources: from,
            turn: 0,
        }))
    }

    async fn end_offset(&self, of: &TopicPartition) -> Result<u64, Error> {
        self.shared.open()?.core.end(of)
    }

    async fn start_offset(&self, of: &TopicPartition) -> Result<u64, Error> {
        self.shared.open()?.core.start(of)
    }

    async fn offset_at(&self, of: &TopicPartition, at: Timestamp) -> Result<u64, Error> {
        self.shared.open()?.core.offset_at(of, at)
    }

    async fn join(&self, group: &str, topic: &str) -> Result<Box<dyn Membership>, Error> {
        let mut inner = self.shared.open()?;
        let partitions = inner.core.partitions(topic)?;
        let key = (group.to_owned(), topic.to_owned());
        let group = inner.groups.entry(key.clone()).or_default();
        group.partitions = partitions;
        let (member, changed) = group.join()?;
        Ok(Box::new(SimulatedMembership { shared: self.shared.clone(), key, member, changed }))
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>, Error> {
        let claim = self.shared.open()?.core.take(owner);
        Ok(Box::new(SimulatedWriter { shared: self.shared.clone(), claim, abandoned: false }))
    }
}

struct SimulatedReader {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    sources: Vec<(TopicPartition, u64)>,
    /// The source that the next read begins with.
    turn: usize,
}

impl SimulatedReader {
    /// What there is. None: nothing, and no position moved.
    fn look(&mut self, limit: ReadLimit) -> Result<Option<Vec<StoredRecord>>, Error> {
        let inner = self.shared.open()?;
        let (mut read, mut bytes, mut moved) = (Vec::new(), 0, false);
        let count = self.sources.len();
        for index in (0..count).map(|step| (self.turn + step) % count) {
            let (of, position) = &mut self.sources[index];
            let left = ReadLimit {
                records: limit.records.max(1).saturating_sub(read.len()),
                bytes: limit.bytes.saturating_sub(bytes),
            };
            if !read.is_empty() && (left.records == 0 || left.bytes == 0) {
                break;
            }
            let (mut records, mut next) = inner.core.read(of, *position, left)?;
            let size: usize = records.iter().map(|record| record.record.bytes()).sum();
            // A large record comes alone, also among the records of other partitions.
            if !read.is_empty() && size > left.bytes {
                next = *position;
                records.clear();
            }
            bytes += records.iter().map(|record| record.record.bytes()).sum::<usize>();
            moved |= next != *position;
            *position = next;
            read.extend(records);
        }
        self.turn = (self.turn + 1) % count.max(1);
        Ok((moved || !read.is_empty()).then_some(read))
    }
}

#[async_trait]
impl Reader for SimulatedReader {
    async fn read(&mut self, limit: ReadLimit) -> Result<Vec<StoredRecord>, Error> {
        loop {
            self.changed.mark_unchanged();
            if let Some(read) = self.look(limit)? {
                return Ok(read);
            }
            if self.changed.changed().await.is_err() {
                return Err(Error::Closed);
            }
        }
    }

    fn position(&self, of: &TopicPartition) -> Option<u64> {
        self.sources.iter().find(|(source, _)| source == of).map(|(_, position)| *position)
    }
}

struct SimulatedWriter {
    shared: Arc<Shared>,
    claim: Claim,
    /// A commit was dropped midway.
    abandoned: bool,
}

#[async_trait]
impl Writer for SimulatedWriter {
    async fn commit(&mut self, batch: Batch) -> Result<Vec<Position>, CommitError> {
        if std::mem::replace(&mut self.abandoned, true) {
            return Err(CommitError::Failed(Error::WriterSpent));
        }
        tokio::time::sleep(COMMIT).await;
        self.abandoned = false;
        let mut inner = self.shared.open().map_err(CommitError::Failed)?;
        let positions = inner.core.commit(&self.claim, batch, now())?;
        drop(inner);
        self.shared.wake_readers();
        Ok(positions)
    }
}

struct SimulatedMembership {
    shared: Arc<Shared>,
    key: (String, String),
    member: u64,
    changed: Arc<Notify>,
}

impl SimulatedMembership {
    /// Says that the last revocation was followed, and looks for the next change.
    fn step(&self) -> Result<Option<Change>, Error> {
        let mut inner = self.shared.open()?;
        let Some(group) = inner.groups.get_mut(&self.key) else { return Ok(None) };
        group.released(self.member);
        Ok(group.change(self.member))
    }
}

#[async_trait]
impl Membership for SimulatedMembership {
    async fn next(&mut self) -> Result<Ownership, Error> {
        let named = |partitions: std::collections::BTreeSet<u32>| {
            partitions.into_iter().map(|partition| TopicPartition::new(&*self.key.1, partition)).collect()
        };
        loop {
            match self.step()? {
                Some(Change::Assigned(partitions)) => return Ok(Ownership::Assigned(named(partitions))),
                Some(Change::Revoked(partitions)) => return Ok(Ownership::Revoked(named(partitions))),
                None => self.changed.notified().await,
            }
        }
    }
}

impl Drop for SimulatedMembership {
    fn drop(&mut self) {
        if let Some(group) = self.shared.lock().groups.get_mut(&self.key) {
            group.leave(self.member);
        }
    }
}
