//! Where a service runs, counted: from fleet's rows of one service, which are neighbours.
//!
//! ```text
//! rows of a shard ─▶ Summary: counts by place and version · failures alike · the stragglers that are behind longest ─▶ FleetView
//! ```
//!
//! A shard is counted anew when anything in its partition has changed; the view is the sum of all shards.
//!
//! A summary's memory is bounded whatever nodes say: so many counts, causes and stragglers; what does not fit is told as a number.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
};

use longshore_fleet::{
    Fleet,
    tables::{COHORTS, NODES, Node, STATUSES, Status},
};
use longshore_processor::{Order, Range, StateError};
use longshore_runtime::{Applied, Handle, View};
use longshore_schemas::{
    NodeId, RegionName, ServiceName, Timestamp,
    events::{GoalVersion, NodeStatus, shard_key},
    http::{FailureView, FleetCountView, FleetView, StragglerView},
};

use super::nodes::shards;

const COUNTS_MAX: usize = 10_000;
const CAUSES_MAX: usize = 1_000;
/// Of the causes, so many are answered, the most frequent ones.
const CAUSES_SHOWN: usize = 50;
const EXAMPLES_MAX: usize = 3;
const STRAGGLERS_MAX: usize = 100;
const CAUSE_CHARS_MAX: usize = 200;
/// Hexadecimal digits in a row that are a name of something, not a word or a number that says much.
const NAME_DIGITS_MIN: usize = 8;

/// Shards of services whose summaries are kept.
const KEPT_MAX: usize = 4_000;

/// What was counted of each shard, as long as nothing changes there: a dashboard asks far more often than nodes say something new.
#[derive(Default)]
pub(crate) struct Summaries(Mutex<Kept>);

/// By service, region and shard: as of when, and the summary.
type Kept = HashMap<(ServiceName, RegionName, u32), (Applied, Arc<Summary>)>;

impl Summaries {
    pub(super) fn of_service(&self, handle: &Handle<Fleet>, service: &ServiceName) -> Result<FleetView, StateError> {
        let mut whole = Summary::default();
        for (region, shard) in shards(handle, None)? {
            let held = handle.store_of(&shard_key(&region, shard)).hold()?;
            let state = held.view();
            let applied = state.applied()?;
            let key = (service.clone(), region, shard);
            let kept = self.lock().get(&key).filter(|(of, _)| *of == applied).map(|(_, summary)| summary.clone());
            let summary = match kept {
                Some(summary) => summary,
                None => {
                    let summary = Arc::new(of_shard(&state, service, &key.1, shard)?);
                    self.keep(key, (applied, summary.clone()));
                    summary
                }
            };
            whole.merge(&summary);
        }
        Ok(whole.view(service))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, key: (ServiceName, RegionName, u32), summary: (Applied, Arc<Summary>)) {
        let mut kept = self.lock();
        if kept.len() >= KEPT_MAX && !kept.contains_key(&key) {
            // Which of them is asked for again is not known; all can be counted anew.
            kept.clear();
        }
        kept.insert(key, summary);
    }
}

