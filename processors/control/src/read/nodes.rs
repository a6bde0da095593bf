//! Nodes, from fleet's tables. Listed by region, shard and number, which never change.

use longshore_fleet::{
    Fleet,
    tables::{
        History, NODES, NUMBERS, Node, SHARDS, STATUSES, ShardEvent, Status, What, history, node_statuses, seen_at,
    },
};
use longshore_processor::{Order, Range, StateError, Store};
use longshore_runtime::Handle;
use longshore_schemas::{
    NodeId, RegionName, ServiceName,
    events::{NodeDescription, shard_key},
    http::{NodeEvent, NodeEventView, NodeHistoryQuery, NodeHistoryView, NodeQuery, NodeServiceView, NodeView, Page},
    read::ReadError,
};

use super::{
    filter::Filter,
    page::{limit, parse_triple},
    unavailable,
};

/// Shards of one partition that a list looks at.
const SHARDS_MAX: usize = 100_000;

pub(super) fn list(handle: &Handle<Fleet>, query: &NodeQuery) -> Result<Page<NodeView>, ReadError> {
    let limit = limit(query.limit)?;
    let after = parse_triple::<RegionName, u32, u32>(query.after.as_deref())?;
    let filter = Filter::parse(query.conditions.as_deref())?;
    page(handle, query, &filter, after.as_ref(), limit).map_err(unavailable)
}

fn page(
    handle: &Handle<Fleet>,
    query: &NodeQuery,
    filter: &Filter,
    after: Option<&(RegionName, u32, u32)>,
    limit: usize,
) -> Result<Page<NodeView>, StateError> {
    let (mut items, mut looked_at) = (Vec::new(), 0);
    let mut last = None;
    let place =
        |last: Option<(RegionName, u32, u32)>| last.map(|(region, shard, number)| format!("{region}/{shard}/{number}"));
    for (region, shard) in shards(handle, query.region.as_ref())? {
        let first = match after {
            Some((r, s, _)) if (&region, shard) < (r, *s) => continue,
            Some((r, s, number)) if (&region, shard) == (r, *s) => number.saturating_add(1),
            _ => 0,
        };
        let held = handle.store_of(&shard_key(&region, shard)).hold()?;
        let state = held.view();
        let wanted = if filter.is_empty() { limit + 1 - items.len() } else { LOOKED_AT_MAX + 1 - looked_at };
        for number in numbers(&state, &region, shard, query.service.as_ref(), first, wanted)? {
            if items.len() == limit || looked_at == LOOKED_AT_MAX {
                return Ok(Page { items, next: place(last) });
            }
            looked_at += 1;
            let node = NODES.expect(&state, &(region.clone(), shard, number))?;
            let statuses = node_statuses(&state, &region, shard, number)?;
            last = Some((region.clone(), shard, number));
            let meant = |statuses: &[(ServiceName, Status)]| match &query.service {
                Some(service) => {
                    let of: Vec<_> = statuses.iter().filter(|(name, _)| name == service).cloned().collect();
                    filter.fits(&node, &of)
                }
                None => filter.fits(&node, statuses),
            };
            if meant(&statuses) {
                items.push(view(&region, node, statuses));
            }
        }
    }
    Ok(Page { items, next: None })
}

