//! What can go wrong with a partition, by what follows from it.

use longshore_processor::StateError;

/// Errors of a partition. All but one end its role, which then begins anew.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the log does not do its part")]
    Log(#[from] longshore_log::Error),
    #[error("a commit did not succeed")]
    Commit(#[from] longshore_log::CommitError),
    #[error("the state cannot be used")]
    State(#[from] StateError),
    #[error("fact {offset} of {partition} cannot be applied: {reason}")]
    Unappliable { partition: String, offset: u64, reason: String },
    #[error(
        "facts {applied} to {} of {partition} were removed from the log before they were applied here: stop this process, delete \
         its state folder and start it again, so that it begins from a snapshot. Without a snapshot that has them there is no way on",
        start - 1
    )]
    FactsLost { partition: String, applied: u64, start: u64 },
    #[error(
        "requests {next} to {} of {partition} were removed from the log before they were processed: what they asked for will not \
         happen. Nothing is decided here until that is accepted: `longshore log accept-loss {processor} {number} --from {next} \
         --to {start}`",
        start - 1
    )]
    RequestsLost { partition: String, processor: &'static str, number: u32, next: u64, start: u64 },
}

impl Error {
    /// Whether trying again can never help: the partition stays where it is on this replica.
    pub fn halts(&self) -> bool {
        matches!(self, Self::Unappliable { .. } | Self::FactsLost { .. })
    }

    /// Whether the stored state has seen facts that the log does not have: it belongs to another log.
    pub fn is_beyond_log(&self) -> bool {
        matches!(self, Self::Log(longshore_log::Error::BeyondEnd { .. }))
    }
}

/// An error and its causes in one line, for health and logs.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
