//! What became of a partition's requests.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use longshore_schemas::{
    events::{Processed, Refusal},
    read::Outcome,
};
use tokio::sync::oneshot;

/// Refusals remembered per partition. Who asks does so within seconds of its request.
const REFUSALS_MAX: usize = 10_000;
/// Those who wait for a request of one partition. Each is an open call, which the API bounds as well.
const WAITERS_MAX: usize = 100_000;

/// What became of one partition's requests: the newest refusals, and who waits for a request.
pub(crate) struct Outcomes(Mutex<Known>);

struct Known {
    /// What happened to requests before this one is not known any more.
    from: u64,
    /// Requests before this one are processed and applied.
    processed: u64,
    refusals: BTreeMap<u64, Refusal>,
    /// By offset, and by a number that tells those apart who wait for the same one.
    waiting: BTreeMap<(u64, u64), oneshot::Sender<()>>,
    waiters: u64,
}

impl Outcomes {
    /// Knows the outcomes of requests at `from` and after.
    pub(crate) fn new(from: u64) -> Self {
        let (refusals, waiting) = (BTreeMap::new(), BTreeMap::new());
        Self(Mutex::new(Known { from, processed: from, refusals, waiting, waiters: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests before `processed` are done, these of them with a refusal. Wakes exactly those who waited for one of them:
    /// with many callers, waking all of them for each transaction would cost more than the transactions.
    pub(crate) fn advance<'a>(&self, processed: u64, facts: impl Iterator<Item = &'a Processed>) {
        let mut known = self.lock();
        for refusal in facts.flat_map(|fact| &fact.refusals) {
            known.refusals.insert(refusal.offset, refusal.clone());
        }
        while known.refusals.len() > REFUSALS_MAX {
            if let Some((offset, _)) = known.refusals.pop_first() {
                known.from = known.from.max(offset + 1);
            }
        }
        known.processed = processed;
        while let Some(entry) = known.waiting.first_entry().filter(|entry| entry.key().0 < processed) {
            // One who does not wait any more needs no word.
            let _ = entry.remove().send(());
        }
    }

    /// Waits until the request is processed. Cancel safe. Ends early, without that, if too many wait.
    async fn processed(&self, offset: u64) {
        let (key, done) = {
            let mut known = self.lock();
            if known.processed > offset || known.waiting.len() >= WAITERS_MAX {
                return;
            }
            known.waiters += 1;
            let (key, (waiter, done)) = ((offset, known.waiters), oneshot::channel());
            known.waiting.insert(key, waiter);
            (key, done)
        };
        let _place = Place { outcomes: self, key };
        let _ = done.await;
    }

    /// Waits for the request's outcome: [`Outcome::Pending`] if the time is over. None if it is too long ago to be known here.
    pub(crate) async fn of(&self, offset: u64, wait: Duration) -> Option<Outcome> {
        let _ = tokio::time::timeout(wait, self.processed(offset)).await;
        let known = self.lock();
        match known.refusals.get(&offset) {
            Some(refusal) => Some(Outcome::Refused(refusal.clone())),
            None if offset >= known.processed => Some(Outcome::Pending),
            None if offset < known.from => None,
            None => Some(Outcome::Processed),
        }
    }
}

/// A place among those who wait, given up when dropped.
struct Place<'a> {
    outcomes: &'a Outcomes,
    key: (u64, u64),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.outcomes.lock().waiting.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_schemas::{Timestamp, events::RefusalCode};

    fn processed(offsets: impl IntoIterator<Item = u64>) -> Processed {
        let refusal = |offset| Refusal {
            request: format!("r-{offset}").parse().expect("valid"),
            offset,
            code: RefusalCode::NotFound,
            reason: String::new(),
        };
        Processed { next_offset: 0, now: Timestamp(0), refusals: offsets.into_iter().map(refusal).collect() }
    }

    #[tokio::test]
    async fn what_is_forgotten_is_not_called_processed() {
        let outcomes = Outcomes::new(5);
        let of = async |offset| outcomes.of(offset, Duration::ZERO).await;
        assert_eq!(of(4).await, None, "before this process");
        assert_eq!(of(5).await, Some(Outcome::Pending), "not processed yet");
        outcomes.advance(100_000, [processed([7])].iter());
        assert_eq!(of(5).await, Some(Outcome::Processed));
        assert!(matches!(of(7).await, Some(Outcome::Refused(refusal)) if refusal.offset == 7));
        outcomes.advance(100_000, [processed(100..100 + REFUSALS_MAX as u64)].iter());
        assert_eq!(of(7).await, None, "evicted");
        assert_eq!(of(8).await, Some(Outcome::Processed));
    }

    #[tokio::test]
    async fn those_who_wait_are_woken_by_their_request_and_leave_no_trace() {
        let outcomes = Outcomes::new(0);
        let wait = Duration::from_secs(20);
        let (first, second, given_up, ()) =
            tokio::join!(outcomes.of(3, wait), outcomes.of(3, wait), outcomes.of(9, Duration::ZERO), async {
                outcomes.advance(4, [processed([3])].iter());
            },);
        assert!(matches!((first, second), (Some(Outcome::Refused(_)), Some(Outcome::Refused(_)))));
        assert_eq!(given_up, Some(Outcome::Pending));
        assert!(outcomes.lock().waiting.is_empty());
    }
}
