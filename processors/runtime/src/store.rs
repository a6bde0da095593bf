//! Tables of bytes in one RocksDB.
//!
//! A key is the processor's id (1 byte), the partition (2 bytes), the table (1 byte) and the table's own key. Table 255
//! holds [`Applied`], written in the same batch as what it counts. The write-ahead log is not synced: after a power loss
//! an older state is there, complete up to its own [`Applied`], and the rest is read from the log of facts again.
//!
//! A write that fails, as on a full disk, makes RocksDB refuse all further ones until it is opened again. Until that
//! works its tables can still be read. Whoever applies facts must begin anew then: what it wrote last may be there or not,
//! which [`Epoch`] holds it to.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use longshore_partition::Projection;
use longshore_processor::{Changes, Order, Range, StateError, Store, Visit};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBRawIteratorWithThreadMode, Options, ReadOptions,
    SnapshotWithThreadMode, WriteBatch, checkpoint::Checkpoint,
};
use serde::{Deserialize, Serialize};

use crate::{Applied, Error};

/// Uncompressed blocks kept for reading, for all processors together.
const BLOCK_CACHE_BYTES: usize = 128 * 1024 * 1024;
/// The same for a copy that is read through once.
const COPY_BLOCK_CACHE_BYTES: usize = 8 * 1024 * 1024;
const WRITE_BUFFER_BYTES: usize = 32 * 1024 * 1024;
const ALL_WRITE_BUFFERS_BYTES: usize = 128 * 1024 * 1024;
const WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// Of a write buffer.
const MEMTABLE_BLOOM_RATIO: f64 = 0.05;
const OPEN_FILES_MAX: i32 = 1_000;
const INFO_LOG_BYTES_MAX: usize = 1024 * 1024;
const INFO_LOG_FILES_MAX: usize = 4;

/// The file without which RocksDB finds nothing in a folder.
pub(crate) const CURRENT: &str = "CURRENT";

/// The table of the runtime's own row; processors' tables stay below.
const RUNTIME_TABLE: u8 = 255;
const PREFIX_BYTES: usize = 3;

/// Between two attempts to open RocksDB again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// How long opening again waits for those who read.
const READERS_WAIT: Duration = Duration::from_secs(1);
const READERS_POLL: Duration = Duration::from_millis(5);

/// The RocksDB of this process. Clones share it.
#[derive(Clone)]
pub struct Rocks {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    state: RwLock<State>,
}

/// How often RocksDB was opened. What was read in one epoch is not written upon in the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Epoch(u64);

struct State {
    /// For reading at least; None only if it cannot be opened even for that.
    db: Option<Arc<DB>>,
    epoch: Epoch,
    /// Why it takes no writes, and when to try again.
    failing: Option<(String, Instant)>,
}

impl Shared {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn db(&self) -> Result<Arc<DB>, StateError> {
        let state = self.state();
        state.db.clone().ok_or_else(|| {
            unreadable(state.failing.as_ref().map_or_else(|| "it is not open".to_owned(), |(reason, _)| reason.clone()))
        })
    }

    fn write(&self, batch: WriteBatch, epoch: Epoch) -> Result<(), StateError> {
        if self.state().failing.is_some() {
            self.mend()?;
        }
        let db = {
            let state = self.state();
            if state.epoch != epoch {
                return Err(unreadable("it was opened again since it was read".to_owned()));
            }
            state.db.clone().ok_or_else(|| unreadable("it is not open".to_owned()))?
        };
        db.write(batch).map_err(|error| {
            let reason = error.to_string();
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            if state.failing.is_none() && state.epoch == epoch {
                tracing::error!(path = %self.path.display(), reason, "the projections cannot be written; they are read on");
                state.failing = Some((reason.clone(), Instant::now() + REOPEN_AFTER));
            }
            unreadable(reason)
        })
    }

