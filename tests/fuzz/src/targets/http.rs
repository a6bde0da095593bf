//! The HTTP API: its own router over a real log, real processors and a real bucket, without a listener.
//!
//! An input is a request as text: method and address, headers, an empty line, the body. `{job}` is a job that worker `w`
//! runs. Without an `authorization` header it gets the credential that its route wants, so that the lies get through.
//!
//! Whatever comes, it is answered: done, or a problem with a status of 4xx and a reason. It never panics, neither the API
//! nor a processor, and nothing that the API writes becomes a dead letter.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Once,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header},
    response::Response,
};
use http_body_util::BodyExt;
use longshore_api::{Api, ApiConfig, Checks, Limits};
use longshore_artifact::pack_key;
use longshore_collector::Settings as CollectionSettings;
use longshore_control::{Collection, Control, ControlConfig};
use longshore_log::{
    Log, Record, TopicPartition,
    local::{Config as LogConfig, LocalLog},
};
use longshore_s3::{Bucket, BucketConfig, embedded};
use longshore_schemas::{
    ArtifactId, PackId, RegionName, Timestamp,
    auth::{AUTH, RequestKey, Sender, Signed},
    codec,
    events::{ArtifactRequest, ReplicaReported, ReplicaStatus, ReportOrder, Request as LogRequest},
    http::{Assignment, CheckView, Problem, Role},
    topics,
};
use longshore_service::{
    request_keys::RequestKeys,
    signed::Signer,
    tokens::{Tokens, generate},
};
use longshore_signing::SigningKey;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{files::scratch, frames::break_value};
use crate::{Random, Subject, kind_of};

/// How long the API waits for what becomes of a request, and then this test for the API.
const OUTCOME_WAIT: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(25);
/// Claims and streams are open for so long; then the caller hangs up.
const HANGS_UP_AFTER: Duration = Duration::from_millis(30);
/// How often the running attempt beats.
const BEAT: Duration = Duration::from_secs(5);

const REGIONS: [&str; 2] = ["eu", "us"];
/// The pack that is in the bucket.
const PACK: &[u8; 4] = b"pack";
/// Of an artifact that consists of one empty folder.
const MANIFEST: &[u8] = b"LSMANIF\x01\x03\x01a\0";
const LAYOUT: &[u8] = b"LSLAYOU\x01\0\0";

/// Panics of any thread of this process.
static PANICS: AtomicU64 = AtomicU64::new(0);
static HOOK: Once = Once::new();

/// No process is around this API that could look at itself.
struct Unchecked;

#[async_trait::async_trait]
impl Checks for Unchecked {
    async fn checks(&self) -> Vec<CheckView> {
        Vec::new()
    }
}

struct World {
    runtime: Runtime,
    router: Router,
    log: Arc<LocalLog>,
    bucket: Bucket,
    tokens: Vec<(Role, String)>,
    running: Assignment,
    beaten: Instant,
    attempts: u64,
    shutdown: CancellationToken,
    _control: Control,
    _s3: embedded::Server,
    _folder: tempfile::TempDir,
}

