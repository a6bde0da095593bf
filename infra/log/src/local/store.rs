//! RocksDB: what lies where, and opening it again after a failure.
//!
//! ```text
//! column family   key                              value
//! records         partition id, offset             the record (see `format`)
//! newest          partition id, record key         offset: compacted topics only
//! default         "format"                         u32
//!                 "group"                          number of the last group written u64
//!                 "next-partition-id"              u32
//!                 "topic/" name                    first partition id u32, partitions u32, compacted u8
//!                 "floor/" partition id            start u64, end at least u64, time at least i64
//!                 "consumed/" partition id, owner  first offset not consumed u64
//! ```
//!
//! The end of a partition is its last record's offset plus one, or its floor, which remembers the end where deletion
//! took the last record away. The group number tells, after a failed write, whether it reached the disk all the same.
//!
//! A failed write leaves RocksDB refusing all further ones, so the store closes it and opens it again: recovery moves
//! whatever the write-ahead log holds into a synced table file, after which what can be read is durable.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use longshore_schemas::Timestamp;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, DBWithThreadMode, Options, ReadOptions,
    SingleThreaded, WriteBatch, WriteOptions,
};

use super::format::{self, FORMAT};
use crate::{Error, TopicConfig, error::Cause};

pub(super) type Db = DBWithThreadMode<SingleThreaded>;

const RECORDS: &str = "records";
const NEWEST: &str = "newest";

const WRITE_BUFFER_BYTES: usize = 32 * 1024 * 1024;
const ALL_WRITE_BUFFERS_BYTES: usize = 96 * 1024 * 1024;
const WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
const OPEN_FILES_MAX: i32 = 1_000;
const INFO_LOG_BYTES_MAX: usize = 1024 * 1024;
const INFO_LOG_FILES_MAX: usize = 4;

/// A partition's bounds as the disk has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) start: u64,
    pub(super) end: u64,
    /// No record may be stamped earlier.
    pub(super) at: Timestamp,
}

enum State {
    Open(Box<Db>),
    /// A write failed and opening it again did too.
    Broken(Cause),
    Closed,
}

pub(super) struct Store {
    path: PathBuf,
    state: RwLock<State>,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        create_folder(path)?;
        let db = open_db(path).map_err(|source| classify(path, source))?;
        let store = Self { path: path.to_owned(), state: RwLock::new(State::Open(Box::new(db))) };
        store.check_format()?;
        Ok(store)
    }

    /// Runs `work` on the open database. The database cannot be closed meanwhile.
    pub(super) fn with<T>(&self, work: impl FnOnce(&View<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open(db) => work(&View { db }),
            State::Broken(cause) => {
                Err(Error::Storage { doing: "opening again after a failed write", source: cause.clone() })
            }
            State::Closed => Err(Error::Closed),
        }
    }

    /// Closes the database and opens it again, waiting for the reads under way.
    pub(super) fn reopen(&self) -> Result<(), Error> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Closed) {
            return Err(Error::Closed);
        }
        // Dropping the old one first releases its lock file.
        *state = State::Closed;
        match open_db(&self.path) {
            Ok(db) => {
                *state = State::Open(Box::new(db));
                Ok(())
            }
            Err(source) => {
                let cause: Cause = Arc::new(source);
                *state = State::Broken(cause.clone());
                Err(Error::Storage { doing: "opening again after a failed write", source: cause })
            }
        }
    }

    pub(super) fn close(&self) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State::Closed;
    }

    fn check_format(&self) -> Result<(), Error> {
        self.with(|view| match view.get(b"format")? {
            Some(found) if found == FORMAT.to_be_bytes() => Ok(()),
            Some(found) => {
                let found = <[u8; 4]>::try_from(found.as_slice())
                    .map_or_else(|_| "unknown".to_owned(), |found| u32::from_be_bytes(found).to_string());
                Err(Error::Format { path: self.path.clone(), found, expected: FORMAT })
            }
            None => {
                let mut batch = WriteBatch::default();
                batch.put(b"format", FORMAT.to_be_bytes());
                view.write(batch)
            }
        })
    }

    /// The id of each topic's first partition, in the order of `topics`; creates those that are not there yet.
    pub(super) fn create_topics(&self, topics: &[TopicConfig]) -> Result<Vec<u32>, Error> {
        self.with(|view| {
            let mut batch = WriteBatch::default();
            let mut next_id = view.number::<4>(b"next-partition-id")?.map_or(0, u32::from_be_bytes);
            let mut first_ids = Vec::with_capacity(topics.len());
            for topic in topics {
                let key = [b"topic/", topic.name.as_bytes()].concat();
                let first_id = match view.get(&key)? {
                    Some(stored) => existing_topic(topic, &stored)?,
                    None => {
                        let entry =
                            TopicEntry { first_id: next_id, partitions: topic.partitions, compacted: topic.compacted };
                        batch.put(&key, entry.encode());
                        next_id = next_id
                            .checked_add(topic.partitions)
                            .ok_or(Error::TooMany { what: "partitions", limit: u32::MAX as usize })?;
                        entry.first_id
                    }
                };
                first_ids.push(first_id);
            }
            if !batch.is_empty() {
                batch.put(b"next-partition-id", next_id.to_be_bytes());
                view.write(batch)?;
            }
            Ok(first_ids)
        })
    }
}

