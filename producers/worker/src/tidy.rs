//! The work directory: whose it is, and how it is emptied.
//!
//! ```text
//! work/lock              held while the worker runs
//! work/attempts/<queue>  one attempt: checkout, home, tmp; removed when it ends
//! work/cache/<hash>      bare repositories
//! ```

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    Error,
    guard::leftovers::{self, Left},
};

/// A work directory that no other worker uses while this exists.
pub(crate) struct WorkDir {
    root: PathBuf,
    lock: File,
}

impl WorkDir {
    /// Takes the directory, and removes what a worker that crashed left of its attempts, processes included.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        fs::create_dir_all(root).map_err(Error::io("create", root))?;
        let root = root.canonicalize().map_err(Error::io("find", root))?;
        let path = root.join("lock");
        let lock = File::create(&path).map_err(Error::io("create", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::WorkDirInUse { path: root }),
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", path)(source)),
        }
        let (met, left) = leftovers::end(Left::ByWorker(&root));
        if met > 0 {
            tracing::warn!(met, left, "processes that an earlier worker in this folder left behind were killed");
        }
        let attempts = root.join("attempts");
        remove_tree(&attempts).map_err(Error::io("empty", &attempts))?;
        for dir in [attempts, root.join("cache")] {
            fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        }
        Ok(Self { root, lock })
    }

    pub(crate) fn attempt(&self, slot: &str) -> PathBuf {
        self.root.join("attempts").join(slot)
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }
}

impl Drop for WorkDir {
    /// A command that another thread starts at this moment has the file open too, until it runs: closing it is not enough.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, path = %self.root.display(), "the work directory's lock cannot be given back");
        }
    }
}

/// Removes a tree, folders without write permission included, which builds like to leave. That it is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(path)?;
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn make_writable(dir: &Path) -> io::Result<()> {
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let mut permissions = fs::symlink_metadata(&dir)?.permissions();
        permissions.set_mode(permissions.mode() | 0o700);
        fs::set_permissions(&dir, permissions)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            // Of the entry itself: a link to a folder is not a folder.
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_without_write_permission_are_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let deep = dir.path().join("tree/a/b");
        fs::create_dir_all(&deep).expect("created");
        fs::write(deep.join("file"), "x").expect("written");
        for path in [deep.clone(), dir.path().join("tree/a")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o500)).expect("set");
        }
        remove_tree(&dir.path().join("tree")).expect("removed");
        assert!(!dir.path().join("tree").exists());
        remove_tree(&dir.path().join("tree")).expect("nothing to remove");
    }

    #[test]
    fn processes_that_an_earlier_worker_left_are_ended() {
        use std::process::Command;
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().canonicalize().expect("there");
        let deep = root.join("attempts/default/checkout");
        fs::create_dir_all(&deep).expect("created");
        let mark = format!("{}:1", root.display());
        let other = format!("{}-2:1", root.display());
        let sleep = || {
            let mut sleep = Command::new("sleep");
            sleep.arg("300").env_clear();
            sleep
        };
        let mut marked = sleep().env(leftovers::MARK, mark).spawn().expect("starts");
        let mut there = sleep().current_dir(&deep).spawn().expect("starts");
        let mut neighbour = sleep().env(leftovers::MARK, other).spawn().expect("starts");
        // Those that ended stay until they are waited for: somebody must.
        let reaper =
            std::thread::spawn(move || [marked.wait(), there.wait()].map(|status| status.expect("waited for")));
        WorkDir::open(&root).expect("free");
        for status in reaper.join().expect("no panic") {
            assert!(!status.success(), "it was killed: {status}");
        }
        assert!(neighbour.try_wait().expect("asked").is_none(), "another worker's is left alone");
        neighbour.kill().expect("it runs");
        neighbour.wait().expect("it ends");
    }

    #[test]
    fn a_work_directory_has_one_worker_and_is_emptied_of_attempts() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("attempts/default/checkout")).expect("created");
        fs::create_dir_all(dir.path().join("cache/abc")).expect("created");
        let first = WorkDir::open(dir.path()).expect("free");
        assert!(!dir.path().join("attempts/default").exists() && dir.path().join("cache/abc").exists());
        assert!(matches!(WorkDir::open(dir.path()), Err(Error::WorkDirInUse { .. })));
        drop(first);
        WorkDir::open(dir.path()).expect("free again");
    }
}
