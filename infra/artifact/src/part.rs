//! A part of an artifact: one file, one link or one folder, with where it lies in the tree.

use crate::{ArtifactRoot, Entry, Error, Index, Layout, Manifest, Place, manifest, wire::WireError};

impl Manifest {
    /// What lies at this path, if something does and it is not only a folder of others.
    pub fn find(&self, path: &str) -> Option<&Entry> {
        let at = self.entries().binary_search_by(|entry| entry.path().as_bytes().cmp(path.as_bytes()));
        at.ok().map(|at| &self.entries()[at])
    }

    /// The entry at this path, or all that lie below it, in order. An empty path has all.
    pub fn under(&self, path: &str) -> &[Entry] {
        let entries = self.entries();
        if path.is_empty() {
            return entries;
        }
        if let Some(entry) = self.find(path) {
            return std::slice::from_ref(entry);
        }
        let below = format!("{path}/");
        let first = entries.partition_point(|entry| entry.path().as_bytes() < below.as_bytes());
        let count = entries[first..].partition_point(|entry| entry.path().starts_with(&below));
        &entries[first..first + count]
    }
}

impl Index {
    /// What lies at or below this path, as an artifact of its own: with its paths in the whole tree, so that its links stay what
    /// they are, and with the packs of its chunks only. `None` if there is nothing.
    pub fn part(&self, path: &str) -> Result<Option<Self>, Error> {
        let entries = self.manifest.under(path);
        if entries.is_empty() {
            return Ok(None);
        }
        let manifest = self.manifest_of(entries).map_err(|error| error.of("manifest"))?;
        let manifest = Manifest::read(&*manifest)?;
        let layout = self.layout_of(&manifest);
        let root = ArtifactRoot {
            artifact: manifest.id(),
            size_bytes: manifest.size_bytes(),
            files: manifest.entries().len() as u64,
            chunks: manifest.chunks().len() as u64,
            manifest: Vec::new(),
            manifest_key: 0,
            layout: Vec::new(),
            packs: layout.packs().to_vec(),
            provenance: None,
        };
        Ok(Some(Self { root, manifest, layout }))
    }

    fn manifest_of(&self, entries: &[Entry]) -> Result<Vec<u8>, WireError> {
        let whole = &self.manifest;
        let mut writer = manifest::Writer::new(Vec::new())?;
        for entry in entries {
            match entry {
                Entry::File(file) => writer.file(&file.path, file.mode, whole.chunks(), whole.chunks_of(file))?,
                Entry::Link { path, target } => writer.link(path, target)?,
                Entry::Directory { path } => writer.directory(path)?,
            }
        }
        Ok(writer.finish()?)
    }

    /// Where the chunks of a part lie.
    fn layout_of(&self, part: &Manifest) -> Layout {
        let mut layout = Layout::default();
        let mut numbers = vec![None; self.layout.packs().len()];
        for chunk in part.chunks() {
            let at = self.manifest.table().find(&chunk.id).expect("a part has no chunk that the whole lacks");
            let place = self.layout.places()[at];
            let pack = *numbers[place.pack as usize].get_or_insert_with(|| {
                layout.packs.push(*self.layout.pack_of(&place));
                u32::try_from(layout.packs.len() - 1).expect("no more packs than the whole has")
            });
            layout.places.push(Place { pack, ..place });
        }
        layout
    }
}
