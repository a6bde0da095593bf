//! Rounds over a real bucket.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use longshore_artifact::{ArtifactRoot, PackRef, collect::CONDEMNED_PREFIX, pack_key, root_key};
use longshore_collector::{
    Announced, Collector, Condemned, Error, Known, Settings, Standing, announce, condemned, is_condemned,
};
use longshore_s3::{
    Bucket, BucketConfig,
    embedded::{Config, Server},
};
use longshore_schemas::{ArtifactId, PackId, Timestamp};

const SETTINGS: Settings = Settings {
    grace: Duration::from_millis(1),
    announced_lasts: Duration::from_millis(1),
    deletes_per_second: 100_000,
};

fn now() -> Timestamp {
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    // A moment later than anything that was written before.
    Timestamp(i64::try_from(since.as_millis()).expect("small") + 10)
}

async fn bucket(folder: &tempfile::TempDir) -> (Server, Bucket) {
    let key = || "longshore-test".to_owned();
    let listen = ([127, 0, 0, 1], 0).into();
    let config = Config { root: folder.path().to_owned(), listen, access_key: key(), secret_key: key() };
    let server = Server::start(config).await.expect("starts");
    let config = BucketConfig {
        endpoint: Some(server.endpoint().to_owned()),
        region: "eu".to_owned(),
        bucket: "main".to_owned(),
        access_key: Some(key()),
        secret_key: Some(key()),
        path_style: true,
        ..BucketConfig::default()
    };
    let bucket = Bucket::connect(&config).await.expect("a bucket");
    bucket.ensure_exists().await.expect("made");
    (server, bucket)
}

/// Two packs of its own, and one that all have.
async fn publish(bucket: &Bucket, name: &str) -> ArtifactRoot {
    let mut packs = Vec::new();
    for content in [format!("{name} one"), format!("{name} two"), "of all".to_owned()] {
        let bytes = Bytes::from(content);
        let pack = PackRef { pack: PackId::of(&bytes), bytes: bytes.len() as u64 };
        bucket.put(&pack_key(&pack.pack), bytes).await.expect("put");
        packs.push(pack);
    }
    let (artifact, manifest, packs) = (ArtifactId::of(name.as_bytes()), packs[..1].to_vec(), packs[1..].to_vec());
    let root = ArtifactRoot {
        artifact,
        size_bytes: 1,
        files: 1,
        chunks: 1,
        manifest_key: 0,
        manifest,
        layout: Vec::new(),
        packs,
        provenance: None,
    };
    bucket.put(&root_key(&artifact), root.to_json().into()).await.expect("put");
    root
}

#[derive(Default)]
struct Fake {
    standings: Mutex<BTreeMap<ArtifactId, Standing>>,
    is_settled: bool,
    /// The bucket in which another one removes announcements just before it is looked at what is over.
    replaces: Option<Bucket>,
}

impl Fake {
    fn set(&self, root: &ArtifactRoot, standing: Standing) {
        self.standings.lock().expect("not poisoned").insert(root.artifact, standing);
    }
}

#[async_trait]
impl Known for Fake {
    async fn catch_up(&self) -> Result<(), String> {
        if let Some(bucket) = &self.replaces {
            for mark in keys(bucket, "rounds/").await {
                bucket.delete(&mark).await.expect("deleted");
            }
        }
        Ok(())
    }

    fn standing(&self, artifact: &ArtifactId) -> Standing {
        self.standings.lock().expect("not poisoned").get(artifact).copied().unwrap_or(Standing::Unknown)
    }

    fn without_roots(
        &self,
        after: Option<&ArtifactId>,
        to: Option<&ArtifactId>,
        roots: &BTreeSet<ArtifactId>,
    ) -> Result<Vec<ArtifactId>, String> {
        let standings = self.standings.lock().expect("not poisoned");
        let live = standings.iter().filter(|(_, standing)| **standing == Standing::Live).map(|(artifact, _)| *artifact);
        let within = |artifact: &ArtifactId| Some(artifact) > after && to.is_none_or(|to| artifact <= to);
        Ok(live.filter(|artifact| within(artifact) && !roots.contains(artifact)).collect())
    }

