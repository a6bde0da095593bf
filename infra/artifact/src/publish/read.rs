//! Reading: small files by the batch, large ones by many workers at once.
//!
//! Where a large file is cut depends on where it was cut before. So its pieces are read by whoever comes, and cut one after the
//! other: a piece's worker waits for its turn, takes what the piece before left uncut, and leaves its own rest to the next.

use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{
    cut::Cutter,
    plan::{Part, Piece, Small, Stretch},
    segment::{EntryEnd, HEAD_BYTES, Segment},
};
use crate::{CHUNK_BYTES_MAX, Error};

/// What tells whether a file was changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    pub(super) bytes: u64,
    /// It has fewer blocks than bytes.
    pub(super) sparse: bool,
    mode: u32,
    identity: [u64; 2],
    times: [i64; 4],
}

impl Stamp {
    /// Of what the walk saw as a file; it still must be one.
    fn of(file: &File, path: &Path) -> Result<Self, Error> {
        let metadata = file.metadata().map_err(Error::io("look at", path))?;
        if !metadata.is_file() {
            return Err(Error::Changed { path: path.to_owned() });
        }
        Ok(Self {
            bytes: metadata.len(),
            sparse: metadata.blocks() * 512 < metadata.len(),
            mode: metadata.mode(),
            identity: [metadata.dev(), metadata.ino()],
            times: [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()],
        })
    }

    fn permissions(&self) -> u16 {
        u16::try_from(self.mode & 0o777).expect("nine bits")
    }

    /// Blocks may be given to a file late, so they are not compared.
    fn same(&self, other: &Self) -> bool {
        let what = |stamp: &Self| (stamp.bytes, stamp.mode, stamp.identity, stamp.times);
        what(self) == what(other)
    }
}

/// A file of the tree, from when it was planned until it is read.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
}

impl Opened {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Changed { path: self.path.clone() },
            _ => Error::io("read", &self.path)(error),
        })
    }

    /// Whether it is what it was when it was opened.
    fn require_unchanged(&self) -> Result<(), Error> {
        let now = Stamp::of(&self.file, &self.path)?;
        if self.stamp.same(&now) { Ok(()) } else { Err(Error::Changed { path: self.path.clone() }) }
    }
}

/// Opens files one after the other. Most lie in the folder of the one before: its path is walked once.
#[derive(Default)]
pub(super) struct Opener {
    folder: PathBuf,
    handle: Option<OwnedFd>,
}

impl Opener {
    /// Opens what the walk saw as a file: never a link or a pipe that took its place since.
    pub(super) fn open(&mut self, path: PathBuf) -> Result<Opened, Error> {
        let (folder, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
        let handle = match self.handle.take() {
            Some(handle) if self.folder == folder => handle,
            _ => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let opened = rustix::fs::open(folder, flags, Mode::empty());
                opened.map_err(|error| Error::io("open", folder)(error.into()))?
            }
        };
        self.folder.as_mut_os_string().clear();
        self.folder.push(folder);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(self.handle.insert(handle), name, flags, Mode::empty());
        let file = File::from(opened.map_err(|error| match error {
            Errno::LOOP | Errno::NXIO => Error::Changed { path: path.clone() },
            _ => Error::io("open", &path)(error.into()),
        })?);
        let stamp = Stamp::of(&file, &path)?;
        Ok(Opened { file, path, stamp })
    }
}

/// Fills the segment with its part, cut into chunks.
pub(super) fn fill(part: &Part, segment: &mut Segment, cutter: Cutter) -> Result<(), Error> {
    match part {
        Part::Batch(entries) => entries.iter().try_for_each(|entry| small(entry, segment, cutter)),
        Part::Piece(piece) => {
            let mut unless_done = GiveUp(Some(&piece.file));
            large(piece, segment, cutter)?;
            unless_done.0 = None;
            Ok(())
        }
    }
}

/// Nobody may wait for a turn that does not come, whyever that is.
struct GiveUp<'a>(Option<&'a Large>);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.0 {
            file.turns.lock().unwrap_or_else(PoisonError::into_inner).given_up = true;
            file.moved.notify_all();
        }
    }
}

