//! The whole thread through the four processors over a local log, with fabricated workers and regions: build, replicate,
//! deploy in waves, converge; then the same state from zero.

use std::{path::Path, sync::Arc, time::Duration};

use longshore_control::{Control, ControlConfig, replay_fingerprints, verify::verify};
use longshore_log::{
    Log, ReadLimit, Record, TopicPartition,
    local::{self, LocalLog},
};
use longshore_runtime::seal;
use longshore_schemas::{
    ArtifactId, NodeId, RegionName, Timestamp,
    auth::Speaker,
    codec::{self, Message},
    events::{
        ArtifactRequest, ArtifactSummary, AttemptFinished, AttemptOutcome, AttemptSucceeded, BuildRequest,
        BuildRequested, BuildSpec, CancelRequested, DeployRequested, Event, FleetReport, GoalRequest, GoalState,
        Heartbeat, NodeDescription, NodeStatus, RegionReported, RegionalGoal, ReplicaReported, ReplicaStatus,
        ReportOrder, Request, RolloutPlan, RunSpec, StatusReport, Wave, WorkerReady, WorkerSignal,
    },
    http::{ArtifactQuery, ArtifactStatus, JobQuery, JobStatus, NodeQuery, RolloutStatus},
    read::{Outcome, ReadError, ReadModel, RequestPosition},
    topics,
};
use longshore_service::request_keys::RequestKeys;
use longshore_signing::SigningKey;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
const REGIONS: [&str; 2] = ["eu", "us"];

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("valid")
}

fn goal_key() -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed(&[8; 32]))
}

fn request_keys() -> RequestKeys {
    RequestKeys::of_one_secret(&[7; 32], &REGIONS.map(id))
}

/// A control role over a log, and the hands of everyone else.
struct Stage {
    log: Arc<LocalLog>,
    control: Control,
    read: Arc<dyn ReadModel>,
    shutdown: CancellationToken,
    reports: u64,
}

impl Stage {
    fn open(log: Arc<LocalLog>, state: &Path) -> Self {
        let shutdown = CancellationToken::new();
        let config = ControlConfig::new(log.clone(), state, REGIONS.map(id).to_vec(), request_keys(), goal_key());
        let control = Control::start(config, &shutdown).expect("starts");
        let read = control.read_model();
        Self { log, control, read, shutdown, reports: 0 }
    }

