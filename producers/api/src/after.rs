//! `?after_request=topic,partition,offset` of every view: the answer is no older than what became of that request.
//!
//! The answer to a call that changed something names the request's place in the header `longshore-request`. Whoever brings it along
//! reads what the call changed, at whichever API process it asks: each follows all facts, and this one waits until it has
//! followed them so far.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::Uri,
    middleware::Next,
    response::{IntoResponse, Response},
};
use longshore_schemas::{
    http::AFTER_REQUEST,
    read::{Outcome, RequestPosition},
    topics::{self, Topic},
};

use crate::{Shared, problem::Failure};

/// Those whose outcomes the read model knows.
const TOPICS: [Topic; 4] =
    [topics::BUILD_REQUESTS, topics::ARTIFACT_REQUESTS, topics::GOAL_REQUESTS, topics::FLEET_REPORTS];

/// Waits, and then reads the view as if nothing had been said of a request.
pub(crate) async fn wait(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    if let Some((position, rest)) = taken_out(request.uri()) {
        let position = match position.ok_or_else(unreadable) {
            Ok(position) => position,
            Err(failure) => return failure.into_response(),
        };
        match shared.read.outcome(&position, shared.limits.outcome_wait).await {
            Ok(Outcome::Processed | Outcome::Refused(_)) => *request.uri_mut() = rest,
            Ok(Outcome::Pending) => {
                let detail = format!("request {position} is not processed here yet: ask again");
                return Failure::unavailable(detail).into_response();
            }
            Err(error) => return Failure::from(error).into_response(),
        }
    }
    next.run(request).await
}

fn unreadable() -> Failure {
    let names: Vec<&str> = TOPICS.iter().map(|topic| topic.name).collect();
    let topics = names.join(", ");
    Failure::invalid(format!("{AFTER_REQUEST}: give topic,partition,offset, such as build-requests,2,17, of {topics}"))
}

/// The position, if the query names one, and the address without it.
fn taken_out(uri: &Uri) -> Option<(Option<RequestPosition>, Uri)> {
    let is_ours = |pair: &&str| pair.split_once('=').map_or(*pair, |(name, _)| name) == AFTER_REQUEST;
    let (ours, others): (Vec<&str>, Vec<&str>) = uri.query()?.split('&').partition(is_ours);
    let pair = ours.first()?;
    let text = pair.split_once('=').map_or("", |(_, text)| text).replace("%2C", ",").replace("%2c", ",");
    let query = others.join("&");
    let rest = if query.is_empty() { uri.path().to_owned() } else { format!("{}?{query}", uri.path()) };
    // What is left of an address that was one is one.
    let rest = rest.parse().ok()?;
    Some((parse(&text).filter(|_| ours.len() == 1), rest))
}

fn parse(text: &str) -> Option<RequestPosition> {
    let mut parts = text.split(',');
    let (topic, partition, offset) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let known = TOPICS.iter().any(|known| known.name == topic && partition < known.partitions);
    (known && parts.next().is_none()).then(|| RequestPosition { topic: topic.to_owned(), partition, offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_query_stays_as_it_is() {
        let take = |text: &str| taken_out(&text.parse().expect("an address"));
        assert_eq!(take("/v1/jobs"), None);
        assert_eq!(take("/v1/jobs?limit=3"), None);
        let (position, rest) = take("/v1/jobs?limit=3&after_request=goal-requests%2C1,17&queue=a").expect("there");
        assert_eq!(position.expect("valid").to_string(), "goal-requests/1/17");
        assert_eq!(rest, "/v1/jobs?limit=3&queue=a");
        assert_eq!(take("/v1/jobs?after_request=build-requests,0,0").expect("there").1, "/v1/jobs");
        for bad in ["", "=", "=builds,0,1", "=build-requests,4,1", "=build-requests,0,x", "=build-requests,0,1,2"] {
            let (position, _) = take(&format!("/v1/jobs?after_request{bad}")).expect("there");
            assert_eq!(position, None, "{bad}");
        }
        let twice = take("/v1/jobs?after_request=build-requests,0,1&after_request=build-requests,0,2").expect("there");
        assert_eq!(twice.0, None);
    }
}
