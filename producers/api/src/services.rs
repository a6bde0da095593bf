//! What services should run: deploys, rollbacks, pauses and holds.
//!
//! A deploy whose artifact is not in every region of its plan is answered from the read model, and nothing is written. One that
//! passes becomes a request; its answer waits until the artifact is pinned or the deploy refused, which are two
//! processors' decisions.

use std::{sync::Arc, time::Instant};

use axum::{extract::State, http::StatusCode};
use longshore_schemas::{
    ArtifactId, RegionName, RequestId, ServiceName,
    events::{
        DeployRequested, GoalRequest, LiftHoldRequested, PauseRequested, ReplicaStatus, ResumeRequested,
        RollbackRequested, RolloutPlan, Wave,
    },
    http::{
        ArtifactStatus, ArtifactView, DeployBody, ReplicaView, RevisionView, RollbackBody, RolloutStatus, ServiceView,
    },
};

use crate::{
    Shared,
    extract::{App, Asker, Json, Params},
    problem::{Answer, Failure},
    reads::{known_artifact, known_service},
    submit::{Submitted, accepted, answer, submit},
};

/// `POST /v1/services/{service}/deploys`
pub(crate) async fn deploy(
    State(shared): App,
    asker: Asker,
    Params((service,)): Params<(ServiceName,)>,
    Json(body): Json<DeployBody>,
) -> Answer {
    let plan = body.plan.unwrap_or_else(|| everywhere_at_once(&shared.regions));
    let artifact = body.artifact;
    // A repeated call finds the revision that the first one made, whatever became of the artifact since.
    let earlier = shared.read.service(&service)?.and_then(|view| of_deploy(&view, &asker.id).cloned());
    match earlier {
        Some(revision) if revision.artifact != artifact => {
            let detail = format!("it deployed artifact {} before: use a new key", revision.artifact);
            return Err(Failure::key_reused(detail).of(&asker.id));
        }
        Some(_) => {}
        None => check_deployable(&known_artifact(&shared, &artifact)?, &plan)?,
    }
    roll(&shared, &asker, &service, DeployRequested { service: service.clone(), artifact, plan }.into()).await
}

/// `POST /v1/services/{service}/rollbacks`
pub(crate) async fn rollback(
    State(shared): App,
    asker: Asker,
    Params((service,)): Params<(ServiceName,)>,
    Json(body): Json<RollbackBody>,
) -> Answer {
    roll(&shared, &asker, &service, RollbackRequested { service: service.clone(), to: body.to }.into()).await
}

/// `POST /v1/services/{service}/pause`
pub(crate) async fn pause(State(shared): App, asker: Asker, Params((service,)): Params<(ServiceName,)>) -> Answer {
    change(&shared, &asker, &service, PauseRequested { service: service.clone() }.into()).await
}

/// `POST /v1/services/{service}/resume`
pub(crate) async fn resume(State(shared): App, asker: Asker, Params((service,)): Params<(ServiceName,)>) -> Answer {
    change(&shared, &asker, &service, ResumeRequested { service: service.clone() }.into()).await
}

/// `DELETE /v1/services/{service}/holds/{artifact}`
pub(crate) async fn lift_hold(
    State(shared): App,
    asker: Asker,
    Params((service, artifact)): Params<(ServiceName, ArtifactId)>,
) -> Answer {
    change(&shared, &asker, &service, LiftHoldRequested { service: service.clone(), artifact }.into()).await
}

/// A request whose whole effect is in the projections once it was processed.
async fn change(shared: &Arc<Shared>, asker: &Asker, service: &ServiceName, event: GoalRequest) -> Answer {
    let submitted = submit(shared, asker, event).await?;
    if !submitted.processed {
        return Ok(accepted(asker, &submitted));
    }
    Ok(submitted.placed(answer(StatusCode::OK, asker, &known_service(shared, service)?)))
}

/// A request that makes a revision: its artifact is pinned first, or it is refused.
async fn roll(shared: &Arc<Shared>, asker: &Asker, service: &ServiceName, event: GoalRequest) -> Answer {
    let began = Instant::now();
    let submitted = submit(shared, asker, event).await?;
    if !submitted.processed {
        return Ok(accepted(asker, &submitted));
    }
    // Whatever it changed can be read here. Nothing of it there: its key belongs to something else, which was done before.
    if shared.read.service(service)?.is_none_or(|view| of_deploy(&view, &asker.id).is_none()) {
        let detail = "it was used for something else before, or for a deploy that is long past: use a new key";
        return Err(Failure::key_reused(detail).of(&asker.id));
    }
    let left = shared.limits.outcome_wait.saturating_sub(began.elapsed());
    let settled = |view: &ServiceView| of_deploy(view, &asker.id).is_some_and(is_settled);
    let view = shared.read.service_when(service, left, &settled).await?;
    conclude(asker, &submitted, view.as_ref())
}

fn conclude(asker: &Asker, submitted: &Submitted, view: Option<&ServiceView>) -> Answer {
    let revision = view.and_then(|view| of_deploy(view, &asker.id));
    match revision {
        Some(RevisionView { status: RolloutStatus::Refused, reason, .. }) => {
            let reason = reason.clone().unwrap_or_else(|| "the artifact could not be pinned".to_owned());
            Err(Failure::not_deployable(reason).of(&asker.id))
        }
        Some(revision) if is_settled(revision) => Ok(submitted.placed(answer(StatusCode::OK, asker, &view))),
        _ => Ok(accepted(asker, submitted)),
    }
}

fn of_deploy<'a>(view: &'a ServiceView, deploy: &RequestId) -> Option<&'a RevisionView> {
    view.revisions.iter().find(|revision| revision.deploy == *deploy)
}

fn is_settled(revision: &RevisionView) -> bool {
    revision.status != RolloutStatus::Pending
}

fn everywhere_at_once(regions: &[RegionName]) -> RolloutPlan {
    let everyone = longshore_schemas::events::Cohort::EVERYONE_BP;
    let wave = Wave { regions: regions.to_vec(), zones: Vec::new(), fraction_bp: everyone, bake_seconds: 0 };
    RolloutPlan { waves: vec![wave], failure_budget_bp: 0 }
}

/// Whether every region of the plan has the artifact. Regions that the artifact does not know, goals will judge.
fn check_deployable(artifact: &ArtifactView, plan: &RolloutPlan) -> Answer<()> {
    let id = artifact.summary.artifact;
    if artifact.status == ArtifactStatus::Retired {
        return Err(Failure::not_deployable(format!("artifact {} is retired: build its commit again", id.short())));
    }
    let planned = |replica: &&ReplicaView| plan.waves.iter().any(|wave| wave.regions.contains(&replica.region));
    let missing = |replica: &&ReplicaView| replica.status != Some(ReplicaStatus::Stored);
    let Some(replica) = artifact.replicas.iter().filter(planned).find(missing) else { return Ok(()) };
    let ReplicaView { region, packs_done, packs, error, .. } = replica;
    let error = error.as_ref().map(|error| format!(" and says: {error}")).unwrap_or_default();
    Err(Failure::not_deployable(format!(
        "artifact {} is not yet deployable: region {region} has {packs_done} of {packs} packs{error}; wait until \
         GET /v1/artifacts/{id} says deployable",
        id.short()
    )))
}
