//! A growing set of small numbers.
//!
//! ```text
//!   numbers ─▶ parts of 4,096:   Empty │ Full │ Mixed, a bit a number
//! ```
//!
//! Most sets here become full sooner or later, or empty: then they take next to no room, however many numbers there are.

/// Words of a part.
const PART_WORDS: usize = 64;
const PART_NUMBERS: usize = PART_WORDS * 64;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bits {
    parts: Vec<Part>,
    /// One more than the last word that ever had a bit.
    words: usize,
    len: usize,
}

#[derive(Debug, Clone, Default)]
enum Part {
    #[default]
    Empty,
    Full,
    Mixed(Box<Mixed>),
}

#[derive(Debug, Clone)]
struct Mixed {
    words: [u64; PART_WORDS],
    len: usize,
}

impl Part {
    fn word(&self, word: usize) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Full => !0,
            Self::Mixed(mixed) => mixed.words[word],
        }
    }

    /// Sets a bit that differs.
    fn flip(&mut self, number: usize) {
        let mixed = match self {
            Self::Mixed(mixed) => mixed,
            plain => {
                let words = [plain.word(0); PART_WORDS];
                let len = if words[0] == 0 { 0 } else { PART_NUMBERS };
                *plain = Self::Mixed(Box::new(Mixed { words, len }));
                return plain.flip(number);
            }
        };
        let (word, bit) = (number / 64, 1u64 << (number % 64));
        mixed.words[word] ^= bit;
        if mixed.words[word] & bit == 0 {
            mixed.len -= 1;
        } else {
            mixed.len += 1;
        }
        match mixed.len {
            0 => *self = Self::Empty,
            PART_NUMBERS => *self = Self::Full,
            _ => {}
        }
    }
}

impl Bits {
    /// Whether it was not in the set before.
    pub(crate) fn insert(&mut self, number: usize) -> bool {
        if self.contains(number) {
            return false;
        }
        let part = number / PART_NUMBERS;
        if self.parts.len() <= part {
            self.parts.resize_with(part + 1, Part::default);
        }
        self.words = self.words.max(number / 64 + 1);
        self.parts[part].flip(number % PART_NUMBERS);
        self.len += 1;
        true
    }

    /// Whether it was in the set.
    pub(crate) fn remove(&mut self, number: usize) -> bool {
        let there = self.contains(number);
        if there {
            self.parts[number / PART_NUMBERS].flip(number % PART_NUMBERS);
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
        *self = Self::default();
    }

    /// Beyond the end there are no bits.
    pub(crate) fn word(&self, word: usize) -> u64 {
        self.parts.get(word / PART_WORDS).map_or(0, |part| part.word(word % PART_WORDS))
    }

    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// How many of these are not in the other set.
    pub(crate) fn count_without(&self, other: &Self) -> usize {
        if other.is_empty() {
            return self.len;
        }
        (0..self.words).map(|word| (self.word(word) & !other.word(word)).count_ones() as usize).sum()
    }

    /// A place in a set of so many words, for one that may be beyond its end.
    pub(crate) fn start_within(words: usize, start: usize) -> usize {
        (start / 64) % words.max(1) * 64 + start % 64
    }

    /// The numbers of a set that is computed word by word, beginning at `start` and around: where the search begins is what
    /// spreads a choice over all.
    pub(crate) fn select(words: usize, start: usize, word_at: impl Fn(usize) -> u64) -> impl Iterator<Item = usize> {
        let start = Self::start_within(words, start);
        let (first, bit) = (start / 64, start % 64);
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
