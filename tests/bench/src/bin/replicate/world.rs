//! An installation in this process, with a link of its own before each bucket.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use longshore_api::{Api, ApiConfig, Checks, Limits as ApiLimits};
use longshore_control::{Control, ControlConfig};
use longshore_identity::files::AuthorityFiles;
use longshore_log::{
    Error as LogError, Log, Membership, Position, Reader, Record, TopicPartition, Writer,
    local::{Config as LogConfig, LocalLog},
};
use longshore_proxy::{Fault, Link, Proxy};
use longshore_region::{Limits as RegionLimits, Region, RegionConfig};
use longshore_s3::{Bucket, BucketConfig, embedded};
use longshore_schemas::{
    PackId, RegionName, Timestamp,
    auth::{RequestKey, Sender},
    http::{ArtifactStatus, BuildBody, CheckView, JobStatus, JobView, Role},
    topics,
};
use longshore_service::{request_keys::RequestKeys, signed::Signer, tokens};
use longshore_signing::SigningKey;
use longshore_worker::{GitLimits, GuardProgram, Worker, WorkerConfig, client::Client};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

const SECRET: [u8; 32] = [7; 32];
const MAIN: &str = "main";
const LOOK: Duration = Duration::from_millis(10);

pub(crate) struct Setting {
    pub(crate) regions: usize,
    /// Whether the log keeps them.
    pub(crate) hints: bool,
    pub(crate) region_rate: u64,
    pub(crate) upload_rate: Option<u64>,
}

