//! What this region's nodes are and run, as levels, and what of it the log has not been told yet. Pure.
//!
//! A node's report on a service replaces its earlier one, so between two reports of a shard only the newest counts.
//! Nodes that now stand alike become one [`StatusReport`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_schemas::{
    ArtifactId, NodeId, RegionName, ServiceName,
    events::{GoalVersion, NodeDescription, NodeStatus, RegionReported, StatusReport},
    nodes::shard_of,
    stream::NodeReport,
};
use serde::{Deserialize, Serialize};

/// Most nodes of each kind (described, lost, returned, with a status) in one report; a record has at most 1 MiB.
const REPORT_NODES_MAX: usize = 400;
/// Longest message that is passed on, in characters.
const MESSAGE_CHARS_MAX: usize = 300;
/// Services that one node may report on.
pub const NODE_SERVICES_MAX: usize = 256;

/// Time since the region's start.
pub type Moment = Duration;

/// A node as it is remembered over restarts of the region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Known {
    pub description: NodeDescription,
    pub lost: bool,
}

struct Node {
    known: Known,
    /// The log has its description from this run of the region.
    described: bool,
    heard_at: Moment,
    services: BTreeMap<ServiceName, NodeReport>,
}

#[derive(Default)]
struct Untold {
    seen: BTreeSet<NodeId>,
    statuses: BTreeSet<(ServiceName, NodeId)>,
    lost: BTreeSet<NodeId>,
    returned: BTreeSet<NodeId>,
}

/// See the module.
pub struct Levels {
    region: RegionName,
    shards: u32,
    lost_after: Duration,
    nodes: BTreeMap<NodeId, Node>,
    untold: BTreeMap<u32, Untold>,
    /// Grows whenever [`Levels::known`] would answer something new.
    generation: u64,
}

impl Levels {
    /// Nodes that an earlier run knew count as heard of now: those that do not come back will be lost.
    pub fn new(region: RegionName, shards: u32, lost_after: Duration, known: BTreeMap<NodeId, Known>) -> Self {
        let node = |known| Node { known, described: false, heard_at: Moment::ZERO, services: BTreeMap::new() };
        let nodes = known.into_iter().map(|(id, known)| (id, node(known))).collect();
        Self { region, shards, lost_after, nodes, untold: BTreeMap::new(), generation: 0 }
    }

    pub fn known(&self) -> BTreeMap<NodeId, Known> {
        self.nodes.iter().map(|(id, node)| (id.clone(), node.known.clone())).collect()
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The node connected and said what it is.
    pub fn hello(&mut self, description: NodeDescription, now: Moment) {
        let id = description.node.clone();
        let shard = shard_of(&id, self.shards);
        let untold = self.untold.entry(shard).or_default();
        match self.nodes.get_mut(&id) {
            Some(node) => {
                if node.known.lost {
                    untold.lost.remove(&id);
                    untold.returned.insert(id.clone());
                    self.generation += 1;
                }
                if node.known.description != description || !node.described {
                    untold.seen.insert(id);
                    self.generation += 1;
                }
                (node.known, node.described, node.heard_at) = (Known { description, lost: false }, true, now);
            }
            None => {
                untold.seen.insert(id.clone());
                // It may be one that the log knows as lost, and that this region has forgotten.
                untold.returned.insert(id.clone());
                let known = Known { description, lost: false };
                self.nodes.insert(id, Node { known, described: true, heard_at: now, services: BTreeMap::new() });
                self.generation += 1;
            }
        }
    }

    /// Anything came from the node.
    pub fn heard(&mut self, id: &NodeId, now: Moment) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.heard_at = now;
        if node.known.lost {
            node.known.lost = false;
            self.generation += 1;
            let untold = self.untold.entry(shard_of(id, self.shards)).or_default();
            untold.lost.remove(id);
            untold.returned.insert(id.clone());
        }
    }

    /// The node's level for one service. `false` if it reports on more services than a node may.
    pub fn report(&mut self, id: &NodeId, mut report: NodeReport) -> bool {
        let Some(node) = self.nodes.get_mut(id) else { return true };
        if node.services.len() >= NODE_SERVICES_MAX && !node.services.contains_key(&report.service) {
            return false;
        }
        report.message = report.message.map(|message| message.chars().take(MESSAGE_CHARS_MAX).collect());
        let service = report.service.clone();
        if node.services.get(&service) != Some(&report) {
            node.services.insert(service.clone(), report);
            let untold = self.untold.entry(shard_of(id, self.shards)).or_default();
            untold.statuses.insert((service, id.clone()));
        }
        true
    }