fn of_shard(state: &View<'_>, service: &ServiceName, region: &RegionName, shard: u32) -> Result<Summary, StateError> {
    let newest = COHORTS.get(state, &(region.clone(), shard, service.clone()))?.map(|cohort| cohort.version);
    // Both tables in the order of the nodes' numbers: one walk over each costs far less than a look for every node.
    let mut nodes = Vec::new();
    NODES.scan(state, &Range::prefix(&(region.clone(), shard)), Order::Ascending, |(_, _, number), node| {
        nodes.push((number, node));
        ControlFlow::Continue(())
    })?;
    let mut nodes = nodes.into_iter().peekable();
    let mut summary = Summary::default();
    let mut unknown = None;
    let rows = Range::prefix(&(region.clone(), shard, service.clone()));
    STATUSES.scan(state, &rows, Order::Ascending, |(_, _, _, number), status| {
        while nodes.next_if(|(other, _)| *other < number).is_some() {}
        match nodes.next_if(|(other, _)| *other == number) {
            Some((_, node)) => summary.add(region, node, status, newest),
            None => unknown = Some(number),
        }
        if unknown.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    match unknown {
        // It is not there: this says so.
        Some(number) => NODES.expect(state, &(region.clone(), shard, number)).map(|_| summary),
        None => Ok(summary),
    }
}

#[derive(Debug, Default)]
struct Cause {
    nodes: u64,
    regions: BTreeSet<RegionName>,
    examples: Vec<NodeId>,
}

#[derive(Debug, Default)]
pub(crate) struct Summary {
    counts: BTreeMap<FleetCountView, u64>,
    causes: BTreeMap<String, Cause>,
    /// By since when they say what they say.
    stragglers: BTreeMap<(Timestamp, RegionName, NodeId), StragglerView>,
    stragglers_total: u64,
    nodes: u64,
    not_counted: u64,
    not_grouped: u64,
}

impl Summary {
    fn add(&mut self, region: &RegionName, node: Node, status: Status, newest: Option<GoalVersion>) {
        let Node { description, lost, .. } = node;
        self.nodes += 1;
        let count = FleetCountView {
            region: region.clone(),
            zone: description.zone.clone(),
            version: status.version,
            artifact: status.artifact(),
            status: status.status,
            lost,
            nodes: 0,
        };
        if self.counts.len() < COUNTS_MAX || self.counts.contains_key(&count) {
            *self.counts.entry(count).or_default() += 1;
        } else {
            self.not_counted += 1;
        }
        if status.status.is_failure() {
            self.add_failure(region, &description.node, status.message.as_deref());
        }
        let is_settled = matches!(status.status, NodeStatus::Healthy | NodeStatus::Stopped);
        if lost || !is_settled || newest.is_some_and(|newest| status.version < newest) {
            self.stragglers_total += 1;
            let key = (status.at, region.clone(), description.node.clone());
            let artifact = status.artifact();
            let view = StragglerView {
                region: region.clone(),
                node: description.node,
                zone: description.zone,
                rack: description.rack,
                version: status.version,
                artifact,
                status: status.status,
                lost,
                since: status.at,
                message: status.message,
            };
            self.stragglers.insert(key, view);
            if self.stragglers.len() > STRAGGLERS_MAX {
                self.stragglers.pop_last();
            }
        }
    }

    fn add_failure(&mut self, region: &RegionName, node: &NodeId, message: Option<&str>) {
        let cause = cause(message.unwrap_or_default());
        if self.causes.len() >= CAUSES_MAX && !self.causes.contains_key(&cause) {
            self.not_grouped += 1;
            return;
        }
        let group = self.causes.entry(cause).or_default();
        group.nodes += 1;
        group.regions.insert(region.clone());
        if group.examples.len() < EXAMPLES_MAX {
            group.examples.push(node.clone());
        }
    }

    /// Takes in what was counted elsewhere.
    fn merge(&mut self, other: &Self) {
        self.nodes += other.nodes;
        self.not_counted += other.not_counted;
        self.not_grouped += other.not_grouped;
        self.stragglers_total += other.stragglers_total;
        for (count, nodes) in &other.counts {
            if self.counts.len() < COUNTS_MAX || self.counts.contains_key(count) {
                *self.counts.entry(count.clone()).or_default() += nodes;
            } else {
                self.not_counted += nodes;
            }
        }
        for (cause, of) in &other.causes {
            if self.causes.len() >= CAUSES_MAX && !self.causes.contains_key(cause) {
                self.not_grouped += of.nodes;
                continue;
            }
            let group = self.causes.entry(cause.clone()).or_default();
            group.nodes += of.nodes;
            group.regions.extend(of.regions.iter().cloned());
            let room = EXAMPLES_MAX.saturating_sub(group.examples.len());
            group.examples.extend(of.examples.iter().take(room).cloned());
        }
        for (key, straggler) in &other.stragglers {
            self.stragglers.insert(key.clone(), straggler.clone());
            if self.stragglers.len() > STRAGGLERS_MAX {
                self.stragglers.pop_last();
            }
        }
    }

    fn view(self, service: &ServiceName) -> FleetView {
        let mut causes: Vec<_> = self.causes.into_iter().collect();
        causes.sort_by(|(a, of_a), (b, of_b)| of_b.nodes.cmp(&of_a.nodes).then_with(|| a.cmp(b)));
        let hidden = causes.iter().skip(CAUSES_SHOWN).map(|(_, cause)| cause.nodes).sum::<u64>();
        let failure = |(cause, of): (String, Cause)| {
            let Cause { nodes, regions, examples } = of;
            FailureView { cause, nodes, regions: regions.into_iter().collect(), examples }
        };
        FleetView {
            service: service.clone(),
            nodes: self.nodes,
            counts: self.counts.into_iter().map(|(count, nodes)| FleetCountView { nodes, ..count }).collect(),
            not_counted: self.not_counted,
            failures: causes.into_iter().take(CAUSES_SHOWN).map(failure).collect(),
            not_grouped: self.not_grouped + hidden,
            stragglers: self.stragglers.into_values().collect(),
            stragglers_total: self.stragglers_total,
        }
    }
}

/// What failures that are alike have in common: the first line, without what differs from node to node.
fn cause(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let mut cause = String::new();
    let mut word = String::new();
    let end = |word: &mut String, cause: &mut String| {
        let digits = word.chars().filter(char::is_ascii_digit).count();
        let is_name = word.len() >= NAME_DIGITS_MIN && digits > 0 && word.chars().all(|c| c.is_ascii_hexdigit());
        match digits {
            _ if is_name => cause.push('…'),
            0 => cause.push_str(word),
            _ => {
                let mut was_digit = false;
                for letter in word.chars() {
                    let is_digit = letter.is_ascii_digit();
                    if !is_digit {
                        cause.push(letter);
                    } else if !was_digit {
                        cause.push('#');
                    }
                    was_digit = is_digit;
                }
            }
        }
        word.clear();
    };
    for letter in line.chars().take(4 * CAUSE_CHARS_MAX) {
        if letter.is_alphanumeric() {
            word.push(letter);
        } else {
            end(&mut word, &mut cause);
            cause.push(letter);
        }
    }
    end(&mut word, &mut cause);
    cause.chars().take(CAUSE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use longshore_schemas::{ArtifactId, events::NodeDescription};

    use super::*;

    #[test]
    fn failures_that_differ_in_numbers_and_names_are_alike() {
        let table = [
            ("", ""),
            ("it ended: exit status: 3\nits last lines", "it ended: exit status: #"),
            ("port 28001 of eu-17 is taken", "port # of eu-# is taken"),
            ("artifact 0123abcd4567 is not run", "artifact … is not run"),
            ("the façade is deaf", "the façade is deaf"),
            ("connect to 10.0.17.3:443", "connect to #.#.#.#:#"),
        ];
        for (message, expected) in table {
            assert_eq!(cause(message), expected);
        }
        assert_eq!(cause(&"x".repeat(10_000)).chars().count(), CAUSE_CHARS_MAX);
    }

    fn node(number: usize, lost: bool) -> Node {
        let description = NodeDescription {
            node: format!("eu-{number}").parse().expect("valid"),
            zone: format!("z{}", number % 2).parse().expect("valid"),
            rack: "r".parse().expect("valid"),
            host: "h".to_owned(),
            agent_version: "1".to_owned(),
            labels: Default::default(),
        };
        Node { description, lost, at: Timestamp(0), described_at: Timestamp(0) }
    }

    fn status(revision: u64, status: NodeStatus, message: Option<&str>, at: usize) -> Status {
        let version = GoalVersion { revision, step: 1 };
        let (artifact, message) = (Some(ArtifactId::of(b"a")), message.map(str::to_owned));
        let at = Timestamp(i64::try_from(at).expect("small"));
        Status::new(version, artifact, status, 0, message, at)
    }

    #[test]
    fn nodes_are_counted_failures_grouped_and_those_behind_longest_named() {
        let region: RegionName = "eu".parse().expect("valid");
        let newest = Some(GoalVersion { revision: 2, step: 1 });
        let mut summary = Summary::default();
        for number in 0..500 {
            let (status, lost) = match number {
                0..200 => (status(2, NodeStatus::Healthy, None, number), false),
                200..300 => (status(2, NodeStatus::Failed, Some(&format!("exit {number}")), number), false),
                300..310 => (status(2, NodeStatus::RolledBack, Some("out of memory"), number), false),
                310..400 => (status(1, NodeStatus::Healthy, None, 1_000 - number), false),
                _ => (status(2, NodeStatus::Healthy, None, number), number == 499),
            };
            summary.add(&region, node(number, lost), status, newest);
        }
        let view = summary.view(&"web".parse().expect("valid"));
        assert_eq!((view.nodes, view.not_counted, view.not_grouped), (500, 0, 0));
        assert_eq!(view.counts.iter().map(|count| count.nodes).sum::<u64>(), 500);
        assert_eq!(view.counts.len(), 9, "two zones, four states, and a lost one");
        let failures: Vec<_> = view.failures.iter().map(|failure| (failure.cause.as_str(), failure.nodes)).collect();
        assert_eq!(failures, [("exit #", 100), ("out of memory", 10)]);
        assert_eq!(view.failures[0].examples.len(), EXAMPLES_MAX);
        assert_eq!((view.stragglers_total, view.stragglers.len()), (201, STRAGGLERS_MAX));
        assert_eq!(view.stragglers[0].since, Timestamp(200), "who has been so for longest comes first");
    }

    /// However nodes are spread over shards, the sum says the same.
    #[test]
    fn summaries_of_parts_add_up() {
        let region: RegionName = "eu".parse().expect("valid");
        let service: ServiceName = "web".parse().expect("valid");
        let newest = Some(GoalVersion { revision: 2, step: 1 });
        let mut parts: Vec<Summary> = (0..7).map(|_| Summary::default()).collect();
        let mut whole = Summary::default();
        for number in 0..1_000 {
            let said = match number % 5 {
                0 => status(2, NodeStatus::Failed, Some(&format!("exit {number}")), number),
                1 => status(1, NodeStatus::Healthy, None, number),
                _ => status(2, NodeStatus::Healthy, None, number),
            };
            parts[number * 7 / 1_000].add(&region, node(number, number % 11 == 0), said.clone(), newest);
            whole.add(&region, node(number, number % 11 == 0), said, newest);
        }
        let mut sum = Summary::default();
        parts.iter().for_each(|part| sum.merge(part));
        assert_eq!(sum.view(&service), whole.view(&service));
    }

    #[test]
    fn whatever_nodes_say_memory_is_bounded() {
        let region: RegionName = "eu".parse().expect("valid");
        let mut summary = Summary::default();
        let letters = |number: usize| format!("{number:b}").replace('0', "a").replace('1', "b");
        for number in 0..2 * COUNTS_MAX {
            let revision = u64::try_from(number).expect("small");
            let status = status(revision, NodeStatus::Failed, Some(&letters(number)), number);
            summary.add(&region, node(1, false), status, None);
        }
        assert_eq!(
            (summary.counts.len(), summary.causes.len(), summary.stragglers.len()),
            (COUNTS_MAX, CAUSES_MAX, STRAGGLERS_MAX)
        );
        let view = summary.view(&"web".parse().expect("valid"));
        assert_eq!(view.not_counted, COUNTS_MAX as u64);
        assert_eq!(view.not_grouped + view.failures.iter().map(|failure| failure.nodes).sum::<u64>(), view.nodes);
    }
}
