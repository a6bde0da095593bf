//! What goals tells the others: regions their goals, shards their cohorts, replication what need not be kept.

use std::{collections::BTreeSet, ops::ControlFlow};

use longshore_processor::{Order, Range, StateError, Store};
use longshore_schemas::{
    ArtifactId, ServiceName,
    events::{ArtifactRequest, CohortAnnounced, FleetReport, PinRequested, RegionalGoal, Target, UnpinRequested},
    http::RolloutStatus,
};

use crate::{
    Goals,
    draft::Draft,
    plan,
    tables::{self, REVISIONS, Regional, Revision, SERVICES, Service},
};

impl Goals {
    /// States the service's goal anew to every region that was ever told of it, at the present version.
    pub(crate) fn publish(&self, draft: &mut Draft<'_>, service: &ServiceName) -> Result<(), StateError> {
        let row = SERVICES.expect(draft.state(), service)?;
        let Some((order, _)) = tables::present(draft.state(), service, &row)? else { return Ok(()) };
        for (region, regional) in tables::regions(draft.state(), service)? {
            if self.config.regions.contains(&region) {
                let targets = targets(draft.state(), service, order, &regional)?;
                draft.send(RegionalGoal { region, service: service.clone(), version: row.version, targets });
            }
        }
        Ok(())
    }

    /// Tells each shard of the present wave's regions whose levels are wanted.
    pub(crate) fn announce(&self, draft: &mut Draft<'_>, service: &ServiceName) -> Result<(), StateError> {
        let row = SERVICES.expect(draft.state(), service)?;
        let Some((_, revision)) = tables::present(draft.state(), service, &row)? else { return Ok(()) };
        let Some(wave) = revision.plan.waves.get(revision.wave as usize) else { return Ok(()) };
        for region in &wave.regions {
            for shard in 0..self.config.shards_per_region {
                draft.send(FleetReport::from(CohortAnnounced {
                    region: region.clone(),
                    shard,
                    service: service.clone(),
                    version: revision.announced,
                    artifact: revision.artifact,
                    cohort: plan::cohort(wave),
                }));
            }
        }
        Ok(())
    }
}

/// What the present rollout reached, above what completed ones left; nothing that no node could match.
fn targets(
    state: &dyn Store,
    service: &ServiceName,
    present: u64,
    regional: &Regional,
) -> Result<Vec<Target>, StateError> {
    let reached = regional.reached.iter().map(|cohort| (present, cohort));
    let base = regional.base.iter().map(|base| (base.order, &base.cohort));
    let mut targets: Vec<Target> = Vec::new();
    for (order, cohort) in reached.chain(base) {
        if targets.iter().any(|target| plan::covers(&target.cohort, cohort)) {
            continue;
        }
        let revision = REVISIONS.expect(state, &(service.clone(), order))?;
        let run = revision.run.ok_or_else(|| {
            StateError::Contradiction(format!("revision {} of service {service} has no run spec", revision.revision))
        })?;
        let (revision, artifact) = (revision.revision, revision.artifact);
        targets.push(Target { cohort: cohort.clone(), revision, artifact, run });
    }
    Ok(targets)
}

/// The artifacts that the service needs: its goal, what is being pinned, what regions run, what it would go back to, and what it was
/// rolled back from, which may be deployed again once the hold is lifted.
pub(crate) fn kept(state: &dyn Store, service: &ServiceName) -> Result<BTreeSet<ArtifactId>, StateError> {
    let mut kept = BTreeSet::new();
    let Some(row) = SERVICES.get(state, service)? else { return Ok(kept) };
    let mut orders: BTreeSet<u64> = [row.present, row.pending].into_iter().flatten().collect();
    for (_, regional) in tables::regions(state, service)? {
        orders.extend(regional.base.iter().map(|base| base.order));
    }
    for order in orders {
        kept.insert(REVISIONS.expect(state, &(service.clone(), order))?.artifact);
    }
    kept.extend(rollback_target(state, service, &row)?.map(|revision| revision.artifact));
    kept.extend(tables::held(state, service)?.into_iter().map(|(artifact, _)| artifact));
    Ok(kept)
}

/// Has replication keep what is needed now and was not before (where a rollback would go, once another rollback has gone as far), whatever
/// regions have of it at this moment; and lets go of what was needed before and is not any more. A pin's answer names the present deploy.
pub(crate) fn repin(
    draft: &mut Draft<'_>,
    service: &ServiceName,
    before: &BTreeSet<ArtifactId>,
) -> Result<(), StateError> {
    let row = SERVICES.expect(draft.state(), service)?;
    let present = tables::present(draft.state(), service, &row)?;
    let after = kept(draft.state(), service)?;
    if let Some((_, Revision { deploy, .. })) = present {
        for artifact in after.difference(before).copied() {
            let (service, deploy, regions) = (service.clone(), deploy.clone(), Vec::new());
            draft.send(ArtifactRequest::from(PinRequested { artifact, service, deploy, regions }));
        }
    }
    for artifact in before.difference(&after).copied() {
        draft.send(ArtifactRequest::from(UnpinRequested { artifact, service: service.clone() }));
    }
    Ok(())
}

/// Where a rollback goes if it is not told: the newest other artifact that completed before, and is not held.
pub(crate) fn rollback_target(
    state: &dyn Store,
    service: &ServiceName,
    row: &Service,
) -> Result<Option<Revision>, StateError> {
    let Some((order, present)) = tables::present(state, service, row)? else { return Ok(None) };
    let held = tables::held(state, service)?;
    find_before(state, service, order, |revision| {
        revision.status == RolloutStatus::Completed
            && revision.artifact != present.artifact
            && held.iter().all(|(artifact, _)| *artifact != revision.artifact)
    })
}

/// The newest deploy that fits, of those before `order`.
pub(crate) fn find_before(
    state: &dyn Store,
    service: &ServiceName,
    order: u64,
    mut fits: impl FnMut(&Revision) -> bool,
) -> Result<Option<Revision>, StateError> {
    let range = Range::prefix(service).before(&(service.clone(), order));
    let mut found = None;
    REVISIONS.scan(state, &range, Order::Descending, |_, revision| {
        if fits(&revision) {
            found = Some(revision);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
