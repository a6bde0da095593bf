//! Deletes what nothing in a bucket refers to any more: carries out rounds of [`longshore_artifact::collect`], which says why that is safe.
//!
//! - [`announce`] and [`condemned`]: what publishers do, before they look whether all is there that they refer to.
//! - [`Collector`]: what one process of a role does at a time; which, the role knows. Two of them at once delete twice what is to go, and
//!   nothing else.
//!
//! Not known here: why artifacts are retired, and who publishes.

use std::{
    collections::BTreeSet,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
pub use longshore_artifact::collect::{Announced, Condemned, Publisher, Report, Standing};
use longshore_artifact::{
    ArtifactRoot, PACK_PREFIX, ROOT_BYTES_MAX, ROOT_PREFIX,
    collect::{
        ANNOUNCED_PREFIX, Answer, CONDEMNED_LASTS, CONDEMNED_PREFIX, Effect, Listed, Round, Settings as RoundSettings,
    },
    pack_key, root_key,
};
use longshore_s3::{Bucket, Object};
use longshore_schemas::{ArtifactId, PackId, Timestamp};
use longshore_service::metrics::Counters;

/// What one collector condemns at once is far less.
const CONDEMNED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// So long an announcement holds at least. Whoever takes longer to publish announces it anew, and looks again.
pub const ANNOUNCED_LASTS: Duration = Duration::from_secs(60 * 60);
/// Announcements of one listing, and collectors.
const ANNOUNCED_MAX: usize = 1_000_000;
const CONDEMNED_MAX: usize = 10_000;
/// Objects that are deleted at the same time.
const DELETES_AT_ONCE: usize = 8;
/// Packs that are remembered at once: 32 MiB, and as much while they are sorted.
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
    ) -> Vec<ArtifactId>;

    /// Whether it was published, and [`Known::standing`] knows, or will never be. In doubt, no.
    fn is_settled(&self, announced: &Announced, root_is_there: bool) -> bool;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long what nothing refers to is left alone.
    pub grace: Duration,
    pub deletes_per_second: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { grace: Duration::from_secs(24 * 60 * 60), deletes_per_second: 100 }
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
            Ok(json) => all.extend(read(bucket, &object.key, &json)?),
            Err(longshore_s3::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

fn read(bucket: &Bucket, key: &str, json: &[u8]) -> Result<Condemned, Error> {
    serde_json::from_slice(json).map_err(|error| Error::Unusable {
        bucket: bucket.name().to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    })
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
    /// Where it says what it condemns.
    condemned_key: String,
    clock: fn() -> Timestamp,
}

impl Collector {
    /// `clock` goes with real time.
    pub fn new(bucket: Bucket, settings: Settings, clock: fn() -> Timestamp) -> Self {
        let condemned_key = format!("{CONDEMNED_PREFIX}{:032x}", rand::random::<u128>());
        Self { bucket, settings, condemned_key, clock }
    }

    /// One round. If it fails, the next one begins anew.
    pub async fn round(&self, known: &dyn Known) -> Result<Report, Error> {
        let collected = self.collect(known).await;
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
        known.catch_up().await.map_err(Error::Behind)?;
        self.forget_condemned().await?;
        self.forget_announced(known).await?;
        self.perform(known, false).await
    }

    /// What a round would do, without doing it.
    pub async fn dry_run(&self, known: &dyn Known) -> Result<Report, Error> {
        self.perform(known, true).await
    }

    async fn perform(&self, known: &dyn Known, dry_run: bool) -> Result<Report, Error> {
        let settings = RoundSettings {
            grace: self.settings.grace,
            named_max: NAMED_MAX,
            dry_run,
            begin_at: if dry_run { 0 } else { rand::random() },
        };
        let mut round = Round::new(settings);
        let mut effect = round.start();
        while effect != Effect::End {
            let answer = self.answer(effect, known).await?;
            effect = round.handle(answer, (self.clock)(), &|artifact| known.standing(artifact));
        }
        Ok(round.report())
    }

    async fn answer(&self, effect: Effect, known: &dyn Known) -> Result<Answer, Error> {
        let bucket = &self.bucket;
        Ok(match effect {
            Effect::ListRoots(after) => {
                let key = after.map(|artifact| root_key(&artifact));
                let page = bucket.list_after(ROOT_PREFIX, key.as_deref()).await?;
                let name = |key: &str| key.strip_prefix(ROOT_PREFIX)?.strip_suffix(".json")?.parse().ok();
                let roots = listed(page, name);
                self.check_roots(known, after.as_ref(), &roots).await?;
                Answer::Roots(roots)
            }
            Effect::ListPacks(after) => {
                let after = after.map(|pack| pack_key(&pack));
                let page = bucket.list_after(PACK_PREFIX, after.as_deref()).await?;
                Answer::Packs(listed(page, |key| key.strip_prefix(PACK_PREFIX)?.parse().ok()))
            }
            Effect::ReadRoot(artifact) => Answer::Names(self.names(&root_key(&artifact), &artifact).await?),
            Effect::ReadAnnounced(announced) => Answer::Names(self.names(&announced.key, &announced.artifact).await?),
            Effect::ListAnnounced => {
                known.catch_up().await.map_err(Error::Behind)?;
                let objects = bucket.list(ANNOUNCED_PREFIX).collect(ANNOUNCED_MAX).await?;
                Answer::Announced(objects.iter().filter_map(|object| Announced::parse(&object.key)).collect())
            }
            Effect::Condemn(condemned) => {
                let json = serde_json::to_vec(&condemned).expect("names are text");
                bucket.put(&self.condemned_key, Bytes::from(json)).await?;
                Answer::Done
            }
            Effect::Absolve => {
                bucket.delete(&self.condemned_key).await?;
                Answer::Done
            }
            Effect::DeleteRoots(artifacts) => self.delete(artifacts.iter().map(root_key).collect()).await?,
            Effect::DeletePacks(packs) => self.delete(packs.iter().map(pack_key).collect()).await?,
            Effect::End => Answer::Done,
        })
    }

    /// A root that is missing names nothing: what it should name must not be taken for what nothing needs.
    async fn check_roots(
        &self,
        known: &dyn Known,
        after: Option<&ArtifactId>,
        roots: &[Listed<ArtifactId>],
    ) -> Result<(), Error> {
        let names: BTreeSet<ArtifactId> = roots.iter().map(|root| root.name).collect();
        for artifact in known.without_roots(after, names.last(), &names) {
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

    /// What collectors that are gone have condemned.
    async fn forget_condemned(&self) -> Result<(), Error> {
        for object in self.bucket.list(CONDEMNED_PREFIX).collect(CONDEMNED_MAX).await? {
            if (self.clock)().since(millis(object.modified)) >= CONDEMNED_LASTS {
                self.bucket.delete(&object.key).await?;
            }
        }
        Ok(())
    }

    /// What is settled need not be announced any more.
    async fn forget_announced(&self, known: &dyn Known) -> Result<(), Error> {
        let lasts = ANNOUNCED_LASTS.min(self.settings.grace);
        let mut settled = Vec::new();
        for object in self.bucket.list(ANNOUNCED_PREFIX).collect(ANNOUNCED_MAX).await? {
            let is_old = (self.clock)().since(millis(object.modified)) >= lasts;
            let Some(announced) = Announced::parse(&object.key).filter(|_| is_old) else { continue };
            let root_is_there = self.bucket.head(&root_key(&announced.artifact)).await?.is_some();
            if known.is_settled(&announced, root_is_there) {
                settled.push(announced.key);
            }
        }
        // What was settled then is known after this.
        known.catch_up().await.map_err(Error::Behind)?;
        for key in settled {
            self.bucket.delete(&key).await?;
        }
        Ok(())
    }
}

fn listed<T>(page: Vec<Object>, name: impl Fn(&str) -> Option<T>) -> Vec<Listed<T>> {
    let entry = |object: Object| {
        Some(Listed { name: name(&object.key)?, bytes: object.bytes, modified: millis(object.modified) })
    };
    page.into_iter().filter_map(entry).collect()
}

fn millis(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
