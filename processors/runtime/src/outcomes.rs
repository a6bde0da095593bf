//! How far a partition is, and what became of its requests.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use longshore_schemas::{
    Timestamp,
    events::{Processed, Refusal},
    read::Outcome,
};
use serde::{Deserialize, Serialize};

/// Refusals remembered per partition. Who asks does so within seconds of its request.
const REFUSALS_MAX: usize = 10_000;

/// How far a partition's State is. Stored in the same RocksDB batch as what it counts.
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

/// The refusals of one partition, newest kept.
pub(crate) struct Outcomes(Mutex<Known>);

struct Known {
    /// What happened to requests before this one is not known any more.
    from: u64,
    refusals: BTreeMap<u64, Refusal>,
}

impl Outcomes {
    /// Knows the outcomes of requests at `from` and after.
    pub(crate) fn new(from: u64) -> Self {
        Self(Mutex::new(Known { from, refusals: BTreeMap::new() }))
    }

    pub(crate) fn record(&self, processed: &Processed) {
        if processed.refusals.is_empty() {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for refusal in &processed.refusals {
            known.refusals.insert(refusal.offset, refusal.clone());
        }
        while known.refusals.len() > REFUSALS_MAX {
            if let Some((offset, _)) = known.refusals.pop_first() {
                known.from = known.from.max(offset + 1);
            }
        }
    }

    /// Of a request that was processed. [`Outcome::Pending`] if that is too long ago to tell.
    pub(crate) fn of(&self, offset: u64) -> Outcome {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.refusals.get(&offset) {
            Some(refusal) => Outcome::Refused(refusal.clone()),
            None if offset < known.from => Outcome::Pending,
            None => Outcome::Processed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_schemas::events::RefusalCode;

    fn processed(offsets: impl IntoIterator<Item = u64>) -> Processed {
        let refusal = |offset| Refusal {
            request: format!("r-{offset}").parse().expect("valid"),
            offset,
            code: RefusalCode::NotFound,
            reason: String::new(),
        };
        Processed { next_offset: 0, now: Timestamp(0), refusals: offsets.into_iter().map(refusal).collect() }
    }

    #[test]
    fn what_is_forgotten_is_not_called_processed() {
        let outcomes = Outcomes::new(5);
        assert_eq!(outcomes.of(4), Outcome::Pending, "before this process");
        assert_eq!(outcomes.of(5), Outcome::Processed);
        outcomes.record(&processed([7]));
        assert!(matches!(outcomes.of(7), Outcome::Refused(refusal) if refusal.offset == 7));
        outcomes.record(&processed(100..100 + REFUSALS_MAX as u64));
        assert_eq!(outcomes.of(7), Outcome::Pending, "evicted");
        assert_eq!(outcomes.of(8), Outcome::Processed);
    }
}
