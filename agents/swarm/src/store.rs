//! Verified packs in a folder: complete ones, one file each, named by their id; and those that are on their way, of which each block that
//! came is verified and may be passed on.
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
    os::unix::fs::FileExt,
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
use tokio::{
    io::AsyncWriteExt,
    sync::{Notify, watch},
};

use crate::Error;

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
    partial: RwLock<BTreeMap<PackId, Partial>>,
    /// Outlines that were computed last, so that many who ask for a pack cost one reading of it. Each is its pack's for ever.
    outlines: Mutex<VecDeque<(PackId, Arc<Outline>)>>,
    /// What somebody here fetches: how many do, and what wakes those who wait for it.
    expected: Mutex<BTreeMap<PackId, (usize, Arc<Notify>)>>,
}

/// As long as this is held, others may wait here for these packs.
pub(crate) struct Expectation {
    store: PackStore,
    packs: Vec<PackId>,
}

/// A pack that is on its way, as whoever passes it on sees it.
#[derive(Clone)]
pub(crate) struct Partial {
    pub(crate) outline: Arc<Outline>,
    path: PathBuf,
    /// How many blocks are there, from the first on. Its sender goes when nothing more will come.
    pub(crate) progress: watch::Receiver<usize>,
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
        let mut packs = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let named = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<PackId>().ok());
            match named.filter(|pack| holds(&path, pack)) {
                Some(pack) => {
                    packs.insert(pack, fs::metadata(&path).map_err(failed)?.len());
                }
                None => {
                    tracing::info!(path = %path.display(), "removing what is no pack");
                    fs::remove_file(&path).map_err(failed)?;
                }
            }
        }
        Ok(Self(Arc::new(Inner {
            folder: folder.to_owned(),
            packs: RwLock::new(packs),
            partial: RwLock::default(),
            outlines: Mutex::default(),
            expected: Mutex::default(),
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
        complete.or_else(|| self.partials().get(pack).map(|partial| partial.outline.bytes()))
    }

    pub(crate) fn expect(&self, packs: Vec<PackId>) -> Expectation {
        let mut expected = self.expected();
        for pack in &packs {
            expected.entry(*pack).or_default().0 += 1;
        }
        drop(expected);
        Expectation { store: self.clone(), packs }
    }

    /// Waits until something of a pack is there, if it is expected here. `false` if nothing will be.
    pub(crate) async fn comes(&self, pack: &PackId) -> bool {
        loop {
            let Some(news) = self.news(pack) else { return self.size(pack).is_some() };
            let mut happens = pin!(news.notified());
            happens.as_mut().enable();
            if self.size(pack).is_some() {
                return true;
            }
            happens.await;
        }
    }

    fn news(&self, pack: &PackId) -> Option<Arc<Notify>> {
        self.expected().get(pack).map(|(_, news)| news.clone())
    }

    fn tell_of(&self, pack: &PackId) {
        if let Some(news) = self.news(pack) {
            news.notify_waiters();
        }
    }

    fn expected(&self) -> std::sync::MutexGuard<'_, BTreeMap<PackId, (usize, Arc<Notify>)>> {
        self.0.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is of a pack, complete or on its way. One that is not what its name says any more is forgotten. Blocks.
    pub(crate) fn find(&self, pack: &PackId) -> io::Result<Option<Found>> {
        let Some((path, bytes)) = self.path(pack) else {
            let partial = self.partials().get(pack).cloned();
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

    fn keep_outline(&self, outline: Arc<Outline>, pack: PackId) {
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
        freed
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
    fn admit(&self, pack: PackId, bytes: u64, temporary: NamedTempFile) -> io::Result<()> {
        let mut packs = self.0.packs.write().unwrap_or_else(PoisonError::into_inner);
        temporary.persist(self.0.folder.join(pack.to_string())).map_err(|error| error.error)?;
        packs.insert(pack, bytes);
        drop(packs);
        self.tell_of(&pack);
        Ok(())
    }

    /// A place for a pack that is on its way.
    pub fn incoming(&self, pack: PackId) -> io::Result<Incoming> {
        let temporary = NamedTempFile::with_prefix_in("incoming-", &self.0.folder)?;
        let file = tokio::fs::File::from_std(temporary.reopen()?);
        Ok(Incoming { store: self.clone(), pack, temporary, file, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    /// A place for a pack that comes in blocks, which are passed on as they come.
    pub(crate) fn blocks(&self, outline: Outline) -> io::Result<Blocks> {
        let temporary = NamedTempFile::with_prefix_in("incoming-", &self.0.folder)?;
        let file = Arc::new(temporary.reopen()?);
        let (outline, progress) = (Arc::new(outline), watch::Sender::new(0));
        let partial =
            Partial { outline: outline.clone(), path: temporary.path().to_owned(), progress: progress.subscribe() };
        let pack = outline.pack();
        // Two fetches may be at it; who was first passes it on.
        self.partials().entry(pack).or_insert(partial);
        self.tell_of(&pack);
        Ok(Blocks { store: self.clone(), outline, temporary: Some(temporary), file, progress })
    }

    fn partials(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<PackId, Partial>> {
        self.0.partial.write().unwrap_or_else(PoisonError::into_inner)
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
        self.store.admit(self.pack, self.bytes, self.temporary)?;
        Ok(true)
    }
}

/// A pack that comes in blocks. What it holds is verified; it is in the store when it is complete.
pub(crate) struct Blocks {
    store: PackStore,
    outline: Arc<Outline>,
    /// Removed with this, unless it was completed.
    temporary: Option<NamedTempFile>,
    file: Arc<File>,
    progress: watch::Sender<usize>,
}

impl Blocks {
    pub(crate) fn outline(&self) -> &Outline {
        &self.outline
    }

    /// The block that is lacked next; all are there if it is none of the pack's.
    pub(crate) fn next(&self) -> usize {
        *self.progress.borrow()
    }

    /// Takes the next block, and gives its memory back; None if these are not its bytes.
    pub(crate) async fn take(&mut self, block: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        let (next, outline, file) = (self.next(), self.outline.clone(), self.file.clone());
        let taking = move || -> io::Result<_> {
            if !outline.fits(next, &block) {
                return Ok(None);
            }
            file.write_all_at(&block, (next * BLOCK_BYTES) as u64)?;
            Ok(Some(block))
        };
        let taken = tokio::task::spawn_blocking(taking).await.map_err(io::Error::other)??;
        if taken.is_some() {
            self.progress.send_replace(next + 1);
        }
        Ok(taken)
    }

    /// Puts the pack into the store, with all its blocks.
    pub(crate) fn complete(mut self) -> io::Result<u64> {
        let bytes = self.outline.bytes();
        let temporary = self.temporary.take().ok_or(io::ErrorKind::NotFound)?;
        self.store.admit(self.outline.pack(), bytes, temporary)?;
        self.store.keep_outline(self.outline.clone(), self.outline.pack());
        Ok(bytes)
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        let mut partials = self.store.partials();
        // It may be another's.
        let pack = self.outline.pack();
        if partials.get(&pack).is_some_and(|partial| partial.progress.same_channel(&self.progress.subscribe())) {
            partials.remove(&pack);
        }
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut expected = self.store.expected();
        for pack in &self.packs {
            let Some((fetches, news)) = expected.get_mut(pack) else { continue };
            *fetches -= 1;
            if *fetches == 0 {
                news.notify_waiters();
                expected.remove(pack);
            }
        }
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