    /// Opens RocksDB again if it is time for that. An error unless it takes writes now.
    fn mend(&self) -> Result<(), StateError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let Some((reason, due)) = &state.failing else { return Ok(()) };
        let reason = reason.clone();
        if Instant::now() < *due {
            return Err(unreadable(reason));
        }
        if let Some(db) = state.db.take()
            && let Err(used) = close(db)
        {
            (state.db, state.failing) = (Some(used), Some((reason.clone(), Instant::now() + REOPEN_AFTER)));
            return Err(unreadable(reason));
        }
        match DB::open(&options(BLOCK_CACHE_BYTES), &self.path) {
            Ok(db) => {
                tracing::info!(path = %self.path.display(), "the projections can be written again");
                (state.db, state.failing, state.epoch) = (Some(Arc::new(db)), None, Epoch(state.epoch.0 + 1));
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                state.failing = Some((reason.clone(), Instant::now() + REOPEN_AFTER));
                // Reading needs no space. What is in the write-ahead log is read into memory.
                let readable = DB::open_for_read_only(&options(BLOCK_CACHE_BYTES), &self.path, false);
                state.db = readable
                    .map(Arc::new)
                    .map_err(|error| tracing::error!(%error, "the projections cannot be read"))
                    .ok();
                Err(unreadable(reason))
            }
        }
    }
}

/// Closes RocksDB once nobody reads any more; gives it back if that takes too long.
fn close(mut db: Arc<DB>) -> Result<(), Arc<DB>> {
    let deadline = Instant::now() + READERS_WAIT;
    loop {
        db = match Arc::try_unwrap(db) {
            Ok(_closed) => return Ok(()),
            Err(used) if Instant::now() > deadline => return Err(used),
            Err(used) => used,
        };
        std::thread::sleep(READERS_POLL);
    }
}

impl Rocks {
    /// Opens or creates it. Blocks on the disk.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail = |reason: String| Error::Open { path: path.display().to_string(), reason };
        std::fs::create_dir_all(path).map_err(|e| fail(e.to_string()))?;
        let db = DB::open(&options(BLOCK_CACHE_BYTES), path).map_err(|e| fail(e.to_string()))?;
        let state = State { db: Some(Arc::new(db)), epoch: Epoch::default(), failing: None };
        Ok(Self { shared: Arc::new(Shared { path: path.to_owned(), state: RwLock::new(state) }) })
    }

    /// Whether there is one in this folder.
    pub(crate) fn is_in(path: &Path) -> bool {
        path.join(CURRENT).exists()
    }

    /// Opens a copy, to be read only. Blocks on the disk.
    pub(crate) fn open_copy(path: &Path) -> Result<Self, Error> {
        let fail = |reason: String| Error::Open { path: path.display().to_string(), reason };
        let db = DB::open_for_read_only(&options(COPY_BLOCK_CACHE_BYTES), path, false);
        let db = Some(Arc::new(db.map_err(|e| fail(e.to_string()))?));
        let state = State { db, epoch: Epoch::default(), failing: None };
        Ok(Self { shared: Arc::new(Shared { path: path.to_owned(), state: RwLock::new(state) }) })
    }

    /// Makes a copy of it as it is now in a folder that is not there yet, of links to its files. Blocks on the disk.
    pub(crate) fn copy_to(&self, path: &Path) -> Result<(), StateError> {
        let db = self.shared.db()?;
        let copied = Checkpoint::new(&db).and_then(|checkpoint| checkpoint.create_checkpoint(path));
        copied.map_err(|e| unreadable(e.to_string()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The tables of one partition of the processor with this id. Ids are chosen once and never change.
    pub fn partition(&self, processor: u8, partition: u16) -> PartitionStore {
        let [high, low] = partition.to_be_bytes();
        PartitionStore { shared: self.shared.clone(), prefix: [processor, high, low], epoch: self.shared.state().epoch }
    }
}

fn options(block_cache_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    table.set_block_cache(&Cache::new_lru_cache(block_cache_bytes));
    table.set_cache_index_and_filter_blocks(true);
    // In parts: the filter of a large file is larger than what one shard of the cache holds, and would be read whole, and
    // hashed, for every key that is looked up.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_pin_top_level_index_and_filter(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    // Most keys that are looked up are new requests' and not there: a filter spares the search for them.
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_RATIO);
    options.set_db_write_buffer_size(ALL_WRITE_BUFFERS_BYTES);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_keep_log_file_num(INFO_LOG_FILES_MAX);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options
}

/// Whose state a partition's tables are, and how far they are.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) processor: String,
    pub(crate) state_version: u32,
    pub(crate) applied: Applied,
}

