//! What can go wrong, by what follows from it.

use longshore_processor::StateError;
use longshore_schemas::codec::CodecError;

/// Errors of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the log does not do its part")]
    Log(#[from] longshore_log::Error),
    #[error("a commit did not succeed")]
    Commit(#[from] longshore_log::CommitError),
    #[error("the state cannot be used")]
    State(#[from] StateError),
    /// The folder of the projections.
    #[error("the state in {path} cannot be opened: {reason}; it is a projection of the log and may be deleted")]
    Open { path: String, reason: String },
    #[error("topic {topic} has {found} partitions where {expected} are needed: create it again with {expected}")]
    Partitions { topic: &'static str, found: u32, expected: u32 },
    #[error("fact {offset} of {partition} cannot be applied: {reason}")]
    Unappliable { partition: String, offset: u64, reason: String },
    #[error("an event cannot be written")]
    Codec(#[from] CodecError),
}

impl Error {
    /// Whether trying again can never help: the partition stays where it is on this replica.
    pub(crate) fn halts(&self) -> bool {
        matches!(self, Self::Unappliable { .. })
    }

    /// Whether the stored state has seen facts that the log does not have: it belongs to another log.
    pub(crate) fn is_beyond_log(&self) -> bool {
        matches!(self, Self::Log(longshore_log::Error::BeyondEnd { .. }))
    }
}

/// An error and its causes in one line, for health and logs.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
