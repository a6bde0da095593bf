//! The traits. Their comments are the contract; the conformance suite checks it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use longshore_schemas::Timestamp;

use crate::{Batch, CommitError, Error, Position, Record, StoredRecord, TopicPartition};

/// Ordered, durable, partitioned topics.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// How many partitions the topic has.
    fn partitions(&self, topic: &str) -> Result<u32, Error>;

    /// Writes the records, each on the partition of its key, in the order given. Durable when it returns.
    ///
    /// Not atomic: after an error, and after dropping the future, some of the records may be there. Retry with what the
    /// reader can recognise as a duplicate.
    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<Vec<Position>, Error>;

    /// Reads committed records of these partitions, each from the offset given on.
    ///
    /// An offset below the first retained one reads from the first retained one on. An offset beyond the end makes
    /// `read` fail with [`Error::BeyondEnd`]: whoever knows it has seen records that this log does not have.
    fn reader(&self, from: Vec<(TopicPartition, u64)>) -> Result<Box<dyn Reader>, Error>;

    /// The offset that the next record gets at the earliest. Everything below is durable and committed.
    async fn end_offset(&self, of: &TopicPartition) -> Result<u64, Error>;

    /// The first offset that retention has left.
    async fn start_offset(&self, of: &TopicPartition) -> Result<u64, Error>;

    /// The offset of the first record that the log took at `at` or later; the end if there is none.
    async fn offset_at(&self, of: &TopicPartition, at: Timestamp) -> Result<u64, Error>;

    /// Joins the group of those who share a topic's partitions: each partition belongs to at most one member.
    async fn join(&self, group: &str, topic: &str) -> Result<Box<dyn Membership>, Error>;

    /// Which member of a group has each partition of its topic, as the log calls it; empty where it does not say.
    async fn owners(&self, group: &str, topic: &str) -> Result<BTreeMap<u32, String>, Error> {
        let _ = (group, topic);
        Ok(BTreeMap::new())
    }

    /// What keeps the log from taking records, as its last attempt showed; `None` if nothing is known to.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// A writer of atomic batches. When this returns, every earlier writer of the same owner is fenced, and whatever it
    /// had committed is below [`Log::end_offset`]: nothing more of it can appear.
    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>, Error>;
}

/// How much one read may return. Each at least one; a record larger than `bytes` comes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    pub records: usize,
    /// Of keys, values and headers.
    pub bytes: usize,
}

impl Default for ReadLimit {
    fn default() -> Self {
        Self { records: 1_000, bytes: 1024 * 1024 }
    }
}

/// Reads some partitions, each in its order.
#[async_trait]
pub trait Reader: Send {
    /// Waits until there is something and returns it. Cancel safe: what a dropped read would have returned comes with
    /// the next one.
    ///
    /// May return nothing when only a position moved (over transaction markers, or records that compaction removed), so
    /// that `while position < end { read }` always ends. "Caught up" is the position reaching an end offset, never a
    /// count of records.
    async fn read(&mut self, limit: ReadLimit) -> Result<Vec<StoredRecord>, Error>;

    /// The first offset not read yet; may be ahead of the last record by more than one. `None` if this reader does not
    /// read that partition.
    fn position(&self, of: &TopicPartition) -> Option<u64>;
}

/// What changed for a member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// These are the member's now.
    Assigned(Vec<TopicPartition>),
    /// The member must stop with these; nobody else has them before it did.
    Revoked(Vec<TopicPartition>),
    /// The group has not been heard of for too long, so others may have these now. Whoever works with one goes on until
    /// it is fenced, and does not fence others: each is told as assigned again or as revoked, in a while at most.
    Unsure(Vec<TopicPartition>),
}

/// A place in a group; dropping it leaves the group.
#[async_trait]
pub trait Membership: Send {
    /// Waits for the next change. Cancel safe.
    ///
    /// Calling it again after [`Ownership::Revoked`] says that the member has stopped with what was revoked: only then is it
    /// assigned to another. (A member that says so too early, or never, is stopped by fencing, not by this.)
    async fn next(&mut self) -> Result<Ownership, Error>;
}

/// Writes atomic batches until another writer of the same owner is taken.
#[async_trait]
pub trait Writer: Send {
    /// Writes the whole batch or nothing of it; durable when it returns, and visible to readers then or a moment later: at
    /// the latest when another writer of this owner was taken. The positions are those of the records, in their order.
    ///
    /// After [`CommitError::Fenced`], [`CommitError::Ambiguous`] or a dropped future the writer is of no further use
    /// (further commits fail): take a new one, and read the log to learn what became of the batch.
    async fn commit(&mut self, batch: Batch) -> Result<Vec<Position>, CommitError>;
}
