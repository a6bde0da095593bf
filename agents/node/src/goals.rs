//! The goals that this node holds: on disk before anything acts on them, and never going back.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
};

pub use longshore_node_policy::Wanted;
use longshore_node_policy::is_news;
use longshore_schemas::{
    ServiceName,
    events::{GoalVersion, RegionalGoal},
};
use longshore_service::ledger::Ledger;
use tokio::sync::watch;

use crate::Error;

/// Most services of one node.
pub const SERVICES_MAX: usize = 256;

pub type Goals = BTreeMap<ServiceName, RegionalGoal>;

/// The goals, and a watch on them.
pub struct GoalKeeper {
    ledger: Mutex<Ledger<Goals>>,
    published: watch::Sender<Goals>,
}

impl GoalKeeper {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let ledger = Ledger::open(path, Goals::new())?;
        let published = watch::Sender::new(ledger.content().clone());
        Ok(Self { ledger: Mutex::new(ledger), published })
    }

    pub fn watch(&self) -> watch::Receiver<Goals> {
        self.published.subscribe()
    }

    pub fn versions(&self) -> BTreeMap<ServiceName, GoalVersion> {
        self.published.borrow().iter().map(|(service, goal)| (service.clone(), goal.version)).collect()
    }

    /// Takes a goal if it is newer than the one that is held; says whether it did.
    pub fn accept(&self, goal: RegionalGoal) -> Result<bool, Error> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let held = ledger.content().get(&goal.service);
        if !is_news(held.map(|held| held.version), goal.version) {
            return Ok(false);
        }
        if held.is_none() && ledger.content().len() >= SERVICES_MAX {
            return Err(Error::Refused(format!("this node has goals of {SERVICES_MAX} services, the most allowed")));
        }
        ledger.update(|goals| {
            goals.insert(goal.service.clone(), goal);
        })?;
        self.published.send_replace(ledger.content().clone());
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_schemas::{
        ArtifactId,
        events::{Cohort, RunSpec, Target},
    };

    fn goal(revision: u64, step: u32, fraction_bp: u32) -> RegionalGoal {
        let run = RunSpec {
            command: vec!["x".into()],
            environment: Default::default(),
            health: Default::default(),
            stop_signal: Default::default(),
            stop_seconds: 1,
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
    fn a_goal_never_goes_back_even_across_restarts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("goals.json");
        let keeper = GoalKeeper::open(&path).expect("new");
        assert!(keeper.accept(goal(2, 3, 1)).expect("space"));
        for (revision, step) in [(2, 3), (2, 2), (1, 9)] {
            assert!(!keeper.accept(goal(revision, step, 1)).expect("space"), "{revision}.{step}");
        }
        drop(keeper);
        let keeper = GoalKeeper::open(&path).expect("there");
        assert!(!keeper.accept(goal(2, 2, 1)).expect("space"));
        assert!(keeper.accept(goal(2, 4, 1)).expect("space"));
        assert!(keeper.accept(goal(3, 1, 1)).expect("space"));
    }
}
