//! Accepts that requests are lost, by a commit in place of the partition's leader, which is halted.

use longshore_log::{Batch, CommitError, Log, TopicPartition};
use longshore_partition::loss::{self, Found, Lost};
use longshore_schemas::{Timestamp, events::Event};

use crate::{Wire, last::last_before};

/// Why a loss was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("there is no partition {partition} of {processor}")]
    NoPartition { processor: &'static str, partition: u32 },
    #[error(transparent)]
    Refused(#[from] loss::Refused),
    #[error("the log does not do its part: try again")]
    Log(#[from] longshore_log::Error),
    /// As when the partition was given to another node meanwhile.
    #[error("it was not committed: look at the partition's state, and try again")]
    Commit(#[from] CommitError),
}

pub(crate) async fn accept<P: Wire>(
    log: &dyn Log,
    partition: u32,
    lost: Lost,
    by: &str,
    now: Timestamp,
) -> Result<(), AcceptError> {
    let requests = TopicPartition::new(P::Request::TOPIC.name, partition);
    let facts = TopicPartition::new(P::Fact::TOPIC.name, partition);
    let read = async || -> Result<Batch, AcceptError> {
        let facts_end = log.end_offset(&facts).await?;
        let last_fact = last_before(log, &facts, facts_end).await?;
        let requests_start = log.start_offset(&requests).await?;
        let found = Found { last_fact: last_fact.as_ref(), facts_end, requests_start };
        Ok(loss::accept::<P>(partition, lost, &found, by, now)?)
    };
    // A leader that has lost nothing is not disturbed.
    read().await?;
    // Then as whoever leads does it: fence first, in the leader's name, and read again.
    let mut writer = log.writer(&longshore_partition::owner::<P>(partition)).await?;
    let batch = read().await?;
    writer.commit(batch).await?;
    tracing::warn!(processor = P::NAME, partition, by, ?lost, "the loss of requests was accepted");
    Ok(())
}
