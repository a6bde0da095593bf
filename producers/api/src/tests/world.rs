//! What each test begins with: a log, a bucket, tokens of every role, and the router.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use longshore_log::{
    Log, TopicPartition,
    local::{Config as LogConfig, LocalLog},
};
use longshore_s3::{Bucket, BucketConfig, embedded};
use longshore_schemas::{
    ArtifactId, JobId, WorkerId,
    events::{ArtifactSource, ArtifactSummary, BuildSpec, ReplicaStatus},
    http::{ArtifactStatus, ArtifactView, CheckView, JobStatus, JobView, Problem, ReplicaView, Role, Source},
    topics,
};
use longshore_service::{
    request_keys::RequestKeys,
    signed::Signer,
    tokens::{Tokens, generate},
};
use longshore_signing::SigningKey;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::toy::{LONG_AGO, Toy};
use crate::{Api, ApiConfig, Checks, Limits, access::AttemptCredential};

pub(super) const ROLES: [Role; 6] =
    [Role::Viewer, Role::Builder, Role::Deployer, Role::Admin, Role::Worker, Role::Node];
pub(super) const COMMIT: &str = "0123456789012345678901234567890123456789";

/// Longer than anything here takes; a test that waits so long has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct World {
    pub api: Api,
    pub log: Arc<LocalLog>,
    pub toy: Arc<Toy>,
    pub bucket: Bucket,
    tokens: BTreeMap<Role, String>,
    _s3: embedded::Server,
    _folder: tempfile::TempDir,
}

/// A process that finds nothing wrong with itself.
struct Well;

#[async_trait::async_trait]
impl Checks for Well {
    async fn checks(&self) -> Vec<CheckView> {
        vec![CheckView::ok("disk", "there is one")]
    }
}

/// Those of the control nodes and of both regions.
pub(super) fn request_keys() -> RequestKeys {
    RequestKeys::of_one_secret(&[7; 32], &["eu", "us"].map(|name| name.parse().expect("a region")))
}

pub(super) fn goal_key() -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed(&[8; 32]))
}

pub(super) struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(Limits { outcome_wait: Duration::from_millis(200), ..Limits::default() }).await
    }

    pub(super) async fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = LocalLog::open(LogConfig::new(folder.path().join("log"), topics::ALL)).expect("a log");
        let (s3, bucket) = bucket(&folder).await;
        let toy = Arc::new(Toy::new(log.clone()));
        let mut list = Tokens::default();
        let mut tokens = BTreeMap::new();
        for role in ROLES {
            let (token, record) = generate(format!("some-{role:?}").to_lowercase(), role);
            list.push(record);
            tokens.insert(role, token);
        }
        let api = Api::new(ApiConfig {
            log: log.clone(),
            read: toy.clone(),
            main_bucket: bucket.clone(),
            regions: vec!["eu".parse().expect("a region"), "us".parse().expect("a region")],
            tokens: list,
            signer: Signer::new([7; 32]),
            request_keys: request_keys(),
            goal_key: goal_key(),
            provenance_key: Arc::new(SigningKey::from_seed(&[7; 32])),
            announced_lasts: Duration::from_secs(60 * 60),
            limits,
            checks: Arc::new(Well),
            allow_file_repositories: false,
        });
        Self { api, log, toy, bucket, tokens, _s3: s3, _folder: folder }
    }

    pub(super) fn router(&self) -> Router {
        self.api.router()
    }

    pub(super) fn token(&self, role: Role) -> &str {
        &self.tokens[&role]
    }

    /// The credential of an attempt.
    pub(super) fn credential(&self, job: &str, attempt: u32, worker: &str) -> String {
        let (job, worker) = (job.parse().expect("a job"), worker.parse().expect("a worker"));
        self.api.shared.attempts.sign(&AttemptCredential { job, attempt, worker }).expect("signed")
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answered {
        let response = self.router().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.expect("it ends").expect("whole").to_bytes();
        Answered { status: parts.status, headers: parts.headers, body }
    }

    pub(super) async fn get(&self, path: &str) -> Answered {
        self.send(request(Method::GET, path, self.token(Role::Viewer)).body(Body::empty()).expect("valid")).await
    }

    pub(super) async fn call(&self, method: Method, path: &str, token: &str, body: &Value) -> Answered {
        self.send(request(method, path, token).body(Body::from(body.to_string())).expect("valid")).await
    }

    pub(super) async fn post(&self, path: &str, role: Role, body: &Value) -> Answered {
        self.call(Method::POST, path, self.token(role), body).await
    }

    pub(super) async fn post_with_key(&self, path: &str, role: Role, key: &str, body: &Value) -> Answered {
        let request = request(Method::POST, path, self.token(role)).header("idempotency-key", key);
        self.send(request.body(Body::from(body.to_string())).expect("valid")).await
    }

    /// A job that worker `w` runs.
    pub(super) fn running(&self, job: &str, attempt: u32) {
        let job: JobId = job.parse().expect("a job");
        let build = serde_json::from_value(build()["build"].clone()).expect("a build");
        let mut view = job_view(job.clone(), build);
        let worker: WorkerId = "w".parse().expect("a worker");
        (view.status, view.attempt, view.worker) = (JobStatus::Running, attempt, Some(worker));
        self.toy.state().jobs.insert(job, view);
    }

    /// How many records all topics hold together.
    pub(super) async fn records(&self) -> u64 {
        let mut records = 0;
        for topic in topics::ALL {
            for partition in 0..topic.partitions {
                let of = TopicPartition::new(topic.name, partition);
                records += self.log.end_offset(&of).await.expect("an end");
            }
        }
        records
    }
}

