//! Who reads what: stretches of the tree in its order, each for one segment.
//!
//! ```text
//! small files, links, empty folders ──▶ Batch: many at once, read by one worker
//! a large file ──▶ Data, Data, Zeros, Hole, Data …: read by any workers at once, cut in turn (`read`)
//! ```
//!
//! Planning opens files and reads nothing but what their metadata say.

use std::sync::Arc;

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use super::{
    read::{Large, Opened, Opener},
    segment::{SEGMENT_BYTES, SEGMENT_ENTRIES_MAX},
};
use crate::{
    CHUNK_BYTES_MAX, Error,
    walk::{Cursor, Kind, Tree},
};

/// A stretch of the tree.
pub(super) enum Part {
    Batch(Vec<Small>),
    Piece(Piece),
}

/// An entry that is read at once.
pub(super) enum Small {
    File(Opened),
    /// Nothing of it is read.
    Other,
}

/// A stretch of a large file.
pub(super) struct Piece {
    pub(super) file: Arc<Large>,
    /// Its place among the pieces of the file.
    pub(super) turn: u64,
    pub(super) what: Stretch,
    /// The file ends with it.
    pub(super) last: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stretch {
    Data {
        offset: u64,
        bytes: usize,
    },
    /// The beginning of a hole: what was not cut before it ends here.
    Zeros {
        bytes: usize,
    },
    /// The rest of it.
    Hole {
        bytes: u64,
    },
}

pub(super) struct Planner<'a> {
    tree: &'a Tree,
    cursor: Cursor<'a>,
    parts: u64,
    opener: Opener,
    /// A file that was opened and is not planned yet.
    ahead: Option<Opened>,
    large: Option<Pieces>,
    stopped: bool,
}

impl<'a> Planner<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        Self {
            tree,
            cursor: tree.cursor(),
            parts: 0,
            opener: Opener::default(),
            ahead: None,
            large: None,
            stopped: false,
        }
    }

    /// The next part and its number. None at the end, or after [`Planner::stop`].
    pub(super) fn next(&mut self) -> Result<Option<(u64, Part)>, Error> {
        if self.stopped {
            return Ok(None);
        }
        let part = match &mut self.large {
            Some(pieces) => Some(Part::Piece(pieces.next()?)),
            None => self.entries()?,
        };
        if let Some(Part::Piece(Piece { last: true, .. })) = part {
            self.large = None;
        }
        let number = self.parts;
        self.parts += 1;
        Ok(part.map(|part| (number, part)))
    }

    /// Something failed: no more parts.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    fn entries(&mut self) -> Result<Option<Part>, Error> {
        let mut batch = Vec::new();
        let (mut room, mut files) = (SEGMENT_BYTES as u64, 0);
        while files < FILES_OPEN_MAX && batch.len() < SEGMENT_ENTRIES_MAX {
            let file = match self.ahead.take() {
                Some(ahead) => ahead,
                None => match self.cursor.next() {
                    None => break,
                    Some(found) if found.kind != Kind::File => {
                        batch.push(Small::Other);
                        continue;
                    }
                    Some(found) => self.opener.open(self.tree.full(found.path))?,
                },
            };
            let bytes = file.stamp.bytes;
            if bytes > room {
                if bytes > SEGMENT_BYTES as u64 && batch.is_empty() {
                    let mut pieces = Pieces::new(Large::new(file));
                    let first = pieces.next()?;
                    self.large = Some(pieces);
                    return Ok(Some(Part::Piece(first)));
                }
                self.ahead = Some(file);
                break;
            }
            room -= bytes;
            files += 1;
            batch.push(Small::File(file));
        }
        Ok((!batch.is_empty()).then_some(Part::Batch(batch)))
    }
}

/// Files that wait in one part. Each worker has a part, and a process may be allowed no more than 1024 files.
const FILES_OPEN_MAX: usize = 32;
/// Holes shorter than this are read as any bytes are.
const HOLE_BYTES_MIN: u64 = SEGMENT_BYTES as u64;
/// So many zeros end every chunk that began before them, and one more.
const ZEROS_BYTES: usize = 2 * CHUNK_BYTES_MAX;
const _: () = assert!(ZEROS_BYTES <= SEGMENT_BYTES, "the beginning of a hole fits in a segment, and in the hole");

/// A large file, as far as it is planned.
struct Pieces {
    file: Arc<Large>,
    turn: u64,
    offset: u64,
    /// Where the data or the hole that `offset` lies in ends.
    end: u64,
    in_hole: bool,
}

impl Pieces {
    fn new(file: Large) -> Self {
        Self { file: Arc::new(file), turn: 0, offset: 0, end: 0, in_hole: false }
    }

    fn next(&mut self) -> Result<Piece, Error> {
        let what = if self.offset < self.end {
            self.go_on()
        } else {
            self.find_extent()?;
            if self.in_hole { Stretch::Zeros { bytes: ZEROS_BYTES } } else { self.go_on() }
        };
        self.offset += match what {
            Stretch::Data { bytes, .. } | Stretch::Zeros { bytes } => bytes as u64,
            Stretch::Hole { bytes } => bytes,
        };
        self.turn += 1;
        let last = self.offset == self.file.opened.stamp.bytes;
        Ok(Piece { file: self.file.clone(), turn: self.turn - 1, what, last })
    }

    fn go_on(&self) -> Stretch {
        let left = self.end - self.offset;
        if self.in_hole {
            return Stretch::Hole { bytes: left };
        }
        let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(SEGMENT_BYTES);
        Stretch::Data { offset: self.offset, bytes }
    }

    /// Finds out what lies at `offset`, and how far it goes. A file that changes meanwhile is noticed once it is read.
    fn find_extent(&mut self) -> Result<(), Error> {
        let Opened { file, path, stamp } = &self.file.opened;
        (self.end, self.in_hole) = (stamp.bytes, false);
        if !stamp.sparse {
            return Ok(());
        }
        let find = |from| match seek(file, from) {
            Ok(at) => Ok(Some(at.clamp(self.offset, stamp.bytes))),
            // Nothing of that kind comes any more; or the file system does not tell.
            Err(Errno::NXIO) => Ok(Some(stamp.bytes)),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(Error::io("read", path)(error.into())),
        };
        let Some(data) = find(SeekFrom::Data(self.offset))? else { return Ok(()) };
        if data - self.offset >= HOLE_BYTES_MIN {
            (self.end, self.in_hole) = (data, true);
        } else if let Some(hole) = find(SeekFrom::Hole(data))?.filter(|hole| *hole > self.offset) {
            self.end = hole;
        }
        Ok(())
    }
}
