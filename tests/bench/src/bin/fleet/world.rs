//! A control node with everything real in it, and the log that it shares with regions that are made up.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use longshore_api::{Api, ApiConfig, Checks, Limits};
use longshore_bench::s3;
use longshore_control::{Control, ControlConfig};
use longshore_e2e::{Client, process::wait_for};
use longshore_log::{
    Log, ReadLimit, Reader, TopicPartition,
    local::{Config as LogConfig, LocalLog},
};
use longshore_s3::embedded;
use longshore_schemas::{
    ArtifactId, RegionName, ServiceName,
    auth::RequestKey,
    codec,
    events::{
        ArtifactOrigin, ArtifactRequest, ArtifactSummary, DeployRequested, Event, Fact, FleetFact, GoalRequest,
        GoalState, ImportRequested, NodeStatus, ReplicaReported, ReplicaStatus, ReportOrder, Request, RolloutPlan,
        RunSpec, Wave,
    },
    http::{ArtifactStatus, CheckView, Role, RolloutStatus},
    topics,
};
use longshore_service::{request_keys::RequestKeys, signed::Signer, tokens};
use longshore_signing::SigningKey;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    REGIONS, SHARDS,
    regions::{Shard, record},
};

const SECRET: [u8; 32] = [7; 32];
const SERVICE: &str = "web";

pub(crate) struct World {
    log: Arc<LocalLog>,
    keys: RequestKeys,
    control: Arc<Control>,
    api: String,
    token: String,
    serving: JoinHandle<()>,
    stop: CancellationToken,
    server: embedded::Server,
}

impl World {
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        let stop = CancellationToken::new();
        let log = LocalLog::open(LogConfig::new(folder.join("log"), topics::ALL))?;
        let names = (0..REGIONS).map(|n| Ok(format!("r{n}").parse()?)).collect::<Result<Vec<RegionName>>>()?;
        let keys = RequestKeys::of_one_secret(&SECRET, &names);
        let goal_key = Arc::new(SigningKey::from_seed(&[8; 32]));
        let mut config = ControlConfig::new(log.clone(), folder.join("state"), names.clone(), keys.clone(), goal_key);
        config.shards_per_region = SHARDS;
        let control = Arc::new(Control::start(config, &stop)?);
        let server = s3::serve(folder.join("s3")).await?;
        let (token, viewer) = tokens::generate("bench", Role::Viewer);
        let config = ApiConfig {
            log: log.clone(),
            read: control.read_model(),
            main_bucket: s3::bucket(server.endpoint()).await?,
            regions: names,
            tokens: tokens::Tokens::new(vec![viewer]),
            signer: Signer::new(SECRET),
            request_keys: keys.clone(),
            goal_key: Arc::new(SigningKey::from_seed(&[8; 32])),
            provenance_key: Arc::new(SigningKey::from_seed(&[9; 32])),
            announced_lasts: Duration::from_secs(60 * 60),
            limits: Limits::default(),
            checks: Arc::new(NoChecks),
            allow_file_repositories: false,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (api, until) = (format!("http://{}", listener.local_addr()?), stop.clone());
        let serving = tokio::spawn(async move { drop(Api::new(config).serve(listener, until).await) });
        Ok(Self { log, keys, control, api, token, serving, stop, server })
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Client::new(&self.api, &self.token)
    }

    fn region_key(&self, region: &RegionName) -> Result<&RequestKey> {
        self.keys.of(region).and_then(<[_]>::first).context("a region without a key")
    }

    /// All nodes of all regions are told of; returns when each has its number.
    pub(crate) async fn join(&self, shards: &mut [Shard], bound: Duration) -> Result<()> {
        let mut facts = self.facts().await?;
        let nodes: usize = shards.iter().map(|shard| shard.len()).sum();
        for shard in shards {
            let records = shard.join(self.region_key(&shard.region)?)?;
            self.log.append(topics::FLEET_REPORTS.name, records).await?;
        }
        let mut joined = 0;
        facts
            .until(bound, |fact| {
                joined += usize::from(matches!(fact, FleetFact::NodeJoined(_)));
                joined == nodes
            })
            .await
    }

    /// An artifact that every region has, as far as they say.
    pub(crate) async fn artifact(&self, bound: Duration) -> Result<ArtifactId> {
        let artifact = ArtifactId::of(b"an artifact");
        let summary = ArtifactSummary {
            artifact,
            name: SERVICE.parse()?,
            size_bytes: 1,
            files: 1,
            chunks: 1,
            packs: 3,
            pack_bytes: 3,
            new_pack_bytes: 3,
        };
        let origin = ArtifactOrigin { url: "https://ci.example/1".to_owned(), imported_by: "bench".to_owned() };
        let run = RunSpec { command: vec!["./server".to_owned()], ..RunSpec::default() };
        let import = ArtifactRequest::from(ImportRequested { summary, origin, run });
        let mut records = vec![record(import, "import", "bench", None, self.keys.own())?];
        for number in 0..REGIONS {
            let region: RegionName = format!("r{number}").parse()?;
            let key = self.region_key(&region)?.clone();
            let sender = format!("region/{region}");
            let order = ReportOrder { sender: sender.clone(), boot: 1, sequence: 1 };
            let status = ReplicaStatus::Stored;
            let report = ReplicaReported { artifact, region, status, packs_done: 3, bytes_copied: 3, error: None };
            records.push(record(
                ArtifactRequest::from(report),
                &format!("stored-{number}"),
                &sender,
                Some(order),
                &key,
            )?);
        }
        self.log.append(topics::ARTIFACT_REQUESTS.name, records).await?;
        let client = self.client().await?;
        wait_for("the artifact to be deployable", bound, async || {
            let Ok(view) = client.artifact(&artifact).await else { return Ok(None) };
            Ok((view.status == ArtifactStatus::Deployable).then_some(()))
        })
        .await?;
        Ok(artifact)
    }

