//! Which of the chunks that are gone look like a section: few enough to be compared byte by byte.
//!
//! Of all bytes that are gone, places are sampled by content: where a hash of the bytes there ends in zeros, in both sides alike. Their
//! table has a fixed size, so of more bytes fewer places are kept. A section votes for the chunks that hold its samples.

use std::collections::BTreeMap;

use super::{WINDOW_BYTES, sides::Gone};
use crate::Error;

/// Bytes that must be the same.
const SAMPLE_BYTES: usize = 16;
/// Samples in the table, at most: 32 MiB.
const SAMPLES_MAX: u64 = 1 << 22;
/// One in 32 places is sampled, or fewer.
const RARITY_BITS_MIN: u32 = 5;
const EMPTY: u32 = u32::MAX;

/// A table of samples, each with its chunk.
struct Samples {
    /// Other bits of the sample's hash, and the chunk as an index into what is gone.
    slots: Vec<(u32, u32)>,
    rarity_bits: u32,
}

impl Samples {
    fn new(bytes: u64) -> Self {
        let rarity_bits = (RARITY_BITS_MIN..u64::BITS - 1).find(|bits| bytes >> bits <= SAMPLES_MAX / 2);
        let rarity_bits = rarity_bits.unwrap_or(u64::BITS - 1);
        let slots = (2 * (bytes >> rarity_bits)).next_power_of_two().clamp(1024, SAMPLES_MAX);
        Self { slots: vec![(0, EMPTY); usize::try_from(slots).expect("SAMPLES_MAX fits")], rarity_bits }
    }

    /// The hashes of the samples in these bytes.
    fn of<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = u64> + use<'a> {
        let rarity_bits = self.rarity_bits;
        let hashes = bytes.windows(SAMPLE_BYTES).map(|window| {
            let half = |half: &[u8]| u64::from_le_bytes(half.try_into().expect("eight bytes"));
            let one = half(&window[..8]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (one.rotate_left(29) ^ half(&window[8..])).wrapping_mul(0xc2b2_ae3d_27d4_eb4f)
        });
        hashes.filter(move |hash| hash >> (u64::BITS - rarity_bits) == 0)
    }

    /// Of samples that fall into one slot, the first is kept: what repeats does not push out the rest.
    fn add(&mut self, bytes: &[u8], chunk: u32) {
        for hash in self.of(bytes) {
            let slot = self.slot(hash);
            if self.slots[slot].1 == EMPTY {
                self.slots[slot] = (tag(hash), chunk);
            }
        }
    }

    fn find(&self, hash: u64) -> Option<u32> {
        let (found, chunk) = self.slots[self.slot(hash)];
        (chunk != EMPTY && found == tag(hash)).then_some(chunk)
    }

    fn slot(&self, hash: u64) -> usize {
        (hash & (self.slots.len() as u64 - 1)) as usize
    }
}

fn tag(hash: u64) -> u32 {
    (hash >> 16) as u32
}

/// Reads a chunk that is gone, by its index into what is gone.
pub(super) type ReadGone<'a> = dyn FnMut(usize, &mut [u8]) -> Result<(), Error> + 'a;

/// All that is gone, to be asked what is like a section.
pub(super) struct Near<'a> {
    gone: &'a Gone,
    /// None if a window holds everything.
    samples: Option<Samples>,
}

/// Bytes to be compared with, and where they lie among what is gone.
#[derive(Default)]
pub(super) struct Window {
    pub(super) bytes: Vec<u8>,
    /// Where a part begins, here and there. Each ends where the next begins.
    parts: Vec<(usize, u64)>,
    chunks: Vec<u32>,
}

impl<'a> Near<'a> {
    pub(super) fn new(gone: &'a Gone, read: &mut ReadGone<'_>) -> Result<Self, Error> {
        if gone.bytes <= WINDOW_BYTES as u64 {
            return Ok(Self { gone, samples: None });
        }
        let mut samples = Samples::new(gone.bytes);
        let mut buffer = Vec::new();
        for (number, chunk) in gone.chunks.iter().enumerate() {
            buffer.resize(chunk.bytes as usize, 0);
            read(number, &mut buffer)?;
            samples.add(&buffer, u32::try_from(number).expect("chunks are counted in 32 bits"));
        }
        Ok(Self { gone, samples: Some(samples) })
    }

    /// The chunks that look most like it and their neighbours, as many as a window holds, in their order.
    pub(super) fn choose(&self, section: &[u8]) -> Vec<u32> {
        let count = u32::try_from(self.gone.chunks.len()).expect("chunks are counted in 32 bits");
        let Some(samples) = &self.samples else { return (0..count).collect() };
        let mut votes = BTreeMap::<u32, usize>::new();
        for chunk in samples.of(section).filter_map(|hash| samples.find(hash)) {
            *votes.entry(chunk).or_default() += 2;
            // What an address table is, or a run of new code, lies beside what is found, and has no sample of its own.
            for beside in [chunk.wrapping_sub(1), chunk + 1] {
                if beside < count {
                    votes.entry(beside).or_insert(1);
                }
            }
        }
        let mut ranked: Vec<_> = votes.into_iter().map(|(chunk, votes)| (std::cmp::Reverse(votes), chunk)).collect();
        ranked.sort_unstable();
        let mut room = WINDOW_BYTES;
        let fits = |chunk: &u32| {
            let left = room.checked_sub(self.gone.chunks[*chunk as usize].bytes as usize);
            room = left.unwrap_or(0);
            left.is_some()
        };
        let mut chosen: Vec<u32> = ranked.into_iter().map(|(_, chunk)| chunk).take_while(fits).collect();
        chosen.sort_unstable();
        chosen
    }

    pub(super) fn window(&self, chunks: Vec<u32>, read: &mut ReadGone<'_>) -> Result<Window, Error> {
        let mut window = Window::default();
        for number in &chunks {
            let chunk = self.gone.chunks[*number as usize];
            let here = window.bytes.len();
            let follows = window.parts.last().is_some_and(|(at, start)| start + (here - at) as u64 == chunk.start);
            if !follows {
                window.parts.push((here, chunk.start));
            }
            window.bytes.resize(here + chunk.bytes as usize, 0);
            read(*number as usize, &mut window.bytes[here..])?;
        }
        window.chunks = chunks;
        Ok(window)
    }
}

impl Window {
    pub(super) fn holds(&self, chunks: &[u32]) -> bool {
        self.chunks == chunks
    }

    /// Where this byte of the window lies among what is gone, and how many that follow it lie there too.
    pub(super) fn place(&self, at: usize) -> (u64, usize) {
        let after = self.parts.partition_point(|(here, _)| *here <= at);
        let (here, start) = self.parts[after - 1];
        let end = self.parts.get(after).map_or(self.bytes.len(), |(here, _)| *here);
        (start + (at - here) as u64, end - at)
    }
}
