//! Snapshots through the control role and a real bucket: a state folder that is gone comes back.

use std::{path::Path, sync::Arc, time::Duration};

use longshore_control::{
    Control, ControlConfig, PartitionFingerprint, replay_fingerprints,
    snapshots::{Settings, SnapshotConfig},
};
use longshore_log::{
    Log, Record,
    local::{self, LocalLog},
};
use longshore_runtime::seal;
use longshore_s3::{
    Bucket, BucketConfig,
    embedded::{Config as ServerConfig, Counters, Server},
};
use longshore_schemas::{
    RegionName, Timestamp, codec,
    events::{BuildRequest, CancelRequested, Event, Request},
    read::{Outcome, RequestPosition},
    topics,
};
use longshore_service::request_keys::RequestKeys;
use longshore_signing::SigningKey;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

async fn bucket(folder: &Path) -> (Server, Bucket) {
    let (access_key, secret_key) = ("key".to_owned(), "secret-secret".to_owned());
    let listen = ([127, 0, 0, 1], 0).into();
    let server = ServerConfig { root: folder.to_owned(), listen, access_key, secret_key };
    let server = Server::start(server).await.expect("starts");
    let config = BucketConfig {
        endpoint: Some(server.endpoint().to_owned()),
        region: "embedded".to_owned(),
        bucket: "main".to_owned(),
        access_key: Some("key".to_owned()),
        secret_key: Some("secret-secret".to_owned()),
        path_style: true,
        ..BucketConfig::default()
    };
    let bucket = Bucket::connect(&config).await.expect("connects");
    bucket.ensure_exists().await.expect("made");
    (server, bucket)
}

fn config(log: &Arc<LocalLog>, state: &Path, bucket: &Bucket) -> ControlConfig {
    let region: RegionName = "eu".parse().expect("valid");
    let settings = Settings { interval: Duration::from_millis(100), facts_min: 1, ..Settings::new("test", "node") };
    let snapshots = Some(SnapshotConfig { bucket: bucket.clone(), settings });
    ControlConfig {
        snapshots,
        ..ControlConfig::new(
            log.clone(),
            state,
            vec![region],
            request_keys(),
            Arc::new(SigningKey::from_seed(&[8; 32])),
        )
    }
}

fn request_keys() -> RequestKeys {
    RequestKeys::of_one_secret(&[7; 32], &["eu".parse().expect("valid")])
}

/// Asks for something that is refused, which is a fact too.
async fn ask(log: &LocalLog, control: &Control, name: &str) {
    let event: BuildRequest = CancelRequested { job: format!("{name}-1").parse().expect("valid") }.into();
    let id = format!("r-{name}").parse().expect("valid");
    let key = event.key();
    let request = Request { id, at: Timestamp(0), actor: "test".to_owned(), trace: None, report: None, event };
    let record = Record::new(key, codec::encode(&request).expect("encodes"));
    let record = seal(request_keys().own(), topics::BUILD_REQUESTS.name, record);
    let at = log.append(topics::BUILD_REQUESTS.name, vec![record]).await.expect("appends").remove(0);
    let topic = topics::BUILD_REQUESTS.name.to_owned();
    let position = RequestPosition { topic, partition: at.source.partition, offset: at.offset };
    let outcome = control.read_model().outcome(&position, PATIENCE).await.expect("readable");
    assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

fn facts(of: &[PartitionFingerprint]) -> u64 {
    of.iter().map(|partition| partition.applied.sequence).sum()
}

fn put_bytes(counters: &Counters) -> u64 {
    counters.all().values().map(|traffic| traffic.put_bytes).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_folder_that_is_gone_comes_back_from_the_bucket() {
    let folder = TempDir::new().expect("a temporary folder");
    let (server, bucket) = bucket(&folder.path().join("s3")).await;
    let log = LocalLog::open(local::Config::new(folder.path().join("log"), topics::ALL)).expect("opens");
    let state = folder.path().join("state");
    let shutdown = CancellationToken::new();
    let (control, restored) = Control::begin(config(&log, &state, &bucket), &shutdown).await.expect("starts");
    assert_eq!(restored, None, "there is nothing yet");
    for name in ["a", "b", "c", "d", "e"] {
        ask(&log, &control, name).await;
    }
    let all = facts(&control.fingerprints().expect("readable"));
    until("a snapshot of all", || control.snapshots().written.is_some_and(|written| written.facts == all)).await;
    assert_eq!(control.snapshots().error, None);
    assert!(put_bytes(server.counters()) > 0);
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, control.stopped()).await.expect("stops");
    drop(control);

    std::fs::remove_dir_all(&state).expect("it was there");
    let shutdown = CancellationToken::new();
    let (control, restored) = Control::begin(config(&log, &state, &bucket), &shutdown).await.expect("starts");
    let restored = restored.expect("there is a snapshot");
    assert_eq!(restored.facts, all);
    let live = control.fingerprints().expect("readable");
    assert!(facts(&live) >= all, "it is there before a fact is read");
    ask(&log, &control, "f").await;
    let live = control.fingerprints().expect("readable");
    assert_eq!(replay_fingerprints(&*log, &live).await.expect("replays"), live);
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, control.stopped()).await.expect("stops");
    drop(control);

    // A bucket that does not answer keeps nobody from starting.
    server.shutdown().await;
    let shutdown = CancellationToken::new();
    let fresh = folder.path().join("fresh");
    let (control, restored) = Control::begin(config(&log, &fresh, &bucket), &shutdown).await.expect("starts");
    assert_eq!(restored, None);
    ask(&log, &control, "g").await;
    until("the failure to be told", || control.snapshots().error.is_some()).await;
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, control.stopped()).await.expect("stops");
}