pub(super) fn start() -> Box<dyn Subject> {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(panic);
        }));
    });
    Box::new(World::new())
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let folder = scratch();
        let shutdown = CancellationToken::new();
        let (log, control, s3, bucket, api, tokens) = runtime.block_on(async {
            let log = LocalLog::open(LogConfig::new(folder.path().join("log"), topics::ALL)).expect("a log");
            let regions: Vec<RegionName> = REGIONS.map(|region| region.parse().expect("a region")).to_vec();
            let keys = RequestKeys::of_one_secret(&[7; 32], &regions);
            let (s3, bucket) = bucket(folder.path().join("s3")).await;
            let mut config = ControlConfig::new(
                log.clone(),
                folder.path().join("state"),
                regions.clone(),
                keys.clone(),
                Arc::new(SigningKey::from_seed(&[8; 32])),
            );
            config.collection = Some(Collection {
                bucket: bucket.clone(),
                settings: CollectionSettings::default(),
                every: Duration::from_secs(60 * 60),
                installation: "fuzz".to_owned(),
            });
            let control = Control::start(config, &shutdown).expect("processors");
            let (mut list, mut tokens) = (Tokens::default(), Vec::new());
            for role in [Role::Admin, Role::Worker] {
                let (token, record) = generate("fuzz", role);
                list.push(record);
                tokens.push((role, token));
            }
            let api = Api::new(ApiConfig {
                log: log.clone(),
                read: control.read_model(),
                main_bucket: bucket.clone(),
                regions,
                tokens: list,
                signer: Signer::new([7; 32]),
                request_keys: keys.clone(),
                goal_key: Arc::new(SigningKey::from_seed(&[8; 32])),
                provenance_key: Arc::new(SigningKey::from_seed(&[7; 32])),
                announced_lasts: Duration::from_secs(60 * 60),
                limits: Limits { outcome_wait: OUTCOME_WAIT, ..Limits::default() },
                checks: Arc::new(Unchecked),
                allow_file_repositories: false,
            });
            (log, control, s3, bucket, api, tokens)
        });
        let router = api.router();
        let nothing = json!({
            "job": "default-1", "attempt": 1, "build": build()["build"], "credential": "", "beat_seconds": 10, "bases": []
        });
        let mut world = Self {
            runtime,
            router,
            log,
            bucket,
            tokens,
            running: serde_json::from_value(nothing).expect("an assignment"),
            beaten: Instant::now(),
            attempts: 0,
            shutdown,
            _control: control,
            _s3: s3,
            _folder: folder,
        };
        world.run_a_job();
        world.publish();
        world
    }

    fn token(&self, wanted: Role) -> &str {
        self.tokens.iter().find(|(role, _)| *role == wanted).map_or("", |(_, token)| token)
    }

    /// A job of a queue of its own that worker `w` runs.
    fn run_a_job(&mut self) {
        self.attempts += 1;
        let mut body = build();
        body["queue"] = json!("running");
        let (status, answer) = self.call("POST /v1/builds", self.token(Role::Admin), &body);
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        let claim = json!({ "worker": "w", "claim": format!("claim-{}", self.attempts), "wait_seconds": 20 });
        let (status, answer) = self.call("POST /v1/queues/running/claims", self.token(Role::Worker), &claim);
        assert_eq!(status, StatusCode::OK, "{answer}");
        self.running = serde_json::from_value(answer).expect("an assignment");
        self.beat();
    }

    /// Ends the running job with an artifact that every region has, and runs another.
    fn publish(&mut self) {
        for pack in [packed(MANIFEST), packed(LAYOUT)] {
            let key = pack_key(&PackId::of(&pack));
            self.runtime.block_on(self.bucket.put(&key, pack.into())).expect("a pack in the bucket");
        }
        let Assignment { job, attempt, credential, .. } = self.running.clone();
        let body = json!({ "outcome": "succeeded", "root": root(), "new_pack_bytes": 4 });
        let (status, answer) = self.call(&format!("POST /v1/jobs/{job}/attempts/{attempt}/finish"), &credential, &body);
        assert_eq!(status, StatusCode::OK, "{answer}");
        for (sequence, region) in (1..).zip(REGIONS) {
            let event = ReplicaReported {
                artifact: artifact(),
                region: region.parse().expect("a region"),
                status: ReplicaStatus::Stored,
                packs_done: 1,
                bytes_copied: 4,
                error: None,
            };
            let report = LogRequest {
                id: format!("report-{sequence}").parse().expect("an id"),
                at: Timestamp::from_millis(0),
                actor: "regions".to_owned(),
                trace: None,
                report: Some(ReportOrder { sender: format!("region/{region}"), boot: 1, sequence }),
                event: ArtifactRequest::from(event),
            };
            let key = RequestKey::new(Sender::Region(region.parse().expect("a region")), &[7; 32]);
            let (topic, artifact) = (topics::ARTIFACT_REQUESTS.name, artifact().to_string());
            let value = codec::encode(&report).expect("it can be written");
            let auth = key.sign(Signed { topic, key: artifact.as_bytes(), value: &value });
            let record = Record::new(artifact, value).with_header(AUTH, auth);
            let appended = self.log.append(topic, vec![record]);
            self.runtime.block_on(appended).expect("appended");
        }
        let (until, path) = (Instant::now() + PATIENCE, format!("GET /v1/artifacts/{}", artifact()));
        while self.call(&path, self.token(Role::Admin), &Value::Null).1["status"] != "deployable" {
            assert!(Instant::now() < until, "the artifact is not deployable");
            std::thread::yield_now();
        }
        self.run_a_job();
    }

    fn beat(&mut self) {
        self.beaten = Instant::now();
        let Assignment { job, attempt, credential, .. } = &self.running;
        let _ = self.call(&format!("POST /v1/jobs/{job}/attempts/{attempt}/beats"), credential, &json!({}));
    }

    /// A call that is in order.
    fn call(&self, what: &str, token: &str, body: &Value) -> (StatusCode, Value) {
        let text = format!("{what}\nauthorization: Bearer {token}\n\n{body}");
        let request = parse(text.as_bytes()).expect("in order");
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.expect("infallible");
            let status = response.status();
            let bytes = response.into_body().collect().await.expect("whole").to_bytes();
            (status, serde_json::from_slice(&bytes).unwrap_or_default())
        })
    }

    async fn answer(&self, request: Request<Body>, path: &str) -> Result<Answered, String> {
        let waits = path.ends_with("/claims");
        let sent = self.router.clone().oneshot(request);
        let response = match tokio::time::timeout(if waits { HANGS_UP_AFTER } else { PATIENCE }, sent).await {
            Ok(response) => response.expect("infallible"),
            Err(_) if waits => return Ok(Answered::Open),
            Err(_) => return Err(format!("no answer within {PATIENCE:?}")),
        };
        let status = response.status();
        if status.is_success() && is_stream(&response) {
            return Ok(Answered::Open);
        }
        let media =
            response.headers().get(header::CONTENT_TYPE).and_then(|media| media.to_str().ok()).unwrap_or_default();
        let media = media.to_owned();
        let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await;
        let body = body.map_err(|_| "the answer does not end".to_owned())?.map_err(|error| error.to_string())?;
        Ok(Answered::Whole(status, media, body.to_bytes().to_vec()))
    }
}

