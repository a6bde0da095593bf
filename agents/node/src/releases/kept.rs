//! What the services of a node keep on disk: the rest may go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use longshore_schemas::{ArtifactId, ServiceName};
use tokio::sync::watch;

use crate::goals::Goals;

pub struct Kept {
    goals: watch::Receiver<Goals>,
    by_service: Mutex<BTreeMap<ServiceName, BTreeSet<ArtifactId>>>,
}

impl Kept {
    pub fn new(goals: watch::Receiver<Goals>) -> Self {
        Self { goals, by_service: Mutex::default() }
    }

    /// From now on the service keeps these, and no others.
    pub fn note(&self, service: &ServiceName, artifacts: BTreeSet<ArtifactId>) {
        self.by_service.lock().unwrap_or_else(PoisonError::into_inner).insert(service.clone(), artifacts);
    }

    /// What all services keep, if each of them has said so: one that could not be opened may still run.
    pub fn by_all(&self) -> Option<BTreeSet<ArtifactId>> {
        let kept = self.by_service.lock().unwrap_or_else(PoisonError::into_inner);
        let complete = self.goals.borrow().keys().all(|service| kept.contains_key(service));
        complete.then(|| kept.values().flatten().copied().collect())
    }
}
