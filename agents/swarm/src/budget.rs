//! What a node gives the swarm of its link, as a whole: every transfer pays here for what it moves.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use longshore_swarm_policy::{Caps, Rate};
use tokio::time::{Instant, sleep_until};

/// A transfer that gets less of a capped link than this is better off waiting.
const TRANSFER_RATE_MIN: u64 = 512 * 1024;

/// For one direction. Cheap to clone.
#[derive(Clone, Default)]
pub struct Budget(Option<Arc<Capped>>);

struct Capped {
    caps: Caps,
    rate: Mutex<Rate>,
    begun: Instant,
}

impl Budget {
    pub fn new(caps: Caps) -> Self {
        let capped =
            (caps != Caps::default()).then(|| Capped { caps, rate: Mutex::new(Rate::new(1)), begun: Instant::now() });
        Self(capped.map(Arc::new))
    }

    /// Waits until so many bytes that move now are paid for; answers how long that took. Whoever moves more than others waits longer.
    pub(crate) async fn spend(&self, bytes: u64) -> Duration {
        let Some(capped) = &self.0 else { return Duration::ZERO };
        let Some(rate) = capped.caps.at(second_of_day()) else { return Duration::ZERO };
        let begun = Instant::now();
        let until = {
            let mut meter = capped.rate.lock().unwrap_or_else(PoisonError::into_inner);
            meter.set(rate);
            meter.take(bytes, begun - capped.begun);
            capped.begun + meter.free_at()
        };
        sleep_until(until).await;
        begun.elapsed()
    }

    /// How many of so many transfers are to be under way at once now.
    pub(crate) fn transfers(&self, max: usize) -> usize {
        let rate = self.0.as_ref().and_then(|capped| capped.caps.at(second_of_day()));
        let enough = rate.map_or(u64::MAX, |rate| rate / TRANSFER_RATE_MIN);
        usize::try_from(enough).unwrap_or(usize::MAX).clamp(1, max)
    }
}

fn second_of_day() -> u32 {
    let seconds = longshore_service::now().millis().div_euclid(1_000).rem_euclid(24 * 60 * 60);
    u32::try_from(seconds).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_transfers_together_keep_to_the_cap() {
        let budget = Budget::new("2".parse().expect("a cap"));
        let begun = Instant::now();
        let transfers = (0..4).map(|_| {
            let budget = budget.clone();
            tokio::spawn(async move {
                for _ in 0..80 {
                    budget.spend(64 * 1024).await;
                }
            })
        });
        futures::future::join_all(transfers).await;
        let took = begun.elapsed().as_secs_f64();
        assert!((9.7..10.3).contains(&took), "20 MiB at 2 MiB/s took {took} s");
        assert_eq!((budget.transfers(24), Budget::default().transfers(24)), (4, 24));
        assert_eq!(Budget::default().spend(u64::MAX).await, Duration::ZERO);
    }
}
