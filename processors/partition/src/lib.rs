//! One partition of one processor, without I/O: who leads, what is applied, and in which order.
//!
//! ```text
//!   assignment, answers ──▶ Machine::handle ──▶ one effect: read, ask, take a writer, commit, rest
//!                             │        ▲                │
//!                             ▼        └──── answer ────┘  carried out by the runtime, or by the simulator
//!                     Replica ─▶ Projection (RocksDB, or memory that forgets)
//! ```
//!
//! - [`machine`]: follower and leader of one partition. Every order that matters is in here: fence, then read the end, then
//!   apply up to it, then lead; the time before the ends; commit before apply; nothing after a commit that may have failed.
//! - [`loss`]: how a person passes over requests that the log has lost.
//! - [`step`]: what a batch of requests, signals and deadlines becomes.
//! - [`Gate`]: which requests are believed, and what processors write for each other is signed.
//! - [`replica`]: the State, and the only way it changes.
//!
//! Deliberately not known here: tasks, clocks, which log this is and where State is kept.

mod applied;
mod error;
mod gate;
pub mod loss;
pub mod machine;
pub mod replica;
pub mod step;
mod wire;

pub use applied::Applied;
pub use error::{Error, chain};
pub use gate::{Gate, Keyring, seal};
pub use machine::{Answer, Around, Effect, Machine, Question, Role, Status, owner};
pub use replica::{Listener, Projection, Replica, apply_record};
pub use wire::Wire;
