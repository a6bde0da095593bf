//! The pairs that `infra/setup.sh pairs` fetched, and which of their files have changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use longshore_bench::trees;

/// Larger files are left out of the comparison with tools that make a patch of a file.
pub(crate) const FILE_BYTES_MAX: u64 = 100_000_000;

pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) old: PathBuf,
    pub(crate) new: PathBuf,
}

/// A file of the new tree that the old one has not as it is, and the old file that it is most likely made of.
pub(crate) struct Changed {
    pub(crate) old: Option<PathBuf>,
    pub(crate) new: PathBuf,
}

pub(crate) fn find() -> Result<Vec<Pair>> {
    let home = PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?);
    let cache = std::env::var_os("LONGSHORE_CACHE").map_or_else(|| home.join(".cache/longshore"), PathBuf::from);
    let folder = cache.join("pairs");
    let entries = fs::read_dir(&folder).with_context(|| format!("no pairs in {folder:?}: run infra/setup.sh pairs"))?;
    let mut pairs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.join(".complete").is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            pairs.push(Pair { name, old: path.join("old"), new: path.join("new") });
        }
    }
    ensure!(!pairs.is_empty(), "no pair in {folder:?} is complete: run infra/setup.sh pairs");
    pairs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(pairs)
}

impl Pair {
    /// Files that are not links, by their paths in the tree.
    fn files(dir: &Path) -> Result<BTreeMap<PathBuf, PathBuf>> {
        let plain = trees::files(dir)?.into_iter().filter(|path| !path.is_symlink());
        plain.map(|path| Ok((path.strip_prefix(dir)?.to_owned(), path))).collect()
    }

    /// What has changed. A file's old one has the same path, or the same but for digits, which are a version mostly.
    pub(crate) fn changed(&self) -> Result<Vec<Changed>> {
        let (old, new) = (Self::files(&self.old)?, Self::files(&self.new)?);
        let plain = |path: &Path| path.to_string_lossy().replace(|letter: char| letter.is_ascii_digit(), "");
        let renamed: BTreeMap<String, &PathBuf> = old.iter().map(|(path, full)| (plain(path), full)).collect();
        let mut known = BTreeSet::new();
        for file in old.values() {
            known.insert(hash(file)?);
        }
        let mut changed = Vec::new();
        for (path, full) in &new {
            if !known.contains(&hash(full)?) {
                let from = old.get(path).or_else(|| renamed.get(&plain(path)).copied());
                changed.push(Changed { old: from.cloned(), new: full.clone() });
            }
        }
        Ok(changed)
    }

    /// A copy of the pair without files that are too large, if there are any. No links: casync, at work on the same trees, minds them.
    pub(crate) fn without_large(&self, into: &Path) -> Result<Option<Self>> {
        let is_large = |file: &PathBuf| anyhow::Ok(file.metadata()?.len() > FILE_BYTES_MAX);
        let smaller = Self { name: format!("{}-smaller", self.name), old: into.join("old"), new: into.join("new") };
        let trees = [(Self::files(&self.old)?, &smaller.old), (Self::files(&self.new)?, &smaller.new)];
        let mut left_out = false;
        for file in trees.iter().flat_map(|(files, _)| files.values()) {
            left_out |= is_large(file)?;
        }
        if !left_out {
            return Ok(None);
        }
        for (files, to) in trees {
            for (path, full) in files {
                if !is_large(&full)? {
                    let target = to.join(path);
                    fs::create_dir_all(target.parent().context("it is below the tree")?)?;
                    fs::copy(&full, &target)?;
                }
            }
        }
        Ok(Some(smaller))
    }
}

fn hash(path: &Path) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().into())
}
