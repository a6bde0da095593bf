//! Services and their revisions, from goals' tables.

use longshore_goals::{
    Goals,
    tables::{Revision, SERVICES, Service, held, history, region_levels},
};
use longshore_processor::{Order, Range, StateError, Store};
use longshore_runtime::Handle;
use longshore_schemas::{
    ServiceName,
    http::{RegionConvergence, RevisionView, ServiceView},
};

/// Revisions in a view.
const REVISIONS_MAX: usize = 50;
/// Services of one partition in a list.
const SERVICES_MAX: usize = 10_000;

pub(super) fn list(handle: &Handle<Goals>) -> Result<Vec<ServiceView>, StateError> {
    let mut views = Vec::new();
    for store in handle.stores() {
        let held = store.hold()?;
        let state = held.view();
        for (service, row) in SERVICES.list(&state, &Range::all(), Order::Ascending, SERVICES_MAX)? {
            views.push(view(&state, service, &row)?);
        }
    }
    views.sort_by(|a, b| a.service.cmp(&b.service));
    Ok(views)
}

pub(super) fn one(handle: &Handle<Goals>, service: &ServiceName) -> Result<Option<ServiceView>, StateError> {
    let held = handle.store_of(service.as_str()).hold()?;
    let state = held.view();
    let Some(row) = SERVICES.get(&state, service)? else { return Ok(None) };
    view(&state, service.clone(), &row).map(Some)
}

fn view(state: &dyn Store, service: ServiceName, row: &Service) -> Result<ServiceView, StateError> {
    let revisions = history(state, &service, REVISIONS_MAX)?;
    let levels = region_levels(state, &service)?;
    Ok(ServiceView {
        version: row.version,
        revisions: revisions.into_iter().map(|(_, revision)| revision_view(revision)).collect(),
        held: held(state, &service)?.into_iter().map(|(artifact, _)| artifact).collect(),
        regions: levels.into_iter().map(|(region, level)| RegionConvergence { region, level }).collect(),
        service,
    })
}

fn revision_view(revision: Revision) -> RevisionView {
    RevisionView {
        revision: revision.revision,
        deploy: revision.deploy,
        artifact: revision.artifact,
        actor: revision.actor,
        plan: revision.plan,
        status: revision.status,
        wave: revision.wave,
        requested_at: revision.requested_at,
        ended_at: revision.ended_at,
        reason: revision.reason,
        rollback_of: revision.rollback_of,
    }
}
