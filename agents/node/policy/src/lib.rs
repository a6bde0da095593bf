//! What a node decides, without I/O: which goals it takes, what they mean for it, and what a service needs next.
//!
//! The agent carries it out on a machine, the simulator in a world that it makes up. Not known here: files, processes,
//! sockets, time.

mod goals;
pub mod plan;

pub use goals::{Wanted, is_news};
