//! The manifest: what files a tree has and of which chunks they consist.
//!
//! ```text
//! magic "LSMANIF\x01"
//! entries, in strictly rising order of their path's bytes, each a tag and then
//!   1 file       path, mode (u16), size, number of chunks, (chunk id, length u32) each
//!   2 link       path, target
//!   3 directory  path, of an empty directory
//! tag 0, and nothing after it
//! ```
//!
//! Integers without a width are variable-length in their shortest form, fixed ones little-endian, texts UTF-8 with their
//! length before them. One tree has exactly one manifest, so its BLAKE3 can name the artifact. Reader and writer stream:
//! they hold one entry, and the reader the table of chunks. Neither owner nor times are kept, nor directories' modes.

use std::{
    io::{self, BufReader, Read, Write},
    ops::Range,
};

use longshore_schemas::{ArtifactId, ChunkId};

use crate::{
    CHUNK_BYTES_MAX, Error,
    path::{PATH_BYTES_MAX, PathOrder, refuse_link, refuse_path},
    table::ChunkTable,
    wire::{
        WireError, expect_end, malformed, read_array, read_bounded, read_text, read_varint, write_text, write_varint,
    },
};

const MAGIC: &[u8; 8] = b"LSMANIF\x01";
const TAG_END: u8 = 0;
const TAG_FILE: u8 = 1;
const TAG_LINK: u8 = 2;
const TAG_DIRECTORY: u8 = 3;
/// The permission bits that are kept; set-user-id and its like are not.
const MODE_MASK: u16 = 0o777;
/// Most entries of one tree.
pub(crate) const ENTRIES_MAX: usize = 4_000_000;
/// Most chunk references of one tree: 900 GiB at the average size. So many fit in `INDEX_BYTES_MAX`.
pub(crate) const REFERENCES_MAX: usize = 14_000_000;
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// A chunk and how long it is, uncompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub id: ChunkId,
    pub bytes: u32,
}

/// One entry of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    File(FileRef),
    Link {
        path: Box<str>,
        target: Box<str>,
    },
    /// An empty directory; others exist by what they hold.
    Directory {
        path: Box<str>,
    },
}

impl Entry {
    pub fn path(&self) -> &str {
        match self {
            Self::File(FileRef { path, .. }) | Self::Link { path, .. } | Self::Directory { path } => path,
        }
    }
}

/// A regular file. Its chunks are [`Manifest::chunks_of`] it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRef {
    pub path: Box<str>,
    /// Permission bits, at most 0o777.
    pub mode: u16,
    pub bytes: u64,
    first: u32,
    count: u32,
}

/// A whole manifest in memory: 4 bytes for a reference to a chunk, 45 for each different chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    id: ArtifactId,
    entries: Vec<Entry>,
    table: ChunkTable,
    references: Vec<u32>,
}

impl Manifest {
    /// The artifact's name: the BLAKE3 of the manifest's bytes.
    pub fn id(&self) -> ArtifactId {
        self.id
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn files(&self) -> impl Iterator<Item = &FileRef> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::File(file) => Some(file),
            _ => None,
        })
    }

    /// Every different chunk, in order of first appearance; the layout lists their places in the same order.
    pub fn chunks(&self) -> &[Chunk] {
        self.table.chunks()
    }

    /// [`Manifest::chunks`], to be found by their names.
    pub(crate) fn table(&self) -> &ChunkTable {
        &self.table
    }

    /// The chunks of a file of this manifest in order, as indices into [`Manifest::chunks`].
    pub fn chunks_of(&self, file: &FileRef) -> &[u32] {
        let first = file.first as usize;
        self.references.get(first..first + file.count as usize).unwrap_or_default()
    }

    /// Sum of the sizes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files().map(|file| file.bytes).sum()
    }

    /// Reads a manifest to its end. Whether it is the expected one is for the caller to compare.
    pub fn read(from: impl Read) -> Result<Self, Error> {
        Self::read_bounded(from, ENTRIES_MAX as u64)
    }

    /// The same, of no more entries than this.
    pub(crate) fn read_bounded(from: impl Read, entries_max: u64) -> Result<Self, Error> {
        let mut entries = Vec::new();
        let mut reader = Reader::new(from, entries_max);
        let id = reader.read(|entry| entries.push(entry)).map_err(|error| error.of("manifest"))?;
        let Reader { table, references, .. } = reader;
        Ok(Self { id, entries, table, references })
    }

    /// Reads a manifest as [`Manifest::read_bounded`] does, and keeps no entries.
    pub(crate) fn read_outline(from: impl Read, entries_max: u64) -> Result<Outline, Error> {
        let (mut entries, mut size_bytes) = (0, 0);
        let mut reader = Reader { keep_references: false, ..Reader::new(from, entries_max) };
        let count = |entry| {
            entries += 1;
            size_bytes += if let Entry::File(file) = entry { file.bytes } else { 0 };
        };
        let id = reader.read(count).map_err(|error| error.of("manifest"))?;
        Ok(Outline { id, table: reader.table, entries, size_bytes })
    }

    /// Writes the bytes that it was read from.
    pub fn write(&self, out: impl Write) -> Result<(), Error> {
        let mut writer = Writer::new(out).map_err(WireError::from).map_err(|error| error.of("manifest"))?;
        for entry in &self.entries {
            match entry {
                Entry::File(file) => writer.file(&file.path, file.mode, self.chunks(), self.chunks_of(file)),
                Entry::Link { path, target } => writer.link(path, target),
                Entry::Directory { path } => writer.directory(path),
            }
            .map_err(|error| error.of("manifest"))?;
        }
        writer.finish().map(drop).map_err(|error| WireError::from(error).of("manifest"))
    }
}

