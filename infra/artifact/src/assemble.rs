//! Assembly: from packs and installed releases to a tree on disk, wholly there or not at all.
//!
//! The tree grows in a hidden directory beside its target. A file that an installed release has is shared with it where that can be
//! (`share`); the others are written chunk by chunk. Each chunk is checked against its name before it is written, wherever it comes from,
//! and what is shared is read and checked as well. Everything is synced, then one rename makes it visible. Memory: three chunks. Long runs of
//! zeros are not written: they become holes, whether or not they were holes where the artifact was built.
//!
//! What an interrupted run left behind is removed by the next one for the same target; two at once are not foreseen.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use longshore_schemas::ChunkId;

use crate::{
    CHUNK_BYTES_MAX, Chunk, Entry, Error, FileRef, Index, Installed, Manifest, Need, PackRead, Patched, ReadError,
    installed::sync_dir,
    packed::PackedChunks,
    share::{Shared, Sharing},
};

/// Up to this many entries each file is synced alone; beyond that, syncing the whole file system once is faster.
const ENTRIES_SYNCED_ALONE_MAX: usize = 512;

/// Zeros that fill a step of this size in a file are not written: fewer save less than they cost.
const HOLE_STEP_BYTES: usize = 16 * 1024;

/// What assembly did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Assembled {
    /// Bytes written from packs.
    pub fetched_bytes: u64,
    /// Bytes that came from installed releases, copied or shared.
    pub reused_bytes: u64,
    /// Of these, what takes no room of its own: reflinked, and hard-linked.
    pub reflinked_bytes: u64,
    pub linked_bytes: u64,
    /// Bytes written from what a patch made.
    pub patched_bytes: u64,
    /// Chunks of installed releases that were damaged and came from a pack instead.
    pub damaged_chunks: u64,
}

impl Assembled {
    fn count_shared(&mut self, shared: Shared, bytes: u64) {
        self.reused_bytes += bytes;
        match shared {
            Shared::Reflinked => self.reflinked_bytes += bytes,
            Shared::HardLinked => self.linked_bytes += bytes,
        }
    }
}

/// Builds the artifact's tree at `target`, which must not exist yet. `installed` is what `need` was computed with.
///
/// Of the packs, only those in [`Need::packs`] are read, unless an installed release turns out to be damaged; if the
/// pack is then not at hand, the error is [`Error::DamagedInstalled`]: compute the need without that release, and fetch.
pub fn assemble(
    index: &Index,
    need: &Need,
    installed: &[Installed],
    packs: &dyn PackRead,
    target: &Path,
) -> Result<Assembled, Error> {
    assemble_patched(index, need, installed, None, packs, target)
}