    async fn close(self) -> Arc<LocalLog> {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.control.stopped()).await.expect("stops");
        self.log
    }

    async fn append<E: Event>(&self, request: &Request<E>) -> RequestPosition
    where
        Request<E>: Message,
    {
        let keys = request_keys();
        let key = match request.event.speaker() {
            Speaker::Region(region) => &keys.of(region).expect("a region of the test")[0],
            Speaker::Anyone | Speaker::Control => keys.own(),
        };
        let record = Record::new(request.event.key(), codec::encode(request).expect("encodes"));
        let record = seal(key, E::TOPIC.name, record);
        let positions = self.log.append(E::TOPIC.name, vec![record]).await.expect("appends");
        let at = positions.first().expect("one record");
        RequestPosition { topic: E::TOPIC.name.to_owned(), partition: at.source.partition, offset: at.offset }
    }

    /// Asks, and waits for the outcome.
    async fn ask<E: Event>(&self, name: &str, event: impl Into<E>) -> Outcome
    where
        Request<E>: Message,
    {
        let position = self.append(&request::<E>(name, event.into())).await;
        self.read.outcome(&position, PATIENCE).await.expect("readable")
    }

    /// A report of a region: ordered by its sender.
    async fn report<E: Event>(&mut self, event: impl Into<E>)
    where
        Request<E>: Message,
    {
        self.reports += 1;
        let event: E = event.into();
        let sender = match event.speaker() {
            Speaker::Region(region) => format!("region/{region}"),
            Speaker::Anyone | Speaker::Control => "test".to_owned(),
        };
        let order = ReportOrder { sender, boot: 1, sequence: self.reports };
        let request = request::<E>(&format!("report-{}", self.reports), event);
        let position = self.append(&Request { report: Some(order), ..request }).await;
        let outcome = self.read.outcome(&position, PATIENCE).await.expect("readable");
        assert_eq!(outcome, Outcome::Processed);
    }

    /// The next goals of a region, as a region reads them.
    async fn goal(&self, region: &str, wanted: impl Fn(&RegionalGoal) -> bool) -> RegionalGoal {
        let topic = topics::GOAL_STATE;
        let all = (0..topic.partitions).map(|partition| (TopicPartition::new(topic.name, partition), 0)).collect();
        let mut reader = self.log.reader(all).expect("readable");
        let search = async {
            loop {
                for record in reader.read(ReadLimit::default()).await.expect("readable") {
                    let value = record.record.value.expect("no tombstones");
                    let goal: Request<GoalState> = codec::decode(&value).expect("decodes");
                    let GoalState::RegionalGoal(goal) = goal.event;
                    if goal.region.as_str() == region && wanted(&goal) {
                        return goal;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the goal comes")
    }

    /// Every node of the region runs its goal and is healthy.
    async fn converge(&mut self, region: &str, goal: &RegionalGoal) {
        let status = StatusReport {
            service: goal.service.clone(),
            version: goal.version,
            artifact: Some(goal.targets[0].artifact),
            status: NodeStatus::Healthy,
            port: 8080,
            message: None,
            nodes: nodes(region),
        };
        self.report::<FleetReport>(reported(region, Vec::new(), vec![status])).await;
    }
}

fn request<E: Event>(name: &str, event: E) -> Request<E> {
    Request { id: id(name), at: Timestamp(0), actor: "test".to_owned(), trace: None, report: None, event }
}

fn nodes(region: &str) -> Vec<NodeId> {
    (0..3).map(|n| id(&format!("{region}-{n}"))).collect()
}

fn reported(region: &str, seen: Vec<NodeDescription>, statuses: Vec<StatusReport>) -> RegionReported {
    RegionReported { region: id(region), shard: 0, seen, statuses, lost: Vec::new(), returned: Vec::new() }
}

fn describe(region: &str) -> Vec<NodeDescription> {
    let describe = |node| NodeDescription {
        node,
        zone: id("z1"),
        rack: id("r1"),
        host: "127.0.0.1".to_owned(),
        agent_version: "1".to_owned(),
        labels: Default::default(),
    };
    nodes(region).into_iter().map(describe).collect()
}

fn build(name: &str) -> BuildSpec {
    let run = RunSpec {
        command: vec!["./serve".to_owned()],
        environment: Default::default(),
        health: Default::default(),
        stop_signal: Default::default(),
        stop_seconds: 10,
        ..RunSpec::default()
    };
    BuildSpec {
        name: id(name),
        repository: "https://example.com/a.git".to_owned(),
        commit: id(&"a".repeat(40)),
        command: vec!["make".to_owned()],
        output: "out".to_owned(),
        environment: Default::default(),
        time_limit_seconds: 60,
        labels: Default::default(),
        run,
    }
}

fn summary(artifact: ArtifactId) -> ArtifactSummary {
    ArtifactSummary {
        artifact,
        name: id("web"),
        size_bytes: 100,
        files: 1,
        chunks: 1,
        packs: 3,
        pack_bytes: 100,
        new_pack_bytes: 100,
    }
}

/// Builds `web` on queue `main`, by a worker that claims, beats and finishes.
async fn build_once(stage: &Stage) -> ArtifactId {
    let (read, artifact) = (&stage.read, ArtifactId::of(b"web 1"));
    let claim =
        WorkerReady { queue: id("main"), worker: id("w1"), claim: id("claim-1"), expires_at: Timestamp(i64::MAX) };
    let (queue, claim_id) = (claim.queue.clone(), claim.claim.clone());
    let waiting = read.claimed(&queue, &claim_id, PATIENCE);
    // Signals are not kept for leaders that take over: who claims repeats it, as the API does, so either comes first.
    let claiming = async {
        let mut again = tokio::time::interval(Duration::from_millis(100));
        loop {
            again.tick().await;
            stage.append(&request::<WorkerSignal>("claim", claim.clone().into())).await;
        }
    };
    let claimed = async {
        tokio::select! {
            claimed = waiting => claimed,
            () = claiming => unreachable!("it claims for ever"),
        }
    };
    let asking = stage.ask::<BuildRequest>("build-1", BuildRequested { queue: queue.clone(), build: build("web") });
    let (claimed, outcome) = tokio::join!(claimed, asking);
    assert_eq!(outcome, Outcome::Processed);
    let claimed = claimed.expect("readable").expect("assigned");
    assert_eq!((claimed.job.to_string().as_str(), claimed.attempt, claimed.build), ("main-1", 1, build("web")));
    let beat = Heartbeat { job: claimed.job.clone(), attempt: 1, worker: id("w1") };
    stage.append(&request::<WorkerSignal>("beat", beat.into())).await;
    let view = read.job_of_request(&id("build-1")).expect("readable").expect("there");
    assert_eq!((view.status, view.worker), (JobStatus::Running, Some(id("w1"))));
    let outcome = AttemptOutcome::AttemptSucceeded(AttemptSucceeded { artifact: summary(artifact) });
    let finished = AttemptFinished { job: claimed.job.clone(), attempt: 1, worker: id("w1"), outcome };
    assert_eq!(stage.ask::<BuildRequest>("finish-1", finished).await, Outcome::Processed);
    let view = read.job(&claimed.job).expect("readable").expect("there");
    assert_eq!((view.status, view.artifact), (JobStatus::Succeeded, Some(summary(artifact))));
    let late = stage.ask::<BuildRequest>("cancel-1", CancelRequested { job: claimed.job }).await;
    assert!(matches!(late, Outcome::Refused(_)), "{late:?}");
    let again = read.claimed(&queue, &claim_id, Duration::ZERO).await;
    assert!(matches!(again, Err(ReadError::Spent(_))), "a claim whose attempt is over gets nothing more: {again:?}");
    artifact
}

async fn replicate(stage: &mut Stage, artifact: ArtifactId) {
    // The queue's request to replication, the first on its partition.
    let topic = topics::ARTIFACT_REQUESTS;
    let partition = topics::partition_of(artifact.to_string().as_bytes(), topic.partitions);
    let position = RequestPosition { topic: topic.name.to_owned(), partition, offset: 0 };
    assert_eq!(stage.read.outcome(&position, PATIENCE).await.expect("readable"), Outcome::Processed);
    for region in REGIONS {
        let view = stage.read.artifact(&artifact).expect("readable").expect("there");
        assert_eq!(view.status, ArtifactStatus::Replicating);
        let stored = ReplicaReported {
            artifact,
            region: id(region),
            status: ReplicaStatus::Stored,
            packs_done: 3,
            bytes_copied: 100,
            error: None,
        };
        stage.report::<ArtifactRequest>(stored).await;
    }
    let list = stage.read.artifacts(&ArtifactQuery { name: Some(id("web")), ..Default::default() }).expect("readable");
    let [view] = list.items.as_slice() else { panic!("one artifact: {list:?}") };
    assert_eq!((view.status, view.replicas.len(), view.replicas[0].packs_done), (ArtifactStatus::Deployable, 2, 3));
}

async fn deploy(stage: &mut Stage, artifact: ArtifactId) {
    for region in REGIONS {
        stage.report::<FleetReport>(reported(region, describe(region), Vec::new())).await;
    }
    let wave = |region: &str| Wave {
        regions: vec![id::<RegionName>(region)],
        zones: Vec::new(),
        fraction_bp: 10_000,
        bake_seconds: 0,
    };
    let plan = RolloutPlan { waves: REGIONS.map(wave).to_vec(), failure_budget_bp: 0 };
    let asked = DeployRequested { service: id("shop"), artifact, plan };
    assert_eq!(stage.ask::<GoalRequest>("deploy-1", asked).await, Outcome::Processed);
    for region in REGIONS {
        let goal = stage.goal(region, |goal| goal.targets.iter().any(|target| target.artifact == artifact)).await;
        stage.converge(region, &goal).await;
    }
    let completed = |view: &longshore_schemas::http::ServiceView| {
        view.revisions.first().is_some_and(|revision| revision.status == RolloutStatus::Completed)
    };
    let view = stage.read.service_when(&id("shop"), PATIENCE, &completed).await.expect("readable").expect("there");
    assert!(completed(&view), "{view:?}");
    let levels: Vec<_> =
        view.regions.iter().map(|r| (r.region.as_str(), r.level.eligible, r.level.converged)).collect();
    assert_eq!(levels, [("eu", 3, 3), ("us", 3, 3)]);
    let artifact = stage.read.artifact(&artifact).expect("readable").expect("there");
    assert_eq!(artifact.pinned_by, [id("shop")]);
}

fn nodes_in_pages(read: &dyn ReadModel) {
    let mut query = NodeQuery { service: Some(id("shop")), limit: Some(4), ..Default::default() };
    let mut names = Vec::new();
    loop {
        let page = read.nodes(&query).expect("readable");
        names.extend(page.items.iter().map(|node| node.node.to_string()));
        assert!(page.items.iter().all(|node| node.services[0].status == NodeStatus::Healthy));
        let Some(next) = page.next else { break };
        query.after = Some(next);
    }
    assert_eq!(names, ["eu-0", "eu-1", "eu-2", "us-0", "us-1", "us-2"]);
    let one_region = NodeQuery { region: Some(id("us")), ..Default::default() };
    assert_eq!(read.nodes(&one_region).expect("readable").items.len(), 3);
}

async fn jobs_in_pages(stage: &Stage) {
    for n in 0..12 {
        let queue = id(["main", "side", "third"][n % 3]);
        let event = BuildRequested { queue, build: build(["web", "tool"][n % 2]) };
        assert_eq!(stage.ask::<BuildRequest>(&format!("more-{n}"), event).await, Outcome::Processed);
    }
    let pages = |query: JobQuery| {
        let (mut query, mut jobs) = (JobQuery { limit: Some(3), ..query }, Vec::new());
        loop {
            let page = stage.read.jobs(&query).expect("readable");
            jobs.extend(page.items);
            let Some(next) = page.next else { return jobs };
            query.after = Some(next);
        }
    };
    let all = pages(JobQuery::default());
    assert_eq!(all.len(), 13);
    assert!(all.is_sorted_by(|a, b| (a.queued_at, &a.job) > (b.queued_at, &b.job)));
    assert_eq!(pages(JobQuery { queue: Some(id("side")), ..Default::default() }).len(), 4);
    assert_eq!(pages(JobQuery { name: Some(id("tool")), ..Default::default() }).len(), 6);
    assert_eq!(pages(JobQuery { status: Some(JobStatus::Succeeded), ..Default::default() }).len(), 1);
    let waiting = pages(JobQuery { queue: Some(id("main")), status: Some(JobStatus::Queued), ..Default::default() });
    assert_eq!(waiting.iter().map(|job| job.ahead).collect::<Vec<_>>(), [Some(3), Some(2), Some(1), Some(0)]);
    let queued: u32 = stage.read.queues().expect("readable").iter().map(|queue| queue.queued).sum();
    assert_eq!(queued, 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_becomes_running_services_and_a_replay_says_the_same() {
    let folder = TempDir::new().expect("a temporary folder");
    let log = LocalLog::open(local::Config::new(folder.path().join("log"), topics::ALL)).expect("opens");
    let mut stage = Stage::open(log, &folder.path().join("state"));
    let artifact = build_once(&stage).await;
    replicate(&mut stage, artifact).await;
    deploy(&mut stage, artifact).await;
    nodes_in_pages(&*stage.read);
    jobs_in_pages(&stage).await;

    let letters = TopicPartition::new(topics::DEAD_LETTERS.name, 0);
    assert_eq!(stage.log.end_offset(&letters).await.expect("readable"), 0, "nobody sent what nobody can take");
    let health = stage.control.health().await;
    assert!(health.iter().all(|partition| partition.status.error.is_none()), "{health:?}");
    // Invariant 2, of all four.
    let live = stage.control.fingerprints().expect("readable");
    assert_eq!(live.len(), 4 + 4 + 4 + 16);
    assert_eq!(replay_fingerprints(&*stage.log, &live).await.expect("replays"), live);

    // Another control node with nothing but the log answers the same.
    let services = stage.read.services().expect("readable");
    let log = stage.close().await;
    let again = Stage::open(log, &folder.path().join("other"));
    let there = |view: &longshore_schemas::http::ServiceView| *view == services[0];
    let view = again.read.service_when(&id("shop"), PATIENCE, &there).await.expect("readable");
    assert_eq!(view.as_ref(), services.first());
    let log = again.close().await;

    // And what it left is whole, the projections of both included.
    for (state, projections_min) in [("state", 4), ("other", 1)] {
        let report = verify(&*log, Some(&folder.path().join(state))).await.expect("readable");
        assert!(report.is_clean(), "{:#?}", report.faults);
        assert!(report.projections >= projections_min, "{report:#?}");
        assert!(report.partitions.iter().map(|partition| partition.outputs).sum::<u64>() > 20, "{report:#?}");
        assert!(report.partitions.iter().all(|partition| partition.waiting == 0), "{report:#?}");
    }
}
