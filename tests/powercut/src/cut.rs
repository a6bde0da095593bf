//! What a disk may hold after the power failed.

use std::{collections::BTreeSet, ffi::OsString};

/// Writes reach the disk page by page, in any order.
const PAGE_BYTES: u64 = 4096;
/// A page is torn between sectors.
const SECTOR_BYTES: u64 = 512;

/// What becomes of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All of it is lost.
    Everything,
    /// By the seed: names as a journal has them, each change only with all earlier ones; pages of files in any order.
    Journal(u64),
    /// By the seed: each folder's changes in their order, but folders apart; pages of files in any order.
    Folders(u64),
    /// By the seed: each change of a name on its own, pages of files in any order.
    Anything(u64),
}

impl Cut {
    /// One of the four, by a seed: what files that sync their own folders bear.
    pub fn seeded(seed: u64) -> Self {
        if seed % 4 == 3 { Self::Anything(seed) } else { Self::in_order(seed) }
    }

    /// One that keeps a folder's changes in their order, as file systems do. RocksDB needs that: it names a new manifest
    /// in `CURRENT` before it syncs the folder in which it made it.
    pub fn in_order(seed: u64) -> Self {
        match seed % 4 {
            0 => Self::Everything,
            1 => Self::Journal(seed),
            _ => Self::Folders(seed),
        }
    }
}

/// Random numbers by a seed (SplitMix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A change of a file's content.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    At(u64, Vec<u8>),
    Length(u64),
}

impl Write {
    pub(crate) fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::At(offset, bytes) => put(content, *offset, bytes),
            Self::Length(length) => content.resize(usize::try_from(*length).unwrap_or(usize::MAX), 0),
        }
    }
}

fn put(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.saturating_add(bytes.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(bytes);
}

/// What a file holds after the cut: what was synced, and of the writes since then none, all or some, in part.
pub(crate) fn content(durable: &mut Vec<u8>, unsynced: &[Write], dice: &mut Dice) {
    match dice.below(4) {
        0 => {}
        1 => unsynced.iter().for_each(|write| write.apply(durable)),
        _ => unsynced.iter().for_each(|write| some_of(write, durable, dice)),
    }
}

fn some_of(write: &Write, durable: &mut Vec<u8>, dice: &mut Dice) {
    let Write::At(offset, bytes) = write else {
        if dice.chance(50) {
            write.apply(durable);
        }
        return;
    };
    let mut rest = bytes.as_slice();
    let mut at = *offset;
    while !rest.is_empty() {
        let length = (PAGE_BYTES - at % PAGE_BYTES).min(rest.len() as u64);
        let (page, after) = rest.split_at(usize::try_from(length).expect("no longer than a page"));
        if dice.chance(50) {
            put(durable, at, torn(page, at, dice));
        } else if dice.chance(30) && (durable.len() as u64) < at + length {
            // The length came to the disk, the page did not.
            Write::Length(at + length).apply(durable);
        }
        (rest, at) = (after, at + length);
    }
}

/// Sometimes only the first sectors of a page.
fn torn<'a>(page: &'a [u8], at: u64, dice: &mut Dice) -> &'a [u8] {
    let first = (SECTOR_BYTES - at % SECTOR_BYTES) as usize;
    if page.len() <= first || !dice.chance(10) {
        return page;
    }
    let sectors = ((page.len() - first) as u64).div_ceil(SECTOR_BYTES);
    let kept = first + (dice.below(sectors) * SECTOR_BYTES) as usize;
    &page[..kept]
}

/// A change of folders: all of it happens or nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Change {
    /// Folder, name, and what the name then stands for.
    pub(crate) entries: Vec<(u64, OsString, Option<u64>)>,
}

/// Which changes of names survive, in their order.
pub(crate) fn survivors(unsynced: Vec<Change>, cut: Cut, dice: &mut Dice) -> Vec<Change> {
    match cut {
        Cut::Everything => Vec::new(),
        Cut::Journal(_) => {
            let kept = dice.below(unsynced.len() as u64 + 1) as usize;
            unsynced.into_iter().take(kept).collect()
        }
        Cut::Folders(_) => in_order_by_folder(unsynced, dice),
        Cut::Anything(_) => unsynced.into_iter().filter(|_| dice.chance(50)).collect(),
    }
}

fn in_order_by_folder(unsynced: Vec<Change>, dice: &mut Dice) -> Vec<Change> {
    let mut ended = BTreeSet::new();
    let survives = |change: &Change| {
        let mut folders = change.entries.iter().map(|(folder, ..)| *folder);
        let survives = !folders.clone().any(|folder| ended.contains(&folder)) && dice.chance(70);
        if !survives {
            ended.extend(&mut folders);
        }
        survives
    };
    unsynced.into_iter().filter(survives).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(folders: &[u64], name: &str) -> Change {
        Change { entries: folders.iter().map(|folder| (*folder, name.into(), Some(9))).collect() }
    }

    #[test]
    fn folders_keep_their_order_each_and_not_among_each_other() {
        let all = [change(&[1], "a"), change(&[2], "b"), change(&[1, 2], "c"), change(&[1], "d"), change(&[2], "e")];
        let name = |change: &Change| change.entries[0].1.to_str().unwrap().to_owned();
        let of = |seed| survivors(all.to_vec(), Cut::Folders(seed), &mut Dice::new(seed)).iter().map(name).collect();
        let seen: BTreeSet<String> = (0..1_000).map(of).collect();
        let expected = ["", "a", "b", "ab", "abc", "abcd", "abce", "abcde"];
        assert_eq!(seen, expected.into_iter().map(str::to_owned).collect());
    }

    #[test]
    fn a_seed_gives_the_same_content_again_and_many_seeds_many() {
        let unsynced = [Write::At(4_000, vec![1; 9_000]), Write::Length(10_000), Write::At(0, vec![2; 5_000])];
        let of = |seed| {
            let mut durable = vec![9; 6_000];
            content(&mut durable, &unsynced, &mut Dice::new(seed));
            durable
        };
        let all: std::collections::BTreeSet<Vec<u8>> = (0..100).map(of).collect();
        assert!((0..100).all(|seed| of(seed) == of(seed)));
        assert!(all.len() > 20, "{}", all.len());
        let nothing_lost = [vec![2; 5_000], vec![1; 5_000]].concat();
        assert!(all.contains(&vec![9; 6_000]) && all.contains(&nothing_lost));
        assert!(all.iter().all(|content| content.len() <= 13_000));
    }
}
