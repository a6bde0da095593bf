//! Compression by a key: bytes that the reader has already, and that are much alike. Names of chunks do not compress otherwise, and most of
//! a manifest's lines are those of the one before.

use std::io::{self, BufReader, Read, Write};

use crate::MIB;

/// Larger keys are not used; an artifact has such a manifest beyond some 20 GB. Whoever reads holds it in memory.
pub(crate) const KEY_BYTES_MAX: usize = 16 * MIB;
/// Key and content lie in the window, as powers of two.
const WINDOW_LOG_MIN: u32 = 20;
const WINDOW_LOG_MAX: u32 = 25;

/// Compresses what is as long as the key, or so.
pub(crate) fn encoder<W: Write>(out: W, level: i32, key: &[u8]) -> io::Result<zstd::Encoder<'_, W>> {
    let mut encoder = zstd::Encoder::with_ref_prefix(out, level, key)?;
    let window_log = (2 * key.len()).next_power_of_two().trailing_zeros() + 1;
    encoder.window_log(window_log.clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX))?;
    // Low levels remember only a few places of a large key.
    encoder.long_distance_matching(true)?;
    Ok(encoder)
}

pub(crate) fn decoder<'a, R: Read + 'a>(from: R, key: &'a [u8]) -> io::Result<impl Read + use<'a, R>> {
    let mut decoder = zstd::Decoder::with_ref_prefix(BufReader::new(from), key)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// Reads all of a key.
pub(crate) fn read_key(from: impl Read) -> io::Result<Vec<u8>> {
    let mut key = Vec::new();
    from.take(KEY_BYTES_MAX as u64 + 1).read_to_end(&mut key)?;
    if key.len() > KEY_BYTES_MAX {
        return Err(io::Error::other(format!("it is compressed by more than {KEY_BYTES_MAX} bytes")));
    }
    Ok(key)
}
