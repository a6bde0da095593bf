//! Finds what a tree holds, in the manifest's order, and refuses what an artifact cannot hold before anything is read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

use crate::{
    Error,
    manifest::ENTRIES_MAX,
    path::{refuse_link, refuse_path},
};

/// A tree that can be published: where it is, and its entries sorted by path.
pub(crate) struct Tree {
    /// The directory, or the file of a tree of one.
    root: PathBuf,
    is_file: bool,
    pub(crate) entries: Vec<Found>,
}

impl Tree {
    /// Where the entry lies on disk.
    pub(crate) fn full(&self, found: &Found) -> PathBuf {
        if self.is_file { self.root.clone() } else { self.root.join(&*found.path) }
    }
}

pub(crate) struct Found {
    pub(crate) path: Box<str>,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    File,
    Link(Box<str>),
    Directory,
}

/// Walks a directory, or takes a single file as a tree of one. A link given as the source itself is followed.
pub(crate) fn walk(source: &Path) -> Result<Tree, Error> {
    let metadata = fs::metadata(source).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::NoOutput { path: source.to_owned() },
        _ => Error::io("look at", source)(error),
    })?;
    if metadata.is_dir() {
        return walk_directory(source);
    }
    if !metadata.is_file() {
        return Err(Error::refused(source, "it is neither a file nor a directory"));
    }
    let name = source.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::refused(source, "its name is not UTF-8"))?;
    if let Some(reason) = refuse_path(name) {
        return Err(Error::refused(source, reason));
    }
    let root = fs::canonicalize(source).map_err(Error::io("look at", source))?;
    let found = Found { path: name.into(), kind: Kind::File };
    Ok(Tree { root, is_file: true, entries: vec![found] })
}

fn walk_directory(root: &Path) -> Result<Tree, Error> {
    let mut entries = Vec::new();
    for entry in WalkDir::new(root).min_depth(1) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            Error::io("read", path)(error.into())
        })?;
        entries.extend(look_at(root, &entry)?);
        if entries.len() > ENTRIES_MAX {
            return Err(Error::TooManyEntries { limit: ENTRIES_MAX });
        }
    }
    if entries.is_empty() {
        return Err(Error::EmptyOutput { path: root.to_owned() });
    }
    entries.sort_unstable_by(|one, other| one.path.as_bytes().cmp(other.path.as_bytes()));
    Ok(Tree { root: root.to_owned(), is_file: false, entries })
}

fn look_at(root: &Path, entry: &walkdir::DirEntry) -> Result<Option<Found>, Error> {
    let full = entry.path();
    let relative = full.strip_prefix(root).expect("a walk stays below its root");
    let path = relative.to_str().ok_or_else(|| Error::refused(full, "its name is not UTF-8"))?;
    if let Some(reason) = refuse_path(path) {
        return Err(Error::refused(full, reason));
    }
    let kind = entry.file_type();
    let kind = if kind.is_file() {
        Kind::File
    } else if kind.is_symlink() {
        Kind::Link(link_target(full, path)?)
    } else if kind.is_dir() {
        let mut inside = fs::read_dir(full).map_err(Error::io("read", full))?;
        if inside.next().is_some() {
            return Ok(None);
        }
        Kind::Directory
    } else {
        return Err(Error::refused(full, "it is a device, a socket or a pipe; remove it from the output"));
    };
    Ok(Some(Found { path: path.into(), kind }))
}

fn link_target(full: &Path, path: &str) -> Result<Box<str>, Error> {
    let target = fs::read_link(full).map_err(Error::io("read", full))?;
    let target = target.to_str().ok_or_else(|| Error::refused(full, "the link's target is not UTF-8"))?;
    match refuse_link(path, target) {
        Some(reason) => Err(Error::refused(full, reason)),
        None => Ok(target.into()),
    }
}
