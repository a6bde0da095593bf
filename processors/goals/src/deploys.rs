//! What people ask of a service's goal, and replication's answers to pins.

use longshore_planted::{Bug, planted};
use longshore_processor::StateError;
use longshore_schemas::{
    ArtifactId, RequestId, ServiceName,
    events::{
        ArtifactRequest, DeployAccepted, DeployRefused, DeployRequested, GoalSet, GoalVersion, HoldLifted,
        LiftHoldRequested, PauseRequested, PinAnswered, PinRequested, RefusalCode, ResumeRequested, RollbackRequested,
        RolledBack, RolloutPaused, RolloutPlan, RolloutResumed, RunSpec, UnpinRequested,
    },
    http::RolloutStatus,
};

use crate::{
    Decided, Goals, Stop, TARGETS_MAX, clip,
    draft::Draft,
    outputs, plan, refuse,
    tables::{self, HOLDS, REGIONS, REVISIONS, Revision, SERVICES, Service},
    timers::Soft,
};

impl Goals {
    pub(crate) fn deploy(
        &self,
        draft: &mut Draft<'_>,
        soft: &mut Soft,
        id: &RequestId,
        event: &DeployRequested,
    ) -> Decided {
        plan::check(&event.plan, &self.config)?;
        let service = SERVICES.get(draft.state(), &event.service)?.unwrap_or_default();
        check_not_held(draft, &event.service, event.artifact)?;
        check_none_pending(draft, &event.service, &service)?;
        check_targets(draft, &event.service, &event.plan)?;
        self.accept(draft, soft, id, (&event.service, event.artifact, event.plan.clone()), 0)
    }

    pub(crate) fn roll_back(
        &self,
        draft: &mut Draft<'_>,
        soft: &mut Soft,
        id: &RequestId,
        event: &RollbackRequested,
    ) -> Decided {
        let name = &event.service;
        let service = known(draft, name)?;
        let Some((order, present)) = tables::present(draft.state(), name, &service)? else {
            return refuse(RefusalCode::Conflict, format!("service {name} has no goal yet; there is nothing to leave"));
        };
        check_none_pending(draft, name, &service)?;
        let artifact = match event.to {
            Some(artifact) => earlier_goal(draft, name, order, &present, artifact)?,
            None => match outputs::rollback_target(draft.state(), name, &service)? {
                Some(target) => target.artifact,
                None => {
                    let reason = format!(
                        "service {name} has no earlier artifact that completed and is not held; deploy one instead"
                    );
                    return refuse(RefusalCode::NotFound, reason);
                }
            },
        };
        let running = tables::regions(draft.state(), name)?.into_iter().filter(|(_, region)| region.runs());
        let regions = running.map(|(region, _)| region).filter(|region| self.config.regions.contains(region));
        let plan = plan::everyone_at_once(regions.collect());
        self.accept(draft, soft, id, (name, artifact, plan), present.revision)
    }

    fn accept(
        &self,
        draft: &mut Draft<'_>,
        soft: &mut Soft,
        id: &RequestId,
        (service, artifact, plan): (&ServiceName, ArtifactId, RolloutPlan),
        rollback_of: u64,
    ) -> Decided {
        let (service, deploy) = (service.clone(), id.clone());
        let regions = plan::regions(&plan);
        soft.pin_sent(&service, draft.now, self.config.pin_seconds);
        draft.fact(DeployAccepted { service: service.clone(), deploy: deploy.clone(), artifact, plan, rollback_of })?;
        draft.send(ArtifactRequest::from(PinRequested { artifact, service, deploy, regions }));
        Ok(())
    }

    pub(crate) fn pin_answered(&self, draft: &mut Draft<'_>, soft: &mut Soft, event: &PinAnswered) -> Decided {
        let service = known(draft, &event.service)?;
        let pending = match service.pending {
            Some(order) => Some(REVISIONS.expect(draft.state(), &(event.service.clone(), order))?),
            None => None,
        };
        let Some(pending) = pending.filter(|row| row.deploy == event.deploy && row.artifact == event.artifact) else {
            return answered_later(draft, &service, event);
        };
        soft.pin_answered(&event.service);
        let run = match (&event.run, &event.refusal) {
            (Some(run), None) => run,
            (_, refusal) => {
                let reason = refusal.as_deref().unwrap_or("the artifact was not pinned, and no reason was given");
                return Ok(refuse_deploy(draft, &event.service, &pending, reason)?);
            }
        };
        let before = outputs::kept(draft.state(), &event.service)?;
        set_goal(draft, &event.service, &service, pending, run)?;
        self.start_wave(draft, soft, &event.service, 0)?;
        Ok(outputs::repin(draft, &event.service, &before)?)
    }

