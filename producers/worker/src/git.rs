//! From a repository's URL and a commit to a checkout of exactly that commit.
//!
//! ```text
//! repository ──fetch --depth 1 <commit>──▶ cache/<hash of the URL>.git ──objects shared──▶ checkout
//!              └─refused? fetch everything┘
//! ```
//!
//! The checkout is a repository of its own that borrows the cache's objects, so that a build finds a `.git`, and what it
//! does there stays there. Git runs under the guard as everything does, with an environment of its own, no prompts, no hooks, and no
//! protocol that was not allowed. Submodules and large-file pointers are left as they are in the commit.

mod cache;
mod repository;

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc, time::Duration};

use longshore_schemas::{CommitSha, events::FailureReason};
use tokio_util::sync::CancellationToken;

pub(crate) use self::cache::{Cache, Lease};
use self::repository::Repository;
use crate::{
    attempt::{Failure, Halt},
    config::WorkerConfig,
    guard::Order,
    process::{self, Ended, Outcome, Until},
    tidy,
};

/// For commands that touch neither the network nor many files.
const QUICK: Duration = Duration::from_secs(60);

/// What git needs of the worker's environment to reach repositories.
const NETWORK_VARIABLES: [&str; 14] = [
    "HOME",
    "XDG_CONFIG_HOME",
    "SSH_AUTH_SOCK",
    "GIT_SSH_COMMAND",
    "GIT_CONFIG_GLOBAL",
    "GIT_SSL_CAINFO",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// What a refused fetch of one commit says. The commit may still be in the history of a branch.
const REFUSALS: [&str; 4] = ["not our ref", "unadvertised object", "remote ref", "shallow"];

/// One checkout that is wanted.
pub(crate) struct Wanted<'a> {
    pub(crate) repository: &'a str,
    pub(crate) commit: &'a CommitSha,
    pub(crate) target: &'a Path,
    pub(crate) stop: &'a CancellationToken,
}

pub(crate) struct Git {
    config: Arc<WorkerConfig>,
    cache: Cache,
}

impl Git {
    pub(crate) fn new(config: Arc<WorkerConfig>, cache: Cache) -> Self {
        Self { config, cache }
    }

    /// The checkout may be used as long as the lease is held.
    pub(crate) async fn checkout(&self, wanted: &Wanted<'_>) -> Result<Lease, Halt> {
        let repository = Repository::parse(wanted.repository, self.config.allow_file_repositories)
            .map_err(|reason| unreachable(wanted.repository, &reason))?;
        let lease = self.cache.lease(&repository).await.map_err(Failure::worker)?;
        {
            let _alone = lease.lock().await;
            self.provide(&repository, wanted, &lease).await?;
        }
        if let Some(damage) = self.populate(wanted, lease.path()).await? {
            self.populate_anew(&repository, wanted, &lease, damage).await?;
        }
        self.cache.evict(self.config.git.repositories_max).await;
        Ok(lease)
    }

    /// After a checkout that found the cache damaged, by a disk that was full or lost what was written.
    async fn populate_anew(
        &self,
        repository: &Repository,
        wanted: &Wanted<'_>,
        lease: &Lease,
        mut damage: String,
    ) -> Result<(), Halt> {
        let _alone = lease.lock().await;
        if lease.is_alone() {
            tracing::warn!(
                repository = repository.shown(),
                damage,
                "the cached repository is damaged, it is made anew"
            );
            lease.clear().await.map_err(Failure::worker)?;
            tidy::remove_tree(wanted.target).map_err(Failure::worker)?;
            self.fetch(repository, wanted, lease).await?;
            match self.populate(wanted, lease.path()).await? {
                None => return Ok(()),
                Some(again) => damage = again,
            }
        }
        Err(Failure::worker(format!("git checkout: {damage}")).into())
    }

    /// Makes sure that the cache has the commit. A cache that was there already and fails may be damaged, by a worker that was killed
    /// in the middle, so it gets a second chance as a new one.
    async fn provide(&self, repository: &Repository, wanted: &Wanted<'_>, lease: &Lease) -> Result<(), Halt> {
        let was_there = lease.path().join("HEAD").exists();
        if was_there && self.has_commit(wanted, lease.path()).await? {
            return Ok(());
        }
        match self.fetch(repository, wanted, lease).await {
            // A commit that is not there says nothing of the cache, and objects that another build borrows must stay.
            Err(Halt::Failed(failure))
                if was_there && failure.reason != FailureReason::CommitNotFound && lease.is_alone() =>
            {
                tracing::info!(repository = repository.shown(), failure.message, "the cached repository is made anew");
                lease.clear().await.map_err(Failure::worker)?;
                self.fetch(repository, wanted, lease).await
            }
            result => result,
        }
    }

