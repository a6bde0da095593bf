//! A disk that forgets what was not synced: where the simulated replicas keep their States.

use std::{cell::Cell, rc::Rc};

use longshore_partition::{Applied, Projection};
use longshore_processor::{Changes, Memory, Order, Range, StateError, Store, StoreMut, Visit};

use crate::rng::Rng;

/// Batches that a disk holds back at most before it syncs them.
const UNSYNCED_MAX: usize = 40;

/// What all the states of one process share.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Nothing can be written.
    pub(crate) full: Cell<bool>,
}

type Row = (String, u32, Applied);

#[derive(Debug, Clone, Default)]
struct Image {
    tables: Memory,
    row: Option<Row>,
}

impl Image {
    fn write(&mut self, changes: &Changes, row: Row) {
        for ((table, key), value) in changes.clone() {
            match value {
                Some(value) => self.tables.put(table, key, value),
                None => self.tables.delete(table, key),
            }
        }
        self.row = Some(row);
    }
}

/// One partition's State on one replica. Like RocksDB with a log that is not synced, it is after a crash as it was after
/// some earlier write.
#[derive(Debug, Clone)]
pub(crate) struct SimStore {
    disk: Rc<Disk>,
    now: Image,
    synced: Image,
    unsynced: Vec<(Changes, Row)>,
}

impl SimStore {
    pub(crate) fn new(disk: Rc<Disk>) -> Self {
        Self { disk, now: Image::default(), synced: Image::default(), unsynced: Vec::new() }
    }

    /// What a new process finds: some of the last writes are gone.
    pub(crate) fn after_crash(&self, rng: &mut Rng, disk: Rc<Disk>) -> Self {
        let kept = rng.index(self.unsynced.len() + 1);
        let mut image = self.synced.clone();
        for (changes, row) in &self.unsynced[..kept] {
            image.write(changes, row.clone());
        }
        Self { disk, now: image.clone(), synced: image, unsynced: Vec::new() }
    }
}

impl SimStore {
    /// The same on another disk, all of it synced.
    pub(crate) fn restored(&self, disk: Rc<Disk>) -> Self {
        Self { disk, now: self.now.clone(), synced: self.now.clone(), unsynced: Vec::new() }
    }
}

impl Store for SimStore {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.now.tables.get(table, key)
    }

    fn scan(&self, table: u8, range: &Range, order: Order, visit: &mut Visit<'_>) -> Result<(), StateError> {
        self.now.tables.scan(table, range, order, visit)
    }
}

impl Projection for SimStore {
    fn applied(&self, processor: &str, state_version: u32) -> Result<Option<Applied>, StateError> {
        let row = self.now.row.as_ref();
        Ok(row.filter(|(name, version, _)| (name.as_str(), *version) == (processor, state_version)).map(|row| row.2))
    }

    fn apply(
        &mut self,
        changes: &Changes,
        processor: &str,
        state_version: u32,
        applied: Applied,
    ) -> Result<(), StateError> {
        if self.disk.full.get() {
            return Err(StateError::Unreadable { table: "of the disk", reason: "it is full".to_owned() });
        }
        let row = (processor.to_owned(), state_version, applied);
        self.now.write(changes, row.clone());
        self.unsynced.push((changes.clone(), row));
        if self.unsynced.len() > UNSYNCED_MAX {
            for (changes, row) in self.unsynced.drain(..UNSYNCED_MAX / 2) {
                self.synced.write(&changes, row);
            }
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), StateError> {
        *self = Self::new(self.disk.clone());
        Ok(())
    }
}
