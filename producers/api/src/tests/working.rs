//! What a worker does, with a real bucket.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::Method;
use bytes::Bytes;
use longshore_artifact::{ArtifactRoot, Bases, PackSink, SinkError, pack_key, root_key};
use longshore_log::{ReadLimit, TopicPartition};
use longshore_schemas::{
    ArtifactId, PackId, codec,
    envelope::Envelope,
    events::{PackHint, PacksUploaded, Request, UploadedPack, WorkerReady, WorkerSignal},
    http::{Assignment, ClaimedJob, JobStatus, JobView, LogAnswer, Role, UploadsAnswer},
    topics,
};
use longshore_signing::SigningKey;
use serde_json::{Value, json};

use super::world::{Answered, PATIENCE, World, artifact, build};

fn claim(wait_seconds: u32) -> Value {
    json!({ "worker": "w", "claim": "c-1", "wait_seconds": wait_seconds })
}

fn claimed() -> ClaimedJob {
    ClaimedJob {
        job: "default-1".parse().expect("a job"),
        attempt: 1,
        worker: "w".parse().expect("a worker"),
        claim: "c-1".parse().expect("a claim"),
        build: serde_json::from_value(build()["build"].clone()).expect("a build"),
    }
}

#[derive(Default)]
struct Packs(Mutex<Vec<Bytes>>);

#[async_trait::async_trait]
impl PackSink for Packs {
    async fn put(&self, _: PackId, bytes: Bytes) -> Result<(), SinkError> {
        self.0.lock().expect("not poisoned").push(bytes);
        Ok(())
    }
}

/// An artifact of three packs, and its packs' bytes.
pub(super) async fn packed() -> (ArtifactRoot, Vec<Bytes>) {
    let output = tempfile::NamedTempFile::with_prefix("output-").expect("a file");
    std::fs::write(output.path(), "the chunk").expect("written");
    let packs = Arc::new(Packs::default());
    let published =
        longshore_artifact::publish(output.path(), Bases::default(), packs.clone()).await.expect("published");
    let packs = packs.0.lock().expect("not poisoned").clone();
    (published.root, packs)
}

impl World {
    async fn attempt(&self, route: &str, body: &Value) -> Answered {
        let credential = self.credential("default-1", 1, "w");
        self.call(Method::POST, &format!("/v1/jobs/default-1/attempts/1/{route}"), &credential, body).await
    }

    async fn signals(&self) -> u64 {
        let partition = topics::partition_of(b"default", topics::WORKER_SIGNALS.partitions);
        let of = TopicPartition::new(topics::WORKER_SIGNALS.name, partition);
        longshore_log::Log::end_offset(&*self.log, &of).await.expect("an end")
    }
}

#[tokio::test]
async fn a_claim_waits_for_its_job() {
    let world = World::new().await;
    let claims = "/v1/queues/default/claims";
    world.post(claims, Role::Worker, &claim(0)).await.expect_status(204);
    assert_eq!(world.signals().await, 1, "the claim was announced");
    let body = claim(30);
    let waiting = world.post(claims, Role::Worker, &body);
    let assigning = async {
        let partition = topics::partition_of(b"default", topics::WORKER_SIGNALS.partitions);
        let of = TopicPartition::new(topics::WORKER_SIGNALS.name, partition);
        let mut reader = longshore_log::Log::reader(&*world.log, vec![(of, 1)]).expect("a reader");
        let signals = reader.read(ReadLimit::default()).await.expect("a signal");
        let value = signals[0].record.value.clone().expect("a value");
        let signal: Request<WorkerSignal> = codec::decode(&value).expect("a signal");
        let WorkerSignal::WorkerReady(WorkerReady { claim, expires_at, .. }) = signal.event else { panic!("no claim") };
        assert_eq!(claim.as_str(), "c-1");
        assert_eq!(expires_at.since(signal.at).as_secs(), 15);
        world.toy.claimed.send_replace(Some(claimed()));
    };
    let (answer, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(waiting, assigning) }).await.expect("in time");
    let assignment: Assignment = answer.expect_status(200).json();
    assert_eq!((assignment.job.to_string().as_str(), assignment.attempt), ("default-1", 1));

    // A repeated claim gets the same job and announces nothing.
    let signals = world.signals().await;
    let again: Assignment = world.post(claims, Role::Worker, &claim(30)).await.expect_status(200).json();
    assert_eq!(again.job, assignment.job);
    assert_eq!(world.signals().await, signals);

    // The credential is that attempt's.
    world.running("default-1", 1);
    let beats = "/v1/jobs/default-1/attempts/1/beats";
    let answer = world.call(Method::POST, beats, &assignment.credential, &Value::Null).await.expect_status(200);
    assert_eq!(answer.json::<Value>(), json!({ "current": true }));
    world.post(claims, Role::Worker, &claim(61)).await.expect_problem(422, "wait_seconds");
    let other = json!({ "worker": "other", "claim": "c-1", "wait_seconds": 1 });
    world.post(claims, Role::Worker, &other).await.expect_problem(409, "is of worker w");
}

