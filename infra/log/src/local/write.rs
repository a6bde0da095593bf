//! The writer thread: the one place where the log changes.
//!
//! ```text
//! queue ──drain──▶ group ──one WriteBatch, synced──▶ publish ends, wake readers ──▶ answer each operation
//!                                └─ failed ──▶ open RocksDB again ──▶ is the group there? ──▶ answer truly
//! ```
//!
//! While one group syncs, the next one gathers in the queue: that is the whole group commit. Fencing is decided here too, in
//! the same order as the writes, so a commit is either before its writer's successor or refused.
//!
//! This thread knows no key, no topic and no reader; it assigns offsets and times.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use longshore_schemas::Timestamp;
use rocksdb::WriteBatch;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{
    format::{self, Encoded},
    shared::{Shared, Slot},
    store::{Bounds, View, put},
};
use crate::{CommitError, Error, clock, error::Cause};

/// Content of one group; one operation more may exceed it.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Operations in one group.
const GROUP_OPERATIONS_MAX: usize = 8_192;
/// Owners remembered for fencing.
const OWNERS_MAX: usize = 65_536;
/// How long to wait before a broken store is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(200);

pub(super) type Outcome<T> = Result<T, CommitError>;
type Answer<T> = oneshot::Sender<Outcome<T>>;

/// What the thread can be asked.
pub(super) enum Op {
    /// Write these records; answers with their offsets.
    Write {
        /// The owner and epoch of a transactional writer.
        fence: Option<(Arc<str>, u64)>,
        records: Vec<(Slot, Encoded)>,
        consumed: Vec<(Slot, u64)>,
        /// The room that the operation takes in the queue.
        room: OwnedSemaphorePermit,
        answer: Answer<Vec<u64>>,
    },
    /// Fence all earlier writers of the owner; answers with the new epoch.
    TakeOver {
        owner: Arc<str>,
        room: OwnedSemaphorePermit,
        answer: Answer<u64>,
    },
    /// Delete everything below the offset.
    Trim {
        slot: Slot,
        start: u64,
        room: OwnedSemaphorePermit,
        answer: Answer<()>,
    },
    /// Delete these tombstones (record key and offset) where they are still the newest of their key.
    Bury {
        slot: Slot,
        tombstones: Vec<(Vec<u8>, u64)>,
        room: OwnedSemaphorePermit,
        answer: Answer<()>,
    },
    Close,
}

/// An answer that waits for the group to be durable.
enum Pending {
    Offsets(Answer<Vec<u64>>, Vec<u64>),
    Epoch(Answer<u64>, u64),
    Done(Answer<()>),
}

impl Pending {
    /// Whoever asked may have gone, which is their right.
    fn succeed(self) {
        match self {
            Self::Offsets(answer, offsets) => drop(answer.send(Ok(offsets))),
            Self::Epoch(answer, epoch) => drop(answer.send(Ok(epoch))),
            Self::Done(answer) => drop(answer.send(Ok(()))),
        }
    }

    fn fail(self, error: CommitError) {
        match self {
            Self::Offsets(answer, _) => drop(answer.send(Err(error))),
            Self::Epoch(answer, _) => drop(answer.send(Err(error))),
            Self::Done(answer) => drop(answer.send(Err(error))),
        }
    }
}

/// What is written together.
#[derive(Default)]
struct Group {
    batch: WriteBatch,
    pending: Vec<Pending>,
    room: Vec<OwnedSemaphorePermit>,
    /// What the partitions that this group touches will be.
    bounds: BTreeMap<Slot, Bounds>,
    /// For compacted topics: the newest offset of each key that this group writes, `None` for one that it removes.
    newest: HashMap<(Slot, Vec<u8>), Option<u64>>,
}

pub(super) struct WriterThread {
    shared: Arc<Shared>,
    queue: mpsc::UnboundedReceiver<Op>,
    /// Epochs live in memory only: the store's lock makes sure that no writer of an earlier process still runs.
    owners: HashMap<Arc<str>, u64>,
    /// What is durable, by slot.
    bounds: Vec<Bounds>,
    /// The number of the last group that is durable.
    group: u64,
    closing: bool,
}

