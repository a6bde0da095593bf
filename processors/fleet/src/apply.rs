//! The meaning of fleet's facts. Frozen for released events.

use longshore_processor::{StateError, StoreMut};
use longshore_schemas::{
    NodeSet, RegionName, ServiceName, Timestamp,
    events::{CohortSet, Convergence, FleetFact, NodeJoined, NodesReported},
};

use crate::{
    SHARD_EVENTS_MAX,
    levels::{exchange, failure_text, is_eligible, recount, share},
    tables::{
        self, COHORTS, EVENTS, NODES, NUMBERS, Node, SERVICES, SHARDS, STATUSES, Shard, ShardCohort, ShardEvent,
        Status, What,
    },
};

type Applied = Result<(), StateError>;

pub(crate) fn apply(state: &mut dyn StoreMut, fact: &FleetFact, at: Timestamp) -> Applied {
    match fact {
        FleetFact::NodeJoined(fact) => node_joined(state, fact, at),
        FleetFact::NodesReported(fact) => nodes_reported(state, fact, at),
        FleetFact::NodesLost(fact) => set_lost(state, &fact.region, fact.shard, &fact.nodes, true, at),
        FleetFact::NodesReturned(fact) => set_lost(state, &fact.region, fact.shard, &fact.nodes, false, at),
        FleetFact::CohortSet(fact) => cohort_set(state, fact),
        FleetFact::Processed(_) => Ok(()),
    }
}

/// A known number: the node is described anew, and is lost or not as before.
fn node_joined(state: &mut dyn StoreMut, fact: &NodeJoined, at: Timestamp) -> Applied {
    let key = (fact.region.clone(), fact.shard, fact.number);
    let before = NODES.get(state.as_store(), &key)?;
    let lost = before.as_ref().is_some_and(|node| node.lost);
    let after = Node { description: fact.description.clone(), lost, at, described_at: at };
    if before.is_none() {
        let shard_key = (fact.region.clone(), fact.shard);
        let mut shard = SHARDS.get(state.as_store(), &shard_key)?.unwrap_or_default();
        shard.nodes = shard.nodes.max(fact.number.saturating_add(1));
        SHARDS.put(state, &shard_key, &shard)?;
        let number_key = (fact.region.clone(), fact.shard, fact.description.node.clone());
        NUMBERS.put(state, &number_key, &fact.number)?;
    }
    NODES.put(state, &key, &after)?;
    let mut cohorts = Cohorts::load(state, &fact.region, fact.shard)?;
    cohorts.node_changed(state, fact.number, before.as_ref(), &after)?;
    cohorts.store(state)
}

/// As the last event of the shard; the oldest goes where there are too many.
fn remember(
    state: &mut dyn StoreMut,
    (region, shard): (&RegionName, u32),
    mut row: Shard,
    event: &ShardEvent,
) -> Applied {
    EVENTS.put(state, &(region.clone(), shard, row.events), event)?;
    if let Some(oldest) = row.events.checked_sub(SHARD_EVENTS_MAX) {
        EVENTS.delete(state, &(region.clone(), shard, oldest));
    }
    row.events += 1;
    SHARDS.put(state, &(region.clone(), shard), &row)
}

fn nodes_reported(state: &mut dyn StoreMut, fact: &NodesReported, at: Timestamp) -> Applied {
    let cohort_key = (fact.region.clone(), fact.shard, fact.service.clone());
    let mut cohort = COHORTS.get(state.as_store(), &cohort_key)?;
    if !SERVICES.contains(state.as_store(), &cohort_key)? {
        SERVICES.put(state, &cohort_key, &())?;
    }
    let port = u16::try_from(fact.port)
        .map_err(|_| StateError::Contradiction(format!("port {} of service {}", fact.port, fact.service)))?;
    let status = Status::new(fact.version, fact.artifact, fact.status, port, fact.message.clone(), at);
    for number in fact.nodes.iter() {
        let key = (fact.region.clone(), fact.shard, fact.service.clone(), number);
        if let Some(cohort) = &mut cohort {
            let node = NODES.expect(state.as_store(), &(fact.region.clone(), fact.shard, number))?;
            if is_eligible(cohort, &fact.service, &node) {
                let before = STATUSES.get(state.as_store(), &key)?;
                let (before, after) = (share(cohort, before.as_ref()), share(cohort, Some(&status)));
                exchange(cohort, &fact.service, before, after, failure_text(&node, Some(&status)))?;
            }
        }
        STATUSES.put(state, &key, &status)?;
    }
    if let Some(cohort) = cohort {
        COHORTS.put(state, &cohort_key, &cohort)?;
    }
    let event = ShardEvent { at, nodes: fact.nodes.clone(), what: What::Said(fact.service.clone(), status) };
    let row = SHARDS.expect(state.as_store(), &(fact.region.clone(), fact.shard))?;
    remember(state, (&fact.region, fact.shard), row, &event)
}

