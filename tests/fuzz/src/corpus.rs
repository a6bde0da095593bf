//! The inputs that are kept: a folder for each target, a file for each input.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The corpus of this repository.
pub fn folder() -> PathBuf {
    longshore_checkout::path("tests/fuzz/corpus")
}

/// The inputs of a target with their names, in the order of those.
pub fn load(folder: &Path, target: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = folder.join(target);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {folder:?}"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        inputs.push((name, fs::read(&path).with_context(|| format!("cannot read {path:?}"))?));
    }
    inputs.sort();
    Ok(inputs)
}

/// Keeps a finding; its name is that of its bytes.
pub fn keep(folder: &Path, target: &str, input: &[u8]) -> Result<PathBuf> {
    let folder = folder.join(target);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {folder:?}"))?;
    let path = folder.join(format!("found-{}", &blake3::hash(input).to_hex()[..16]));
    fs::write(&path, input).with_context(|| format!("cannot write {path:?}"))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(load(folder.path(), "some").expect("nothing").is_empty());
        let path = keep(folder.path(), "some", b"bad").expect("kept");
        let loaded = load(folder.path(), "some").expect("loaded");
        assert_eq!(loaded.len(), 1);
        assert!(path.ends_with(&loaded[0].0) && loaded[0].1 == b"bad");
    }
}
