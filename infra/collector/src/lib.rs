//! Deletes what nothing in a bucket refers to any more: carries out rounds of [`longshore_artifact::collect`], which says why that is safe.
//!
//! - [`announce`] and [`condemned`]: what publishers do, before they look whether all is there that they refer to.
//! - [`Collector`]: what one process of a role does at a time; which, the role knows. Of two at once, the one that began first ends.
//!
//! Not known here: why artifacts are retired, and who publishes.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
pub use longshore_artifact::collect::{Announced, Condemned, Publisher, Report, Standing};
use longshore_artifact::{
    ArtifactRoot, PACK_PREFIX, ROOT_BYTES_MAX, ROOT_PREFIX,
    collect::{
        ANNOUNCED_PREFIX, Answer, CONDEMNED_LASTS, CONDEMNED_PREFIX, Effect, Listed, ROUNDS_PREFIX, Round,
        Settings as RoundSettings,
    },
    outline::outline_key,
    pack_key, root_key,
};
use longshore_s3::{Bucket, Object};
use longshore_schemas::{ArtifactId, PackId, Timestamp};
use longshore_service::metrics::Counters;

/// What one collector condemns at once is far less.
const CONDEMNED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// So long an announcement holds at least, unless it is set otherwise. Whoever takes longer than half of it to publish announces it anew,
/// and looks again.
pub const ANNOUNCED_LASTS: Duration = Duration::from_secs(60 * 60);
/// Says which installation a bucket is the main one of.
const INSTALLATION_KEY: &str = "installation";
const INSTALLATION_BYTES_MAX: u64 = 1024;
/// Of a page of roots, so many may be unknown, or a tenth; if there are more, it is the log of another bucket.
const UNKNOWN_MAX: usize = 20;
/// Announcements of one listing, and collectors.
const ANNOUNCED_MAX: usize = 1_000_000;
const CONDEMNED_MAX: usize = 10_000;
/// Objects that are deleted at the same time.
const DELETES_AT_ONCE: usize = 8;
/// A round that takes longer than this ends.
const ROUND_LASTS: Duration = Duration::from_secs(24 * 60 * 60);
/// Roots that are read at the same time.
const READS_AT_ONCE: usize = 16;
/// Packs that are remembered at once: 32 MiB, and three times as much while they are sorted.
const NAMED_MAX: usize = 4_000_000;

static COLLECTED: LazyLock<Counters<2>> = LazyLock::new(|| {
    Counters::new(
        "longshore_collected_objects",
        "Objects that were deleted because nothing needs them",
        ["bucket", "what"],
    )
});
static COLLECTED_BYTES: LazyLock<Counters<1>> =
    LazyLock::new(|| Counters::new("longshore_collected_bytes", "Bytes of packs that were deleted", ["bucket"]));
static ROUNDS: LazyLock<Counters<2>> =
    LazyLock::new(|| Counters::new("longshore_collections", "Rounds over a bucket, by outcome", ["bucket", "outcome"]));

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bucket(#[from] longshore_s3::Error),
    #[error("what is known of artifacts is not up to date: {0}")]
    Behind(String),
    #[error("{key} in bucket {bucket:?} is not usable, and nothing is collected until it is removed: {reason}")]
    Unusable { bucket: String, key: String, reason: String },
    #[error(
        "{key} in bucket {bucket:?} does not say what is being collected, and nothing is published until it is gone: a control node removes it \
         after a while ({reason})"
    )]
    Condemned { bucket: String, key: String, reason: String },
    #[error(
        "bucket {bucket:?} is the main bucket of another installation ({found}, and this is {own}): nothing is collected. Correct \
         s3.main_bucket, s3.prefix or kafka.prefix; or, if the log was made anew, remove {INSTALLATION_KEY} from the bucket"
    )]
    OtherInstallation { bucket: String, own: String, found: String },
    #[error(
        "the log knows nothing of {unknown} among {roots} artifacts in bucket {bucket:?}, such as {such}: nothing is collected. Is it this \
         bucket's log, and whole? If they are to go, remove their roots"
    )]
    Unknown { bucket: String, unknown: usize, roots: usize, such: ArtifactId },
    #[error("another process began a round over bucket {bucket:?} and has gone on: this one ends")]
    Replaced { bucket: String },
    #[error(
        "artifact {artifact} has no root in bucket {bucket:?}, and nothing is collected there until a region gives it back, it is \
         built again, or it is retired"
    )]
    NoRoot { bucket: String, artifact: ArtifactId },
}

