//! Chunks by their order and by their name: what reading a manifest, publishing, and finding what is missing have in common.

use std::hash::{BuildHasher, RandomState};

use hashbrown::{HashTable, hash_table::Entry};
use longshore_schemas::ChunkId;

use crate::Chunk;

/// Different chunks in order of first appearance, and where each one is. 36 bytes a chunk, and some 9 for finding it.
///
/// Names that come from others need not be hashes of anything: they are hashed anew with a key of this process, so that
/// nobody can make them collide.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChunkTable {
    chunks: Vec<Chunk>,
    places: HashTable<u32>,
    keys: RandomState,
}

impl ChunkTable {
    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }

    pub(crate) fn find(&self, id: &ChunkId) -> Option<usize> {
        let hash = self.keys.hash_one(id);
        self.places.find(hash, |at| self.chunks[*at as usize].id == *id).map(|at| *at as usize)
    }

    /// Where the chunk of this name is, and whether it is new. An older one keeps its length.
    ///
    /// # Panics
    /// With 2^32 chunks, of which no manifest comes near.
    pub(crate) fn insert(&mut self, chunk: Chunk) -> (usize, bool) {
        let Self { chunks, places, keys } = self;
        let hash = keys.hash_one(chunk.id);
        let found =
            places.entry(hash, |at| chunks[*at as usize].id == chunk.id, |at| keys.hash_one(chunks[*at as usize].id));
        match found {
            Entry::Occupied(at) => (*at.get() as usize, false),
            Entry::Vacant(free) => {
                let at = u32::try_from(chunks.len()).expect("a manifest has at most 16 million chunks");
                free.insert(at);
                chunks.push(chunk);
                (chunks.len() - 1, true)
            }
        }
    }
}

/// The index follows from the chunks.
impl PartialEq for ChunkTable {
    fn eq(&self, other: &Self) -> bool {
        self.chunks == other.chunks
    }
}

impl Eq for ChunkTable {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_keep_their_order_and_are_found() {
        let mut table = ChunkTable::default();
        let chunk = |number: u32| Chunk { id: ChunkId::of(&number.to_le_bytes()), bytes: number };
        for number in 0..5000 {
            assert_eq!(table.insert(chunk(number)), (number as usize, true));
            assert_eq!(table.insert(Chunk { bytes: 9, ..chunk(number / 2) }), (number as usize / 2, false));
        }
        assert!((0..5000).all(|number| table.find(&chunk(number).id) == Some(number as usize)));
        assert_eq!((table.find(&ChunkId::of(b"other")), table.len()), (None, 5000));
        assert!(table.chunks().iter().zip(0..).all(|(chunk, number)| chunk.bytes == number));
    }
}