enum Answered {
    /// It waits, or streams.
    Open,
    Whole(StatusCode, String, Vec<u8>),
}

fn is_stream(response: &Response) -> bool {
    let media = response.headers().get(header::CONTENT_TYPE).and_then(|media| media.to_str().ok());
    media.is_some_and(|media| media.starts_with("text/event-stream") || media.starts_with("text/plain"))
}

impl Subject for World {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        if self.beaten.elapsed() > BEAT {
            self.beat();
        }
        let job = self.running.job.to_string();
        let Some(mut request) = parse(&replace(input, b"{job}", job.as_bytes())) else {
            return Ok("no HTTP".to_owned());
        };
        let path = request.uri().path().to_owned();
        if !request.headers().contains_key(header::AUTHORIZATION) {
            let token = match &path {
                path if path.contains("/attempts/") => &self.running.credential,
                path if path.ends_with("/claims") => self.token(Role::Worker),
                _ => self.token(Role::Admin),
            };
            let value = HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is ASCII");
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let panics = PANICS.load(Ordering::Relaxed);
        let answered = self.runtime.block_on(self.answer(request, &path))?;
        if PANICS.load(Ordering::Relaxed) > panics {
            return Err("something panicked".to_owned());
        }
        let letters = self.runtime.block_on(self.log.end_offset(&TopicPartition::new(topics::DEAD_LETTERS.name, 0)));
        if letters.map_err(|error| error.to_string())? > 0 {
            return Err("what the API wrote became a dead letter".to_owned());
        }
        let route = path.split('/').filter(|part| !part.contains(|c: char| !c.is_ascii_lowercase())).take(6);
        let route = route.collect::<Vec<_>>().join("/");
        let Answered::Whole(status, media, body) = answered else { return Ok(format!("{route}: open")) };
        let kind = check(status, &media, &body)?;
        if status.is_success() && path.ends_with("/finish") {
            self.run_a_job();
        }
        Ok(format!("{route}: {kind}"))
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let (line, body) = random.pick(&templates()).clone();
        let mut text = line.to_owned();
        if random.one_in(3) {
            text.push_str(&format!("\nidempotency-key: k{}", random.below(5)));
        }
        if random.one_in(8) {
            text.push_str(random.pick::<&str>(&[
                "\ncontent-type: text/plain",
                "\ncontent-length: 99999999",
                "\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "\nauthorization: Bearer x.y",
            ]));
        }
        let mut body = body;
        if random.one_in(2) {
            break_value(&mut body, random);
        }
        text.push_str("\n\n");
        if !body.is_null() {
            text.push_str(&body.to_string());
        }
        text.into_bytes()
    }