/// What the role knows of artifacts.
#[async_trait]
pub trait Known: Send + Sync {
    /// Waits until the others answer by all that was in the log when this was called.
    async fn catch_up(&self) -> Result<(), String>;

    fn standing(&self, artifact: &ArtifactId) -> Standing;

    /// Artifacts that are not retired, after `after` and up to `to` (`None`: all), whose roots are not among these: some, if there are
    /// very many.
    fn without_roots(
        &self,
        after: Option<&ArtifactId>,
        to: Option<&ArtifactId>,
        roots: &BTreeSet<ArtifactId>,
    ) -> Result<Vec<ArtifactId>, String>;

    /// Whether it was published, and [`Known::standing`] knows, or will never be. In doubt, no.
    fn is_settled(&self, announced: &Announced, root_is_there: bool) -> bool;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long what nothing refers to is left alone.
    pub grace: Duration,
    /// How long an announcement holds at least. All of an installation have the same; `grace` is no shorter.
    pub announced_lasts: Duration,
    pub deletes_per_second: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { grace: Duration::from_secs(24 * 60 * 60), announced_lasts: ANNOUNCED_LASTS, deletes_per_second: 100 }
    }
}

/// Says what is about to be published, and who says so. To be called before it is looked whether all of it is there, and not condemned.
pub async fn announce(bucket: &Bucket, by: &str, root: &ArtifactRoot) -> Result<(), longshore_s3::Error> {
    let json = root.to_json();
    let announced = Announced::new(root.artifact, by, &json);
    bucket.put(&announced.key, Bytes::from(json)).await
}

