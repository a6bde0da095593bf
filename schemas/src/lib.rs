//! What all of Longshore shares: identifiers, events and how they are written, topics, and the types of the HTTP API and
//! of the stream between nodes and their region.
//!
//! This crate knows no I/O and no policy. Producers, processors and agents depend on it and not on each other.

pub mod auth;
pub mod avro;
pub mod codec;
pub mod envelope;
pub mod events;
pub mod evolution;
pub mod http;
pub mod ids;
pub mod labels;
pub mod letters;
pub mod nodes;
pub mod read;
pub mod stream;
pub mod time;
pub mod topics;

pub use ids::*;
pub use nodes::NodeSet;
pub use time::Timestamp;
