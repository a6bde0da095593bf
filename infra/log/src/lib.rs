//! The log: ordered, durable, partitioned topics behind one trait, shaped for Kafka's transactions.
//!
//! ```text
//! append ─────────────┐                            ┌─▶ reader  (committed records only, waits for more)
//! writer.commit ──────┼─▶ topic ─▶ partition 0…n ──┤
//!  (one batch, fenced │                            └─▶ end_offset, start_offset, offset_at
//!   by owner)         │
//! join ─▶ membership ─┴─ who may speak for which partition: assigned, revoked
//! ```
//!
//! - [`Log::append`] is for those who ask: producers, reporters. Durable when it returns, not atomic.
//! - [`Log::writer`] is for those who own: a processor commits facts, next requests and the offsets it consumed as one
//!   atomic [`Batch`]. Taking a writer fences every earlier one of the same owner, so a predecessor that still runs
//!   cannot write any more.
//! - [`Log::reader`] never shows what is not both durable and committed.
//!
//! Implementations are features: `local` is the embedded log, `simulated` the one of simulations. The suite in `conformance` (a feature of that name) says what
//! all implementations have in common.
//!
//! [`clock`] is the time that records are stamped with, and that all parts of a process share.
//!
//! This crate deliberately does not know what a record means: keys, values and headers are bytes. It knows no Avro, no
//! processor and no list of topics.

mod api;
pub mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod ends;
mod error;
#[cfg(any(feature = "local", feature = "simulated"))]
mod group;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "local")]
pub mod local;
mod record;
#[cfg(feature = "simulated")]
pub mod simulated;
mod size;

pub use api::{Log, Membership, Ownership, ReadLimit, Reader, Writer};
pub use ends::end_of_records;
pub use error::{Cause, CommitError, Error};
pub use record::{Batch, Destination, Position, Record, StoredRecord, TopicConfig, TopicPartition};
pub use size::{Size, size};

/// Largest record in bytes: key, value and headers together.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;

/// Largest append or commit in bytes: all its records together.
pub const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most records in one append or commit.
pub const BATCH_RECORDS_MAX: usize = 100_000;
