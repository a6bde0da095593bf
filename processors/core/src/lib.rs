//! The contract between a processor's pure heart and the runtime that drives it.
//!
//! ```text
//!   request ──▶ decide(&State, &mut Soft, request, now) ──▶ Decision { facts, requests, refusal }
//!   signal  ──▶ signal(…)                                          │
//!   time    ──▶ wake(…)                                            ▼ committed to the log, then
//!                                                    evolve(&mut State, fact)
//! ```
//!
//! *State* is the fold of the processor's own facts, in typed sorted [`Table`]s over a [`Store`]: a map in tests, an
//! overlay over RocksDB in production. *Soft* is what only a leader needs and may forget; it is empty at takeover.
//!
//! Everything here is synchronous and deterministic: no clock but `now`, no randomness, no iteration over hash maps, no
//! I/O but the store's. What is not known here: topics' offsets, transactions, threads.

mod fingerprint;
mod key;
pub mod run_spec;
mod seen;
mod store;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use longshore_schemas::{
    Timestamp,
    events::{ArtifactRequest, Event, Fact, FactEvent, FleetReport, GoalRequest, RefusalCode, RegionalGoal, Request},
};

pub use fingerprint::{Fingerprint, fingerprint};
pub use key::Key;
pub use seen::Seen;
pub use store::{Changes, Memory, Order, Overlay, Store, StoreMut, Visit};
pub use table::{Range, Table, TableInfo};

/// The state cannot be read or does not make sense. It is never the request's fault.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("table {table}: {reason}")]
    Unreadable { table: &'static str, reason: String },
    #[error("table {table} holds an entry that cannot be decoded: {reason}")]
    Corrupt { table: &'static str, reason: String },
    /// A fact contradicts the state that it is applied to.
    #[error("{0}")]
    Contradiction(String),
}

/// The heart of a processor.
pub trait Processor: Send + Sync + 'static {
    /// Its name in metrics, in owner ids and in the store.
    const NAME: &'static str;
    /// A stored state of another version is rebuilt from the log.
    const STATE_VERSION: u32;
    /// Every table of its State, besides [`Seen`]'s; ids from 0 to 239.
    const TABLES: &'static [TableInfo];

    type Request: Event;
    type Fact: FactEvent;
    /// Read into Soft only.
    type Signal: Event;
    type Soft: Default + Send;

    /// What a request changes. May be different in every release.
    fn decide(
        &self,
        state: &dyn Store,
        soft: &mut Self::Soft,
        request: &Request<Self::Request>,
        now: Timestamp,
    ) -> Result<Decision<Self::Fact>, StateError>;

    /// What a signal changes; most change only Soft.
    fn signal(
        &self,
        state: &dyn Store,
        soft: &mut Self::Soft,
        signal: &Request<Self::Signal>,
        now: Timestamp,
    ) -> Result<Decision<Self::Fact>, StateError>;

    /// The meaning of a fact. Frozen once the event is released: a new meaning is a new event.
    fn evolve(state: &mut dyn StoreMut, fact: &Fact<Self::Fact>) -> Result<(), StateError>;

    /// When `wake` wants to be called next. `now` is passed so that leases of an empty Soft can begin.
    fn next_wake(
        &self,
        state: &dyn Store,
        soft: &mut Self::Soft,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StateError>;

    /// What has come due. Called again, with the state evolved, until it decides nothing.
    fn wake(
        &self,
        state: &dyn Store,
        soft: &mut Self::Soft,
        now: Timestamp,
    ) -> Result<Decision<Self::Fact>, StateError>;
}

/// The outcome of one request, signal or deadline.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision<F> {
    pub facts: Vec<F>,
    pub requests: Vec<Outgoing>,
    pub refusal: Option<Refused>,
}

impl<F> Default for Decision<F> {
    fn default() -> Self {
        Self { facts: Vec::new(), requests: Vec::new(), refusal: None }
    }
}

impl<F> Decision<F> {
    /// Nothing changes, and nothing is wrong.
    pub fn nothing() -> Self {
        Self::default()
    }

    pub fn refuse(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self { refusal: Some(Refused { code, reason: reason.into() }), ..Self::default() }
    }

    #[must_use]
    pub fn fact(mut self, fact: impl Into<F>) -> Self {
        self.facts.push(fact.into());
        self
    }

    #[must_use]
    pub fn request(mut self, request: impl Into<Outgoing>) -> Self {
        self.requests.push(request.into());
        self
    }

    pub fn is_nothing(&self) -> bool {
        self.facts.is_empty() && self.requests.is_empty() && self.refusal.is_none()
    }
}

/// Why a request changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub code: RefusalCode,
    /// For people: what is wrong and what to do.
    pub reason: String,
}

/// What a processor asks of the next one, in the same transaction as its facts.
#[derive(Debug, Clone, PartialEq)]
pub enum Outgoing {
    Artifact(ArtifactRequest),
    Goal(GoalRequest),
    Fleet(FleetReport),
    /// The newest goal of a region and service.
    GoalState(RegionalGoal),
}

macro_rules! outgoing {
    ($($variant:ident <- $type:ty),+) => {
        $(impl From<$type> for Outgoing {
            fn from(request: $type) -> Self {
                Self::$variant(request)
            }
        })+
    };
}
outgoing!(Artifact <- ArtifactRequest, Goal <- GoalRequest, Fleet <- FleetReport, GoalState <- RegionalGoal);
