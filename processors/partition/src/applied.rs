//! How far a partition is.

use longshore_schemas::Timestamp;
use serde::{Deserialize, Serialize};

/// How far a partition's State is. Stored together with what it counts, both or neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Applied {
    /// The next fact to apply.
    pub fact_offset: u64,
    /// The next request to process, as the last `Processed` says.
    pub request_offset: u64,
    /// Of the last fact.
    pub sequence: u64,
    pub at: Timestamp,
}
