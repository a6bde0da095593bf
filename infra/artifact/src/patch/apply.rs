//! Applying a patch: from an installed base to verified chunks in a file without a name.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use longshore_schemas::ChunkId;

use super::{
    FRAME_WINDOW_LOG, PatchRoot,
    root::{Frame, malformed},
    section::{Section, TARGET_BYTES_MAX},
    sides::{Gone, GoneFiles, missing},
};
use crate::{Error, Installed, Manifest, PackRead, PackRef, wire::expect_end};

/// Chunks that a patch made, on disk. They are gone when this is dropped.
#[derive(Debug)]
pub struct Patched {
    file: File,
    /// By rising index into the manifest's chunks: where each begins in the file.
    places: Vec<(u32, u64)>,
    bytes: u64,
}

impl Patched {
    /// Whether it has this chunk of the manifest.
    pub fn has(&self, chunk: usize) -> bool {
        self.place(chunk).is_some()
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn place(&self, chunk: usize) -> Option<u64> {
        let found = self.places.binary_search_by_key(&chunk, |(at, _)| *at as usize).ok()?;
        Some(self.places[found].1)
    }

    /// Reads a chunk, which is to be compared with its name again: the disk may have lost it.
    pub(crate) fn read(&self, chunk: usize, bytes: &mut [u8]) -> io::Result<()> {
        let place = self.place(chunk).ok_or(io::ErrorKind::NotFound)?;
        self.file.read_exact_at(bytes, place)
    }
}

/// Makes the chunks of the patch out of what is installed, each compared with its name. `packs` has the patch's packs. `scratch` is
/// where a file may be made that is as large as they are; it loses its name at once.
///
/// An error says that patch or base is damaged, or the disk is full: the chunks can still be had from their packs.
pub fn apply(
    root: &PatchRoot,
    manifest: &Manifest,
    base: &Installed,
    packs: &dyn PackRead,
    scratch: &Path,
) -> Result<Patched, Error> {
    if (root.artifact, root.base) != (manifest.id(), base.manifest.id()) {
        return Err(malformed(format!("it is from {} to {}", root.base, root.artifact)));
    }
    let gone = Gone::between(manifest, &base.manifest);
    let missing = missing(manifest, &base.manifest);
    let mut rest = &missing[..];
    let mut applying = Applying {
        manifest,
        old: GoneFiles::new(&gone, base),
        patched: Patched { file: unnamed(scratch)?, places: Vec::new(), bytes: 0 },
        scratch,
        target: Vec::new(),
    };
    let frames = root.frames()?;
    for (group, frame) in root.groups.iter().zip(&frames[usize::from(root.manifest.is_some())..]) {
        let taken = (group.skipped as usize).checked_add(group.chunks as usize).and_then(|n| rest.split_at_checked(n));
        let (taken, later) = taken.ok_or_else(|| malformed("it makes more chunks than are missing"))?;
        applying.group(&taken[group.skipped as usize..], FrameRead::new(root, *frame, packs))?;
        rest = later;
    }
    Ok(applying.patched)
}

/// The artifact's manifest, if the patch has it. `packs` has the patch's packs.
pub fn patched_manifest(root: &PatchRoot, base: &Manifest, packs: &dyn PackRead) -> Result<Option<Manifest>, Error> {
    if root.base != base.id() {
        return Err(malformed(format!("it is for {}, not for {}", root.base, base.id())));
    }
    let frames = root.frames()?;
    let Some(frame) = frames.first().filter(|_| root.manifest.is_some()) else { return Ok(None) };
    super::manifest::read(FrameRead::new(root, *frame, packs), base, &root.artifact).map(Some)
}

fn unnamed(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.map_err(Error::io("create", path))?;
    fs::remove_file(path).map_err(Error::io("remove", path))?;
    Ok(file)
}

struct Applying<'a> {
    manifest: &'a Manifest,
    old: GoneFiles<'a>,
    patched: Patched,
    scratch: &'a Path,
    target: Vec<u8>,
}

impl Applying<'_> {
    fn group(&mut self, mut chunks: &[u32], from: FrameRead<'_>) -> Result<(), Error> {
        let damaged = |error: io::Error| malformed(error.to_string());
        let mut decoder = zstd::Decoder::new(from).map_err(damaged)?.single_frame();
        decoder.window_log_max(FRAME_WINDOW_LOG).map_err(damaged)?;
        let mut decoder = BufReader::new(decoder);
        while !chunks.is_empty() {
            let section = Section::read(&mut decoder, chunks.len()).map_err(|error| error.of("patch"))?;
            let (made, later) = chunks.split_at(section.chunks);
            self.section(&section, made)?;
            chunks = later;
        }
        expect_end(&mut decoder).map_err(|error| error.of("patch"))?;
        match decoder.into_inner().finish().into_inner().left {
            0 => Ok(()),
            left => Err(malformed(format!("{left} bytes follow a frame"))),
        }
    }

    fn section(&mut self, section: &Section, chunks: &[u32]) -> Result<(), Error> {
        let bytes_of = |at: &u32| self.manifest.chunks()[*at as usize].bytes as usize;
        let bytes: usize = chunks.iter().map(bytes_of).sum();
        if bytes > TARGET_BYTES_MAX {
            return Err(malformed(format!("a section makes {bytes} bytes; {TARGET_BYTES_MAX} are possible")));
        }
        self.target.clear();
        self.target.resize(bytes, 0);
        let old = &mut self.old;
        let made = section.carry_out(&mut self.target, |place, buffer| old.read_at(place, buffer));
        made.map_err(|error| error.of("patch"))?;
        let mut rest = &self.target[..];
        for at in chunks {
            let chunk = self.manifest.chunks()[*at as usize];
            let (bytes, later) = rest.split_at(chunk.bytes as usize);
            if ChunkId::of(bytes) != chunk.id {
                return Err(malformed(format!("chunk {} came out wrong; or the installed base is damaged", chunk.id)));
            }
            self.patched.places.push((*at, self.patched.bytes));
            self.patched.bytes += bytes.len() as u64;
            rest = later;
        }
        let begun = self.patched.bytes - self.target.len() as u64;
        self.patched.file.write_all_at(&self.target, begun).map_err(Error::io("write", self.scratch))
    }
}

/// The bytes of a frame.
struct FrameRead<'a> {
    packs: &'a dyn PackRead,
    pack: PackRef,
    offset: u64,
    left: u64,
}

impl<'a> FrameRead<'a> {
    fn new(root: &PatchRoot, frame: Frame, packs: &'a dyn PackRead) -> Self {
        Self { packs, pack: root.packs[frame.pack], offset: frame.offset, left: frame.bytes }
    }
}

impl Read for FrameRead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let now = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if now > 0 {
            self.packs.read_at(&self.pack, self.offset, &mut buffer[..now]).map_err(io::Error::other)?;
            self.offset += now as u64;
            self.left -= now as u64;
        }
        Ok(now)
    }
}