    fn is_settled(&self, _: &Announced, _: bool) -> bool {
        self.is_settled
    }
}

async fn keys(bucket: &Bucket, prefix: &str) -> Vec<String> {
    let objects = bucket.list(prefix).collect(1_000).await.expect("listed");
    objects.into_iter().map(|object| object.key).collect()
}

#[tokio::test]
async fn a_round_deletes_what_is_over_and_a_dry_run_says_the_same_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, bucket) = bucket(&folder).await;
    let (kept, over, stray) =
        (publish(&bucket, "kept").await, publish(&bucket, "over").await, publish(&bucket, "stray").await);
    bucket.put("packs/not-a-pack", Bytes::from_static(b"people's")).await.expect("put");
    let known = Fake::default();
    known.set(&kept, Standing::Live);
    known.set(&over, Standing::RetiredSince(Timestamp(1)));
    let collector = Collector::new(bucket.clone(), SETTINGS, now);
    let dry = collector.dry_run(&known).await.expect("looks");
    assert_eq!(keys(&bucket, "artifacts/").await.len(), 3, "nothing was deleted");
    let report = collector.round(&known).await.expect("collects");
    assert_eq!(report, dry);
    assert_eq!((report.roots_deleted, report.packs_deleted, report.packs_kept), (2, 4, 3));
    assert_eq!(keys(&bucket, "artifacts/").await, [root_key(&kept.artifact)]);
    for pack in kept.all_packs() {
        assert!(bucket.head(&pack_key(&pack.pack)).await.expect("asked").is_some(), "what is needed stays");
    }
    assert_eq!(keys(&bucket, "packs/").await.len(), 4, "as does what is no pack");
    assert_eq!(keys(&bucket, CONDEMNED_PREFIX).await, [""; 0]);
    assert_eq!(stray.all_packs().len(), 3);
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_announced_stays_until_that_is_settled() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, bucket) = bucket(&folder).await;
    let root = publish(&bucket, "again").await;
    let mut known = Fake::default();
    known.set(&root, Standing::RetiredSince(Timestamp(1)));
    announce(&bucket, "default.x-7.1", &root).await.expect("put");
    let key = keys(&bucket, "announced/").await.pop().expect("one");
    let announced = Announced::parse(&key).expect("a key");
    assert_eq!((announced.by(), announced.artifact), ("default.x-7.1", root.artifact));
    let collector = Collector::new(bucket.clone(), SETTINGS, now);
    assert_eq!(collector.round(&known).await.expect("collects").packs_deleted, 0);
    assert!(bucket.head(&root_key(&root.artifact)).await.expect("asked").is_some());
    known.is_settled = true;
    let report = collector.round(&known).await.expect("collects");
    assert_eq!((report.roots_deleted, report.packs_deleted), (1, 3));
    assert_eq!(keys(&bucket, "").await, [""; 0]);
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_condemned_is_seen_by_publishers_and_forgotten_after_its_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, bucket) = bucket(&folder).await;
    let (one, two) = (publish(&bucket, "one").await, publish(&bucket, "two").await);
    let own = one.manifest[0].pack;
    let json = serde_json::to_vec(&Condemned { packs: [own].into(), ..Condemned::default() }).expect("JSON");
    bucket.put(&format!("{CONDEMNED_PREFIX}dead"), json.into()).await.expect("put");
    let all = condemned(&bucket).await.expect("read");
    assert!(is_condemned(&all, &one) && !is_condemned(&all, &two));
    // A clock that is ahead makes nothing older.
    let ahead = || Timestamp(now().millis() + 11 * 60 * 1_000);
    for clock in [now as fn() -> Timestamp, ahead] {
        Collector::new(bucket.clone(), SETTINGS, clock).tidy().await.expect("looks");
        let all = condemned(&bucket).await.expect("read");
        assert!(is_condemned(&all, &one), "whoever condemned it may still delete it");
    }
    let file = folder.path().join("buckets/main").join(format!("{CONDEMNED_PREFIX}dead"));
    let file = std::fs::File::options().write(true).open(file).expect("there");
    file.set_modified(SystemTime::now() - Duration::from_secs(11 * 60)).expect("set");
    Collector::new(bucket.clone(), SETTINGS, now).tidy().await.expect("looks");
    assert!(condemned(&bucket).await.expect("read").is_empty());
    assert_eq!(keys(&bucket, "rounds/").await, [""; 0]);
    server.shutdown().await;
}

