//! The tree that is published: packages from four registries, as they come and unpacked, and then what is installed here.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// Copies files to `first` until it has `first_bytes`, then to `rest` until both have `bytes` or there are no more. Says how many they have.
pub(crate) fn gather(first: &Path, rest: &Path, first_bytes: u64, bytes: u64) -> Result<u64> {
    let mut gathered = 0;
    for (number, from) in sources()?.iter().enumerate() {
        let mut folders = vec![from.clone()];
        while let Some(folder) = folders.pop() {
            // A folder that may not be read, or is gone, is passed over.
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            let mut entries: Vec<_> = entries.flatten().collect();
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let (path, kind) = (entry.path(), entry.file_type()?);
                let into = if gathered < first_bytes { first } else { rest };
                let target = into.join(number.to_string()).join(path.strip_prefix(from)?);
                if path.to_str().is_none() {
                    continue;
                } else if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file() {
                    gathered += copy(&path, &target).with_context(|| format!("cannot copy {path:?}"))?;
                } else if kind.is_symlink() {
                    link(&path, &target)?;
                }
                if gathered >= bytes {
                    return Ok(gathered);
                }
            }
        }
    }
    ensure!(gathered > first_bytes, "there are only {gathered} bytes of files here");
    Ok(gathered)
}

fn sources() -> Result<Vec<PathBuf>> {
    let home = PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?);
    let cache = std::env::var_os("LONGSHORE_CACHE").map_or_else(|| home.join(".cache/longshore"), PathBuf::from);
    let rust =
        |variable: &str, folder: &str| std::env::var_os(variable).map_or_else(|| home.join(folder), PathBuf::from);
    let packages = cache.join("packages");
    ensure!(packages.is_dir(), "there are no packages in {packages:?}: run infra/setup.sh content");
    Ok(vec![
        packages,
        rust("CARGO_HOME", ".cargo").join("registry/src"),
        rust("RUSTUP_HOME", ".rustup").join("toolchains"),
        "/usr".into(),
    ])
}

/// One that may not be read has no bytes.
fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    if File::open(from).is_err() {
        return Ok(0);
    }
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    fs::copy(from, to)
}

/// Links that an artifact may have, and only those that need no second look.
fn link(from: &Path, to: &Path) -> Result<()> {
    let target = fs::read_link(from)?;
    let plain = target.to_str().is_some() && target.components().all(|part| matches!(part, Component::Normal(_)));
    if plain {
        fs::create_dir_all(to.parent().unwrap_or(to))?;
        symlink(target, to)?;
    }
    Ok(())
}
