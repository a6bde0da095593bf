//! A pack in blocks, each verified by itself: BLAKE3 is a tree, and a pack's name is the hash of its root.
//!
//! ```text
//!  pack id ◀─root─ · ◀─┬─ value of block 0 ◀─ 64 KiB
//!                      └─ value of block 1 ◀─ 64 KiB …
//! ```
//!
//! The values of all blocks, 32 bytes each, are a pack's *outline*. Whoever has it, and has checked that they lead to the pack's name, knows
//! of each block whether it is right, in any order, before the rest is there: a wrong byte is noticed within its block. A region's bucket has the outline of
//! each pack beside it ([`outline_key`]); who finds none there, or a wrong one, verifies the pack as a whole.

use std::io::{self, Read};

use blake3::{
    Hash, Hasher,
    hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root},
};
use longshore_schemas::PackId;

use crate::PACK_BYTES_MAX;

/// Bytes of a block, but for the last one of a pack. A whole subtree of BLAKE3.
pub const BLOCK_BYTES: usize = 64 * 1024;
/// Of the largest pack.
pub const OUTLINE_BYTES_MAX: usize = PACK_BYTES_MAX / BLOCK_BYTES * 32;

/// Where a pack's outline lies in a region's bucket: `outlines/<pack>`.
pub fn outline_key(pack: &PackId) -> String {
    format!("outlines/{pack}")
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    pack: PackId,
    bytes: u64,
    /// Empty for a pack of a single block, whose value is its name.
    values: Vec<ChainingValue>,
}

impl Outline {
    /// How many values the outline of a pack of this size has.
    pub fn len_of(bytes: u64) -> usize {
        match blocks(bytes) {
            0 | 1 => 0,
            many => many,
        }
    }

    /// None, if these values are not those of this pack.
    fn new(pack: PackId, bytes: u64, values: Vec<ChainingValue>) -> Option<Self> {
        if bytes > PACK_BYTES_MAX as u64 || values.len() != Self::len_of(bytes) {
            return None;
        }
        let is_its = match blocks(bytes) {
            // There is no block that could be looked at later.
            0 => pack == PackId::of(&[]),
            1 => true,
            _ => root(&values).as_bytes() == pack.as_bytes(),
        };
        is_its.then_some(Self { pack, bytes, values })
    }

    /// Of what a pack's file holds. None, if that is not the pack.
    pub fn read(pack: PackId, bytes: u64, mut file: impl Read) -> io::Result<Option<Self>> {
        let (mut block, mut values) = (vec![0; BLOCK_BYTES], Vec::new());
        for index in 0..blocks(bytes) {
            let block = &mut block[..length(bytes, index)];
            file.read_exact(block)?;
            if blocks(bytes) == 1 {
                return Ok((blake3::hash(block).as_bytes() == pack.as_bytes()).then_some(Self { pack, bytes, values }));
            }
            values.push(value(index, block));
        }
        Ok(Self::new(pack, bytes, values))
    }

    /// As it is sent and stored: 32 bytes for each block, if there are several.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.values.as_flattened().to_vec()
    }

    /// None, if that is not what this pack's outline says.
    pub fn from_bytes(pack: PackId, bytes: u64, values: &[u8]) -> Option<Self> {
        let (values, rest) = values.as_chunks::<32>();
        if !rest.is_empty() {
            return None;
        }
        Self::new(pack, bytes, values.to_vec())
    }

    pub fn pack(&self) -> PackId {
        self.pack
    }

    /// Of the pack.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn blocks(&self) -> usize {
        blocks(self.bytes)
    }

    /// Of one block.
    pub fn length(&self, block: usize) -> usize {
        length(self.bytes, block)
    }

    /// Whether these are the bytes of this block.
    pub fn fits(&self, index: usize, block: &[u8]) -> bool {
        if index >= self.blocks() || block.len() != self.length(index) {
            return false;
        }
        match self.values.get(index) {
            Some(expected) => value(index, block) == *expected,
            None => blake3::hash(block).as_bytes() == self.pack.as_bytes(),
        }
    }
}

/// How many a pack of this size has.
pub fn blocks(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(BLOCK_BYTES as u64)).unwrap_or(usize::MAX)
}

fn length(bytes: u64, index: usize) -> usize {
    let left = bytes.saturating_sub(index as u64 * BLOCK_BYTES as u64);
    usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES)
}

/// Of a block that is not the whole pack.
fn value(index: usize, block: &[u8]) -> ChainingValue {
    Hasher::new().set_input_offset((index * BLOCK_BYTES) as u64).update(block).finalize_non_root()
}

/// Of two values or more.
fn root(values: &[ChainingValue]) -> Hash {
    let (left, right) = halves(values);
    merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash)
}

fn subtree(values: &[ChainingValue]) -> ChainingValue {
    if let [one] = values {
        return *one;
    }
    let (left, right) = halves(values);
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// As BLAKE3 has it: the left half is the largest power of two that leaves something for the right one.
fn halves(values: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    values.split_at(values.len().div_ceil(2).next_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|index| (index * 31 % 251) as u8).collect()
    }

    #[test]
    fn an_outline_leads_to_the_packs_name_whatever_its_size() {
        const KIB: usize = 1024;
        for bytes in [1, 1_000, 64 * KIB, 64 * KIB + 1, 128 * KIB, 129 * KIB, 700_001, 1_000 * KIB, PACK_BYTES_MAX] {
            let content = content(bytes);
            let pack = PackId::of(&content);
            let outline = Outline::read(pack, bytes as u64, &content[..]).expect("read").expect("the pack");
            assert_eq!(outline.to_bytes().len(), 32 * Outline::len_of(bytes as u64), "{bytes}");
            let again = Outline::from_bytes(pack, bytes as u64, &outline.to_bytes()).expect("the same");
            for (index, block) in content.chunks(BLOCK_BYTES).enumerate() {
                assert!(again.fits(index, block), "block {index} of {bytes}");
                assert!(!again.fits(index + 1, block), "in another's place");
                assert!(!again.fits(index, &block[..block.len() - 1]), "in part");
                let mut wrong = block.to_vec();
                wrong[block.len() / 2] ^= 1;
                assert!(!again.fits(index, &wrong), "a wrong byte in block {index} of {bytes}");
            }
        }
    }

    #[test]
    fn what_is_not_the_packs_outline_is_none() {
        let content = content(300_000);
        let (pack, bytes) = (PackId::of(&content), 300_000);
        let values = Outline::read(pack, bytes, &content[..]).expect("read").expect("the pack").values;
        let swapped = [&values[1..2], &values[..1], &values[2..]].concat();
        let mut flipped = values.clone();
        flipped[3][0] ^= 1;
        for wrong in [swapped, flipped, values[1..].to_vec(), [&values[..], &values[..1]].concat(), vec![]] {
            assert_eq!(Outline::new(pack, bytes, wrong), None);
        }
        assert_eq!(Outline::new(pack, bytes + 64 * 1024, values.clone()), None);
        assert_eq!(Outline::new(pack, u64::MAX, values), None);
        assert_eq!(Outline::read(PackId::of(b"another"), bytes, &content[..]).expect("read"), None);
        assert_eq!(Outline::read(PackId::of(b"another"), 5, &content[..]).expect("read"), None);
        Outline::read(pack, bytes + 1, &content[..]).expect_err("it is shorter");
        for nothing in [Outline::new(pack, 0, vec![]), Outline::read(pack, 0, &[][..]).expect("read")] {
            assert_eq!(nothing, None, "no bytes are no pack's but of that name");
        }
        assert!(Outline::new(PackId::of(&[]), 0, vec![]).is_some());
    }
}
