//! The meaning of goals' facts. Frozen for released events.

use longshore_processor::{StateError, Store, StoreMut};
use longshore_schemas::{
    ServiceName, Timestamp,
    events::{
        ConvergenceRecorded, DeployAccepted, DeployRefused, GoalFact, GoalSet, GoalVersion, RolledBack,
        RolloutCompleted, RolloutHalted, WaveStarted,
    },
    http::RolloutStatus,
};

use crate::{
    REVISIONS_KEPT, plan,
    tables::{self, Base, HOLDS, Hold, LEVELS, Level, REGIONS, REVISIONS, Revision, SERVICES, Service},
};

type Applied = Result<(), StateError>;

pub(crate) fn apply(state: &mut dyn StoreMut, fact: &GoalFact, actor: &str, at: Timestamp) -> Applied {
    match fact {
        GoalFact::DeployAccepted(fact) => deploy_accepted(state, fact, actor, at),
        GoalFact::DeployRefused(fact) => deploy_refused(state, fact, at),
        GoalFact::GoalSet(fact) => goal_set(state, fact, at),
        GoalFact::WaveStarted(fact) => wave_started(state, fact),
        GoalFact::ConvergenceRecorded(fact) => convergence_recorded(state, fact, at),
        // What follows, the next wave or completion, is a fact of its own.
        GoalFact::WavePassed(_) | GoalFact::Processed(_) => Ok(()),
        GoalFact::RolloutPaused(fact) => {
            step(state, &fact.service, fact.version, |row| row.status = RolloutStatus::Paused)
        }
        GoalFact::RolloutResumed(fact) => step(state, &fact.service, fact.version, |row| {
            row.status = RolloutStatus::Rolling;
            row.announced = fact.version;
            row.reason = None;
        }),
        GoalFact::RolloutHalted(fact) => step(state, &fact.service, fact.version, |row| {
            row.status = RolloutStatus::Halted;
            row.reason = Some(halt_reason(fact));
        }),
        GoalFact::RolledBack(fact) => rolled_back(state, fact, actor, at),
        GoalFact::RolloutCompleted(fact) => rollout_completed(state, fact, at),
        GoalFact::HoldLifted(fact) => {
            HOLDS.delete(state, &(fact.service.clone(), fact.artifact));
            Ok(())
        }
    }
}

fn deploy_accepted(state: &mut dyn StoreMut, fact: &DeployAccepted, actor: &str, at: Timestamp) -> Applied {
    let mut service = SERVICES.get(state.as_store(), &fact.service)?.unwrap_or_default();
    service.last_order += 1;
    let order = service.last_order;
    service.pending = Some(order);
    SERVICES.put(state, &fact.service, &service)?;
    let revision = Revision {
        revision: 0,
        deploy: fact.deploy.clone(),
        artifact: fact.artifact,
        run: None,
        plan: fact.plan.clone(),
        actor: actor.to_owned(),
        status: RolloutStatus::Pending,
        wave: 0,
        announced: GoalVersion::default(),
        requested_at: at,
        ended_at: None,
        reason: None,
        rollback_of: Some(fact.rollback_of).filter(|revision| *revision > 0),
    };
    REVISIONS.put(state, &(fact.service.clone(), order), &revision)?;
    forget(state, &fact.service, &service)
}

/// Drops the deploy that is now too old for the history, unless nodes still run what it brought.
fn forget(state: &mut dyn StoreMut, service: &ServiceName, row: &Service) -> Applied {
    let Some(order) = row.last_order.checked_sub(REVISIONS_KEPT) else { return Ok(()) };
    let regions = tables::regions(state.as_store(), service)?;
    let needed = row.present == Some(order)
        || regions.iter().any(|(_, region)| region.base.iter().any(|base| base.order == order));
    if !needed {
        REVISIONS.delete(state, &(service.clone(), order));
    }
    Ok(())
}

/// The service and its pending deploy, which is pending no more.
fn take_pending(state: &dyn Store, service: &ServiceName) -> Result<(Service, u64, Revision), StateError> {
    let mut row = SERVICES.expect(state, service)?;
    let order = row
        .pending
        .take()
        .ok_or_else(|| StateError::Contradiction(format!("service {service} has no pending deploy")))?;
    let revision = REVISIONS.expect(state, &(service.clone(), order))?;
    Ok((row, order, revision))
}

fn deploy_refused(state: &mut dyn StoreMut, fact: &DeployRefused, at: Timestamp) -> Applied {
    let (service, order, mut revision) = take_pending(state.as_store(), &fact.service)?;
    revision.status = RolloutStatus::Refused;
    revision.reason = Some(fact.reason.clone());
    revision.ended_at = Some(at);
    SERVICES.put(state, &fact.service, &service)?;
    REVISIONS.put(state, &(fact.service.clone(), order), &revision)
}

