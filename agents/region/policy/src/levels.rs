//! What this region's nodes are and run, as levels, and what of it the log has not been told yet. Pure.
//!
//! A node's report on a service replaces its earlier one, so between two reports of a shard only the newest counts.
//! Nodes that now stand alike become one [`StatusReport`].
//!
//! A region may have several processes, which never speak to each other: each reads what the others tell the log
//! ([`Levels::read`]), and the log's order decides.
//!
//! - **A node's home** is the process whose description of it came last. Only its home calls it lost; a session of it elsewhere
//!   is an old one and ends.
//! - **A process is gone** when three of this one's own beats stand in the log since its last word. Its nodes are everybody's
//!   then: they are lost unless they came to another. Counting in the log and not on a clock, a process that cannot read takes nobody
//!   for dead.
//! - **Whatever a race left wrong is said again**: who has a node that another calls lost, or that stands otherwise than another
//!   says, tells it once more.
//!
//! Beats are sent only while there are others, so a region of one process is as quiet as if there were no such thing.

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
/// Beats of this process after which another that said nothing is gone.
const MISSED_BEATS_MAX: u32 = 3;
/// The shard in whose reports processes beat.
const BEAT_SHARD: u32 = 0;
/// Services that one node may report on.
pub const NODE_SERVICES_MAX: usize = 256;

/// Time since the region's start.
pub type Moment = Duration;

/// A node as it is remembered over restarts of the region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Known {
    pub description: NodeDescription,
    pub lost: bool,
    /// The sender that has it, if that is another process of the region.
    #[serde(default)]
    pub home: Option<String>,
}

struct Node {
    known: Known,
    /// The log has its description from this run of the region.
    described: bool,
    /// The log is being told that it is here: what others said before that does not count.
    claiming: bool,
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
    /// The other processes of the region, and how many beats of this one stand in the log since their last word.
    others: BTreeMap<String, u32>,
    /// Others are to hear of this process now.
    owes_beat: bool,
    /// Grows whenever [`Levels::known`] would answer something new.
    generation: u64,
}

