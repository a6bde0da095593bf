//! How one run of bytes is made of another: copies that need not be exact, and what is new.
//!
//! A relinked program differs from the one before in the addresses of nearly every call, a few bytes apart. Exact copies would be
//! short and many. So a copy goes on as long as more than half of its bytes are right, and the differences, which are mostly zeros
//! and otherwise much alike, are added to it: Colin Percival's idea ("Naive differences of executable code"), with hash chains
//! in place of his suffix array, whose memory is bounded by the window and which take a tenth of the time.

/// Bytes that must be the same where a copy begins.
const SEED_BYTES: usize = 8;
/// Places that are tried for one seed; what repeats has many.
const TRIES_MAX: usize = 48;
/// A copy is left for another one only if that has so many bytes more right.
const WORTH_BYTES: usize = 8;
/// A match of so many bytes is not compared with others.
const GOOD_BYTES: usize = 4096;
const NONE: u32 = u32::MAX;

/// Target bytes in order: so many like the source's at this place, then so many that are new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) from: usize,
    pub(super) copied: usize,
    pub(super) new: usize,
}

/// Every place of every seed in a source.
pub(super) struct Seeds {
    /// By hash, the last place.
    last: Vec<u32>,
    /// By place, the one before it with the same hash.
    before: Vec<u32>,
    shift: u32,
}

impl Seeds {
    /// The source must be shorter than 2^32 - 1.
    pub(super) fn new(source: &[u8]) -> Self {
        let places = source.len().saturating_sub(SEED_BYTES - 1);
        let bits = places.next_power_of_two().trailing_zeros().clamp(8, 22);
        let mut seeds = Self { last: vec![NONE; 1 << bits], before: vec![NONE; places], shift: 64 - bits };
        for place in 0..places {
            let hash = seeds.hash(&source[place..]);
            seeds.before[place] =
                std::mem::replace(&mut seeds.last[hash], u32::try_from(place).expect("a window is small"));
        }
        seeds
    }

    fn hash(&self, bytes: &[u8]) -> usize {
        let seed = u64::from_le_bytes(bytes[..SEED_BYTES].try_into().expect("eight bytes"));
        (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    /// Where the source is like the target's beginning for longest, and how long.
    fn longest(&self, source: &[u8], target: &[u8]) -> (usize, usize) {
        let mut best = (0, 0);
        if target.len() < SEED_BYTES {
            return best;
        }
        let mut place = self.last[self.hash(target)];
        for _ in 0..TRIES_MAX {
            if place == NONE || best.1 >= GOOD_BYTES {
                break;
            }
            let from = &source[place as usize..];
            // One that cannot be longer is not compared.
            if from.get(best.1) == target.get(best.1) {
                let length = same(from, target);
                if length > best.1 {
                    best = (place as usize, length);
                }
            }
            place = self.before[place as usize];
        }
        best
    }
}

/// How many bytes both begin with.
fn same(one: &[u8], other: &[u8]) -> usize {
    let words = one.chunks_exact(8).zip(other.chunks_exact(8)).take_while(|(one, other)| one == other).count();
    let start = words * 8;
    start + one[start..].iter().zip(&other[start..]).take_while(|(one, other)| one == other).count()
}

/// Describes the target by the source, whose seeds these are.
pub(super) fn describe(seeds: &Seeds, source: &[u8], target: &[u8]) -> Vec<Command> {
    let mut described = Described { source, target, commands: Vec::new(), at: (0, 0) };
    let mut scan = 0;
    while scan < target.len() {
        let aligned = described.aligned(scan);
        let going_on = same(aligned, &target[scan..]);
        if going_on >= SEED_BYTES {
            scan += going_on;
            continue;
        }
        let (place, length) = seeds.longest(source, &target[scan..]);
        if length >= SEED_BYTES {
            let stays = aligned.iter().zip(&target[scan..scan + length]).filter(|(one, other)| one == other).count();
            if length > stays + WORTH_BYTES {
                described.turn(scan, place);
                scan += length;
                continue;
            }
        }
        scan += 1;
    }
    described.end();
    described.commands
}

struct Described<'a> {
    source: &'a [u8],
    target: &'a [u8],
    commands: Vec<Command>,
    /// Where the copy that is being followed begins, in source and target.
    at: (usize, usize),
}

impl<'a> Described<'a> {
    /// The source as the copy that is being followed has it for this place of the target.
    fn aligned(&self, scan: usize) -> &'a [u8] {
        self.source.get(self.at.0 + (scan - self.at.1)..).unwrap_or_default()
    }

    /// Leaves the copy that was followed for one that is exact from `scan` on.
    fn turn(&mut self, scan: usize, place: usize) {
        let (from, begun) = self.at;
        let between = &self.target[begun..scan];
        let mut forward = likeness(between.iter().zip(&self.source[from..]));
        let mut backward = likeness(between.iter().rev().zip(self.source[..place].iter().rev()));
        if forward + backward > between.len() {
            // Both want the same bytes: each gets what it has right more of.
            let both = forward + backward - between.len();
            let start = between.len() - backward;
            let (mut score, mut best, mut split) = (0_i64, 0, 0);
            for step in 0..both {
                let byte = between[start + step];
                score += i64::from(byte == self.source[from + start + step]);
                score -= i64::from(byte == self.source[place - backward + step]);
                if score > best {
                    (best, split) = (score, step + 1);
                }
            }
            forward = start + split;
            backward -= split;
        }
        self.push(from, forward, between.len() - backward - forward);
        self.at = (place - backward, scan - backward);
    }

    fn end(&mut self) {
        let (from, begun) = self.at;
        let rest = &self.target[begun..];
        let forward = likeness(rest.iter().zip(&self.source[from..]));
        self.push(from, forward, rest.len() - forward);
    }

    fn push(&mut self, from: usize, copied: usize, new: usize) {
        if copied + new > 0 {
            self.commands.push(Command { from, copied, new });
        }
    }
}

/// For how long at most it is right to go on: where bytes that are the same outnumber the others by most.
fn likeness<'a>(pairs: impl Iterator<Item = (&'a u8, &'a u8)>) -> usize {
    let (mut score, mut best, mut length) = (0_i64, 0, 0);
    for (number, (one, other)) in pairs.enumerate() {
        score += if one == other { 1 } else { -1 };
        if score > best {
            (best, length) = (score, number + 1);
        }
    }
    length
}
