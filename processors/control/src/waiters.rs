//! Those who wait for a change of one thing: woken by the facts, never by a poll.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use longshore_runtime::Observer;
use longshore_schemas::{
    ClaimId,
    events::{BuildFact, Event, Fact, FactEvent, GoalFact},
};
use tokio::sync::Notify;

/// Things waited for at once. Each belongs to an open call of the API, which bounds those as well.
const WAITERS_MAX: usize = 100_000;

type Waiting<K> = BTreeMap<K, (Arc<Notify>, usize)>;

/// Who waits for what.
pub(crate) struct Waiters<K: Ord>(Mutex<Waiting<K>>);

impl<K: Ord> Default for Waiters<K> {
    fn default() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }
}

impl<K: Ord + Clone> Waiters<K> {
    /// A place to wait for changes of `key`. None if too many wait already.
    pub(crate) fn wait_for(&self, key: &K) -> Option<Waiter<'_, K>> {
        let mut waiting = self.lock();
        let count = waiting.len();
        let notify = match waiting.entry(key.clone()) {
            Entry::Vacant(_) if count >= WAITERS_MAX => return None,
            Entry::Vacant(entry) => entry.insert((Arc::new(Notify::new()), 1)).0.clone(),
            Entry::Occupied(mut entry) => {
                entry.get_mut().1 += 1;
                entry.get().0.clone()
            }
        };
        Some(Waiter { waiters: self, key: key.clone(), notify })
    }

    pub(crate) fn wake<Q: Ord + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        if let Some((notify, _)) = self.lock().get(key) {
            notify.notify_waiters();
        }
    }

    fn leave(&self, key: &K) {
        let mut waiting = self.lock();
        if let Some((_, count)) = waiting.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits; leaves when dropped.
pub(crate) struct Waiter<'a, K: Ord + Clone> {
    waiters: &'a Waiters<K>,
    key: K,
    notify: Arc<Notify>,
}

impl<K: Ord + Clone> Waiter<'_, K> {
    /// Looks, and looks again after each change, until there is an answer. A change between look and wait is not missed.
    pub(crate) async fn until<T, E>(&self, mut look: impl FnMut() -> Result<Option<T>, E>) -> Result<T, E> {
        loop {
            let mut changed = std::pin::pin!(self.notify.notified());
            changed.as_mut().enable();
            if let Some(answer) = look()? {
                return Ok(answer);
            }
            changed.await;
        }
    }
}

impl<K: Ord + Clone> Drop for Waiter<'_, K> {
    fn drop(&mut self) {
        self.waiters.leave(&self.key);
    }
}

pub(crate) type ClaimWaiters = Waiters<ClaimId>;

impl Observer<BuildFact> for ClaimWaiters {
    fn applied(&self, _: u32, facts: &[Fact<BuildFact>]) {
        for fact in facts {
            if let BuildFact::JobStarted(started) = &fact.event {
                self.wake(&started.claim);
            }
        }
    }
}

/// By the service's name, which is the key of every fact of goals.
pub(crate) type ServiceWaiters = Waiters<String>;

impl Observer<GoalFact> for ServiceWaiters {
    fn applied(&self, _: u32, facts: &[Fact<GoalFact>]) {
        for fact in facts.iter().filter(|fact| fact.event.processed().is_none()) {
            self.wake(fact.event.key().as_str());
        }
    }
}