    fn golden(&self) -> Vec<Vec<u8>> {
        templates().into_iter().map(|(line, body)| format!("{line}\n\n{body}").into_bytes()).collect()
    }

    fn tokens(&self) -> &'static [&'static str] {
        &[
            "%2e%2e%2f",
            "%00",
            "%ff",
            "?",
            "&limit=0",
            "18446744073709551616",
            "-1",
            "null",
            "[[[[[[[[",
            "{\"a\":",
            "1e999",
            "\\ud800",
            "\\u0000",
            "ext::",
            "file:///",
            "\u{202e}",
            "{job}",
            "/v1/",
            "\"command\":[]",
        ]
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Done; or a whole problem that is the caller's.
fn check(status: StatusCode, media: &str, body: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(body);
    if status == StatusCode::ACCEPTED {
        return Err(format!("not processed within {OUTCOME_WAIT:?}: {text}"));
    }
    if status.is_success() {
        return Ok(status.to_string());
    }
    if !status.is_client_error() {
        return Err(format!("status {status}: {text}"));
    }
    let problem: Problem = serde_json::from_slice(body).map_err(|error| format!("{error}: {text}"))?;
    let whole = media == "application/problem+json" && problem.status == status.as_u16();
    if !whole || problem.detail.is_empty() || problem.title.is_empty() || !problem.kind.starts_with("/problems/") {
        return Err(format!("no problem of RFC 9457: {media} {text}"));
    }
    Ok(format!("{} {}", problem.kind, kind_of(&problem.detail)))
}

fn parse(input: &[u8]) -> Option<Request<Body>> {
    let end = input.windows(2).position(|pair| pair == b"\n\n").unwrap_or(input.len());
    let body = input.get(end + 2..).unwrap_or_default().to_vec();
    let mut lines = input[..end].split(|byte| *byte == b'\n');
    let (method, uri) = {
        let line = lines.next()?;
        let space = line.iter().position(|byte| *byte == b' ')?;
        (Method::from_bytes(&line[..space]).ok()?, Uri::try_from(escaped(&line[space + 1..])).ok()?)
    };
    let mut request = Request::builder().method(method).uri(uri).body(Body::from(body)).ok()?;
    for line in lines {
        // The server below would refuse what is no header; here it is left out.
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    Some(request)
}

/// An address without what cannot stand in one.
fn escaped(address: &[u8]) -> String {
    let mut escaped = String::with_capacity(address.len());
    for byte in address {
        if byte.is_ascii_alphanumeric() || b"/?&=-_.~:%+,;@!$'()*{}".contains(byte) {
            escaped.push(char::from(*byte));
        } else {
            escaped.push_str(&format!("%{byte:02x}"));
        }
    }
    escaped
}

fn replace(input: &[u8], place: &[u8], with: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.windows(place.len()).position(|window| window == place) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(with);
        rest = &rest[at + place.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}

async fn bucket(root: std::path::PathBuf) -> (embedded::Server, Bucket) {
    let keys = ("access".to_owned(), "secret".to_owned());
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = embedded::Config { root, listen, access_key: keys.0.clone(), secret_key: keys.1.clone() };
    let server = embedded::Server::start(config).await.expect("a bucket's server");
    let config = BucketConfig {
        endpoint: Some(server.endpoint().to_owned()),
        region: "us-east-1".to_owned(),
        bucket: "longshore-main".to_owned(),
        access_key: Some(keys.0),
        secret_key: Some(keys.1),
        path_style: true,
        ..BucketConfig::default()
    };
    let bucket = Bucket::connect(&config).await.expect("a bucket");
    bucket.ensure_exists().await.expect("a bucket");
    (server, bucket)
}

fn build() -> Value {
    json!({
        "queue": "default",
        "build": {
            "name": "web",
            "repository": "https://example.com/web.git",
            "commit": "0123456789012345678901234567890123456789",
            "command": ["make"],
            "output": "out",
            "environment": { "A": "b" },
            "labels": { "team": "web" },
            "time_limit_seconds": 60,
            "run": {
                "command": ["./web"], "environment": { "PORT": "1" }, "stop_signal": "SIGTERM", "stop_seconds": 3,
                "health": { "http_path": "/health", "successes": 1, "interval_ms": 100, "deadline_seconds": 5 },
            },
        },
    })
}

fn artifact() -> ArtifactId {
    ArtifactId::of(MANIFEST)
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("memory")
}

fn part() -> Value {
    json!([{ "pack": PackId::of(PACK), "bytes": PACK.len() }])
}

fn root() -> Value {
    let part = |bytes| {
        let pack = packed(bytes);
        json!([{ "pack": PackId::of(&pack), "bytes": pack.len() }])
    };
    json!({
        "artifact": artifact(), "size_bytes": 0, "files": 1, "chunks": 0,
        "manifest": part(MANIFEST), "layout": part(LAYOUT), "packs": [],
    })
}

/// Every route, with a body that is in order.
#[rustfmt::skip]
fn templates() -> Vec<(&'static str, Value)> {
    let (artifact, part, root) = (artifact(), part(), root());
    let waves = json!([
        { "regions": ["eu"], "zones": ["a"], "fraction_bp": 500, "bake_seconds": 1 }, { "regions": ["eu", "us"] },
    ]);
    let id = artifact.to_string();
    let with_id: &dyn Fn(&str) -> &'static str = &|path| Box::leak(path.replace("ID", &id).into_boxed_str());
    vec![
        ("GET /v1/health", Value::Null),
        ("GET /v1/checks", Value::Null),
        ("GET /v1/whoami", Value::Null),
        ("GET /v1/regions", Value::Null),
        ("GET /v1/requests/build-requests/0/0", Value::Null),
        ("GET /v1/queues", Value::Null),
        ("GET /v1/jobs?queue=default&status=queued&name=web&limit=5&after=x", Value::Null),
        ("GET /v1/jobs?commit=0123456789012345678901234567890123456789&limit=3", Value::Null),
        ("GET /v1/jobs/{job}", Value::Null),
        ("GET /v1/jobs/{job}/log?attempt=1&follow=false", Value::Null),
        ("POST /v1/partitions/queue/0/accept-loss", json!({"from": 0, "to": 1})),
        ("GET /v1/log/build-requests?from=beginning&type=BuildRequested&where=%7B%22queue%22%3A%22default%22%7D&until_end=true", Value::Null),
        ("GET /v1/topics", Value::Null),
        ("GET /v1/dead-letters?limit=2", Value::Null),
        ("GET /v1/dead-letters/0", Value::Null),
        ("POST /v1/dead-letters/0/retry", json!({})),
        ("GET /v1/verify", Value::Null),
        ("POST /v1/builds", build()),
        ("POST /v1/builds", build()),
        ("POST /v1/jobs/default-1/cancel", json!({})),
        ("GET /v1/artifacts?name=web&limit=5&after=x", Value::Null),
        (with_id("GET /v1/artifacts/ID"), Value::Null),
        (with_id("GET /v1/artifacts/ID/files?under=bin&after=bin/a&limit=5"), Value::Null),
        (with_id("GET /v1/artifacts/ID/files/web"), Value::Null),
        (with_id("GET /v1/artifacts/ID/root"), Value::Null),
        (with_id("GET /v1/artifacts/ID/provenance"), Value::Null),
        (with_id("POST /v1/artifacts/ID/packs"), json!({ "packs": [] })),
        (with_id("POST /v1/artifacts/ID/keep"), json!({ "reason": "an audit" })),
        (with_id("DELETE /v1/artifacts/ID/keep"), Value::Null),
        ("GET /v1/retention", Value::Null),
        ("POST /v1/imports/uploads", json!({ "packs": part })),
        ("POST /v1/imports", json!({ "name": "web", "origin": "https://x/1", "run": { "command": ["x"] }, "root": root, "new_pack_bytes": 4 })),
        ("GET /v1/services", Value::Null),
        ("GET /v1/services/web", Value::Null),
        ("GET /v1/services/web/fleet", Value::Null),
        ("POST /v1/services/web/deploys", json!({ "artifact": artifact, "plan": { "waves": waves, "failure_budget_bp": 100 } })),
        ("POST /v1/services/web/rollbacks", json!({ "to": artifact })),
        ("POST /v1/services/web/pause", json!({})),
        ("POST /v1/services/web/resume", json!({})),
        (with_id("DELETE /v1/services/web/holds/ID"), Value::Null),
        ("GET /v1/nodes?region=eu&service=web&limit=5&after=x&where=zone=a,status!=failed,version<7.2", Value::Null),
        ("GET /v1/nodes/n1?region=eu&limit=5", Value::Null),
        ("GET /v1/nodes/n1/services/web/log?region=eu&bytes=100", Value::Null),
        ("GET /v1/facts/builds?from=p0:0&at=2026-01-01T00:00:00Z", Value::Null),
        ("POST /v1/queues/default/claims", json!({ "worker": "w-2", "claim": "c-1", "wait_seconds": 1 })),
        ("POST /v1/jobs/{job}/attempts/1/beats", json!({})),
        ("POST /v1/jobs/{job}/attempts/1/uploads", json!({ "packs": part })),
        ("POST /v1/jobs/{job}/attempts/1/log", json!({ "stored": [{ "index": 0, "bytes": 5 }], "next": { "index": 1, "bytes": 6 } })),
        ("POST /v1/jobs/{job}/attempts/1/finish", json!({ "outcome": "succeeded", "root": root, "new_pack_bytes": 4 })),
        ("POST /v1/jobs/{job}/attempts/1/finish", json!({ "outcome": "failed", "reason": "CommandFailed", "message": "no" })),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of routes is the API's own: its source is read, so that no route is left out here.
    #[test]
    fn every_route_has_a_template() {
        let source = include_str!("../../../../producers/api/src/routes.rs");
        let routes = source.lines().filter_map(|line| {
            let line = line.trim();
            let method = match line.strip_prefix("route(") {
                Some(rest) => rest.split(',').next()?.trim(),
                None => line.strip_prefix("stream(").map(|_| "GET")?,
            };
            Some((method, line.split('"').nth(1)?))
        });
        let routes: Vec<_> = routes.filter(|(_, path)| path.starts_with("/v1/")).collect();
        assert!(routes.len() > 20, "{routes:?}");
        let templates = templates();
        for (method, path) in routes {
            let same = |line: &str| {
                let (m, p) = line.split_once(' ').expect("method and path");
                let parts: Vec<_> = p.split('?').next().unwrap_or_default().split('/').collect();
                let wanted: Vec<_> = path.split('/').collect();
                let fits = |(part, wanted): (&&str, &&str)| wanted.starts_with('{') || part == wanted;
                m == method && parts.len() == wanted.len() && parts.iter().zip(&wanted).all(fits)
            };
            assert!(templates.iter().any(|(line, _)| same(line)), "{method} {path} has no template");
        }
    }
}
