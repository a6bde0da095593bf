//! Copies packs from bucket to bucket: what is lacking, verified; and of an artifact, the root last.
//!
//! ```text
//! head own ─ there: done
//!    └─ not there ─▶ turn ─▶ (head own, if that took time) ─┬─ get main, verify, put own
//!                                                          └─ one service has both: it copies to incoming/, that is read and
//!                                                             verified, and it copies again to the pack's own place
//! ```
//!
//! What lies in a pack's own place was verified before it was put there, whoever dies in between.
//! Wrong bytes are never copied on: they are moved away, and said to be wrong. Regions that have what the main bucket lost give it back.
//!
//! What is about to be there is announced first, so that no collector deletes any of it from then on; what a collector had condemned
//! before that is waited for.
//!
//! The root in a region's bucket says that every pack it names is there: nodes may begin once they find it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use longshore_artifact::{
    ArtifactRoot, PACK_BYTES_MAX, PackRef, ROOT_BYTES_MAX,
    outline::{Outline, outline_key},
    pack_key, root_key,
};
use longshore_collector::{announce, condemned, is_condemned};
use longshore_region_policy::turns::Source;
use longshore_s3::{Bucket, Error as BucketError};
use longshore_schemas::{ArtifactId, PackId, events::UploadedPack};
use tokio::time::Instant;

use crate::{
    quarantine::{Held, inspect, set_aside, set_root_aside},
    turns::{Turn, Turns},
};

/// Packs of one artifact that are looked for or copied at the same time; how many of them are in memory, the turns say.
const PACKS_AT_ONCE: usize = 32;
/// After this, another process of the region may have put the pack there meanwhile.
const WAITED: std::time::Duration = std::time::Duration::from_millis(100);

/// The two buckets, and how much may be under way between them.
#[derive(Clone)]
pub(crate) struct Copy {
    pub(crate) main: Bucket,
    pub(crate) own: Bucket,
    /// One for each pack in memory, whomever it is for.
    pub(crate) turns: Turns,
    /// Whether the service copies itself.
    pub(crate) by_service: Arc<AtomicBool>,
    /// Where it copies to, of this process alone: what begins the keys.
    pub(crate) incoming: Arc<str>,
    /// What this process is called among those of its region.
    pub(crate) process: Arc<str>,
    /// How long collectors heed what is announced.
    pub(crate) announced_lasts: Duration,
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
    #[error(
        "packs of the artifact are just being collected, since nothing needed them until now; it is tried again soon"
    )]
    Condemned,
    #[error("what is being collected cannot be read: {source}")]
    Collected {
        #[source]
        source: longshore_collector::Error,
    },
}

impl CopyError {
    /// Whether a collector is in the way, and will not be for long.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Condemned | Self::Collected { .. })
    }

    /// Whether it may be otherwise at the next try, without anyone doing anything.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => source.is_transient(),
            Self::Condemned | Self::Collected { .. } => true,
            Self::Root { .. } | Self::WrongBytes { .. } | Self::Missing { .. } => false,
        }
    }
}

impl Copy {
    pub(crate) async fn artifact(&self, artifact: &ArtifactId, progress: &Progress) -> Result<Copied, CopyError> {
        progress.packs_done.store(0, Ordering::Relaxed);
        let key = root_key(artifact);
        let json = self.main.get(&key, ROOT_BYTES_MAX as u64).await;
        let json = json.map_err(|source| CopyError::Read { key: key.clone(), source })?;
        let root = match ArtifactRoot::from_json(artifact, &json) {
            Ok(root) => root,
            Err(source) => {
                // Out of the way, so that a region that has it can put the right one there.
                let aside = set_root_aside(&self.main, artifact).await;
                aside.map_err(|source| CopyError::Write { key, source })?;
                return Err(CopyError::Root { artifact: *artifact, source });
            }
        };
        let packs = root.all_packs();
        let count = u32::try_from(packs.len()).unwrap_or(u32::MAX);
        let source = Source::Artifact(*artifact);
        loop {
            let begun = Instant::now();
            self.announce(&root).await?;
            progress.packs_done.store(0, Ordering::Relaxed);
            // No `spawn`: dropping this future drops every transfer with it.
            stream::iter(packs.iter().copied())
                .map(|pack| self.pack(&source, pack, progress))
                .buffer_unordered(PACKS_AT_ONCE)
                .try_for_each(|()| std::future::ready(Ok(())))
                .await?;
            // The announcement may not hold any more: what is there now is looked for again.
            if begun.elapsed() < self.announced_lasts / 2 {
                break;
            }
        }
        self.own.put(&key, json).await.map_err(|source| CopyError::Write { key, source })?;
        Ok(Copied { packs: count })
    }

