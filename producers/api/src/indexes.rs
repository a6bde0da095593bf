//! What artifacts consist of, read from the main bucket and kept for the next call: a client that reads a file range by range, or a
//! list page by page, makes this process read a manifest once.
//!
//! Memory is bounded by what is kept ([`KEPT_BYTES_MAX`], at least the newest) and by the two that are read at a time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use longshore_artifact::{ArtifactRoot, Entry, Index, ROOT_BYTES_MAX, pack_key, root_key};
use longshore_schemas::{ArtifactId, PackId};
use tokio::sync::Semaphore;

use crate::{
    Shared,
    limits::{INDEX_BYTES, above},
    problem::{Answer, Failure},
};

/// Largest manifest and layout together, as they are packed: of 3 million chunks.
pub(crate) const INDEX_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Of manifests and layouts that were read, so much is kept. That of 10 GB in large files takes 10 MiB, that of a million small files 180.
pub(crate) const KEPT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// What was published again may lie in other packs, and the old ones may be collected.
const KEPT_FOR: Duration = Duration::from_secs(10 * 60);
/// Manifests that are read at once; the others wait.
static READS: Semaphore = Semaphore::const_new(2);
/// What an entry takes besides its path, and what a chunk and its place take.
const ENTRY_BYTES: u64 = 72;
const CHUNK_BYTES: u64 = 64;

#[derive(Default)]
pub(crate) struct Indexes(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// Counts uses, to tell which was used last.
    uses: u64,
    of: BTreeMap<ArtifactId, Row>,
}

struct Row {
    used: u64,
    read_at: Instant,
    index: Arc<Index>,
}

impl Kept {
    fn get(&mut self, artifact: &ArtifactId) -> Option<Arc<Index>> {
        self.uses += 1;
        let row = self.of.get_mut(artifact).filter(|row| row.read_at.elapsed() < KEPT_FOR)?;
        row.used = self.uses;
        Some(row.index.clone())
    }

    fn put(&mut self, index: Arc<Index>) {
        self.uses += 1;
        self.of.insert(index.root.artifact, Row { used: self.uses, read_at: Instant::now(), index });
        while self.of.len() > 1 && self.of.values().map(|row| weight(&row.index)).sum::<u64>() > KEPT_BYTES_MAX {
            let oldest = self.of.iter().min_by_key(|(_, row)| row.used).map(|(artifact, _)| *artifact);
            oldest.and_then(|oldest| self.of.remove(&oldest));
        }
    }
}

/// Roughly, in bytes.
fn weight(index: &Index) -> u64 {
    // Paths are as long as the first thousand say.
    let sample = &index.manifest.entries()[..index.manifest.entries().len().min(1000)];
    let paths: usize = sample.iter().map(|entry: &Entry| entry.path().len()).sum();
    let path = paths as u64 / (sample.len() as u64).max(1);
    index.root.files * (ENTRY_BYTES + path) + index.root.chunks * CHUNK_BYTES + index.root.size_bytes / (16 * 1024)
}

impl Indexes {
    /// What this artifact consists of, verified against its name.
    pub(crate) async fn get(&self, shared: &Arc<Shared>, artifact: &ArtifactId) -> Answer<Arc<Index>> {
        if let Some(index) = self.kept(artifact) {
            return Ok(index);
        }
        let root = root(shared, artifact).await?;
        let _turn = READS.acquire().await.expect("never closed");
        // Whoever had the turn before may have read the same.
        if let Some(index) = self.kept(artifact) {
            return Ok(index);
        }
        let packs = packs(shared, &root).await?;
        let index = tokio::task::spawn_blocking(move || Index::decode(&root, &packs)).await;
        let index = index.map_err(|error| Failure::internal(error.to_string()))?.map_err(|error| {
            tracing::error!(%artifact, %error, "what the main bucket has of an artifact is not that artifact");
            Failure::unavailable(format!("the main bucket has it damaged: {error}"))
        })?;
        let index = Arc::new(index);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(index.clone());
        Ok(index)
    }

    fn kept(&self, artifact: &ArtifactId) -> Option<Arc<Index>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(artifact)
    }
}

/// The artifact's root, as the main bucket has it.
pub(crate) async fn root(shared: &Shared, artifact: &ArtifactId) -> Answer<ArtifactRoot> {
    let json = match shared.bucket.get(&root_key(artifact), ROOT_BYTES_MAX as u64).await {
        Err(longshore_s3::Error::NotFound { .. }) => {
            return Err(Failure::not_found(format!("the main bucket has no root of {artifact} any more")));
        }
        other => other?,
    };
    ArtifactRoot::from_json(artifact, &json).map_err(|error| {
        tracing::error!(%artifact, %error, "the root of an artifact is not usable");
        Failure::unavailable(format!("the main bucket has it damaged: {error}"))
    })
}

/// The packs of its manifest and layout.
async fn packs(shared: &Shared, root: &ArtifactRoot) -> Answer<HashMap<PackId, Bytes>> {
    let packed: u64 = Index::packs(root).map(|pack| pack.bytes).sum();
    if packed > INDEX_BYTES_MAX {
        let says =
            format_args!("root: manifest and layout have {packed} bytes; split the output into several artifacts");
        return Err(above(&INDEX_BYTES, says));
    }
    let mut packs = HashMap::new();
    for pack in Index::packs(root) {
        packs.insert(pack.pack, shared.bucket.get(&pack_key(&pack.pack), pack.bytes).await?);
    }
    Ok(packs)
}

/// Whether manifest and layout are sound, and the root tells the truth about them. Their memory is bounded, whatever they say.
pub(crate) async fn check(shared: &Shared, root: &ArtifactRoot) -> Answer<()> {
    let _turn = READS.acquire().await.expect("never closed");
    let packs = packs(shared, root).await?;
    let of = root.clone();
    let checked = tokio::task::spawn_blocking(move || Index::check(&of, &packs)).await;
    let checked = checked.map_err(|error| Failure::internal(error.to_string()))?;
    checked.map_err(|error| Failure::invalid(format!("root: {error}. Build again, or look at the worker")))
}
