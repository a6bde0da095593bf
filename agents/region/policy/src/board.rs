//! The newest goal of each service.
//!
//! A service stands on the board once, at its last change: who was slow to look finds the newest goal and none of those in
//! between.

use std::{collections::BTreeMap, sync::Arc};

use longshore_schemas::{ServiceName, events::RegionalGoal};

/// A goal, and as what it travels to nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Posted<M> {
    pub goal: RegionalGoal,
    pub message: M,
}

pub struct Board<M> {
    /// Each service's goal, and the number of its last change.
    goals: BTreeMap<ServiceName, (u64, Arc<Posted<M>>)>,
    by_change: BTreeMap<u64, ServiceName>,
    changes: u64,
}

impl<M> Default for Board<M> {
    fn default() -> Self {
        Self { goals: BTreeMap::new(), by_change: BTreeMap::new(), changes: 0 }
    }
}

impl<M> Board<M> {
    /// Puts up a goal unless it is not newer. The number of the change, if it was put up.
    pub fn offer(&mut self, posted: Posted<M>) -> Option<u64> {
        let Posted { goal, .. } = &posted;
        if let Some((change, known)) = self.goals.get(&goal.service) {
            if known.goal.version >= goal.version {
                return None;
            }
            self.by_change.remove(change);
        }
        self.changes += 1;
        let change = self.changes;
        self.by_change.insert(change, goal.service.clone());
        self.goals.insert(goal.service.clone(), (change, Arc::new(posted)));
        Some(change)
    }

    /// The goals that changed after the change of this number, and the number of the last.
    pub fn since(&self, change: u64) -> (u64, Vec<Arc<Posted<M>>>) {
        let services = self.by_change.range(change.saturating_add(1)..).map(|(_, service)| service);
        let goals = services.filter_map(|service| self.goals.get(service)).map(|(_, goal)| goal.clone());
        (self.changes, goals.collect())
    }
}