/// One partition's tables, as they are at the moment of each read.
#[derive(Clone)]
pub struct PartitionStore {
    shared: Arc<Shared>,
    prefix: [u8; PREFIX_BYTES],
    /// In which what this one writes upon was read.
    epoch: Epoch,
}

impl PartitionStore {
    /// Keeps RocksDB open, to look at a [`Held::view`] of it. For a short while only: opening it again waits.
    pub fn hold(&self) -> Result<Held, StateError> {
        Ok(Held { db: self.shared.db()?, prefix: self.prefix })
    }
}

impl Projection for PartitionStore {
    fn begin(&mut self) -> Result<(), StateError> {
        if self.shared.state().failing.is_some() {
            self.shared.mend()?;
        }
        self.epoch = self.shared.state().epoch;
        Ok(())
    }

    fn applied(&self, processor: &str, state_version: u32) -> Result<Option<Applied>, StateError> {
        let row = self.hold()?.view().row()?;
        Ok(row.filter(|row| row.processor == processor && row.state_version == state_version).map(|row| row.applied))
    }

    fn apply(
        &mut self,
        changes: &Changes,
        processor: &str,
        state_version: u32,
        applied: Applied,
    ) -> Result<(), StateError> {
        let mut batch = WriteBatch::default();
        for ((table, key), value) in changes {
            let key = place(self.prefix, *table, key);
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        let row = Row { processor: processor.to_owned(), state_version, applied };
        let row = postcard::to_stdvec(&row).map_err(|e| unreadable(e.to_string()))?;
        batch.put(place(self.prefix, RUNTIME_TABLE, &[]), row);
        self.shared.write(batch, self.epoch)
    }

    fn clear(&mut self) -> Result<(), StateError> {
        let mut batch = WriteBatch::default();
        let from = place(self.prefix, 0, &[]);
        batch.delete_range(from, place(self.prefix, RUNTIME_TABLE, &[u8::MAX]));
        self.shared.write(batch, self.epoch)
    }
}

/// A partition's tables, kept open.
pub struct Held {
    db: Arc<DB>,
    prefix: [u8; PREFIX_BYTES],
}

impl Held {
    /// All tables as they are at one moment.
    pub fn view(&self) -> View<'_> {
        View { snapshot: self.db.snapshot(), prefix: self.prefix }
    }
}

impl Store for PartitionStore {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.shared.db()?.get(place(self.prefix, table, key)).map_err(|e| unreadable(e.to_string()))
    }

    fn scan(&self, table: u8, range: &Range, order: Order, visit: &mut Visit<'_>) -> Result<(), StateError> {
        let Some((from, to)) = bounds(self.prefix, table, range) else { return Ok(()) };
        let db = self.shared.db()?;
        walk(db.raw_iterator_opt(within(&from, &to)), order, visit)
    }
}

/// A partition's tables at one moment.
pub struct View<'a> {
    snapshot: SnapshotWithThreadMode<'a, DB>,
    prefix: [u8; PREFIX_BYTES],
}

impl View<'_> {
    pub(crate) fn row(&self) -> Result<Option<Row>, StateError> {
        // A row that cannot be read is of another release: the state is rebuilt.
        Ok(self.get(RUNTIME_TABLE, &[])?.and_then(|bytes| postcard::from_bytes(&bytes).ok()))
    }

    /// How far the state of this moment is.
    pub fn applied(&self) -> Result<Applied, StateError> {
        Ok(self.row()?.map(|row| row.applied).unwrap_or_default())
    }
}

