//! Snapshots: this process's RocksDB in a bucket, so that a new one reads only the facts that came later.
//!
//! ```text
//!   write    RocksDB ─checkpoint─▶ links to its files ─read through─▶ fingerprints ─▶ pieces ─▶ description (last)
//!   restore  descriptions, newest first ─check against the log─▶ pieces, each by its hash ─▶ fingerprints ─▶ RocksDB
//! ```
//!
//! - A snapshot is what its [`description`](Description) says, which is written last and carries its own hash; every byte
//!   of the rest is verified by hash before RocksDB sees it, and the tables by their fingerprints after.
//! - It belongs to one log: that is recognised by the installation's name, and by the last fact of each partition, which
//!   must be the same in both. So neither a foreign snapshot nor one of a log that was lost and begun anew is taken.
//! - What is wrong with one is logged, and the one before it is tried; without any, the log is read from its beginning.
//! - RocksDB's tables are in files that never change, so a snapshot uploads only what the ones before it have not.
//!
//! Deliberately not known here: which bucket it is ([`ObjectStore`]), and the time between snapshots but for its rule.

mod collect;
mod description;
mod known_log;
mod objects;
mod restore;
mod write;

use std::{path::PathBuf, sync::Arc, time::Duration};

use longshore_log::{Log, clock::Clock};
use longshore_processor::{StateError, TableInfo};
use longshore_schemas::events::Event;

pub use self::{
    description::{Description, File, LastFact, Partition, Piece},
    objects::{Object, ObjectError, ObjectStore},
    restore::{Restored, restore},
    write::Written,
};
use crate::{Rocks, Wire};

/// How snapshots are written and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whose log this is. Every control node of an installation has the same, and no other installation has it.
    pub installation: String,
    /// What people call this node.
    pub node: String,
    /// Between two snapshots, by whichever node.
    pub interval: Duration,
    /// Facts since the last one without which none is worth it.
    pub facts_min: u64,
    /// Of each node; older ones are removed. At least 1.
    pub keep: usize,
}

impl Settings {
    pub fn new(installation: impl Into<String>, node: impl Into<String>) -> Self {
        let interval = Duration::from_secs(10 * 60);
        Self { installation: installation.into(), node: node.into(), interval, facts_min: 10_000, keep: 3 }
    }
}

/// A processor, as snapshots know it.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    processor: &'static str,
    store_id: u8,
    state_version: u32,
    tables: &'static [TableInfo],
    facts: &'static str,
    partitions: u16,
}

impl Part {
    /// The processor whose place in RocksDB is `store_id`.
    pub fn of<P: Wire>(store_id: u8, log: &dyn Log) -> Result<Self, longshore_log::Error> {
        let partitions = log.partitions(P::Request::TOPIC.name)?;
        Ok(Self {
            processor: P::NAME,
            store_id,
            state_version: P::STATE_VERSION,
            tables: P::TABLES,
            facts: P::Fact::TOPIC.name,
            partitions: u16::try_from(partitions).unwrap_or(u16::MAX),
        })
    }
}

/// What snapshots are made of and where they go.
#[derive(Clone)]
pub struct Snapshots {
    pub objects: Arc<dyn ObjectStore>,
    pub log: Arc<dyn Log>,
    /// Those whose tables are in this RocksDB.
    pub parts: Vec<Part>,
    pub settings: Settings,
    pub clock: Clock,
}

/// Why a snapshot is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error("its description is damaged: {0}")]
    Description(String),
    #[error("its format is {found}, and this release reads {}", description::FORMAT)]
    Format { found: u32 },
    #[error("it is of the installation {found:?}, and this one is {expected:?}")]
    Installation { found: String, expected: String },
    #[error("its states are of other versions than this release's: {0}")]
    StateVersion(String),
    #[error("it ends at fact {offset} of {partition}, and the log at {end}: it is of another log, or facts were lost")]
    BeyondEnd { partition: String, offset: u64, end: u64 },
    #[error("fact {offset} of {partition} is another one in the log: it is of another log")]
    OtherFact { partition: String, offset: u64 },
    #[error("{file} is damaged: {reason}")]
    File { file: String, reason: String },
    #[error("its content is not what it says: {0}")]
    Content(String),
    #[error("it cannot be fetched")]
    Objects(#[from] ObjectError),
}

/// Why snapshots cannot be dealt with at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("snapshots cannot be reached")]
    Objects(#[from] ObjectError),
    #[error("the log does not do its part")]
    Log(#[from] longshore_log::Error),
    #[error("the state cannot be read")]
    State(#[from] StateError),
    #[error("the copy of the state cannot be used")]
    Copy(#[source] Box<crate::Error>),
    #[error("{} cannot be used: make room, or look at its rights", path.display())]
    Disk {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("a description cannot be written")]
    Encode(#[from] serde_json::Error),
    #[error("work in the background was broken off")]
    Broken(#[from] tokio::task::JoinError),
}

impl Error {
    fn disk(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { path, source }
    }
}

/// Writes snapshots of one RocksDB, one after the other.
pub struct Snapshotter {
    snapshots: Snapshots,
    rocks: Rocks,
    /// The name of this state folder among those who write to the bucket.
    node: String,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await?
}
