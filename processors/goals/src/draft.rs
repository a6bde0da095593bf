//! A decision while it is made: each fact is applied to an overlay at once, so that what is decided next sees it.

use longshore_processor::{Decision, Outgoing, Overlay, StateError, Store, StoreMut};
use longshore_schemas::{Timestamp, events::GoalFact};

use crate::apply::apply;

pub(crate) struct Draft<'a> {
    overlay: Overlay<'a>,
    actor: &'a str,
    pub(crate) now: Timestamp,
    decision: Decision<GoalFact>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(state: &'a dyn Store, actor: &'a str, now: Timestamp) -> Self {
        Self { overlay: Overlay::new(state), actor, now, decision: Decision::nothing() }
    }

    /// The state with the facts so far.
    pub(crate) fn state(&self) -> &dyn Store {
        self.overlay.as_store()
    }

    pub(crate) fn fact(&mut self, fact: impl Into<GoalFact>) -> Result<(), StateError> {
        let fact = fact.into();
        apply(&mut self.overlay, &fact, self.actor, self.now)?;
        self.decision.facts.push(fact);
        Ok(())
    }

    pub(crate) fn send(&mut self, request: impl Into<Outgoing>) {
        self.decision.requests.push(request.into());
    }

    pub(crate) fn into_decision(self) -> Decision<GoalFact> {
        self.decision
    }
}
