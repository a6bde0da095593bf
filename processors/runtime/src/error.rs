//! What can go wrong, by what follows from it.

use longshore_processor::StateError;

/// Errors of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Partition(#[from] longshore_partition::Error),
    #[error("the log does not do its part")]
    Log(#[from] longshore_log::Error),
    #[error("the state cannot be used")]
    State(#[from] StateError),
    /// The folder of the projections.
    #[error("the state in {path} cannot be opened: {reason}; it is a projection of the log and may be deleted")]
    Open { path: String, reason: String },
    #[error("topic {topic} has {found} partitions where {expected} are needed: create it again with {expected}")]
    Partitions { topic: &'static str, found: u32, expected: u32 },
}

impl Error {
    /// Whether a committed fact cannot be applied: trying again can never help.
    pub fn halts(&self) -> bool {
        matches!(self, Self::Partition(error) if error.halts())
    }
}
