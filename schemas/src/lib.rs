//! What all of Longshore shares.
pub mod ids;
pub mod time;
pub mod topics;

pub use ids::*;
pub use time::Timestamp;