impl WriterThread {
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: mpsc::UnboundedReceiver<Op>,
        bounds: Vec<Bounds>,
        group: u64,
    ) -> Self {
        Self { shared, queue, owners: HashMap::new(), bounds, group, closing: false }
    }

    /// Works until the log is closed, then closes the store.
    pub(super) fn run(mut self) {
        while !self.closing {
            let Some(first) = self.queue.blocking_recv() else { break };
            let group = self.gather(first);
            self.write(group);
        }
        self.queue.close();
        while let Ok(op) = self.queue.try_recv() {
            refuse(op, &Error::Closed);
        }
        self.shared.store.close();
    }

    fn gather(&mut self, first: Op) -> Group {
        let mut group = Group::default();
        let now = clock::now();
        let mut next = Some(first);
        while let Some(op) = next {
            self.add(op, now, &mut group);
            let full = group.batch.size_in_bytes() >= GROUP_BYTES_MAX || group.pending.len() >= GROUP_OPERATIONS_MAX;
            next = if full || self.closing { None } else { self.queue.try_recv().ok() };
        }
        group
    }

    fn add(&mut self, op: Op, now: Timestamp, group: &mut Group) {
        match op {
            Op::Close => self.closing = true,
            Op::TakeOver { owner, room, answer } => {
                group.room.push(room);
                match self.take_over(owner) {
                    Ok(epoch) => group.pending.push(Pending::Epoch(answer, epoch)),
                    Err(error) => drop(answer.send(Err(CommitError::Failed(error)))),
                }
            }
            Op::Write { fence, records, consumed, room, answer } => {
                group.room.push(room);
                if fence.as_ref().is_some_and(|(owner, epoch)| self.owners.get(owner) != Some(epoch)) {
                    return drop(answer.send(Err(CommitError::Fenced)));
                }
                let owner = fence.map(|(owner, _)| owner);
                match self.stage(group, records, owner.as_deref(), &consumed, now) {
                    Ok(offsets) => group.pending.push(Pending::Offsets(answer, offsets)),
                    Err(error) => drop(answer.send(Err(CommitError::Failed(error)))),
                }
            }
            Op::Trim { slot, start, room, answer } => {
                group.room.push(room);
                match self.trim(group, slot, start) {
                    Ok(()) => group.pending.push(Pending::Done(answer)),
                    Err(error) => drop(answer.send(Err(CommitError::Failed(error)))),
                }
            }
            Op::Bury { slot, tombstones, room, answer } => {
                group.room.push(room);
                match self.bury(group, slot, tombstones) {
                    Ok(()) => group.pending.push(Pending::Done(answer)),
                    Err(error) => drop(answer.send(Err(CommitError::Failed(error)))),
                }
            }
        }
    }

    fn take_over(&mut self, owner: Arc<str>) -> Result<u64, Error> {
        if !self.owners.contains_key(&owner) && self.owners.len() >= OWNERS_MAX {
            return Err(Error::TooMany { what: "owners of writers", limit: OWNERS_MAX });
        }
        let epoch = self.owners.entry(owner).or_insert(0);
        *epoch += 1;
        Ok(*epoch)
    }

    /// Puts the records into the group and gives them offsets and times. On an error nothing was put.
    fn stage(
        &self,
        group: &mut Group,
        records: Vec<(Slot, Encoded)>,
        owner: Option<&str>,
        consumed: &[(Slot, u64)],
        now: Timestamp,
    ) -> Result<Vec<u64>, Error> {
        self.shared.store.with(|view| {
            self.look_up_newest(view, group, &records)?;
            let mut offsets = Vec::with_capacity(records.len());
            for (slot, mut record) in records {
                let partition = &self.shared.partitions[slot];
                let bounds = group.bounds.entry(slot).or_insert(self.bounds[slot]);
                let offset = bounds.end;
                bounds.end += 1;
                bounds.at = bounds.at.max(now);
                if partition.compacted {
                    let older = group.newest.insert((slot, record.key().to_vec()), Some(offset)).flatten();
                    if let Some(older) = older {
                        group.batch.delete_cf(view.records(), format::record_key(partition.id, older));
                    }
                    put::newest(&mut group.batch, view, partition.id, record.key(), offset);
                }
                group.batch.put_cf(view.records(), format::record_key(partition.id, offset), record.stamped(bounds.at));
                offsets.push(offset);
            }
            for (slot, offset) in consumed {
                put::consumed(&mut group.batch, self.shared.partitions[*slot].id, owner.unwrap_or_default(), *offset);
            }
            Ok(offsets)
        })
    }

    /// Learns which older records the group's records replace, before anything is put: this can fail.
    fn look_up_newest(&self, view: &View<'_>, group: &mut Group, records: &[(Slot, Encoded)]) -> Result<(), Error> {
        for (slot, record) in records {
            let partition = &self.shared.partitions[*slot];
            if partition.compacted {
                newest(view, group, *slot, partition.id, record.key())?;
            }
        }
        Ok(())
    }

    fn trim(&self, group: &mut Group, slot: Slot, start: u64) -> Result<(), Error> {
        let partition = &self.shared.partitions[slot];
        self.shared.store.with(|view| {
            let bounds = group.bounds.entry(slot).or_insert(self.bounds[slot]);
            bounds.start = bounds.start.max(start.min(bounds.end));
            // From 0: whole files are dropped later, and must not bring back what an older deletion covered.
            let (from, to) = (format::record_key(partition.id, 0), format::record_key(partition.id, bounds.start));
            group.batch.delete_range_cf(view.records(), from, to);
            put::floor(&mut group.batch, partition.id, *bounds);
            Ok(())
        })
    }

    fn bury(&self, group: &mut Group, slot: Slot, tombstones: Vec<(Vec<u8>, u64)>) -> Result<(), Error> {
        let partition = &self.shared.partitions[slot];
        self.shared.store.with(|view| {
            let mut current = Vec::with_capacity(tombstones.len());
            for (key, offset) in tombstones {
                if newest(view, group, slot, partition.id, &key)? == Some(offset) {
                    current.push((key, offset));
                }
            }
            for (key, offset) in current {
                group.batch.delete_cf(view.records(), format::record_key(partition.id, offset));
                put::no_newest(&mut group.batch, view, partition.id, &key);
                group.newest.insert((slot, key), None);
            }
            let bounds = group.bounds.entry(slot).or_insert(self.bounds[slot]);
            put::floor(&mut group.batch, partition.id, *bounds);
            Ok(())
        })
    }

    fn write(&mut self, mut group: Group) {
        if group.batch.is_empty() {
            return self.succeed(group);
        }
        let number = self.group + 1;
        put::group(&mut group.batch, number);
        let batch = std::mem::take(&mut group.batch);
        let Err(error) = self.shared.store.with(|view| view.write(batch)) else {
            self.group = number;
            return self.succeed(group);
        };
        tracing::error!(error = %Chain(&error), operations = group.pending.len(), "a write to the log failed; opening its store again");
        match self.reopen() {
            Ok(durable) if durable == number => {
                self.group = number;
                self.succeed(group);
            }
            Ok(_) => group.fail(&CommitError::Failed(error)),
            Err(reopening) => {
                let source: Cause = Arc::new(error);
                group.fail(&CommitError::Ambiguous(Error::Unconfirmed { source }));
                let unsure: Vec<Slot> = group.bounds.keys().copied().collect();
                self.mend(reopening, &unsure);
            }
        }
    }

    fn succeed(&mut self, group: Group) {
        for (slot, bounds) in &group.bounds {
            self.bounds[*slot] = *bounds;
            self.shared.partitions[*slot].publish(bounds.start, bounds.end);
        }
        group.pending.into_iter().for_each(Pending::succeed);
    }

    /// Opens the store again; the number of the last group that is there.
    fn reopen(&self) -> Result<u64, Error> {
        self.shared.store.reopen()?;
        self.shared.store.with(|view| view.group())
    }

    /// Tries until the store opens again, refusing what is asked meanwhile, and then learns what became of the
    /// partitions that the failed group touched.
    fn mend(&mut self, mut error: Error, unsure: &[Slot]) {
        loop {
            std::thread::sleep(REOPEN_AFTER);
            while let Ok(op) = self.queue.try_recv() {
                match op {
                    Op::Close => self.closing = true,
                    op => refuse(op, &error),
                }
            }
            if self.closing {
                return;
            }
            match self.reopen().and_then(|group| self.reload(group, unsure)) {
                Ok(()) => return tracing::info!("the log's store is open again"),
                Err(again) => error = again,
            }
        }
    }

    fn reload(&mut self, group: u64, unsure: &[Slot]) -> Result<(), Error> {
        for slot in unsure {
            let partition = &self.shared.partitions[*slot];
            let bounds = self.shared.store.with(|view| view.bounds(partition.id))?;
            self.bounds[*slot] = bounds;
            partition.publish(bounds.start, bounds.end);
        }
        self.group = group;
        Ok(())
    }
}

impl Group {
    fn fail(&mut self, error: &CommitError) {
        for pending in self.pending.drain(..) {
            pending.fail(error.clone());
        }
    }
}

/// The newest offset of a key, this group's own records included.
fn newest(view: &View<'_>, group: &mut Group, slot: Slot, partition_id: u32, key: &[u8]) -> Result<Option<u64>, Error> {
    let entry = (slot, key.to_vec());
    if let Some(known) = group.newest.get(&entry) {
        return Ok(*known);
    }
    let stored = view.newest_offset(partition_id, key)?;
    group.newest.insert(entry, stored);
    Ok(stored)
}

fn refuse(op: Op, error: &Error) {
    let error = CommitError::Failed(error.clone());
    match op {
        Op::Write { answer, .. } => drop(answer.send(Err(error))),
        Op::TakeOver { answer, .. } => drop(answer.send(Err(error))),
        Op::Trim { answer, .. } | Op::Bury { answer, .. } => drop(answer.send(Err(error))),
        Op::Close => {}
    }
}

/// An error with its causes, for one line of a log.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(next) = cause {
            write!(f, ": {next}")?;
            cause = next.source();
        }
        Ok(())
    }
}
