//! The layout: in which pack and range each chunk of a manifest lies.
//!
//! ```text
//! magic "LSLAYOU\x01"
//! number of packs, (pack id, bytes) each
//! number of chunks, (pack index, offset, stored length, codec u8) each, in order of first appearance in the manifest
//! ```
//!
//! It is not part of an artifact's name: the same artifact may be packed differently by two workers. It is not trusted
//! either: a chunk that is not where the layout says fails its hash.

use std::io::{self, BufReader, Read, Write};

use longshore_schemas::PackId;

use crate::{
    Chunk, Error, Manifest, PACK_BYTES_MAX, PackRef,
    wire::{WireError, expect_end, malformed, read_array, read_bounded, read_varint, write_varint},
};

const MAGIC: &[u8; 8] = b"LSLAYOU\x01";
/// Most packs that one artifact may lie in.
const PACKS_MAX: u64 = 1_000_000;
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// How a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Raw,
    Zstd,
}

impl Codec {
    fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }
}

/// Where a chunk lies: a range of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index into [`Layout::packs`].
    pub pack: u32,
    pub offset: u32,
    /// Length in the pack.
    pub stored: u32,
    pub codec: Codec,
}

/// Packs, and for every chunk of the manifest its place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    pub(crate) packs: Vec<PackRef>,
    pub(crate) places: Vec<Place>,
}

impl Layout {
    /// The packs that hold chunks of this artifact, in order of first use.
    pub fn packs(&self) -> &[PackRef] {
        &self.packs
    }

    /// The places of [`Manifest::chunks`], in the same order.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    pub fn pack_of(&self, place: &Place) -> &PackRef {
        &self.packs[place.pack as usize]
    }

    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(MAGIC)?;
        write_varint(out, self.packs.len() as u64)?;
        for pack in &self.packs {
            out.write_all(pack.pack.as_bytes())?;
            write_varint(out, pack.bytes)?;
        }
        write_varint(out, self.places.len() as u64)?;
        for place in &self.places {
            write_varint(out, u64::from(place.pack))?;
            write_varint(out, u64::from(place.offset))?;
            write_varint(out, u64::from(place.stored))?;
            out.write_all(&[place.codec.code()])?;
        }
        Ok(())
    }

    /// Reads the layout of this manifest. Every range lies within its pack afterwards, and no two overlap.
    pub fn read(from: impl Read, manifest: &Manifest) -> Result<Self, Error> {
        Self::read_for(from, manifest.chunks())
    }

    /// Reads the layout of these chunks.
    pub(crate) fn read_for(from: impl Read, chunks: &[Chunk]) -> Result<Self, Error> {
        let mut from = BufReader::with_capacity(READ_BUFFER_BYTES, from);
        Self::read_wire(&mut from, chunks).map_err(|error| error.of("layout"))
    }

    fn read_wire(from: &mut impl Read, chunks: &[Chunk]) -> Result<Self, WireError> {
        if read_array(from)? != *MAGIC {
            return malformed("it does not begin as a layout of version 1");
        }
        let packs = read_bounded(from, PACKS_MAX, "the number of packs")?;
        let mut layout = Self::default();
        for _ in 0..packs {
            let pack = PackId::from_bytes(read_array(from)?);
            let bytes = read_bounded(from, PACK_BYTES_MAX as u64, "a pack's size")?;
            layout.packs.push(PackRef { pack, bytes });
        }
        let places = read_varint(from)?;
        if places != chunks.len() as u64 {
            return malformed(format!("it places {places} chunks, the manifest has {}", chunks.len()));
        }
        for chunk in chunks {
            let place = layout.read_place(from, chunk.bytes)?;
            layout.places.push(place);
        }
        expect_end(from)?;
        layout.refuse_overlaps()?;
        Ok(layout)
    }

    /// Different chunks are different bytes: two that share some are a lie.
    fn refuse_overlaps(&self) -> Result<(), WireError> {
        let mut ranges: Vec<_> = self.places.iter().map(|place| (place.pack, place.offset, place.stored)).collect();
        ranges.sort_unstable();
        let overlap = ranges.windows(2).find(|two| two[0].0 == two[1].0 && two[0].1 + two[0].2 > two[1].1);
        match overlap {
            Some(two) => malformed(format!("two chunks overlap at {} in pack {}", two[1].1, two[1].0)),
            None => Ok(()),
        }
    }

    fn read_place(&self, from: &mut impl Read, chunk_bytes: u32) -> Result<Place, WireError> {
        let bounded = |from: &mut _, what| {
            let value = read_bounded(from, PACK_BYTES_MAX as u64, what)?;
            u32::try_from(value).or_else(|_| malformed(what))
        };
        let pack = bounded(from, "a pack's index")?;
        let offset = bounded(from, "a chunk's offset")?;
        let stored = bounded(from, "a chunk's stored length")?;
        let Some(pack_bytes) = self.packs.get(pack as usize).map(|pack| pack.bytes) else {
            return malformed(format!("a chunk lies in pack {pack} of {}", self.packs.len()));
        };
        if stored == 0 || u64::from(offset) + u64::from(stored) > pack_bytes {
            return malformed(format!("a chunk lies at {offset}, length {stored}, in a pack of {pack_bytes} bytes"));
        }
        let codec = match read_array::<1>(from)?[0] {
            0 if stored == chunk_bytes => Codec::Raw,
            1 if stored < chunk_bytes => Codec::Zstd,
            code => {
                return malformed(format!("a chunk of {chunk_bytes} bytes is stored as {stored} with codec {code}"));
            }
        };
        Ok(Place { pack, offset, stored, codec })
    }
}

