//! How far records go.

use std::collections::BTreeMap;

use crate::{Error, Log, ReadLimit, TopicPartition};

/// Of each of these partitions, the offset after the last record that is committed now, as far as there is one from this offset on. Where a
/// partition ends ([`Log::end_offset`]) may lie behind that: transactions leave marks, which nobody reads.
pub async fn end_of_records(
    log: &dyn Log,
    from: Vec<(TopicPartition, u64)>,
) -> Result<BTreeMap<TopicPartition, u64>, Error> {
    let mut reader = log.reader(from.clone())?;
    let mut ends = BTreeMap::new();
    for (of, _) in from {
        let end = log.end_offset(&of).await?;
        while reader.position(&of).is_some_and(|position| position < end) {
            for stored in reader.read(ReadLimit::default()).await? {
                ends.insert(stored.source, stored.offset + 1);
            }
        }
    }
    Ok(ends)
}
