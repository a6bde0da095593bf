//! A growing set of small numbers.

/// One bit a number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    /// Whether it was not in the set before.
    pub(crate) fn insert(&mut self, number: usize) -> bool {
        let (word, bit) = (number / 64, 1u64 << (number % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let fresh = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += usize::from(fresh);
        fresh
    }

    /// Whether it was in the set.
    pub(crate) fn remove(&mut self, number: usize) -> bool {
        let there = self.contains(number);
        if there {
            self.words[number / 64] &= !(1u64 << (number % 64));
            self.len -= 1;
        }
        there
    }

    pub(crate) fn contains(&self, number: usize) -> bool {
        self.word(number / 64) & (1u64 << (number % 64)) != 0
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn clear(&mut self) {
        self.words.clear();
        self.len = 0;
    }

    /// Beyond the end there are no bits.
    pub(crate) fn word(&self, word: usize) -> u64 {
        self.words.get(word).copied().unwrap_or(0)
    }

    pub(crate) fn words(&self) -> usize {
        self.words.len()
    }

    /// The numbers of a set that is computed word by word, beginning at `start` and around: where the search begins is what
    /// spreads a choice over all.
    pub(crate) fn select(words: usize, start: usize, word_at: impl Fn(usize) -> u64) -> impl Iterator<Item = usize> {
        let (first, bit) = if words == 0 { (0, 0) } else { ((start / 64) % words, start % 64) };
        // The first word is visited twice: its upper part first, its lower part last.
        let visits = if words == 0 { 0 } else { words + 1 };
        (0..visits).flat_map(move |visit| {
            let word = (first + visit) % words;
            let mask = match visit {
                0 => !0u64 << bit,
                last if last == words => !(!0u64 << bit),
                _ => !0,
            };
            let mut rest = word_at(word) & mask;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Some(word * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_once_from_any_start() {
        let numbers = [0, 1, 63, 64, 100, 127, 128, 300];
        let mut bits = Bits::default();
        for number in numbers {
            assert!(bits.insert(number) && !bits.insert(number));
        }
        assert_eq!(bits.len(), 8);
        for start in [0, 1, 64, 101, 299, 300, 301, 5_000] {
            let mut found: Vec<usize> = Bits::select(bits.words(), start, |word| bits.word(word)).collect();
            if start < 320 {
                assert_eq!(found[0], numbers.into_iter().find(|n| *n >= start).unwrap_or(0), "from {start}");
            }
            found.sort_unstable();
            assert_eq!(found, numbers, "from {start}");
        }
        assert!(bits.remove(64) && !bits.remove(64) && !bits.remove(9_999) && !bits.contains(64));
        assert_eq!(bits.len(), 7);
        assert_eq!(Bits::select(0, 7, |_| !0).count(), 0);
    }
}
