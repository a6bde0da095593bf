//! Where assembly reads packs from: a trait, and the directory in which a machine keeps verified packs.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use longshore_schemas::PackId;

use crate::{Error, PackRef};

/// Open pack files that a [`DirPacks`] keeps.
const OPEN_PACKS_MAX: usize = 16;

/// Why a pack could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("it is not here")]
    Missing,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Ranges of packs. What is read need not be verified: whoever reads checks each chunk.
pub trait PackRead: Send + Sync {
    /// Fills the buffer with the pack's bytes from this offset.
    fn read_at(&self, pack: &PackRef, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError>;
}

/// A directory of packs, each a file under its name.
pub struct DirPacks {
    dir: PathBuf,
    open: Mutex<Vec<(PackId, File)>>,
}

impl DirPacks {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), open: Mutex::default() }
    }

    pub fn path(&self, pack: &PackId) -> PathBuf {
        self.dir.join(pack.to_string())
    }

    fn open(&self, pack: PackId) -> Result<File, ReadError> {
        File::open(self.path(&pack)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ReadError::Missing,
            _ => ReadError::Io(error),
        })
    }
}

impl PackRead for DirPacks {
    fn read_at(&self, pack: &PackRef, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let position = match open.iter().position(|(id, _)| *id == pack.pack) {
            Some(position) => position,
            None => {
                let file = self.open(pack.pack)?;
                if open.len() == OPEN_PACKS_MAX {
                    open.remove(0);
                }
                open.push((pack.pack, file));
                open.len() - 1
            }
        };
        Ok(open[position].1.read_exact_at(buffer, offset)?)
    }
}

/// Verifies a pack and keeps it in the directory, durably: there under its name wholly or not at all.
pub fn save_pack(dir: &Path, pack: &PackId, bytes: &[u8]) -> Result<PathBuf, Error> {
    if PackId::of(bytes) != *pack {
        return Err(Error::WrongPack { pack: *pack });
    }
    let path = dir.join(pack.to_string());
    crate::installed::write_durably(&path, |file| io::Write::write_all(file, bytes))?;
    Ok(path)
}
