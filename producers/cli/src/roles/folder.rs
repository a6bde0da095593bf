//! One process to a data folder: two that thought it theirs would each undo what the other wrote.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

/// A data folder that no other process of its kind uses while this lives.
#[derive(Debug)]
pub(crate) struct DataFolder {
    pub(crate) path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if it is not there.
    pub(crate) fn take(path: &Path, role: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("the data folder {} cannot be made", path.display()))?;
        let path = path.canonicalize().with_context(|| path.display().to_string())?;
        let file = path.join("lock");
        let lock = File::create(&file).with_context(|| format!("{} cannot be written", file.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another process uses the data folder {}: give each process its own, as `longshore {role} --data DIR`",
                path.display()
            );
        }
        Ok(Self { path, _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_user_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = DataFolder::take(&folder.path().join("data"), "region").expect("nobody has it");
        let error = DataFolder::take(&first.path, "region").expect_err("it is taken").to_string();
        assert!(error.contains("another process uses") && error.contains("longshore region --data"), "{error}");
        let path = first.path.clone();
        drop(first);
        DataFolder::take(&path, "region").expect("it is free again");
    }
}