#[tokio::test]
async fn a_claim_whose_call_breaks_off_is_taken_back() {
    let world = World::new().await;
    let body = claim(30);
    let partition = topics::partition_of(b"default", topics::WORKER_SIGNALS.partitions);
    let of = TopicPartition::new(topics::WORKER_SIGNALS.name, partition);
    let mut reader = longshore_log::Log::reader(&*world.log, vec![(of, 0)]).expect("a reader");
    let mut heard = async || {
        let signals = tokio::time::timeout(PATIENCE, reader.read(ReadLimit::default())).await.expect("in time");
        let value = signals.expect("a signal")[0].record.value.clone().expect("a value");
        let signal: Request<WorkerSignal> = codec::decode(&value).expect("a signal");
        let WorkerSignal::WorkerReady(WorkerReady { claim, expires_at, .. }) = signal.event else { panic!("no claim") };
        (claim.to_string(), expires_at.since(signal.at).as_secs())
    };
    tokio::select! {
        answer = world.post("/v1/queues/default/claims", Role::Worker, &body) => panic!("answered {}", answer.status),
        signal = heard() => assert_eq!(signal, ("c-1".to_owned(), 15)),
    }
    assert_eq!(heard().await, ("c-1".to_owned(), 0));
}

#[tokio::test]
async fn an_assignment_names_bases_that_can_be_read() {
    let world = World::new().await;
    let (root, packs) = packed().await;
    world.toy.claimed.send_replace(Some(claimed()));
    world.toy.state().artifacts.push(artifact(ArtifactId::of(b"nowhere"), true));
    world.toy.state().artifacts.push(artifact(root.artifact, true));
    world.bucket.put(&root_key(&root.artifact), root.to_json().into()).await.expect("stored");
    let claims = "/v1/queues/default/claims";
    let without: Assignment = world.post(claims, Role::Worker, &claim(1)).await.expect_status(200).json();
    assert!(without.bases.is_empty(), "the manifest's pack is missing");
    for bytes in packs {
        world.bucket.put(&pack_key(&PackId::of(&bytes)), bytes).await.expect("stored");
    }
    let with: Assignment = world.post(claims, Role::Worker, &claim(1)).await.expect_status(200).json();
    assert_eq!(with.bases.len(), 1);
    assert_eq!(with.bases[0].artifact, root.artifact);
    let got = http().get(&with.bases[0].packs[0].url).send().await.expect("sent").bytes().await.expect("read");
    assert_eq!(PackId::of(&got), with.bases[0].packs[0].pack);
}

