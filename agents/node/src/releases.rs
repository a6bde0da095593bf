//! Releases on this node's disk: fetched, verified and assembled once, whichever services run them.
//!
//! ```text
//!  root ─▶ packs of manifest and layout ─▶ Need (what no installed release has) ─▶ room ─▶ packs ─▶ assemble ─▶ releases/<id>
//! ```
//!
//! The root is on disk from the first moment: it says which packs are of use, so that a fetch that was interrupted goes on
//! with what it has, and a new connection to the region can tell what this node serves.

mod kept;
mod mend;
mod room;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Instant,
};

use longshore_artifact::{
    ArtifactRoot, Assembled, DirPacks, Index, Installed, Need, PackRef, assemble, load_installed, remove_installed,
    save_manifest, written_bytes,
};
use longshore_schemas::{ArtifactId, ServiceName};
use longshore_service::{
    durable,
    metrics::{Counters, Histograms},
};
use longshore_swarm::{
    PackStore,
    fetch::{Fetcher, Link, Received},
};
use longshore_swarm_policy::fetch::WantedPack;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, RwLock};

pub use self::kept::Kept;
use self::room::{Promise, Room, claim};
use crate::{Error, Folders, link::Exchange, trust::Trust};

/// Arrivals that are remembered for people.
const TRANSFERS_KEPT: usize = 100;

const ROOT_SUFFIX: &str = ".root.json";
/// Of a hidden folder, in which a release is assembled to mend the one that is there.
const WHOLE_SUFFIX: &str = ".whole";

/// One artifact's arrival.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    pub service: ServiceName,
    pub artifact: ArtifactId,
    /// Packs that had to be fetched, those of manifest and layout too.
    pub needed_bytes: u64,
    pub from_peers_bytes: u64,
    pub from_bucket_bytes: u64,
    /// Of the release's files, what came from releases that were here.
    pub reused_bytes: u64,
    /// Of these, what takes no room of its own.
    #[serde(default)]
    pub shared_bytes: u64,
    pub seconds: f64,
}

pub struct Releases {
    folders: Folders,
    fetcher: Fetcher,
    exchange: Arc<Exchange>,
    trust: Trust,
    /// Two services that want the same artifact fetch it once.
    locks: Mutex<BTreeMap<ArtifactId, Arc<tokio::sync::Mutex<()>>>>,
    /// Held shared while something is assembled or found to be there, so that nothing of it is removed.
    gate: Arc<RwLock<()>>,
    pub kept: Kept,
    room: Arc<Room>,
    transfers: Mutex<Vec<Transfer>>,
}

static BYTES: LazyLock<Counters<1>> = LazyLock::new(|| {
    Counters::new("longshore_node_fetched_bytes", "Packs fetched, by where they came from", ["source"])
});
static SECONDS: LazyLock<Histograms<0>> =
    LazyLock::new(|| Histograms::seconds("longshore_node_install_seconds", "Until a release was in place", []));

impl Releases {
    /// Packs and releases take no more than this budget together, if there is one.
    pub fn open(
        folders: &Folders,
        fetcher: Fetcher,
        exchange: Arc<Exchange>,
        trust: Trust,
        kept: Kept,
        disk_budget: Option<u64>,
    ) -> Result<Self, Error> {
        let folder = folders.releases();
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        remove_leftovers(&folder)?;
        // Only for people: a file that cannot be read begins anew.
        let transfers = durable::read(&folders.transfers())?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(Self {
            folders: folders.clone(),
            fetcher,
            exchange,
            trust,
            locks: Mutex::default(),
            gate: Arc::default(),
            kept,
            room: Arc::new(Room::new(disk_budget)),
            transfers: Mutex::new(transfers.unwrap_or_default()),
        })
    }