    /// Marks as lost those that were not heard of for too long; returns them.
    pub fn sweep(&mut self, now: Moment) -> Vec<NodeId> {
        let silent = |node: &Node| !node.known.lost && node.heard_at + self.lost_after <= now;
        let lost: Vec<NodeId> = self.nodes.iter().filter(|(_, n)| silent(n)).map(|(id, _)| id.clone()).collect();
        for id in &lost {
            if let Some(node) = self.nodes.get_mut(id) {
                node.known.lost = true;
                self.generation += 1;
            }
            let untold = self.untold.entry(shard_of(id, self.shards)).or_default();
            untold.returned.remove(id);
            untold.lost.insert(id.clone());
        }
        lost
    }

    /// The shards of which the log does not know all.
    pub fn untold(&self) -> Vec<u32> {
        self.untold.keys().copied().collect()
    }

    /// What is to be told of a shard, as much as one report may hold; the rest is left for the next.
    pub fn take(&mut self, shard: u32) -> Option<RegionReported> {
        let mut untold = self.untold.remove(&shard)?;
        let seen = take_some(&mut untold.seen);
        let mut report = RegionReported {
            region: self.region.clone(),
            shard,
            seen: seen.iter().filter_map(|id| Some(self.nodes.get(id)?.known.description.clone())).collect(),
            statuses: Vec::new(),
            lost: Vec::new(),
            returned: Vec::new(),
        };
        // Whatever else is said of a node must not come before its description.
        if untold.seen.is_empty() {
            report.lost = take_some(&mut untold.lost);
            report.returned = take_some(&mut untold.returned);
            report.statuses = self.alike(take_some(&mut untold.statuses));
        }
        let left = untold.seen.len() + untold.statuses.len() + untold.lost.len() + untold.returned.len();
        if left > 0 {
            self.untold.insert(shard, untold);
        }
        let said = report.seen.len() + report.statuses.len() + report.lost.len() + report.returned.len();
        (said > 0).then_some(report)
    }

    fn alike(&self, statuses: Vec<(ServiceName, NodeId)>) -> Vec<StatusReport> {
        type Alike = (ServiceName, GoalVersion, Option<ArtifactId>, NodeStatus, u32, Option<String>);
        let mut groups: BTreeMap<Alike, Vec<NodeId>> = BTreeMap::new();
        for (service, id) in statuses {
            let Some(level) = self.nodes.get(&id).and_then(|node| node.services.get(&service)) else { continue };
            let (port, message) = (u32::from(level.port.unwrap_or(0)), level.message.clone());
            let alike = (service, level.version, level.artifact, level.status, port, message);
            groups.entry(alike).or_default().push(id);
        }
        let report = |((service, version, artifact, status, port, message), nodes)| StatusReport {
            service,
            version,
            artifact,
            status,
            port,
            message,
            nodes,
        };
        groups.into_iter().map(report).collect()
    }
}