impl Store for View<'_> {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.snapshot.get(place(self.prefix, table, key)).map_err(|e| unreadable(e.to_string()))
    }

    fn scan(&self, table: u8, range: &Range, order: Order, visit: &mut Visit<'_>) -> Result<(), StateError> {
        let Some((from, to)) = bounds(self.prefix, table, range) else { return Ok(()) };
        walk(self.snapshot.raw_iterator_opt(within(&from, &to)), order, visit)
    }
}

fn place(prefix: [u8; PREFIX_BYTES], table: u8, key: &[u8]) -> Vec<u8> {
    let mut place = Vec::with_capacity(PREFIX_BYTES + 1 + key.len());
    place.extend_from_slice(&prefix);
    place.push(table);
    place.extend_from_slice(key);
    place
}

/// None if the range is empty.
fn bounds(prefix: [u8; PREFIX_BYTES], table: u8, range: &Range) -> Option<(Vec<u8>, Vec<u8>)> {
    let from = place(prefix, table, &range.start);
    let to = match &range.end {
        Some(end) => place(prefix, table, end),
        None => place(prefix, table.checked_add(1)?, &[]),
    };
    (from < to).then_some((from, to))
}

fn within(from: &[u8], to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(to);
    options
}

fn walk(
    mut entries: DBRawIteratorWithThreadMode<'_, DB>,
    order: Order,
    visit: &mut Visit<'_>,
) -> Result<(), StateError> {
    match order {
        Order::Ascending => entries.seek_to_first(),
        Order::Descending => entries.seek_to_last(),
    }
    while let (Some(key), Some(value)) = (entries.key(), entries.value()) {
        let flow: ControlFlow<()> = visit(&key[PREFIX_BYTES + 1..], value)?;
        if flow.is_break() {
            return Ok(());
        }
        match order {
            Order::Ascending => entries.next(),
            Order::Descending => entries.prev(),
        }
    }
    entries.status().map_err(|e| unreadable(e.to_string()))
}

fn unreadable(reason: String) -> StateError {
    StateError::Unreadable { table: "of RocksDB", reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_processor::{Memory, StoreMut};

    fn rows(store: &dyn Store, table: u8, range: &Range, order: Order) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        store
            .scan(table, range, order, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                Ok(ControlFlow::Continue(()))
            })
            .expect("readable");
        rows
    }

    #[test]
    fn reads_as_memory_does_and_keeps_partitions_apart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let rocks = Rocks::open(folder.path()).expect("opens");
        let (mut one, other) = (rocks.partition(1, 0), rocks.partition(1, 1));
        let mut memory = Memory::default();
        let mut changes = Changes::new();
        for (table, key) in [(0u8, 0u8), (0, 3), (0, 255), (1, 1), (239, 7)] {
            memory.put(table, vec![key], vec![key, table]);
            changes.insert((table, vec![key]), Some(vec![key, table]));
        }
        let applied = Applied { fact_offset: 9, request_offset: 4, sequence: 9, at: Timestamp(5) };
        one.apply(&changes, "toy", 3, applied).expect("writes");
        let ranges = [
            Range::all(),
            Range { start: vec![1], end: Some(vec![255]) },
            Range { start: vec![9], end: Some(vec![2]) },
        ];
        for table in [0, 1, 2, 239] {
            for range in &ranges {
                for order in [Order::Ascending, Order::Descending] {
                    assert_eq!(rows(&one, table, range, order), rows(&memory, table, range, order));
                    assert_eq!(
                        rows(&one.hold().expect("open").view(), table, range, order),
                        rows(&memory, table, range, order)
                    );
                    assert!(rows(&other, table, range, order).is_empty());
                }
            }
        }
        assert_eq!(one.applied("toy", 3).expect("readable"), Some(applied));
        assert_eq!(one.applied("toy", 4).expect("readable"), None, "another version");
        assert_eq!(one.applied("other", 3).expect("readable"), None, "another processor");
        one.clear().expect("clears");
        assert_eq!(one.applied("toy", 3).expect("readable"), None);
        assert!(rows(&one, 239, &Range::all(), Order::Ascending).is_empty());
    }

    use longshore_schemas::Timestamp;
}
