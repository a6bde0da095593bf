//! What a region decides, without I/O: what the log is to be told of its nodes, in which order reports stand, which goal is
//! the newest, and which artifacts it still has to copy.
//!
//! The region's tasks carry it out, and so does the simulator. Not known here: buckets, sockets, files, time.

pub mod board;
pub mod levels;
pub mod order;
pub mod pending;