/// What is left of a manifest without its entries.
pub(crate) struct Outline {
    pub(crate) id: ArtifactId,
    pub(crate) table: ChunkTable,
    pub(crate) entries: u64,
    pub(crate) size_bytes: u64,
}

/// Writes a manifest entry by entry.
pub(crate) struct Writer<W> {
    out: W,
    order: PathOrder,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        Ok(Self { out, order: PathOrder::default() })
    }

    /// A file of these chunks of the table.
    pub(crate) fn file(&mut self, path: &str, mode: u16, table: &[Chunk], chunks: &[u32]) -> Result<(), WireError> {
        let chunks = || chunks.iter().map(|at| &table[*at as usize]);
        self.begin(TAG_FILE, path)?;
        self.out.write_all(&(mode & MODE_MASK).to_le_bytes())?;
        write_varint(&mut self.out, chunks().map(|chunk| u64::from(chunk.bytes)).sum())?;
        write_varint(&mut self.out, chunks().count() as u64)?;
        for chunk in chunks() {
            self.out.write_all(chunk.id.as_bytes())?;
            self.out.write_all(&chunk.bytes.to_le_bytes())?;
        }
        Ok(())
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<(), WireError> {
        self.begin(TAG_LINK, path)?;
        Ok(write_text(&mut self.out, target)?)
    }

    pub(crate) fn directory(&mut self, path: &str) -> Result<(), WireError> {
        self.begin(TAG_DIRECTORY, path)
    }

    fn begin(&mut self, tag: u8, path: &str) -> Result<(), WireError> {
        self.order.accept(path).or_else(|reason| malformed(format!("{path:?}: {reason}")))?;
        self.out.write_all(&[tag])?;
        Ok(write_text(&mut self.out, path)?)
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[TAG_END])?;
        Ok(self.out)
    }
}

