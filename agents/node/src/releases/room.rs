//! Room on this node's disk: promised to a release before anything of it is fetched, so that nothing is begun that cannot be ended.
//!
//! ```text
//!  claim ─▶ judged ─▶ fits ──────────────────────────────────────────────▶ promised, until the release is there
//!              ▲ └──▶ short ─▶ what no service keeps goes, once ─┐            nothing helps: trouble, which is tried again
//!              │           └─▶ packs that only serve peers go ───┤
//!              └─────────────────────────────────────────────────┘
//! ```
//!
//! What is judged, and which packs go, is [`longshore_node_policy::room`]'s; what runs, or is gone back to, never goes. One claim is looked at after
//! the other. Whoever waits for that holds no gate, and whoever removes waits for no gate.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use longshore_artifact::{ArtifactRoot, PackRef, load_installed, written_bytes};
use longshore_node_policy::room::{Claim, Disk, Verdict};
use longshore_schemas::{ArtifactId, PackId};
use rustix::fs::statvfs;

use super::{Releases, blocking, installed_artifacts, known_roots};
use crate::{Error, Folders};

#[derive(Default)]
pub(super) struct Room {
    budget_bytes: Option<u64>,
    /// Of whoever looks, removes and claims.
    turn: tokio::sync::Mutex<()>,
    promised: Mutex<BTreeMap<u64, Claim>>,
    /// Of each installed release that was looked at: what was written of it.
    written: Mutex<BTreeMap<ArtifactId, u64>>,
}

/// Room that nobody else gets as long as this is held.
pub(super) struct Promise {
    room: Arc<Room>,
    number: u64,
}

impl Room {
    pub(super) fn new(budget_bytes: Option<u64>) -> Self {
        Self { budget_bytes, ..Self::default() }
    }

    fn promise(self: &Arc<Self>, claim: Claim) -> Promise {
        let mut promised = self.promised();
        let number = promised.last_key_value().map_or(0, |(last, _)| last + 1);
        promised.insert(number, claim);
        Promise { room: self.clone(), number }
    }

    fn promised(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Claim>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is. Packs that this artifact does not list may go first, and of those what came first. Blocks.
    fn measure(&self, folders: &Folders, packs: &Path, listed: &BTreeSet<PackId>) -> Result<Disk, Error> {
        let system = statvfs(&folders.data).map_err(|error| Error::io(&folders.data)(error.into()))?;
        Ok(Disk {
            budget_bytes: self.budget_bytes,
            size_bytes: system.f_blocks.saturating_mul(system.f_frsize),
            free_bytes: system.f_bavail.saturating_mul(system.f_frsize),
            releases_bytes: self.releases_bytes(folders)?,
            packs: stored(packs, listed).map_err(Error::io(packs))?,
        })
    }

    fn releases_bytes(&self, folders: &Folders) -> Result<u64, Error> {
        let (releases, installed) = (folders.releases(), installed_artifacts(folders)?);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|artifact, _| installed.contains(artifact));
        for artifact in installed {
            if written.contains_key(&artifact) {
                continue;
            }
            // One whose manifest cannot be read is none, and is replaced when it is wanted.
            if let Ok(release) = load_installed(&releases, &artifact) {
                written.insert(artifact, written_bytes(&release.manifest));
            }
        }
        Ok(written.values().sum())
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.room.promised().remove(&self.number);
    }
}

/// A claim on room for these packs, and for so much beside them.
pub(super) fn claim(packs: &[PackRef], assembled_bytes: u64) -> Claim {
    Claim { packs: packs.iter().map(|pack| (pack.pack, pack.bytes)).collect(), assembled_bytes }
}

/// Complete packs; what is on its way is somebody's claim.
fn stored(folder: &Path, listed: &BTreeSet<PackId>) -> std::io::Result<Vec<(PackId, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Some(pack) = entry.file_name().to_str().and_then(|name| name.parse::<PackId>().ok()) else { continue };
        // It may have gone since.
        let Ok(metadata) = entry.metadata() else { continue };
        found.push((listed.contains(&pack), metadata.modified().ok(), pack, metadata.len()));
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, _, pack, bytes)| (pack, bytes)).collect())
}

impl Releases {
    /// Promises room to what an artifact takes, and makes it if need be.
    pub(super) async fn make_room(
        &self,
        root: &ArtifactRoot,
        what: &'static str,
        claim: Claim,
    ) -> Result<Promise, Error> {
        let _turn = self.room.turn.lock().await;
        let listed: Arc<BTreeSet<PackId>> = Arc::new(root.all_packs().iter().map(|pack| pack.pack).collect());
        let mut verdict = self.judge(&listed, &claim).await?;
        if verdict != Verdict::Fits {
            match self.clean().await {
                Ok(_) => verdict = self.judge(&listed, &claim).await?,
                Err(error) => tracing::warn!(%error, "what no service keeps cannot be removed, for room"),
            }
        }
        loop {
            match verdict {
                Verdict::Fits => return Ok(self.room.promise(claim)),
                Verdict::Short(shortage) if shortage.spare.is_empty() => return Err(Error::NoRoom { what, shortage }),
                Verdict::Short(shortage) => self.give_up(shortage.spare).await?,
            }
            verdict = self.judge(&listed, &claim).await?;
        }
    }

    async fn judge(&self, listed: &Arc<BTreeSet<PackId>>, claim: &Claim) -> Result<Verdict, Error> {
        let (room, folders, listed) = (self.room.clone(), self.folders.clone(), listed.clone());
        let packs = self.fetcher.store().folder().to_owned();
        let disk = blocking(move || room.measure(&folders, &packs, &listed)).await?;
        Ok(disk.judge(claim, self.room.promised().values()))
    }

    /// Removes packs that only serve peers. The region hears of it before: nobody is sent here for them.
    async fn give_up(&self, spare: BTreeSet<PackId>) -> Result<(), Error> {
        tracing::info!(packs = spare.len(), "removing packs that only serve peers, for room");
        let folders = self.folders.clone();
        for root in blocking(move || Ok(known_roots(&folders))).await? {
            let packs: Vec<PackId> = root.all_packs().iter().map(|pack| pack.pack).collect();
            if packs.iter().any(|pack| spare.contains(pack)) {
                let left = self.fetcher.store().held(packs.iter().filter(|pack| !spare.contains(*pack)));
                self.exchange.have_only(root.artifact, &left).await;
            }
        }
        let store = self.fetcher.store().clone();
        let removing = move || spare.iter().try_for_each(|pack| store.forget(pack)).map_err(Error::io(store.folder()));
        blocking(removing).await
    }
}
