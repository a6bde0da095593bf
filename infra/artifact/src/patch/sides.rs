//! What an artifact and its base do not have in common.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::{Entry, Installed, Manifest};

/// The chunks that only the base has, one after the other in the order of its manifest.
pub(super) struct Gone {
    pub(super) chunks: Vec<GoneChunk>,
    pub(super) bytes: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct GoneChunk {
    /// Index into the base's chunks.
    pub(super) at: u32,
    pub(super) bytes: u32,
    /// Where it begins among what is gone.
    pub(super) start: u64,
    /// The entry of the base that has it first, and where.
    entry: u32,
    offset: u64,
}

impl Gone {
    pub(super) fn between(manifest: &Manifest, base: &Manifest) -> Self {
        let mut gone = Self { chunks: Vec::new(), bytes: 0 };
        let mut seen = 0;
        for (entry, found) in (0..).zip(base.entries()) {
            let Entry::File(file) = found else { continue };
            let mut offset = 0;
            for at in base.chunks_of(file) {
                let chunk = base.chunks()[*at as usize];
                // A manifest numbers its chunks in the order in which they come first.
                if *at == seen {
                    seen += 1;
                    if manifest.table().find(&chunk.id).is_none() {
                        let start = gone.bytes;
                        gone.chunks.push(GoneChunk { at: *at, bytes: chunk.bytes, start, entry, offset });
                        gone.bytes += u64::from(chunk.bytes);
                    }
                }
                offset += u64::from(chunk.bytes);
            }
        }
        gone
    }

    /// The chunk that holds this place.
    fn holding(&self, place: u64) -> Option<&GoneChunk> {
        let after = self.chunks.partition_point(|chunk| chunk.start <= place);
        self.chunks.get(after.checked_sub(1)?)
    }
}

/// The chunks of the manifest that the base lacks, as indices into them, in their order.
pub(super) fn missing(manifest: &Manifest, base: &Manifest) -> Vec<u32> {
    let chunks = (0..).zip(manifest.chunks());
    chunks.filter(|(_, chunk)| base.table().find(&chunk.id).is_none()).map(|(at, _)| at).collect()
}

/// Reads what is gone from where the base is installed. What it reads is not verified.
pub(super) struct GoneFiles<'a> {
    gone: &'a Gone,
    base: &'a Installed,
    /// The file that was read last; most reads are of the same one.
    open: Option<(u32, File)>,
}

impl<'a> GoneFiles<'a> {
    pub(super) fn new(gone: &'a Gone, base: &'a Installed) -> Self {
        Self { gone, base, open: None }
    }

    pub(super) fn read_at(&mut self, mut place: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let chunk = *self.gone.holding(place).ok_or(io::ErrorKind::UnexpectedEof)?;
            let into = place - chunk.start;
            let rest = u64::from(chunk.bytes).checked_sub(into).filter(|rest| *rest > 0);
            let rest = usize::try_from(rest.ok_or(io::ErrorKind::UnexpectedEof)?).unwrap_or(usize::MAX);
            let (now, later) = buffer.split_at_mut(rest.min(buffer.len()));
            self.file(chunk.entry)?.read_exact_at(now, chunk.offset + into)?;
            place += now.len() as u64;
            buffer = later;
        }
        Ok(())
    }

    fn file(&mut self, entry: u32) -> io::Result<&File> {
        let file = match self.open.take() {
            Some((open, file)) if open == entry => file,
            _ => File::open(self.base.dir.join(self.base.manifest.entries()[entry as usize].path()))?,
        };
        Ok(&self.open.insert((entry, file)).1)
    }
}
