//! A simulated fleet around the two pure processors: goals and fleet exchange their messages, replication and regions are
//! imitated, and nodes do what their region's goal says.
//!
//! Invariants are asserted wherever a message passes: a region's goal never goes back (9), and names only artifacts that
//! are pinned for that region (7).

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_fleet::Fleet;
use longshore_goals::Goals;
use longshore_processor::{Outgoing, testing::Driver};
use longshore_schemas::{
    ArtifactId, NodeId, RegionName, RequestId, ServiceName, ZoneName,
    events::{
        ArtifactRequest, GoalFact, GoalRequest, GoalVersion, HealthCheck, NodeDescription, NodeStatus, PinAnswered,
        PinRequested, RegionReported, RegionalGoal, RunSpec, StatusReport, StopSignal,
    },
    nodes::{shard_of, slot},
};

pub(crate) fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a test's name is valid")
}

/// Rounds of messages after which an exchange counts as endless.
const ROUNDS_MAX: usize = 500;

pub(crate) struct World {
    pub(crate) goals: Driver<Goals>,
    pub(crate) fleet: Driver<Fleet>,
    shards: u32,
    goals_read: usize,
    fleet_read: usize,
    facts_read: usize,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// The compacted topic: what each region must run.
    pub(crate) regional: BTreeMap<(RegionName, ServiceName), RegionalGoal>,
    /// Regions that each artifact was pinned in, while it is.
    pinned: BTreeMap<(ServiceName, ArtifactId), BTreeSet<RegionName>>,
    pub(crate) pins: Vec<PinRequested>,
    pub(crate) answers_pins: bool,
    pub(crate) unpinned: Vec<(ServiceName, ArtifactId)>,
    /// What was pinned to go back to, in no region in particular.
    pub(crate) pinned_to_go_back: Vec<(ServiceName, ArtifactId)>,
    /// Artifacts that do not get healthy where they do not run yet.
    pub(crate) broken: BTreeSet<ArtifactId>,
}

pub(crate) struct Node {
    pub(crate) region: RegionName,
    pub(crate) zone: ZoneName,
    pub(crate) stalled: bool,
    /// What it runs of each service, and what it said last.
    pub(crate) services: BTreeMap<ServiceName, Runs>,
}

#[derive(Clone, PartialEq, Default)]
pub(crate) struct Runs {
    pub(crate) artifact: Option<ArtifactId>,
    said: Option<(GoalVersion, Option<ArtifactId>, NodeStatus)>,
}

impl World {
    pub(crate) fn new(regions: &[&str], shards: u32) -> Self {
        let regions: Vec<RegionName> = regions.iter().map(|region| id(region)).collect();
        let goals = Goals::new(longshore_goals::Config::new(regions.clone(), shards));
        let fleet = Fleet::new(longshore_fleet::Config { regions, shards_per_region: shards });
        Self {
            goals: Driver::new(goals),
            fleet: Driver::new(fleet),
            shards,
            goals_read: 0,
            fleet_read: 0,
            facts_read: 0,
            nodes: BTreeMap::new(),
            regional: BTreeMap::new(),
            pinned: BTreeMap::new(),
            pins: Vec::new(),
            answers_pins: true,
            unpinned: Vec::new(),
            pinned_to_go_back: Vec::new(),
            broken: BTreeSet::new(),
        }
    }

    pub(crate) fn add_node(&mut self, name: &str, region: &str, zone: &str) {
        let (node, region, zone): (NodeId, RegionName, ZoneName) = (id(name), id(region), id(zone));
        let description = NodeDescription {
            node: node.clone(),
            zone: zone.clone(),
            rack: id("rack"),
            host: name.to_owned(),
            agent_version: "1".to_owned(),
            labels: Default::default(),
        };
        self.report(&region, &node, |report| report.seen.push(description));
        self.nodes.insert(node, Node { region, zone, stalled: false, services: BTreeMap::new() });
    }