/// What collectors are about to delete, or may just be deleting.
pub async fn condemned(bucket: &Bucket) -> Result<Condemned, Error> {
    let mut all = Condemned::default();
    for object in bucket.list(CONDEMNED_PREFIX).collect(CONDEMNED_MAX).await? {
        match bucket.get(&object.key, CONDEMNED_BYTES_MAX).await {
            Ok(json) => all.extend(serde_json::from_slice(&json).map_err(|error| Error::Condemned {
                bucket: bucket.name().to_owned(),
                key: object.key,
                reason: error.to_string(),
            })?),
            Err(longshore_s3::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// Whether something of it is condemned: then it is soon gone, or absolved.
pub fn is_condemned(condemned: &Condemned, root: &ArtifactRoot) -> bool {
    !condemned.is_empty()
        && (condemned.artifacts.contains(&root.artifact)
            || root.all_packs().iter().any(|pack| condemned.packs.contains(&pack.pack)))
}

/// Deletes in one bucket.
#[derive(Clone)]
pub struct Collector {
    bucket: Bucket,
    settings: Settings,
    /// Whose main bucket it is.
    installation: Option<String>,
    /// What its own objects are called.
    id: String,
    /// Whether its last round came to an end: the next one need not begin elsewhere.
    is_whole: Arc<AtomicBool>,
    clock: fn() -> Timestamp,
}

/// One round's mark, and how far the collector's clock is ahead of the bucket's.
struct Mark {
    key: String,
    ahead: Duration,
}

impl Collector {
    /// `clock` goes with real time.
    pub fn new(bucket: Bucket, settings: Settings, clock: fn() -> Timestamp) -> Self {
        let id = format!("{:032x}", rand::random::<u128>());
        Self { bucket, settings, installation: None, id, is_whole: Arc::default(), clock }
    }

    /// Collects only where the bucket is this installation's, or nobody's yet.
    pub fn of(self, installation: String) -> Self {
        Self { installation: Some(installation), ..self }
    }

    /// One round. If it fails, the next one begins anew.
    pub async fn round(&self, known: &dyn Known) -> Result<Report, Error> {
        let collected = self.collect(known).await;
        self.is_whole.store(collected.is_ok(), Ordering::Relaxed);
        let bucket = self.bucket.name();
        ROUNDS.count([bucket, if collected.is_ok() { "done" } else { "failed" }], 1);
        if let Ok(Report { roots_deleted, packs_deleted, pack_bytes_deleted, .. }) = collected {
            COLLECTED.count([bucket, "root"], roots_deleted);
            COLLECTED.count([bucket, "pack"], packs_deleted);
            COLLECTED_BYTES.count([bucket], pack_bytes_deleted);
            tracing::info!(
                bucket,
                roots_deleted,
                packs_deleted,
                pack_bytes_deleted,
                "what nothing needs was collected"
            );
        }
        collected
    }

    async fn collect(&self, known: &dyn Known) -> Result<Report, Error> {
        self.check_installation().await?;
        let mark = self.mark().await?;
        known.catch_up().await.map_err(Error::Behind)?;
        self.forget_announced(known, &mark).await?;
        let report = self.perform(known, Some(&mark)).await?;
        self.bucket.delete(&mark.key).await?;
        Ok(report)
    }

    /// What a round would do, without doing it.
    pub async fn dry_run(&self, known: &dyn Known) -> Result<Report, Error> {
        self.perform(known, None).await
    }

    /// Removes what collectors that are gone have condemned, and so have kept others from publishing. To be called every few minutes, whatever
    /// becomes of rounds.
    pub async fn tidy(&self) -> Result<(), Error> {
        let condemned = self.bucket.list(CONDEMNED_PREFIX).collect(CONDEMNED_MAX).await?;
        let marks = self.bucket.list(ROUNDS_PREFIX).collect(CONDEMNED_MAX).await?;
        if condemned.is_empty() && marks.is_empty() {
            return Ok(());
        }
        let mark = self.mark().await?;
        for object in condemned.iter().filter(|object| self.age(object, &mark) >= CONDEMNED_LASTS) {
            tracing::warn!(key = object.key, "a collector that is gone had condemned something, which is absolved");
            self.bucket.delete(&object.key).await?;
        }
        for object in marks.iter().filter(|object| self.age(object, &mark) >= ROUND_LASTS) {
            self.bucket.delete(&object.key).await?;
        }
        Ok(self.bucket.delete(&mark.key).await?)
    }

    async fn check_installation(&self) -> Result<(), Error> {
        let Some(own) = &self.installation else { return Ok(()) };
        self.bucket.put_if_absent(INSTALLATION_KEY, Bytes::from(own.clone())).await?;
        let found = self.bucket.get(INSTALLATION_KEY, INSTALLATION_BYTES_MAX).await?;
        if found == own.as_bytes() {
            return Ok(());
        }
        let (bucket, found) = (self.bucket.name().to_owned(), String::from_utf8_lossy(&found).into_owned());
        Err(Error::OtherInstallation { bucket, own: own.clone(), found })
    }

    async fn mark(&self) -> Result<Mark, Error> {
        let key = format!("{ROUNDS_PREFIX}{}.{:016x}", self.id, rand::random::<u64>());
        self.bucket.put(&key, Bytes::new()).await?;
        let written = (self.clock)();
        let found = self.bucket.list(&key).collect(1).await?.pop();
        let object = found.ok_or_else(|| Error::Replaced { bucket: self.bucket.name().to_owned() })?;
        Ok(Mark { key, ahead: written.since(millis(object.modified)) })
    }

    /// How old it is at least, whichever of the two clocks is right.
    fn age(&self, object: &Object, mark: &Mark) -> Duration {
        (self.clock)().since(millis(object.modified)).saturating_sub(mark.ahead)
    }

    async fn perform(&self, known: &dyn Known, mark: Option<&Mark>) -> Result<Report, Error> {
        let dry_run = mark.is_none();
        let begin_at = if dry_run || self.is_whole.load(Ordering::Relaxed) { 0 } else { rand::random() };
        let mut round =
            Round::new(RoundSettings { grace: self.settings.grace, named_max: NAMED_MAX, dry_run, begin_at });
        let mut effect = round.start();
        while effect != Effect::End {
            let is_look = matches!(effect, Effect::ReadAnnounced(_));
            let answer = self.answer(effect, known, mark).await?;
            let is_replaced = match &answer {
                Answer::Announced { is_current, .. } => !is_current,
                Answer::Names { found, .. } => is_look && *found == 0 && !dry_run,
                _ => false,
            };
            if is_replaced {
                // Nothing is being deleted just now.
                self.bucket.delete(&self.condemned_key()).await?;
                return Err(Error::Replaced { bucket: self.bucket.name().to_owned() });
            }
            let now = (self.clock)().millis() - mark.map_or(0, |mark| in_millis(mark.ahead));
            effect = round.handle(answer, Timestamp::from_millis(now), &|artifact| known.standing(artifact));
        }
        Ok(round.report())
    }

    fn condemned_key(&self) -> String {
        format!("{CONDEMNED_PREFIX}{}", self.id)
    }

    async fn answer(&self, effect: Effect, known: &dyn Known, mark: Option<&Mark>) -> Result<Answer, Error> {
        let bucket = &self.bucket;
        Ok(match effect {
            Effect::ListRoots(after) => {
                let after_key = after.map(|artifact| root_key(&artifact));
                let roots = self.list(ROOT_PREFIX, after_key, artifact_of).await?;
                self.check_roots(known, after.as_ref(), &roots).await?;
                self.check_known(known, &roots)?;
                Answer::Roots(roots)
            }
            Effect::ListPacks(after) => {
                let after = after.map(|pack| pack_key(&pack));
                Answer::Packs(self.list(PACK_PREFIX, after, |key| key.strip_prefix(PACK_PREFIX)?.parse().ok()).await?)
            }
            Effect::ReadRoots(artifacts) => self.read_roots(known, artifacts).await?,
            Effect::ReadAnnounced(announced) => {
                let packs = self.names(&announced.key, &announced.artifact).await?;
                Answer::Names { found: u64::from(packs.is_some()), packs: packs.unwrap_or_default() }
            }
            Effect::ListAnnounced => {
                let objects = bucket.list(ANNOUNCED_PREFIX).collect(ANNOUNCED_MAX).await?;
                let is_current = match mark {
                    Some(mark) => bucket.head(&mark.key).await?.is_some(),
                    None => true,
                };
                // What was removed before the list was made is known by now.
                known.catch_up().await.map_err(Error::Behind)?;
                let all = objects.iter().filter_map(|object| Announced::parse(&object.key)).collect();
                Answer::Announced { all, is_current }
            }
            Effect::Condemn(condemned) => {
                let json = serde_json::to_vec(&condemned).expect("names are text");
                bucket.put(&self.condemned_key(), Bytes::from(json)).await?;
                Answer::Done
            }
            Effect::Absolve => {
                bucket.delete(&self.condemned_key()).await?;
                Answer::Done
            }
            Effect::DeleteRoots(artifacts) => {
                for artifact in &artifacts {
                    let standing = known.standing(artifact);
                    tracing::info!(bucket = bucket.name(), %artifact, ?standing, "its root is deleted");
                }
                self.delete(artifacts.iter().map(root_key).collect()).await?
            }
            Effect::DeletePacks(packs) => {
                let keys = packs.iter().flat_map(|pack| [pack_key(pack), outline_key(pack)]);
                self.delete(keys.collect()).await?
            }
            Effect::End => Answer::Done,
        })
    }

    /// A page of what has a name; what has none is somebody else's.
    async fn list<T>(
        &self,
        prefix: &str,
        mut after: Option<String>,
        name: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<Listed<T>>, Error> {
        loop {
            let page = self.bucket.list_after(prefix, after.as_deref()).await?;
            after = page.last().map(|object| object.key.clone());
            let entry = |object: Object| {
                Some(Listed { name: name(&object.key)?, bytes: object.bytes, modified: millis(object.modified) })
            };
            let listed: Vec<Listed<T>> = page.into_iter().filter_map(entry).collect();
            if !listed.is_empty() || after.is_none() {
                return Ok(listed);
            }
        }
    }

    async fn read_roots(&self, known: &dyn Known, artifacts: Vec<ArtifactId>) -> Result<Answer, Error> {
        let reads = stream::iter(artifacts).map(|artifact| async move {
            let names = self.names(&root_key(&artifact), &artifact).await?;
            // It was there when it was listed. What it should name is not known now.
            if names.is_none() && known.standing(&artifact) == Standing::Live {
                return Err(Error::NoRoot { bucket: self.bucket.name().to_owned(), artifact });
            }
            Ok(names)
        });
        let all: Vec<Vec<PackId>> =
            reads.buffer_unordered(READS_AT_ONCE).try_filter_map(|names| async { Ok(names) }).try_collect().await?;
        Ok(Answer::Names { found: all.len() as u64, packs: all.concat() })
    }

    /// What a log does not know at all is not to be taken for what it needs no more.
    fn check_known(&self, known: &dyn Known, roots: &[Listed<ArtifactId>]) -> Result<(), Error> {
        let is_unknown = |root: &&Listed<ArtifactId>| known.standing(&root.name) == Standing::Unknown;
        let unknown: Vec<_> = roots.iter().filter(is_unknown).collect();
        if unknown.len() <= UNKNOWN_MAX.max(roots.len() / 10) {
            return Ok(());
        }
        let (unknown, such) = (unknown.len(), unknown[0].name);
        Err(Error::Unknown { bucket: self.bucket.name().to_owned(), unknown, roots: roots.len(), such })
    }

    /// A root that is missing names nothing: what it should name must not be taken for what nothing needs.
    async fn check_roots(
        &self,
        known: &dyn Known,
        after: Option<&ArtifactId>,
        roots: &[Listed<ArtifactId>],
    ) -> Result<(), Error> {
        let names: BTreeSet<ArtifactId> = roots.iter().map(|root| root.name).collect();
        for artifact in known.without_roots(after, names.last(), &names).map_err(Error::Behind)? {
            // It may have been put there since the listing.
            if self.bucket.head(&root_key(&artifact)).await?.is_none() {
                return Err(Error::NoRoot { bucket: self.bucket.name().to_owned(), artifact });
            }
        }
        Ok(())
    }

    /// What a root names, or one that is announced.
    async fn names(&self, key: &str, artifact: &ArtifactId) -> Result<Option<Vec<PackId>>, Error> {
        let json = match self.bucket.get(key, ROOT_BYTES_MAX as u64).await {
            Ok(json) => json,
            Err(longshore_s3::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let root = ArtifactRoot::from_json(artifact, &json).map_err(|error| Error::Unusable {
            bucket: self.bucket.name().to_owned(),
            key: key.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Some(root.all_packs().into_iter().map(|pack| pack.pack).collect()))
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Answer, Error> {
        let pause = Duration::from_secs(1) * u32::try_from(keys.len()).unwrap_or(u32::MAX)
            / self.settings.deletes_per_second.max(1);
        let deletes = stream::iter(keys).map(|key| async move { self.bucket.delete(&key).await });
        let deletes = deletes.buffer_unordered(DELETES_AT_ONCE).try_collect::<Vec<()>>();
        let (deleted, ()) = tokio::join!(deletes, tokio::time::sleep(pause));
        deleted?;
        Ok(Answer::Done)
    }

    /// What is settled need not be announced any more.
    async fn forget_announced(&self, known: &dyn Known, mark: &Mark) -> Result<(), Error> {
        let mut settled = Vec::new();
        for object in self.bucket.list(ANNOUNCED_PREFIX).collect(ANNOUNCED_MAX).await? {
            let is_old = self.age(&object, mark) >= self.settings.announced_lasts;
            let Some(announced) = Announced::parse(&object.key).filter(|_| is_old) else { continue };
            let root_is_there = self.bucket.head(&root_key(&announced.artifact)).await?.is_some();
            if known.is_settled(&announced, root_is_there) {
                settled.push(announced.key);
            }
        }
        // What was settled then is known after this.
        known.catch_up().await.map_err(Error::Behind)?;
        if settled.is_empty() {
            return Ok(());
        }
        // Rounds that are under way know of these by nothing else.
        for object in self.bucket.list(ROUNDS_PREFIX).collect(CONDEMNED_MAX).await? {
            if object.key != mark.key {
                self.bucket.delete(&object.key).await?;
            }
        }
        for key in settled {
            self.bucket.delete(&key).await?;
        }
        Ok(())
    }
}

fn artifact_of(key: &str) -> Option<ArtifactId> {
    key.strip_prefix(ROOT_PREFIX)?.strip_suffix(".json")?.parse().ok()
}

fn in_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn millis(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