impl Answered {
    pub(super) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Checks that this is a whole problem of this status whose detail holds the text.
    #[track_caller]
    pub(super) fn expect_problem(&self, status: u16, says: &str) -> Problem {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem: Problem = self.json();
        assert_eq!(problem.status, status);
        assert!(problem.kind.starts_with("/problems/") && !problem.title.is_empty(), "{problem:?}");
        assert!(problem.detail.contains(says), "{:?} says {says:?}", problem.detail);
        problem
    }

    #[track_caller]
    pub(super) fn expect_status(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }
}

pub(super) fn request(method: Method, path: &str, token: &str) -> axum::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
}

async fn bucket(folder: &tempfile::TempDir) -> (embedded::Server, Bucket) {
    let config = embedded::Config {
        root: folder.path().join("s3"),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        access_key: "access".to_owned(),
        secret_key: "secret".to_owned(),
    };
    let server = embedded::Server::start(config).await.expect("started");
    let config = BucketConfig {
        endpoint: Some(server.endpoint().to_owned()),
        region: "us-east-1".to_owned(),
        bucket: "longshore-main".to_owned(),
        access_key: Some("access".to_owned()),
        secret_key: Some("secret".to_owned()),
        path_style: true,
        ..BucketConfig::default()
    };
    let bucket = Bucket::connect(&config).await.expect("connected");
    bucket.ensure_exists().await.expect("made");
    (server, bucket)
}

/// The body of a build that is in order.
pub(super) fn build() -> Value {
    json!({
        "queue": "default",
        "build": {
            "name": "web",
            "repository": "https://example.com/web.git",
            "commit": COMMIT,
            "command": ["make"],
            "output": "out",
            "run": { "command": ["./web"] },
        },
    })
}

pub(super) fn job_view(job: JobId, build: BuildSpec) -> JobView {
    JobView {
        job,
        status: JobStatus::Queued,
        build,
        attempt: 0,
        worker: None,
        queued_at: LONG_AGO,
        started_at: None,
        ended_at: None,
        ahead: Some(0),
        artifact: None,
        failure: None,
    }
}

/// An artifact that `eu` has and of which `us` has 3 of 12 packs, or all.
pub(super) fn artifact(id: ArtifactId, complete: bool) -> ArtifactView {
    let replica = |region: &str, stored: bool| ReplicaView {
        region: region.parse().expect("a region"),
        status: Some(if stored { ReplicaStatus::Stored } else { ReplicaStatus::Copying }),
        packs_done: if stored { 12 } else { 3 },
        packs: 12,
        bytes_copied: 1,
        bytes_done: u64::from(stored),
        bytes: 1,
        bytes_per_second: None,
        expected_at: None,
        error: None,
        last_error: None,
        failures: 0,
        reported_at: None,
    };
    let build: BuildSpec = serde_json::from_value(build()["build"].clone()).expect("a build");
    ArtifactView {
        summary: ArtifactSummary {
            artifact: id,
            name: build.name,
            size_bytes: 1,
            files: 1,
            chunks: 1,
            packs: 12,
            pack_bytes: 1,
            new_pack_bytes: 1,
        },
        status: if complete { ArtifactStatus::Deployable } else { ArtifactStatus::Replicating },
        source: Source::Built(ArtifactSource {
            job: "default-1".parse().expect("a job"),
            repository: build.repository,
            commit: build.commit,
        }),
        run: build.run,
        built_at: LONG_AGO,
        completed_at: None,
        replicas: vec![replica("eu", true), replica("us", complete)],
        pinned_by: Vec::new(),
        retired_at: None,
        wanted_by: None,
    }
}