impl Levels {
    /// Nodes that an earlier run knew count as heard of now: those that do not come back will be lost.
    pub fn new(region: RegionName, shards: u32, lost_after: Duration, known: BTreeMap<NodeId, Known>) -> Self {
        let others = known.values().filter_map(|known| Some((known.home.clone()?, 0))).collect();
        let node = |known| Node {
            known,
            described: false,
            claiming: false,
            heard_at: Moment::ZERO,
            services: BTreeMap::new(),
        };
        let nodes = known.into_iter().map(|(id, known)| (id, node(known))).collect();
        let untold = BTreeMap::new();
        Self { region, shards, lost_after, nodes, untold, others, owes_beat: true, generation: 0 }
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
                if node.known.description != description || !node.described || node.known.home.is_some() {
                    untold.seen.insert(id);
                    node.claiming = true;
                    self.generation += 1;
                }
                (node.known, node.described, node.heard_at) =
                    (Known { description, lost: false, home: None }, true, now);
            }
            None => {
                untold.seen.insert(id.clone());
                // It may be one that the log knows as lost, and that this region has forgotten.
                untold.returned.insert(id.clone());
                let known = Known { description, lost: false, home: None };
                let services = BTreeMap::new();
                self.nodes.insert(id, Node { known, described: true, claiming: true, heard_at: now, services });
                self.generation += 1;
            }
        }
    }

    /// Anything came from the node.
    pub fn heard(&mut self, id: &NodeId, now: Moment) {
        let Some(node) = self.nodes.get_mut(id).filter(|node| node.known.home.is_none()) else { return };
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
        let Some(node) = self.nodes.get_mut(id).filter(|node| node.known.home.is_none()) else { return true };
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

    /// Marks as lost those that were not heard of for too long, and those of processes that are gone; returns them.
    pub fn sweep(&mut self, now: Moment) -> Vec<NodeId> {
        self.adopt();
        let silent =
            |node: &Node| !node.known.lost && node.known.home.is_none() && node.heard_at + self.lost_after <= now;
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

    /// Takes over the nodes of processes that are gone. They were last heard of when their process was, at the latest.
    fn adopt(&mut self) {
        let is_gone = |missed: &u32| *missed >= MISSED_BEATS_MAX;
        if !self.others.values().any(is_gone) {
            return;
        }
        for node in self.nodes.values_mut() {
            let gone = node.known.home.as_ref().is_some_and(|home| self.others.get(home).is_none_or(is_gone));
            if gone {
                (node.known.home, node.heard_at) = (None, Moment::ZERO);
                self.generation += 1;
            }
        }
        self.others.retain(|_, missed| !is_gone(missed));
    }

    /// Takes in what a process of this region told the log; `sender` is `None` if it was this one. Returns the nodes whose sessions
    /// here are to be ended, because they have gone to another.
    pub fn read(&mut self, sender: Option<&str>, report: &RegionReported) -> Vec<NodeId> {
        if report.region != self.region {
            return Vec::new();
        }
        let Some(sender) = sender else {
            self.read_own(report);
            return Vec::new();
        };
        if self.others.insert(sender.to_owned(), 0).is_none() {
            self.owes_beat = true;
        }
        let gone = report.seen.iter().filter_map(|description| self.seen_elsewhere(sender, description)).collect();
        for id in &report.returned {
            self.returned_elsewhere(sender, id);
        }
        for status in &report.statuses {
            self.status_elsewhere(status);
        }
        for id in &report.lost {
            self.lost_elsewhere(id);
        }
        gone
    }

    fn read_own(&mut self, report: &RegionReported) {
        for description in &report.seen {
            if let Some(node) = self.nodes.get_mut(&description.node) {
                node.claiming = false;
                // What was read before is older: so it is when the log is read again after a restart.
                if node.known.home.take().is_some() {
                    self.generation += 1;
                }
            }
        }
        if is_beat(report) {
            self.others.values_mut().for_each(|missed| *missed = missed.saturating_add(1));
        }
    }

    fn seen_elsewhere(&mut self, sender: &str, description: &NodeDescription) -> Option<NodeId> {
        let id = &description.node;
        let known = Known { description: description.clone(), lost: false, home: Some(sender.to_owned()) };
        let Some(node) = self.nodes.get_mut(id) else {
            let (services, heard_at) = (BTreeMap::new(), Moment::ZERO);
            let node = Node { known, described: false, claiming: false, heard_at, services };
            self.nodes.insert(id.clone(), node);
            self.generation += 1;
            return None;
        };
        // This process's own word comes later in the log.
        if node.claiming {
            return None;
        }
        let was_here = node.known.home.is_none();
        (node.known, node.described) = (known, false);
        node.services.clear();
        self.generation += 1;
        if let Some(untold) = self.untold.get_mut(&shard_of(id, self.shards)) {
            untold.seen.remove(id);
            untold.lost.remove(id);
            untold.returned.remove(id);
            untold.statuses.retain(|(_, node)| node != id);
        }
        was_here.then(|| id.clone())
    }

    /// Another says where a node of this process stands: if it stands otherwise now, that was late.
    fn status_elsewhere(&mut self, said: &StatusReport) {
        for id in &said.nodes {
            let Some(node) = self.nodes.get(id).filter(|node| node.known.home.is_none()) else { continue };
            let Some(own) = node.services.get(&said.service) else { continue };
            let same = own.version == said.version
                && own.artifact == said.artifact
                && own.status == said.status
                && u32::from(own.port.unwrap_or(0)) == said.port
                && own.message == said.message;
            if !same {
                let untold = self.untold.entry(shard_of(id, self.shards)).or_default();
                untold.statuses.insert((said.service.clone(), id.clone()));
            }
        }
    }

    /// Who says that a node is back has it, unless it is here.
    fn returned_elsewhere(&mut self, sender: &str, id: &NodeId) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.known.home.is_some() || (node.known.lost && !node.claiming) {
            (node.known.home, node.known.lost, node.described) = (Some(sender.to_owned()), false, false);
            self.generation += 1;
            if let Some(untold) = self.untold.get_mut(&shard_of(id, self.shards)) {
                untold.lost.remove(id);
            }
        }
    }

    fn lost_elsewhere(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.known.home.is_some() {
            node.known.lost = true;
            self.generation += 1;
        } else if !node.known.lost && node.described {
            self.untold.entry(shard_of(id, self.shards)).or_default().returned.insert(id.clone());
        }
    }

    /// To be asked once a beat: what shows the others that this process is there, if there are others or may be.
    pub fn beat(&mut self) -> Option<RegionReported> {
        if !std::mem::take(&mut self.owes_beat) && self.others.is_empty() {
            return None;
        }
        let (seen, statuses, lost, returned) = Default::default();
        Some(RegionReported { region: self.region.clone(), shard: BEAT_SHARD, seen, statuses, lost, returned })
    }

    /// Whether others wait to hear of this process: a beat should not wait for its time.
    pub fn owes_beat(&self) -> bool {
        self.owes_beat
    }

    /// The other processes of the region.
    pub fn others(&self) -> impl Iterator<Item = &str> {
        self.others.keys().map(String::as_str)
    }

    /// Whether another process has the node.
    pub fn is_elsewhere(&self, id: &NodeId) -> bool {
        self.nodes.get(id).is_some_and(|node| node.known.home.is_some() && !node.known.lost)
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

fn is_beat(report: &RegionReported) -> bool {
    let RegionReported { shard, seen, statuses, lost, returned, .. } = report;
    *shard == BEAT_SHARD && seen.is_empty() && statuses.is_empty() && lost.is_empty() && returned.is_empty()
}

fn take_some<T: Ord>(from: &mut BTreeSet<T>) -> Vec<T> {
    std::iter::from_fn(|| from.pop_first()).take(REPORT_NODES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn levels(known_nodes: &[(&str, bool)]) -> Levels {
        let known = |node: &str, lost| Known { description: description(node), lost, home: None };
        let known = known_nodes.iter().map(|(node, lost)| (id(node), known(node, *lost)));
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
            labels: Default::default(),
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

    /// Two processes of one region and the log between them.
    struct Pair {
        both: [Levels; 2],
        log: Vec<(usize, RegionReported)>,
        read: [usize; 2],
        /// Whose sessions were ended, and which nodes'.
        ended: Vec<(usize, NodeId)>,
    }

    impl Pair {
        fn new() -> Self {
            Self { both: [levels(&[]), levels(&[])], log: Vec::new(), read: [0, 0], ended: Vec::new() }
        }

        /// One tells the log what it has not told yet.
        fn tell(&mut self, one: usize) {
            while let Some(report) = self.both[one].take(0) {
                self.log.push((one, report));
            }
        }

        fn beat(&mut self, one: usize) {
            let beat = self.both[one].beat().map(|report| (one, report));
            self.log.extend(beat);
        }

        /// One reads the log to its end.
        fn follow(&mut self, one: usize) {
            for (teller, report) in &self.log[self.read[one]..] {
                let name = format!("region/eu/{teller}");
                let sender = (*teller != one).then_some(name.as_str());
                let ended = self.both[one].read(sender, report);
                self.ended.extend(ended.into_iter().map(|id| (one, id)));
            }
            self.read[one] = self.log.len();
        }

        fn settle(&mut self) {
            for _ in 0..4 {
                for one in [0, 1] {
                    self.tell(one);
                    self.follow(one);
                }
            }
            assert!((0..2).all(|one| self.both[one].untold().is_empty()), "they come to rest");
        }

        /// What the log says of a node in the end: whether it is lost, and its status.
        fn says(&self, node: &str) -> (bool, Option<NodeStatus>) {
            let (mut lost, mut said) = (false, None);
            for (_, report) in &self.log {
                let seen = report.seen.iter().any(|seen| seen.node == id(node));
                if seen || report.returned.contains(&id(node)) {
                    lost = false;
                }
                for status in report.statuses.iter().filter(|status| status.nodes.contains(&id(node))) {
                    said = Some(status.status);
                }
                lost |= report.lost.contains(&id(node));
            }
            (lost, said)
        }
    }

    #[test]
    fn a_node_that_went_to_another_process_is_not_lost_and_its_old_session_ends() {
        let mut pair = Pair::new();
        pair.both[0].hello(description("n1"), SECOND);
        pair.settle();
        pair.both[1].hello(description("n1"), 2 * SECOND);
        pair.settle();
        assert_eq!(pair.ended, [(0, id("n1"))]);
        assert!(pair.both[0].is_elsewhere(&id("n1")) && !pair.both[1].is_elsewhere(&id("n1")));
        pair.both[0].heard(&id("n1"), 3 * SECOND);
        pair.both[1].heard(&id("n1"), 60 * SECOND);
        assert!(pair.both[0].sweep(60 * SECOND).is_empty() && pair.both[1].sweep(60 * SECOND).is_empty());
        pair.both[0].hello(description("n1"), 61 * SECOND);
        pair.settle();
        assert_eq!(pair.ended, [(0, id("n1")), (1, id("n1"))], "and back again");
        pair.settle();
        assert!(pair.both[0].sweep(91 * SECOND).len() == 1 && pair.both[1].sweep(91 * SECOND).is_empty());
    }

    #[test]
    fn a_late_word_of_the_process_that_had_a_node_is_put_right() {
        let mut pair = Pair::new();
        pair.both[0].hello(description("n1"), SECOND);
        pair.settle();
        assert!(pair.both[0].report(&id("n1"), status("web", NodeStatus::Healthy, None)));
        let late = pair.both[0].take(0).expect("a status");
        // Its sweep has called it lost just before it heard that the node is elsewhere.
        pair.both[0].sweep(40 * SECOND);
        let lost = pair.both[0].take(0).expect("lost");
        pair.both[1].hello(description("n1"), 40 * SECOND);
        assert!(pair.both[1].report(&id("n1"), status("web", NodeStatus::Failed, None)));
        pair.tell(1);
        pair.log.extend([(0, late), (0, lost)]);
        assert_eq!(pair.says("n1"), (true, Some(NodeStatus::Healthy)));
        pair.settle();
        assert_eq!(pair.says("n1"), (false, Some(NodeStatus::Failed)));
    }

    #[test]
    fn both_that_greet_a_node_at_once_agree_on_the_later_word() {
        let mut pair = Pair::new();
        pair.both[0].hello(description("n1"), SECOND);
        pair.both[1].hello(description("n1"), SECOND);
        pair.tell(1);
        pair.tell(0);
        pair.settle();
        assert_eq!(pair.ended, [(1, id("n1"))]);
        assert!(pair.both[1].is_elsewhere(&id("n1")) && !pair.both[0].is_elsewhere(&id("n1")));
    }

    #[test]
    fn the_nodes_of_a_process_that_is_gone_are_lost_unless_they_came_to_another() {
        let mut pair = Pair::new();
        for node in ["n1", "n2"] {
            pair.both[0].hello(description(node), SECOND);
        }
        pair.settle();
        pair.beat(0);
        pair.follow(1);
        pair.both[1].hello(description("n1"), 2 * SECOND);
        for beats in 0..3 {
            assert!(pair.both[1].sweep(29 * SECOND).is_empty(), "{beats} beats are not enough");
            pair.tell(1);
            pair.beat(1);
            pair.follow(1);
        }
        assert_eq!(pair.both[1].sweep(30 * SECOND), [id("n2")]);
        assert_eq!(pair.both[1].others().count(), 0);
        assert!(pair.both[1].beat().is_none(), "there is nobody to hear it");
        // It was not dead, but slow: it says again what it has.
        pair.settle();
        assert_eq!(pair.says("n2"), (false, None));
        assert!(pair.both[1].owes_beat() && pair.both[1].is_elsewhere(&id("n2")));
        assert!(
            pair.both[1].sweep(3_600 * SECOND).iter().all(|lost| *lost != id("n2")),
            "it is not this one's to lose"
        );
    }

    #[test]
    fn a_process_that_cannot_read_takes_nobody_for_dead() {
        let mut pair = Pair::new();
        pair.both[0].hello(description("n1"), SECOND);
        pair.settle();
        for _ in 0..10 {
            pair.beat(1);
        }
        pair.beat(0);
        assert!(pair.both[1].sweep(3_600 * SECOND).is_empty(), "its own beats it has not read either");
        pair.follow(1);
        assert!(pair.both[1].sweep(3_600 * SECOND).is_empty(), "the other's last word came later");
    }

    #[test]
    fn one_alone_says_that_it_is_there_and_then_nothing() {
        let mut alone = levels(&[]);
        let beat = alone.beat().expect("once");
        assert!(is_beat(&beat));
        assert!(alone.read(None, &beat).is_empty());
        assert!(alone.beat().is_none() && !alone.owes_beat());
    }
}