    pub(crate) fn lose_or_return(&mut self, name: &str, lost: bool) {
        let node: NodeId = id(name);
        let region = self.nodes[&node].region.clone();
        self.report(
            &region,
            &node.clone(),
            |report| {
                if lost { report.lost.push(node) } else { report.returned.push(node) }
            },
        );
    }

    fn report(&mut self, region: &RegionName, node: &NodeId, fill: impl FnOnce(&mut RegionReported)) {
        let mut report = empty_report(region, shard_of(node, self.shards));
        fill(&mut report);
        let decision = self.fleet.request(report);
        assert_eq!(decision.refusal, None);
    }

    /// Passes on every message that waits, until none does.
    pub(crate) fn deliver(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut messages = self.goals.sent()[self.goals_read..].to_vec();
            self.goals_read += messages.len();
            self.fleet.advance(Duration::ZERO);
            messages.extend_from_slice(&self.fleet.sent()[self.fleet_read..]);
            self.fleet_read = self.fleet.sent().len();
            if messages.is_empty() {
                return;
            }
            for message in messages {
                self.pass_on(message);
            }
        }
        panic!("messages go round and round");
    }

    fn pass_on(&mut self, message: Outgoing) {
        match message {
            Outgoing::Artifact(ArtifactRequest::PinRequested(pin)) => {
                if pin.regions.is_empty() {
                    self.pinned_to_go_back.push((pin.service.clone(), pin.artifact));
                }
                self.pins.push(pin);
                if self.answers_pins {
                    self.answer_pins(None);
                }
            }
            Outgoing::Artifact(ArtifactRequest::UnpinRequested(unpin)) => {
                self.pinned.remove(&(unpin.service.clone(), unpin.artifact));
                self.unpinned.push((unpin.service, unpin.artifact));
            }
            Outgoing::Artifact(other) => panic!("goals asks replication for {other:?}"),
            Outgoing::Fleet(event) => {
                let decision = self.fleet.request(event);
                assert_eq!(decision.refusal, None, "fleet refuses goals");
            }
            Outgoing::Goal(event) => {
                let decision = self.goals.request(event);
                assert_eq!(decision.refusal, None, "goals refuses fleet");
            }
            Outgoing::GoalState(goal) => self.goal_stated(&goal),
        }
    }

    fn goal_stated(&mut self, goal: &RegionalGoal) {
        for target in &goal.targets {
            let pinned = self.pinned.get(&(goal.service.clone(), target.artifact));
            assert!(pinned.is_some_and(|regions| regions.contains(&goal.region)), "not pinned there: {goal:?}");
        }
        let key = (goal.region.clone(), goal.service.clone());
        if let Some(before) = self.regional.insert(key, goal.clone()) {
            assert!(goal.version > before.version, "{goal:?} after {before:?}");
        }
    }

    /// Replication's answer to every pin that waits.
    pub(crate) fn answer_pins(&mut self, refusal: Option<&str>) {
        for pin in std::mem::take(&mut self.pins) {
            if refusal.is_none() {
                let regions = self.pinned.entry((pin.service.clone(), pin.artifact)).or_default();
                regions.extend(pin.regions);
            }
            self.goals.request(PinAnswered {
                service: pin.service,
                deploy: pin.deploy,
                artifact: pin.artifact,
                run: refusal.is_none().then(run),
                refusal: refusal.map(str::to_owned),
            });
        }
    }

    /// Lets every node that is not stalled do what it must, and its region report it. Answers whether anything changed.
    pub(crate) fn act(&mut self, wanted: impl Fn(&NodeId) -> bool) -> bool {
        let mut reports: BTreeMap<(RegionName, u32), RegionReported> = BTreeMap::new();
        for (name, node) in self.nodes.iter_mut().filter(|(name, node)| !node.stalled && wanted(name)) {
            let shard = shard_of(name, self.shards);
            for ((region, service), goal) in &self.regional {
                if *region != node.region {
                    continue;
                }
                let runs = node.services.entry(service.clone()).or_default();
                if let Some(status) = follow(goal, name, &node.zone, &self.broken, runs) {
                    let report = reports.entry((region.clone(), shard)).or_insert_with(|| empty_report(region, shard));
                    add_status(report, status);
                }
            }
        }
        let acted = !reports.is_empty();
        for report in reports.into_values() {
            assert_eq!(self.fleet.request(report).refusal, None);
        }
        acted
    }

    /// Nodes act and messages pass until all is quiet; up to a second passes each time.
    pub(crate) fn run(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.deliver();
            let acted = self.act(|_| true);
            let (goals, fleet) = (self.goals.facts().len(), self.fleet.sent().len());
            self.advance(Duration::from_secs(1));
            if !acted && self.goals.facts().len() == goals && self.fleet.sent().len() == fleet {
                return;
            }
        }
        panic!("the fleet does not come to rest");
    }

    pub(crate) fn advance(&mut self, duration: Duration) {
        self.goals.advance(duration);
        self.fleet.advance(duration);
        self.deliver();
    }

    /// Facts of goals since the last call.
    pub(crate) fn new_facts(&mut self) -> Vec<GoalFact> {
        let facts = self.goals.facts()[self.facts_read..].iter().map(|fact| fact.event.clone()).collect();
        self.facts_read = self.goals.facts().len();
        facts
    }

    pub(crate) fn ask(&mut self, request: &str, event: impl Into<GoalRequest>) -> Option<String> {
        let event: GoalRequest = event.into();
        let request: RequestId = id(request);
        self.goals
            .request_as(request.as_str(), event)
            .refusal
            .map(|refused| format!("{:?}: {}", refused.code, refused.reason))
    }

    /// Invariant 2.
    pub(crate) fn assert_replay(&self) {
        self.goals.assert_replay();
        self.fleet.assert_replay();
    }
}

