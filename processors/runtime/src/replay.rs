//! The State from zero: every fact of a partition, applied in memory. What a live state is compared with.

use longshore_log::{Log, ReadLimit, TopicPartition};
use longshore_partition::apply_record;
use longshore_processor::{Fingerprint, Memory, fingerprint};
use longshore_schemas::events::Event;

use crate::{Applied, Error, Wire};

/// A State that was built from facts alone.
pub struct Replayed {
    pub state: Memory,
    pub applied: Applied,
    pub fingerprint: Fingerprint,
}

/// Applies the facts of a partition from the first up to before the offset `to`.
pub async fn replay<P: Wire>(log: &dyn Log, partition: u32, to: u64) -> Result<Replayed, Error> {
    let facts = TopicPartition::new(P::Fact::TOPIC.name, partition);
    let mut reader = log.reader(vec![(facts.clone(), 0)])?;
    let (mut state, mut applied) = (Memory::default(), Applied::default());
    while reader.position(&facts).is_some_and(|position| position < to) {
        for record in reader.read(ReadLimit::default()).await? {
            if record.offset < to {
                apply_record::<P>(&mut state, &mut applied, &record)?;
            }
        }
    }
    applied.fact_offset = applied.fact_offset.max(to);
    let fingerprint = fingerprint(&state, P::TABLES)?;
    Ok(Replayed { state, applied, fingerprint })
}
