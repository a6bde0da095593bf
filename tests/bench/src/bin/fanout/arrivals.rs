//! When each client had what it was to have.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

pub(crate) struct Arrivals {
    /// The version that is waited for, and since when.
    expected: Mutex<(u64, Instant)>,
    /// Of each client: nanoseconds after that, or none yet.
    at: Vec<AtomicU64>,
    missing: AtomicU64,
    complete: Notify,
}

const NOT_YET: u64 = u64::MAX;

impl Arrivals {
    pub(crate) fn new(clients: usize) -> Arc<Self> {
        Arc::new(Self {
            expected: Mutex::new((0, Instant::now())),
            at: (0..clients).map(|_| AtomicU64::new(NOT_YET)).collect(),
            missing: AtomicU64::new(0),
            complete: Notify::new(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, Instant)> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this version is waited for.
    pub(crate) fn expect(&self, version: u64, since: Instant) {
        let mut expected = self.lock();
        *expected = (version, since);
        self.at.iter().for_each(|at| at.store(NOT_YET, Ordering::SeqCst));
        self.missing.store(self.at.len() as u64, Ordering::SeqCst);
    }

    /// This client has this version.
    pub(crate) fn arrived(&self, client: usize, version: u64) {
        let now = Instant::now();
        let expected = self.lock();
        if version != expected.0 {
            return;
        }
        let after = u64::try_from(now.duration_since(expected.1).as_nanos()).unwrap_or(NOT_YET - 1);
        if self.at[client].swap(after, Ordering::SeqCst) == NOT_YET && self.missing.fetch_sub(1, Ordering::SeqCst) == 1
        {
            self.complete.notify_one();
        }
    }

    /// Waits until all have it; how many do not.
    pub(crate) async fn all(&self, bound: Duration) -> u64 {
        let complete = async {
            while self.missing.load(Ordering::SeqCst) > 0 {
                self.complete.notified().await;
            }
        };
        let _ = tokio::time::timeout(bound, complete).await;
        self.missing.load(Ordering::SeqCst)
    }

    /// Those that never came took as long as was waited.
    pub(crate) fn times_ms(&self, bound: Duration) -> Vec<f64> {
        let bound_ms = bound.as_secs_f64() * 1e3;
        let times = self.at.iter().map(|at| at.load(Ordering::SeqCst));
        times.map(|nanos| if nanos == NOT_YET { bound_ms } else { nanos as f64 / 1e6 }).collect()
    }
}