fn small(entry: &Small, segment: &mut Segment, cutter: Cutter) -> Result<(), Error> {
    let Small::File(file) = entry else {
        segment.ends.push(EntryEnd { after: segment.cuts.len(), mode: 0 });
        return Ok(());
    };
    if file.stamp.bytes > 0 {
        let from = segment.end();
        let to = from + usize::try_from(file.stamp.bytes).expect("a batch fits in a segment");
        file.read(0, &mut segment.data[from..to])?;
        file.require_unchanged()?;
        segment.cut(from..to, cutter, true);
    }
    segment.ends.push(EntryEnd { after: segment.cuts.len(), mode: file.stamp.permissions() });
    Ok(())
}

fn large(piece: &Piece, segment: &mut Segment, cutter: Cutter) -> Result<(), Error> {
    let Piece { file, turn, what, last } = piece;
    match what {
        Stretch::Data { offset, bytes } => {
            file.opened.read(*offset, &mut segment.data[HEAD_BYTES..HEAD_BYTES + bytes])?;
        }
        Stretch::Zeros { bytes } => segment.data[HEAD_BYTES..HEAD_BYTES + bytes].fill(0),
        Stretch::Hole { .. } => {}
    }
    let mut turns = file.wait_for(*turn)?;
    match what {
        Stretch::Data { bytes, .. } | Stretch::Zeros { bytes } => {
            let rest = &mut turns.rest;
            segment.start = HEAD_BYTES - rest.len();
            segment.data[segment.start..HEAD_BYTES].copy_from_slice(rest);
            let uncut = segment.cut(segment.start..HEAD_BYTES + bytes, cutter, *last);
            rest.clear();
            rest.extend_from_slice(&segment.data[uncut]);
        }
        Stretch::Hole { bytes } => cut_hole(&mut turns.rest, *bytes, segment, cutter, *last),
    }
    if *last {
        file.opened.require_unchanged()?;
        segment.ends.push(EntryEnd { after: segment.cuts.len(), mode: file.opened.stamp.permissions() });
    }
    turns.next += 1;
    drop(turns);
    file.moved.notify_all();
    Ok(())
}

/// What is uncut before the rest of a hole is zeros too, so it goes on with equal chunks. One of them is enough.
fn cut_hole(rest: &mut Vec<u8>, bytes: u64, segment: &mut Segment, cutter: Cutter, last: bool) {
    let zeros = rest.len() as u64 + bytes;
    segment.data[..2 * CHUNK_BYTES_MAX].fill(0);
    let one = cutter.next(&segment.data[..CHUNK_BYTES_MAX], true).expect("there are bytes");
    // As long as cutting looks at zeros only, whatever follows.
    segment.repeat = (zeros - CHUNK_BYTES_MAX as u64) / one as u64 + 1;
    segment.cuts.push(one);
    let left = zeros - segment.repeat * one as u64;
    let left = usize::try_from(left).expect("less than CHUNK_BYTES_MAX");
    let uncut = segment.cut(one..one + left, cutter, last);
    rest.clear();
    rest.resize(uncut.len(), 0);
}

/// A file that does not fit in a batch.
pub(super) struct Large {
    pub(super) opened: Opened,
    turns: Mutex<Turns>,
    moved: Condvar,
}

struct Turns {
    next: u64,
    /// Bytes of the pieces so far that are not cut yet; less than CHUNK_BYTES_MAX.
    rest: Vec<u8>,
    given_up: bool,
}

impl Large {
    pub(super) fn new(opened: Opened) -> Self {
        let turns = Turns { next: 0, rest: Vec::with_capacity(CHUNK_BYTES_MAX), given_up: false };
        Self { opened, turns: Mutex::new(turns), moved: Condvar::new() }
    }

    fn wait_for(&self, turn: u64) -> Result<MutexGuard<'_, Turns>, Error> {
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |turns: &mut Turns| turns.next != turn && !turns.given_up;
        let turns = self.moved.wait_while(turns, waiting).unwrap_or_else(PoisonError::into_inner);
        if turns.given_up { Err(Error::Interrupted) } else { Ok(turns) }
    }
}