    /// A region in each wave.
    async fn deploy(&self, artifact: ArtifactId) -> Result<()> {
        let wave = |number: u32| -> Result<Wave> {
            Ok(Wave {
                regions: vec![format!("r{number}").parse()?],
                zones: vec![],
                fraction_bp: 10_000,
                bake_seconds: 0,
            })
        };
        let plan = RolloutPlan { waves: (0..REGIONS).map(wave).collect::<Result<_>>()?, failure_budget_bp: 0 };
        let deploy = GoalRequest::from(DeployRequested { service: SERVICE.parse()?, artifact, plan });
        let record = record(deploy, "deploy", "bench", None, self.keys.own())?;
        self.log.append(topics::GOAL_REQUESTS.name, vec![record]).await?;
        Ok(())
    }

    /// Deploys, and nodes do what goals say, until the rollout has completed.
    pub(crate) async fn roll_out(&self, artifact: ArtifactId, shards: &mut [Shard], bound: Duration) -> Result<()> {
        let mut goals = self.reader::<GoalState>().await?;
        self.deploy(artifact).await?;
        let client = self.client().await?;
        let completed = wait_for("the rollout to complete", bound, async || {
            let Ok(view) = client.service(SERVICE).await else { return Ok(None) };
            match view.revisions.first().map(|revision| revision.status) {
                Some(RolloutStatus::Completed) => Ok(Some(())),
                Some(RolloutStatus::Halted | RolloutStatus::Refused) => bail!("{:?}", view.revisions[0]),
                _ => Ok(None),
            }
        });
        tokio::select! {
            followed = self.follow(&mut *goals, shards) => followed,
            completed = completed => completed,
        }
    }

    /// Until it fails, or is dropped.
    async fn follow(&self, goals: &mut dyn Reader, shards: &mut [Shard]) -> Result<()> {
        loop {
            for stored in goals.read(ReadLimit::default()).await? {
                let value = stored.record.value.context("a goal without a value")?;
                let GoalState::RegionalGoal(goal) = codec::decode::<Request<GoalState>>(&value)?.event;
                let key = self.region_key(&goal.region)?;
                let mut records = Vec::new();
                for shard in shards.iter_mut().filter(|shard| shard.region == goal.region) {
                    records.extend(shard.act(&goal, key)?);
                }
                if !records.is_empty() {
                    self.log.append(topics::FLEET_REPORTS.name, records).await?;
                }
            }
        }
    }

    /// Every node is in each of these statuses, one after the other. Returns when all is known, with how many nodes' words that were.
    pub(crate) async fn report_each(
        &self,
        shards: &mut [Shard],
        statuses: &[NodeStatus],
        bound: Duration,
    ) -> Result<u64> {
        let mut facts = self.facts().await?;
        let mut count = 0;
        for status in statuses {
            for shard in shards.iter_mut() {
                let (records, nodes) = shard.report_each(*status, &self.region_key(&shard.region)?.clone())?;
                ensure!(nodes as usize == shard.len(), "{nodes} nodes of {} run something", shard.len());
                count += nodes;
                self.log.append(topics::FLEET_REPORTS.name, records).await?;
            }
        }
        let service: ServiceName = "mark".parse()?;
        let mut waiting = BTreeSet::new();
        for shard in shards {
            let record = shard.mark(&service, &self.region_key(&shard.region)?.clone())?;
            waiting.insert((shard.region.clone(), shard.shard));
            self.log.append(topics::FLEET_REPORTS.name, vec![record]).await?;
        }
        facts
            .until(bound, |fact| {
                if let FleetFact::NodesReported(report) = fact
                    && report.service == service
                {
                    waiting.remove(&(report.region.clone(), report.shard));
                }
                waiting.is_empty()
            })
            .await?;
        Ok(count)
    }

    async fn facts(&self) -> Result<Facts> {
        Ok(Facts(self.reader::<FleetFact>().await?))
    }

    /// Of what is written from now on.
    async fn reader<E: Event>(&self) -> Result<Box<dyn Reader>> {
        let mut from = Vec::new();
        for partition in 0..E::TOPIC.partitions {
            let partition = TopicPartition::new(E::TOPIC.name, partition);
            let end = self.log.end_offset(&partition).await?;
            from.push((partition, end));
        }
        Ok(self.log.reader(from)?)
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let _ = self.serving.await;
        self.control.stopped().await;
        self.server.shutdown().await;
        self.log.close();
    }
}

/// Of the fleet.
struct Facts(Box<dyn Reader>);

impl Facts {
    async fn until(&mut self, bound: Duration, mut is_over: impl FnMut(&FleetFact) -> bool) -> Result<()> {
        let reading = async {
            loop {
                for stored in self.0.read(ReadLimit::default()).await? {
                    let value = stored.record.value.context("a fact without a value")?;
                    if is_over(&codec::decode::<Fact<FleetFact>>(&value)?.event) {
                        return Ok(());
                    }
                }
            }
        };
        tokio::time::timeout(bound, reading).await.context("the facts did not come")?
    }
}

struct NoChecks;

#[async_trait::async_trait]
impl Checks for NoChecks {
    async fn checks(&self) -> Vec<CheckView> {
        Vec::new()
    }
}
