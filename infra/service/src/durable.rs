//! Files that are either wholly old or wholly new, whatever happens in between.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::Error;

/// Largest file that [`read`] takes in. What is kept this way is small.
pub const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Only the owner may read it: for what holds or guards secrets.
pub const PRIVATE_MODE: u32 = 0o600;
/// As other state files.
pub const SHARED_MODE: u32 = 0o644;

/// Two writers of one process never share a temporary file.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Folders that this process has seen to be durable, by device and inode: another of the same name is not.
static FOLDERS: Mutex<BTreeMap<PathBuf, (u64, u64)>> = Mutex::new(BTreeMap::new());
/// Beyond this many all are forgotten, and synced once more.
const FOLDERS_MAX: usize = 10_000;

/// Replaces the file's content. When it returns the content is on the disk; if it fails the old content is still there, or
/// the new one if only syncing its name failed.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let folder = folder_of(path);
    create_folder(folder)?;
    let temporary = temporary(path);
    let written = fill(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    if let Err(source) = written {
        // What is left of it is of no use; that it cannot be removed is the lesser trouble.
        let _ = fs::remove_file(&temporary);
        return Err(Error::File { action: "write", path: path.to_owned(), source });
    }
    sync_folder(folder).map_err(Error::file("sync the folder of", path))
}

/// Makes the folder and its parents, if they are not there. When it returns they are on the disk, whoever made them.
pub fn create_folder(folder: &Path) -> Result<(), Error> {
    if let Ok(metadata) = fs::metadata(folder) {
        let known = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).get(folder).copied();
        if known == Some((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
    }
    let first_new = folder.ancestors().take_while(|ancestor| !ancestor.exists()).last().map(Path::to_owned);
    fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    let whole = folder.canonicalize().map_err(Error::file("find", folder))?;
    let new = first_new.and_then(|first| first.canonicalize().ok());
    for made in whole.ancestors() {
        let Some(parent) = made.parent() else { break };
        // Those that were there before may belong to another user, whose care they are.
        let is_new = new.as_ref().is_some_and(|new| made.starts_with(new));
        match sync_folder(parent) {
            Err(error) if is_new || error.kind() != io::ErrorKind::PermissionDenied => {
                return Err(Error::file("sync", parent)(error));
            }
            _ => {}
        }
    }
    let metadata = fs::metadata(folder).map_err(Error::file("look at", folder))?;
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    if folders.len() >= FOLDERS_MAX {
        folders.clear();
    }
    folders.insert(folder.to_owned(), (metadata.dev(), metadata.ino()));
    Ok(())
}

/// The file's content, or `None` if there is no such file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::content(path, &format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(Some(bytes))
}

fn fill(temporary: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// In the same folder, so that the rename stays within one file system.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{write}.tmp", std::process::id()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn content_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/er/state");
        assert!(read(&path).expect("no file is no error").is_none());
        for content in [&b"one"[..], b"", b"three"] {
            write(&path, content, PRIVATE_MODE).expect("written");
            assert_eq!(read(&path).expect("read").as_deref(), Some(content));
        }
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, PRIVATE_MODE);
        assert_eq!(fs::read_dir(folder_of(&path)).expect("there").count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_failed_write_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        fs::create_dir_all(path.join("in the way")).expect("made");
        write(&path, b"x", SHARED_MODE).expect_err("a folder is in the way");
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 1);
    }
}
