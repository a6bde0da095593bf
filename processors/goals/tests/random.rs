//! Whatever people ask, however nodes behave and whoever leads: the invariants hold, and once all is well the rollout ends.
//! That a region's goal never goes back, and names only what is pinned there, is asserted in [`world`].

mod world;

use std::{collections::BTreeMap, time::Duration};

use longshore_goals::tables;
use longshore_schemas::{
    ArtifactId, NodeId, ServiceName,
    events::{
        DeployRequested, GoalFact, GoalVersion, LiftHoldRequested, PauseRequested, ResumeRequested, RollbackRequested,
        RolloutPlan, Wave,
    },
    http::RolloutStatus,
};
use proptest::prelude::*;
use world::{World, id};

const REGIONS: [&str; 3] = ["ap", "eu", "us"];
const NODES: usize = 9;

#[derive(Debug, Clone)]
enum Action {
    Deploy {
        service: u8,
        artifact: u8,
        plan: RolloutPlan,
    },
    Rollback {
        service: u8,
        to: Option<u8>,
    },
    Pause(u8),
    Resume(u8),
    Lift {
        service: u8,
        artifact: u8,
    },
    /// Pins are answered from now on, or wait.
    Pins(bool),
    AnswerPins(bool),
    Break(u8),
    Repair(u8),
    Act(u16),
    Stall(usize, bool),
    Lose(usize, bool),
    Deliver,
    Advance(u16),
    Takeover,
}

fn plans() -> impl Strategy<Value = RolloutPlan> {
    let zones = prop_oneof![Just(vec![]), Just(vec!["a"]), Just(vec!["b"]), Just(vec!["a", "b"])];
    let regions = prop::sample::subsequence(REGIONS.to_vec(), 1..=3);
    let fraction = prop_oneof![Just(10_000u32), 1u32..=10_000];
    let wave =
        (regions, zones, fraction, prop_oneof![Just(0u32), 0u32..5]).prop_map(|(regions, zones, bp, bake)| Wave {
            regions: regions.into_iter().map(id).collect(),
            zones: zones.into_iter().map(id).collect(),
            fraction_bp: bp,
            bake_seconds: bake,
        });
    (prop::collection::vec(wave, 1..4), prop_oneof![Just(0u32), 0u32..=10_000])
        .prop_map(|(waves, failure_budget_bp)| RolloutPlan { waves, failure_budget_bp })
}

fn actions() -> impl Strategy<Value = Action> {
    let service = 0u8..2;
    let artifact = 0u8..4;
    prop_oneof![
        4 => (service.clone(), artifact.clone(), plans())
            .prop_map(|(service, artifact, plan)| Action::Deploy { service, artifact, plan }),
        2 => (service.clone(), prop::option::of(artifact.clone()))
            .prop_map(|(service, to)| Action::Rollback { service, to }),
        1 => service.clone().prop_map(Action::Pause),
        2 => service.clone().prop_map(Action::Resume),
        1 => (service, artifact.clone()).prop_map(|(service, artifact)| Action::Lift { service, artifact }),
        1 => any::<bool>().prop_map(Action::Pins),
        2 => any::<bool>().prop_map(Action::AnswerPins),
        1 => artifact.clone().prop_map(Action::Break),
        1 => artifact.prop_map(Action::Repair),
        8 => any::<u16>().prop_map(Action::Act),
        1 => (0..NODES, any::<bool>()).prop_map(|(node, stalled)| Action::Stall(node, stalled)),
        1 => (0..NODES, any::<bool>()).prop_map(|(node, lost)| Action::Lose(node, lost)),
        8 => Just(Action::Deliver),
        6 => (0u16..3_000).prop_map(Action::Advance),
        1 => Just(Action::Takeover),
    ]
}

fn service(number: u8) -> ServiceName {
    id(["api", "web"][usize::from(number)])
}

fn artifact(number: u8) -> ArtifactId {
    ArtifactId::of(&[number])
}

fn node(number: usize) -> String {
    format!("node-{number}")
}

