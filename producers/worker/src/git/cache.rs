//! Bare repositories that are kept between jobs: a bounded number, the longest unused goes first.
//!
//! A lease keeps one from being removed; its lock keeps two slots from fetching into it at once. One that has gathered many
//! packs is made anew instead of being repacked.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use super::repository::Repository;
use crate::tidy;

/// Fetches leave a pack each; more than this slow git down.
const PACKS_MAX: usize = 100;
/// Its time says when the repository was used last.
const MARKER: &str = "longshore-used";

pub(crate) struct Cache {
    root: PathBuf,
    /// Repositories that are leased, or were.
    known: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
    /// Numbers what is on its way out.
    trash: AtomicU64,
}

/// One repository of the cache, which stays as long as this does.
pub(crate) struct Lease {
    path: PathBuf,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Lease {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.lock.lock().await
    }

    /// Whether nobody else leases it: the list of known repositories and this lease hold the lock.
    pub(super) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.lock) == 2
    }

    /// Empties it. Only while the lock is held.
    pub(super) async fn clear(&self) -> io::Result<()> {
        remove(self.path.clone()).await
    }
}

async fn remove(path: PathBuf) -> io::Result<()> {
    tokio::task::spawn_blocking(move || tidy::remove_tree(&path)).await.map_err(io::Error::other)?
}

impl Cache {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, known: Mutex::default(), trash: AtomicU64::new(0) }
    }

    pub(super) async fn lease(&self, repository: &Repository) -> io::Result<Lease> {
        let name = blake3::hash(repository.url().as_bytes()).to_hex();
        let path = self.root.join(format!("{}.git", &name[..32]));
        let lease = {
            let mut known = self.known();
            let lock = known.entry(path.clone()).or_default().clone();
            // The map and this lease: nobody borrows its objects, so it may be made anew.
            if Arc::strong_count(&lock) == 2 && packs(&path) > PACKS_MAX {
                fs::rename(&path, self.next_trash())?;
            }
            Lease { path, lock }
        };
        fs::create_dir_all(&lease.path)?;
        File::create(lease.path.join(MARKER))?.set_modified(SystemTime::now())?;
        Ok(lease)
    }

    /// Removes what is too much. What cannot be removed is tried again the next time.
    pub(super) async fn evict(&self, repositories_max: usize) {
        for path in self.take_out(repositories_max) {
            if let Err(error) = remove(path.clone()).await {
                tracing::warn!(path = %path.display(), %error, "a cached repository could not be removed");
            }
        }
    }

    /// Renames what must go, while nobody can lease it; that is quick, unlike removing it.
    fn take_out(&self, repositories_max: usize) -> Vec<PathBuf> {
        let mut known = self.known();
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten().map(|entry| entry.path());
        let (mut repositories, mut trash): (Vec<_>, Vec<_>) =
            entries.partition(|path| path.extension().is_some_and(|extension| extension == "git"));
        repositories.sort_by_key(|path| fs::metadata(path.join(MARKER)).and_then(|marker| marker.modified()).ok());
        let surplus = repositories.len().saturating_sub(repositories_max);
        let unused = |path: &PathBuf| known.get(path).is_none_or(|lock| Arc::strong_count(lock) == 1);
        let victims: Vec<_> = repositories.into_iter().filter(unused).take(surplus).collect();
        for path in victims {
            let target = self.next_trash();
            if fs::rename(&path, &target).is_ok() {
                known.remove(&path);
                trash.push(target);
            }
        }
        trash
    }

    fn next_trash(&self) -> PathBuf {
        let number = self.trash.fetch_add(1, Ordering::Relaxed);
        self.root.join(format!("trash-{}-{number}", std::process::id()))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn packs(repository: &Path) -> usize {
    let entries = fs::read_dir(repository.join("objects/pack")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_unused_goes_first_and_leased_ones_stay() {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(dir.path().to_owned());
        let lease = async |name: &str| {
            let repository = Repository::parse(&format!("https://example.org/{name}"), false).expect("allowed");
            let lease = cache.lease(&repository).await.expect("leased");
            (lease.path().to_owned(), lease)
        };
        let (oldest, held) = lease("a").await;
        let (old, _) = lease("b").await;
        let (new, _) = lease("c").await;
        for (age_seconds, path) in [(30, &oldest), (20, &old), (10, &new)] {
            let marker = File::options().write(true).open(path.join(MARKER)).expect("there");
            marker.set_modified(SystemTime::now() - std::time::Duration::from_secs(age_seconds)).expect("set");
        }
        cache.evict(2).await;
        assert_eq!([oldest.exists(), old.exists(), new.exists()], [true, false, true]);
        drop(held);
        cache.evict(1).await;
        assert_eq!([oldest.exists(), new.exists()], [false, true]);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1, "no trash is left");
    }
}
