//! What became of a request that was processed so long ago, or by so early a process, that only the log knows.

use longshore_log::{Log, ReadLimit, TopicPartition};
use longshore_schemas::{
    events::{Event, FactEvent, Processed},
    read::Outcome,
};

use crate::{Error, Wire};

/// What is read at once in search of the end of a transaction.
const READ: ReadLimit = ReadLimit { records: 256, bytes: 256 * 1024 };

/// Finds the transaction that consumed the request at `offset` among the facts before `end`: their `Processed` say up to
/// where each came, in order, so every look halves what is left.
pub(crate) async fn outcome<P: Wire>(log: &dyn Log, partition: u32, offset: u64, end: u64) -> Result<Outcome, Error> {
    let facts = TopicPartition::new(P::Fact::TOPIC.name, partition);
    let (mut low, mut high) = (log.start_offset(&facts).await?, end);
    let mut consumed_by = None;
    while low < high {
        let middle = low + (high - low) / 2;
        match next_processed::<P>(log, &facts, middle, high).await? {
            Some((_, processed)) if processed.next_offset > offset => {
                consumed_by = Some(processed);
                high = middle;
            }
            Some((at, _)) => low = at + 1,
            None => high = middle,
        }
    }
    let Some(processed) = consumed_by else { return Ok(Outcome::Pending) };
    let refusal = processed.refusals.into_iter().find(|refusal| refusal.offset == offset);
    Ok(refusal.map_or(Outcome::Processed, Outcome::Refused))
}

/// The first `Processed` from one offset on and before another, with its own.
async fn next_processed<P: Wire>(
    log: &dyn Log,
    facts: &TopicPartition,
    from: u64,
    end: u64,
) -> Result<Option<(u64, Processed)>, Error> {
    let mut reader = log.reader(vec![(facts.clone(), from)])?;
    while reader.position(facts).is_some_and(|position| position < end) {
        for record in reader.read(READ).await? {
            // What cannot be read halts the partition that applies it; here it is no answer.
            let fact = record.record.value.as_deref().and_then(|value| P::decode_fact(value).ok());
            let processed = fact.as_ref().and_then(|fact| fact.event.processed());
            if let Some(processed) = processed.filter(|_| record.offset < end) {
                return Ok(Some((record.offset, processed.clone())));
            }
        }
    }
    Ok(None)
}
