//! Checks that a tree on disk still is the artifact it was assembled as.

use std::{
    fs::{self, File, Metadata},
    ops::ControlFlow,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
};

use longshore_schemas::ChunkId;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::{CHUNK_BYTES_MAX, Entry, Error, FileRef, Manifest, assemble::is_zeros};

/// Reads every file of the release and compares it with the manifest. What the tree holds beyond it (a service may
/// write beside its program) is not looked at.
pub fn verify(dir: &Path, manifest: &Manifest) -> Result<(), Error> {
    verify_paced(dir, manifest, |_| ControlFlow::Continue(()))
}

/// The same; `pace` is told of bytes as they were read, may take its time, and may end it: what was read until then was well.
pub fn verify_paced(
    dir: &Path,
    manifest: &Manifest,
    mut pace: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<(), Error> {
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    for entry in manifest.entries() {
        if let ControlFlow::Break(()) = verify_one(dir, manifest, entry, &mut buffer, &mut pace)? {
            break;
        }
    }
    Ok(())
}

/// Compares one entry of the release with the manifest.
pub fn verify_entry(dir: &Path, manifest: &Manifest, entry: &Entry) -> Result<(), Error> {
    let mut pace = |_| ControlFlow::Continue(());
    verify_one(dir, manifest, entry, &mut vec![0; CHUNK_BYTES_MAX], &mut pace).map(|_| ())
}

fn verify_one(
    dir: &Path,
    manifest: &Manifest,
    entry: &Entry,
    buffer: &mut [u8],
    pace: &mut impl FnMut(u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Error> {
    let path = dir.join(entry.path());
    let metadata = fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
    match entry {
        Entry::File(file) => return verify_file(&path, &metadata, manifest, file, buffer, pace),
        Entry::Link { target, .. } => {
            if !metadata.is_symlink() || fs::read_link(&path).ok().as_deref() != Some(Path::new(&**target)) {
                return Err(Error::Differs { path, reason: "the link is another" });
            }
        }
        Entry::Directory { .. } if !metadata.is_dir() => {
            return Err(Error::Differs { path, reason: "it is no directory" });
        }
        Entry::Directory { .. } => {}
    }
    Ok(ControlFlow::Continue(()))
}

/// Compares what is at a path with a file of the manifest. `buffer` has room for a chunk.
pub(crate) fn verify_file(
    path: &Path,
    metadata: &Metadata,
    manifest: &Manifest,
    file: &FileRef,
    buffer: &mut [u8],
    pace: &mut impl FnMut(u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Error> {
    let mode = metadata.permissions().mode() & 0o777;
    if !metadata.is_file() || metadata.len() != file.bytes || mode != u32::from(file.mode) {
        return Err(Error::Differs { path: path.to_owned(), reason: "its kind, size or mode is another" });
    }
    let from = File::open(path).map_err(Error::io("open", path))?;
    // Where the next chunk begins, and the last one, if it was right and is nothing but zeros.
    let (mut at, mut zeros) = (0, None);
    for number in manifest.chunks_of(file) {
        let chunk = manifest.chunks()[*number as usize];
        // In a hole the same one comes many times.
        if zeros != Some(*number) || !is_hole(&from, at, chunk.bytes) {
            let bytes = &mut buffer[..chunk.bytes as usize];
            from.read_exact_at(bytes, at).map_err(Error::io("read", path))?;
            if ChunkId::of(bytes) != chunk.id {
                return Err(Error::Differs { path: path.to_owned(), reason: "its bytes are others" });
            }
            zeros = is_zeros(bytes).then_some(*number);
        }
        at += u64::from(chunk.bytes);
        if pace(chunk.bytes.into()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Whether all of it reads as zeros because nothing is there. A file system that does not tell says no.
fn is_hole(file: &File, at: u64, bytes: u32) -> bool {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data >= at + u64::from(bytes),
        // No data comes any more.
        Err(error) => error == Errno::NXIO,
    }
}
