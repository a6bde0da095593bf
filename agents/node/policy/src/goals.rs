//! Which goals a node takes, and what they mean for it.

use longshore_planted::{Bug, planted};
use longshore_schemas::{
    NodeId, ZoneName,
    events::{GoalVersion, RegionalGoal, RunSpec, Target},
    nodes::slot,
};

/// Whether a goal of this version takes the place of the one that is held: only a later one does, for ever.
pub fn is_news(held: Option<GoalVersion>, offered: GoalVersion) -> bool {
    held.is_none_or(|held| held < offered || (planted(Bug::AcceptOlderGoals) && held != offered))
}

/// What a goal means for one node: the target that it runs, if any.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub version: GoalVersion,
    pub target: Option<Target>,
}

impl Wanted {
    /// The first target whose cohort this node is in.
    pub fn of(goal: &RegionalGoal, node: &NodeId, zone: &ZoneName) -> Self {
        let slot = slot(&goal.service, node);
        let target = goal.targets.iter().find(|target| target.cohort.contains(slot, zone)).cloned();
        Self { version: goal.version, target }
    }

    pub fn run(&self) -> Option<&RunSpec> {
        self.target.as_ref().map(|target| &target.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_schemas::{ArtifactId, events::Cohort};

    fn goal(revision: u64, step: u32, fraction_bp: u32) -> RegionalGoal {
        let run = RunSpec {
            command: vec!["x".into()],
            environment: Default::default(),
            health: Default::default(),
            stop_signal: Default::default(),
            stop_seconds: 1,
            ..RunSpec::default()
        };
        let target = |name: &str, cohort, revision| Target {
            cohort,
            revision,
            artifact: ArtifactId::of(name.as_bytes()),
            run: run.clone(),
        };
        RegionalGoal {
            region: "eu".parse().expect("valid"),
            service: "web".parse().expect("valid"),
            version: GoalVersion { revision, step },
            targets: vec![
                target("new", Cohort { zones: vec!["a".parse().expect("valid")], fraction_bp }, revision),
                target("old", Cohort::everyone(), revision - 1),
            ],
        }
    }

    #[test]
    fn only_a_later_version_is_news() {
        let version = |revision, step| GoalVersion { revision, step };
        assert!(is_news(None, version(0, 0)) && is_news(Some(version(2, 3)), version(3, 0)));
        for (revision, step) in [(2, 3), (2, 2), (1, 9)] {
            assert!(!is_news(Some(version(2, 3)), version(revision, step)), "{revision}.{step}");
        }
    }

    #[test]
    fn the_first_target_whose_cohort_has_the_node_counts() {
        let (a, b) = ("a".parse().expect("valid"), "b".parse().expect("valid"));
        let node: NodeId = "n-1".parse().expect("valid");
        let slot = slot(&"web".parse().expect("valid"), &node);
        let artifact = |goal: &RegionalGoal, zone| Wanted::of(goal, &node, zone).target.map(|t| t.artifact);
        let (new, old) = (Some(ArtifactId::of(b"new")), Some(ArtifactId::of(b"old")));
        assert_eq!(artifact(&goal(2, 1, slot + 1), &a), new);
        assert_eq!(artifact(&goal(2, 1, slot), &a), old, "not in the fraction");
        assert_eq!(artifact(&goal(2, 1, 10_000), &b), old, "not in the zone");
        let mut none = goal(2, 1, 0);
        none.targets.pop();
        assert_eq!(artifact(&none, &a), None);
    }
}
