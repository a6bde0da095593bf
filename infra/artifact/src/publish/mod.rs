//! Publishing: from a tree on disk to packs, uploaded while the tree is still being read.
//!
//! ```text
//!  planner ──part──▶ workers, one a core ──segment──▶ placer ──pack──▶ uploads ──▶ PackSink
//!  (who reads        read, cut by content,            in order:       8 at once
//!   what next)       hash, look up, compress          pack, manifest
//!                        ▲                              │
//!                        └────── empty segments ◀───────┘
//! ```
//!
//! A fixed number of segments circulates, so memory does not grow with the tree's bytes; what grows with its entries and chunks is
//! a line each. Segments are placed in the order of the tree: packs, manifest and layout depend on the tree and the bases only,
//! never on which worker was faster. If an upload fails or the caller goes away, the queue of packs closes, and each stage ends
//! because the next one has. Published again, the same tree with the same bases makes the same packs: what a run that was
//! interrupted has stored is there for the next one.

mod bases;
mod cut;
mod place;
mod plan;
mod read;
mod segment;
mod stream;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use longshore_schemas::PackId;
use tokio::{sync::mpsc, task::JoinSet};

pub use self::bases::Bases;
use crate::{ArtifactRoot, Error, PackRef};

/// Packs that are on their way at once, each up to `PACK_BYTES_MAX`.
const UPLOADS_MAX: usize = 8;

/// What a sink may fail with.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Where finished packs go. A pack that is already there is stored: not an error.
#[async_trait::async_trait]
pub trait PackSink: Send + Sync {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError>;
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
pub async fn publish(source: &Path, bases: Bases, sink: Arc<dyn PackSink>) -> Result<Published, Error> {
    let (packs, queue) = mpsc::channel(1);
    let source = source.to_owned();
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
