//! Finds what a tree holds, in the manifest's order, and refuses what an artifact cannot hold before anything is read.
//!
//! A tree may have millions of entries, so they are kept as they would be on paper: each path only from where it differs
//! from the one before.

use std::{
    fs::{self, DirEntry},
    io,
    path::{Path, PathBuf},
    vec,
};

use crate::{
    Error,
    manifest::ENTRIES_MAX,
    path::{refuse_link, refuse_path},
    wire::{read_varint, write_varint},
};

/// A tree that can be published: where it is, and its entries sorted by path.
pub(crate) struct Tree {
    /// The directory, or the file of a tree of one.
    root: PathBuf,
    is_file: bool,
    entries: usize,
    /// Each a kind, how many bytes of its path are those of the one before, the other bytes, and a link's target.
    listed: Vec<u8>,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    File,
    Link(&'a str),
    /// An empty one.
    Directory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found<'a> {
    pub(crate) path: &'a str,
    pub(crate) kind: Kind<'a>,
}

const FILE: u8 = 1;
const LINK: u8 = 2;
const DIRECTORY: u8 = 3;

impl Tree {
    /// Where the entry of this path lies on disk.
    pub(crate) fn full(&self, path: &str) -> PathBuf {
        if self.is_file { self.root.clone() } else { self.root.join(path) }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Goes through the entries in their order.
    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor { rest: &self.listed, path: String::new() }
    }
}

/// A place in a tree's list. Each step overwrites the path of the last.
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    path: String,
}

impl<'a> Cursor<'a> {
    pub(crate) fn next(&mut self) -> Option<Found<'_>> {
        let (kind, rest) = self.rest.split_first()?;
        self.rest = rest;
        let shared = self.number();
        self.path.truncate(shared);
        let text = self.text();
        self.path.push_str(text);
        let kind = match *kind {
            FILE => Kind::File,
            LINK => Kind::Link(self.text()),
            _ => Kind::Directory,
        };
        Some(Found { path: &self.path, kind })
    }

    fn number(&mut self) -> usize {
        let number = read_varint(&mut self.rest).ok().and_then(|number| usize::try_from(number).ok());
        number.expect("List writes numbers that fit")
    }

    fn text(&mut self) -> &'a str {
        let length = self.number();
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        std::str::from_utf8(text).expect("List writes whole characters")
    }
}

/// Walks a directory, or takes a single file as a tree of one. A link given as the source itself is followed.
pub(crate) fn walk(source: &Path) -> Result<Tree, Error> {
    let metadata = fs::metadata(source).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoOutput { path: source.to_owned() },
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
    let mut list = List::default();
    list.push(name, Kind::File)?;
    Ok(Tree { root, is_file: true, entries: 1, listed: list.bytes })
}

/// Entries as they are found.
#[derive(Default)]
struct List {
    bytes: Vec<u8>,
    entries: usize,
    last: String,
}

impl List {
    fn push(&mut self, path: &str, kind: Kind<'_>) -> Result<(), Error> {
        if self.entries == ENTRIES_MAX {
            return Err(Error::TooManyEntries { limit: ENTRIES_MAX });
        }
        let same = self.last.bytes().zip(path.bytes()).take_while(|(one, other)| one == other).count();
        let shared = path.floor_char_boundary(same);
        self.bytes.push(match kind {
            Kind::File => FILE,
            Kind::Link(_) => LINK,
            Kind::Directory => DIRECTORY,
        });
        self.number(shared);
        self.text(&path[shared..]);
        if let Kind::Link(target) = kind {
            self.text(target);
        }
        self.last.truncate(shared);
        self.last.push_str(&path[shared..]);
        self.entries += 1;
        Ok(())
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, number: usize) {
        write_varint(&mut self.bytes, number as u64).expect("writing to memory");
    }
}

/// A directory that is being gone through: how long its path is, and what is left in it.
struct Level {
    prefix_bytes: usize,
    rest: vec::IntoIter<Child>,
}

/// Something in a directory.
struct Child {
    /// Its name, and a slash if it is a directory that holds something: by this the order of names is that of whole paths.
    key: Box<str>,
    kind: ChildKind,
}

enum ChildKind {
    File,
    Link,
    Empty,
    Holding,
}

