//! What changed from one tree to another, by their manifests.

use std::{cmp::Ordering, iter::Peekable, slice};

use longshore_schemas::ChunkId;

use crate::{Entry, FileRef, Manifest};

/// An entry that is not as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    Added(&'a Entry),
    Removed(&'a Entry),
    /// Its bytes, its target or its kind.
    Changed(&'a Entry, &'a Entry),
    /// Nothing but its permissions.
    Mode(&'a Entry, &'a Entry),
}

impl Change<'_> {
    pub fn path(&self) -> &str {
        match self {
            Self::Added(entry) | Self::Removed(entry) | Self::Changed(_, entry) | Self::Mode(_, entry) => entry.path(),
        }
    }
}

/// All changes, in the order of their paths.
pub struct Changes<'a> {
    from: (&'a Manifest, Peekable<slice::Iter<'a, Entry>>),
    to: (&'a Manifest, Peekable<slice::Iter<'a, Entry>>),
}

impl<'a> Changes<'a> {
    pub fn new(from: &'a Manifest, to: &'a Manifest) -> Self {
        let entries = |manifest: &'a Manifest| (manifest, manifest.entries().iter().peekable());
        Self { from: entries(from), to: entries(to) }
    }

    fn compare(&self, from: &'a Entry, to: &'a Entry) -> Option<Change<'a>> {
        match (from, to) {
            (Entry::File(old), Entry::File(new)) => {
                let same = chunks(self.from.0, old).eq(chunks(self.to.0, new));
                let other_mode = || (old.mode != new.mode).then_some(Change::Mode(from, to));
                if same { other_mode() } else { Some(Change::Changed(from, to)) }
            }
            _ => (from != to).then_some(Change::Changed(from, to)),
        }
    }
}

fn chunks<'a>(manifest: &'a Manifest, file: &FileRef) -> impl Iterator<Item = ChunkId> + use<'a> {
    manifest.chunks_of(file).iter().map(|chunk| manifest.chunks()[*chunk as usize].id)
}

impl<'a> Iterator for Changes<'a> {
    type Item = Change<'a>;

    fn next(&mut self) -> Option<Change<'a>> {
        loop {
            let order = match (self.from.1.peek(), self.to.1.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(from), Some(to)) => from.path().as_bytes().cmp(to.path().as_bytes()),
            };
            match order {
                Ordering::Less => return self.from.1.next().map(Change::Removed),
                Ordering::Greater => return self.to.1.next().map(Change::Added),
                Ordering::Equal => {
                    let (from, to) = (self.from.1.next()?, self.to.1.next()?);
                    if let Some(change) = self.compare(from, to) {
                        return Some(change);
                    }
                }
            }
        }
    }
}
