//! Roots of artifacts in the region's bucket, kept while they are asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
};

use longshore_artifact::{ArtifactRoot, ROOT_BYTES_MAX, root_key};
use longshore_s3::{Bucket, Error as BucketError};
use longshore_schemas::{ArtifactId, PackId, RegionName, events::ArtifactFact};
use tokio::sync::Mutex;

use crate::mender::{What, Word, Words};

/// Most roots in memory.
const ROOTS_MAX: usize = 64;
/// Most that wait to be forgotten one by one.
const STALE_MAX: usize = 1_000;

/// What the region has of an artifact.
pub(crate) struct Root {
    pub(crate) json: serde_json::Value,
    sizes: BTreeMap<PackId, u64>,
}

impl Root {
    pub(crate) fn size(&self, pack: &PackId) -> Option<u64> {
        self.sizes.get(pack).copied()
    }

    /// Those of the packs that belong to the artifact, each once.
    pub(crate) fn own(&self, packs: Vec<PackId>) -> Vec<PackId> {
        let packs: BTreeSet<PackId> = packs.into_iter().filter(|pack| self.sizes.contains_key(pack)).collect();
        packs.into_iter().collect()
    }
}

#[derive(Default)]
struct Cache {
    roots: BTreeMap<ArtifactId, (u64, Arc<Root>)>,
    uses: u64,
}

pub(crate) struct Roots {
    bucket: Bucket,
    cache: Mutex<Cache>,
    damaged: Words,
    /// Roots that are not what they were; `None`: perhaps none is.
    stale: std::sync::Mutex<Option<BTreeSet<ArtifactId>>>,
}

impl Roots {
    pub(crate) fn new(bucket: Bucket, damaged: Words) -> Self {
        Self { bucket, cache: Mutex::default(), damaged, stale: std::sync::Mutex::new(Some(BTreeSet::new())) }
    }

    /// `None` if the region does not have the artifact, or not yet. Held while it is read: all of a region's nodes ask for
    /// the same root at the same time, and one of them reads it.
    pub(crate) async fn get(&self, artifact: &ArtifactId) -> Option<Arc<Root>> {
        let mut cache = self.cache.lock().await;
        let stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner).replace(BTreeSet::new());
        cache.roots.retain(|id, _| stale.as_ref().is_some_and(|stale| !stale.contains(id)));
        cache.uses += 1;
        let uses = cache.uses;
        if let Some((used, root)) = cache.roots.get_mut(artifact) {
            *used = uses;
            return Some(root.clone());
        }
        let root = Arc::new(self.read(artifact).await?);
        if cache.roots.len() >= ROOTS_MAX
            && let Some(oldest) = cache.roots.iter().min_by_key(|(_, (used, _))| *used).map(|(id, _)| *id)
        {
            cache.roots.remove(&oldest);
        }
        cache.roots.insert(*artifact, (uses, root.clone()));
        Some(root)
    }

    /// The same artifact may have come anew with other packs, and what only its earlier root named may be collected.
    pub(crate) fn forget_of(&self, region: &RegionName, fact: &ArtifactFact) {
        let artifact = match fact {
            ArtifactFact::ReplicaStored(stored) if stored.region == *region => stored.artifact,
            ArtifactFact::ArtifactRetired(retired) => retired.artifact,
            _ => return,
        };
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(some) = &mut *stale {
            some.insert(artifact);
        }
        if stale.as_ref().is_some_and(|some| some.len() > STALE_MAX) {
            *stale = None;
        }
    }

    async fn read(&self, artifact: &ArtifactId) -> Option<Root> {
        let json = match self.bucket.get(&root_key(artifact), ROOT_BYTES_MAX as u64).await {
            Ok(json) => json,
            Err(BucketError::NotFound { .. }) => return None,
            Err(error) => {
                tracing::warn!(%artifact, %error, "the root of an artifact cannot be read");
                return None;
            }
        };
        let root = ArtifactRoot::from_json(artifact, &json);
        let unusable = |error: &_| {
            tracing::error!(%artifact, %error, "the root of an artifact is not usable");
            self.damaged.say(Word { node: None, artifact: *artifact, what: What::Root });
        };
        let root = root.inspect_err(unusable).ok()?;
        let sizes = root.all_packs().into_iter().map(|pack| (pack.pack, pack.bytes)).collect();
        Some(Root { json: serde_json::from_slice(&json).ok()?, sizes })
    }
}
