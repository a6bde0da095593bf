//! A range of a file as ranges of packs: what to read, in order, and how to make the file's bytes of it.
//!
//! ```text
//! file    ──a──┬──b──┬──c──┬──c──┬──d──…        chunks
//! stretch     a b of pack 1  │  c c, read once, │  d …      each within one pack, read at once, some MiB at most
//! ```

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use crate::{Error, FileRef, Index, PackRef, unpack::Unpacker};

/// What is read at once, and what it becomes, is no more than this and a chunk.
const STRETCH_BYTES_MAX: u64 = 1024 * 1024;
/// A chunk that comes again and again, as in a hole, costs nothing but this count.
const STRETCH_CHUNKS_MAX: usize = 4096;

/// Chunks of a file that follow each other, in the file and in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    pub pack: PackRef,
    /// What to read of the pack.
    pub offset: u64,
    pub bytes: u64,
    /// As indices into the manifest's chunks; one that comes again right away is stored once.
    chunks: Vec<u32>,
}

/// The stretches of a range of a file.
#[derive(Debug, Clone)]
pub struct Stretches {
    index: Arc<Index>,
    file: FileRef,
    next: usize,
    /// Where in the file the next chunk begins, and where the last one may begin.
    at: u64,
    end: u64,
}

impl Stretches {
    /// Those of the chunks that have a byte of the range. What they become begins at the second value, counted in the file.
    pub fn new(index: Arc<Index>, file: &FileRef, range: &Range<u64>) -> (Self, u64) {
        let mut stretches = Self { index, file: file.clone(), next: 0, at: 0, end: range.end };
        while let Some((_, bytes)) = stretches.peek().filter(|(_, bytes)| stretches.at + bytes <= range.start) {
            stretches.at += bytes;
            stretches.next += 1;
        }
        let begin = stretches.at;
        (stretches, begin)
    }

    fn peek(&self) -> Option<(u32, u64)> {
        let chunk = *self.index.manifest.chunks_of(&self.file).get(self.next)?;
        Some((chunk, self.index.manifest.chunks()[chunk as usize].bytes.into()))
    }
}

impl Iterator for Stretches {
    type Item = Stretch;

    fn next(&mut self) -> Option<Stretch> {
        let mut stretch: Option<Stretch> = None;
        let mut unpacked = 0;
        while let Some((chunk, bytes)) = self.peek().filter(|_| self.at < self.end) {
            let place = self.index.layout.places()[chunk as usize];
            let (offset, stored) = (u64::from(place.offset), u64::from(place.stored));
            match &mut stretch {
                None => {
                    let pack = *self.index.layout.pack_of(&place);
                    unpacked = bytes;
                    stretch = Some(Stretch { pack, offset, bytes: stored, chunks: vec![chunk] });
                }
                Some(stretch) if stretch.chunks.len() < STRETCH_CHUNKS_MAX && stretch.chunks.last() == Some(&chunk) => {
                    stretch.chunks.push(chunk);
                }
                Some(stretch) => {
                    let follows = stretch.pack == *self.index.layout.pack_of(&place)
                        && stretch.offset + stretch.bytes == offset
                        && stretch.chunks.len() < STRETCH_CHUNKS_MAX;
                    if !follows || stretch.bytes.max(unpacked) >= STRETCH_BYTES_MAX {
                        break;
                    }
                    stretch.bytes += stored;
                    unpacked += bytes;
                    stretch.chunks.push(chunk);
                }
            }
            self.at += bytes;
            self.next += 1;
        }
        stretch
    }
}

impl Index {
    /// A name for the file's bytes: of equal files, if both were cut as this version does it.
    pub fn content_name(&self, file: &FileRef) -> String {
        let mut hasher = blake3::Hasher::new();
        for chunk in self.manifest.chunks_of(file) {
            hasher.update(self.manifest.chunks()[*chunk as usize].id.as_bytes());
        }
        hasher.finalize().to_string()
    }

    /// The file's bytes, chunk by chunk and each verified, of what was read for a stretch.
    pub fn unpack(&self, stretch: &Stretch, read: &[u8]) -> Result<Vec<Bytes>, Error> {
        let mut unpacker = Unpacker::new()?;
        let mut pieces: Vec<Bytes> = Vec::with_capacity(stretch.chunks.len());
        for (number, at) in stretch.chunks.iter().enumerate() {
            let same = pieces.last().filter(|_| stretch.chunks[number - 1] == *at).cloned();
            let piece = match same {
                Some(piece) => piece,
                None => self.unpack_chunk(&mut unpacker, *at, stretch.offset, read)?.into(),
            };
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Every chunk of each pack of the layout, in the layout's order.
    pub fn chunks_by_pack(&self) -> Vec<Vec<u32>> {
        let mut packs = vec![Vec::new(); self.layout.packs().len()];
        for (chunk, place) in (0..).zip(self.layout.places()) {
            packs[place.pack as usize].push(chunk);
        }
        packs
    }

    /// Whether a whole pack holds these of its chunks as they must be.
    pub fn check_pack(&self, chunks: &[u32], pack: &[u8]) -> Result<(), Error> {
        let mut unpacker = Unpacker::new()?;
        chunks.iter().try_for_each(|chunk| self.unpack_chunk(&mut unpacker, *chunk, 0, pack).map(drop))
    }

    /// A chunk, from bytes that begin at this offset of its pack.
    fn unpack_chunk(&self, unpacker: &mut Unpacker, at: u32, offset: u64, read: &[u8]) -> Result<Vec<u8>, Error> {
        let (chunk, place) = (&self.manifest.chunks()[at as usize], &self.layout.places()[at as usize]);
        let pack = self.layout.pack_of(place).pack;
        let first = u64::from(place.offset).checked_sub(offset).and_then(|first| usize::try_from(first).ok());
        let stored = first.and_then(|first| read.get(first..)?.get(..place.stored as usize));
        let stored = stored.ok_or(Error::WrongChunk { chunk: chunk.id, pack })?;
        let mut bytes = vec![0; chunk.bytes as usize];
        unpacker.unpack(chunk, place, pack, stored, &mut bytes)?;
        Ok(bytes)
    }
}
