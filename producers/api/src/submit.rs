//! From a call to a request on the log, and from there to an answer.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use longshore_log::{Record, clock};
use longshore_schemas::{
    RequestId,
    auth::{AUTH, Signed},
    codec::{self, Message},
    events::{Event, Request},
    http::{IDEMPOTENCY_KEY, REQUEST_PLACE},
    read::{Outcome, RequestPosition},
    topics,
};
use longshore_signing::{query::QUERY, record};
use serde::Serialize;

use crate::{
    Shared,
    extract::{Asker, Params},
    problem::{Answer, Failure},
};

/// The topics that the API asks on.
const REQUEST_TOPICS: [topics::Topic; 3] = [topics::BUILD_REQUESTS, topics::ARTIFACT_REQUESTS, topics::GOAL_REQUESTS];

/// A request that is on the log and was not refused.
pub(crate) struct Submitted {
    /// Whether it was processed and its effects can be read here.
    pub processed: bool,
    position: RequestPosition,
}

/// What 202 answers.
#[derive(Serialize)]
struct Accepted<'a> {
    request: Option<&'a RequestId>,
    status: &'static str,
    location: String,
}

/// Writes the request, without waiting for what becomes of it.
pub(crate) async fn append<E: Event>(shared: &Shared, asker: &Asker, event: E) -> Answer<RequestPosition>
where
    Request<E>: Message,
{
    let key = event.key();
    let kind = event.kind();
    let Asker { actor, id, trace } = asker;
    let request =
        Request { id: id.clone(), at: clock::now(), actor: actor.clone(), trace: trace.clone(), report: None, event };
    let bytes = codec::encode(&request).map_err(|error| Failure::invalid(error.to_string()).of(id))?;
    let own = shared.request_keys.own();
    let auth = own.sign(Signed { topic: E::TOPIC.name, key: key.as_bytes(), value: &bytes });
    // A node holds no key of ours to check the other with.
    let for_nodes = (E::TOPIC == topics::NODE_QUERIES).then(|| record::sign(&QUERY, &bytes, &shared.goal_key));
    let mut record = Record::new(key, bytes).with_header(AUTH, auth);
    if let Some(signature) = for_nodes {
        record = record.with_header(record::SIGNATURE, signature);
    }
    let appended = shared.log.append(E::TOPIC.name, vec![record]).await;
    let appended = appended.map_err(|error| Failure::from(error).of(id))?.pop();
    let position = appended.ok_or_else(|| Failure::internal("the log named no position for a record").of(id))?;
    tracing::debug!(request = %id, actor, kind, partition = %position.source, offset = position.offset, "request appended");
    Ok(RequestPosition {
        topic: position.source.topic.to_string(),
        partition: position.source.partition,
        offset: position.offset,
    })
}

/// Writes the request and waits for what becomes of it. A refusal is an error.
pub(crate) async fn submit<E: Event>(shared: &Shared, asker: &Asker, event: E) -> Answer<Submitted>
where
    Request<E>: Message,
{
    let kind = event.kind();
    let position = append(shared, asker, event).await?;
    let outcome = shared.read.outcome(&position, shared.limits.outcome_wait).await;
    let became = match &outcome {
        Ok(Outcome::Processed) => "processed",
        Ok(Outcome::Pending) => "pending",
        Ok(Outcome::Refused(_)) => "refused",
        Err(_) => "unknown",
    };
    let Asker { actor, id, trace } = asker;
    let RequestPosition { topic, partition, offset } = &position;
    tracing::info!(request = %id, trace, actor, kind, partition = format_args!("{topic}/{partition}"), offset, outcome = became, "request");
    match outcome {
        Ok(Outcome::Processed) => Ok(Submitted { processed: true, position }),
        Ok(Outcome::Pending) => Ok(Submitted { processed: false, position }),
        Ok(Outcome::Refused(refusal)) => Err(Failure::refused(refusal).of(&asker.id)),
        Err(error) => Err(Failure::from(error).of(&asker.id)),
    }
}

/// The view, with the id that the request went by.
pub(crate) fn answer(status: StatusCode, asker: &Asker, view: &impl Serialize) -> Response {
    let mut response = (status, Json(view)).into_response();
    add_id(&mut response, &asker.id);
    response
}

/// 202: it is on the log and will be processed.
pub(crate) fn accepted(asker: &Asker, submitted: &Submitted) -> Response {
    let mut response = pending(Some(&asker.id), &submitted.position);
    add_id(&mut response, &asker.id);
    submitted.placed(response)
}

impl Submitted {
    /// The answer, with where the request is: whoever reads elsewhere can wait for it.
    pub(crate) fn placed(&self, mut response: Response) -> Response {
        let RequestPosition { topic, partition, offset } = &self.position;
        if let Ok(value) = HeaderValue::from_str(&format!("{topic},{partition},{offset}")) {
            response.headers_mut().insert(HeaderName::from_static(REQUEST_PLACE), value);
        }
        response
    }
}

fn pending(request: Option<&RequestId>, position: &RequestPosition) -> Response {
    let location = format!("/v1/requests/{position}");
    let header = [(header::LOCATION, location.clone())];
    (StatusCode::ACCEPTED, header, Json(Accepted { request, status: "pending", location })).into_response()
}

fn add_id(response: &mut Response, id: &RequestId) {
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(HeaderName::from_static(IDEMPOTENCY_KEY), value);
    }
}

/// `GET /v1/requests/{topic}/{partition}/{offset}`: where 202 points to. Waits like the call that was answered so.
pub(crate) async fn outcome(
    shared: crate::extract::App,
    Params((topic, partition, offset)): Params<(String, u32, u64)>,
) -> Answer {
    let known = REQUEST_TOPICS.iter().any(|known| known.name == topic && partition < known.partitions);
    if !known {
        return Err(Failure::not_found(format!("there is no request topic {topic:?} with a partition {partition}")));
    }
    let of = longshore_log::TopicPartition::new(topic.as_str(), partition);
    if offset >= shared.log.end_offset(&of).await? {
        return Err(Failure::not_found(format!("{of} has no request at offset {offset} yet")));
    }
    let position = RequestPosition { topic, partition, offset };
    match shared.read.outcome(&position, shared.limits.outcome_wait).await? {
        Outcome::Processed => Ok(Json(serde_json::json!({ "status": "processed" })).into_response()),
        Outcome::Pending => Ok(pending(None, &position)),
        Outcome::Refused(refusal) => Err(Failure::refused(refusal)),
    }
}