fn take_some<T: Ord>(from: &mut BTreeSet<T>) -> Vec<T> {
    std::iter::from_fn(|| from.pop_first()).take(REPORT_NODES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn levels(known: &[(&str, bool)]) -> Levels {
        let known = known.iter().map(|(node, lost)| (id(node), Known { description: description(node), lost: *lost }));
        Levels::new("eu".parse().expect("valid"), 1, 30 * SECOND, known.collect())
    }

    fn id(node: &str) -> NodeId {
        node.parse().expect("valid")
    }

    fn description(node: &str) -> NodeDescription {
        NodeDescription {
            node: id(node),
            zone: "a".parse().expect("valid"),
            rack: "r1".parse().expect("valid"),
            host: "127.0.0.1".to_owned(),
            agent_version: "1".to_owned(),
        }
    }

    fn status(service: &str, status: NodeStatus, message: Option<&str>) -> NodeReport {
        NodeReport {
            service: service.parse().expect("valid"),
            version: GoalVersion { revision: 1, step: 1 },
            artifact: None,
            status,
            port: Some(80),
            message: message.map(str::to_owned),
        }
    }

    /// A report as one line.
    fn told(levels: &mut Levels) -> String {
        let Some(report) = levels.take(0) else { return String::new() };
        let names = |nodes: &[NodeId]| nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(",");
        let mut line = Vec::new();
        if !report.seen.is_empty() {
            let seen: Vec<NodeId> = report.seen.iter().map(|seen| seen.node.clone()).collect();
            line.push(format!("seen {}", names(&seen)));
        }
        for status in &report.statuses {
            line.push(format!("{} {:?} {}", status.service, status.status, names(&status.nodes)));
        }
        for (what, nodes) in [("lost", &report.lost), ("returned", &report.returned)] {
            if !nodes.is_empty() {
                line.push(format!("{what} {}", names(nodes)));
            }
        }
        line.join("; ")
    }

    #[test]
    fn only_the_newest_of_each_service_is_told_and_equals_are_joined() {
        let mut levels = levels(&[]);
        for node in ["n1", "n2", "n3"] {
            levels.hello(description(node), SECOND);
            for step in [NodeStatus::Fetching, NodeStatus::Starting, NodeStatus::Healthy] {
                assert!(levels.report(&id(node), status("web", step, None)));
            }
        }
        assert!(levels.report(&id("n2"), status("web", NodeStatus::Failed, Some("exit 1"))));
        assert_eq!(told(&mut levels), "seen n1,n2,n3; web Healthy n1,n3; web Failed n2; returned n1,n2,n3");
        assert!(levels.report(&id("n1"), status("web", NodeStatus::Healthy, None)));
        levels.hello(description("n1"), 2 * SECOND);
        assert_eq!(told(&mut levels), "", "nothing is new");
    }

    #[test]
    fn silence_loses_a_node_and_a_word_brings_it_back() {
        let mut levels = levels(&[]);
        levels.hello(description("n1"), SECOND);
        told(&mut levels);
        assert!(levels.sweep(30 * SECOND).is_empty());
        levels.heard(&id("n1"), 30 * SECOND);
        assert!(levels.sweep(59 * SECOND).is_empty());
        assert_eq!(levels.sweep(60 * SECOND), [id("n1")]);
        assert!(levels.sweep(61 * SECOND).is_empty(), "once");
        assert_eq!(told(&mut levels), "lost n1");
        levels.heard(&id("n1"), 62 * SECOND);
        assert_eq!(told(&mut levels), "returned n1");
        levels.sweep(99 * SECOND);
        levels.heard(&id("n1"), 99 * SECOND);
        assert_eq!(told(&mut levels), "returned n1", "what was not told is not taken back but corrected");
    }

    #[test]
    fn a_restarted_region_loses_those_that_do_not_come_back() {
        let mut levels = levels(&[("n1", false), ("n2", false), ("n3", true)]);
        levels.hello(description("n1"), 5 * SECOND);
        assert_eq!(told(&mut levels), "seen n1");
        levels.sweep(31 * SECOND);
        assert_eq!(told(&mut levels), "lost n2");
        levels.hello(description("n3"), 32 * SECOND);
        assert_eq!(told(&mut levels), "seen n3; returned n3");
    }

    #[test]
    fn a_report_is_bounded_and_the_rest_follows() {
        let mut levels = levels(&[]);
        for n in 0..1_000 {
            levels.hello(description(&format!("n{n}")), SECOND);
            levels.report(&id(&format!("n{n}")), status("web", NodeStatus::Healthy, None));
        }
        let mut sizes = Vec::new();
        while let Some(report) = levels.take(0) {
            let statuses: usize = report.statuses.iter().map(|status| status.nodes.len()).sum();
            sizes.push((report.seen.len(), statuses, report.returned.len()));
        }
        assert_eq!(sizes, [(400, 0, 0), (400, 0, 0), (200, 400, 400), (0, 400, 400), (0, 200, 200)]);
    }

    #[test]
    fn a_node_cannot_fill_the_memory() {
        let mut levels = levels(&[]);
        levels.hello(description("n1"), SECOND);
        let accepted =
            (0..1_000).filter(|n| levels.report(&id("n1"), status(&format!("s{n}"), NodeStatus::Healthy, None)));
        assert_eq!(accepted.count(), NODE_SERVICES_MAX);
        let long = "x".repeat(1_000_000);
        assert!(levels.report(&id("n1"), status("s0", NodeStatus::Failed, Some(&long))));
        let report = levels.take(0).expect("something new");
        assert!(report.statuses.iter().all(|s| s.message.as_ref().is_none_or(|m| m.len() <= MESSAGE_CHARS_MAX)));
    }
}
