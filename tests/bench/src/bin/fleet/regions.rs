//! The made-up regions: their nodes by shard, and what they say.

use std::collections::BTreeMap;

use anyhow::Result;
use bytes::Bytes;
use longshore_log::{Record, clock};
use longshore_schemas::{
    NodeId, RegionName, ServiceName, ZoneName,
    auth::{AUTH, RequestKey, Signed},
    codec,
    events::{
        Event, FleetReport, GoalVersion, NodeDescription, NodeStatus, RegionReported, RegionalGoal, ReportOrder,
        Request, StatusReport,
    },
    nodes::{shard_of, slot},
};

use crate::{REGIONS, SHARDS};

const ZONES: [&str; 3] = ["a", "b", "c"];
const NODES_PER_RACK: usize = 40;
/// Nodes in one report: a region sends what has come together.
const JOIN_BATCH: usize = 1_000;
const STATUS_BATCH: usize = 250;

pub(crate) struct Shard {
    pub(crate) region: RegionName,
    pub(crate) shard: u32,
    nodes: Vec<(NodeId, ZoneName)>,
    sequence: u64,
    /// The goal that its nodes act on.
    goal: Option<RegionalGoal>,
}

/// As many nodes in each region, in the shards that their names give.
pub(crate) fn all(nodes: u32) -> Vec<Shard> {
    let region = |number: u32| {
        let name: RegionName = format!("r{number}").parse().expect("a region");
        let count = nodes / REGIONS + u32::from(number < nodes % REGIONS);
        let empty = |shard| Shard { region: name.clone(), shard, nodes: Vec::new(), sequence: 0, goal: None };
        let mut shards: Vec<Shard> = (0..SHARDS).map(empty).collect();
        for number in 0..count {
            let node: NodeId = format!("n-{number:05}").parse().expect("a node");
            let zone = ZONES[number as usize % ZONES.len()].parse().expect("a zone");
            shards[shard_of(&node, SHARDS) as usize].nodes.push((node, zone));
        }
        shards
    };
    (0..REGIONS).flat_map(region).filter(|shard| !shard.nodes.is_empty()).collect()
}

impl Shard {
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    fn report(&self) -> RegionReported {
        RegionReported {
            region: self.region.clone(),
            shard: self.shard,
            seen: Vec::new(),
            statuses: Vec::new(),
            lost: Vec::new(),
            returned: Vec::new(),
        }
    }

    /// All nodes are there.
    pub(crate) fn join(&mut self, key: &RequestKey) -> Result<Vec<Record>> {
        let description = |(index, (node, zone)): (usize, &(NodeId, ZoneName))| -> Result<NodeDescription> {
            Ok(NodeDescription {
                node: node.clone(),
                zone: zone.clone(),
                rack: format!("rack-{}", index / NODES_PER_RACK).parse()?,
                host: format!("{node}.{}.example", self.region),
                agent_version: "0.1.0".to_owned(),
                labels: Default::default(),
            })
        };
        let descriptions = self.nodes.iter().enumerate().map(description).collect::<Result<Vec<_>>>()?;
        let reports =
            descriptions.chunks(JOIN_BATCH).map(|seen| RegionReported { seen: seen.to_vec(), ..self.report() });
        reports.collect::<Vec<_>>().into_iter().map(|report| self.signed(report, key)).collect()
    }

    /// What its nodes do with a goal of their region.
    pub(crate) fn act(&mut self, goal: &RegionalGoal, key: &RequestKey) -> Result<Vec<Record>> {
        self.goal = Some(goal.clone());
        let mut records = Vec::new();
        for status in [NodeStatus::Fetching, NodeStatus::Healthy] {
            let statuses: Vec<StatusReport> =
                self.groups().into_values().map(|nodes| self.status(goal, &nodes, status, None)).collect();
            if !statuses.is_empty() {
                records.push(self.signed(RegionReported { statuses, ..self.report() }, key)?);
            }
        }
        Ok(records)
    }

    /// Every node that runs something is in this status now, told in many reports; for a failure there are five causes.
    pub(crate) fn report_each(&mut self, status: NodeStatus, key: &RequestKey) -> Result<(Vec<Record>, u64)> {
        let Some(goal) = self.goal.clone() else { return Ok((Vec::new(), 0)) };
        let nodes: Vec<NodeId> = self.groups().into_values().flatten().collect();
        let mut records = Vec::new();
        for (number, nodes) in nodes.chunks(STATUS_BATCH).enumerate() {
            let message = status.is_failure().then(|| format!("exit status: {}", number % 5 + 1));
            let statuses = vec![self.status(&goal, nodes, status, message)];
            records.push(self.signed(RegionReported { statuses, ..self.report() }, key)?);
        }
        Ok((records, nodes.len() as u64))
    }

    /// One node, with a service that nothing else is said of: when that is known, everything before it is.
    pub(crate) fn mark(&mut self, service: &ServiceName, key: &RequestKey) -> Result<Record> {
        let nodes = self.nodes.iter().take(1).map(|(node, _)| node.clone()).collect();
        let status = StatusReport {
            service: service.clone(),
            version: GoalVersion { revision: 1, step: 1 },
            artifact: None,
            status: NodeStatus::Stopped,
            port: 0,
            message: None,
            nodes,
        };
        self.signed(RegionReported { statuses: vec![status], ..self.report() }, key)
    }

    /// The nodes of each target of the goal, by its place.
    fn groups(&self) -> BTreeMap<usize, Vec<NodeId>> {
        let mut groups: BTreeMap<usize, Vec<NodeId>> = BTreeMap::new();
        let Some(goal) = &self.goal else { return groups };
        for (node, zone) in &self.nodes {
            let slot = slot(&goal.service, node);
            if let Some(target) = goal.targets.iter().position(|target| target.cohort.contains(slot, zone)) {
                groups.entry(target).or_default().push(node.clone());
            }
        }
        groups
    }

    fn status(
        &self,
        goal: &RegionalGoal,
        nodes: &[NodeId],
        status: NodeStatus,
        message: Option<String>,
    ) -> StatusReport {
        StatusReport {
            service: goal.service.clone(),
            version: goal.version,
            artifact: goal.targets.first().map(|target| target.artifact),
            status,
            port: if status == NodeStatus::Healthy { 28_000 } else { 0 },
            message,
            nodes: nodes.to_vec(),
        }
    }

    fn signed(&mut self, report: RegionReported, key: &RequestKey) -> Result<Record> {
        self.sequence += 1;
        let sender = format!("region/{}/{}", self.region, self.shard);
        let order = ReportOrder { sender: sender.clone(), boot: 1, sequence: self.sequence };
        let id = format!("{}-{}-{}", self.region, self.shard, self.sequence);
        record(FleetReport::from(report), &id, &sender, Some(order), key)
    }
}

/// A request as its sender writes it.
pub(crate) fn record<E: Event>(
    event: E,
    id: &str,
    actor: &str,
    report: Option<ReportOrder>,
    key: &RequestKey,
) -> Result<Record>
where
    Request<E>: codec::Message,
{
    let name = event.key();
    let request = Request { id: id.parse()?, at: clock::now(), actor: actor.to_owned(), trace: None, report, event };
    let value: Bytes = codec::encode(&request)?.into();
    let auth = key.sign(Signed { topic: E::TOPIC.name, key: name.as_bytes(), value: &value });
    Ok(Record::new(name, value).with_header(AUTH, auth))
}
