//! Trees of files that benchmarks publish and compare.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// Where a benchmark works: in `dir`, or where the system keeps what is temporary.
pub fn work_in(dir: Option<&Path>) -> Result<TempDir> {
    let made = dir.map_or_else(tempfile::tempdir, tempfile::tempdir_in);
    made.context("cannot make a working directory")
}

/// Bytes of a tree for so many copies of which there is room on a folder's disk, if some bytes are left free for others.
pub fn room(dir: &Path, copies: u64, spare_bytes: u64) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok((stat.f_bavail * stat.f_frsize).saturating_sub(spare_bytes) / copies)
}

/// Bytes of all files below a folder.
pub fn bytes(dir: &Path) -> Result<u64> {
    files(dir)?.iter().map(|file| Ok(fs::symlink_metadata(file)?.len())).sum()
}

const COMPARED_BYTES: usize = 1 << 20;

/// All files and links below a folder, sorted.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let list = if entry.file_type()?.is_dir() { &mut folders } else { &mut found };
            list.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Both trees must hold the same files and links, with the same modes and bytes.
pub fn compare(one: &Path, other: &Path) -> Result<()> {
    compare_in(one, other, 0o777)
}

/// Both trees must hold the same files and links with the same bytes, whatever their modes.
pub fn compare_bytes(one: &Path, other: &Path) -> Result<()> {
    compare_in(one, other, 0)
}

fn compare_in(one: &Path, other: &Path, mode_mask: u32) -> Result<()> {
    let relative = |dir: &Path| -> Result<Vec<PathBuf>> {
        files(dir)?.iter().map(|file| Ok(file.strip_prefix(dir)?.to_owned())).collect()
    };
    let names = relative(one)?;
    ensure!(names == relative(other)?, "the fetched tree has other files");
    let (mut left_bytes, mut right_bytes) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
    for name in names {
        let (left, right) = (one.join(&name), other.join(&name));
        let metadata = [fs::symlink_metadata(&left)?, fs::symlink_metadata(&right)?];
        if metadata[0].is_symlink() {
            ensure!(fs::read_link(&left)? == fs::read_link(&right)?, "{name:?} was fetched as another link");
            continue;
        }
        let [length, found] =
            metadata.each_ref().map(|metadata| (metadata.len(), metadata.permissions().mode() & mode_mask));
        ensure!(length == found, "{name:?} was fetched with another length or mode");
        let (mut left, mut right) = (File::open(left)?, File::open(right)?);
        loop {
            let length = left.read(&mut left_bytes)?;
            right.read_exact(&mut right_bytes[..length])?;
            ensure!(left_bytes[..length] == right_bytes[..length], "{name:?} was fetched wrong");
            if length == 0 {
                break;
            }
        }
    }
    Ok(())
}
