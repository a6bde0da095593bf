//! Levels on their way to goals: cumulative, only when they changed, and at most one per service, shard and second.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use longshore_processor::{Decision, Order, Range, StateError, Store};
use longshore_schemas::{
    RegionName, ServiceName, Timestamp,
    events::{
        CohortAnnounced, CohortSet, Convergence, ConvergenceReported, FleetFact, GoalRequest, GoalVersion, RefusalCode,
    },
};

use crate::{
    Fleet, LEVEL_INTERVAL_MS,
    tables::{self, COHORTS},
};

/// Levels that one transaction sends.
const LEVELS_PER_WAKE_MAX: usize = 512;

type CohortKey = (RegionName, u32, ServiceName);

/// What a leader knows of what it told goals. At most one entry per cohort.
#[derive(Debug, Default)]
pub struct Soft {
    loaded: bool,
    /// Cohorts whose level may have changed, and when it may be sent.
    due: BTreeMap<CohortKey, Timestamp>,
    sent: BTreeMap<CohortKey, Sent>,
    ignored: u64,
}

#[derive(Debug)]
struct Sent {
    at: Timestamp,
    /// None: goals asked again, so even the same level is sent.
    level: Option<(GoalVersion, Convergence)>,
}

impl Soft {
    /// Entries of reports that named nodes that never joined.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    pub(crate) fn ignore(&mut self, entries: usize) {
        self.ignored = self.ignored.saturating_add(entries as u64);
    }

    /// At takeover, every cohort's level is sent again.
    pub(crate) fn load(&mut self, state: &dyn Store, now: Timestamp) -> Result<(), StateError> {
        if self.loaded {
            return Ok(());
        }
        COHORTS.scan(state, &Range::all(), Order::Ascending, |key, _| {
            self.due.entry(key).or_insert(now);
            ControlFlow::Continue(())
        })?;
        self.loaded = true;
        Ok(())
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.due.values().min().copied()
    }

    /// Notes which cohorts' levels a fact may change.
    pub(crate) fn touched_by(&mut self, state: &dyn Store, fact: &FleetFact, now: Timestamp) -> Result<(), StateError> {
        match fact {
            FleetFact::NodesReported(e) => self.touch((e.region.clone(), e.shard, e.service.clone()), now),
            FleetFact::CohortSet(e) => self.touch((e.region.clone(), e.shard, e.service.clone()), now),
            FleetFact::NodeJoined(e) => self.touch_shard(state, &e.region, e.shard, now)?,
            FleetFact::NodesLost(e) => self.touch_shard(state, &e.region, e.shard, now)?,
            FleetFact::NodesReturned(e) => self.touch_shard(state, &e.region, e.shard, now)?,
            FleetFact::Processed(_) => {}
        }
        Ok(())
    }

    fn touch_shard(
        &mut self,
        state: &dyn Store,
        region: &RegionName,
        shard: u32,
        now: Timestamp,
    ) -> Result<(), StateError> {
        for (service, _) in tables::cohorts(state, region, shard)? {
            self.touch((region.clone(), shard, service), now);
        }
        Ok(())
    }

    fn touch(&mut self, key: CohortKey, now: Timestamp) {
        let earliest = self.sent.get(&key).map(|sent| sent.at + Duration::from_millis(LEVEL_INTERVAL_MS));
        self.due.entry(key).or_insert(earliest.map_or(now, |earliest| earliest.max(now)));
    }

    /// Goals asked for a level that it may have been told.
    fn asked_again(&mut self, key: CohortKey, now: Timestamp) {
        if let Some(sent) = self.sent.get_mut(&key) {
            sent.level = None;
        }
        self.touch(key, now);
    }

    /// Tells goals the levels that are due and not what it was told last.
    pub(crate) fn send_due(&mut self, state: &dyn Store, now: Timestamp) -> Result<Decision<FleetFact>, StateError> {
        let due = self.due.iter().filter(|(_, due)| **due <= now).map(|(key, _)| key.clone());
        let due: Vec<CohortKey> = due.collect();
        let mut decision = Decision::nothing();
        for key in due {
            if decision.requests.len() == LEVELS_PER_WAKE_MAX {
                break;
            }
            self.due.remove(&key);
            // A service that nodes report and no rollout reached here has no cohort.
            let Some(cohort) = COHORTS.get(state, &key)? else { continue };
            let level = Some((cohort.version, cohort.level));
            if self.sent.get(&key).is_some_and(|sent| sent.level == level) {
                continue;
            }
            let (region, shard, service) = key.clone();
            decision = decision.request(GoalRequest::from(ConvergenceReported {
                service,
                region,
                shard,
                version: cohort.version,
                level: cohort.level,
                failure: cohort.failure,
            }));
            self.sent.insert(key, Sent { at: now, level });
        }
        Ok(decision)
    }
}

impl Fleet {
    pub(crate) fn cohort_announced(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        event: &CohortAnnounced,
        now: Timestamp,
    ) -> Result<Decision<FleetFact>, StateError> {
        if let Some(refused) = self.unknown_shard(&event.region, event.shard) {
            return Ok(refused);
        }
        let key = (event.region.clone(), event.shard, event.service.clone());
        let known = COHORTS.get(state, &key)?.map(|cohort| cohort.version);
        if known == Some(event.version) {
            soft.asked_again(key, now);
            return Ok(Decision::nothing());
        }
        if let Some(newer) = known.filter(|known| event.version < *known) {
            let reason = format!(
                "shard {} of region {} is at version {newer} of service {} already; {} is older",
                event.shard, event.region, event.service, event.version
            );
            return Ok(Decision::refuse(RefusalCode::Stale, reason));
        }
        let event = event.clone();
        Ok(Decision::nothing().fact(CohortSet {
            region: event.region,
            shard: event.shard,
            service: event.service,
            version: event.version,
            artifact: event.artifact,
            cohort: event.cohort,
        }))
    }
}