/// What can be done with the open database.
pub(super) struct View<'a> {
    db: &'a Db,
}

impl View<'_> {
    /// Writes the batch, all or nothing, and syncs it to the disk.
    pub(super) fn write(&self, batch: WriteBatch) -> Result<(), Error> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(|source| failed("writing", source))
    }

    pub(super) fn records(&self) -> &ColumnFamily {
        self.db.cf_handle(RECORDS).expect("opening creates every column family")
    }

    pub(super) fn newest(&self) -> &ColumnFamily {
        self.db.cf_handle(NEWEST).expect("opening creates every column family")
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.db.get(key).map_err(|source| failed("reading", source))
    }

    fn number<const N: usize>(&self, key: &[u8]) -> Result<Option<[u8; N]>, Error> {
        let Some(stored) = self.get(key)? else { return Ok(None) };
        let number = stored
            .try_into()
            .map_err(|_| corrupt(&String::from_utf8_lossy(key), "it is not a number of the right size"))?;
        Ok(Some(number))
    }

    /// The number of the last group written.
    pub(super) fn group(&self) -> Result<u64, Error> {
        Ok(self.number(b"group")?.map_or(0, u64::from_be_bytes))
    }

    /// What `owner` has last said it consumed of the partition.
    pub(super) fn consumed(&self, partition_id: u32, owner: &str) -> Result<Option<u64>, Error> {
        Ok(self.number(&consumed_key(partition_id, owner))?.map(u64::from_be_bytes))
    }

    /// The offset of the newest record of a key in a compacted topic.
    pub(super) fn newest_offset(&self, partition_id: u32, key: &[u8]) -> Result<Option<u64>, Error> {
        let stored =
            self.db.get_cf(self.newest(), newest_key(partition_id, key)).map_err(|source| failed("reading", source))?;
        let Some(stored) = stored else { return Ok(None) };
        let offset = stored.try_into().map_err(|_| corrupt(&partition_id, "the index of its keys is damaged"))?;
        Ok(Some(u64::from_be_bytes(offset)))
    }

    pub(super) fn bounds(&self, partition_id: u32) -> Result<Bounds, Error> {
        let floor = match self.number::<24>(&floor_key(partition_id))? {
            Some(floor) => decode_floor(&floor),
            None => Bounds { start: 0, end: 0, at: Timestamp::from_millis(0) },
        };
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(format::record_key(partition_id, 0));
        let mut iterator = self.db.raw_iterator_cf_opt(self.records(), options);
        iterator.seek_for_prev(format::record_key(partition_id, u64::MAX));
        let Some((key, value)) = iterator.item() else {
            iterator.status().map_err(|source| failed("reading", source))?;
            return Ok(floor);
        };
        let (Some(offset), Some(at)) = (format::offset_of(key), format::time_of(value)) else {
            return Err(corrupt(&partition_id, "its last record is damaged"));
        };
        Ok(Bounds { start: floor.start, end: floor.end.max(offset + 1), at: floor.at.max(at) })
    }

    /// Goes through the stored records of `from..to` in order, until `each` says false. Whether it went through all.
    pub(super) fn scan(
        &self,
        partition_id: u32,
        from: u64,
        to: u64,
        mut each: impl FnMut(u64, &[u8]) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(format::record_key(partition_id, to));
        let mut iterator = self.db.raw_iterator_cf_opt(self.records(), options);
        iterator.seek(format::record_key(partition_id, from));
        while let Some((key, value)) = iterator.item() {
            let offset = format::offset_of(key).ok_or_else(|| corrupt(&partition_id, "a record's key is damaged"))?;
            if !each(offset, value)? {
                return Ok(false);
            }
            iterator.next();
        }
        iterator.status().map_err(|source| failed("reading", source))?;
        Ok(true)
    }

    /// Gives the disk space below `to` back where whole files hold nothing else. The records are deleted already.
    pub(super) fn drop_files(&self, partition_id: u32, to: u64) -> Result<(), Error> {
        let (from, to) = (format::record_key(partition_id, 0), format::record_key(partition_id, to));
        self.db.delete_file_in_range_cf(self.records(), from, to).map_err(|source| failed("dropping old files", source))
    }
}

/// The batch operations that need to know the layout.
pub(super) mod put {
    use super::*;

    pub(in crate::local) fn group(batch: &mut WriteBatch, group: u64) {
        batch.put(b"group", group.to_be_bytes());
    }

    pub(in crate::local) fn consumed(batch: &mut WriteBatch, partition_id: u32, owner: &str, offset: u64) {
        batch.put(consumed_key(partition_id, owner), offset.to_be_bytes());
    }

    pub(in crate::local) fn floor(batch: &mut WriteBatch, partition_id: u32, floor: Bounds) {
        let value = [floor.start.to_be_bytes(), floor.end.to_be_bytes(), floor.at.millis().to_be_bytes()].concat();
        batch.put(floor_key(partition_id), value);
    }

