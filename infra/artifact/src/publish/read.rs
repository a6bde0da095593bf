//! The first stage: reads the tree's files in order and cuts them into chunks by content.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    sync::mpsc::{Receiver, SyncSender},
};

use fastcdc::v2020::{Normalization, cut, select_masks};
use rustix::fs::OFlags;

use super::segment::{EntryEnd, SEGMENT_ENTRIES_MAX, Segment};
use crate::{
    CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Error,
    walk::{Kind, Tree},
};

/// Where to cut. These values are part of the format: others would cut the same bytes elsewhere.
struct Cuts {
    strict: u64,
    loose: u64,
}

impl Cuts {
    fn new() -> Self {
        let (strict, loose) = select_masks(CHUNK_BYTES_AVERAGE, Normalization::Level2);
        Self { strict, loose }
    }

    /// The length of the chunk that these bytes begin with.
    fn next(&self, bytes: &[u8]) -> usize {
        let (min, average, max) = (CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX);
        cut(bytes, min, average, max, self.strict, self.loose, self.strict << 1, self.loose << 1).1
    }
}

pub(super) struct Reader<'a> {
    tree: &'a Tree,
    empty: Receiver<Segment>,
    full: SyncSender<Segment>,
    segment: Segment,
    /// Where the chunk that is not yet cut begins.
    start: usize,
    cuts: Cuts,
}

impl<'a> Reader<'a> {
    pub(super) fn new(tree: &'a Tree, empty: Receiver<Segment>, full: SyncSender<Segment>) -> Result<Self, Error> {
        let mut segment = empty.recv().map_err(|_| Error::Interrupted)?;
        segment.reset(0);
        Ok(Self { tree, empty, full, segment, start: 0, cuts: Cuts::new() })
    }

    pub(super) fn run(mut self) -> Result<(), Error> {
        for (entry, found) in self.tree.entries.iter().enumerate() {
            let mode = match found.kind {
                Kind::File => self.file(self.tree.full(found))?,
                Kind::Link(_) | Kind::Directory => 0,
            };
            self.segment.ends.push(EntryEnd { after: self.segment.cuts.len(), entry, mode });
            if self.segment.ends.len() == SEGMENT_ENTRIES_MAX {
                self.advance()?;
            }
        }
        self.full.send(self.segment).map_err(|_| Error::Interrupted)
    }

    /// Reads one file to its end and says its permission bits.
    fn file(&mut self, path: PathBuf) -> Result<u16, Error> {
        let (mut file, before) = open(&path)?;
        let mut read_bytes = 0;
        loop {
            if self.segment.filled == self.segment.data.len() {
                self.advance()?;
            }
            let filled = self.segment.filled;
            let read = match file.read(&mut self.segment.data[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(Error::io("read", &path))?,
            };
            self.segment.filled += read;
            read_bytes += read as u64;
            self.cut(read == 0);
            if read == 0 {
                break;
            }
            if read_bytes > before.len() {
                return Err(Error::Changed { path });
            }
        }
        let after = file.metadata().map_err(Error::io("look at", &path))?;
        if read_bytes != before.len() || stamp(&before) != stamp(&after) {
            return Err(Error::Changed { path });
        }
        Ok(u16::try_from(before.mode() & 0o777).expect("nine bits"))
    }

    /// Cuts as long as the cut cannot depend on bytes that were not read yet.
    fn cut(&mut self, at_end: bool) {
        loop {
            let rest = &self.segment.data[self.start..self.segment.filled];
            if rest.is_empty() || (!at_end && rest.len() < CHUNK_BYTES_MAX) {
                return;
            }
            self.start += self.cuts.next(rest);
            self.segment.cuts.push(self.start);
        }
    }

    /// Hands the segment on and begins the next one with the bytes that are not cut yet.
    fn advance(&mut self) -> Result<(), Error> {
        let mut next = self.empty.recv().map_err(|_| Error::Interrupted)?;
        next.reset(self.segment.number + 1);
        let rest = &self.segment.data[self.start..self.segment.filled];
        next.data[..rest.len()].copy_from_slice(rest);
        next.filled = rest.len();
        self.segment.filled = self.start;
        self.start = 0;
        let full = std::mem::replace(&mut self.segment, next);
        self.full.send(full).map_err(|_| Error::Interrupted)
    }
}

/// Opens what the walk saw as a file: never a link or a pipe that took its place since.
fn open(path: &PathBuf) -> Result<(File, Metadata), Error> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let flags = i32::try_from(flags).expect("open's flags are an int");
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("look at", path))?;
    if !metadata.is_file() {
        return Err(Error::Changed { path: path.clone() });
    }
    Ok((file, metadata))
}

fn stamp(metadata: &Metadata) -> (u64, i64, i64, i64, i64) {
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    (metadata.len(), modified.0, modified.1, metadata.ctime(), metadata.ctime_nsec())
}
