//! What went in and out, by bucket and first part of the key: how many copies were taken from which bucket.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Most pairs of bucket and prefix that are counted apart; what comes later is counted under [`OTHER`].
const PAIRS_MAX: usize = 1024;
const OTHER: &str = "other";

/// What was counted for one bucket and prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Objects asked for and found.
    pub gets: u64,
    /// Bytes of their bodies that were sent.
    pub get_bytes: u64,
    /// Objects stored.
    pub puts: u64,
    /// Bytes of their bodies.
    pub put_bytes: u64,
}

type Pairs = BTreeMap<(String, String), Traffic>;

/// A handle on the running counts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Counters(Arc<Mutex<Pairs>>);

impl Counters {
    /// All counts by bucket and prefix (`packs/`; empty for keys without a slash).
    pub fn all(&self) -> BTreeMap<(String, String), Traffic> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The counts of one bucket and prefix.
    pub fn of(&self, bucket: &str, prefix: &str) -> Traffic {
        let pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.get(&(bucket.to_owned(), prefix.to_owned())).copied().unwrap_or_default()
    }

    pub(super) fn count(&self, bucket: &str, key: &str, count: impl FnOnce(&mut Traffic)) {
        let prefix = key.split_inclusive('/').next().filter(|first| first.ends_with('/')).unwrap_or_default();
        let mut pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pair = (bucket.to_owned(), prefix.to_owned());
        if pairs.len() >= PAIRS_MAX && !pairs.contains_key(&pair) {
            pair = (OTHER.to_owned(), OTHER.to_owned());
        }
        count(pairs.entry(pair).or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_count_by_their_first_part_and_the_table_is_bounded() {
        let counters = Counters::default();
        for key in ["packs/a", "packs/b/c", "root"] {
            counters.count("main", key, |traffic| traffic.gets += 1);
        }
        assert_eq!((counters.of("main", "packs/").gets, counters.of("main", "").gets), (2, 1));
        for number in 0..3000 {
            counters.count("main", &format!("{number}/x"), |traffic| traffic.puts += 1);
        }
        assert!(counters.all().len() <= PAIRS_MAX + 1);
        assert_eq!(counters.all().values().map(|traffic| traffic.puts).sum::<u64>(), 3000);
    }
}