    pub(crate) fn pause(&self, draft: &mut Draft<'_>, soft: &mut Soft, event: &PauseRequested) -> Decided {
        let service = known(draft, &event.service)?;
        check_status(draft, &event.service, &service, "paused", &[RolloutStatus::Rolling])?;
        soft.unsettled(&event.service);
        draft.fact(RolloutPaused { service: event.service.clone(), version: next_step(&service) })?;
        Ok(self.publish(draft, &event.service)?)
    }

    /// The shards are asked anew: only what they say from now on lets the wave pass, or halts it again.
    pub(crate) fn resume(&self, draft: &mut Draft<'_>, soft: &mut Soft, event: &ResumeRequested) -> Decided {
        let service = known(draft, &event.service)?;
        let allowed = [RolloutStatus::Paused, RolloutStatus::Halted];
        check_status(draft, &event.service, &service, "resumed", &allowed)?;
        soft.unsettled(&event.service);
        draft.fact(RolloutResumed { service: event.service.clone(), version: next_step(&service) })?;
        self.publish(draft, &event.service)?;
        Ok(self.announce(draft, &event.service)?)
    }

    pub(crate) fn lift_hold(&self, draft: &mut Draft<'_>, event: &LiftHoldRequested) -> Decided {
        let (service, artifact) = (event.service.clone(), event.artifact);
        if !HOLDS.contains(draft.state(), &(service.clone(), artifact))? {
            let reason = format!("artifact {artifact} is not held for service {service}; there is no hold to lift");
            return refuse(RefusalCode::NotFound, reason);
        }
        let before = outputs::kept(draft.state(), &service)?;
        draft.fact(HoldLifted { service: service.clone(), artifact })?;
        Ok(outputs::repin(draft, &service, &before)?)
    }
}

/// The version of a service's next wave, pause, halt or resumption.
pub(crate) fn next_step(service: &Service) -> GoalVersion {
    let mut version = service.version;
    version.step += 1;
    version
}

/// Ends a pending deploy without a goal.
pub(crate) fn refuse_deploy(
    draft: &mut Draft<'_>,
    service: &ServiceName,
    pending: &Revision,
    reason: &str,
) -> Result<(), StateError> {
    draft.fact(DeployRefused {
        service: service.clone(),
        deploy: pending.deploy.clone(),
        artifact: pending.artifact,
        reason: clip(reason),
    })
}

fn set_goal(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    service: &Service,
    pending: Revision,
    run: &RunSpec,
) -> Result<(), StateError> {
    let left = tables::present(draft.state(), name, service)?;
    let revision = if planted(Bug::RestartGoalVersions) { 1 } else { service.version.revision + 1 };
    let rollback = pending.rollback_of;
    draft.fact(GoalSet {
        service: name.clone(),
        revision,
        deploy: pending.deploy,
        artifact: pending.artifact,
        run: run.clone(),
        plan: pending.plan,
    })?;
    if let (Some(from_revision), Some((_, left))) = (rollback, left) {
        draft.fact(RolledBack { service: name.clone(), from_revision, revision, held: left.artifact })?;
    }
    Ok(())
}

/// What a rollback would go to is pinned, or cannot be any more, of which a rollback to it would tell. Or else the deploy was given up
/// meanwhile: what was pinned for it is let go, unless it is needed otherwise.
fn answered_later(draft: &mut Draft<'_>, service: &Service, event: &PinAnswered) -> Decided {
    let present = tables::present(draft.state(), &event.service, service)?;
    if present.is_some_and(|(_, present)| present.deploy == event.deploy && present.artifact != event.artifact) {
        return Ok(());
    }
    if event.run.is_some() && !outputs::kept(draft.state(), &event.service)?.contains(&event.artifact) {
        let (artifact, service) = (event.artifact, event.service.clone());
        draft.send(ArtifactRequest::from(UnpinRequested { artifact, service }));
        return Ok(());
    }
    refuse(RefusalCode::Stale, format!("deploy {} of service {} is not pending any more", event.deploy, event.service))
}