    async fn fetch(&self, repository: &Repository, wanted: &Wanted<'_>, lease: &Lease) -> Result<(), Halt> {
        let path = lease.path();
        fs::create_dir_all(path).map_err(Failure::worker)?;
        remove_locks(path).map_err(Failure::worker)?;
        let format = object_format(wanted.commit);
        self.must(&["init", "--quiet", "--bare", format, "."], path, wanted.stop).await?;

        let commit = wanted.commit.as_str();
        let refspec = format!("+{commit}:{}", complete(wanted.commit));
        let one = ["--depth=1", "--no-tags", "--no-write-fetch-head", "--end-of-options", repository.url(), &refspec];
        let outcome = self.fetch_once(&one, path, wanted.stop).await?;
        if outcome.ended == Ended::Exited(0) {
            return self.must_have_commit(repository, wanted, path).await;
        }
        if !REFUSALS.iter().any(|text| outcome.tail.contains(text)) {
            return Err(self.fetch_failed(repository, &outcome).into());
        }
        let branches = "+refs/heads/*:refs/remotes/longshore/*";
        let depth = if path.join("shallow").exists() { "--unshallow" } else { "--no-auto-maintenance" };
        let all = [depth, "--tags", "--no-write-fetch-head", "--end-of-options", repository.url(), branches];
        let outcome = self.fetch_once(&all, path, wanted.stop).await?;
        if outcome.ended != Ended::Exited(0) {
            return Err(self.fetch_failed(repository, &outcome).into());
        }
        // Where the commit is in no branch there is nothing to refer to, which is found next.
        let until = Until { limit: QUICK, stop: wanted.stop };
        self.run(&["update-ref", &complete(wanted.commit), commit], path, until).await?;
        self.must_have_commit(repository, wanted, path).await
    }

    async fn fetch_once(&self, arguments: &[&str], path: &Path, stop: &CancellationToken) -> Result<Outcome, Halt> {
        let arguments = [&["fetch", "--quiet", "--force"], arguments].concat();
        let limit = Duration::from_secs(self.config.git.fetch_seconds_max.into());
        self.run(&arguments, path, Until { limit, stop }).await
    }

    fn fetch_failed(&self, repository: &Repository, outcome: &Outcome) -> Failure {
        let seconds = self.config.git.fetch_seconds_max;
        let reason = match (&outcome.ended, outcome.tail.as_str()) {
            (Ended::TimedOut, _) => format!("it did not answer within {seconds} s"),
            (_, "") => "git gave no reason".to_owned(),
            (_, tail) => repository.redact(tail),
        };
        unreachable(repository.shown(), &reason)
    }

    async fn must_have_commit(&self, repository: &Repository, wanted: &Wanted<'_>, path: &Path) -> Result<(), Halt> {
        if self.has_commit(wanted, path).await? {
            return Ok(());
        }
        let message =
            format!("{} has no commit {}: push it, or check the commit id", repository.shown(), wanted.commit);
        Err(Failure::new(FailureReason::CommitNotFound, message).into())
    }

    /// The commit and all that it holds. The id of something else, such as a tag, is none.
    async fn has_commit(&self, wanted: &Wanted<'_>, path: &Path) -> Result<bool, Halt> {
        let until = Until { limit: QUICK, stop: wanted.stop };
        let outcome = self.run(&["cat-file", "-t", &complete(wanted.commit)], path, until).await?;
        Ok(outcome.ended == Ended::Exited(0) && outcome.tail == "commit")
    }

    /// Answers what was wrong with the cache, if the checkout is not whole for that.
    async fn populate(&self, wanted: &Wanted<'_>, cache: &Path) -> Result<Option<String>, Halt> {
        let target = wanted.target;
        fs::create_dir_all(target).map_err(Failure::worker)?;
        self.must(&["init", "--quiet", object_format(wanted.commit), "."], target, wanted.stop).await?;
        borrow_objects(target, cache).map_err(Failure::worker)?;
        let limit = Duration::from_secs(self.config.git.checkout_seconds_max.into());
        let arguments = ["checkout", "--quiet", "--detach", wanted.commit.as_str()];
        let outcome = self.run(&arguments, target, Until { limit, stop: wanted.stop }).await?;
        match outcome.ended {
            Ended::Exited(0) => {}
            Ended::TimedOut => {
                let limit = self.config.git.checkout_seconds_max;
                return Err(Failure::worker(format!("git checkout did not end within {limit} s")).into());
            }
            ended => return Ok(Some(format!("{ended:?}: {}", outcome.tail))),
        }
        // Git calls it a success even if it could not write a file, and says so only in words.
        if outcome.tail.lines().any(|line| line.starts_with("error: ")) {
            return Ok(Some(outcome.tail));
        }
        let outcome = self.run(&["ls-files", "--deleted"], target, Until { limit, stop: wanted.stop }).await?;
        let is_whole = outcome.ended == Ended::Exited(0) && outcome.tail.is_empty();
        Ok((!is_whole).then(|| format!("these files are missing:\n{}", outcome.tail)))
    }

