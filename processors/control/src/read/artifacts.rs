//! Artifacts and their replicas, from replication's tables.

use std::ops::ControlFlow;

use longshore_processor::{Order, Range, StateError, Store};
use longshore_replication::{
    Replication,
    tables::{ARTIFACTS, Artifact, BY_NAME, BY_TIME, KEPT, PINS, REPLICAS, Replica, Wish},
};
use longshore_runtime::Handle;
use longshore_schemas::{
    ArtifactId, RegionName, Timestamp,
    events::{ArtifactSummary, ReplicaStatus},
    http::{ArtifactQuery, ArtifactView, Page, ReplicaView, WantedView},
    read::ReadError,
};

use super::{
    page::{Cursor, Part, limit, merge},
    unavailable,
};

pub(super) fn one(handle: &Handle<Replication>, artifact: &ArtifactId) -> Result<Option<ArtifactView>, StateError> {
    let held = handle.store_of(&artifact.to_string()).hold()?;
    let state = held.view();
    let Some(row) = ARTIFACTS.get(&state, artifact)? else { return Ok(None) };
    view(&state, artifact, row).map(Some)
}

pub(super) fn list(handle: &Handle<Replication>, query: &ArtifactQuery) -> Result<Page<ArtifactView>, ReadError> {
    let limit = limit(query.limit)?;
    let before = Cursor::<ArtifactId>::parse(query.after.as_deref())?;
    let mut parts = Vec::new();
    for store in handle.stores() {
        let held = store.hold().map_err(unavailable)?;
        parts.push(part(&held.view(), query, before.as_ref(), limit).map_err(unavailable)?);
    }
    Ok(merge(parts, limit))
}

fn part(
    state: &dyn Store,
    query: &ArtifactQuery,
    before: Option<&Cursor<ArtifactId>>,
    limit: usize,
) -> Result<Part<ArtifactId, ArtifactView>, StateError> {
    let mut found: Vec<(Timestamp, ArtifactId)> = Vec::new();
    // One more than a page, so that the merge knows whether there is a next one.
    let mut take = |at, artifact| {
        found.push((at, artifact));
        if found.len() > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    match &query.name {
        Some(name) => {
            let range = Range::prefix(name);
            let range = match before {
                Some(before) => range.before(&(name.clone(), before.at, before.id)),
                None => range,
            };
            BY_NAME.scan(state, &range, Order::Descending, |(_, at, artifact), ()| take(at, artifact))?;
        }
        None => {
            let range = match before {
                Some(before) => Range::all().before(&(before.at, before.id)),
                None => Range::all(),
            };
            BY_TIME.scan(state, &range, Order::Descending, |(at, artifact), ()| take(at, artifact))?;
        }
    }
    let mut rows = Vec::with_capacity(found.len());
    for (at, id) in found {
        let row = ARTIFACTS.expect(state, &id)?;
        rows.push((Cursor { at, id }, view(state, &id, row)?));
    }
    Ok(Part { rows, unread: None })
}

/// One cell of the matrix. What is reckoned here is as good as the region's last report.
fn replica_view(region: RegionName, replica: Replica, summary: &ArtifactSummary) -> ReplicaView {
    let Replica { status, bytes_copied, bytes_per_second, error, last_error, failures, reported_at, .. } = replica;
    let (packs, bytes) = (summary.packs, summary.pack_bytes);
    let packs_done = if status == Some(ReplicaStatus::Stored) { packs } else { replica.packs_done.min(packs) };
    let share = u128::from(bytes) * u128::from(packs_done) / u128::from(packs.max(1));
    let bytes_done = u64::try_from(share).unwrap_or(bytes);
    let rate = Some(bytes_per_second).filter(|rate| *rate > 0 && status == Some(ReplicaStatus::Copying));
    let expected_at = rate.zip(reported_at).map(|(rate, at)| {
        let millis = (bytes - bytes_done).saturating_mul(1_000) / rate;
        Timestamp::from_millis(at.millis().saturating_add(i64::try_from(millis).unwrap_or(i64::MAX)))
    });
    ReplicaView {
        region,
        status,
        packs_done,
        packs,
        bytes_copied,
        bytes_done,
        bytes,
        bytes_per_second: rate,
        expected_at,
        error,
        last_error,
        failures,
        reported_at,
    }
}

fn view(state: &dyn Store, artifact: &ArtifactId, row: Artifact) -> Result<ArtifactView, StateError> {
    let mut replicas = Vec::with_capacity(row.regions.len());
    for region in &row.regions {
        let replica = REPLICAS.get(state, &(*artifact, region.clone()))?.unwrap_or_default();
        replicas.push(replica_view(region.clone(), replica, &row.summary));
    }
    let mut pinned_by = Vec::new();
    PINS.scan(state, &Range::prefix(artifact), Order::Ascending, |(_, service), _| {
        pinned_by.push(service);
        ControlFlow::Continue(())
    })?;
    Ok(ArtifactView {
        status: row.status.into(),
        summary: row.summary,
        source: row.source.into(),
        run: row.run,
        built_at: row.built_at,
        completed_at: row.completed_at,
        replicas,
        pinned_by,
        retired_at: row.retired_at,
        wanted_by: KEPT.get(state, artifact)?.map(|Wish { by, reason, since }| WantedView { by, reason, since }),
    })
}
