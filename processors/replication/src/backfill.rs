//! Artifacts that were started when the installation had other regions.
//!
//! A leader looks once, when it takes over: regions come and go with a restart of the control nodes. `PLANS` says whether there is
//! anything to do, so that a look costs nothing where there is not.

use std::ops::ControlFlow;

use longshore_processor::{Decision, Order, Range, StateError, Store};
use longshore_schemas::{
    ArtifactId, RegionName, ServiceName, Timestamp,
    events::{ArtifactFact, ReplicaRegionsSet, ReplicationCompleted},
};

use crate::{
    Replication,
    decide::replica,
    tables::{self, Artifact, Status},
};

/// Artifacts of one decision.
const BATCH_MAX: usize = 64;

/// How far a leader is.
#[derive(Debug, Default)]
pub(crate) enum Place {
    #[default]
    Begin,
    /// What services need, after this.
    Pinned(Option<(ArtifactId, ServiceName)>),
    /// All else from the newest to the oldest, before this.
    Rest(Option<(Timestamp, ArtifactId)>),
    Done,
}

impl Replication {
    /// Whether there may be artifacts whose regions are not the installation's.
    pub(crate) fn has_others(&self, state: &dyn Store, place: &mut Place) -> Result<bool, StateError> {
        if matches!(place, Place::Begin) {
            let own = tables::plan(&self.config.regions);
            let mut others = false;
            tables::PLANS.scan(state, &Range::all(), Order::Ascending, |plan, _| {
                others |= plan != own;
                if others { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            *place = if others { Place::Pinned(None) } else { Place::Done };
        }
        Ok(!matches!(place, Place::Done))
    }

    /// The next of them: until nothing is decided, there are more.
    pub(crate) fn backfill(&self, state: &dyn Store, place: &mut Place) -> Result<Decision<ArtifactFact>, StateError> {
        while self.has_others(state, place)? {
            let artifacts = next(state, place)?;
            let mut decision = Decision::nothing();
            for id in artifacts {
                if let Some(artifact) = tables::ARTIFACTS.get(state, &id)? {
                    decision = self.set_regions(state, decision, id, &artifact)?;
                }
            }
            if !decision.is_nothing() {
                return Ok(decision);
            }
        }
        Ok(Decision::nothing())
    }

    fn set_regions(
        &self,
        state: &dyn Store,
        decision: Decision<ArtifactFact>,
        id: ArtifactId,
        artifact: &Artifact,
    ) -> Result<Decision<ArtifactFact>, StateError> {
        let regions = &self.config.regions;
        if artifact.status == Status::Retired || tables::plan(&artifact.regions) == tables::plan(regions) {
            return Ok(decision);
        }
        let added: Vec<RegionName> =
            regions.iter().filter(|region| !artifact.regions.contains(region)).cloned().collect();
        // The one that was waited for may have gone.
        let mut completed = added.is_empty() && artifact.status == Status::Replicating;
        for region in regions {
            completed = completed && replica(state, id, region)?.is_some_and(|replica| replica.is_stored());
        }
        let decision = decision.fact(ReplicaRegionsSet { artifact: id, regions: regions.clone(), added });
        Ok(if completed { decision.fact(ReplicationCompleted { artifact: id }) } else { decision })
    }
}

/// Some of the artifacts that come next, each once.
fn next(state: &dyn Store, place: &mut Place) -> Result<Vec<ArtifactId>, StateError> {
    let mut found = Vec::new();
    match place {
        Place::Pinned(after) => {
            let mut last = None;
            let range = Range::all();
            let range = after.as_ref().map_or(Range::all(), |after| range.from(after));
            tables::PINS.scan(state, &range, Order::Ascending, |key, _| {
                if after.as_ref() != Some(&key) {
                    if found.last() != Some(&key.0) {
                        found.push(key.0);
                    }
                    last = Some(key);
                }
                if found.len() < BATCH_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            *place = if last.is_some() { Place::Pinned(last) } else { Place::Rest(None) };
        }
        Place::Rest(before) => {
            let range = before.as_ref().map_or(Range::all(), |before| Range::all().before(before));
            let mut last = None;
            tables::LIVE.scan(state, &range, Order::Descending, |key, ()| {
                found.push(key.1);
                last = Some(key);
                if found.len() < BATCH_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            *place = if last.is_some() { Place::Rest(last) } else { Place::Done };
        }
        Place::Begin | Place::Done => {}
    }
    Ok(found)
}
