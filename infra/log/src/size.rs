//! How much a partition holds.
//!
//! Kafka tells clients of librdkafka no sizes, and a disk's differ from what records say (compression, indices, replicas). So
//! the size is that of the records' content, on every log alike: what is small is read whole, of the rest a few pieces, which
//! stand for what is between them.
//!
//! ```text
//! start [piece]············[piece]············[piece] end        bytes read ÷ offsets read × offsets in all
//! ```

use std::ops::Range;

use crate::{Error, Log, ReadLimit, TopicPartition};

/// Read at the beginning, in the middle and at the end.
const PIECES: u64 = 3;
/// Offsets of a piece.
const PIECE_OFFSETS: u64 = 64;
/// A piece ends once it has that many bytes.
const PIECE_BYTES: u64 = 256 * 1024;
const LIMIT: ReadLimit = ReadLimit { records: PIECE_OFFSETS as usize, bytes: PIECE_BYTES as usize };

/// Of the keys, values and headers of a partition's records, each counted once and uncompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    pub bytes: u64,
    /// All records were counted; otherwise it is an estimate from a few of them.
    pub exact: bool,
}

/// The size of what stands between these two offsets. Reads a MiB at most, or one large record a piece.
pub async fn size(log: &dyn Log, of: &TopicPartition, offsets: Range<u64>) -> Result<Size, Error> {
    let all = offsets.end.saturating_sub(offsets.start);
    if all <= PIECES * PIECE_OFFSETS {
        let (bytes, end) = read(log, of, &offsets, offsets.end).await?;
        if end >= offsets.end {
            return Ok(Size { bytes, exact: true });
        }
    }
    let (mut bytes, mut covered) = (0, 0);
    for piece in pieces(&offsets) {
        let (read, end) = read(log, of, &piece, offsets.end).await?;
        bytes += read;
        covered += end.saturating_sub(piece.start);
    }
    let estimate = u128::from(bytes) * u128::from(all) / u128::from(covered.max(1));
    Ok(Size { bytes: u64::try_from(estimate).unwrap_or(u64::MAX), exact: false })
}

fn pieces(offsets: &Range<u64>) -> [Range<u64>; PIECES as usize] {
    let all = offsets.end.saturating_sub(offsets.start);
    let length = PIECE_OFFSETS.min(all / PIECES);
    [0, 1, 2].map(|piece| {
        let begin = offsets.start + (all - length) / (PIECES - 1) * piece;
        begin..begin + length
    })
}

/// The bytes of a piece, and the offset where reading it ended: later than the piece does where records are far apart, earlier
/// where they are large.
async fn read(log: &dyn Log, of: &TopicPartition, piece: &Range<u64>, end: u64) -> Result<(u64, u64), Error> {
    let mut reader = log.reader(vec![(of.clone(), piece.start)])?;
    let (mut bytes, mut position) = (0, piece.start);
    while position < piece.end && bytes < PIECE_BYTES {
        let records = reader.read(LIMIT).await?;
        let counted = records.iter().filter(|record| record.offset < end);
        bytes += counted.map(|record| record.record.bytes() as u64).sum::<u64>();
        position = reader.position(of).unwrap_or(end);
    }
    Ok((bytes, position.min(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_within_and_apart() {
        for end in [0, 1, 3, 10, 191, 192, 193, 1_000, 1_000_003, u64::MAX] {
            let found = pieces(&(0..end));
            assert!(found[0].start == 0 && found[2].end <= end && end - found[2].end < PIECES, "{found:?}");
            assert!(found.windows(2).all(|two| two[0].end <= two[1].start), "{found:?}");
            assert!(found.iter().all(|piece| piece.end - piece.start == PIECE_OFFSETS.min(end / 3)), "{found:?}");
        }
    }
}
