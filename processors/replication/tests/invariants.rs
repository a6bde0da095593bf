//! Whatever is built, reported and pinned in whatever order, nothing is pinned before it is where it must be.
//!
//! A model follows the facts alone; replication's tables must agree with it.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{built, driver, id, pin, report};
use longshore_processor::Outgoing;
use longshore_replication::tables::{self, Status};
use longshore_schemas::{
    ArtifactId, RegionName,
    events::{ArtifactFact, GoalRequest, ReplicaStatus, UnpinRequested},
};
use proptest::prelude::*;

const ARTIFACTS: [&str; 3] = ["one", "two", "three"];
const REGIONS: [&str; 3] = ["ap", "eu", "us"];
const SERVICES: [&str; 2] = ["api", "web"];

#[derive(Debug, Clone)]
enum Input {
    Built { artifact: usize, name: usize, command: usize },
    Report { artifact: usize, region: usize, level: u8, done: u32 },
    Pin { artifact: usize, service: usize, regions: Vec<usize> },
    Unpin { artifact: usize, service: usize },
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let artifact = || 0..ARTIFACTS.len();
    let input = prop_oneof![
        2 => (artifact(), 0usize..2, 0usize..2)
            .prop_map(|(artifact, name, command)| Input::Built { artifact, name, command }),
        8 => (artifact(), 0..REGIONS.len(), 0u8..6, 0u32..40)
            .prop_map(|(artifact, region, level, done)| Input::Report { artifact, region, level, done }),
        3 => (artifact(), 0..SERVICES.len(), prop::collection::vec(0..REGIONS.len(), 0..3))
            .prop_map(|(artifact, service, regions)| Input::Pin { artifact, service, regions }),
        1 => (artifact(), 0..SERVICES.len()).prop_map(|(artifact, service)| Input::Unpin { artifact, service }),
    ];
    prop::collection::vec(input, 0..120)
}

/// Of each artifact that was started, the regions that have it.
#[derive(Default)]
struct Model {
    stored: BTreeMap<ArtifactId, BTreeSet<RegionName>>,
    completed: BTreeSet<ArtifactId>,
    pins: BTreeSet<(ArtifactId, String)>,
}

impl Model {
    fn apply(&mut self, fact: &ArtifactFact) {
        match fact {
            ArtifactFact::ReplicationStarted(e) => {
                self.stored.entry(e.summary.artifact).or_default();
                self.completed.remove(&e.summary.artifact);
            }
            ArtifactFact::ArtifactImported(e) => {
                self.stored.entry(e.summary.artifact).or_default();
                self.completed.remove(&e.summary.artifact);
            }
            ArtifactFact::ReplicaProgressed(e) => {
                assert!(!self.stored[&e.artifact].contains(&e.region), "a stored replica does not go back to copying");
            }
            ArtifactFact::ReplicaStored(e) => {
                let new = self.stored.get_mut(&e.artifact).expect("started").insert(e.region.clone());
                assert!(new, "stored twice");
            }
            ArtifactFact::ReplicaFailed(e) => {
                if self.stored.get_mut(&e.artifact).expect("started").remove(&e.region) {
                    self.completed.remove(&e.artifact);
                }
            }
            ArtifactFact::ReplicationCompleted(e) => {
                assert_eq!(self.stored[&e.artifact].len(), REGIONS.len(), "completed too early");
                assert!(self.completed.insert(e.artifact), "completed twice");
            }
            ArtifactFact::ArtifactPinned(e) => {
                self.pins.insert((e.artifact, e.service.to_string()));
            }
            ArtifactFact::ArtifactUnpinned(e) => {
                assert!(self.pins.remove(&(e.artifact, e.service.to_string())), "was not pinned");
            }
            ArtifactFact::ReplicaRegionsSet(_) => panic!("the regions are always the same here"),
            ArtifactFact::ArtifactRetired(_)
            | ArtifactFact::ArtifactKept(_)
            | ArtifactFact::ArtifactLetGo(_)
            | ArtifactFact::Processed(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_invariants_hold(inputs in inputs()) {
        let mut driver = driver("ap eu us");
        let mut model = Model::default();
        for (step, input) in inputs.iter().enumerate() {
            let decision = match input {
                Input::Built { artifact, name, command } => {
                    driver.request(built(ARTIFACTS[*artifact], ["a", "b"][*name], ["./x", "./y"][*command]))
                }
                Input::Report { artifact, region, level, done } => {
                    let (status, error) = match level {
                        0..3 => (ReplicaStatus::Stored, None),
                        3..5 => (ReplicaStatus::Copying, None),
                        _ => (ReplicaStatus::Failed, Some("wrong bytes")),
                    };
                    driver.request(report(ARTIFACTS[*artifact], REGIONS[*region], status, *done, error))
                }
                Input::Pin { artifact, service, regions } => {
                    let asked: Vec<&str> = regions.iter().map(|region| REGIONS[*region]).collect();
                    let (artifact, service) = (ARTIFACTS[*artifact], SERVICES[*service]);
                    let decision = driver.request(pin(artifact, service, &format!("d{step}"), &asked.join(" ")));
                    let has = |region: &&str| {
                        let region: RegionName = region.parse().expect("valid");
                        model.stored[&id(artifact)].contains(&region)
                    };
                    let pinnable = model.stored.contains_key(&id(artifact)) && asked.iter().all(has);
                    let [Outgoing::Goal(GoalRequest::PinAnswered(answer))] = &decision.requests[..] else {
                        panic!("each pin has one answer: {decision:?}");
                    };
                    prop_assert_eq!(answer.run.is_some(), pinnable, "invariant 7");
                    prop_assert_eq!(answer.refusal.is_none(), pinnable);
                    prop_assert_eq!(!decision.facts.is_empty(), pinnable);
                    decision
                }
                Input::Unpin { artifact, service } => driver.request(UnpinRequested {
                    artifact: id(ARTIFACTS[*artifact]),
                    service: SERVICES[*service].parse().expect("valid"),
                }),
            };
            decision.facts.iter().for_each(|fact| model.apply(fact));
            for artifact in model.stored.keys() {
                let row = tables::ARTIFACTS.expect(driver.state(), artifact).expect("a row");
                prop_assert_eq!(row.status == Status::Deployable, model.completed.contains(artifact));
                let everywhere = model.stored[artifact].len() == REGIONS.len();
                prop_assert_eq!(everywhere, model.completed.contains(artifact), "what is everywhere is deployable");
            }
            let pins = SERVICES.iter().flat_map(|service| ARTIFACTS.map(|artifact| (id(artifact), *service)));
            for (artifact, service) in pins {
                let key = (artifact, service.parse().expect("valid"));
                let pinned = tables::PINS.contains(driver.state(), &key).expect("memory");
                prop_assert_eq!(pinned, model.pins.contains(&(artifact, service.to_owned())));
            }
        }
        driver.assert_replay();
    }
}