/// Hashes what passes through it, on its way to be read or written.
pub(crate) struct Hashing<T> {
    pub(crate) inner: T,
    hasher: blake3::Hasher,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, hasher: blake3::Hasher::new() }
    }

    pub(crate) fn artifact(&self) -> ArtifactId {
        ArtifactId::from_bytes(*self.hasher.finalize().as_bytes())
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Reader<R> {
    from: BufReader<Hashing<R>>,
    entries_max: u64,
    order: PathOrder,
    table: ChunkTable,
    references: Vec<u32>,
    /// Otherwise those of one file at a time.
    keep_references: bool,
    referred: usize,
}

impl<R: Read> Reader<R> {
    fn new(from: R, entries_max: u64) -> Self {
        Self {
            from: BufReader::with_capacity(READ_BUFFER_BYTES, Hashing::new(from)),
            entries_max: entries_max.min(ENTRIES_MAX as u64),
            order: PathOrder::default(),
            table: ChunkTable::default(),
            references: Vec::new(),
            keep_references: true,
            referred: 0,
        }
    }

    /// Hands over entry after entry, and says the manifest's name.
    fn read(&mut self, mut take: impl FnMut(Entry)) -> Result<ArtifactId, WireError> {
        if read_array(&mut self.from)? != *MAGIC {
            return malformed("it does not begin as a manifest of version 1");
        }
        for number in 0.. {
            let entry = match read_array::<1>(&mut self.from)?[0] {
                TAG_END => break,
                _ if number == self.entries_max => {
                    return malformed(format!("it has more than {} entries", self.entries_max));
                }
                TAG_FILE => self.file()?,
                TAG_LINK => self.link()?,
                TAG_DIRECTORY => Entry::Directory { path: self.path()? },
                tag => return malformed(format!("an entry has the unknown tag {tag}")),
            };
            take(entry);
        }
        expect_end(&mut self.from)?;
        Ok(self.from.get_ref().artifact())
    }

    fn path(&mut self) -> Result<Box<str>, WireError> {
        let path = read_text(&mut self.from, PATH_BYTES_MAX)?;
        let refused = refuse_path(&path).or_else(|| self.order.accept(&path).err());
        match refused {
            Some(reason) => malformed(format!("{path:?}: {reason}")),
            None => Ok(path.into()),
        }
    }

    fn link(&mut self) -> Result<Entry, WireError> {
        let path = self.path()?;
        let target = read_text(&mut self.from, PATH_BYTES_MAX)?;
        match refuse_link(&path, &target) {
            Some(reason) => malformed(format!("{path:?}: {reason}")),
            None => Ok(Entry::Link { path, target: target.into() }),
        }
    }

    fn file(&mut self) -> Result<Entry, WireError> {
        let path = self.path()?;
        let mode = u16::from_le_bytes(read_array(&mut self.from)?);
        if mode & !MODE_MASK != 0 {
            return malformed(format!("{path:?} has the mode {mode:o}, more than 777"));
        }
        let bytes = read_varint(&mut self.from)?;
        let room = REFERENCES_MAX - self.referred;
        let count = read_bounded(&mut self.from, room as u64, "the number of chunks")?;
        if !self.keep_references {
            self.references.clear();
        }
        let Range { start, end } = self.references(count)?;
        self.referred += end - start;
        let chunks = self.references[start..end].iter().map(|at| self.table.chunks()[*at as usize]);
        let sum: u64 = chunks.map(|chunk| u64::from(chunk.bytes)).sum();
        if sum != bytes {
            return malformed(format!("{path:?} has {bytes} bytes, but its chunks {sum}"));
        }
        let narrow = |value: usize| u32::try_from(value).expect("REFERENCES_MAX fits in 32 bits");
        Ok(Entry::File(FileRef { path, mode, bytes, first: narrow(start), count: narrow(end - start) }))
    }

    fn references(&mut self, count: u64) -> Result<Range<usize>, WireError> {
        let start = self.references.len();
        for _ in 0..count {
            let id = ChunkId::from_bytes(read_array(&mut self.from)?);
            let bytes = u32::from_le_bytes(read_array(&mut self.from)?);
            if bytes == 0 || bytes as usize > CHUNK_BYTES_MAX {
                return malformed(format!("chunk {id} has {bytes} bytes; 1 to {CHUNK_BYTES_MAX} are possible"));
            }
            let (at, _) = self.table.insert(Chunk { id, bytes });
            if self.table.chunks()[at].bytes != bytes {
                return malformed(format!("chunk {id} has two lengths"));
            }
            self.references.push(u32::try_from(at).expect("REFERENCES_MAX fits in 32 bits"));
        }
        Ok(start..self.references.len())
    }
}

#[cfg(test)]
pub(crate) fn encode(build: impl FnOnce(&mut Writer<Vec<u8>>)) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).expect("memory");
    build(&mut writer);
    writer.finish().expect("memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(seed: u8, bytes: u32) -> Chunk {
        Chunk { id: ChunkId::of(&[seed]), bytes }
    }

    fn sample() -> Vec<u8> {
        encode(|writer| {
            writer.file("a", 0o755, &[chunk(1, 10), chunk(2, 20)], &[0, 1, 0]).expect("valid");
            writer.directory("b/empty").expect("valid");
            writer.link("b/link", "../a").expect("valid");
            writer.file("c", 0o644, &[], &[]).expect("valid");
        })
    }

    #[test]
    fn what_is_written_is_read_and_written_alike() {
        let bytes = sample();
        let manifest = Manifest::read(&bytes[..]).expect("valid");
        assert_eq!(manifest.id(), ArtifactId::of(&bytes));
        assert_eq!(manifest.chunks(), [chunk(1, 10), chunk(2, 20)]);
        let first = manifest.files().next().expect("a file");
        assert_eq!((first.bytes, manifest.chunks_of(first)), (40, &[0, 1, 0][..]));
        let mut again = Vec::new();
        manifest.write(&mut again).expect("memory");
        assert_eq!(again, bytes);
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
        let bytes = sample();
        for length in 0..bytes.len() {
            Manifest::read(&bytes[..length]).expect_err("cut");
        }
        Manifest::read(&[&bytes[..], b"x"].concat()[..]).expect_err("longer");
    }

    #[test]
    fn a_flipped_byte_never_panics_and_never_keeps_the_name() {
        let bytes = sample();
        for position in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[position] ^= flip;
                if let Ok(manifest) = Manifest::read(&bad[..]) {
                    assert_ne!(manifest.id(), ArtifactId::of(&bytes));
                }
            }
        }
    }

    #[test]
    fn bad_entries_are_refused_with_their_path() {
        type Build = fn(&mut Writer<Vec<u8>>);
        let cases: [(&str, Build); 5] = [
            ("../x", |writer| writer.file("../x", 0o644, &[], &[]).expect("written")),
            ("/x", |writer| writer.directory("/x").expect("written")),
            ("out", |writer| writer.link("out", "../..").expect("written")),
            ("has 0 bytes", |writer| writer.file("f", 0o644, &[chunk(1, 0)], &[0]).expect("written")),
            ("two lengths", |writer| writer.file("f", 0o644, &[chunk(1, 1), chunk(1, 2)], &[0, 1]).expect("written")),
        ];
        for (part, build) in cases {
            let error = Manifest::read(&encode(build)[..]).expect_err(part);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
