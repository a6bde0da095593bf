//! What a region decides, without I/O: what the log is to be told of its nodes, in which order reports stand, which goal is
//! the newest, which artifacts it still has to copy, and whose pack is copied next.
//!
//! The region's tasks carry it out, and so does the simulator. Not known here: buckets, sockets, files, time.

pub mod board;
pub mod hinted;
pub mod levels;
pub mod order;
pub mod pending;
pub mod scrub;
pub mod turns;
