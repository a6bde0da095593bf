//! A server as the worker sees it, in memory, with a real bucket; and real repositories.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use longshore_artifact::{ArtifactRoot, pack_key};
use longshore_proxy::{Call, Fault, Link, Proxy};
use longshore_s3::{Bucket, BucketConfig, embedded};
use longshore_schemas::{
    JobId, PackId,
    events::BuildSpec,
    http::{
        Assignment, BaseArtifact, BeatAnswer, ClaimBody, FinishBody, LogAnswer, LogBody, PACKS_MISSING, PackUrl,
        Problem, Upload, UploadsAnswer, UploadsBody,
    },
};
use longshore_worker::{GitLimits, GuardProgram, Worker, WorkerConfig};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(90);
const URL_VALID: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Events {
    waiting: VecDeque<Assignment>,
    claimed: HashMap<String, Assignment>,
    pub beats: HashMap<String, u32>,
    /// Jobs whose attempt is over.
    pub over: Vec<String>,
    pub uploaded: Vec<String>,
    /// Packs that the worker said are stored.
    pub told: Vec<String>,
    /// Until one is told, there is no place for a second pack.
    pub holds_back: bool,
    /// Sizes of registered segments, by job.
    pub segments: HashMap<String, BTreeMap<u32, u32>>,
    pub finished: HashMap<String, FinishBody>,
    /// Answers to calls other than claims, before they work.
    pub failures: u32,
    /// A pack that is collected just before the next success.
    pub collects: Option<PackId>,
}

pub struct Server {
    pub events: Mutex<Events>,
    pub changed: Notify,
    pub bucket: Bucket,
    /// The same bucket as workers reach it.
    pub outside: Mutex<Bucket>,
}

impl Server {
    pub fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().expect("not poisoned")
    }

    /// Waits until the events give something.
    pub async fn wait<T>(&self, what: &str, mut find: impl FnMut(&Events) -> Option<T>) -> T {
        let found = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = find(&self.events()) {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
    }

    pub async fn log(&self, job: &str) -> String {
        let segments = self.events().segments.get(job).cloned().unwrap_or_default();
        let mut log = Vec::new();
        for (index, bytes) in segments {
            let segment = self.bucket.get(&format!("logs/{job}/1/{index}"), 1 << 20).await.expect("stored");
            assert_eq!(segment.len(), bytes as usize);
            log.extend_from_slice(&segment);
        }
        String::from_utf8(log).expect("UTF-8")
    }

    async fn bases(&self, root: &ArtifactRoot) -> BaseArtifact {
        let mut packs = Vec::new();
        for pack in root.manifest.iter().chain(&root.layout) {
            let url = self.bucket.presign_get(&pack_key(&pack.pack), URL_VALID).await.expect("signed").url;
            packs.push(PackUrl { pack: pack.pack, url });
        }
        BaseArtifact { artifact: root.artifact, root: serde_json::to_value(root).expect("JSON"), packs }
    }
}

type App = State<Arc<Server>>;
type Attempt = UrlPath<(JobId, u32)>;
type Answer<T> = Result<Json<T>, StatusCode>;

async fn claim(State(server): App, Json(body): Json<ClaimBody>) -> Answer<Assignment> {
    let granted = async {
        loop {
            let changed = server.changed.notified();
            {
                let mut events = server.events();
                let claim = body.claim.to_string();
                if let Some(assignment) = events.claimed.get(&claim) {
                    return assignment.clone();
                }
                if let Some(assignment) = events.waiting.pop_front() {
                    events.claimed.insert(claim, assignment.clone());
                    // A lost answer: the claim is repeated and gets the same job.
                    return assignment;
                }
            }
            changed.await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), granted).await.map(Json).map_err(|_| StatusCode::NO_CONTENT)
}

fn fail_sometimes(server: &Server) -> Result<(), StatusCode> {
    let mut events = server.events();
    if events.failures == 0 {
        return Ok(());
    }
    events.failures -= 1;
    Err(StatusCode::SERVICE_UNAVAILABLE)
}

async fn beat(State(server): App, UrlPath((job, _)): Attempt) -> Answer<BeatAnswer> {
    let current = {
        let mut events = server.events();
        *events.beats.entry(job.to_string()).or_default() += 1;
        !events.over.contains(&job.to_string())
    };
    server.changed.notify_waiters();
    Ok(Json(BeatAnswer { current }))
}

