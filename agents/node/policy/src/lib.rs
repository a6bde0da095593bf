//! What a node decides, without I/O: which goals it takes, what they mean for it, what a service needs next, what has room, which
//! steps a switch has, and whether a release is any good.
//!
//! The agent carries it out on a machine, the simulator in a world that it makes up. Not known here: files, processes,
//! sockets, time.

mod goals;
pub mod lifecycle;
pub mod limits;
pub mod plan;
pub mod room;
pub mod trial;
pub mod variables;

pub use goals::{Wanted, is_news};
