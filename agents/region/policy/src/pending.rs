//! What a region has to copy: a fold of the artifacts' facts.

use std::collections::{BTreeMap, BTreeSet};

use longshore_schemas::{ArtifactId, RegionName, events::ArtifactFact};
use serde::{Deserialize, Serialize};

/// Artifacts that other regions lack and that are remembered.
const FAILED_ELSEWHERE_MAX: usize = 1_000;

/// The fold of the facts: what was started for this region and is not stored there yet, in the order it was started.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Pending {
    /// The next offset of each partition.
    pub offsets: BTreeMap<u32, u64>,
    pub artifacts: Vec<ArtifactId>,
    /// What other regions failed to copy, and which.
    #[serde(default)]
    pub failed_elsewhere: BTreeMap<ArtifactId, BTreeSet<RegionName>>,
}

impl Pending {
    pub fn apply(&mut self, region: &RegionName, fact: ArtifactFact) {
        match fact {
            ArtifactFact::ReplicationStarted(started) if started.regions.contains(region) => {
                self.add(started.summary.artifact);
            }
            ArtifactFact::ArtifactImported(imported) if imported.regions.contains(region) => {
                self.add(imported.summary.artifact);
            }
            ArtifactFact::ReplicaRegionsSet(set) if set.added.contains(region) => self.add(set.artifact),
            ArtifactFact::ReplicaRegionsSet(set) if !set.regions.contains(region) => self.remove(&set.artifact),
            ArtifactFact::ReplicaStored(stored) if stored.region == *region => self.remove(&stored.artifact),
            ArtifactFact::ReplicaStored(stored) => self.stored_elsewhere(&stored.artifact, &stored.region),
            // It was stored, and is damaged. If it is pending already, this says nothing new.
            ArtifactFact::ReplicaFailed(failed) if failed.region == *region => self.add(failed.artifact),
            ArtifactFact::ReplicaFailed(failed) => {
                let known = self.failed_elsewhere.contains_key(&failed.artifact);
                if known || self.failed_elsewhere.len() < FAILED_ELSEWHERE_MAX {
                    self.failed_elsewhere.entry(failed.artifact).or_default().insert(failed.region);
                }
            }
            ArtifactFact::ArtifactRetired(retired) => {
                self.remove(&retired.artifact);
                self.failed_elsewhere.remove(&retired.artifact);
            }
            _ => {}
        }
    }

    fn add(&mut self, artifact: ArtifactId) {
        if !self.artifacts.contains(&artifact) {
            self.artifacts.push(artifact);
        }
    }

    fn stored_elsewhere(&mut self, artifact: &ArtifactId, region: &RegionName) {
        if let Some(regions) = self.failed_elsewhere.get_mut(artifact) {
            regions.remove(region);
            if regions.is_empty() {
                self.failed_elsewhere.remove(artifact);
            }
        }
    }

    pub fn remove(&mut self, artifact: &ArtifactId) {
        self.artifacts.retain(|pending| pending != artifact);
    }
}

#[cfg(test)]
mod tests {
    use longshore_schemas::events::{ReplicaFailed, ReplicaStored};

    use super::*;

    #[test]
    fn what_was_stored_and_found_broken_is_pending_again() {
        let (eu, us): (RegionName, RegionName) = ("eu".parse().expect("valid"), "us".parse().expect("valid"));
        let artifact = ArtifactId::of(b"a");
        let stored = |region: &RegionName| ReplicaStored { artifact, region: region.clone(), bytes_copied: 1 }.into();
        let failed = |region: &RegionName| {
            ReplicaFailed { artifact, region: region.clone(), error: "wrong bytes".into() }.into()
        };
        let mut pending = Pending::default();
        let script = [
            (stored(&eu), 0, 0),
            (failed(&us), 0, 1),
            (failed(&eu), 1, 1),
            (failed(&eu), 1, 1),
            (stored(&us), 1, 0),
            (stored(&eu), 0, 0),
        ];
        for (fact, here, elsewhere) in script {
            pending.apply(&eu, fact);
            assert_eq!((pending.artifacts.len(), pending.failed_elsewhere.len()), (here, elsewhere));
        }
    }
}