    /// Says what will be there, and sees that nothing of it is just being deleted.
    async fn announce(&self, root: &ArtifactRoot) -> Result<(), CopyError> {
        let written = announce(&self.own, &self.process, root).await;
        written
            .map_err(|source| CopyError::Write { key: format!("what is announced of {}", root.artifact), source })?;
        let condemned = condemned(&self.own).await.map_err(|source| CopyError::Collected { source })?;
        if is_condemned(&condemned, root) { Err(CopyError::Condemned) } else { Ok(()) }
    }

    async fn pack(&self, source: &Source, wanted: PackRef, progress: &Progress) -> Result<(), CopyError> {
        let PackRef { pack, bytes } = wanted;
        // What is there was verified when it was put; a wrong size is not that.
        if self.size_here(&pack).await? != Some(bytes)
            && let Some(mut turn) = self.turn(source, &pack, bytes, |size| size == bytes).await?
        {
            if !self.copied_by_service(&pack, bytes).await? {
                let content = self.right_bytes(&pack, bytes).await?;
                let outline = outline_of(pack, &content).await;
                let outline = outline.ok_or(CopyError::WrongBytes { pack, moved: false })?;
                self.put_outline(&outline).await?;
                self.put(&pack, content).await?;
            }
            turn.moved(bytes);
            progress.bytes_copied.fetch_add(bytes, Ordering::Relaxed);
        }
        progress.packs_done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A pack that a build has uploaded, by its worker's word, which is believed in nothing: only bytes with the pack's name are
    /// copied, and others are left for replication to look at. Answers how many bytes were.
    pub(crate) async fn ahead(&self, source: &Source, hinted: &UploadedPack) -> Result<Ahead, CopyError> {
        let UploadedPack { pack, bytes } = hinted;
        if self.size_here(pack).await?.is_some() {
            return Ok(Ahead::Here);
        }
        let Some(mut turn) = self.turn(source, pack, (*bytes).min(PACK_BYTES_MAX as u64), |_| true).await? else {
            return Ok(Ahead::Here);
        };
        let mut copied = *bytes;
        if !self.copied_by_service(pack, *bytes).await? {
            let key = pack_key(pack);
            let content = match self.main.get(&key, PACK_BYTES_MAX as u64).await {
                Ok(content) => content,
                Err(BucketError::NotFound { .. } | BucketError::TooLarge { .. }) => return Ok(Ahead::NotAsSaid),
                Err(source) => return Err(CopyError::Read { key, source }),
            };
            let Some(outline) = outline_of(*pack, &content).await else { return Ok(Ahead::NotAsSaid) };
            copied = content.len() as u64;
            self.put_outline(&outline).await?;
            self.put(pack, content).await?;
        }
        turn.moved(copied);
        Ok(Ahead::Copied(copied))
    }

    async fn size_here(&self, pack: &PackId) -> Result<Option<u64>, CopyError> {
        let key = pack_key(pack);
        self.own.head(&key).await.map_err(|source| CopyError::Write { key, source })
    }

    async fn put(&self, pack: &PackId, content: Bytes) -> Result<(), CopyError> {
        let key = pack_key(pack);
        self.own.put(&key, content).await.map_err(|source| CopyError::Write { key, source })
    }

    /// Whoever reads the pack from the bucket verifies and passes on each block as it comes. It is there before the pack is.
    async fn put_outline(&self, outline: &Outline) -> Result<(), CopyError> {
        if Outline::len_of(outline.bytes()) == 0 {
            return Ok(());
        }
        let key = outline_key(&outline.pack());
        self.own.put(&key, outline.to_bytes().into()).await.map_err(|source| CopyError::Write { key, source })
    }

    /// A turn to copy the pack; `None` if somebody else did, while it was waited for.
    async fn turn(
        &self,
        source: &Source,
        pack: &PackId,
        bytes: u64,
        is_right: impl Fn(u64) -> bool,
    ) -> Result<Option<Turn>, CopyError> {
        let asked = Instant::now();
        let turn = self.turns.take(source, *pack, bytes).await;
        if asked.elapsed() >= WAITED && self.size_here(pack).await?.is_some_and(is_right) {
            return Ok(None);
        }
        Ok(Some(turn))
    }

    /// Has the service copy the pack, if it does that, and looks at what it copied. `false` if it has to be done otherwise.
    async fn copied_by_service(&self, pack: &PackId, bytes: u64) -> Result<bool, CopyError> {
        if !self.by_service.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let (key, incoming) = (pack_key(pack), format!("{}{pack}", self.incoming));
        match self.own.copy_from(&self.main, &key, &incoming).await {
            Ok(()) => {}
            // It may be missing, or not what it should be: whoever reads it finds out.
            Err(BucketError::NotFound { .. }) => return Ok(false),
            Err(error) if error.is_refusal() => {
                tracing::warn!(main = ?self.main, own = ?self.own, %error, "the service does not copy by itself; packs are read and written instead");
                self.by_service.store(false, Ordering::Relaxed);
                return Ok(false);
            }
            Err(source) => return Err(CopyError::Read { key, source }),
        }
        let written = |source| CopyError::Write { key: incoming.clone(), source };
        let right = match self.own.get(&incoming, bytes).await {
            Ok(content) if content.len() as u64 == bytes => outline_of(*pack, &content).await,
            Ok(_) => None,
            Err(BucketError::TooLarge { .. }) => None,
            Err(source) => return Err(written(source)),
        };
        let is_right = right.is_some();
        if let Some(outline) = &right {
            self.put_outline(outline).await?;
        }
        let own = self.own.clone();
        // Once it has a pack's place nobody looks for what is in this one: it goes whatever becomes of the copying of others.
        let ending = tokio::spawn(async move {
            if is_right {
                let copied = own.copy_from(&own, &incoming, &key).await;
                copied.map_err(|source| CopyError::Write { key, source })?;
            }
            own.delete(&incoming).await.map_err(|source| CopyError::Write { key: incoming, source })
        });
        ending.await.map_err(|_| CopyError::WrongBytes { pack: *pack, moved: false })??;
        Ok(is_right)
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
        let source = Source::Artifact(*artifact);
        let given: Vec<Given> = stream::iter(packs)
            .map(|pack| self.give_pack_back(&source, pack))
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

    async fn give_pack_back(&self, source: &Source, wanted: PackRef) -> Result<Given, CopyError> {
        let PackRef { pack, bytes } = wanted;
        let key = pack_key(&pack);
        let there = self.main.head(&key).await.map_err(|source| CopyError::Read { key: key.clone(), source })?;
        if there.is_some() {
            return Ok(Given::NotNeeded);
        }
        let mut turn = self.turns.take(source, pack, bytes).await;
        let held = inspect(&self.own, &pack, bytes).await;
        match held.map_err(|source| CopyError::Read { key: key.clone(), source })? {
            Held::Right(content) => {
                turn.moved(bytes);
                let put = self.main.put_if_absent(&key, content).await;
                put.map_err(|source| CopyError::Write { key, source })?;
                Ok(Given::Yes)
            }
            Held::Wrong(_) | Held::Gone => Ok(Given::Damaged(wanted)),
        }
    }
}

/// What verifies a pack's blocks; None if these are not its bytes.
async fn outline_of(pack: PackId, content: &Bytes) -> Option<Outline> {
    let content = content.clone();
    let reading = move || Outline::read(pack, content.len() as u64, &content[..]);
    tokio::task::spawn_blocking(reading).await.ok()?.ok()?
}

/// What became of a hint.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    Here,
    Copied(u64),
    /// The main bucket has no such pack.
    NotAsSaid,
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