async fn uploads(State(server): App, Json(body): Json<UploadsBody>) -> Answer<UploadsAnswer> {
    fail_sometimes(&server)?;
    {
        let mut events = server.events();
        events.told.extend(body.stored.iter().map(|pack| pack_key(&pack.pack)));
        let more = events.uploaded.len() + body.packs.len() > 1;
        if events.holds_back && events.told.is_empty() && more && !body.packs.is_empty() {
            return Err(StatusCode::SERVICE_UNAVAILABLE);
        }
    }
    let (mut uploads, mut already_stored) = (Vec::new(), Vec::new());
    for pack in body.packs {
        let key = pack_key(&pack.pack);
        if server.bucket.head(&key).await.expect("an answer") == Some(pack.bytes) {
            already_stored.push(pack.pack);
        }
        let outside = server.outside.lock().expect("not poisoned").clone();
        let put = outside.presign_put(&key, URL_VALID, pack.bytes).await.expect("signed");
        server.events().uploaded.push(key);
        uploads.push(Upload { pack: pack.pack, url: put.url, headers: put.headers });
    }
    Ok(Json(UploadsAnswer { uploads, already_stored }))
}

async fn log(State(server): App, UrlPath((job, attempt)): Attempt, Json(body): Json<LogBody>) -> Answer<LogAnswer> {
    fail_sometimes(&server)?;
    {
        let mut events = server.events();
        let segments = events.segments.entry(job.to_string()).or_default();
        segments.extend(body.stored.iter().map(|segment| (segment.index, segment.bytes)));
    }
    server.changed.notify_waiters();
    let Some(next) = body.next else { return Ok(Json(LogAnswer { url: None, headers: Vec::new() })) };
    let key = format!("logs/{job}/{attempt}/{}", next.index);
    let put = server.bucket.presign_put(&key, URL_VALID, next.bytes.into()).await.expect("signed");
    Ok(Json(LogAnswer { url: Some(put.url), headers: put.headers }))
}

async fn finish(
    State(server): App,
    UrlPath((job, _)): Attempt,
    Json(body): Json<FinishBody>,
) -> Result<Json<()>, Response> {
    fail_sometimes(&server).map_err(IntoResponse::into_response)?;
    let collected = server.events().collects.take();
    if let Some(pack) = collected {
        server.bucket.delete(&pack_key(&pack)).await.expect("deleted");
        let problem = Problem {
            kind: format!("/problems/{PACKS_MISSING}"),
            title: "Packs are missing".to_owned(),
            status: 422,
            detail: format!("root: {pack} is not there"),
            request: None,
        };
        return Err((StatusCode::UNPROCESSABLE_ENTITY, Json(problem)).into_response());
    }
    server.events().finished.insert(job.to_string(), body);
    server.changed.notify_waiters();
    Ok(Json(()))
}

/// A server, its bucket, one worker and a repository.
pub struct Lab {
    pub folder: TempDir,
    pub server: Arc<Server>,
    pub repository: PathBuf,
    stop: CancellationToken,
    worker: Option<JoinHandle<Result<(), longshore_worker::Error>>>,
    serving: JoinHandle<()>,
    s3: embedded::Server,
    bucket_config: BucketConfig,
    jobs: u32,
}

