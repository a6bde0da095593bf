//! Verified packs in a folder: complete ones, one file each, named by their id; and those that are on their way ([`part`](crate::part)), of which
//! each block that came is verified and may be passed on.
//!
//! ```text
//! bucket, no outline ─▶ [Incoming] hashed as a whole ─┐
//! bucket or peer ─────▶ [Blocks] verified one by one ─┴▶ complete ─▶ whoever asks
//!                          └─────── as they come ──────────────────▶ whoever asks, and whoever waits
//! ```
//!
//! Who asks for a pack that is expected here may wait for it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File},
    io,
    io::Read,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use longshore_artifact::{
    PACK_BYTES_MAX,
    outline::{BLOCK_BYTES, Outline},
};
use longshore_schemas::PackId;
use tempfile::NamedTempFile;
use tokio::{io::AsyncWriteExt, sync::watch};

use crate::{
    Error,
    part::{Partial, Parts},
};

/// Of 4 KiB each at most: those of a release that many fetch.
const OUTLINES_MAX: usize = 1_024;

/// Cheap to clone.
#[derive(Clone)]
pub struct PackStore(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    /// What is complete, with its size.
    packs: RwLock<BTreeMap<PackId, u64>>,
    /// What is on its way in blocks.
    parts: Mutex<Parts>,
    /// Outlines that were computed last, so that many who ask for a pack cost one reading of it. Each is its pack's for ever.
    outlines: Mutex<VecDeque<(PackId, Arc<Outline>)>>,
}

/// What can be sent of a pack.
pub(crate) struct Found {
    pub(crate) outline: Arc<Outline>,
    pub(crate) file: File,
    /// None: all of it is there.
    pub(crate) progress: Option<watch::Receiver<usize>>,
}

