//! One chunk out of its pack: decompressed, and nothing but the bytes that its name says.

use longshore_schemas::{ChunkId, PackId};

use crate::{Chunk, Codec, Error, Place};

/// Unpacks chunk after chunk.
pub(crate) struct Unpacker(zstd::bulk::Decompressor<'static>);

impl Unpacker {
    pub(crate) fn new() -> Result<Self, Error> {
        let decompressor = zstd::bulk::Decompressor::new();
        decompressor.map(Self).map_err(|error| Error::malformed("decompressor", error.to_string()))
    }

    /// Fills `bytes`, which are as long as the chunk, from what is stored of it. After an error they are worth nothing.
    pub(crate) fn unpack(
        &mut self,
        chunk: &Chunk,
        place: &Place,
        pack: PackId,
        stored: &[u8],
        bytes: &mut [u8],
    ) -> Result<(), Error> {
        let whole = match place.codec {
            Codec::Raw if stored.len() == bytes.len() => {
                bytes.copy_from_slice(stored);
                true
            }
            Codec::Raw => false,
            Codec::Zstd => self.0.decompress_to_buffer(stored, bytes).is_ok_and(|length| length == bytes.len()),
        };
        if whole && ChunkId::of(bytes) == chunk.id { Ok(()) } else { Err(Error::WrongChunk { chunk: chunk.id, pack }) }
    }
}
