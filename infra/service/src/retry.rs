//! How long to wait before trying again: twice as long each time, and never all at once.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Waits that grow from `first` to `max`, each shortened by up to half at random, so that those who failed together do not
/// come back together. The caller gives the randomness: with a seeded one the waits are always the same.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max: max.max(first), failures: 0 }
    }

    /// The wait after one more failure.
    pub fn next_wait(&mut self, rng: &mut impl Rng) -> Duration {
        let doublings = self.failures.min(31);
        self.failures = self.failures.saturating_add(1);
        let whole = self.first.saturating_mul(1 << doublings).min(self.max);
        whole.mul_f64(rng.random_range(0.5..=1.0))
    }

    /// Something worked: the next wait is short again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last reset.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn waits(seed: u64, count: usize) -> Vec<Duration> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        (0..count).map(|_| backoff.next_wait(&mut rng)).collect()
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        for (n, wait) in waits(1, 80).into_iter().enumerate() {
            let whole = Duration::from_millis(100).saturating_mul(1 << n.min(20)).min(Duration::from_secs(5));
            assert!(whole / 2 <= wait && wait <= whole, "wait {n} is {wait:?}");
        }
    }

    #[test]
    fn a_seed_decides_the_waits() {
        assert_eq!(waits(7, 10), waits(7, 10));
        assert_ne!(waits(7, 10), waits(8, 10));
    }

    #[test]
    fn success_makes_the_next_wait_short_again() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        for _ in 0..9 {
            backoff.next_wait(&mut rng);
        }
        backoff.reset();
        assert!(backoff.next_wait(&mut rng) <= Duration::from_millis(100));
    }
}
