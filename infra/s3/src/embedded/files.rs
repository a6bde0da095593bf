//! Objects as files, durable before they are acknowledged.
//!
//! An object is written and synced under a temporary name outside of all buckets, and gets its own name by one link or
//! rename, after which its directory is synced. So an object is there wholly or not at all, even if power fails, and a
//! second writer of a key that must not be replaced always loses.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Longest part of a key between slashes, in bytes: a file name.
const PART_BYTES_MAX: usize = 255;
/// Folders that are remembered as durable. Beyond that all are forgotten, and synced once more.
const DIRS_MAX: usize = 10_000;

#[derive(Debug)]
pub(super) struct Files {
    buckets: PathBuf,
    staging: PathBuf,
    staged: AtomicU64,
    /// Folders of objects that this process has synced up to the buckets. That one is there says nothing: it may be another
    /// writer's that has not come that far, or a dead process's.
    durable: Mutex<BTreeSet<PathBuf>>,
}

/// Whether a conditional write stored the object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Yes,
    /// There is one already. It is durable.
    AlreadyThere,
}

impl Files {
    /// Opens the root, and removes what an earlier process had not finished.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let (buckets, staging) = (root.join("buckets"), root.join("staging"));
        let files = Self { buckets, staging, staged: AtomicU64::new(0), durable: Mutex::default() };
        fs::create_dir_all(&files.buckets)?;
        if files.staging.exists() {
            fs::remove_dir_all(&files.staging)?;
        }
        fs::create_dir_all(&files.staging)?;
        for dir in root.canonicalize()?.ancestors() {
            match sync_dir(dir) {
                // Above the root, another user's, whose care it is.
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
                _ => {}
            }
        }
        Ok(files)
    }

    pub(super) fn buckets(&self) -> &Path {
        &self.buckets
    }

    /// Whether the bucket is there. Names were checked before: none has a slash or begins with a dot.
    pub(super) fn has_bucket(&self, bucket: &str) -> bool {
        self.buckets.join(bucket).is_dir()
    }

    /// Where an object lies; `None` for a key that no file can have.
    pub(super) fn object(&self, bucket: &str, key: &str) -> Option<PathBuf> {
        let relative = Path::new(key);
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        let fits = key.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= PART_BYTES_MAX);
        (plain && fits && !key.contains('\0')).then(|| self.buckets.join(bucket).join(relative))
    }

    /// A file for an object that is on its way.
    pub(super) fn stage(&self) -> Staged {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        Staged { path: self.staging.join(number.to_string()) }
    }

    /// Gives a staged, synced file its name.
    pub(super) fn publish(&self, staged: &Staged, object: &Path, if_absent: bool) -> io::Result<Stored> {
        let dir = object.parent().unwrap_or(&self.buckets);
        self.make_dirs(dir)?;
        let stored = if if_absent {
            match fs::hard_link(&staged.path, object) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Stored::AlreadyThere,
                result => result.map(|()| Stored::Yes)?,
            }
        } else {
            fs::rename(&staged.path, object)?;
            Stored::Yes
        };
        // Also for the loser: the winner may not have come that far yet, and "already there" must mean durable.
        sync_dir(dir)?;
        Ok(stored)
    }

    pub(super) fn remove(&self, object: &Path) -> io::Result<()> {
        match fs::remove_file(object) {
            Ok(()) => sync_dir(object.parent().unwrap_or(&self.buckets)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        let known = || self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(dir) && dir.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        let parents = dir.ancestors().skip(1).take_while(|dir| dir.starts_with(&self.buckets));
        parents.into_iter().try_for_each(sync_dir)?;
        let mut known = known();
        if known.len() >= DIRS_MAX {
            known.clear();
        }
        known.insert(dir.to_owned());
        Ok(())
    }
}

/// A temporary file, removed when dropped.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Renamed away, or left to the next start.
        let _ = fs::remove_file(&self.path);
    }
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_never_leave_their_bucket() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let files = Files::open(dir.path()).expect("opened");
        for bad in ["", "/", "a/", "/a", "a//b", "..", "a/../b", "./a", "a\0", &"x".repeat(256)] {
            assert_eq!(files.object("b", bad), None, "{bad:?}");
        }
        for good in ["a", "a/b", "a b", "ü", "a..b", "a?b&c=d%20"] {
            assert_eq!(files.object("b", good), Some(files.buckets().join("b").join(good)), "{good:?}");
        }
    }

    #[test]
    fn what_was_not_finished_is_gone_after_a_restart() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let staged = Files::open(dir.path()).expect("opened").stage();
        fs::write(&staged.path, b"half").expect("written");
        Files::open(dir.path()).expect("opened");
        assert!(!staged.path.exists());
    }
}