fn known(draft: &Draft<'_>, service: &ServiceName) -> Result<Service, Stop> {
    match SERVICES.get(draft.state(), service)? {
        Some(row) => Ok(row),
        None => refuse(RefusalCode::NotFound, format!("there is no service {service}; deploy it first")),
    }
}

fn check_not_held(draft: &Draft<'_>, service: &ServiceName, artifact: ArtifactId) -> Decided {
    match HOLDS.get(draft.state(), &(service.clone(), artifact))? {
        None => Ok(()),
        Some(hold) => refuse(
            RefusalCode::Conflict,
            format!(
                "artifact {artifact} was rolled back from in revision {} of service {service}; lift the hold with \
                 DELETE /v1/services/{service}/holds/{artifact}, or deploy another artifact",
                hold.revision
            ),
        ),
    }
}

fn check_none_pending(draft: &Draft<'_>, service: &ServiceName, row: &Service) -> Decided {
    let Some(order) = row.pending else { return Ok(()) };
    let pending = REVISIONS.expect(draft.state(), &(service.clone(), order))?;
    refuse(
        RefusalCode::Conflict,
        format!(
            "deploy {} of service {service} is still waiting for its artifact {}; try again when it has started",
            pending.deploy, pending.artifact
        ),
    )
}

fn check_targets(draft: &Draft<'_>, service: &ServiceName, plan: &RolloutPlan) -> Decided {
    for region in plan::regions(plan) {
        let base = REGIONS.get(draft.state(), &(service.clone(), region.clone()))?.map_or(0, |row| row.base.len());
        let targets = base + plan::targets(plan, &region);
        if targets > TARGETS_MAX {
            let reason = format!(
                "service {service} would have {targets} different targets in region {region}, at most {TARGETS_MAX} \
                 are possible; deploy one artifact to all of the region's nodes first"
            );
            return refuse(RefusalCode::Exhausted, reason);
        }
    }
    Ok(())
}

/// The artifact that a rollback names, which must have been a goal before and be another than the present one.
fn earlier_goal(
    draft: &Draft<'_>,
    service: &ServiceName,
    order: u64,
    present: &Revision,
    artifact: ArtifactId,
) -> Result<ArtifactId, Stop> {
    if artifact == present.artifact {
        let reason = format!("artifact {artifact} is the goal of service {service} already; name an earlier one");
        return refuse(RefusalCode::Conflict, reason);
    }
    check_not_held(draft, service, artifact)?;
    let was_goal = |revision: &Revision| revision.revision > 0 && revision.artifact == artifact;
    match outputs::find_before(draft.state(), service, order, was_goal)? {
        Some(_) => Ok(artifact),
        None => refuse(
            RefusalCode::NotFound,
            format!("artifact {artifact} was never a goal of service {service}; deploy it instead"),
        ),
    }
}

fn check_status(
    draft: &Draft<'_>,
    name: &ServiceName,
    service: &Service,
    wanted: &str,
    allowed: &[RolloutStatus],
) -> Decided {
    let reason = match tables::present(draft.state(), name, service)? {
        Some((_, present)) if allowed.contains(&present.status) => return Ok(()),
        Some((_, present)) => format!("revision {} is {}", present.revision, describe(present.status)),
        None => "it has no goal yet".to_owned(),
    };
    refuse(RefusalCode::Conflict, format!("the rollout of service {name} cannot be {wanted}: {reason}"))
}

fn describe(status: RolloutStatus) -> &'static str {
    match status {
        RolloutStatus::Pending => "pending",
        RolloutStatus::Refused => "refused",
        RolloutStatus::Rolling => "rolling",
        RolloutStatus::Paused => "paused",
        RolloutStatus::Halted => "halted",
        RolloutStatus::Completed => "completed",
        RolloutStatus::Superseded => "superseded",
    }
}