#[tokio::test]
async fn an_attempt_uploads_logs_and_finishes() {
    let world = World::new().await;
    world.running("default-1", 1);
    let (root, packs) = packed().await;
    let mut said = root.clone();
    // A worker's own word on where its artifact comes from is worth nothing.
    said.provenance =
        Some(longshore_signing::sign(&longshore_provenance::STATEMENT, b"{}", &SigningKey::from_seed(&[9; 32])));
    let finish = json!({ "outcome": "succeeded", "root": said, "new_pack_bytes": 5 });
    world.attempt("finish", &finish).await.expect_problem(422, "3 of 3 packs are not in the main bucket");
    assert_eq!(world.records().await, 0, "nothing was written");

    let sizes: Vec<_> = root.all_packs().iter().map(|pack| json!({ "pack": pack.pack, "bytes": pack.bytes })).collect();
    let answer: UploadsAnswer = world.attempt("uploads", &json!({ "packs": sizes })).await.expect_status(200).json();
    assert_eq!((answer.uploads.len(), &answer.already_stored[..]), (3, &[][..]));
    for upload in answer.uploads {
        let bytes = packs.iter().find(|bytes| PackId::of(bytes) == upload.pack).expect("one of them").clone();
        assert_eq!(put(&upload.url, &upload.headers, bytes.clone()).await, 200);
        assert_eq!(put(&upload.url, &upload.headers, bytes).await, 412, "what is there stays");
    }
    let answer: UploadsAnswer = world.attempt("uploads", &json!({ "packs": sizes })).await.expect_status(200).json();
    let all: Vec<PackId> = root.all_packs().iter().map(|pack| pack.pack).collect();
    assert_eq!((answer.uploads.len(), answer.already_stored), (3, all), "none needs another upload");
    let other = json!({ "packs": [{ "pack": root.packs[0].pack, "bytes": root.packs[0].bytes + 1 }] });
    let answer: UploadsAnswer = world.attempt("uploads", &other).await.expect_status(200).json();
    assert_eq!(answer.already_stored, [], "the one there has another size");
    let answer = world.attempt("log", &json!({ "stored": [], "next": { "index": 0, "bytes": 6 } })).await;
    let answer: LogAnswer = answer.expect_status(200).json();
    assert_eq!(put(&answer.url.expect("a place"), &answer.headers, Bytes::from_static(b"hello\n")).await, 200);
    let stored = json!({ "stored": [{ "index": 0, "bytes": 6 }], "next": null });
    world.attempt("log", &stored).await.expect_status(200);

    let view: JobView = world.attempt("finish", &finish).await.expect_status(200).json();
    assert_eq!(view.status, JobStatus::Succeeded);
    let summary = view.artifact.expect("an artifact");
    let pack_bytes: usize = packs.iter().map(Bytes::len).sum();
    assert_eq!((summary.packs, summary.pack_bytes, summary.new_pack_bytes), (3, pack_bytes as u64, 5));
    assert!(world.bucket.head(&root_key(&root.artifact)).await.expect("asked").is_some());
    world.toy.state().artifacts.push(artifact(root.artifact, false));
    let provenance = format!("/v1/artifacts/{}/provenance", root.artifact);
    let envelope: Envelope = world.get(&provenance).await.expect_status(200).json();
    let trusted = (*SigningKey::from_seed(&[7; 32]).public()).into();
    let verified = longshore_provenance::verify(&envelope, &trusted, &root.artifact).expect("valid");
    let details = verified.statement.predicate.run_details;
    assert_eq!(details.builder.id, "urn:longshore:worker:w");
    assert_eq!(details.metadata.invocation_id.as_deref(), Some("default-1/1"));

    // The same once more is the same; anything else comes too late.
    let records = world.records().await;
    world.attempt("finish", &finish).await.expect_status(200);
    let failed = json!({ "outcome": "failed", "reason": "CommandFailed", "message": "status 1" });
    world.attempt("finish", &failed).await.expect_problem(409, "attempt 1 of default-1 is over");
    world.attempt("uploads", &json!({ "packs": sizes })).await.expect_problem(409, "is over");
    world.attempt("log", &stored).await.expect_problem(409, "is over");
    assert_eq!(world.attempt("beats", &Value::Null).await.json::<Value>(), json!({ "current": false }));
    assert_eq!(world.records().await, records, "nothing was written");
    assert_eq!(world.get("/v1/jobs/default-1/log").await.text(), "hello\n");
}

#[tokio::test]
async fn regions_are_told_what_a_running_attempt_has_stored() {
    let world = World::new().await;
    let stored = json!({ "packs": [], "stored": [{ "pack": PackId::of(b"x"), "bytes": 7 }] });
    world.attempt("uploads", &stored).await.expect_problem(409, "is over");
    world.running("default-1", 1);
    world.attempt("uploads", &json!({ "packs": [] })).await.expect_status(200);
    assert_eq!(world.records().await, 0, "there is nothing to tell");
    world.attempt("uploads", &stored).await.expect_status(200);
    let partition = topics::partition_of(b"default-1/1", topics::PACK_HINTS.partitions);
    let of = TopicPartition::new(topics::PACK_HINTS.name, partition);
    let mut reader = longshore_log::Log::reader(&*world.log, vec![(of, 0)]).expect("a reader");
    let hints =
        tokio::time::timeout(PATIENCE, reader.read(ReadLimit::default())).await.expect("in time").expect("a hint");
    let hint: Request<PackHint> = codec::decode(&hints[0].record.value.clone().expect("a value")).expect("a hint");
    let PackHint::PacksUploaded(PacksUploaded { job, attempt, packs }) = hint.event;
    assert_eq!((job.to_string().as_str(), attempt), ("default-1", 1));
    assert_eq!(packs, [UploadedPack { pack: PackId::of(b"x"), bytes: 7 }]);
}

