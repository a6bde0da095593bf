//! The last record before an offset.

use longshore_log::{Error, Log, ReadLimit, StoredRecord, TopicPartition};

/// How far before the offset is looked first: a transaction leaves one gap.
const STEP_BACK: u64 = 8;

/// None if there is none, or none any more.
pub(crate) async fn last_before(
    log: &dyn Log,
    of: &TopicPartition,
    before: u64,
) -> Result<Option<StoredRecord>, Error> {
    let start = log.start_offset(of).await?;
    let mut step = STEP_BACK;
    if start >= before {
        return Ok(None);
    }
    loop {
        let from = before.saturating_sub(step).max(start);
        let mut reader = log.reader(vec![(of.clone(), from)])?;
        let mut last = None;
        while reader.position(of).is_some_and(|position| position < before) {
            let records = reader.read(ReadLimit::default()).await?;
            last = records.into_iter().rev().find(|record| record.offset < before).or(last);
        }
        if last.is_some() || from == start {
            return Ok(last);
        }
        step = step.saturating_mul(8);
    }
}