/// The same, with what a patch made; `need` was computed with it.
pub fn assemble_patched(
    index: &Index,
    need: &Need,
    installed: &[Installed],
    patched: Option<&Patched>,
    packs: &dyn PackRead,
    target: &Path,
) -> Result<Assembled, Error> {
    if target.symlink_metadata().is_ok() {
        return Err(Error::TargetExists { path: target.to_owned() });
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = target.file_name().ok_or_else(|| Error::refused(target, "a release's directory needs a name"))?;
    let partial = parent.join(format!(".{}.partial", name.to_string_lossy()));
    remove(&partial)?;
    fs::create_dir_all(&partial).map_err(Error::io("create", &partial))?;
    let chunks = Chunks::new(index, need, installed, patched, packs)?;
    let sharing = Sharing::new(index, need, installed, &partial)?;
    let built = Assembly { index, chunks, sharing, dir: &partial, dirs: BTreeSet::from([partial.clone()]) }.run();
    let done = built.and_then(|assembled| publish_dir(&partial, target).map(|()| assembled));
    match done {
        Ok(assembled) => sync_dir(parent).map(|()| assembled),
        Err(error) => {
            if let Err(leftover) = remove(&partial) {
                tracing::warn!(error = %leftover, "a half-assembled release stays behind");
            }
            Err(error)
        }
    }
}

/// What assembly writes of the files' bytes at most: all but the chunks of zeros alone, which holes consist of.
pub fn written_bytes(manifest: &Manifest) -> u64 {
    let hole = ChunkId::of(&vec![0; CHUNK_BYTES_MAX]);
    let chunks = manifest.files().flat_map(|file| manifest.chunks_of(file)).map(|at| manifest.chunks()[*at as usize]);
    chunks.filter(|chunk| chunk.id != hole).map(|chunk| u64::from(chunk.bytes)).sum()
}

fn remove(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

fn publish_dir(partial: &Path, target: &Path) -> Result<(), Error> {
    use rustix::{fs::CWD, io::Errno};
    match rustix::fs::renameat_with(CWD, partial, CWD, target, rustix::fs::RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(Error::TargetExists { path: target.to_owned() }),
        // Some file systems do not know the flag. A plain rename replaces an empty directory at most.
        Err(Errno::INVAL) => fs::rename(partial, target).map_err(Error::io("create", target)),
        Err(error) => Err(Error::io("create", target)(error.into())),
    }
}

struct Assembly<'a> {
    index: &'a Index,
    chunks: Chunks<'a>,
    sharing: Sharing<'a>,
    dir: &'a Path,
    /// Every directory that was made.
    dirs: BTreeSet<PathBuf>,
}

impl Assembly<'_> {
    fn run(mut self) -> Result<Assembled, Error> {
        let entries = self.index.manifest.entries();
        let each = entries.len() <= ENTRIES_SYNCED_ALONE_MAX;
        for entry in entries {
            let path = self.dir.join(entry.path());
            self.make_dir(path.parent().unwrap_or(self.dir))?;
            match entry {
                Entry::File(file) => self.file(file, &path, each)?,
                Entry::Link { target, .. } => symlink(&**target, &path).map_err(Error::io("create", &path))?,
                Entry::Directory { .. } => self.make_dir(&path)?,
            }
        }
        if each {
            self.dirs.iter().try_for_each(|dir| sync_dir(dir))?;
        } else {
            let dir = File::open(self.dir).map_err(Error::io("open", self.dir))?;
            rustix::fs::syncfs(&dir).map_err(|error| Error::io("sync", self.dir)(error.into()))?;
        }
        Ok(self.chunks.assembled)
    }

    fn make_dir(&mut self, dir: &Path) -> Result<(), Error> {
        if self.dirs.contains(dir) {
            return Ok(());
        }
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let new = dir.ancestors().take_while(|dir| dir.starts_with(self.dir));
        self.dirs.extend(new.map(Path::to_owned));
        Ok(())
    }

    fn file(&mut self, file: &FileRef, path: &Path, sync: bool) -> Result<(), Error> {
        let Some(shared) = self.sharing.share(file, path) else { return self.copy(file, path, sync) };
        self.chunks.assembled.count_shared(shared, file.bytes);
        if sync {
            File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))?;
        }
        Ok(())
    }

    fn copy(&mut self, file: &FileRef, path: &Path, sync: bool) -> Result<(), Error> {
        let out = OpenOptions::new().write(true).create_new(true).open(path).map_err(Error::io("create", path))?;
        let mut at = 0;
        for chunk in self.index.manifest.chunks_of(file) {
            let bytes = self.chunks.get(*chunk as usize)?;
            write_data(&out, at, bytes).map_err(Error::io("write", path))?;
            at += bytes.len() as u64;
        }
        // For a hole at the end.
        if out.metadata().map_err(Error::io("look at", path))?.len() != at {
            out.set_len(at).map_err(Error::io("write", path))?;
        }
        out.set_permissions(Permissions::from_mode(file.mode.into())).map_err(Error::io("set the mode of", path))?;
        if sync {
            out.sync_all().map_err(Error::io("sync", path))?;
        }
        Ok(())
    }
}

/// Writes all but long zeros to a new file, where they are already.
fn write_data(out: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    // Where data begins that is not written yet, and where the step begins that is looked at.
    let (mut data, mut step) = (0, 0);
    while step < bytes.len() {
        let into = usize::try_from((at + step as u64) % HOLE_STEP_BYTES as u64).expect("less than a step");
        let next = bytes.len().min(step + HOLE_STEP_BYTES - into);
        if is_zeros(&bytes[step..next]) {
            out.write_all_at(&bytes[data..step], at + data as u64)?;
            data = next;
        }
        step = next;
    }
    out.write_all_at(&bytes[data..], at + data as u64)
}

