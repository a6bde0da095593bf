//! What waits for time to pass: pins without an answer, and waves that bake.
//!
//! The deadlines are Soft. At takeover pins get their full time again; since when a wave has settled is in State, so a
//! bake does not begin anew.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use longshore_processor::{Decision, Order, Range, StateError, Store};
use longshore_schemas::{ServiceName, Timestamp, events::GoalFact, http::RolloutStatus};

use crate::{
    Goals,
    deploys::refuse_deploy,
    draft::Draft,
    tables::{self, REVISIONS, SERVICES},
};

/// The actor of what happens by itself.
const TIMER: &str = "timer";

/// A leader's deadlines. At most two per service.
#[derive(Debug, Default)]
pub struct Soft {
    loaded: bool,
    pins: BTreeMap<ServiceName, Timestamp>,
    bakes: BTreeMap<ServiceName, Timestamp>,
}

impl Soft {
    pub(crate) fn pin_sent(&mut self, service: &ServiceName, now: Timestamp, seconds: u32) {
        self.pins.insert(service.clone(), now + Duration::from_secs(u64::from(seconds)));
    }

    pub(crate) fn pin_answered(&mut self, service: &ServiceName) {
        self.pins.remove(service);
    }

    pub(crate) fn settled(&mut self, service: &ServiceName, due: Timestamp) {
        self.bakes.insert(service.clone(), due);
    }

    pub(crate) fn unsettled(&mut self, service: &ServiceName) {
        self.bakes.remove(service);
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.pins.values().chain(self.bakes.values()).min().copied()
    }
}

/// Takes a service whose deadline has come.
fn take_due(deadlines: &mut BTreeMap<ServiceName, Timestamp>, now: Timestamp) -> Option<ServiceName> {
    let service = deadlines.iter().find(|(_, due)| **due <= now)?.0.clone();
    deadlines.remove(&service);
    Some(service)
}

impl Goals {
    /// At takeover: every pending pin gets its time again, and every rollout is looked at once.
    pub(crate) fn load(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Result<(), StateError> {
        if soft.loaded {
            return Ok(());
        }
        let mut services = Vec::new();
        SERVICES.scan(state, &Range::all(), Order::Ascending, |service, row| {
            services.push((service, row));
            ControlFlow::Continue(())
        })?;
        for (service, row) in services {
            if row.pending.is_some() && !soft.pins.contains_key(&service) {
                soft.pin_sent(&service, now, self.config.pin_seconds);
            }
            let present = tables::present(state, &service, &row)?;
            if present.is_some_and(|(_, revision)| revision.status == RolloutStatus::Rolling) {
                soft.settled(&service, now);
            }
        }
        soft.loaded = true;
        Ok(())
    }

    /// The first of the deadlines that changes something.
    pub(crate) fn come_due(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        now: Timestamp,
    ) -> Result<Decision<GoalFact>, StateError> {
        while let Some(service) = take_due(&mut soft.pins, now) {
            let mut draft = Draft::new(state, TIMER, now);
            self.pin_expired(&mut draft, &service)?;
            let decision = draft.into_decision();
            if !decision.is_nothing() {
                return Ok(decision);
            }
        }
        while let Some(service) = take_due(&mut soft.bakes, now) {
            let mut draft = Draft::new(state, TIMER, now);
            self.go_on(&mut draft, soft, &service)?;
            let decision = draft.into_decision();
            if !decision.is_nothing() {
                return Ok(decision);
            }
        }
        Ok(Decision::nothing())
    }

    fn pin_expired(&self, draft: &mut Draft<'_>, service: &ServiceName) -> Result<(), StateError> {
        let Some(order) = SERVICES.get(draft.state(), service)?.and_then(|row| row.pending) else { return Ok(()) };
        let pending = REVISIONS.expect(draft.state(), &(service.clone(), order))?;
        let reason = format!(
            "nothing was heard of artifact {} for {} s after it was to be pinned; check that replication runs, and \
             deploy again",
            pending.artifact, self.config.pin_seconds
        );
        refuse_deploy(draft, service, &pending, &reason)
    }
}
