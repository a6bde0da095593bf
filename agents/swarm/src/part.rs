//! Packs that come in blocks: what of one is there is verified and passed on, and outlives the transfer, the fetch and the agent.
//!
//! ```text
//! <pack>-XXXXXX.part:  blocks, each in its place │ outline │ size of the pack, 8 bytes
//! ```
//!
//! The outline proves itself by the pack's name and the blocks by the outline, so a later start takes no more on trust than a peer's word. A file
//! whose pack is complete is cut to that and renamed.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use longshore_artifact::{
    PACK_BYTES_MAX,
    outline::{BLOCK_BYTES, Outline},
};
use longshore_schemas::PackId;
use tokio::sync::{Notify, watch};

use crate::PackStore;

const SUFFIX: &str = ".part";
const SIZE_BYTES: usize = 8;

/// What of a pack is there, and its file.
struct Part {
    outline: Arc<Outline>,
    path: PathBuf,
    file: Arc<File>,
    /// How many blocks are there, from the first on. It goes when nothing more will come.
    progress: watch::Sender<usize>,
}

impl Part {
    fn create(folder: &Path, outline: Outline) -> io::Result<Self> {
        let prefix = format!("{}-", outline.pack());
        let made = tempfile::Builder::new().prefix(&prefix).suffix(SUFFIX).tempfile_in(folder)?;
        let mut trailer = outline.to_bytes();
        trailer.extend(outline.bytes().to_be_bytes());
        made.as_file().write_all_at(&trailer, outline.bytes())?;
        let (file, path) = made.keep().map_err(|error| error.error)?;
        Ok(Self { outline: Arc::new(outline), path, file: Arc::new(file), progress: watch::Sender::new(0) })
    }

    /// What an earlier run left, as far as it is right. None: nothing is. Blocks.
    fn open(path: &Path) -> Option<Self> {
        let pack: PackId = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?.rsplit_once('-')?.0.parse().ok()?;
        let file = File::options().read(true).write(true).open(path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut size = [0; SIZE_BYTES];
        file.read_exact_at(&mut size, length.checked_sub(SIZE_BYTES as u64)?).ok()?;
        let bytes = Some(u64::from_be_bytes(size)).filter(|bytes| *bytes <= PACK_BYTES_MAX as u64)?;
        let mut values = vec![0; 32 * Outline::len_of(bytes)];
        if length != bytes + values.len() as u64 + SIZE_BYTES as u64 {
            return None;
        }
        file.read_exact_at(&mut values, bytes).ok()?;
        let outline = Outline::from_bytes(pack, bytes, &values)?;
        let mut block = Vec::new();
        let is_there = |index: &usize| {
            block.resize(outline.length(*index), 0);
            file.read_exact_at(&mut block, (index * BLOCK_BYTES) as u64).is_ok() && outline.fits(*index, &block)
        };
        let there = (0..outline.blocks()).take_while(is_there).count();
        let progress = watch::Sender::new(there);
        (there > 0).then(|| Self { outline: Arc::new(outline), path: path.to_owned(), file: Arc::new(file), progress })
    }

    fn there(&self) -> usize {
        *self.progress.borrow()
    }

    fn partial(&self) -> Partial {
        Partial { outline: self.outline.clone(), path: self.path.clone(), progress: self.progress.subscribe() }
    }

    fn complete(&self, place: &Path) -> io::Result<()> {
        self.file.set_len(self.outline.bytes())?;
        fs::rename(&self.path, place)
    }
}

/// A pack that is on its way, as whoever passes it on sees it.
#[derive(Clone)]
pub(crate) struct Partial {
    pub(crate) outline: Arc<Outline>,
    pub(crate) path: PathBuf,
    pub(crate) progress: watch::Receiver<usize>,
}

/// All that is not complete, of one store.
#[derive(Default)]
pub(crate) struct Parts {
    passed_on: BTreeMap<PackId, Partial>,
    /// What no transfer has in its hands. While the pack is expected it is passed on, and whoever waits for more of it does.
    left: BTreeMap<PackId, Part>,
    /// What somebody here fetches: how many do, and what wakes those who wait for it.
    expected: BTreeMap<PackId, (usize, Arc<Notify>)>,
}

impl Parts {
    /// Takes in what an earlier run left; false if it is of no use. Blocks.
    pub(crate) fn take_in(&mut self, path: &Path) -> bool {
        let Some(part) = Part::open(path) else { return false };
        self.put_aside(part);
        true
    }

    pub(crate) fn passed_on(&self, pack: &PackId) -> Option<&Partial> {
        self.passed_on.get(pack)
    }

    pub(crate) fn news(&self, pack: &PackId) -> Option<Arc<Notify>> {
        self.expected.get(pack).map(|(_, news)| news.clone())
    }

    /// The pack is in the store, by this or otherwise.
    pub(crate) fn completed(&mut self, pack: &PackId) {
        self.tell_of(pack);
        if let Some(part) = self.left.remove(pack) {
            self.discard(&part);
        }
    }

    /// Removes what is not to be kept; answers how many bytes that freed.
    pub(crate) fn retain(&mut self, keep: impl Fn(&PackId) -> bool) -> u64 {
        let gone: Vec<Part> = self.left.extract_if(.., |pack, _| !keep(pack)).map(|(_, part)| part).collect();
        let freed = gone.iter().map(|part| (part.there() * BLOCK_BYTES) as u64).sum();
        for part in gone {
            self.discard(&part);
        }
        freed
    }