/// What a node does about its region's goal; the status to report, if that changed.
fn follow(
    goal: &RegionalGoal,
    name: &NodeId,
    zone: &ZoneName,
    broken: &BTreeSet<ArtifactId>,
    runs: &mut Runs,
) -> Option<StatusReport> {
    let slot = slot(&goal.service, name);
    let target = goal.targets.iter().find(|target| target.cohort.contains(slot, zone));
    let (artifact, status) = match target {
        None => {
            runs.said.as_ref()?;
            runs.artifact = None;
            (None, NodeStatus::Stopped)
        }
        Some(target) if broken.contains(&target.artifact) && runs.artifact != Some(target.artifact) => {
            let back = if runs.artifact.is_some() { NodeStatus::RolledBack } else { NodeStatus::Failed };
            (Some(target.artifact), back)
        }
        Some(target) => {
            runs.artifact = Some(target.artifact);
            (Some(target.artifact), NodeStatus::Healthy)
        }
    };
    let said = Some((goal.version, artifact, status));
    if runs.said == said {
        return None;
    }
    runs.said = said;
    let message = status.is_failure().then(|| "exited with status 1".to_owned());
    let (service, version, port) = (goal.service.clone(), goal.version, 8_000);
    Some(StatusReport { service, version, artifact, status, port, message, nodes: vec![name.clone()] })
}

fn add_status(report: &mut RegionReported, status: StatusReport) {
    let alike = report.statuses.iter_mut().find(|other| {
        (&other.service, other.version, other.artifact, other.status)
            == (&status.service, status.version, status.artifact, status.status)
    });
    match alike {
        Some(other) => other.nodes.extend(status.nodes),
        None => report.statuses.push(status),
    }
}

fn empty_report(region: &RegionName, shard: u32) -> RegionReported {
    RegionReported {
        region: region.clone(),
        shard,
        seen: Vec::new(),
        statuses: Vec::new(),
        lost: Vec::new(),
        returned: Vec::new(),
    }
}

pub(crate) fn run() -> RunSpec {
    RunSpec {
        command: vec!["./serve".to_owned()],
        environment: BTreeMap::new(),
        health: HealthCheck::default(),
        stop_signal: StopSignal::Term,
        stop_seconds: 10,
        ..RunSpec::default()
    }
}
