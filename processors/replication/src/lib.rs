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
//! What replication does not know: packs and buckets (regions verify and report), and what a service runs.

mod backfill;
mod decide;
mod evolve;
pub mod tables;

pub use backfill::Soft;
use longshore_processor::{Decision, Processor, StateError, Store, StoreMut, TableInfo};
use longshore_schemas::{
    RegionName, Timestamp,
    events::{ArtifactFact, ArtifactRequest, Fact, Request},
};

/// Longest text that is kept of a region's failure.
pub const ERROR_BYTES_MAX: usize = 1024;

/// Longest URL that says where an imported artifact comes from.
pub const ORIGIN_BYTES_MAX: usize = 2_048;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Every region of the deployment: where artifacts are replicated to.
    pub regions: Vec<RegionName>,
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
    const STATE_VERSION: u32 = 4;
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
        _: Timestamp,
    ) -> Result<Decision<ArtifactFact>, StateError> {
        match &request.event {
            ArtifactRequest::ReplicationRequested(event) => self.start(state, event),
            ArtifactRequest::ReplicaReported(event) => decide::report(state, event),
            ArtifactRequest::PinRequested(event) => decide::pin(state, event),
            ArtifactRequest::UnpinRequested(event) => decide::unpin(state, event),
            ArtifactRequest::ImportRequested(event) => self.import(state, event),
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
        Ok(self.has_others(state, soft)?.then_some(now))
    }

    fn wake(&self, state: &dyn Store, soft: &mut Soft, _: Timestamp) -> Result<Decision<ArtifactFact>, StateError> {
        self.backfill(state, soft)
    }
}
