//! Where a service runs, counted: from fleet's rows of one service, which are neighbours.
//!
//! ```text
//! rows of a shard ─▶ Summary: counts by place and version · failures alike · the stragglers that are behind longest ─▶ FleetView
//! ```
//!
//! A summary's memory is bounded whatever nodes say: so many counts, causes and stragglers; what does not fit is told as a number.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use longshore_fleet::{
    Fleet,
    tables::{COHORTS, NODES, Node, STATUSES, Status},
};
use longshore_processor::{Order, Range, StateError};
use longshore_runtime::Handle;
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

pub(super) fn of_service(handle: &Handle<Fleet>, service: &ServiceName) -> Result<FleetView, StateError> {
    let mut summary = Summary::default();
    for (region, shard) in shards(handle, None)? {
        let held = handle.store_of(&shard_key(&region, shard)).hold()?;
        let state = held.view();
        let cohort = COHORTS.get(&state, &(region.clone(), shard, service.clone()))?;
        let newest = cohort.map(|cohort| cohort.version);
        let rows = Range::prefix(&(region.clone(), shard, service.clone()));
        let mut failed = None;
        STATUSES.scan(&state, &rows, Order::Ascending, |(_, _, _, number), status| {
            match NODES.expect(&state, &(region.clone(), shard, number)) {
                Ok(node) => summary.add(&region, node, status, newest),
                Err(error) => failed = Some(error),
            }
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(summary.view(service))
}

#[derive(Debug, Default)]
struct Cause {
    nodes: u64,
    regions: BTreeSet<RegionName>,
    examples: Vec<NodeId>,
}

#[derive(Debug, Default)]
struct Summary {
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
        };
        Node { description, lost, at: Timestamp(0) }
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
