//! Where to cut.

use fastcdc::v2020::{Normalization, cut, select_masks};

use crate::{CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};

/// These values are part of the format: others would cut the same bytes elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cutter {
    strict: u64,
    loose: u64,
}

impl Cutter {
    pub(super) fn new() -> Self {
        let (strict, loose) = select_masks(CHUNK_BYTES_AVERAGE, Normalization::Level2);
        Self { strict, loose }
    }

    /// The length of the chunk that these bytes begin with, if it does not depend on what follows them.
    pub(super) fn next(self, bytes: &[u8], at_end: bool) -> Option<usize> {
        if bytes.is_empty() {
            return None;
        }
        let (min, average, max) = (CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX);
        let (strict, loose) = (self.strict, self.loose);
        let (_, length) = cut(bytes, min, average, max, strict, loose, strict << 1, loose << 1);
        // All of it means that no place to cut was found in it, unless that is as long as a chunk can be.
        (length < bytes.len() || length == max || at_end).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_do_not_depend_on_how_much_was_read_at_a_time() {
        let mut bytes = vec![0; 3_000_001];
        blake3::Hasher::new().update(b"seed").finalize_xof().fill(&mut bytes);
        bytes[1_000_000..1_900_000].fill(0);
        let cutter = Cutter::new();
        let mut whole = Vec::new();
        let mut rest = &bytes[..];
        while let Some(length) = cutter.next(rest, true) {
            whole.push(length);
            rest = &rest[length..];
        }
        for step in [1_000, 4_097, 70_000, 262_143, 700_001] {
            let (mut pieces, mut start, mut read) = (Vec::new(), 0, 0);
            while read < bytes.len() {
                read = bytes.len().min(read + step);
                while let Some(length) = cutter.next(&bytes[start..read], read == bytes.len()) {
                    pieces.push(length);
                    start += length;
                }
            }
            assert_eq!(pieces, whole, "{step} bytes at a time");
        }
    }
}
