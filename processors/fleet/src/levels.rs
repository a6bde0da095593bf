//! Levels: what one node adds to a cohort's, and a whole count.

use std::{collections::BTreeMap, ops::ControlFlow};

use longshore_processor::{Order, Range, StateError, Store};
use longshore_schemas::{
    RegionName, ServiceName,
    events::{Convergence, NodeStatus},
    nodes::slot,
};

use crate::tables::{NODES, Node, STATUSES, ShardCohort, Status};

/// Whether the node counts in the cohort at all.
pub(crate) fn is_eligible(cohort: &ShardCohort, service: &ServiceName, node: &Node) -> bool {
    let description = &node.description;
    !node.lost && cohort.cohort.contains(slot(service, &description.node), &description.zone)
}

/// What a node of the cohort adds to its level with its last status. Only what the node says of this revision or a later one
/// counts: the same artifact may be run in another way by the next revision.
pub(crate) fn share(cohort: &ShardCohort, status: Option<&Status>) -> Convergence {
    let same_artifact = status.filter(|status| status.artifact() == Some(cohort.artifact));
    let revision = cohort.version.revision;
    let converged =
        same_artifact.is_some_and(|status| status.status == NodeStatus::Healthy && status.version.revision >= revision);
    let failed = same_artifact.is_some_and(|status| status.status.is_failure() && status.version.revision == revision);
    Convergence { eligible: 1, converged: u32::from(converged), failed: u32::from(failed) }
}

/// Replaces a node's share of the level. `message` is what the node says now.
pub(crate) fn exchange(
    cohort: &mut ShardCohort,
    service: &ServiceName,
    before: Convergence,
    after: Convergence,
    message: Option<String>,
) -> Result<(), StateError> {
    let level = &mut cohort.level;
    for (total, before, after) in [
        (&mut level.eligible, before.eligible, after.eligible),
        (&mut level.converged, before.converged, after.converged),
        (&mut level.failed, before.failed, after.failed),
    ] {
        let rest = total.checked_sub(before).ok_or_else(|| {
            StateError::Contradiction(format!("the level of service {service} counts fewer nodes than it has"))
        })?;
        *total = rest.saturating_add(after);
    }
    if cohort.level.failed == 0 {
        cohort.failure = None;
    } else if after.failed > 0 && cohort.failure.is_none() {
        cohort.failure = message;
    }
    Ok(())
}

/// What people read of a node's failure.
pub(crate) fn failure_text(node: &Node, status: Option<&Status>) -> Option<String> {
    let message = status.and_then(|status| status.message.as_deref()).unwrap_or("it gave no reason");
    Some(format!("node {}: {message}", node.description.node))
}

/// Counts a cohort's level anew, over all of the shard's nodes.
pub(crate) fn recount(
    state: &dyn Store,
    region: &RegionName,
    shard: u32,
    service: &ServiceName,
    cohort: &mut ShardCohort,
) -> Result<(), StateError> {
    let mut shares = BTreeMap::new();
    let range = Range::prefix(&(region.clone(), shard, service.clone()));
    STATUSES.scan(state, &range, Order::Ascending, |(.., number), status| {
        shares.insert(number, share(cohort, Some(&status)));
        ControlFlow::Continue(())
    })?;
    let mut level = Convergence::default();
    let mut first_failed = None;
    NODES.scan(state, &Range::prefix(&(region.clone(), shard)), Order::Ascending, |(.., number), node| {
        if is_eligible(cohort, service, &node) {
            let share = shares.get(&number).copied().unwrap_or_else(|| share(cohort, None));
            if share.failed > 0 && first_failed.is_none() {
                first_failed = Some((number, node));
            }
            level += share;
        }
        ControlFlow::Continue(())
    })?;
    cohort.level = level;
    cohort.failure = match first_failed {
        Some((number, node)) => {
            let status = STATUSES.get(state, &(region.clone(), shard, service.clone(), number))?;
            failure_text(&node, status.as_ref())
        }
        None => None,
    };
    Ok(())
}
