//! Checks that a tree on disk still is the artifact it was assembled as.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use longshore_schemas::ChunkId;

use crate::{CHUNK_BYTES_MAX, Entry, Error, FileRef, Manifest};

/// Reads every file of the release and compares it with the manifest. What the tree holds beyond it (a service may
/// write beside its program) is not looked at.
pub fn verify(dir: &Path, manifest: &Manifest) -> Result<(), Error> {
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    for entry in manifest.entries() {
        let path = dir.join(entry.path());
        let metadata = fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
        match entry {
            Entry::File(file) => {
                let mode = metadata.permissions().mode() & 0o777;
                if !metadata.is_file() || metadata.len() != file.bytes || mode != u32::from(file.mode) {
                    return Err(Error::Differs { path, reason: "its kind, size or mode is another" });
                }
                verify_bytes(&path, manifest, file, &mut buffer)?;
            }
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
    }
    Ok(())
}

fn verify_bytes(path: &Path, manifest: &Manifest, file: &FileRef, buffer: &mut [u8]) -> Result<(), Error> {
    let mut from = File::open(path).map_err(Error::io("open", path))?;
    for chunk in manifest.chunks_of(file) {
        let chunk = manifest.chunks()[*chunk as usize];
        let bytes = &mut buffer[..chunk.bytes as usize];
        from.read_exact(bytes).map_err(Error::io("read", path))?;
        if ChunkId::of(bytes) != chunk.id {
            return Err(Error::Differs { path: path.to_owned(), reason: "its bytes are others" });
        }
    }
    Ok(())
}
