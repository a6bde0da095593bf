//! Goals: which artifact each service should run, and how that spreads over the fleet.
//!
//! ```text
//!   DeployRequested ──▶ DeployAccepted ──PinRequested──▶ replication
//!                                                             │
//!   PinAnswered ◀─────────────────────────────────────────────┘
//!        │ pinned                       │ refused: DeployRefused
//!        ▼
//!   GoalSet, WaveStarted ──RegionalGoal──▶ goal-state (each region)
//!        ▲               ──CohortAnnounced──▶ fleet (each shard of the wave)
//!        │                                      │
//!   WavePassed ◀── all settled, baked ◀── ConvergenceReported (levels)
//!        │                                      │ more failures than the budget
//!        ▼ after the last wave                  ▼
//!   RolloutCompleted                       RolloutHalted
//! ```
//!
//! A region's goal is always stated as a whole: the cohorts that the present rollout reached there, then what completed
//! rollouts left there. A node runs the first target that it is in. So a rollout that is superseded or rolled back leaves
//! nothing behind, and a region that a rollout has not reached yet keeps what it has.
//!
//! What goals does not know: nodes, packs, whether an artifact is stored (replication answers that), how a region tells
//! its nodes, and how levels are counted.

mod apply;
mod convergence;
mod deploys;
mod draft;
mod outputs;
mod plan;
pub mod tables;
mod timers;

use longshore_processor::{Decision, Processor, StateError, Store, StoreMut, TableInfo};
use longshore_schemas::{
    RegionName, Timestamp,
    events::{Fact, GoalFact, GoalRequest, RefusalCode, Request},
};

use draft::Draft;
pub use plan::{BAKE_SECONDS_MAX, WAVES_MAX, ZONES_MAX};
pub use timers::Soft;

/// How long an artifact's partition may take to answer a pin.
pub const PIN_SECONDS: u32 = 60;
/// Deploys that a service's history keeps.
pub const REVISIONS_KEPT: u64 = 1_000;
/// Different targets that one region may have of one service; each carries how to run its artifact.
pub const TARGETS_MAX: usize = 16;
/// Longest text that is kept of a failure or a refusal.
pub const REASON_CHARS_MAX: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Every region of the deployment.
    pub regions: Vec<RegionName>,
    pub shards_per_region: u32,
    /// After this, a deploy whose pin was not answered is refused.
    pub pin_seconds: u32,
}

impl Config {
    pub fn new(regions: Vec<RegionName>, shards_per_region: u32) -> Self {
        Self { regions, shards_per_region, pin_seconds: PIN_SECONDS }
    }
}

#[derive(Debug, Clone)]
pub struct Goals {
    pub config: Config,
}

impl Goals {
    pub fn new(config: Config) -> Self {
        Self { config }
    }
}

/// A decision that may end early, with a refusal.
type Decided = Result<(), Stop>;

/// Why a decision ends early.
#[derive(Debug)]
enum Stop {
    Refused(RefusalCode, String),
    State(StateError),
}

impl From<StateError> for Stop {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

/// A text that is kept, at most [`REASON_CHARS_MAX`] long.
fn clip(text: &str) -> String {
    text.chars().take(REASON_CHARS_MAX).collect()
}

fn refuse<T>(code: RefusalCode, reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Refused(code, reason.into()))
}

impl Processor for Goals {
    const NAME: &'static str = "goals";
    const STATE_VERSION: u32 = 3;
    const TABLES: &'static [TableInfo] = tables::ALL;

    type Request = GoalRequest;
    type Fact = GoalFact;
    /// There are no signals to goals.
    type Signal = GoalRequest;
    type Soft = Soft;

    fn decide(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        request: &Request<GoalRequest>,
        now: Timestamp,
    ) -> Result<Decision<GoalFact>, StateError> {
        let mut draft = Draft::new(state, &request.actor, now);
        let decided = match &request.event {
            GoalRequest::DeployRequested(event) => self.deploy(&mut draft, soft, &request.id, event),
            GoalRequest::RollbackRequested(event) => self.roll_back(&mut draft, soft, &request.id, event),
            GoalRequest::PinAnswered(event) => self.pin_answered(&mut draft, soft, event),
            GoalRequest::PauseRequested(event) => self.pause(&mut draft, soft, event),
            GoalRequest::ResumeRequested(event) => self.resume(&mut draft, soft, event),
            GoalRequest::LiftHoldRequested(event) => self.lift_hold(&mut draft, event),
            GoalRequest::ConvergenceReported(event) => self.convergence_reported(&mut draft, soft, event),
        };
        match decided {
            Ok(()) => Ok(draft.into_decision()),
            Err(Stop::Refused(code, reason)) => Ok(Decision::refuse(code, reason)),
            Err(Stop::State(error)) => Err(error),
        }
    }

    fn signal(
        &self,
        _: &dyn Store,
        _: &mut Soft,
        _: &Request<GoalRequest>,
        _: Timestamp,
    ) -> Result<Decision<GoalFact>, StateError> {
        Ok(Decision::nothing())
    }

    fn evolve(state: &mut dyn StoreMut, fact: &Fact<GoalFact>) -> Result<(), StateError> {
        apply::apply(state, &fact.event, &fact.actor, fact.at)
    }

    fn next_wake(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Result<Option<Timestamp>, StateError> {
        self.load(state, soft, now)?;
        Ok(soft.next())
    }

    fn wake(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Result<Decision<GoalFact>, StateError> {
        self.load(state, soft, now)?;
        self.come_due(state, soft, now)
    }
}
