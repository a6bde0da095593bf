//! Bytes in their time.

use std::sync::{Mutex, PoisonError};

use longshore_swarm_policy::Rate;
use tokio::time::Instant;

pub(crate) struct Pace(Option<Mutex<Rate>>, Instant);

impl Pace {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self(bytes_per_second.map(|rate| Mutex::new(Rate::new(rate))), Instant::now())
    }

    /// Waits until the link is free, and takes it for these bytes. Whoever asks later waits for them, too.
    pub(crate) async fn wait(&self, bytes: usize) {
        let Self(Some(rate), begun) = self else { return };
        let free_at = {
            let mut rate = rate.lock().unwrap_or_else(PoisonError::into_inner);
            rate.take(bytes as u64, begun.elapsed());
            rate.free_at()
        };
        tokio::time::sleep_until(*begun + free_at).await;
    }
}
