//! Copies one artifact from bucket to bucket: what is lacking, verified, the root last.
//!
//! Wrong bytes are never copied on: they are moved away, and said to be wrong. Regions that have what the main bucket lost give it back.
//!
//! The root in a region's bucket says that every pack it names is there: nodes may begin once they find it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use longshore_artifact::{ArtifactRoot, PackRef, ROOT_BYTES_MAX, pack_key, root_key};
use longshore_s3::{Bucket, Error as BucketError};
use longshore_schemas::{ArtifactId, PackId};
use tokio::sync::Semaphore;

use crate::quarantine::{Held, inspect, set_aside, set_root_aside};

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
    #[error("reading {key}: {source}")]
    Read {
        key: String,
        #[source]
        source: BucketError,
    },
    #[error("writing {key}: {source}")]
    Write {
        key: String,
        #[source]
        source: BucketError,
    },
    #[error("the root of artifact {artifact} is not usable: {source}")]
    Root {
        artifact: ArtifactId,
        #[source]
        source: longshore_artifact::Error,
    },
    #[error(
        "pack {pack} has wrong bytes in the main bucket{}; another region that has it puts it back, or build the artifact again",
        if *moved { ", from where it was moved to quarantine/" } else { "" }
    )]
    WrongBytes { pack: PackId, moved: bool },
    #[error(
        "pack {pack} is not in the main bucket; another region that has it puts it back, or build the artifact again"
    )]
    Missing { pack: PackId },
}

impl Copy {
    pub(crate) async fn artifact(&self, artifact: &ArtifactId, progress: &Progress) -> Result<Copied, CopyError> {
        progress.packs_done.store(0, Ordering::Relaxed);
        let key = root_key(artifact);
        let json = self.main.get(&key, ROOT_BYTES_MAX as u64).await;
        let json = json.map_err(|source| CopyError::Read { key: key.clone(), source })?;
        let packs = match ArtifactRoot::from_json(artifact, &json) {
            Ok(root) => root.all_packs(),
            Err(source) => {
                // Out of the way, so that a region that has it can put the right one there.
                let aside = set_root_aside(&self.main, artifact).await;
                aside.map_err(|source| CopyError::Write { key, source })?;
                return Err(CopyError::Root { artifact: *artifact, source });
            }
        };
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
            let content = self.right_bytes(&pack, bytes).await?;
            self.own.put(&key, content).await.map_err(|source| CopyError::Write { key, source })?;
            progress.bytes_copied.fetch_add(bytes, Ordering::Relaxed);
        }
        progress.packs_done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A pack of the main bucket. Wrong bytes are moved away, so that whoever has the right ones can put them there.
    async fn right_bytes(&self, pack: &PackId, bytes: u64) -> Result<Bytes, CopyError> {
        let read = |source| CopyError::Read { key: pack_key(pack), source };
        let mut held = inspect(&self.main, pack, bytes).await.map_err(read)?;
        let mut moved = false;
        if matches!(held, Held::Wrong(_)) {
            held = set_aside(&self.main, pack, bytes, &held).await.map_err(read)?;
            moved = held == Held::Gone;
        }
        match held {
            Held::Right(content) => Ok(content),
            Held::Gone if !moved => Err(CopyError::Missing { pack: *pack }),
            Held::Gone | Held::Wrong(_) => Err(CopyError::WrongBytes { pack: *pack, moved }),
        }
    }

    /// Puts those packs of the artifact back into the main bucket that are not there, as far as this region has them.
    /// Answers how many those were, and which of its own are damaged.
    pub(crate) async fn give_back(&self, artifact: &ArtifactId) -> Result<GivenBack, CopyError> {
        let key = root_key(artifact);
        let json = self.own.get(&key, ROOT_BYTES_MAX as u64).await;
        let json = json.map_err(|source| CopyError::Read { key: key.clone(), source })?;
        let root = ArtifactRoot::from_json(artifact, &json);
        let packs = root.map_err(|source| CopyError::Root { artifact: *artifact, source })?.all_packs();
        let given: Vec<Given> = stream::iter(packs)
            .map(|pack| self.give_pack_back(pack))
            .buffer_unordered(PACKS_AT_ONCE)
            .try_collect()
            .await?;
        let root = self.main.put_if_absent(&key, json).await;
        let root = root.map_err(|source| CopyError::Write { key, source })?;
        let mut back = GivenBack { root, ..GivenBack::default() };
        for given in given {
            match given {
                Given::NotNeeded => {}
                Given::Yes => back.packs += 1,
                Given::Damaged(pack) => back.damaged.push(pack),
            }
        }
        Ok(back)
    }

    async fn give_pack_back(&self, wanted: PackRef) -> Result<Given, CopyError> {
        let PackRef { pack, bytes } = wanted;
        let key = pack_key(&pack);
        let there = self.main.head(&key).await.map_err(|source| CopyError::Read { key: key.clone(), source })?;
        if there.is_some() {
            return Ok(Given::NotNeeded);
        }
        let _permit = self.permits.acquire().await.expect("the permits are never closed");
        let held = inspect(&self.own, &pack, bytes).await;
        match held.map_err(|source| CopyError::Read { key: key.clone(), source })? {
            Held::Right(content) => {
                let put = self.main.put_if_absent(&key, content).await;
                put.map_err(|source| CopyError::Write { key, source })?;
                Ok(Given::Yes)
            }
            Held::Wrong(_) | Held::Gone => Ok(Given::Damaged(wanted)),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct GivenBack {
    pub(crate) root: bool,
    pub(crate) packs: usize,
    pub(crate) damaged: Vec<PackRef>,
}

enum Given {
    NotNeeded,
    Yes,
    /// This region has no right copy either.
    Damaged(PackRef),
}
