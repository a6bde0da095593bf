//! Snapshots of the projections in the main bucket: restored at start, written now and then.

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use longshore_log::Log;
pub use longshore_runtime::snapshot::Settings;
use longshore_runtime::{
    Clock,
    snapshot::{Object, ObjectError, ObjectStore, Part, Snapshots, Snapshotter, Written},
};
use longshore_s3::Bucket;
use longshore_service::metrics::{Counters, Gauges};
use tokio_util::sync::CancellationToken;

use crate::{Fleet, Goals, Queue, Replication};

static SNAPSHOTS: LazyLock<Counters<1>> =
    LazyLock::new(|| Counters::new("longshore_snapshots", "Snapshots of the projections, by outcome", ["outcome"]));
static UPLOADED: LazyLock<Counters<0>> = LazyLock::new(|| {
    Counters::new("longshore_snapshot_uploaded_bytes", "Uploaded for snapshots: what those before had not", [])
});
static BYTES: LazyLock<Gauges<0>> =
    LazyLock::new(|| Gauges::new("longshore_snapshot_bytes", "All that the last snapshot of this node is made of", []));
static FACTS: LazyLock<Gauges<0>> =
    LazyLock::new(|| Gauges::new("longshore_snapshot_facts", "Facts that the last snapshot of this node includes", []));

/// Pieces and descriptions of one listing: a state of eight terabytes.
const OBJECTS_MAX: usize = 1_000_000;

/// Where snapshots go, and how often.
#[derive(Clone)]
pub struct SnapshotConfig {
    pub bucket: Bucket,
    pub settings: Settings,
}

impl SnapshotConfig {
    pub(crate) fn of(self, log: Arc<dyn Log>, clock: Clock) -> Result<Snapshots, longshore_log::Error> {
        let parts = vec![
            Part::of::<Queue>(crate::QUEUE_STORE, &*log)?,
            Part::of::<Replication>(crate::REPLICATION_STORE, &*log)?,
            Part::of::<Goals>(crate::GOALS_STORE, &*log)?,
            Part::of::<Fleet>(crate::FLEET_STORE, &*log)?,
        ];
        Ok(Snapshots { objects: Arc::new(BucketObjects(self.bucket)), log, parts, settings: self.settings, clock })
    }
}

/// How snapshots go, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotState {
    /// The last one that this process has written.
    pub written: Option<Written>,
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
}

/// What [`write`] and those who look at it share.
pub(crate) type Shown = Arc<Mutex<SnapshotState>>;

pub(crate) fn look(shown: &Shown) -> SnapshotState {
    shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Writes snapshots when they are due, until the shutdown. One that is under way then is broken off, and so is none.
pub(crate) async fn write(snapshotter: Snapshotter, every: Duration, shown: Shown, shutdown: CancellationToken) {
    let writing = async {
        loop {
            tokio::time::sleep(every).await;
            let written = snapshotter.write_if_due().await;
            let mut state = shown.lock().unwrap_or_else(PoisonError::into_inner);
            match written {
                Ok(None) => state.error = None,
                Ok(Some(written)) => {
                    SNAPSHOTS.count(["written"], 1);
                    UPLOADED.count([], written.uploaded_bytes);
                    BYTES.set([], written.bytes);
                    FACTS.set([], written.facts);
                    *state = SnapshotState { written: Some(written), error: None };
                }
                Err(error) => {
                    SNAPSHOTS.count(["failed"], 1);
                    let error = longshore_runtime::chain(&error);
                    tracing::warn!(error, "no snapshot was written");
                    state.error = Some(error);
                }
            }
        }
    };
    let _: Option<std::convert::Infallible> = shutdown.run_until_cancelled(writing).await;
}

/// A bucket as snapshots see it.
pub struct BucketObjects(pub Bucket);

fn failed(key: &str) -> impl FnOnce(longshore_s3::Error) -> ObjectError {
    let key = key.to_owned();
    move |error| ObjectError { key, source: Box::new(error) }
}

#[async_trait]
impl ObjectStore for BucketObjects {
    async fn get(&self, key: &str, bytes_max: u64) -> Result<Option<Bytes>, ObjectError> {
        match self.0.get(key, bytes_max).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(longshore_s3::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(key)(error)),
        }
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.0.put(key, bytes).await.map_err(failed(key))
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.0.delete(key).await.map_err(failed(key))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>, ObjectError> {
        let objects = self.0.list(prefix).collect(OBJECTS_MAX).await.map_err(failed(prefix))?;
        Ok(objects.into_iter().map(|object| Object { key: object.key, bytes: object.bytes }).collect())
    }
}
