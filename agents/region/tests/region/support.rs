//! A region with a real log and real buckets, and a node that speaks the protocol and nothing else.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use longshore_artifact::{ArtifactRoot, PackRef, pack_key, root_key};
use longshore_identity::{
    Credentials, Key, Stream, Tls,
    files::{AuthorityFiles, read_trust},
};
use longshore_log::{
    Log, ReadLimit, Record, TopicPartition,
    local::{Config, LocalLog},
};
use longshore_region::{Limits, Region, RegionConfig};
use longshore_s3::{Bucket, BucketConfig, embedded};
use longshore_schemas::{
    ArtifactId, PackId, Timestamp,
    auth::{AUTH, RequestKey, Sender, Signed},
    codec::{self, Message},
    events::{
        ArtifactFact, ArtifactRequest, ArtifactSource, ArtifactSummary, Cause, Event, Fact, FleetReport, GoalState,
        GoalVersion, HealthCheck, LogWanted, NodeDescription, NodeQuery, PackHint, PacksUploaded, RegionReported,
        RegionalGoal, ReplicaReported, ReplicaStatus, ReplicationStarted, ReportOrder, Request, RunSpec, StopSignal,
        TimerFired, Trigger, UploadedPack,
    },
    http::Role,
    stream::{FromNode, FromRegion, Hello},
    topics,
};
use longshore_service::tokens;
use longshore_signing::{SigningKey, goal::GOAL, query::QUERY, record};
use longshore_swarm::frames::FrameCodec;
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_util::{codec::Framed, sync::CancellationToken};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const MAIN: &str = "longshore-main";
pub(crate) const OWN: &str = "longshore-eu";

fn keys() -> String {
    "longshore-test".to_owned()
}

/// A bucket of the world's S3 server, at this address of it.
pub(crate) async fn bucket(endpoint: &str, name: &str) -> Bucket {
    let config = BucketConfig {
        endpoint: Some(endpoint.to_owned()),
        region: "eu".to_owned(),
        bucket: name.to_owned(),
        access_key: Some(keys()),
        secret_key: Some(keys()),
        path_style: true,
        ..BucketConfig::default()
    };
    Bucket::connect(&config).await.expect("a bucket")
}

pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn is_right(bucket: &Bucket, pack: PackRef) -> bool {
    let content = bucket.get(&pack_key(&pack.pack), pack.bytes).await;
    content.is_ok_and(|content| PackId::of(&content) == pack.pack)
}

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) log: Arc<LocalLog>,
    pub(crate) s3: embedded::Server,
    pub(crate) main: Bucket,
    pub(crate) own: Bucket,
    /// Of the list, which enrols any node.
    pub(crate) token: String,
    pub(crate) authority: AuthorityFiles,
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = LocalLog::open(Config::new(folder.path().join("log"), topics::ALL)).expect("a log");
        let config = embedded::Config {
            root: folder.path().join("s3"),
            listen: "127.0.0.1:0".parse().expect("valid"),
            access_key: keys(),
            secret_key: keys(),
        };
        let s3 = embedded::Server::start(config).await.expect("an S3 server");
        let (main, own) = (bucket(s3.endpoint(), MAIN).await, bucket(s3.endpoint(), OWN).await);
        main.ensure_exists().await.expect("made");
        own.ensure_exists().await.expect("made");
        let (token, record) = tokens::generate("fleet", Role::Node);
        let authority = AuthorityFiles::new(&folder.path().join("authorities"), &"eu".parse().expect("valid"));
        authority.make(longshore_service::now()).expect("made");
        let world = Self { folder, log, s3, main, own, token, authority };
        tokens::Tokens::new(vec![record]).save(&world.tokens_file()).expect("saved");
        world
    }

    pub(crate) fn tokens_file(&self) -> PathBuf {
        self.folder.path().join("tokens.json")
    }

    /// What a machine connects with that has no identity.
    pub(crate) fn stranger(&self) -> Arc<Tls> {
        Tls::new(None, read_trust(&self.authority.authorities()).expect("there")).expect("TLS")
    }

    pub(crate) async fn region(&self, beat: Duration) -> (Region, CancellationToken) {
        self.region_with(|config| config.limits.beat = beat).await
    }

    /// A region, but for what is changed.
    pub(crate) async fn region_with(&self, change: impl FnOnce(&mut RegionConfig)) -> (Region, CancellationToken) {
        let shutdown = CancellationToken::new();
        let mut config = RegionConfig {
            region: "eu".parse().expect("valid"),
            log: self.log.clone(),
            main_bucket: self.main.clone(),
            bucket: self.own.clone(),
            listen: "127.0.0.1:0".parse().expect("valid"),
            shards_per_region: 2,
            tokens_file: self.tokens_file(),
            authority: self.authority.clone(),
            request_keys: vec![request_key("eu", 7)],
            goal_keys: (*goal_key(1).public()).into(),
            data_dir: self.folder.path().join("region"),
            limits: Limits { beat: Duration::from_secs(10), copies_by_service: false, ..Limits::default() },
        };
        change(&mut config);
        (Region::start(config, shutdown.clone()).await.expect("a region"), shutdown)
    }

    /// A report of another process of the region, signed or not: this node is with it now.
    pub(crate) async fn seen_by_another(&self, node: &str, (shard, sequence): (u32, u64), key: Option<&RequestKey>) {
        let description = NodeDescription {
            node: node.parse().expect("valid"),
            zone: "a".parse().expect("valid"),
            rack: "r1".parse().expect("valid"),
            host: "127.0.0.1".to_owned(),
            agent_version: "0.1.0".to_owned(),
            labels: Default::default(),
        };
        let event = FleetReport::from(RegionReported {
            region: "eu".parse().expect("valid"),
            shard,
            seen: vec![description],
            statuses: Vec::new(),
            lost: Vec::new(),
            returned: Vec::new(),
        });
        let (id, record_key) = (format!("other-{sequence}").parse().expect("valid"), event.key());
        let report = Some(ReportOrder { sender: "region/eu/other".to_owned(), boot: 1, sequence });
        let actor = "region/eu".to_owned();
        let request = Request { id, at: Timestamp(0), actor, trace: None, report, event };
        let bytes = codec::encode(&request).expect("valid");
        let topic = topics::FLEET_REPORTS.name;
        let auth = key.map(|key| key.sign(Signed { topic, key: record_key.as_bytes(), value: &bytes }));
        let record = Record::new(record_key, bytes);
        let record = match auth {
            Some(auth) => record.with_header(AUTH, auth),
            None => record,
        };
        self.log.append(topic, vec![record]).await.expect("appended");
    }

    /// Puts packs and a root into the main bucket.
    pub(crate) async fn publish(&self, packs: u32) -> ArtifactRoot {
        // One of them has several blocks.
        let times = |n: u32| if n == 2 { 20_000 } else { 1_000 };
        let content = |n: u32| Bytes::from(format!("pack {n} ").repeat(times(n)));
        let artifact = ArtifactId::of(&packs.to_le_bytes());
        let mut refs = Vec::new();
        for n in 0..packs {
            let bytes = content(n);
            let pack = PackId::of(&bytes);
            refs.push(PackRef { pack, bytes: bytes.len() as u64 });
            self.main.put(&pack_key(&pack), bytes).await.expect("put");
        }
        let (manifest, layout, packs) = (refs[..1].to_vec(), refs[1..2].to_vec(), refs[2..].to_vec());
        let root = ArtifactRoot {
            artifact,
            size_bytes: 1,
            files: 1,
            chunks: 1,
            manifest,
            manifest_key: 0,
            layout,
            packs,
            provenance: None,
        };
        self.main.put(&root_key(&artifact), root.to_json().into()).await.expect("put");
        root
    }

    pub(crate) async fn start_replication(&self, root: &ArtifactRoot) {
        let summary = ArtifactSummary {
            artifact: root.artifact,
            name: "greeter".parse().expect("valid"),
            size_bytes: 1,
            files: 1,
            chunks: 1,
            packs: root.all_packs().len() as u32,
            pack_bytes: 1,
            new_pack_bytes: 1,
        };
        let source = ArtifactSource {
            job: "default-1".parse().expect("valid"),
            repository: "file:///greeter".to_owned(),
            commit: "0".repeat(40).parse().expect("valid"),
        };
        let regions = vec!["eu".parse().expect("valid")];
        self.fact(ReplicationStarted { summary, source, run: run(), regions }).await;
    }

    pub(crate) async fn fact(&self, event: impl Into<ArtifactFact>) {
        let event = event.into();
        let trigger = Trigger::TimerFired(TimerFired { due: Timestamp(0) });
        let cause = Cause { index: 0, count: 1, trigger };
        let key = event.key();
        let fact = Fact { sequence: 1, at: Timestamp(0), actor: "test".to_owned(), trace: None, cause, event };
        let record = Record::new(key, codec::encode(&fact).expect("valid"));
        self.log.append(topics::ARTIFACTS.name, vec![record]).await.expect("appended");
    }

    /// What a worker says of a build that runs.
    pub(crate) async fn hint(&self, job: &str, packs: &[PackRef]) {
        let packs = packs.iter().map(|pack| UploadedPack { pack: pack.pack, bytes: pack.bytes }).collect();
        let event = PackHint::from(PacksUploaded { job: job.parse().expect("valid"), attempt: 1, packs });
        let (id, key) = (format!("hint-{job}").parse().expect("valid"), event.key());
        let request = Request { id, at: Timestamp(0), actor: "w-1".to_owned(), trace: None, report: None, event };
        let record = Record::new(key, codec::encode(&request).expect("valid"));
        self.log.append(topics::PACK_HINTS.name, vec![record]).await.expect("appended");
    }

    pub(crate) async fn goal(&self, service: &str, revision: u64) {
        self.goal_by(service, revision, Some(&goal_key(1))).await;
    }

    /// A goal that this key signed, or nobody.
    pub(crate) async fn goal_by(&self, service: &str, revision: u64, key: Option<&SigningKey>) {
        let event = GoalState::from(RegionalGoal {
            region: "eu".parse().expect("valid"),
            service: service.parse().expect("valid"),
            version: GoalVersion { revision, step: 1 },
            targets: Vec::new(),
        });
        let id = format!("goals-{service}-{revision}").parse().expect("valid");
        let name = event.key();
        let request = Request { id, at: Timestamp(0), actor: "goals".to_owned(), trace: None, report: None, event };
        let value = codec::encode(&request).expect("valid");
        let signature = key.map(|key| record::sign(&GOAL, &value, key));
        let mut record = Record::new(name, value);
        if let Some(signature) = signature {
            record = record.with_header(record::SIGNATURE, signature);
        }
        self.log.append(topics::GOAL_STATE.name, vec![record]).await.expect("appended");
    }

    /// As the API asks a node of this region; signed by a key, if one is given.
    pub(crate) async fn query(&self, id: &str, region: &str, node: &str, key: Option<&SigningKey>) {
        let (region, service) = (region.parse().expect("valid"), "web".parse().expect("valid"));
        let event = NodeQuery::from(LogWanted { region, node: node.parse().expect("valid"), service, bytes: 100 });
        let key_of_record = event.key();
        let (id, actor, at) = (id.parse().expect("valid"), "ada".to_owned(), Timestamp(0));
        let value = codec::encode(&Request { id, at, actor, trace: None, report: None, event }).expect("valid");
        let signature = key.map(|key| record::sign(&QUERY, &value, key));
        let mut record = Record::new(key_of_record, value);
        if let Some(signature) = signature {
            record = record.with_header(record::SIGNATURE, signature);
        }
        self.log.append(topics::NODE_QUERIES.name, vec![record]).await.expect("appended");
    }

    /// The first report of this kind after `skip` others.
    pub(crate) async fn report(&self, status: ReplicaStatus, skip: usize) -> ReplicaReported {
        let mut seen = 0;
        self.until(|request: Request<ArtifactRequest>| match request.event {
            ArtifactRequest::ReplicaReported(reported) if reported.status == status => {
                seen += 1;
                (seen > skip).then_some(reported)
            }
            _ => None,
        })
        .await
    }

    /// Reads a topic of requests from the start until one gives an answer.
    pub(crate) async fn until<E: Event, T>(&self, mut see: impl FnMut(Request<E>) -> Option<T>) -> T
    where
        Request<E>: Message,
    {
        let name = E::TOPIC.name;
        let partitions = (0..E::TOPIC.partitions).map(|partition| (TopicPartition::new(name, partition), 0)).collect();
        let mut reader = self.log.reader(partitions).expect("a reader");
        let read = async {
            loop {
                for stored in reader.read(ReadLimit::default()).await.expect("read") {
                    let value = stored.record.value.expect("no tombstones here");
                    if let Some(seen) = see(codec::decode(&value).expect("valid")) {
                        return seen;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("nothing of the kind on {name}"))
    }
}

/// What goals are signed with: 1 is trusted.
pub(crate) fn goal_key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

pub(crate) fn request_key(region: &str, secret: u8) -> RequestKey {
    RequestKey::new(Sender::Region(region.parse().expect("valid")), &[secret; 32])
}

fn run() -> RunSpec {
    RunSpec {
        command: vec!["./greeter".to_owned()],
        environment: BTreeMap::new(),
        health: HealthCheck::default(),
        stop_signal: StopSignal::Term,
        stop_seconds: 10,
        ..RunSpec::default()
    }
}

pub(crate) struct Node(Framed<Stream, FrameCodec<FromRegion, FromNode>>);

impl Node {
    /// As a machine that shows no certificate, if it has one.
    pub(crate) async fn stranger(region: &Region, tls: &Tls) -> Self {
        Self::connect(region, tls, true).await.expect("the region takes anybody")
    }

    /// As the node that it is.
    pub(crate) async fn known(region: &Region, tls: &Tls) -> Self {
        Self::connect(region, tls, false).await.expect("the region takes nodes")
    }

    async fn connect(region: &Region, tls: &Tls, as_stranger: bool) -> std::io::Result<Self> {
        let stream = TcpStream::connect(region.address()).await.expect("the region listens");
        let stream = tls.connect_to_region(stream, as_stranger).await?;
        Ok(Self(Framed::new(stream, FrameCodec::default())))
    }

    /// Enrols, and what it connects with from then on.
    pub(crate) async fn enrol(world: &World, region: &Region, name: &str) -> Arc<Tls> {
        let (stranger, key) = (world.stranger(), Key::make().expect("a key"));
        let mut node = Self::stranger(region, &stranger).await;
        node.say(enrol(&world.token, name, &key)).await;
        let Some(FromRegion::Certified { certificate }) = node.hear().await else { panic!("{name} was not enrolled") };
        let credentials = Credentials::new(&key, &certificate).expect("they fit");
        Tls::new(Some(credentials), stranger.trust()).expect("TLS")
    }

    /// Enrols and says hello.
    pub(crate) async fn join(world: &World, region: &Region, name: &str, goals: &[(&str, u64)]) -> Self {
        let tls = Self::enrol(world, region, name).await;
        let mut node = Self::known(region, &tls).await;
        node.say(FromNode::Hello(hello(name, goals))).await;
        let welcome = node.hear().await;
        assert!(matches!(welcome, Some(FromRegion::Welcome { .. })), "{welcome:?}");
        node
    }

    pub(crate) async fn say(&mut self, message: FromNode) {
        self.0.send(message).await.expect("the region reads");
    }

    /// The next message that is not about whom to believe; `None` if the region closed the connection.
    pub(crate) async fn hear(&mut self) -> Option<FromRegion> {
        loop {
            match self.hear_all().await {
                Some(FromRegion::Trust { .. }) => {}
                other => return other,
            }
        }
    }

    pub(crate) async fn hear_all(&mut self) -> Option<FromRegion> {
        let message = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("the region says something");
        message.map(|message| message.expect("a message"))
    }

    /// The next message, or why there is none.
    pub(crate) async fn try_hear(&mut self) -> Result<FromRegion, String> {
        let message = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("the region says something");
        message.ok_or("closed")?.map_err(|error| error.to_string())
    }

    /// Waits until the region closed the connection, whatever it said before.
    pub(crate) async fn closed(&mut self) {
        while self.try_hear().await.is_ok() {}
    }
}

pub(crate) fn enrol(token: &str, name: &str, key: &Key) -> FromNode {
    let request = key.request().expect("a request");
    FromNode::Enrol { token: token.to_owned(), node: name.parse().expect("valid"), request }
}

pub(crate) fn hello(name: &str, goals: &[(&str, u64)]) -> Hello {
    let version = |revision| GoalVersion { revision, step: 1 };
    Hello {
        node: name.parse().expect("valid"),
        instance: "one".to_owned(),
        zone: "a".parse().expect("valid"),
        rack: "r1".parse().expect("valid"),
        host: "127.0.0.1".to_owned(),
        swarm_port: 4_000,
        agent_version: "0.1.0".to_owned(),
        labels: Default::default(),
        answers_queries: true,
        boot: 1,
        goals: goals.iter().map(|(service, r)| (service.parse().expect("valid"), version(*r))).collect(),
    }
}
