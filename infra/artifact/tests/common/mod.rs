//! Packs in memory, and trees of files to publish.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use longshore_artifact::{
    ArtifactRoot, Bases, Index, PackRead, PackRef, PackSink, Published, ReadError, SinkError, publish,
};
use longshore_schemas::PackId;

#[derive(Default)]
pub struct Memory(pub Mutex<HashMap<PackId, Bytes>>);

#[async_trait::async_trait]
impl PackSink for Memory {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        assert_eq!(PackId::of(&bytes), pack, "a pack is named by its bytes");
        self.0.lock().expect("not poisoned").insert(pack, bytes);
        Ok(())
    }
}

impl PackRead for Memory {
    fn read_at(&self, pack: &PackRef, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let packs = self.0.lock().expect("not poisoned");
        let bytes = packs.get(&pack.pack).ok_or(ReadError::Missing)?;
        let start = usize::try_from(offset).expect("small");
        let range =
            bytes.get(start..start + buffer.len()).ok_or(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        buffer.copy_from_slice(range);
        Ok(())
    }
}

impl Memory {
    pub fn index(&self, root: &ArtifactRoot) -> Index {
        Index::load(root, self).expect("just published")
    }
}

pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(future)
}

pub fn publish_tree(source: &Path, base: Option<&Index>, memory: &Arc<Memory>) -> Published {
    run(publish(source, base.map_or_else(Bases::default, Bases::from), memory.clone())).expect("published")
}

/// Bytes that do not compress and do not repeat, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// What a tree holds, for comparison: modes and bytes of files, targets of links, empty directories.
pub fn contents(dir: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(dir).min_depth(1) {
        let entry = entry.expect("readable");
        let path = entry.path();
        let name = path.strip_prefix(dir).expect("below").to_str().expect("UTF-8").to_owned();
        let metadata = fs::symlink_metadata(path).expect("there");
        if metadata.is_symlink() {
            found.insert(name, (1, fs::read_link(path).expect("a link").to_str().expect("UTF-8").into()));
        } else if metadata.is_file() {
            found.insert(name, (metadata.permissions().mode(), fs::read(path).expect("readable")));
        } else if fs::read_dir(path).expect("readable").next().is_none() {
            found.insert(name, (0, Vec::new()));
        }
    }
    found
}