fn perform(world: &mut World, index: usize, action: &Action) {
    let request = format!("action-{index}");
    match action {
        Action::Deploy { service: s, artifact: a, plan } => {
            let plan = plan.clone();
            world.ask(&request, DeployRequested { service: service(*s), artifact: artifact(*a), plan });
        }
        Action::Rollback { service: s, to } => {
            world.ask(&request, RollbackRequested { service: service(*s), to: to.map(artifact) });
        }
        Action::Pause(s) => drop(world.ask(&request, PauseRequested { service: service(*s) })),
        Action::Resume(s) => drop(world.ask(&request, ResumeRequested { service: service(*s) })),
        Action::Lift { service: s, artifact: a } => {
            world.ask(&request, LiftHoldRequested { service: service(*s), artifact: artifact(*a) });
        }
        Action::Pins(answered) => world.answers_pins = *answered,
        Action::AnswerPins(pinned) => world.answer_pins((!pinned).then_some("not there yet")),
        Action::Break(a) => {
            world.broken.insert(artifact(*a));
        }
        Action::Repair(a) => {
            world.broken.remove(&artifact(*a));
        }
        Action::Act(which) => {
            let chosen: Vec<NodeId> = (0..NODES).filter(|n| (which >> n) & 1 == 1).map(|n| id(&node(n))).collect();
            world.act(|node| chosen.contains(node));
        }
        Action::Stall(n, stalled) => world.nodes.get_mut(&id(&node(*n))).expect("a node").stalled = *stalled,
        Action::Lose(n, lost) => world.lose_or_return(&node(*n), *lost),
        Action::Deliver => world.deliver(),
        Action::Advance(millis) => world.advance(Duration::from_millis(u64::from(*millis))),
        Action::Takeover => {
            world.goals.takeover();
            world.fleet.takeover();
        }
    }
}

/// Invariant 10, and the order of versions, over all facts.
fn check_facts(world: &World) {
    let mut versions: BTreeMap<ServiceName, GoalVersion> = BTreeMap::new();
    let mut budgets: BTreeMap<ServiceName, u32> = BTreeMap::new();
    let mut grew = |service: &ServiceName, version: GoalVersion| {
        let before = versions.insert(service.clone(), version).unwrap_or_default();
        assert!(version > before, "{service} goes from {before} to {version}");
    };
    for fact in world.goals.facts() {
        match &fact.event {
            GoalFact::GoalSet(e) => {
                grew(&e.service, GoalVersion { revision: e.revision, step: 0 });
                budgets.insert(e.service.clone(), e.plan.failure_budget_bp);
            }
            GoalFact::WaveStarted(e) => grew(&e.service, e.version),
            GoalFact::RolloutPaused(e) => grew(&e.service, e.version),
            GoalFact::RolloutResumed(e) => grew(&e.service, e.version),
            GoalFact::RolloutHalted(e) => grew(&e.service, e.version),
            GoalFact::WavePassed(e) => {
                let allowed = u64::from(e.level.eligible) * u64::from(budgets[&e.service]) / 10_000;
                assert!(u64::from(e.level.failed) <= allowed, "a wave passed over its budget: {e:?}");
                assert_eq!(e.level.converged + e.level.failed, e.level.eligible, "a wave passed early: {e:?}");
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn rollouts_keep_the_invariants(actions in prop::collection::vec(actions(), 1..60)) {
        let mut world = World::new(&REGIONS, 2);
        for number in 0..NODES {
            world.add_node(&node(number), REGIONS[number % 3], ["a", "b"][number / 3 % 2]);
        }
        for (index, action) in actions.iter().enumerate() {
            perform(&mut world, index, action);
        }
        world.assert_replay();
        // The faults stop: everything converges, or waits for a person.
        world.answers_pins = true;
        world.deliver();
        world.answer_pins(None);
        for node in world.nodes.values_mut() {
            node.stalled = false;
        }
        for _ in 0..8 {
            world.run();
            // The longest bake of a wave is over.
            world.advance(Duration::from_secs(10));
        }
        for number in 0..2 {
            let history = tables::history(world.goals.state(), &service(number), 100).expect("state");
            for (order, revision) in history {
                let open = matches!(revision.status, RolloutStatus::Pending | RolloutStatus::Rolling);
                prop_assert!(!open, "deploy {order} stays {:?}", revision.status);
            }
        }
        check_facts(&world);
        world.assert_replay();
    }
}