/// The new goal takes the place of the one before, of which only what it completed stays.
fn goal_set(state: &mut dyn StoreMut, fact: &GoalSet, at: Timestamp) -> Applied {
    let (mut service, order, mut revision) = take_pending(state.as_store(), &fact.service)?;
    if let Some((before, mut earlier)) = tables::present(state.as_store(), &fact.service, &service)?
        && earlier.status != RolloutStatus::Completed
    {
        earlier.status = RolloutStatus::Superseded;
        earlier.ended_at = Some(at);
        REVISIONS.put(state, &(fact.service.clone(), before), &earlier)?;
    }
    for (region, mut row) in tables::regions(state.as_store(), &fact.service)? {
        if !row.reached.is_empty() {
            row.reached.clear();
            REGIONS.put(state, &(fact.service.clone(), region), &row)?;
        }
    }
    revision.revision = fact.revision;
    revision.run = Some(fact.run.clone());
    revision.status = RolloutStatus::Rolling;
    service.version = GoalVersion { revision: fact.revision, step: 0 };
    service.present = Some(order);
    SERVICES.put(state, &fact.service, &service)?;
    REVISIONS.put(state, &(fact.service.clone(), order), &revision)
}

/// Changes the present goal's deploy, and sets the service's version.
fn step(
    state: &mut dyn StoreMut,
    name: &ServiceName,
    version: GoalVersion,
    change: impl FnOnce(&mut Revision),
) -> Applied {
    let mut service = SERVICES.expect(state.as_store(), name)?;
    let (order, mut revision) = tables::present(state.as_store(), name, &service)?
        .ok_or_else(|| StateError::Contradiction(format!("service {name} has no goal")))?;
    change(&mut revision);
    service.version = version;
    SERVICES.put(state, name, &service)?;
    REVISIONS.put(state, &(name.clone(), order), &revision)
}

fn wave_started(state: &mut dyn StoreMut, fact: &WaveStarted) -> Applied {
    let mut wave = None;
    step(state, &fact.service, fact.version, |revision| {
        revision.wave = fact.wave;
        revision.announced = fact.version;
        wave = revision.plan.waves.get(fact.wave as usize).cloned();
    })?;
    let wave = wave.ok_or_else(|| {
        StateError::Contradiction(format!("the plan of service {} has no wave {}", fact.service, fact.wave))
    })?;
    let cohort = plan::cohort(&wave);
    for region in wave.regions {
        let key = (fact.service.clone(), region);
        let mut row = REGIONS.get(state.as_store(), &key)?.unwrap_or_default();
        plan::reach(&mut row.reached, cohort.clone());
        REGIONS.put(state, &key, &row)?;
    }
    Ok(())
}

fn convergence_recorded(state: &mut dyn StoreMut, fact: &ConvergenceRecorded, at: Timestamp) -> Applied {
    let key = (fact.service.clone(), fact.region.clone(), fact.shard);
    let before = LEVELS.get(state.as_store(), &key)?.filter(|row| row.version == fact.version);
    let level = fact.level;
    let settled = level.converged.saturating_add(level.failed) == level.eligible;
    let settled_since = settled.then(|| before.and_then(|row| row.settled_since).unwrap_or(at));
    let row = Level { version: fact.version, level, failure: fact.failure.clone(), at, settled_since };
    LEVELS.put(state, &key, &row)
}

fn rolled_back(state: &mut dyn StoreMut, fact: &RolledBack, actor: &str, at: Timestamp) -> Applied {
    let hold = Hold { revision: fact.from_revision, at, actor: actor.to_owned() };
    HOLDS.put(state, &(fact.service.clone(), fact.held), &hold)
}

/// What the rollout reached becomes what its regions run from now on, above what it left untouched.
fn rollout_completed(state: &mut dyn StoreMut, fact: &RolloutCompleted, at: Timestamp) -> Applied {
    let service = SERVICES.expect(state.as_store(), &fact.service)?;
    let (order, mut revision) = tables::present(state.as_store(), &fact.service, &service)?
        .ok_or_else(|| StateError::Contradiction(format!("service {} has no goal", fact.service)))?;
    revision.status = RolloutStatus::Completed;
    revision.ended_at = Some(at);
    REVISIONS.put(state, &(fact.service.clone(), order), &revision)?;
    for (region, mut row) in tables::regions(state.as_store(), &fact.service)? {
        if row.reached.is_empty() {
            continue;
        }
        let reached = std::mem::take(&mut row.reached);
        row.base.retain(|base| !reached.iter().any(|cohort| plan::covers(cohort, &base.cohort)));
        row.base.splice(0..0, reached.into_iter().map(|cohort| Base { order, cohort }));
        REGIONS.put(state, &(fact.service.clone(), region), &row)?;
    }
    Ok(())
}

fn halt_reason(fact: &RolloutHalted) -> String {
    // People count waves from 1.
    let wave = fact.wave.saturating_add(1);
    let counts = format!(
        "{} of {} nodes failed in wave {wave}, of which {} were allowed",
        fact.level.failed, fact.level.eligible, fact.allowed
    );
    match &fact.failure {
        Some(failure) => format!("{counts}: {failure}"),
        None => counts,
    }
}
