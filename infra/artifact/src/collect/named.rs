//! Which packs are named, by eight bytes of each, within a span of names that shrinks until all of them have room.

use longshore_schemas::PackId;

#[derive(Debug)]
pub(super) struct Named {
    from: u64,
    /// Where the span ends; `None`: with the last name.
    to: Option<u64>,
    /// Where it was to end.
    wanted_to: Option<u64>,
    max: usize,
    sorted: Vec<u64>,
    fresh: Vec<u64>,
}

fn mark(pack: &PackId) -> u64 {
    let bytes = pack.as_bytes();
    bytes[..8].iter().fold(0, |mark, byte| (mark << 8) | u64::from(*byte))
}

impl Named {
    pub(super) fn new(from: u64, to: Option<u64>, max: usize) -> Self {
        let max = max.max(2);
        Self { from, to, wanted_to: to, max, sorted: Vec::new(), fresh: Vec::new() }
    }

    pub(super) fn has_room_for(&self, pack: &PackId) -> bool {
        mark(pack) >= self.from && !self.is_after(pack)
    }

    /// Whether the pack's name comes after the span.
    pub(super) fn is_after(&self, pack: &PackId) -> bool {
        self.to.is_some_and(|to| mark(pack) >= to)
    }

    pub(super) fn extend<'a>(&mut self, packs: impl Iterator<Item = &'a PackId>) {
        for pack in packs {
            if self.has_room_for(pack) {
                self.fresh.push(mark(pack));
            }
            if self.fresh.len() >= self.max {
                self.seal();
            }
        }
    }

    /// To be called before anything is looked up.
    pub(super) fn seal(&mut self) {
        self.sorted.append(&mut self.fresh);
        self.sorted.sort_unstable();
        self.sorted.dedup();
        while self.sorted.len() > self.max {
            let to = self.sorted[self.sorted.len() / 2];
            self.to = Some(to);
            self.sorted.truncate(self.sorted.partition_point(|mark| *mark < to));
        }
    }

    pub(super) fn contains(&self, pack: &PackId) -> bool {
        self.sorted.binary_search(&mark(pack)).is_ok()
    }

    /// What there was no room for.
    pub(super) fn rest(&self) -> Option<(u64, Option<u64>)> {
        (self.to != self.wanted_to).then(|| (self.to.unwrap_or_default(), self.wanted_to))
    }

    /// The last name before the span.
    pub(super) fn before_first(&self) -> Option<PackId> {
        let before = self.from.checked_sub(1)?;
        let mut bytes = [u8::MAX; 32];
        bytes[..8].copy_from_slice(&before.to_be_bytes());
        Some(PackId::from_bytes(bytes))
    }
}