impl PackStore {
    /// Opens a folder and verifies what an earlier run left there; what is not what its name says is removed. Blocks.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Store { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let (mut packs, mut parts) = (BTreeMap::new(), Parts::default());
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let named = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<PackId>().ok());
            match named.filter(|pack| holds(&path, pack)) {
                Some(pack) => {
                    packs.insert(pack, fs::metadata(&path).map_err(failed)?.len());
                }
                None if parts.take_in(&path) => {}
                None => {
                    tracing::info!(path = %path.display(), "removing what is no pack");
                    fs::remove_file(&path).map_err(failed)?;
                }
            }
        }
        // Their packs came otherwise.
        parts.retain(|pack| !packs.contains_key(pack));
        Ok(Self(Arc::new(Inner {
            folder: folder.to_owned(),
            packs: RwLock::new(packs),
            parts: Mutex::new(parts),
            outlines: Mutex::default(),
        })))
    }

    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    pub fn contains(&self, pack: &PackId) -> bool {
        self.read().contains_key(pack)
    }

    /// Of these packs, those that are here.
    pub fn held<'a>(&self, packs: impl IntoIterator<Item = &'a PackId>) -> Vec<PackId> {
        let held = self.read();
        packs.into_iter().filter(|pack| held.contains_key(pack)).copied().collect()
    }

    /// A pack's file and size, if it is here.
    pub fn path(&self, pack: &PackId) -> Option<(PathBuf, u64)> {
        let bytes = *self.read().get(pack)?;
        Some((self.0.folder.join(pack.to_string()), bytes))
    }

    /// Its size, if there is anything of it.
    pub(crate) fn size(&self, pack: &PackId) -> Option<u64> {
        let complete = self.read().get(pack).copied();
        complete.or_else(|| self.parts().passed_on(pack).map(|partial| partial.outline.bytes()))
    }

    /// Waits until something of a pack is there, if it is expected here. `false` if nothing will be.
    pub(crate) async fn comes(&self, pack: &PackId) -> bool {
        loop {
            let Some(news) = self.parts().news(pack) else { return self.size(pack).is_some() };
            let mut happens = pin!(news.notified());
            happens.as_mut().enable();
            if self.size(pack).is_some() {
                return true;
            }
            happens.await;
        }
    }

    /// What there is of a pack, complete or on its way. One that is not what its name says any more is forgotten. Blocks.
    pub(crate) fn find(&self, pack: &PackId) -> io::Result<Option<Found>> {
        let Some((path, bytes)) = self.path(pack) else {
            let partial = self.parts().passed_on(pack).cloned();
            let opened = partial.and_then(|Partial { outline, path, progress }| {
                Some(Found { outline, file: File::open(path).ok()?, progress: Some(progress) })
            });
            return Ok(opened);
        };
        // It may have been removed since.
        let Ok(mut file) = File::open(path) else { return Ok(None) };
        if let Some(outline) = self.kept_outline(pack) {
            return Ok(Some(Found { outline, file, progress: None }));
        }
        match Outline::read(*pack, bytes, &mut file) {
            Ok(Some(outline)) => {
                let outline = Arc::new(outline);
                self.keep_outline(outline.clone(), *pack);
                Ok(Some(Found { outline, file, progress: None }))
            }
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            Ok(None) | Err(_) => {
                self.forget_damaged(pack)?;
                Ok(None)
            }
        }
    }

    fn kept_outline(&self, pack: &PackId) -> Option<Arc<Outline>> {
        let kept = self.0.outlines.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(known, _)| known == pack).map(|(_, outline)| outline.clone())
    }

    pub(crate) fn keep_outline(&self, outline: Arc<Outline>, pack: PackId) {
        let mut kept = self.0.outlines.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().any(|(known, _)| *known == pack) {
            return;
        }
        if kept.len() >= OUTLINES_MAX {
            kept.pop_front();
        }
        kept.push_back((pack, outline));
    }

    /// A pack turned out to be damaged on this disk.
    pub(crate) fn forget_damaged(&self, pack: &PackId) -> io::Result<()> {
        tracing::error!(%pack, "a pack is damaged on this disk: it is forgotten, and fetched again when it is needed");
        self.forget(pack)
    }

    /// Removes every pack that is not to be kept; answers how many bytes that freed.
    pub fn retain(&self, keep: &BTreeSet<PackId>) -> u64 {
        let mut packs = self.0.packs.write().unwrap_or_else(PoisonError::into_inner);
        let mut freed = 0;
        packs.retain(|pack, bytes| {
            let kept = keep.contains(pack) || fs::remove_file(self.0.folder.join(pack.to_string())).is_err();
            freed += if kept { 0 } else { *bytes };
            kept
        });
        drop(packs);
        freed + self.parts().retain(|pack| keep.contains(pack))
    }

    /// Drops a pack whose bytes turned out to be damaged since they were verified.
    pub fn forget(&self, pack: &PackId) -> io::Result<()> {
        let mut packs = self.0.packs.write().unwrap_or_else(PoisonError::into_inner);
        packs.remove(pack);
        match fs::remove_file(self.0.folder.join(pack.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Has it as a whole: whoever looks finds its file. Not synced: after a power cut the store is verified again, and a release is synced
    /// when it is assembled.
    pub(crate) fn admit(&self, pack: PackId, bytes: u64, put: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let mut packs = self.0.packs.write().unwrap_or_else(PoisonError::into_inner);
        put(&self.0.folder.join(pack.to_string()))?;
        packs.insert(pack, bytes);
        drop(packs);
        self.parts().completed(&pack);
        Ok(())
    }

    /// A place for a pack that is on its way.
    pub fn incoming(&self, pack: PackId) -> io::Result<Incoming> {
        let temporary = NamedTempFile::with_prefix_in("incoming-", &self.0.folder)?;
        let file = tokio::fs::File::from_std(temporary.reopen()?);
        Ok(Incoming { store: self.clone(), pack, temporary, file, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    pub(crate) fn parts(&self) -> std::sync::MutexGuard<'_, Parts> {
        self.0.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<PackId, u64>> {
        self.0.packs.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn holds(path: &Path, pack: &PackId) -> bool {
    let mut hasher = blake3::Hasher::new();
    let read = fs::File::open(path).and_then(|file| {
        let mut file = file.take(PACK_BYTES_MAX as u64 + 1);
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            match file.read(&mut block)? {
                0 => return Ok(()),
                count => hasher.update(&block[..count]),
            };
        }
    });
    read.is_ok() && hasher.finalize().as_bytes() == pack.as_bytes()
}

/// A pack that is being received: hashed as it comes, and in the store only once it is what its name says.
pub struct Incoming {
    store: PackStore,
    pack: PackId,
    /// Removed with this, unless it was admitted.
    temporary: NamedTempFile,
    file: tokio::fs::File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Incoming {
    pub async fn write(&mut self, block: &[u8]) -> io::Result<()> {
        self.hasher.update(block);
        self.bytes += block.len() as u64;
        self.file.write_all(block).await
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts the pack into the store; false if these are not its bytes.
    pub async fn admit(mut self) -> io::Result<bool> {
        if self.hasher.finalize().as_bytes() != self.pack.as_bytes() {
            return Ok(false);
        }
        self.file.flush().await?;
        let temporary = self.temporary;
        let put = |place: &Path| temporary.persist(place).map(drop).map_err(|error| error.error);
        self.store.admit(self.pack, self.bytes, put)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_verified_packs_are_held_and_a_damaged_one_goes_at_the_next_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = PackStore::open(folder.path()).expect("opens");
        let (good, other) = (PackId::of(b"good"), PackId::of(b"other"));
        let mut incoming = store.incoming(good).expect("space");
        incoming.write(b"go").await.expect("space");
        incoming.write(b"od").await.expect("space");
        assert!(!store.contains(&good), "not before it is whole");
        assert!(incoming.admit().await.expect("space"));
        let mut lie = store.incoming(other).expect("space");
        lie.write(b"lie").await.expect("space");
        assert!(!lie.admit().await.expect("space"));
        assert_eq!(store.held([&good, &other]), [good]);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing else is left");

        assert!(PackStore::open(folder.path()).expect("opens").contains(&good));
        fs::write(folder.path().join(good.to_string()), b"rotten").expect("written");
        assert!(!PackStore::open(folder.path()).expect("opens").contains(&good));
    }

    #[tokio::test]
    async fn what_is_not_kept_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = PackStore::open(folder.path()).expect("opens");
        for bytes in [b"one", b"two"] {
            let mut incoming = store.incoming(PackId::of(bytes)).expect("space");
            incoming.write(bytes).await.expect("space");
            assert!(incoming.admit().await.expect("space"));
        }
        assert_eq!(store.retain(&BTreeSet::from([PackId::of(b"one")])), 3);
        assert!(store.contains(&PackId::of(b"one")) && !store.contains(&PackId::of(b"two")));
    }
}
