//! Replication: an artifact of the main bucket gets into every region's, and is kept while a service needs it.
//!
//! ```text
//!   ReplicationRequested ──▶ ReplicationStarted ──▶ (regions copy) ──▶ ReplicaReported (levels)
//!     (from the queue)                                                      │
//!   ImportRequested ──────▶ ArtifactImported ─────┘ (alike)                 │
//!                                ReplicaProgressed, ReplicaStored, ReplicaFailed
//!                                                                           │ the last region has it
//!   PinRequested ◀── goals                                       ReplicationCompleted
//!        └──▶ ArtifactPinned ──PinAnswered──▶ goals
//! ```
//!
//! Once the installation's regions are others than before, whoever leads sees to every artifact that is not retired (`backfill`):
//! first those that services need, then the newest.
//!
//! An artifact's name is the hash of its content. So the same artifact may be built twice, under two names, or with
//! another way to run it: it is then started again with what was said last, and the regions' copies stay as they are.
//!
//! A region has an artifact from the moment it reports *Stored* until it reports *Failed*: it found wrong bytes. A
//! *Copying* in between is late, or another process's, and takes nothing back.
//!
//! What nobody needs and whose time is up is retired (`retention`): it is not deployed any more, and its packs may be collected. Built
//! again, it is started anew.
//!
//! What replication does not know: packs and buckets (regions verify and report), and what a service runs.

mod backfill;
mod decide;
mod evolve;
mod retention;
pub mod tables;

use longshore_processor::{Decision, Processor, StateError, Store, StoreMut, TableInfo};
use longshore_schemas::{
    RegionName, Timestamp,
    events::{ArtifactFact, ArtifactRequest, Fact, Request},
};
pub use retention::{Keep, Kept, Retention, Rule};

/// Longest text that is kept of a region's failure.
pub const ERROR_BYTES_MAX: usize = 1024;
/// Longest reason for keeping an artifact.
pub const REASON_BYTES_MAX: usize = 1024;

/// Longest URL that says where an imported artifact comes from.
pub const ORIGIN_BYTES_MAX: usize = 2_048;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Every region of the deployment: where artifacts are replicated to.
    pub regions: Vec<RegionName>,
    pub retention: Retention,
}

impl Config {
    /// With the usual retention.
    pub fn new(regions: Vec<RegionName>) -> Self {
        Self { regions, retention: Retention::default() }
    }
}

/// What only a leader needs.
#[derive(Debug, Default)]
pub struct Soft {
    backfill: backfill::Place,
    look: retention::Look,
}

#[derive(Debug, Clone)]
pub struct Replication {
    pub config: Config,
}

impl Replication {
    pub fn new(config: Config) -> Self {
        Self { config }
    }
}

impl Processor for Replication {
    const NAME: &'static str = "replication";
    const STATE_VERSION: u32 = 6;
    const TABLES: &'static [TableInfo] = tables::ALL;

    type Request = ArtifactRequest;
    type Fact = ArtifactFact;
    /// There are no signals to replication.
    type Signal = ArtifactRequest;
    type Soft = Soft;

    fn decide(
        &self,
        state: &dyn Store,
        _: &mut Soft,
        request: &Request<ArtifactRequest>,
        now: Timestamp,
    ) -> Result<Decision<ArtifactFact>, StateError> {
        match &request.event {
            ArtifactRequest::ReplicationRequested(event) => self.start(state, event, now),
            ArtifactRequest::ReplicaReported(event) => decide::report(state, event),
            ArtifactRequest::PinRequested(event) => decide::pin(state, event),
            ArtifactRequest::UnpinRequested(event) => decide::unpin(state, event),
            ArtifactRequest::ImportRequested(event) => self.import(state, event, now),
            ArtifactRequest::KeepRequested(event) => decide::keep(state, event),
            ArtifactRequest::LetGoRequested(event) => decide::let_go(state, event),
        }
    }

    fn signal(
        &self,
        _: &dyn Store,
        _: &mut Soft,
        _: &Request<ArtifactRequest>,
        _: Timestamp,
    ) -> Result<Decision<ArtifactFact>, StateError> {
        Ok(Decision::nothing())
    }

    fn evolve(state: &mut dyn StoreMut, fact: &Fact<ArtifactFact>) -> Result<(), StateError> {
        evolve::evolve(state, fact)
    }

    fn next_wake(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Result<Option<Timestamp>, StateError> {
        let look = self.next_look(&mut soft.look, now);
        Ok(Some(if self.has_others(state, &mut soft.backfill)? { now } else { look }))
    }

    fn wake(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Result<Decision<ArtifactFact>, StateError> {
        let decision = self.backfill(state, &mut soft.backfill)?;
        if decision.is_nothing() { self.retire(state, &mut soft.look, now) } else { Ok(decision) }
    }
}