impl Lab {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (access_key, secret_key) = ("access".to_owned(), "a secret".to_owned());
        let s3 = embedded::Server::start(embedded::Config {
            root: folder.path().join("s3"),
            listen: "127.0.0.1:0".parse().expect("an address"),
            access_key: access_key.clone(),
            secret_key: secret_key.clone(),
        });
        let s3 = s3.await.expect("started");
        let config = BucketConfig {
            endpoint: Some(s3.endpoint().to_owned()),
            region: "us-east-1".to_owned(),
            bucket: "longshore-main".to_owned(),
            access_key: Some(access_key),
            secret_key: Some(secret_key),
            path_style: true,
            ..BucketConfig::default()
        };
        let bucket_config = config.clone();
        let bucket = Bucket::connect(&config).await.expect("connected");
        bucket.ensure_exists().await.expect("made");
        let outside = Mutex::new(bucket.clone());
        let server = Arc::new(Server { events: Mutex::default(), changed: Notify::new(), bucket, outside });
        let router = Router::new()
            .route("/v1/queues/{queue}/claims", post(claim))
            .route("/v1/jobs/{job}/attempts/{attempt}/beats", post(beat))
            .route("/v1/jobs/{job}/attempts/{attempt}/uploads", post(uploads))
            .route("/v1/jobs/{job}/attempts/{attempt}/log", post(log))
            .route("/v1/jobs/{job}/attempts/{attempt}/finish", post(finish))
            .with_state(server.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        let stop = CancellationToken::new();
        let config = WorkerConfig {
            api: format!("http://{address}").parse().expect("a URL"),
            token: "ls_worker_test".to_owned(),
            queues: vec!["default".parse().expect("a queue")],
            name: "w-1".parse().expect("a worker"),
            work_dir: folder.path().join("work"),
            passthrough: Vec::new(),
            allow_file_repositories: true,
            git: GitLimits::default(),
            guard: GuardProgram { program: env!("CARGO_BIN_EXE_longshore-guard").into(), arguments: Vec::new() },
        };
        let worker = tokio::spawn(Worker::run(config, stop.clone()));
        let repository = folder.path().join("repository");
        git(folder.path(), &["init", "--quiet", "--initial-branch=main", "repository"]);
        Self { folder, server, repository, stop, worker: Some(worker), serving, s3, bucket_config, jobs: 0 }
    }

    /// From now on workers reach the bucket by this proxy before its server.
    pub async fn plan(&self, plan: impl Fn(&Call) -> Fault + Send + Sync + 'static) -> Proxy {
        let proxy = Proxy::start(self.s3.endpoint(), Link::default(), plan).await.expect("a proxy");
        let endpoint = Some(proxy.endpoint().to_owned());
        let config = BucketConfig { endpoint, ..self.bucket_config.clone() };
        let outside = Bucket::connect(&config).await.expect("connected");
        *self.server.outside.lock().expect("not poisoned") = outside;
        proxy
    }

    /// Writes the files and commits them; answers the commit.
    pub fn commit(&self, files: &[(&str, &[u8])]) -> String {
        for (path, bytes) in files {
            let path = self.repository.join(path);
            std::fs::create_dir_all(path.parent().expect("a file")).expect("made");
            std::fs::write(path, bytes).expect("written");
        }
        git(&self.repository, &["add", "--all"]);
        git(&self.repository, &["commit", "--quiet", "--allow-empty", "--message", "test"]);
        git(&self.repository, &["rev-parse", "HEAD"])
    }

    pub fn spec(&self, commit: &str, script: &str) -> BuildSpec {
        serde_json::from_value(serde_json::json!({
            "name": "app", "repository": self.repository.to_str().expect("UTF-8"), "commit": commit,
            "command": ["sh", "-c", script], "output": "out", "run": {"command": ["./app"]},
        }))
        .expect("a build")
    }

    /// Queues a job; answers its id.
    pub async fn queue(&mut self, build: BuildSpec, base: Option<&ArtifactRoot>) -> String {
        self.jobs += 1;
        let job = format!("default-{}", self.jobs);
        let bases = match base {
            Some(root) => vec![self.server.bases(root).await],
            None => Vec::new(),
        };
        self.server.events().waiting.push_back(Assignment {
            job: job.parse().expect("a job"),
            attempt: 1,
            build,
            credential: "attempt".to_owned(),
            beat_seconds: 1,
            bases,
        });
        self.server.changed.notify_waiters();
        job
    }

    pub async fn finished(&self, job: &str) -> FinishBody {
        self.server.wait("the job to finish", |events| events.finished.get(job).cloned()).await
    }

    pub async fn build(&mut self, build: BuildSpec) -> FinishBody {
        let job = self.queue(build, None).await;
        self.finished(&job).await
    }

    pub fn attempts(&self) -> PathBuf {
        self.folder.path().join("work/attempts")
    }

    /// Stops the worker, and checks that it leaves nothing behind.
    pub async fn end(mut self) {
        self.stop.cancel();
        let worker = self.worker.take().expect("runs until now");
        let ended = tokio::time::timeout(PATIENCE, worker).await.expect("in time").expect("no panic");
        ended.expect("no error");
        assert_eq!(std::fs::read_dir(self.attempts()).expect("readable").count(), 0, "attempts are removed");
        self.serving.abort();
        self.s3.shutdown().await;
    }
}

pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=test", "-c", "user.email=test@example.org"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("git is installed");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}