    fn tell_of(&self, pack: &PackId) {
        if let Some((_, news)) = self.expected.get(pack) {
            news.notify_waiters();
        }
    }

    /// Two fetches may be at it; who was first passes it on.
    fn pass_on(&mut self, part: &Part) {
        let pack = part.outline.pack();
        self.passed_on.entry(pack).or_insert_with(|| part.partial());
        self.tell_of(&pack);
    }

    /// It may be another's that is passed on.
    fn hold_back(&mut self, part: &Part) {
        let pack = part.outline.pack();
        if self.passed_on.get(&pack).is_some_and(|known| known.progress.same_channel(&part.progress.subscribe())) {
            self.passed_on.remove(&pack);
        }
    }

    fn discard(&mut self, part: &Part) {
        self.hold_back(part);
        // The next start removes what cannot be removed now, or goes on with it.
        let _ = fs::remove_file(&part.path);
    }

    /// A transfer ended.
    fn leave(&mut self, part: Part) {
        let pack = part.outline.pack();
        match self.expected.contains_key(&pack) && !self.left.contains_key(&pack) {
            true => drop(self.left.insert(pack, part)),
            false => self.put_aside(part),
        }
    }

    /// For whoever fetches the pack later: nobody waits for more of it.
    fn put_aside(&mut self, mut part: Part) {
        let pack = part.outline.pack();
        let before = self.left.get(&pack).map_or(0, Part::there);
        if part.there() <= before {
            return self.discard(&part);
        }
        self.hold_back(&part);
        part.progress = watch::Sender::new(part.there());
        if let Some(other) = self.left.insert(pack, part) {
            self.discard(&other);
        }
    }
}

/// As long as this is held, others may wait here for these packs.
pub(crate) struct Expectation {
    store: PackStore,
    packs: Vec<PackId>,
}

impl Expectation {
    pub(crate) fn new(store: PackStore, packs: Vec<PackId>) -> Self {
        let mut parts = store.parts();
        for pack in &packs {
            parts.expected.entry(*pack).or_default().0 += 1;
        }
        drop(parts);
        Self { store, packs }
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut parts = self.store.parts();
        for pack in &self.packs {
            let Some((fetches, news)) = parts.expected.get_mut(pack) else { continue };
            *fetches -= 1;
            if *fetches > 0 {
                continue;
            }
            news.notify_waiters();
            parts.expected.remove(pack);
            if let Some(part) = parts.left.remove(pack) {
                parts.put_aside(part);
            }
        }
    }
}

/// A pack in the hands of a transfer. What it holds is verified; it is in the store when it is complete, and what there is of it stays there.
pub(crate) struct Blocks {
    store: PackStore,
    /// None once it is complete.
    part: Option<Part>,
    outline: Arc<Outline>,
}

impl Blocks {
    /// A place for a pack that comes, and is passed on as it does.
    pub(crate) fn create(store: &PackStore, outline: Outline) -> io::Result<Self> {
        let part = Part::create(store.folder(), outline)?;
        store.parts().pass_on(&part);
        Ok(Self { store: store.clone(), outline: part.outline.clone(), part: Some(part) })
    }

    /// What is there of a pack that no other transfer has.
    pub(crate) fn left(store: &PackStore, pack: &PackId) -> Option<Self> {
        let mut parts = store.parts();
        let part = parts.left.remove(pack)?;
        parts.pass_on(&part);
        Some(Self { store: store.clone(), outline: part.outline.clone(), part: Some(part) })
    }

    pub(crate) fn outline(&self) -> &Outline {
        &self.outline
    }

    /// The block that is lacked next; all are there if it is none of the pack's.
    pub(crate) fn next(&self) -> usize {
        self.part.as_ref().map_or(0, Part::there)
    }

    /// Takes the next block, and gives its memory back; None if these are not its bytes.
    pub(crate) async fn take(&mut self, block: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        let part = self.part.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let (next, outline, file) = (part.there(), self.outline.clone(), part.file.clone());
        // A transfer that ends meanwhile leaves the right bytes in their place, and does not count them.
        let taking = move || -> io::Result<_> {
            if !outline.fits(next, &block) {
                return Ok(None);
            }
            file.write_all_at(&block, (next * BLOCK_BYTES) as u64)?;
            Ok(Some(block))
        };
        let taken = tokio::task::spawn_blocking(taking).await.map_err(io::Error::other)??;
        if let Some(part) = self.part.as_ref().filter(|_| taken.is_some()) {
            part.progress.send_replace(next + 1);
        }
        Ok(taken)
    }

    /// Puts the pack into the store, with all its blocks.
    pub(crate) fn complete(mut self) -> io::Result<u64> {
        let part = self.part.take().ok_or(io::ErrorKind::NotFound)?;
        let (pack, bytes) = (part.outline.pack(), part.outline.bytes());
        let admitted = self.store.admit(pack, bytes, |place| part.complete(place));
        match admitted {
            Ok(()) => self.store.parts().hold_back(&part),
            Err(_) => self.store.parts().discard(&part),
        }
        self.store.keep_outline(self.outline.clone(), pack);
        admitted.map(|()| bytes)
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if let Some(part) = self.part.take() {
            self.store.parts().leave(part);
        }
    }
}
