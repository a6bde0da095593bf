//! A set of few numbers, of many that there are.

/// In order; what there are few of is found as quickly as in a tree, in a tenth of its room.
#[derive(Debug, Clone, Default)]
pub(crate) struct Few(Vec<u32>);

impl Few {
    /// Whether it was not in the set before.
    pub(crate) fn insert(&mut self, number: usize) -> bool {
        let place = self.find(number);
        if let Err(place) = place {
            self.0.insert(place, short(number));
        }
        place.is_err()
    }

    /// Whether it was in the set.
    pub(crate) fn remove(&mut self, number: usize) -> bool {
        let place = self.find(number);
        if let Ok(place) = place {
            self.0.remove(place);
        }
        place.is_ok()
    }

    pub(crate) fn contains(&self, number: usize) -> bool {
        self.find(number).is_ok()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn first(&self) -> Option<usize> {
        self.0.first().map(|number| *number as usize)
    }

    /// Each number becomes another one, and their order stays.
    pub(crate) fn follow(&mut self, moved: &[usize]) {
        for number in &mut self.0 {
            *number = short(moved[*number as usize]);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0 = Vec::new();
    }

    /// All of them, beginning at `start` and around.
    pub(crate) fn around(&self, start: usize) -> impl Iterator<Item = usize> {
        let (before, after) = self.0.split_at(self.find(start).unwrap_or_else(|place| place));
        after.iter().chain(before).map(|number| *number as usize)
    }

    fn find(&self, number: usize) -> Result<usize, usize> {
        self.0.binary_search(&short(number))
    }
}

/// There are never so many nodes that it would not fit.
fn short(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_once_from_any_start() {
        let mut few = Few::default();
        for number in [7, 1, 100, 3] {
            assert!(few.insert(number) && !few.insert(number) && few.contains(number));
        }
        for (start, expected) in [(0, [1, 3, 7, 100]), (3, [3, 7, 100, 1]), (4, [7, 100, 1, 3]), (101, [1, 3, 7, 100])]
        {
            assert_eq!(few.around(start).collect::<Vec<_>>(), expected, "from {start}");
        }
        assert!(few.remove(7) && !few.remove(7) && !few.contains(7));
        assert_eq!(few.len(), 3);
        few.clear();
        assert!(few.is_empty() && few.around(5).next().is_none());
    }
}
