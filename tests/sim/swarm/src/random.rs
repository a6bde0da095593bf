//! Chance that is the same in every run of a seed.

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// Different purposes draw from different streams: one more draw of one changes nothing of another.
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        let fnv = purpose
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ fnv)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// 0 to below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, end: u32) -> u32 {
        (self.next() % u64::from(end.max(1))) as u32
    }

    /// So many of the numbers below `end`, each at most once, in no order.
    pub(crate) fn some_of(&mut self, end: u32, count: u32) -> Vec<u32> {
        let mut all: Vec<u32> = (0..end).collect();
        let count = count.min(end);
        for place in 0..count {
            let other = place + self.below(end - place);
            all.swap(place as usize, other as usize);
        }
        all.truncate(count as usize);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_and_repeat_with_the_seed() {
        let draw = |seed, purpose| {
            let mut random = Random::new(seed, purpose);
            (0..1_000).map(|_| random.unit()).collect::<Vec<_>>()
        };
        let numbers = draw(1, "a");
        assert_eq!(numbers, draw(1, "a"));
        assert!(numbers != draw(2, "a") && numbers != draw(1, "b"));
        let mean = numbers.iter().sum::<f64>() / 1_000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }

    #[test]
    fn some_are_different_ones() {
        let mut some = Random::new(1, "some").some_of(10, 7);
        some.sort_unstable();
        some.dedup();
        assert!(some.len() == 7 && some.iter().all(|number| *number < 10));
    }
}