pub(crate) fn is_zeros(bytes: &[u8]) -> bool {
    // Nearly always the first tells.
    bytes[0] == 0 && bytes.iter().fold(0, |any, byte| any | byte) == 0
}

/// Where a chunk came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Installed,
    Patch,
    Pack,
}

/// Gets chunks, verified, from wherever they are.
struct Chunks<'a> {
    index: &'a Index,
    need: &'a Need,
    installed: &'a [Installed],
    patched: Option<&'a Patched>,
    packs: PackedChunks<'a>,
    bytes: Box<[u8]>,
    /// The chunk that `bytes` holds, and where it is from: in a hole the same one comes many times.
    held: Option<(usize, Source)>,
    /// The installed file that was read last: chunks that follow each other mostly lie in the same one.
    open: Option<(u32, u32, File)>,
    assembled: Assembled,
}

impl<'a> Chunks<'a> {
    fn new(
        index: &'a Index,
        need: &'a Need,
        installed: &'a [Installed],
        patched: Option<&'a Patched>,
        packs: &'a dyn PackRead,
    ) -> Result<Self, Error> {
        let packs = PackedChunks::new(index, packs)?;
        let bytes = vec![0; CHUNK_BYTES_MAX].into_boxed_slice();
        let assembled = Assembled::default();
        Ok(Self { index, need, installed, patched, packs, bytes, held: None, open: None, assembled })
    }

    fn get(&mut self, at: usize) -> Result<&[u8], Error> {
        let chunk = self.index.manifest.chunks()[at];
        let source = match self.held.take() {
            Some((held, source)) if held == at => source,
            _ => self.read(&chunk, at)?,
        };
        self.held = Some((at, source));
        let bytes = match source {
            Source::Installed => &mut self.assembled.reused_bytes,
            Source::Patch => &mut self.assembled.patched_bytes,
            Source::Pack => &mut self.assembled.fetched_bytes,
        };
        *bytes += u64::from(chunk.bytes);
        Ok(&self.bytes[..chunk.bytes as usize])
    }

    fn read(&mut self, chunk: &Chunk, at: usize) -> Result<Source, Error> {
        if let Some(origin) = self.need.origin(at) {
            if self.read_installed(chunk, origin).is_ok() {
                return Ok(Source::Installed);
            }
            self.assembled.damaged_chunks += 1;
            tracing::warn!(chunk = %chunk.id, release = ?self.installed.get(origin.release as usize).map(|r| &r.dir),
                "an installed release is damaged, taking the chunk from its pack");
        }
        let bytes = &mut self.bytes[..chunk.bytes as usize];
        let patched = self.patched.is_some_and(|patched| patched.read(at, bytes).is_ok());
        if patched && ChunkId::of(bytes) == chunk.id {
            return Ok(Source::Patch);
        }
        self.read_pack(chunk, at)?;
        Ok(Source::Pack)
    }

    fn read_pack(&mut self, chunk: &Chunk, at: usize) -> Result<(), Error> {
        let read = self.packs.read(at, &mut self.bytes[..chunk.bytes as usize]);
        read.map_err(|error| match (error, self.need.origin(at)) {
            (Error::Read { pack, source: ReadError::Missing }, Some(origin)) => {
                Error::DamagedInstalled { path: installed_path(self.installed, origin), pack }
            }
            (error, _) => error,
        })
    }

    fn read_installed(&mut self, chunk: &Chunk, origin: crate::Origin) -> io::Result<()> {
        let file = match self.open.take() {
            Some((release, entry, file)) if (release, entry) == (origin.release, origin.entry) => file,
            _ => File::open(installed_path(self.installed, origin))?,
        };
        let bytes = &mut self.bytes[..chunk.bytes as usize];
        let read = file.read_exact_at(bytes, origin.offset);
        self.open = Some((origin.release, origin.entry, file));
        read?;
        if ChunkId::of(bytes) == chunk.id { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// Where the origin's file lies; a path that does not exist if `installed` is not what the need was computed with.
fn installed_path(installed: &[Installed], origin: crate::Origin) -> PathBuf {
    let release = installed.get(origin.release as usize);
    let entry = release.and_then(|release| release.manifest.entries().get(origin.entry as usize));
    release.zip(entry).map(|(release, entry)| release.dir.join(entry.path())).unwrap_or_default()
}
