//! Single nodes: what happened to one, and the end of what a service says on it.
//!
//! ```text
//! caller ─▶ LogWanted ─node-queries─▶ region ─▶ node ─▶ the service's log
//!        ◀─ LogRead ◀─node-answers── region ◀──┘
//! ```
//!
//! The API knows no way to a node but through the log and the node's region. Nothing waits for a node that is away but the call itself,
//! and that for a few seconds.

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use longshore_log::{ReadLimit, Reader, StoredRecord, TopicPartition};
use longshore_schemas::{
    NodeId, RegionName, RequestId, ServiceName,
    auth::{AUTH, Signed},
    codec,
    events::{Event, LOG_TAIL_BYTES_MAX, LogRead, LogWanted, NodeAnswer, NodeQuery, NotAnswered, Request},
    http::{NodeHistoryQuery, NodeHistoryView, NodeLogQuery},
    topics,
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    Shared,
    extract::{App, Asker, Params, Query, new_id},
    problem::{Answer, Failure},
    reads::check_limit,
    submit::append,
};

/// Of a log, unless the caller says otherwise.
const LOG_TAIL_BYTES: u32 = 64 * 1024;
/// Histories that are read at once: each looks through what happened to a whole shard.
static HISTORIES: Semaphore = Semaphore::const_new(2);
const READ: ReadLimit = ReadLimit { records: 64, bytes: 1024 * 1024 };

/// `GET /v1/nodes/{node}`
pub(crate) async fn show(
    State(shared): App,
    Params((node,)): Params<(NodeId,)>,
    Query(query): Query<NodeHistoryQuery>,
) -> Answer<Json<NodeHistoryView>> {
    check_limit(query.limit)?;
    let _turn = HISTORIES.acquire().await.map_err(|error| Failure::internal(error.to_string()))?;
    one(&shared, &node, query).await.map(Json)
}

async fn one(shared: &Shared, node: &NodeId, query: NodeHistoryQuery) -> Answer<NodeHistoryView> {
    let region = query.region.clone();
    let mut found = shared.read.clone().node(node.clone(), query).await?;
    match (found.pop(), found.len()) {
        (Some(view), 0) => Ok(view),
        (Some(view), _) => {
            let mut regions: Vec<&str> = found.iter().map(|other| other.node.region.as_str()).collect();
            regions.push(view.node.region.as_str());
            Err(Failure::invalid(format!("region: {} have a node {node} each; say which is meant", regions.join(", "))))
        }
        (None, _) => {
            let place = region.map(|region| format!(" in region {region}")).unwrap_or_default();
            Err(Failure::not_found(format!("there is no node {node}{place}; GET /v1/nodes lists them")))
        }
    }
}

/// `GET /v1/nodes/{node}/services/{service}/log`
pub(crate) async fn log(
    State(shared): App,
    asker: Asker,
    Params((node, service)): Params<(NodeId, ServiceName)>,
    Query(query): Query<NodeLogQuery>,
) -> Answer {
    let bytes = query.bytes.unwrap_or(LOG_TAIL_BYTES);
    if !(1..=LOG_TAIL_BYTES_MAX).contains(&bytes) {
        return Err(Failure::invalid(format!("bytes: give a number from 1 to {LOG_TAIL_BYTES_MAX}")));
    }
    let _pass = shared.gates.node_logs.enter().map_err(|full| Failure::full(&full))?;
    let of = NodeHistoryQuery { region: query.region, limit: Some(0) };
    let view = one(&shared, &node, of).await?.node;
    if !view.services.iter().any(|known| known.service == service) {
        let known: Vec<&str> = view.services.iter().map(|known| known.service.as_str()).collect();
        let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
        return Err(Failure::not_found(format!("node {node} never reported on {service}, but on {known}")));
    }
    let wanted = LogWanted { region: view.region, node, service, bytes };
    // Each call is a query of its own, whoever repeats it.
    let asker = Asker { id: new_id(), ..asker };
    let asked = ask(&shared, &asker, wanted);
    let answer = shared.stop.run_until_cancelled(asked).await;
    let text = answer.unwrap_or_else(|| Err(Failure::unavailable("the server stops; ask again")))?;
    Ok(plain(text))
}

fn plain(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

async fn ask(shared: &Shared, asker: &Asker, wanted: LogWanted) -> Answer<String> {
    let (node, region) = (wanted.node.clone(), wanted.region.clone());
    // First listen, then ask.
    let mut answers = answers(shared, &asker.id).await?;
    append(shared, asker, NodeQuery::from(wanted)).await?;
    let deadline = Instant::now() + shared.limits.answer_wait;
    loop {
        let Ok(read) = tokio::time::timeout_at(deadline, answers.read(READ)).await else {
            return Err(Failure::no_answer(format!(
                "node {node} did not answer within {} s: it may be cut off, or no process of region {region} follows the log",
                shared.limits.answer_wait.as_secs()
            )));
        };
        match read?.iter().find_map(|stored| believed(shared, stored, &asker.id, &region)) {
            Some(NodeAnswer::LogRead(LogRead { text, .. })) => return Ok(text),
            Some(NodeAnswer::NotAnswered(NotAnswered { reason, .. })) => return Err(Failure::conflict(reason)),
            None => {}
        }
    }
}

/// What comes after now, on the partition that this query's answer comes on.
async fn answers(shared: &Shared, query: &RequestId) -> Answer<Box<dyn Reader>> {
    let partition = topics::partition_of(query.as_str().as_bytes(), shared.log.partitions(topics::NODE_ANSWERS.name)?);
    let of = TopicPartition::new(topics::NODE_ANSWERS.name, partition);
    let end = shared.log.end_offset(&of).await?;
    Ok(shared.log.reader(vec![(of, end)])?)
}

/// The answer to this query, if that is what it is, and of the region that was asked.
fn believed(shared: &Shared, stored: &StoredRecord, query: &RequestId, region: &RegionName) -> Option<NodeAnswer> {
    let (record, topic) = (&stored.record, &*stored.source.topic);
    if *record.key != *query.as_str().as_bytes() {
        return None;
    }
    let value = record.value.as_deref()?;
    let answer = codec::decode::<Request<NodeAnswer>>(value).ok()?;
    let (NodeAnswer::LogRead(LogRead { region: of, .. }) | NodeAnswer::NotAnswered(NotAnswered { region: of, .. })) =
        &answer.event;
    let what = Signed { topic, key: &record.key, value };
    let speaker = answer.event.speaker();
    let checked = shared.known_keys.check(speaker, answer.report.as_ref(), record.headers_named(AUTH), what);
    if let Err(untrusted) = &checked {
        tracing::warn!(%query, %region, error = %untrusted, "an answer is not believed");
    }
    (checked.is_ok() && of == region).then_some(answer.event)
}
