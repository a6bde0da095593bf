//! Chunks out of packs, each compared with its name.

use crate::{CHUNK_BYTES_MAX, Error, Index, PackRead, unpack::Unpacker};

/// The chunks of an artifact where its layout says they lie.
pub(crate) struct PackedChunks<'a> {
    index: &'a Index,
    packs: &'a dyn PackRead,
    unpacker: Unpacker,
    stored: Box<[u8]>,
}

impl<'a> PackedChunks<'a> {
    pub(crate) fn new(index: &'a Index, packs: &'a dyn PackRead) -> Result<Self, Error> {
        Ok(Self { index, packs, unpacker: Unpacker::new()?, stored: vec![0; CHUNK_BYTES_MAX].into_boxed_slice() })
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
        self.unpacker.unpack(&self.index.manifest.chunks()[at], &place, pack.pack, stored, bytes)
    }
}
