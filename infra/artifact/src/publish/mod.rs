//! Publishing: from a tree on disk to packs, uploaded while the tree is still being read.
//!
//! ```text
//!  reader ──segment──▶ workers ──segment──▶ placer ──pack──▶ uploads ──▶ PackSink
//!    ▲   cut by content   hash, look up,      in order:        4 at once
//!    │                    compress            pack, manifest
//!    └──────────────── empty segments ◀─────────┘
//! ```
//!
//! A fixed number of segments circulates, so memory does not grow with the tree. Segments are placed in the order in which they
//! were read: packs, manifest and layout depend on the tree and the bases only, never on which thread was faster.
//! If an upload fails or the caller goes away, the queue of packs closes, and each stage ends because the next one has.

mod place;
mod read;
mod segment;
mod stream;

use std::{collections::HashMap, path::Path, sync::Arc};

use bytes::Bytes;
use longshore_schemas::{ChunkId, PackId};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{ArtifactRoot, Error, Index, PackRef, Place};

/// Packs that are on their way at once, each up to `PACK_BYTES_MAX`.
const UPLOADS_MAX: usize = 4;

/// What a sink may fail with.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Where finished packs go. A pack that is already there is stored: not an error.
#[async_trait::async_trait]
pub trait PackSink: Send + Sync {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError>;
}

/// The chunks of an earlier artifact, which need no second upload as long as its packs are kept. Cheap to clone.
#[derive(Clone)]
pub struct Base(Arc<Chunks>);

struct Chunks {
    packs: Vec<PackRef>,
    places: HashMap<ChunkId, Place>,
}

impl Base {
    pub fn new(index: &Index) -> Self {
        let chunks = index.manifest.chunks().iter().map(|chunk| chunk.id);
        let places = chunks.zip(index.layout.places().iter().copied()).collect();
        Self(Arc::new(Chunks { packs: index.layout.packs().to_vec(), places }))
    }

    fn contains(&self, chunk: &ChunkId) -> bool {
        self.0.places.contains_key(chunk)
    }

    fn find(&self, chunk: &ChunkId) -> Option<(PackRef, Place)> {
        let place = self.0.places.get(chunk)?;
        Some((self.0.packs[place.pack as usize], *place))
    }
}

/// What publishing did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// To be stored under its key once everything else is.
    pub root: ArtifactRoot,
    /// Every pack that went to the sink, manifest and layout included.
    pub new_packs: Vec<PackRef>,
    /// The sum of their sizes: what was uploaded.
    pub new_bytes: u64,
    /// Different chunks that the bases did not have.
    pub new_chunks: u64,
    /// Different chunks that a base had.
    pub reused_chunks: u64,
    /// Their size, uncompressed.
    pub reused_bytes: u64,
}

/// Publishes a directory or a single file. The packs are with the sink when this returns; the root is the caller's to store.
pub async fn publish(source: &Path, bases: &[Base], sink: Arc<dyn PackSink>) -> Result<Published, Error> {
    let (packs, queue) = mpsc::channel(1);
    let source = source.to_owned();
    let bases = bases.to_vec();
    let pipeline = tokio::task::spawn_blocking(move || segment::run(&source, &bases, packs));
    let (uploaded, published) = tokio::join!(upload(queue, sink), pipeline);
    uploaded?;
    published.unwrap_or_else(|error| {
        tracing::error!(%error, "the publishing thread ended without a result");
        Err(Error::Interrupted)
    })
}

async fn upload(mut queue: mpsc::Receiver<stream::Pack>, sink: Arc<dyn PackSink>) -> Result<(), Error> {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            pack = queue.recv(), if running.len() < UPLOADS_MAX => {
                let Some(pack) = pack else { break };
                let sink = sink.clone();
                running.spawn(async move {
                    let stored = sink.put(pack.name, pack.bytes).await;
                    stored.map_err(|source| Error::Sink { pack: pack.name, source })
                });
            }
            Some(stored) = running.join_next() => stored.unwrap_or(Err(Error::Interrupted))?,
        }
    }
    while let Some(stored) = running.join_next().await {
        stored.unwrap_or(Err(Error::Interrupted))?;
    }
    Ok(())
}