fn set_lost(
    state: &mut dyn StoreMut,
    region: &RegionName,
    shard: u32,
    nodes: &NodeSet,
    lost: bool,
    at: Timestamp,
) -> Applied {
    let mut row = SHARDS.expect(state.as_store(), &(region.clone(), shard))?;
    let mut cohorts = Cohorts::load(state, region, shard)?;
    for number in nodes.iter() {
        let key = (region.clone(), shard, number);
        let before = NODES.expect(state.as_store(), &key)?;
        if before.lost == lost {
            continue;
        }
        row.lost = if lost { row.lost + 1 } else { row.lost.saturating_sub(1) };
        let after = Node { lost, at, ..before.clone() };
        NODES.put(state, &key, &after)?;
        cohorts.node_changed(state, number, Some(&before), &after)?;
    }
    cohorts.store(state)?;
    let what = if lost { What::Lost } else { What::Returned };
    remember(state, (region, shard), row, &ShardEvent { at, nodes: nodes.clone(), what })
}

fn cohort_set(state: &mut dyn StoreMut, fact: &CohortSet) -> Applied {
    let mut cohort = ShardCohort {
        version: fact.version,
        artifact: fact.artifact,
        cohort: fact.cohort.clone(),
        level: Convergence::default(),
        failure: None,
    };
    recount(state.as_store(), &fact.region, fact.shard, &fact.service, &mut cohort)?;
    COHORTS.put(state, &(fact.region.clone(), fact.shard, fact.service.clone()), &cohort)
}

/// The cohorts of one shard, while nodes come, go and change in it.
struct Cohorts<'a> {
    region: &'a RegionName,
    shard: u32,
    /// And whether it has changed.
    rows: Vec<(ServiceName, ShardCohort, bool)>,
}

impl<'a> Cohorts<'a> {
    fn load(state: &dyn StoreMut, region: &'a RegionName, shard: u32) -> Result<Self, StateError> {
        let rows = tables::cohorts(state.as_store(), region, shard)?;
        let rows = rows.into_iter().map(|(service, cohort)| (service, cohort, false)).collect();
        Ok(Self { region, shard, rows })
    }

    fn node_changed(&mut self, state: &dyn StoreMut, number: u32, before: Option<&Node>, after: &Node) -> Applied {
        for (service, cohort, changed) in &mut self.rows {
            let was = before.is_some_and(|node| is_eligible(cohort, service, node));
            let is = is_eligible(cohort, service, after);
            if was == is {
                continue;
            }
            let key = (self.region.clone(), self.shard, service.clone(), number);
            let status = STATUSES.get(state.as_store(), &key)?;
            let share = share(cohort, status.as_ref());
            let none = Convergence::default();
            let (gone, come) = if was { (share, none) } else { (none, share) };
            exchange(cohort, service, gone, come, failure_text(after, status.as_ref()))?;
            *changed = true;
        }
        Ok(())
    }

    fn store(self, state: &mut dyn StoreMut) -> Applied {
        for (service, cohort, _) in self.rows.into_iter().filter(|(_, _, changed)| *changed) {
            COHORTS.put(state, &(self.region.clone(), self.shard, service), &cohort)?;
        }
        Ok(())
    }
}
