//! Publishes that are interrupted, and several of the same tree at once.

mod common;

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use common::{contents, noise, run};
use longshore_artifact::{
    ArtifactRoot, Bases, Index, Need, PackRead, PackRef, PackSink, Published, ReadError, SinkError, assemble, publish,
};
use longshore_schemas::PackId;
use tokio::sync::Notify;

/// Packs that are on their way at once.
const IN_FLIGHT_MAX: u64 = 8;

fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("data")).expect("made");
    for number in 0..40 {
        fs::write(dir.join(format!("data/{number}")), noise(number, 300_000 + 50_000 * number as usize))
            .expect("written");
    }
    fs::write(dir.join("large"), noise(99, 60_000_000)).expect("written");
}

/// A bucket: what is stored stays, and is not uploaded again.
#[derive(Default)]
struct Bucket {
    packs: Mutex<HashMap<PackId, Bytes>>,
    uploaded: AtomicU64,
    stored: Notify,
}

impl Bucket {
    fn len(&self) -> u64 {
        self.packs.lock().expect("not poisoned").len() as u64
    }

    fn store(&self, pack: PackId, bytes: Bytes) {
        let mut packs = self.packs.lock().expect("not poisoned");
        if packs.insert(pack, bytes).is_none() {
            self.uploaded.fetch_add(1, Ordering::Relaxed);
        }
        drop(packs);
        self.stored.notify_waiters();
    }
}

#[async_trait::async_trait]
impl PackSink for Bucket {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        tokio::task::yield_now().await;
        self.store(pack, bytes);
        Ok(())
    }
}

impl PackRead for Bucket {
    fn read_at(&self, pack: &PackRef, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let packs = self.packs.lock().expect("not poisoned");
        let bytes = packs.get(&pack.pack).ok_or(ReadError::Missing)?;
        let start = usize::try_from(offset).expect("small");
        buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
        Ok(())
    }
}

/// A connection to the bucket that breaks after so many packs.
struct Breaking {
    bucket: Arc<Bucket>,
    left: AtomicU64,
}

#[async_trait::async_trait]
impl PackSink for Breaking {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map_err(|_| "the connection broke")?;
        self.bucket.put(pack, bytes).await
    }
}

fn whole(source: &Path, bucket: &Arc<Bucket>) -> Published {
    run(publish(source, Bases::default(), bucket.clone())).expect("published")
}

fn assembled(root: &ArtifactRoot, bucket: &Bucket, source: &Path, target: &Path) {
    let index = Index::load(root, bucket).expect("sound");
    assemble(&index, &Need::compute(&index, &[]), &[], bucket, target).expect("assembled");
    assert!(contents(target) == contents(source));
}

#[test]
fn a_publish_that_broke_at_each_tenth_goes_on_with_the_same_packs() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = dir.path().join("source");
    sample(&source);
    let expected = whole(&source, &Arc::default());
    let packs = expected.new_packs.len() as u64;
    let bucket = Arc::new(Bucket::default());
    for tenth in 1..10 {
        let there = bucket.len();
        let sink = Breaking { bucket: bucket.clone(), left: AtomicU64::new(packs * tenth / 10) };
        run(publish(&source, Bases::default(), Arc::new(sink))).expect_err("broken");
        // As many were sent as the connection took, and each that was there was among them.
        assert!(bucket.len() >= there.max(packs * tenth / 10), "{} of {packs} packs at {tenth}/10", bucket.len());
    }
    assert_eq!(whole(&source, &bucket), expected);
    assert_eq!(
        (bucket.len(), bucket.uploaded.load(Ordering::Relaxed)),
        (packs, packs),
        "no pack was made that is not needed"
    );
    assembled(&expected.root, &bucket, &source, &dir.path().join("target"));
}

#[test]
fn a_publish_whose_caller_went_away_ends_and_goes_on_later() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = dir.path().join("source");
    sample(&source);
    let expected = whole(&source, &Arc::default());
    let bucket = Arc::new(Bucket::default());
    run(async {
        let stored = bucket.stored.notified();
        tokio::select! {
            published = publish(&source, Bases::default(), bucket.clone()) => drop(published.expect("published")),
            () = stored => {}
        }
    });
    // The runtime has ended, and with it the threads of the publish.
    assert!(bucket.len() <= 1 + 2 * IN_FLIGHT_MAX, "{} packs were stored after that", bucket.len());
    assert_eq!(whole(&source, &bucket), expected);
    assert_eq!(bucket.len(), expected.new_packs.len() as u64);
}

#[test]
fn several_publishes_of_the_same_tree_at_once_are_one_artifact() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = dir.path().join("source");
    sample(&source);
    let bucket = Arc::new(Bucket::default());
    let published = run(async {
        let each = || {
            tokio::spawn({
                let (source, bucket) = (source.clone(), bucket.clone());
                async move { publish(&source, Bases::default(), bucket).await.expect("published") }
            })
        };
        let (one, two, three) = (each(), each(), each());
        [one.await, two.await, three.await].map(|published| published.expect("no panic"))
    });
    assert!(published.iter().all(|other| *other == published[0]));
    assert_eq!(bucket.len(), published[0].new_packs.len() as u64);
    assembled(&published[0].root, &bucket, &source, &dir.path().join("target"));
}