    /// The folder of a release, installed if it is not there yet. Takes as long as it takes: drop it to stop.
    /// The caller has noted before that it keeps the artifact.
    pub async fn ensure(&self, service: &ServiceName, artifact: ArtifactId) -> Result<PathBuf, Error> {
        // Shared with the disk tasks, which go on when this is dropped: nobody else may begin before they end.
        let lock = Arc::new(self.lock_of(artifact).lock_owned().await);
        let folder = self.folders.releases().join(artifact.to_string());
        match self.look(artifact).await? {
            Found::Whole => {}
            Found::Nothing => drop(self.stage(service, artifact, &folder, &lock).await?),
            Found::Changed { what } => {
                tracing::warn!(%artifact, what, "an installed release is not what it was");
                self.mend_locked(service, artifact, lock).await?;
            }
        }
        Ok(folder)
    }

    /// What there is of a release. Nothing of it is removed from here on: whoever removes asks first what is kept, and this one is
    /// by now.
    async fn look(&self, artifact: ArtifactId) -> Result<Found, Error> {
        let _gate = self.gate.read().await;
        if !is_installed(&self.folders, artifact).await? {
            return Ok(Found::Nothing);
        }
        // Its key may have been replaced since: then there is a newer word for the same bytes.
        if self.confirm(artifact).is_err() {
            let root = self.exchange.root(artifact).await?;
            self.trust.origin(&root)?;
            save_root(&self.folders, &root)?;
        }
        let differs = self.differs(artifact, None).await?;
        Ok(differs.map_or(Found::Whole, |what| Found::Changed { what }))
    }

    /// Fetches what is lacking of a release and assembles it at `target`.
    async fn stage(
        &self,
        service: &ServiceName,
        artifact: ArtifactId,
        target: &Path,
        lock: &Arc<OwnedMutexGuard<()>>,
    ) -> Result<Arc<Index>, Error> {
        let begun = Instant::now();
        let root = self.exchange.root(artifact).await?;
        self.trust.origin(&root)?;
        save_root(&self.folders, &root)?;
        let mut link = self.exchange.link(artifact);
        let index_packs: Vec<PackRef> = Index::packs(&root).copied().collect();
        let _promise = self.make_room(&root, "the list of the release's files", claim(&index_packs, 0)).await?;
        let mut received = self.fetch(artifact, &index_packs, &mut link).await?;
        let (index, installed) = self.read_index(root.clone()).await?;
        let (need, assembled) = match self.install(&index, &installed, &mut link, &mut received, (target, lock)).await {
            Err(Error::Artifact(longshore_artifact::Error::DamagedInstalled { .. })) => {
                tracing::warn!(%artifact, "an installed release is damaged; everything is fetched");
                self.install(&index, &Arc::new(Vec::new()), &mut link, &mut received, (target, lock)).await?
            }
            other => other?,
        };
        let needed_bytes = need.pack_bytes + index_packs.iter().map(|pack| pack.bytes).sum::<u64>();
        self.remember(Transfer {
            service: service.clone(),
            artifact,
            needed_bytes,
            from_peers_bytes: received.from_peers_bytes,
            from_bucket_bytes: received.from_bucket_bytes,
            reused_bytes: assembled.reused_bytes,
            shared_bytes: assembled.reflinked_bytes + assembled.linked_bytes,
            seconds: begun.elapsed().as_secs_f64(),
        })?;
        Ok(index)
    }

    /// Whether somebody who is trusted still says where an installed release comes from.
    pub fn confirm(&self, artifact: ArtifactId) -> Result<(), Error> {
        let path = root_path(&self.folders, &artifact);
        let json = fs::read(&path).map_err(Error::io(&path))?;
        self.trust.origin(&ArtifactRoot::from_json(&artifact, &json)?)
    }

    fn lock_of(&self, artifact: ArtifactId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(artifact).or_default().clone()
    }

    async fn fetch(&self, artifact: ArtifactId, packs: &[PackRef], link: &mut Link) -> Result<Received, Error> {
        let held = self.fetcher.store().held(packs.iter().map(|pack| &pack.pack));
        if !held.is_empty() {
            self.exchange.have(artifact, held).await;
        }
        let wanted = packs.iter().map(|pack| WantedPack { pack: pack.pack, bytes: pack.bytes }).collect();
        Ok(self.fetcher.fetch(artifact, wanted, link).await?)
    }