/// The nodes of this name: one of each region at most.
pub(super) fn named(
    handle: &Handle<Fleet>,
    node: &NodeId,
    query: &NodeHistoryQuery,
) -> Result<Vec<NodeHistoryView>, ReadError> {
    let limit = if query.limit == Some(0) { 0 } else { limit(query.limit)? };
    let of = |region: &RegionName, shard: u32| -> Result<Option<NodeHistoryView>, StateError> {
        let held = handle.store_of(&shard_key(region, shard)).hold()?;
        let state = held.view();
        let Some(number) = NUMBERS.get(&state, &(region.clone(), shard, node.clone()))? else { return Ok(None) };
        let row = NODES.expect(&state, &(region.clone(), shard, number))?;
        let statuses = node_statuses(&state, region, shard, number)?;
        let History { events, has_more, remembered_since } = history(&state, region, shard, number, limit)?;
        let mut history: Vec<NodeEventView> = events.into_iter().map(event_view).collect();
        let place = history.partition_point(|event| event.at >= row.described_at);
        if limit > 0 && (place < history.len() || !has_more) {
            history.insert(place, described(&row));
        }
        Ok(Some(NodeHistoryView { node: view(region, row, statuses), history, has_more, remembered_since }))
    };
    let found = shards(handle, query.region.as_ref()).and_then(|shards| {
        let found = shards.iter().filter_map(|(region, shard)| of(region, *shard).transpose());
        found.collect::<Result<Vec<_>, _>>()
    });
    found.map_err(unavailable)
}

fn described(node: &Node) -> NodeEventView {
    let NodeDescription { zone, rack, host, agent_version, labels, .. } = node.description.clone();
    NodeEventView { at: node.described_at, event: NodeEvent::Described { zone, rack, host, agent_version, labels } }
}

fn event_view(event: ShardEvent) -> NodeEventView {
    let ShardEvent { at, what, .. } = event;
    let event = match what {
        What::Said(service, status) => NodeEvent::Said(service_view(service, status)),
        What::Lost => NodeEvent::Lost,
        What::Returned => NodeEvent::Returned,
    };
    NodeEventView { at, event }
}

/// Nodes that are looked at for one page: a filter that few fit ends with fewer items, and a place to go on from.
const LOOKED_AT_MAX: usize = 20_000;

/// Every shard that has nodes, in order, of the region if one is given.
pub(super) fn shards(
    handle: &Handle<Fleet>,
    region: Option<&RegionName>,
) -> Result<Vec<(RegionName, u32)>, StateError> {
    let range = region.map_or_else(Range::all, Range::prefix);
    let mut shards = Vec::new();
    for store in handle.stores() {
        let rows = SHARDS.list(store, &range, Order::Ascending, SHARDS_MAX)?;
        shards.extend(rows.into_iter().map(|(shard, _)| shard));
    }
    shards.sort_unstable();
    Ok(shards)
}

/// The next nodes of a shard by number, of those that have the service if one is given.
fn numbers(
    state: &dyn Store,
    region: &RegionName,
    shard: u32,
    service: Option<&ServiceName>,
    first: u32,
    limit: usize,
) -> Result<Vec<u32>, StateError> {
    match service {
        Some(service) => {
            let range = Range::prefix(&(region.clone(), shard, service.clone())).from(&(
                region.clone(),
                shard,
                service.clone(),
                first,
            ));
            let rows = STATUSES.list(state, &range, Order::Ascending, limit)?;
            Ok(rows.into_iter().map(|((_, _, _, number), _)| number).collect())
        }
        None => {
            let range = Range::prefix(&(region.clone(), shard)).from(&(region.clone(), shard, first));
            let rows = NODES.list(state, &range, Order::Ascending, limit)?;
            Ok(rows.into_iter().map(|((_, _, number), _)| number).collect())
        }
    }
}

fn view(region: &RegionName, node: Node, statuses: Vec<(ServiceName, Status)>) -> NodeView {
    let seen_at = seen_at(&node, &statuses);
    let Node { description, lost, .. } = node;
    NodeView {
        node: description.node,
        region: region.clone(),
        zone: description.zone,
        rack: description.rack,
        host: description.host,
        agent_version: description.agent_version,
        labels: description.labels,
        lost,
        seen_at,
        services: statuses.into_iter().map(|(service, status)| service_view(service, status)).collect(),
    }
}

fn service_view(service: ServiceName, status: Status) -> NodeServiceView {
    NodeServiceView {
        service,
        version: status.version,
        artifact: status.artifact(),
        status: status.status,
        port: (status.port != 0).then_some(status.port),
        message: status.message,
    }
}
