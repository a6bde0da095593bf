//! Whether an installed release still is what was installed, and how it becomes that again.
//!
//! A release may be running, and a service may have written beside its program. So only the entries that differ are replaced, each by one
//! rename, with bytes that were assembled beside it from chunks that are intact and packs. A file is never written to: another release
//! may share it, which is then as damaged as before, and mended when it is looked at itself.

use std::{
    fs::{self, File},
    ops::ControlFlow,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use longshore_artifact::{Entry, load_installed, verify_entry, verify_paced};
use longshore_schemas::{ArtifactId, ServiceName};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::{Releases, WHOLE_SUFFIX, blocking, remove_tree};
use crate::Error;

impl Releases {
    /// What of a release is not as its manifest says, if something is; the first of it. It is read at this rate, of bytes a second, so
    /// that the disk is there for others. Drop it to end it.
    pub async fn differs(&self, artifact: ArtifactId, rate: Option<u64>) -> Result<Option<String>, Error> {
        let (releases, ended) = (self.folders.releases(), CancellationToken::new());
        let _dropped = ended.clone().drop_guard();
        blocking(move || {
            let (begun, mut read) = (Instant::now(), 0);
            let pace = |bytes: u64| {
                read += bytes;
                if let Some(rate) = rate {
                    let due = Duration::from_secs_f64(read as f64 / rate.max(1) as f64);
                    std::thread::sleep(due.saturating_sub(begun.elapsed()));
                }
                if ended.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let verified = load_installed(&releases, &artifact)
                .and_then(|installed| verify_paced(&installed.dir, &installed.manifest, pace));
            Ok(verified.err().map(|error| error.to_string()))
        })
        .await
    }

    /// Makes an installed release what it was. Takes as long as it takes: drop it to stop.
    pub async fn mend(&self, service: &ServiceName, artifact: ArtifactId) -> Result<(), Error> {
        let lock = Arc::new(self.lock_of(artifact).lock_owned().await);
        self.mend_locked(service, artifact, lock).await
    }

    pub(super) async fn mend_locked(
        &self,
        service: &ServiceName,
        artifact: ArtifactId,
        lock: Arc<OwnedMutexGuard<()>>,
    ) -> Result<(), Error> {
        let releases = self.folders.releases();
        let (folder, whole) =
            (releases.join(artifact.to_string()), releases.join(format!(".{artifact}{WHOLE_SUFFIX}")));
        let index = self.stage(service, artifact, &whole, &lock).await?;
        blocking(move || {
            let _held = lock;
            for entry in index.manifest.entries() {
                if let Err(error) = verify_entry(&folder, &index.manifest, entry) {
                    tracing::warn!(%artifact, %error, "an entry of a release is replaced");
                    replace(&folder, &whole, entry)?;
                    // A rename does nothing between two names of one file: that somebody spoilt it since it was assembled.
                    verify_entry(&folder, &index.manifest, entry)?;
                }
            }
            remove_tree(&whole)
        })
        .await
    }
}

fn replace(folder: &Path, whole: &Path, entry: &Entry) -> Result<(), Error> {
    let (old, new) = (folder.join(entry.path()), whole.join(entry.path()));
    let parent = old.parent().unwrap_or(folder);
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let is_directory = matches!(entry, Entry::Directory { .. });
    // A rename takes the place of a file or link, and of nothing else.
    if old.symlink_metadata().is_ok_and(|old| old.is_dir()) || is_directory {
        remove_tree(&old)?;
    }
    fs::rename(&new, &old).map_err(Error::io(&old))?;
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(Error::io(parent))
}
