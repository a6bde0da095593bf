//! Bytes of the manifest and the layout: variable-length integers and bounded reads.

use std::io::{self, Read, Write};

/// What ends a read: the bytes are wrong, or they could not be had.
#[derive(Debug)]
pub(crate) enum WireError {
    Io(io::Error),
    Malformed(String),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Malformed("it ends too early".to_owned()),
            _ => Self::Io(error),
        }
    }
}

impl WireError {
    /// Streams are read from memory through zstd, so whatever fails there means damaged bytes.
    pub(crate) fn of(self, what: &'static str) -> crate::Error {
        match self {
            Self::Io(error) => crate::Error::malformed(what, error.to_string()),
            Self::Malformed(reason) => crate::Error::malformed(what, reason),
        }
    }
}

pub(crate) fn malformed<T>(reason: impl Into<String>) -> Result<T, WireError> {
    Err(WireError::Malformed(reason.into()))
}

pub(crate) fn write_varint(out: &mut impl Write, mut value: u64) -> io::Result<()> {
    let mut bytes = [0; 10];
    let mut length = 0;
    while value >= 0x80 {
        bytes[length] = value.to_le_bytes()[0] | 0x80;
        value >>= 7;
        length += 1;
    }
    bytes[length] = value.to_le_bytes()[0];
    out.write_all(&bytes[..=length])
}

/// Reads a variable-length integer; a longer spelling than needed is refused, so that every value has one.
pub(crate) fn read_varint(from: &mut impl Read) -> Result<u64, WireError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = read_array::<1>(from)?[0];
        let bits = u64::from(byte & 0x7f);
        if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    malformed("an integer is too large or not in its shortest form")
}

/// Reads a count or length that may not exceed `max`.
pub(crate) fn read_bounded(from: &mut impl Read, max: u64, what: &str) -> Result<u64, WireError> {
    match read_varint(from)? {
        value if value <= max => Ok(value),
        value => malformed(format!("{what} is {value}, more than {max}")),
    }
}

pub(crate) fn read_array<const N: usize>(from: &mut impl Read) -> Result<[u8; N], WireError> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn write_text(out: &mut impl Write, text: &str) -> io::Result<()> {
    write_varint(out, text.len() as u64)?;
    out.write_all(text.as_bytes())
}

pub(crate) fn read_text(from: &mut impl Read, max: usize) -> Result<String, WireError> {
    let length = read_bounded(from, max as u64, "a text's length")?;
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(max));
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return malformed("it ends too early");
    }
    String::from_utf8(bytes).or_else(|_| malformed("a path is not UTF-8"))
}

/// Nothing may follow the end.
pub(crate) fn expect_end(from: &mut impl Read) -> Result<(), WireError> {
    match from.read(&mut [0])? {
        0 => Ok(()),
        _ => malformed("bytes follow its end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_round_trip_and_have_one_spelling() {
        for value in [0, 1, 127, 128, 300, 1 << 35, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            write_varint(&mut bytes, value).expect("memory");
            assert_eq!(read_varint(&mut &bytes[..]).expect("valid"), value);
        }
        for bad in [&[0x80][..], &[0x80, 0x00], &[0xff; 10], &[0x81, 0x80, 0x00]] {
            read_varint(&mut &bad[..]).expect_err("not canonical");
        }
    }
}