    pub(in crate::local) fn newest(
        batch: &mut WriteBatch,
        view: &View<'_>,
        partition_id: u32,
        key: &[u8],
        offset: u64,
    ) {
        batch.put_cf(view.newest(), newest_key(partition_id, key), offset.to_be_bytes());
    }

    pub(in crate::local) fn no_newest(batch: &mut WriteBatch, view: &View<'_>, partition_id: u32, key: &[u8]) {
        batch.delete_cf(view.newest(), newest_key(partition_id, key));
    }
}

fn newest_key(partition_id: u32, key: &[u8]) -> Vec<u8> {
    [&partition_id.to_be_bytes(), key].concat()
}

fn consumed_key(partition_id: u32, owner: &str) -> Vec<u8> {
    [b"consumed/".as_slice(), &partition_id.to_be_bytes(), owner.as_bytes()].concat()
}

fn floor_key(partition_id: u32) -> Vec<u8> {
    [b"floor/".as_slice(), &partition_id.to_be_bytes()].concat()
}

fn decode_floor(stored: &[u8; 24]) -> Bounds {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&stored[at..at + 8]);
        bytes
    };
    Bounds {
        start: u64::from_be_bytes(number(0)),
        end: u64::from_be_bytes(number(8)),
        at: Timestamp::from_millis(i64::from_be_bytes(number(16))),
    }
}

struct TopicEntry {
    first_id: u32,
    partitions: u32,
    compacted: bool,
}

impl TopicEntry {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(9);
        bytes.extend_from_slice(&self.first_id.to_be_bytes());
        bytes.extend_from_slice(&self.partitions.to_be_bytes());
        bytes.push(u8::from(self.compacted));
        bytes
    }

    fn decode(stored: &[u8]) -> Option<Self> {
        let (first_id, rest) = stored.split_first_chunk::<4>()?;
        let (partitions, rest) = rest.split_first_chunk::<4>()?;
        let [compacted] = rest else { return None };
        let (first_id, partitions) = (u32::from_be_bytes(*first_id), u32::from_be_bytes(*partitions));
        Some(Self { first_id, partitions, compacted: *compacted == 1 })
    }
}

/// Checks that the topic is still what it was created as; gives its first partition's id.
fn existing_topic(topic: &TopicConfig, stored: &[u8]) -> Result<u32, Error> {
    let entry =
        TopicEntry::decode(stored).ok_or_else(|| corrupt(&topic.name, "its entry in the topic table is damaged"))?;
    if entry.partitions == topic.partitions && entry.compacted == topic.compacted {
        return Ok(entry.first_id);
    }
    Err(Error::TopicChanged {
        topic: topic.name.clone(),
        existing: describe(entry.partitions, entry.compacted),
        wanted: describe(topic.partitions, topic.compacted),
    })
}

fn describe(partitions: u32, compacted: bool) -> String {
    let plural = if partitions == 1 { "" } else { "s" };
    let compaction = if compacted { "compaction" } else { "no compaction" };
    format!("{partitions} partition{plural} and {compaction}")
}

/// RocksDB syncs what it makes inside the folder; the folder's own name, and those of its parents, are ours to sync. Each
/// time: an earlier process may have made them and died before it came to that.
fn create_folder(path: &Path) -> Result<(), Error> {
    let io = |source: std::io::Error| Error::Storage { doing: "creating its folder", source: Arc::new(source) };
    std::fs::create_dir_all(path).map_err(io)?;
    for parent in path.canonicalize().map_err(io)?.ancestors().skip(1) {
        match std::fs::File::open(parent).and_then(|parent| parent.sync_all()) {
            // Another user's, whose care it is.
            Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => return Err(io(error)),
            _ => {}
        }
    }
    Ok(())
}

fn open_db(path: &Path) -> Result<Db, rocksdb::Error> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // After a power loss the unsynced tail of the write-ahead log may have holes. Everything acknowledged lies before it.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_db_write_buffer_size(ALL_WRITE_BUFFERS_BYTES);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_keep_log_file_num(INFO_LOG_FILES_MAX);
    let families = [rocksdb::DEFAULT_COLUMN_FAMILY_NAME, RECORDS, NEWEST].map(|name| {
        let mut options = Options::default();
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_compression_type(DBCompressionType::Lz4);
        ColumnFamilyDescriptor::new(name, options)
    });
    Db::open_cf_descriptors(&options, path, families)
}

/// Tells a lock that another process holds from a broken disk.
fn classify(path: &Path, source: rocksdb::Error) -> Error {
    let message: &str = source.as_ref();
    let held = ["Resource temporarily unavailable", "No locks available", "lock hold by current process"];
    if message.contains("LOCK") && held.iter().any(|text| message.contains(text)) {
        return Error::InUse { path: path.to_owned() };
    }
    failed("opening", source)
}

fn failed(doing: &'static str, source: rocksdb::Error) -> Error {
    Error::Storage { doing, source: Arc::new(source) }
}

fn corrupt(at: &(impl ToString + ?Sized), reason: &'static str) -> Error {
    Error::Corrupt { at: at.to_string(), reason }
}
