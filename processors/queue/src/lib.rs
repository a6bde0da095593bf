//! The queue: a requested build waits its turn, runs on a worker, and ends with exactly one result.
//!
//! ```text
//!   BuildRequested ──▶ queued ──JobStarted──▶ running ──AttemptFinished──▶ succeeded ──ReplicationRequested──▶
//!                        ▲     (oldest first)    │  │                  └─▶ failed
//!                        └──────JobRequeued──────┘  └──CancelRequested──▶ canceled
//!                         (not confirmed, or silent)
//!
//!   WorkerReady (an open claim) and Heartbeat are signals: they live in Soft, and only what follows from them is a fact.
//! ```
//!
//! Three things keep a job from being built twice or never:
//! - The attempt number fences: only the worker of the current attempt can finish it.
//! - A claim that was given a job is remembered with it, so a claim repeated late gets no second one.
//! - Each running attempt has a lease: short until the worker's first beat, then as long as a worker may be silent. At
//!   takeover every lease starts anew, so a new leader never gives up an attempt for beats that it could not hear.
//!
//! A job keeps its number for good. So a requeued one is the oldest that waits, and starts before all that came later.
//!
//! What the queue does not know: what a build does, whether packs are stored (the API checks that before it writes
//! `AttemptFinished`), credentials, and what becomes of an artifact.

mod decide;
mod evolve;
mod soft;
mod spec;
pub mod tables;

use std::time::Duration;

use longshore_processor::{Decision, Processor, StateError, Store, StoreMut, TableInfo};
use longshore_schemas::{
    Timestamp,
    events::{BuildFact, BuildRequest, Fact, Request, WorkerSignal},
};

pub use soft::{CLAIM_SECONDS_MAX, Soft};
pub use spec::{
    ARGUMENTS_MAX, HEALTH_SECONDS_MAX, OUTPUT_BYTES_MAX, REPOSITORY_BYTES_MAX, SPEC_BYTES_MAX, STOP_SECONDS_MAX,
    TIME_LIMIT_SECONDS_MAX, VARIABLES_MAX,
};

/// Longest text that is kept of a failure.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Jobs that may wait in one queue.
    pub queued_max: u32,
    /// Attempts that may be lost before the build fails.
    pub attempts_max: u32,
    /// An attempt without a first beat for so long goes to another worker.
    pub confirm_seconds: u32,
    /// A worker silent for so long has lost its attempt.
    pub silent_seconds: u32,
    /// Claims that may wait in one partition. More are not taken up until they are repeated.
    pub claims_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { queued_max: 100_000, attempts_max: 3, confirm_seconds: 10, silent_seconds: 60, claims_max: 10_000 }
    }
}

impl Config {
    fn confirm(&self) -> Duration {
        Duration::from_secs(self.confirm_seconds.into())
    }

    fn silent(&self) -> Duration {
        Duration::from_secs(self.silent_seconds.into())
    }
}

#[derive(Debug, Clone, Default)]
pub struct Queue {
    pub config: Config,
}

impl Queue {
    pub fn new(config: Config) -> Self {
        Self { config }
    }
}

impl Processor for Queue {
    const NAME: &'static str = "queue";
    const STATE_VERSION: u32 = 3;
    const TABLES: &'static [TableInfo] = tables::ALL;

    type Request = BuildRequest;
    type Fact = BuildFact;
    type Signal = WorkerSignal;
    type Soft = Soft;

    fn decide(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        request: &Request<BuildRequest>,
        now: Timestamp,
    ) -> Result<Decision<BuildFact>, StateError> {
        soft.adopt(state, now, self.config.silent())?;
        match &request.event {
            BuildRequest::BuildRequested(event) => self.build(state, soft, &request.id, event, now),
            BuildRequest::CancelRequested(event) => self.cancel(state, soft, event),
            BuildRequest::AttemptFinished(event) => self.finish(state, soft, event),
        }
    }

    fn signal(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        signal: &Request<WorkerSignal>,
        now: Timestamp,
    ) -> Result<Decision<BuildFact>, StateError> {
        soft.adopt(state, now, self.config.silent())?;
        match &signal.event {
            WorkerSignal::WorkerReady(event) => self.ready(state, soft, event, signal.at, now),
            WorkerSignal::Heartbeat(event) => self.beat(state, soft, event, now),
        }
    }

    fn evolve(state: &mut dyn StoreMut, fact: &Fact<BuildFact>) -> Result<(), StateError> {
        evolve::evolve(state, fact)
    }

    fn next_wake(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Result<Option<Timestamp>, StateError> {
        soft.adopt(state, now, self.config.silent())?;
        Ok(soft.leases.next_due())
    }

    fn wake(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Result<Decision<BuildFact>, StateError> {
        soft.adopt(state, now, self.config.silent())?;
        self.give_up_next(state, soft, now)
    }
}
