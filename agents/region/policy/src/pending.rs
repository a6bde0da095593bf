//! What a region has to copy: a fold of the artifacts' facts.

use std::collections::{BTreeMap, BTreeSet};

use longshore_schemas::{
    ArtifactId, RegionName, Timestamp,
    events::{ArtifactFact, ArtifactImported, ReplicationStarted},
};
use serde::{Deserialize, Serialize};

/// Artifacts that other regions lack and that are remembered.
const FAILED_ELSEWHERE_MAX: usize = 1_000;

/// Artifacts that are remembered as retired until they are collected; twice as many for a while. What is forgotten stays in the bucket.
const RETIRED_MAX: usize = 50_000;

/// The fold of the facts: what was started for this region and is not stored there yet, in the order it was started.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Pending {
    /// The next offset of each partition.
    pub offsets: BTreeMap<u32, u64>,
    pub artifacts: Vec<ArtifactId>,
    /// What other regions failed to copy, and which.
    #[serde(default)]
    pub failed_elsewhere: BTreeMap<ArtifactId, BTreeSet<RegionName>>,
    /// What is not needed any more and not collected yet, and since when.
    #[serde(default)]
    pub retired: BTreeMap<ArtifactId, Timestamp>,
}

impl Pending {
    /// Takes a fact that was written at this time.
    pub fn apply(&mut self, region: &RegionName, fact: ArtifactFact, at: Timestamp) {
        match fact {
            ArtifactFact::ReplicationStarted(ReplicationStarted { summary, regions, .. })
            | ArtifactFact::ArtifactImported(ArtifactImported { summary, regions, .. }) => {
                self.retired.remove(&summary.artifact);
                if regions.contains(region) {
                    self.add(summary.artifact);
                }
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
                self.retired.insert(retired.artifact, at);
                self.forget_oldest();
            }
            _ => {}
        }
    }

    fn forget_oldest(&mut self) {
        if self.retired.len() > 2 * RETIRED_MAX {
            let mut times: Vec<Timestamp> = self.retired.values().copied().collect();
            times.sort_unstable();
            let since = times[times.len() - RETIRED_MAX];
            self.retired.retain(|_, at| *at >= since);
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
    use longshore_schemas::events::{
        ArtifactOrigin, ArtifactRetired, ArtifactSource, ArtifactSummary, ReplicaFailed, ReplicaStored, RunSpec,
    };

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
            pending.apply(&eu, fact, Timestamp(1));
            assert_eq!((pending.artifacts.len(), pending.failed_elsewhere.len()), (here, elsewhere));
        }
    }

    /// Or its bucket would lose it again.
    #[test]
    fn what_is_built_or_imported_again_is_retired_no_longer() {
        let eu: RegionName = "eu".parse().expect("valid");
        let summary: ArtifactSummary = serde_json::from_value(serde_json::json!({
            "artifact": ArtifactId::of(b"a").to_string(), "name": "web", "size_bytes": 1, "files": 1, "chunks": 1,
            "packs": 1, "pack_bytes": 1, "new_pack_bytes": 1,
        }))
        .expect("a summary");
        let run: RunSpec = serde_json::from_value(serde_json::json!({ "command": ["./web"] })).expect("a run");
        let (artifact, regions) = (summary.artifact, vec![eu.clone()]);
        let origin = ArtifactOrigin { url: "https://ci.example/1".to_owned(), imported_by: "me".to_owned() };
        let commit = "a".repeat(40).parse().expect("valid");
        let source = ArtifactSource { job: "main-1".parse().expect("valid"), repository: "r".to_owned(), commit };
        let imported =
            ArtifactImported { summary: summary.clone(), origin, run: run.clone(), regions: regions.clone() };
        let built = ReplicationStarted { summary, source, run, regions };
        for again in [ArtifactFact::from(imported), built.into()] {
            let mut pending = Pending::default();
            pending.apply(&eu, ArtifactRetired { artifact }.into(), Timestamp(1));
            assert!(pending.retired.contains_key(&artifact));
            pending.apply(&eu, again, Timestamp(2));
            assert_eq!((pending.retired.len(), pending.artifacts.as_slice()), (0, &[artifact][..]));
        }
    }

    #[test]
    fn what_is_retired_is_remembered_and_the_oldest_of_very_many_is_not() {
        let eu: RegionName = "eu".parse().expect("valid");
        let artifact = |number: usize| ArtifactId::of(&number.to_be_bytes());
        let mut pending = Pending::default();
        for number in 0..=2 * RETIRED_MAX {
            let retired = ArtifactRetired { artifact: artifact(number) };
            pending.apply(&eu, retired.into(), Timestamp(i64::try_from(number).expect("small")));
        }
        assert_eq!(pending.retired.len(), RETIRED_MAX);
        assert!(pending.retired.contains_key(&artifact(2 * RETIRED_MAX)));
        assert!(!pending.retired.contains_key(&artifact(RETIRED_MAX)));
    }
}