    async fn read_index(&self, root: ArtifactRoot) -> Result<(Arc<Index>, Arc<Vec<Installed>>), Error> {
        let (folders, packs) = (self.folders.clone(), self.fetcher.store().folder().to_owned());
        blocking(move || {
            let index = Index::load(&root, &DirPacks::new(packs))?;
            let installed = installed_artifacts(&folders)?;
            let releases = folders.releases();
            let readable = installed.iter().filter_map(|artifact| {
                let loaded = load_installed(&releases, artifact);
                loaded.inspect_err(|error| tracing::warn!(%artifact, %error, "an installed release is not used")).ok()
            });
            Ok((Arc::new(index), Arc::new(readable.collect())))
        })
        .await
    }

    /// What is needed besides these releases, and room for it. Those that were removed to make it are not counted on.
    async fn need(
        &self,
        index: &Index,
        installed: &Arc<Vec<Installed>>,
    ) -> Result<(Need, Arc<Vec<Installed>>, Promise), Error> {
        let mut installed = installed.clone();
        loop {
            let need = Need::compute(index, &installed);
            let claimed = claim(&need.packs, written_bytes(&index.manifest));
            let promise = self.make_room(&index.root, "the release", claimed).await?;
            let there: Vec<Installed> = installed.iter().filter(|release| release.dir.is_dir()).cloned().collect();
            if there.len() == installed.len() {
                return Ok((need, installed, promise));
            }
            installed = Arc::new(there);
        }
    }

    async fn install(
        &self,
        index: &Arc<Index>,
        installed: &Arc<Vec<Installed>>,
        link: &mut Link,
        received: &mut Received,
        (target, lock): (&Path, &Arc<OwnedMutexGuard<()>>),
    ) -> Result<(Need, Assembled), Error> {
        let (need, installed, promise) = self.need(index, installed).await?;
        *received += self.fetch(index.root.artifact, &need.packs, link).await?;
        tracing::info!(artifact = %index.root.artifact, "all packs are here");
        let (index, folders) = (index.clone(), self.folders.clone());
        let (store, lock, gate) = (self.fetcher.store().clone(), lock.clone(), self.gate.clone().read_owned().await);
        let folder = target.to_owned();
        blocking(move || {
            let _held = (lock, gate, promise);
            // Left by an agent that died between these steps.
            remove_tree(&folder)?;
            save_manifest(&folders.releases(), &index.manifest)?;
            let assembled = assemble(&index, &need, &installed, &DirPacks::new(store.folder()), &folder);
            Ok((need, assembled.inspect_err(|error| forget_damaged(&store, error))?))
        })
        .await
    }

    fn remember(&self, transfer: Transfer) -> Result<(), Error> {
        BYTES.count(["peers"], transfer.from_peers_bytes);
        BYTES.count(["bucket"], transfer.from_bucket_bytes);
        SECONDS.observe([], transfer.seconds);
        tracing::info!(artifact = %transfer.artifact, needed_bytes = transfer.needed_bytes,
            from_peers_bytes = transfer.from_peers_bytes, from_bucket_bytes = transfer.from_bucket_bytes,
            reused_bytes = transfer.reused_bytes, shared_bytes = transfer.shared_bytes, seconds = transfer.seconds,
            "release installed");
        let mut transfers = self.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        transfers.push(transfer);
        let surplus = transfers.len().saturating_sub(TRANSFERS_KEPT);
        transfers.drain(..surplus);
        let json = serde_json::to_vec_pretty(&*transfers).map_err(|error| Error::Refused(error.to_string()))?;
        Ok(durable::write(&self.folders.transfers(), &json, 0o644)?)
    }

