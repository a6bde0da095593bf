//! The runtime: drives the pure heart of a processor over the log, and keeps its State in RocksDB.
//!
//! ```text
//!  request partition ─┐                        ┌─▶ fact partition ┐
//!  signal partition  ─┼─▶ Leader::step ─▶ one ─┼─▶ next requests  ├─ then ─▶ one RocksDB batch ─▶ outcomes, observer
//!  clock, deadlines  ─┘   (sans-IO)   commit   └─▶ dead letters   ┘          {changes, applied}
//! ```
//!
//! One task per partition, in one of two roles. A *follower* reads the facts that others committed and applies them. A
//! *leader* takes over in this order: fence the predecessor, read the fact partition's end, apply up to it, continue after
//! the last `Processed`. Both apply through [`replica`], so a standby is what a leader would be.
//!
//! - [`step`]: what a batch of requests, signals and deadlines becomes. Knows no I/O, no clock and no task.
//! - [`partition`](mod@partition): the task: an async `select` that returns an action, and a sync part that acts.
//! - [`store`]: tables of bytes in one RocksDB per process. Its log is not synced: the log of facts is the durability.
//! - [`service`]: all partitions of one processor, and the handle that others hold.
//! - [`replay`]: the State from zero, without a disk.
//!
//! The order is always log first, RocksDB second, so RocksDB never holds what the log does not. What breaks stays in its
//! partition: a committed fact that cannot be applied halts that partition on this replica, and nothing else.
//!
//! Deliberately not known here: what events mean, which processors there are, HTTP, and which log this is.

mod error;
mod outcomes;
mod partition;
mod replay;
mod replica;
mod service;
pub mod step;
mod store;
mod wire;

pub use error::Error;
pub use outcomes::Applied;
pub use partition::{Role, Status};
pub use replay::{Replayed, replay};
pub use service::{Clock, Config, Handle, Health, Observer, Runtime, system_clock};
pub use store::{Held, PartitionStore, Rocks, View};
pub use wire::Wire;
