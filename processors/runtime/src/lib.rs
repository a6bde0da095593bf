//! The runtime: drives the pure heart of a processor over the log, and keeps its State in RocksDB.
//!
//! ```text
//!  request partition ─┐                        ┌─▶ fact partition ┐
//!  signal partition  ─┼─▶ Leader::step ─▶ one ─┼─▶ next requests  ├─ then ─▶ one RocksDB batch ─▶ outcomes, observer
//!  clock, deadlines  ─┘   (sans-IO)   commit   └─▶ dead letters   ┘          {changes, applied}
//! ```
//!
//! What a partition does, and in which order, is decided without I/O in [`longshore_partition`]: one task per partition
//! carries out what it asks for. The State is in RocksDB, and every replica of it follows the facts, so a standby is what a
//! leader would be.
//!
//! - [`partition`](mod@partition): the task. It waits and carries out, and decides nothing.
//! - [`store`]: tables of bytes in one RocksDB per process. Its log is not synced: the log of facts is the durability.
//! - [`service`]: all partitions of one processor, and the handle that others hold.
//! - [`replay`]: the State from zero, without a disk.
//! - [`snapshot`]: the RocksDB in a bucket, and from there: what spares a new process the reading of all facts.
//!
//! The order is always log first, RocksDB second, so RocksDB never holds what the log does not. What breaks stays in its
//! partition: a committed fact that cannot be applied halts that partition on this replica, and nothing else.
//!
//! Deliberately not known here: what events mean, which processors there are, HTTP, buckets (snapshots see a trait), and
//! which log this is.

mod error;
mod last;
mod loss;
mod outcomes;
mod partition;
mod past;
mod replay;
mod service;
mod shared;
pub mod snapshot;
mod store;

pub use error::Error;
pub use longshore_log::clock::{Clock, system_clock};
pub use longshore_partition::{
    Applied, Gate, Keyring, Projection, Role, Status, Wire, chain,
    loss::{Lost, Refused},
    seal, step,
};
pub use loss::AcceptError;
pub use replay::{Replayed, replay};
pub use service::{Config, Handle, Health, Observer, Runtime};
pub use store::{Held, PartitionStore, Rocks, View};
