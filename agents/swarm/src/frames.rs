//! Frames of JSON: a 4-byte big-endian length and that many bytes, the way nodes and regions talk
//! ([`longshore_schemas::stream`]).

use std::{io, marker::PhantomData};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use longshore_schemas::stream::FRAME_BYTES_MAX;
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::codec::{Decoder, Encoder};

const LENGTH_BYTES: usize = 4;
/// Memory for a frame is taken as it arrives, not as it claims.
const RESERVED_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke, ended within a frame, or a frame was longer than [`FRAME_BYTES_MAX`].
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    #[error("a frame is not a message of this protocol: {0}")]
    Malformed(#[source] serde_json::Error),
    #[error("a message cannot be written: {0}")]
    Unwritable(#[source] serde_json::Error),
    #[error("a message of {bytes} bytes is longer than a frame may be ({FRAME_BYTES_MAX} bytes)")]
    TooLong { bytes: usize },
}

/// Reads messages of type `In` and writes those of type `Out`. To be used with [`tokio_util::codec::Framed`] and its like.
#[derive(Debug)]
pub struct FrameCodec<In, Out> {
    /// Longest frame that is read.
    bytes_max: usize,
    types: PhantomData<fn(Out) -> In>,
}

impl<In, Out> FrameCodec<In, Out> {
    pub fn new() -> Self {
        Self::limited(FRAME_BYTES_MAX)
    }

    /// Reads no frame that is longer than this.
    pub fn limited(bytes_max: usize) -> Self {
        Self { bytes_max, types: PhantomData }
    }
}

impl<In, Out> Default for FrameCodec<In, Out> {
    fn default() -> Self {
        Self::new()
    }
}

impl<In: DeserializeOwned, Out> Decoder for FrameCodec<In, Out> {
    type Item = In;
    type Error = FrameError;

    fn decode(&mut self, from: &mut BytesMut) -> Result<Option<In>, FrameError> {
        let Some(length) = from.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.bytes_max {
            let reason = format!("a frame of {length} bytes, more than {}", self.bytes_max);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason).into());
        }
        let missing = (LENGTH_BYTES + length).saturating_sub(from.len());
        if missing > 0 {
            from.reserve(missing.min(RESERVED_BYTES_MAX));
            return Ok(None);
        }
        from.advance(LENGTH_BYTES);
        serde_json::from_slice(&from.split_to(length)).map(Some).map_err(FrameError::Malformed)
    }
}

impl<In, Out: Serialize> Encoder<Out> for FrameCodec<In, Out> {
    type Error = FrameError;

    fn encode(&mut self, message: Out, to: &mut BytesMut) -> Result<(), FrameError> {
        frame(&message, to)
    }
}

/// A message as it is sent, for those who send it to many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame(Bytes);

impl Frame {
    pub fn of<T: Serialize>(message: &T) -> Result<Self, FrameError> {
        let mut bytes = BytesMut::new();
        frame(message, &mut bytes)?;
        Ok(Self(bytes.freeze()))
    }
}

impl<In, Out> Encoder<Frame> for FrameCodec<In, Out> {
    type Error = FrameError;

    fn encode(&mut self, Frame(bytes): Frame, to: &mut BytesMut) -> Result<(), FrameError> {
        to.extend_from_slice(&bytes);
        Ok(())
    }
}

fn frame<T: Serialize>(message: &T, to: &mut BytesMut) -> Result<(), FrameError> {
    let json = serde_json::to_vec(message).map_err(FrameError::Unwritable)?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= FRAME_BYTES_MAX);
    let length = length.ok_or(FrameError::TooLong { bytes: json.len() })?;
    to.reserve(LENGTH_BYTES + json.len());
    to.put_u32(length);
    to.put_slice(&json);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let mut codec = FrameCodec::<Vec<u32>, Vec<u32>>::new();
        let mut wire = BytesMut::new();
        for message in [vec![], vec![1, 2, 3]] {
            codec.encode(message, &mut wire).expect("small");
        }
        let (mut arrived, mut messages) = (BytesMut::new(), Vec::new());
        for byte in wire {
            arrived.extend_from_slice(&[byte]);
            messages.extend(codec.decode(&mut arrived).expect("valid"));
        }
        assert_eq!(messages, [vec![], vec![1, 2, 3]]);
    }

    #[test]
    fn too_long_and_malformed_frames_are_errors() {
        let mut codec = FrameCodec::<Vec<u32>, String>::new();
        let long = "x".repeat(FRAME_BYTES_MAX);
        assert!(matches!(codec.encode(long, &mut BytesMut::new()), Err(FrameError::TooLong { .. })));
        let mut claim = BytesMut::from(&u32::MAX.to_be_bytes()[..]);
        assert!(matches!(codec.decode(&mut claim), Err(FrameError::Io(_))));
        let mut other = BytesMut::from(&b"\x00\x00\x00\x02{}"[..]);
        assert!(matches!(codec.decode(&mut other), Err(FrameError::Malformed(_))));
    }
}