#[tokio::test]
async fn an_artifact_that_nobody_could_read_is_refused() {
    let world = World::new().await;
    world.running("default-1", 1);
    let (root, packs) = packed().await;
    for bytes in &packs {
        world.bucket.put(&pack_key(&PackId::of(bytes)), bytes.clone()).await.expect("stored");
    }
    type Lie = fn(&mut ArtifactRoot);
    let lies: [(Lie, &str); 6] = [
        (|root| root.artifact = ArtifactId::of(b"other"), "it is not this artifact's"),
        (|root| root.size_bytes += 1, "its packs or counts are not those"),
        (|root| root.files = 0, "more than 0 entries"),
        (|root| root.files = 1_000_000_000, "are possible"),
        (|root| root.packs.clear(), "its packs or counts are not those"),
        (|root| std::mem::swap(&mut root.manifest, &mut root.layout), "the manifest is damaged"),
    ];
    for (lie, says) in lies {
        let mut root = root.clone();
        lie(&mut root);
        let finish = json!({ "outcome": "succeeded", "root": root, "new_pack_bytes": 5 });
        world.attempt("finish", &finish).await.expect_problem(422, says);
    }
    assert_eq!(world.records().await, 0, "nothing was written");
    let finish = json!({ "outcome": "succeeded", "root": root, "new_pack_bytes": 5 });
    let view: JobView = world.attempt("finish", &finish).await.expect_status(200).json();
    assert_eq!(view.status, JobStatus::Succeeded);
}

#[tokio::test]
async fn what_an_attempt_may_not_send() {
    let world = World::new().await;
    world.running("default-1", 1);
    let pack = PackId::of(b"x");
    let many: Vec<_> = (0..65).map(|_| json!({ "pack": pack, "bytes": 1 })).collect();
    let (root, _) = packed().await;
    let mut foreign = serde_json::to_value(&root).expect("JSON");
    foreign["artifact"] = json!("abc");
    let table = [
        ("uploads", json!({ "packs": [{ "pack": pack, "bytes": 9_000_000 }] }), "a pack has 1 to 8388608"),
        ("uploads", json!({ "packs": [{ "pack": pack, "bytes": 0 }] }), "a pack has 1 to"),
        ("uploads", json!({ "packs": many }), "packs: name at most 64"),
        ("uploads", json!({ "packs": [], "stored": many }), "stored: name at most 64"),
        ("uploads", json!({ "packs": [], "stored": [{ "pack": pack, "bytes": 0 }] }), "stored: "),
        ("log", json!({ "stored": [], "next": { "index": 0, "bytes": 262_145 } }), "sizes 1 to 262144"),
        ("log", json!({ "stored": [], "nxt": null }), "nxt"),
        ("finish", json!({ "outcome": "succeeded", "root": foreign, "new_pack_bytes": 0 }), "root.artifact"),
        ("finish", json!({ "outcome": "succeeded", "root": root, "new_pack_bytes": 999 }), "new_pack_bytes"),
        ("finish", json!({ "outcome": "won" }), "won"),
    ];
    for (route, body, says) in table {
        world.attempt(route, &body).await.expect_problem(422, says);
    }
    assert_eq!(world.records().await, 0, "nothing was written");
    let failed = json!({ "outcome": "failed", "reason": "OutputMissing", "message": "out is not there" });
    let view: JobView = world.attempt("finish", &failed).await.expect_status(200).json();
    assert_eq!(view.failure.expect("a failure").message, "out is not there");
}

pub(super) fn http() -> reqwest::Client {
    // Plain HTTP only, but the client wants to know which cryptography it would use.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(10)).build().expect("a client")
}

pub(super) async fn put(url: &str, headers: &[(String, String)], bytes: Bytes) -> u16 {
    let put = headers.iter().fold(http().put(url), |put, (name, value)| put.header(name, value));
    put.body(bytes).send().await.expect("sent").status().as_u16()
}