pub(crate) struct World {
    folder: TempDir,
    main: embedded::Server,
    /// Each region's, and its bucket without the link.
    own: Vec<(embedded::Server, Bucket)>,
    upload: Proxy,
    links: Vec<Proxy>,
    control: Arc<Control>,
    regions: Vec<Region>,
    builder: Client,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl World {
    pub(crate) async fn start(setting: &Setting) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        let stop = CancellationToken::new();
        let log = LocalLog::open(LogConfig::new(path("log"), topics::ALL))?;
        let log: Arc<dyn Log> = if setting.hints { log } else { Arc::new(WithoutHints(log)) };
        let names = (0..setting.regions).map(|n| Ok(format!("r{n}").parse()?)).collect::<Result<Vec<RegionName>>>()?;

        let main = serve(path(MAIN)).await?;
        let upload = Link { to_server: setting.upload_rate, from_server: None };
        let upload = Proxy::start(main.endpoint(), upload, |_| Fault::None).await?;
        let main_bucket = bucket(main.endpoint(), MAIN).await?;
        main_bucket.ensure_exists().await?;

        let keys = RequestKeys::of_one_secret(&SECRET, &names);
        let control = ControlConfig::new(
            log.clone(),
            path("state"),
            names.clone(),
            keys.clone(),
            Arc::new(SigningKey::from_seed(&[8; 32])),
        );
        let control = Arc::new(Control::start(control, &stop)?);
        let (build_token, builder) = tokens::generate("bench", Role::Builder);
        let (work_token, worker) = tokens::generate("worker", Role::Worker);
        let known = tokens::Tokens::new(vec![builder, worker]);
        let mut tasks = JoinSet::new();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let api_url = format!("http://{}", listener.local_addr()?).parse().context("a URL")?;
        let config = ApiConfig {
            log: log.clone(),
            read: control.read_model(),
            // Its presigned URLs lead through the link.
            main_bucket: bucket(upload.endpoint(), MAIN).await?,
            regions: names.clone(),
            tokens: known,
            signer: Signer::new(SECRET),
            request_keys: keys.clone(),
            goal_key: Arc::new(SigningKey::from_seed(&[8; 32])),
            provenance_key: Arc::new(SigningKey::from_seed(&[7; 32])),
            announced_lasts: Duration::from_secs(60 * 60),
            limits: ApiLimits::default(),
            checks: Arc::new(NoChecks),
            allow_file_repositories: true,
        };
        let (api, until) = (Api::new(config), stop.clone());
        tasks.spawn(async move { drop(api.serve(listener, until).await) });

        let (mut own, mut links, mut regions) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            let server = serve(path(&format!("s3-{name}"))).await?;
            let link = Link { to_server: Some(setting.region_rate), from_server: None };
            let link = Proxy::start(server.endpoint(), link, |_| Fault::None).await?;
            let own_name = format!("longshore-{name}");
            let direct = bucket(server.endpoint(), &own_name).await?;
            direct.ensure_exists().await?;
            let authority = AuthorityFiles::new(&path("authorities"), &name);
            authority.make(longshore_service::now())?;
            let config = RegionConfig {
                region: name.clone(),
                log: log.clone(),
                main_bucket: main_bucket.clone(),
                bucket: bucket(link.endpoint(), &own_name).await?,
                listen: ([127, 0, 0, 1], 0).into(),
                shards_per_region: 1,
                tokens_file: path("tokens.json"),
                authority,
                request_keys: vec![RequestKey::new(Sender::Region(name.clone()), &SECRET)],
                goal_keys: (*SigningKey::from_seed(&[8; 32]).public()).into(),
                data_dir: path(&format!("region-{name}")),
                limits: RegionLimits::default(),
            };
            regions.push(Region::start(config, stop.clone()).await?);
            own.push((server, direct));
            links.push(link);
        }
        let config = WorkerConfig {
            api: api_url,
            token: work_token,
            queues: vec!["default".parse()?],
            name: "w-1".parse()?,
            work_dir: path("worker"),
            passthrough: Vec::new(),
            allow_file_repositories: true,
            git: GitLimits::default(),
            guard: GuardProgram { program: guard()?.into(), arguments: Vec::new() },
        };
        let builder = Client::new(config.api.clone(), Some(&build_token))?;
        let until = stop.clone();
        tasks.spawn(async move { drop(Worker::run(config, until).await) });
        Ok(Self { folder, main, own, upload, links, control, regions, builder, tasks, stop })
    }

    /// Builds this many bytes of noise. Answers how many packs it is, and how long it took from the last byte of them that
    /// was uploaded until every region had all.
    pub(crate) async fn build(&self, bytes: u64, patience: Duration) -> Result<(u64, Duration)> {
        let repository = longshore_e2e::greeter::Repository::create(&self.folder.path().join("repository"))?;
        let commit = repository.commit("noise", 0, &[])?;
        let BuildBody { queue, mut build } = repository.build("noise", commit)?;
        build.command = vec!["sh".into(), "-c".into(), format!("head -c {bytes} /dev/urandom > out")];
        build.time_limit_seconds = 1_800;
        let deadline = Instant::now() + patience;
        let job: JobView = self.builder.post(&["builds"]).json(&BuildBody { queue, build }).fetch().await?;
        let read = self.control.read_model();
        loop {
            ensure!(Instant::now() < deadline, "the regions do not have it after {} s", patience.as_secs());
            let view = read.job(&job.job)?.context("the job is gone")?;
            if let JobStatus::Failed | JobStatus::Canceled = view.status {
                bail!("the build ended so: {view:?}");
            }
            if let Some(summary) = &view.artifact
                && let Some(artifact) = read.artifact(&summary.artifact)?
                && artifact.status == ArtifactStatus::Deployable
            {
                let uploaded = self.upload.last_byte_of(&format!("/{MAIN}/packs/")).context("nothing was uploaded")?;
                return Ok((u64::from(summary.packs), uploaded.elapsed()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(crate) fn reads_of_packs(&self) -> u64 {
        self.main.counters().of(MAIN, "packs/").gets
    }

    /// Every region has what the main bucket has, byte by byte.
    pub(crate) async fn assert_everywhere(&self) -> Result<()> {
        let packs = bucket(self.main.endpoint(), MAIN).await?.list("packs/").collect(100_000).await?;
        for (_, own) in &self.own {
            for object in &packs {
                let content = own.get(&object.key, object.bytes).await?;
                let name = format!("packs/{}", PackId::of(&content));
                ensure!(name == object.key, "{} has wrong bytes in {}", object.key, own.name());
            }
        }
        Ok(())
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        for region in self.regions {
            region.stopped().await;
        }
        while self.tasks.join_next().await.is_some() {}
        self.control.stopped().await;
        drop(self.links);
    }
}

fn guard() -> Result<PathBuf> {
    let guard = std::env::current_exe()?.with_file_name("longshore-guard");
    ensure!(guard.is_file(), "{} is not built", guard.display());
    Ok(guard)
}

async fn serve(root: PathBuf) -> Result<embedded::Server> {
    let key = || "bench".to_owned();
    let listen = ([127, 0, 0, 1], 0).into();
    Ok(embedded::Server::start(embedded::Config { root, listen, access_key: key(), secret_key: key() }).await?)
}

async fn bucket(endpoint: &str, name: &str) -> Result<Bucket> {
    let key = || Some("bench".to_owned());
    let config = BucketConfig {
        endpoint: Some(endpoint.to_owned()),
        region: "bench".to_owned(),
        bucket: name.to_owned(),
        access_key: key(),
        secret_key: key(),
        path_style: true,
        ..BucketConfig::default()
    };
    Ok(Bucket::connect(&config).await?)
}

struct NoChecks;

#[async_trait::async_trait]
impl Checks for NoChecks {
    async fn checks(&self) -> Vec<CheckView> {
        Vec::new()
    }
}

/// A log that loses every hint, as it may.
struct WithoutHints(Arc<LocalLog>);

#[async_trait::async_trait]
impl Log for WithoutHints {
    fn partitions(&self, topic: &str) -> Result<u32, LogError> {
        self.0.partitions(topic)
    }

    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<Vec<Position>, LogError> {
        if topic != topics::PACK_HINTS.name {
            return self.0.append(topic, records).await;
        }
        let lost = |_| Position { source: TopicPartition::new(topic, 0), offset: 0 };
        Ok(records.iter().map(lost).collect())
    }

    fn reader(&self, from: Vec<(TopicPartition, u64)>) -> Result<Box<dyn Reader>, LogError> {
        self.0.reader(from)
    }

    async fn end_offset(&self, of: &TopicPartition) -> Result<u64, LogError> {
        self.0.end_offset(of).await
    }

    async fn start_offset(&self, of: &TopicPartition) -> Result<u64, LogError> {
        self.0.start_offset(of).await
    }

    async fn offset_at(&self, of: &TopicPartition, at: Timestamp) -> Result<u64, LogError> {
        self.0.offset_at(of, at).await
    }

    async fn join(&self, group: &str, topic: &str) -> Result<Box<dyn Membership>, LogError> {
        self.0.join(group, topic).await
    }

    async fn owners(&self, group: &str, topic: &str) -> Result<BTreeMap<u32, String>, LogError> {
        self.0.owners(group, topic).await
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>, LogError> {
        self.0.writer(owner).await
    }
}
