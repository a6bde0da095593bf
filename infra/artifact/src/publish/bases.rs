//! What earlier artifacts have, which needs no second upload.

use std::collections::HashMap;

use bytes::Bytes;
use longshore_schemas::{ChunkId, PackId};

use crate::{ArtifactRoot, Error, Index, Layout, PackRef, Place, table::ChunkTable};

/// The chunks of earlier artifacts, and where they lie. They need no second upload as long as their packs are kept.
///
/// Artifacts of one name share most of their chunks, so each is kept once, where the first that was added has it.
#[derive(Debug, Default)]
pub struct Bases {
    table: ChunkTable,
    packs: Vec<PackRef>,
    places: Vec<Place>,
    /// A manifest that the next one may be compressed by, and its packs.
    key: Option<(Vec<PackRef>, Vec<u8>)>,
}

/// What one artifact has.
impl From<&Index> for Bases {
    fn from(index: &Index) -> Self {
        let mut bases = Self::default();
        bases.add_index(index);
        bases
    }
}

impl Bases {
    /// Adds an artifact, from the packs of its manifest and layout, the newest first. Every byte of them is verified.
    pub fn add(&mut self, root: &ArtifactRoot, packs: &HashMap<PackId, Bytes>) -> Result<(), Error> {
        let (table, layout) = Index::decode_chunks(root, packs)?;
        if self.packs.is_empty() {
            // The first that is added is the newest, which is most like the next.
            self.key = Index::key_of(root, packs)?;
        }
        self.add_chunks(&table, &layout);
        Ok(())
    }

    /// Adds an artifact that was verified.
    pub fn add_index(&mut self, index: &Index) {
        self.add_chunks(index.manifest.table(), &index.layout);
    }

    fn add_chunks(&mut self, table: &ChunkTable, layout: &Layout) {
        let first = u32::try_from(self.packs.len()).expect("a few layouts have fewer packs than 32 bits count");
        self.packs.extend_from_slice(layout.packs());
        for (chunk, place) in table.chunks().iter().zip(layout.places()) {
            if let (_, true) = self.table.insert(*chunk) {
                self.places.push(Place { pack: first + place.pack, ..*place });
            }
        }
    }

    /// The key of the next manifest: its packs and its bytes; both empty if there is none.
    pub(super) fn key(&self) -> (&[PackRef], &[u8]) {
        self.key.as_ref().map_or((&[], &[]), |(packs, bytes)| (packs, bytes))
    }

    pub(super) fn contains(&self, chunk: &ChunkId) -> bool {
        self.table.find(chunk).is_some()
    }

    pub(super) fn find(&self, chunk: &ChunkId) -> Option<(PackRef, Place)> {
        let place = self.places[self.table.find(chunk)?];
        Some((self.packs[place.pack as usize], place))
    }
}
