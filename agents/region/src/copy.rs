//! Copies one artifact from bucket to bucket: what is lacking, verified, the root last.
//!
//! The root in a region's bucket says that every pack it names is there: nodes may begin once they find it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use futures::{StreamExt, TryStreamExt, stream};
use longshore_artifact::{ArtifactRoot, PackRef, ROOT_BYTES_MAX, pack_key, root_key};
use longshore_s3::{Bucket, Error as BucketError};
use longshore_schemas::{ArtifactId, PackId};
use tokio::sync::Semaphore;

/// Packs of one artifact that are looked for or copied at the same time; how many of them are in memory, the permits say.
const PACKS_AT_ONCE: usize = 32;

/// The two buckets, and how much may be under way between them.
#[derive(Clone)]
pub(crate) struct Copy {
    pub(crate) main: Bucket,
    pub(crate) own: Bucket,
    /// One for each pack in memory, of all artifacts together.
    pub(crate) permits: Arc<Semaphore>,
}

pub(crate) struct Copied {
    pub(crate) packs: u32,
}

/// How far one artifact is; lives over attempts.
#[derive(Default)]
pub(crate) struct Progress {
    packs_done: AtomicU32,
    bytes_copied: AtomicU64,
}

impl Progress {
    pub(crate) fn packs_done(&self) -> u32 {
        self.packs_done.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes_copied(&self) -> u64 {
        self.bytes_copied.load(Ordering::Relaxed)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("reading {key} from the main bucket: {source}")]
    Read {
        key: String,
        #[source]
        source: BucketError,
    },
    #[error("writing {key} to the region's bucket: {source}")]
    Write {
        key: String,
        #[source]
        source: BucketError,
    },
    #[error("the root of artifact {artifact} in the main bucket is not usable: {source}")]
    Root {
        artifact: ArtifactId,
        #[source]
        source: longshore_artifact::Error,
    },
    #[error("pack {pack} in the main bucket has wrong bytes: put the right ones there, or build the artifact again")]
    WrongBytes { pack: PackId },
}

impl Copy {
    pub(crate) async fn artifact(&self, artifact: &ArtifactId, progress: &Progress) -> Result<Copied, CopyError> {
        progress.packs_done.store(0, Ordering::Relaxed);
        let key = root_key(artifact);
        let json = self.main.get(&key, ROOT_BYTES_MAX as u64).await;
        let json = json.map_err(|source| CopyError::Read { key: key.clone(), source })?;
        let root = ArtifactRoot::from_json(artifact, &json);
        let packs = root.map_err(|source| CopyError::Root { artifact: *artifact, source })?.all_packs();
        let count = u32::try_from(packs.len()).unwrap_or(u32::MAX);
        // No `spawn`: dropping this future drops every transfer with it.
        stream::iter(packs)
            .map(|pack| self.pack(pack, progress))
            .buffer_unordered(PACKS_AT_ONCE)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await?;
        self.own.put(&key, json).await.map_err(|source| CopyError::Write { key, source })?;
        Ok(Copied { packs: count })
    }

    async fn pack(&self, PackRef { pack, bytes }: PackRef, progress: &Progress) -> Result<(), CopyError> {
        let key = pack_key(&pack);
        let there = self.own.head(&key).await.map_err(|source| CopyError::Write { key: key.clone(), source })?;
        // What is there was verified when it was put; a wrong size is not that.
        if there != Some(bytes) {
            let _permit = self.permits.acquire().await.expect("the permits are never closed");
            let content = self.main.get(&key, bytes).await;
            let content = content.map_err(|source| CopyError::Read { key: key.clone(), source })?;
            if content.len() as u64 != bytes || PackId::of(&content) != pack {
                return Err(CopyError::WrongBytes { pack });
            }
            self.own.put(&key, content).await.map_err(|source| CopyError::Write { key, source })?;
            progress.bytes_copied.fetch_add(bytes, Ordering::Relaxed);
        }
        progress.packs_done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