/// What another one removed from the announcements, a round that is under way knows nothing of.
#[tokio::test]
async fn a_round_that_was_replaced_ends_and_has_condemned_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, bucket) = bucket(&folder).await;
    let over = publish(&bucket, "over").await;
    let mut known = Fake::default();
    known.set(&over, Standing::RetiredSince(Timestamp(1)));
    known.replaces = Some(bucket.clone());
    let collector = Collector::new(bucket.clone(), SETTINGS, now);
    let error = collector.round(&known).await.expect_err("replaced");
    assert!(matches!(error, Error::Replaced { .. }), "{error}");
    assert!(bucket.head(&root_key(&over.artifact)).await.expect("asked").is_some(), "nothing was deleted");
    assert_eq!(keys(&bucket, CONDEMNED_PREFIX).await, [""; 0]);
    known.replaces = None;
    assert_eq!(collector.round(&known).await.expect("collects").roots_deleted, 1);
    server.shutdown().await;
}

#[tokio::test]
async fn what_the_log_knows_nothing_of_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, bucket) = bucket(&folder).await;
    let mut roots = Vec::new();
    for number in 0..25 {
        roots.push(publish(&bucket, &format!("artifact {number}")).await);
    }
    let known = Fake::default();
    let collector = Collector::new(bucket.clone(), SETTINGS, now).of("ours".to_owned());
    let error = collector.round(&known).await.expect_err("a new log").to_string();
    assert!(error.contains("nothing of 25 among 25 artifacts") && error.contains("this bucket's log"), "{error}");
    let other = Collector::new(bucket.clone(), SETTINGS, now).of("theirs".to_owned());
    let error = other.round(&known).await.expect_err("another's bucket").to_string();
    assert!(error.contains("(ours, and this is theirs)") && error.contains("remove installation"), "{error}");
    assert_eq!(keys(&bucket, "artifacts/").await.len(), 25);
    for root in &roots[..10] {
        known.set(root, Standing::Live);
    }
    assert_eq!(collector.round(&known).await.expect("collects").roots_deleted, 15, "some are left of what failed");
    server.shutdown().await;
}

#[tokio::test]
async fn nothing_is_collected_while_a_root_is_missing_or_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, bucket) = bucket(&folder).await;
    let root = publish(&bucket, "one").await;
    let known = Fake::default();
    known.set(&root, Standing::Live);
    let collector = Collector::new(bucket.clone(), SETTINGS, now);
    bucket.put(&root_key(&root.artifact), Bytes::from_static(b"{")).await.expect("put");
    let error = collector.round(&known).await.expect_err("damaged");
    assert!(error.to_string().contains(&root_key(&root.artifact)), "{error}");
    bucket.delete(&root_key(&root.artifact)).await.expect("deleted");
    let error = collector.round(&known).await.expect_err("missing");
    assert!(matches!(error, Error::NoRoot { artifact, .. } if artifact == root.artifact), "{error}");
    assert_eq!(keys(&bucket, "packs/").await.len(), 3);
    bucket.put(&root_key(&root.artifact), root.to_json().into()).await.expect("put");
    assert_eq!(collector.round(&known).await.expect("collects").packs_kept, 3);
    server.shutdown().await;
}
