//! Chunks out of packs, each compared with its name.

use longshore_schemas::ChunkId;

use crate::{CHUNK_BYTES_MAX, Codec, Error, Index, PackRead, Place};

/// The chunks of an artifact where its layout says they lie.
pub(crate) struct PackedChunks<'a> {
    index: &'a Index,
    packs: &'a dyn PackRead,
    decompressor: zstd::bulk::Decompressor<'static>,
    stored: Box<[u8]>,
}

impl<'a> PackedChunks<'a> {
    pub(crate) fn new(index: &'a Index, packs: &'a dyn PackRead) -> Result<Self, Error> {
        let decompressor = zstd::bulk::Decompressor::new();
        let decompressor = decompressor.map_err(|error| Error::malformed("decompressor", error.to_string()))?;
        Ok(Self { index, packs, decompressor, stored: vec![0; CHUNK_BYTES_MAX].into_boxed_slice() })
    }

    /// Reads a chunk of the manifest; the buffer is as long as the chunk.
    pub(crate) fn read(&mut self, at: usize, bytes: &mut [u8]) -> Result<(), Error> {
        let place = self.index.layout.places().get(at).copied();
        let place =
            place.ok_or_else(|| Error::malformed("layout", "it was not fetched, and a chunk's pack is asked for"))?;
        let pack = *self.index.layout.pack_of(&place);
        let stored = &mut self.stored[..place.stored as usize];
        let read = self.packs.read_at(&pack, u64::from(place.offset), stored);
        read.map_err(|source| Error::Read { pack: pack.pack, source })?;
        let chunk = self.index.manifest.chunks()[at].id;
        let right = unpack(&mut self.decompressor, &place, stored, bytes) && ChunkId::of(bytes) == chunk;
        if right { Ok(()) } else { Err(Error::WrongChunk { chunk, pack: pack.pack }) }
    }
}

/// Decompresses into exactly the length that the manifest says; anything else is damage.
fn unpack(decompressor: &mut zstd::bulk::Decompressor<'_>, place: &Place, stored: &[u8], bytes: &mut [u8]) -> bool {
    match place.codec {
        Codec::Raw if stored.len() == bytes.len() => {
            bytes.copy_from_slice(stored);
            true
        }
        Codec::Raw => false,
        Codec::Zstd => decompressor.decompress_to_buffer(stored, bytes).is_ok_and(|length| length == bytes.len()),
    }
}