    /// For what fails only by the worker's own fault.
    async fn must(&self, arguments: &[&str], directory: &Path, stop: &CancellationToken) -> Result<(), Halt> {
        let outcome = self.run(arguments, directory, Until { limit: QUICK, stop }).await?;
        match outcome.ended {
            Ended::Exited(0) => Ok(()),
            ended => Err(Failure::worker(format!("git {}: {ended:?}: {}", arguments[0], outcome.tail)).into()),
        }
    }

    async fn run(&self, arguments: &[&str], directory: &Path, until: Until<'_>) -> Result<Outcome, Halt> {
        let order = Order {
            program: "git".to_owned(),
            arguments: self.options().map(str::to_owned).chain(arguments.iter().map(|a| (*a).to_owned())).collect(),
            directory: directory.to_owned(),
            environment: environment(directory),
        };
        let outcome = process::run(&self.config, &order, until, None).await.map_err(Failure::worker)?;
        match outcome.ended {
            Ended::Stopped => Err(Halt::Stopped),
            Ended::NotFound => Err(Failure::worker("git is not installed, or not in PATH").into()),
            Ended::CannotStart(error) => Err(Failure::worker(format!("git cannot be started: {error}")).into()),
            _ => Ok(outcome),
        }
    }

    fn options(&self) -> impl Iterator<Item = &'static str> + use<> {
        let files = self.config.allow_file_repositories;
        let settings = [
            "protocol.allow=never",
            "protocol.https.allow=always",
            "protocol.ssh.allow=always",
            if files { "protocol.file.allow=always" } else { "protocol.file.allow=never" },
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "advice.detachedHead=false",
            "init.defaultBranch=main",
            // The cache is bounded by making it anew; see there.
            "gc.auto=0",
            "maintenance.auto=false",
            // A connection that gives less than 1 kB/s for a minute is given up.
            "http.lowSpeedLimit=1000",
            "http.lowSpeedTime=60",
        ];
        settings.into_iter().flat_map(|setting| ["-c", setting])
    }
}

fn environment(directory: &Path) -> BTreeMap<String, String> {
    let above = directory.parent().unwrap_or(directory).to_string_lossy().into_owned();
    let mut environment = BTreeMap::from([
        // A damaged repository is an error, and never a reason to use one that lies around it.
        ("GIT_CEILING_DIRECTORIES".to_owned(), above),
        ("PATH".to_owned(), crate::attempt::search_path()),
        // Messages are looked at, so they must be the untranslated ones.
        ("LC_ALL".to_owned(), "C".to_owned()),
        ("GIT_TERMINAL_PROMPT".to_owned(), "0".to_owned()),
        ("GIT_SSH_COMMAND".to_owned(), "ssh -oBatchMode=yes".to_owned()),
    ]);
    for name in NETWORK_VARIABLES {
        if let Ok(value) = std::env::var(name) {
            environment.insert(name.to_owned(), value);
        }
    }
    environment
}

/// What refers to a commit in the cache once it is there with all that it holds: git sets a reference after the last object.
/// The commit alone proves nothing, because a fetch that was killed may have left it without its files.
fn complete(commit: &CommitSha) -> String {
    format!("refs/longshore/{commit}")
}

fn object_format(commit: &CommitSha) -> &'static str {
    if commit.as_str().len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" }
}

fn borrow_objects(target: &Path, cache: &Path) -> io::Result<()> {
    let git = target.join(".git");
    fs::create_dir_all(git.join("objects/info"))?;
    fs::write(git.join("objects/info/alternates"), format!("{}\n", cache.join("objects").display()))?;
    match fs::copy(cache.join("shallow"), git.join("shallow")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn unreachable(repository: &str, reason: &str) -> Failure {
    Failure::new(FailureReason::RepositoryUnreachable, format!("{repository} cannot be fetched from: {reason}"))
}

/// Removes what a git that was killed has locked for good: its next one would take its own files for another's. Only one fetches
/// at a time.
fn remove_locks(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            // Objects are written under names of their own, and are many.
            if entry.file_name() != "objects" {
                remove_locks(&path)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "lock") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
