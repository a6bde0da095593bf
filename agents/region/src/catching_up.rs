//! Reading up to where the log ends now, before anything is said to nodes.

use longshore_log::{Error, Log, Reader, TopicPartition};

/// Where these partitions end now.
pub(crate) async fn ends(
    log: &dyn Log,
    partitions: impl IntoIterator<Item = TopicPartition>,
) -> Result<Vec<(TopicPartition, u64)>, Error> {
    let mut ends = Vec::new();
    for of in partitions {
        let end = log.end_offset(&of).await?;
        ends.push((of, end));
    }
    Ok(ends)
}

/// Whether the reader has not reached all of these.
pub(crate) fn is_behind(reader: &dyn Reader, ends: &[(TopicPartition, u64)]) -> bool {
    ends.iter().any(|(of, end)| reader.position(of).is_some_and(|at| at < *end))
}
