//! The read model's views, as they are.

use std::sync::Arc;

use axum::{Json, extract::State};
use longshore_schemas::{
    ArtifactId, JobId, RegionName, ServiceName,
    http::{
        ArtifactQuery, ArtifactView, CheckView, FleetView, Identity, JobQuery, JobView, NodeQuery, NodeView,
        PAGE_ITEMS_MAX, Page, QueueView, ServiceView,
    },
};
use tokio::sync::Semaphore;

use crate::{
    Shared,
    access::Holder,
    builds::no_job,
    extract::{App, Params, Query},
    limits::{PAGE_ITEMS, above},
    problem::{Answer, Failure},
};

type View<T> = Answer<Json<T>>;

/// Fleets that are counted at once: each looks at every node of a service.
static FLEETS: Semaphore = Semaphore::const_new(2);

/// `GET /v1/health`: whether this process can answer from its projections; and, if it cannot take or process requests, why.
pub(crate) async fn health(State(shared): App) -> View<serde_json::Value> {
    shared.read.queues()?;
    let mut trouble: Vec<String> =
        shared.log.trouble().map(|trouble| format!("the log: {trouble}")).into_iter().collect();
    trouble.extend(shared.read.trouble());
    let status = if trouble.is_empty() { "ok" } else { "degraded" };
    Ok(Json(serde_json::json!({ "status": status, "trouble": trouble })))
}

/// `GET /v1/checks`: what the process finds when it looks at itself.
pub(crate) async fn checks(State(shared): App) -> Json<Page<CheckView>> {
    let mut checks = vec![shared.gates.check()];
    checks.extend(shared.checks.checks().await);
    Json(whole(checks))
}

/// `GET /v1/whoami`
pub(crate) async fn whoami(Holder(identity): Holder) -> Json<Identity> {
    Json(identity)
}

/// `GET /v1/regions`
pub(crate) async fn regions(State(shared): App) -> Json<Page<RegionName>> {
    Json(whole(shared.regions.clone()))
}

/// `GET /v1/queues`
pub(crate) async fn queues(State(shared): App) -> View<Page<QueueView>> {
    Ok(Json(whole(shared.read.queues()?)))
}

/// `GET /v1/jobs`
pub(crate) async fn jobs(State(shared): App, Query(query): Query<JobQuery>) -> View<Page<JobView>> {
    check_limit(query.limit)?;
    Ok(Json(shared.read.jobs(&query)?))
}

/// `GET /v1/jobs/{job}`
pub(crate) async fn job(State(shared): App, Params((job,)): Params<(JobId,)>) -> View<JobView> {
    shared.read.job(&job)?.map(Json).ok_or_else(|| no_job(&job))
}

/// `GET /v1/artifacts`
pub(crate) async fn artifacts(State(shared): App, Query(query): Query<ArtifactQuery>) -> View<Page<ArtifactView>> {
    check_limit(query.limit)?;
    Ok(Json(shared.read.artifacts(&query)?))
}

/// `GET /v1/artifacts/{artifact}`
pub(crate) async fn artifact(State(shared): App, Params((artifact,)): Params<(ArtifactId,)>) -> View<ArtifactView> {
    known_artifact(&shared, &artifact).map(Json)
}

pub(crate) fn known_artifact(shared: &Arc<Shared>, artifact: &ArtifactId) -> Answer<ArtifactView> {
    let none = || Failure::not_found(format!("there is no artifact {artifact}; GET /v1/artifacts lists them"));
    shared.read.artifact(artifact)?.ok_or_else(none)
}

/// `GET /v1/services`
pub(crate) async fn services(State(shared): App) -> View<Page<ServiceView>> {
    Ok(Json(whole(shared.read.services()?)))
}

/// `GET /v1/services/{service}`
pub(crate) async fn service(State(shared): App, Params((service,)): Params<(ServiceName,)>) -> View<ServiceView> {
    known_service(&shared, &service).map(Json)
}

pub(crate) fn known_service(shared: &Arc<Shared>, service: &ServiceName) -> Answer<ServiceView> {
    let none = || Failure::not_found(format!("there is no service {service}: a first deploy makes it"));
    shared.read.service(service)?.ok_or_else(none)
}

/// `GET /v1/services/{service}/fleet`
pub(crate) async fn fleet(State(shared): App, Params((service,)): Params<(ServiceName,)>) -> View<FleetView> {
    let _turn = FLEETS.acquire().await.map_err(|error| Failure::internal(error.to_string()))?;
    let none = || Failure::not_found(format!("no node has run {service}; GET /v1/services lists what is wanted"));
    shared.read.clone().fleet(service.clone()).await?.map(Json).ok_or_else(none)
}

/// `GET /v1/nodes`
pub(crate) async fn nodes(State(shared): App, Query(query): Query<NodeQuery>) -> View<Page<NodeView>> {
    check_limit(query.limit)?;
    Ok(Json(shared.read.nodes(&query)?))
}

fn whole<T>(items: Vec<T>) -> Page<T> {
    Page { items, next: None }
}

pub(crate) fn check_limit(limit: Option<u32>) -> Answer<()> {
    match limit {
        Some(limit) if limit == 0 || limit > PAGE_ITEMS_MAX => {
            Err(above(&PAGE_ITEMS, format_args!("limit: give a number from 1 to {PAGE_ITEMS_MAX}")))
        }
        _ => Ok(()),
    }
}