fn walk_directory(root: &Path) -> Result<Tree, Error> {
    let mut list = List::default();
    let mut path = String::new();
    // Not by recursion: paths of 4096 bytes go deeper than a thread's stack.
    let mut levels = vec![Level { prefix_bytes: 0, rest: read(root, "")? }];
    while let Some(level) = levels.last_mut() {
        let Some(child) = level.rest.next() else {
            levels.pop();
            continue;
        };
        path.truncate(level.prefix_bytes);
        path.push_str(&child.key);
        match child.kind {
            ChildKind::File => list.push(&path, Kind::File)?,
            ChildKind::Empty => list.push(&path, Kind::Directory)?,
            ChildKind::Link => list.push(&path, Kind::Link(&link_target(&root.join(&path), &path)?))?,
            ChildKind::Holding => levels.push(Level { prefix_bytes: path.len(), rest: read(root, &path)? }),
        }
    }
    if list.entries == 0 {
        return Err(Error::EmptyOutput { path: root.to_owned() });
    }
    Ok(Tree { root: root.to_owned(), is_file: false, entries: list.entries, listed: list.bytes })
}

/// What the directory holds, sorted.
fn read(root: &Path, prefix: &str) -> Result<vec::IntoIter<Child>, Error> {
    let dir = root.join(prefix);
    let mut children = Vec::new();
    for entry in fs::read_dir(&dir).map_err(Error::io("read", &dir))? {
        let entry = entry.map_err(Error::io("read", &dir))?;
        if children.len() == ENTRIES_MAX {
            return Err(Error::TooManyEntries { limit: ENTRIES_MAX });
        }
        children.push(look_at(&entry, prefix)?);
    }
    children.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    Ok(children.into_iter())
}

fn look_at(entry: &DirEntry, prefix: &str) -> Result<Child, Error> {
    let full = || entry.path();
    let name = entry.file_name().into_string().map_err(|_| Error::refused(full(), "its name is not UTF-8"))?;
    if let Some(reason) = refuse_path(&format!("{prefix}{name}")) {
        return Err(Error::refused(full(), reason));
    }
    let kind = entry.file_type().map_err(|error| Error::io("look at", full())(error))?;
    let child = |key: String, kind| Ok(Child { key: key.into(), kind });
    if kind.is_file() {
        child(name, ChildKind::File)
    } else if kind.is_symlink() {
        child(name, ChildKind::Link)
    } else if kind.is_dir() {
        let mut inside = fs::read_dir(full()).map_err(|error| Error::io("read", full())(error))?;
        match inside.next() {
            Some(_) => child(name + "/", ChildKind::Holding),
            None => child(name, ChildKind::Empty),
        }
    } else {
        Err(Error::refused(full(), "it is a device, a socket or a pipe; remove it from the output"))
    }
}

fn link_target(full: &Path, path: &str) -> Result<String, Error> {
    let target = fs::read_link(full).map_err(Error::io("read", full))?;
    let target = target.into_os_string().into_string();
    let target = target.map_err(|_| Error::refused(full, "the link's target is not UTF-8"))?;
    match refuse_link(path, &target) {
        Some(reason) => Err(Error::refused(full, reason)),
        None => Ok(target),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn entries_come_in_the_order_of_whole_paths() {
        let dir = tempfile::tempdir().expect("a folder");
        let paths = ["a-b", "a.c", "a/x", "a/y/z", "a0", "ä/ö", "ä/õ", "ö"];
        for path in paths {
            let full = dir.path().join(path);
            fs::create_dir_all(full.parent().expect("below")).expect("made");
            fs::write(full, "x").expect("written");
        }
        fs::create_dir_all(dir.path().join("a/empty")).expect("made");
        fs::create_dir_all(dir.path().join("a ")).expect("made");
        symlink("../a0", dir.path().join("a/link")).expect("linked");
        let tree = walk(dir.path()).expect("a tree");
        let mut cursor = tree.cursor();
        let mut found = Vec::new();
        while let Some(Found { path, kind }) = cursor.next() {
            let kind = match kind {
                Kind::File => "file".to_owned(),
                Kind::Link(target) => format!("to {target}"),
                Kind::Directory => "empty".to_owned(),
            };
            found.push((path.to_owned(), kind));
        }
        let mut expected: Vec<_> = paths.map(|path| (path.to_owned(), "file".to_owned())).into();
        expected.push(("a/empty".to_owned(), "empty".to_owned()));
        expected.push(("a ".to_owned(), "empty".to_owned()));
        expected.push(("a/link".to_owned(), "to ../a0".to_owned()));
        expected.sort();
        assert_eq!((found, tree.len()), (expected.clone(), expected.len()));
    }

    #[test]
    fn a_tree_deeper_than_a_stack_is_walked() {
        let dir = tempfile::tempdir().expect("a folder");
        let deep = "d/".repeat(1500) + "file";
        fs::create_dir_all(dir.path().join(&deep).parent().expect("below")).expect("made");
        fs::write(dir.path().join(&deep), "x").expect("written");
        let tree = walk(dir.path()).expect("a tree");
        assert_eq!(tree.cursor().next(), Some(Found { path: &deep, kind: Kind::File }));
    }
}