#[cfg(test)]
mod tests {
    use longshore_schemas::ChunkId;

    use super::*;
    use crate::manifest;

    fn manifest() -> Manifest {
        let chunks = [Chunk { id: ChunkId::of(b"1"), bytes: 100 }, Chunk { id: ChunkId::of(b"2"), bytes: 200 }];
        let bytes = manifest::encode(|writer| writer.file("a", 0o644, &chunks, &[0, 1]).expect("valid"));
        Manifest::read(&bytes[..]).expect("valid")
    }

    fn layout() -> Layout {
        Layout {
            packs: vec![PackRef { pack: PackId::of(b"p"), bytes: 150 }],
            places: vec![
                Place { pack: 0, offset: 0, stored: 100, codec: Codec::Raw },
                Place { pack: 0, offset: 100, stored: 50, codec: Codec::Zstd },
            ],
        }
    }

    fn written(layout: &Layout) -> Vec<u8> {
        let mut bytes = Vec::new();
        layout.write(&mut bytes).expect("memory");
        bytes
    }

    #[test]
    fn round_trip_and_cuts() {
        let bytes = written(&layout());
        assert_eq!(Layout::read(&bytes[..], &manifest()).expect("valid"), layout());
        for length in 0..bytes.len() {
            Layout::read(&bytes[..length], &manifest()).expect_err("cut");
        }
    }

    #[test]
    fn ranges_that_lie_outside_their_pack_or_overlap_are_refused() {
        let changes: [fn(&mut Layout); 9] = [
            |layout| layout.places[1].pack = 1,
            |layout| layout.places[1].offset = 101,
            |layout| layout.places[1].offset = 8_000_000,
            |layout| layout.places[0].stored = 99,
            |layout| layout.places[1].stored = 0,
            |layout| layout.places[1].codec = Codec::Raw,
            |layout| layout.places.truncate(1),
            |layout| layout.places[1].offset = 99,
            |layout| layout.places[1].offset = 0,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut bad = layout();
            change(&mut bad);
            Layout::read(&written(&bad)[..], &manifest()).expect_err(&format!("change {number}"));
        }
    }
}