    /// Removes releases that no service keeps, and packs of none that is kept. Answers which are kept; None if it is not known of all
    /// services what they keep, or if it must wait for an assembly.
    pub async fn clean(&self) -> Result<Option<BTreeSet<ArtifactId>>, Error> {
        let Ok(gate) = self.gate.clone().try_write_owned() else { return Ok(None) };
        // Asked once nobody can begin to use one.
        let Some(kept) = self.kept.by_all() else { return Ok(None) };
        let (folders, store, keep) = (self.folders.clone(), self.fetcher.store().clone(), kept.clone());
        let gone = blocking(move || {
            let _gate = gate;
            for artifact in installed_artifacts(&folders)?.difference(&keep) {
                tracing::info!(%artifact, "removing a release");
                remove_installed(&folders.releases(), artifact)?;
            }
            let (kept, gone): (Vec<_>, Vec<_>) =
                known_roots(&folders).into_iter().partition(|root| keep.contains(&root.artifact));
            store.retain(&kept.iter().flat_map(ArtifactRoot::all_packs).map(|pack| pack.pack).collect());
            gone.iter().try_for_each(|root| remove_tree(&root_path(&folders, &root.artifact)))?;
            Ok(gone)
        })
        .await?;
        for root in gone {
            // Of what it shares with others.
            let held = self.fetcher.store().held(root.all_packs().iter().map(|pack| &pack.pack));
            self.exchange.have_only(root.artifact, &held).await;
        }
        Ok(Some(kept))
    }
}

/// What there is of a release.
enum Found {
    Nothing,
    Whole,
    /// It is not as its manifest says.
    Changed {
        what: String,
    },
}

/// A pack that was whole when it came and is not any more is fetched again by the next try.
fn forget_damaged(store: &PackStore, error: &longshore_artifact::Error) {
    use longshore_artifact::Error::{Read, WrongChunk};
    if let Read { pack, .. } | WrongChunk { pack, .. } = error {
        tracing::warn!(%pack, %error, "a stored pack is damaged");
        if let Err(error) = store.forget(pack) {
            tracing::warn!(%pack, %error, "a damaged pack cannot be removed");
        }
    }
}

async fn is_installed(folders: &Folders, artifact: ArtifactId) -> Result<bool, Error> {
    let releases = folders.releases();
    blocking(move || {
        let folder = releases.join(artifact.to_string());
        Ok(folder.is_dir() && load_installed(&releases, &artifact).is_ok())
    })
    .await
}

/// Releases whose folder is there.
fn installed_artifacts(folders: &Folders) -> Result<BTreeSet<ArtifactId>, Error> {
    let folder = folders.releases();
    let entries = fs::read_dir(&folder).map_err(Error::io(&folder))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

fn root_path(folders: &Folders, artifact: &ArtifactId) -> PathBuf {
    folders.releases().join(format!("{artifact}{ROOT_SUFFIX}"))
}

fn save_root(folders: &Folders, root: &ArtifactRoot) -> Result<(), Error> {
    Ok(durable::write(&root_path(folders, &root.artifact), &root.to_json(), 0o644)?)
}

/// The roots of releases that are installed or on their way: what this node may serve packs of.
pub fn known_roots(folders: &Folders) -> Vec<ArtifactRoot> {
    let entries = fs::read_dir(folders.releases()).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let artifact = entry.file_name().to_str()?.strip_suffix(ROOT_SUFFIX)?.parse().ok()?;
        ArtifactRoot::from_json(&artifact, &fs::read(entry.path()).ok()?).ok()
    };
    entries.filter_map(read).collect()
}

/// Removes what an agent that was killed was assembling. What cannot be removed is in nobody's way but the disk's.
fn remove_leftovers(folder: &Path) -> Result<(), Error> {
    let is_leftover =
        |name: &str| name.starts_with('.') && (name.ends_with(".partial") || name.ends_with(WHOLE_SUFFIX));
    for entry in fs::read_dir(folder).map_err(Error::io(folder))?.flatten() {
        if entry.file_name().to_str().is_some_and(is_leftover)
            && let Err(error) = remove_tree(&entry.path())
        {
            tracing::warn!(%error, "a release that was begun cannot be removed");
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Refused(format!("a disk task died: {error}"))),
    }
}
