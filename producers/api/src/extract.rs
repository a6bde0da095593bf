//! What handlers take from a request, checked, with problems that name the field.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body as RawBody, Bytes},
    extract::{
        FromRequest, FromRequestParts, Path, Query as AxumQuery, Request, path::ErrorKind, rejection::PathRejection,
    },
    http::{HeaderMap, header, request::Parts},
};
use futures::StreamExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use longshore_schemas::{RequestId, http::IDEMPOTENCY_KEY};
use serde::de::DeserializeOwned;

use crate::{
    Shared,
    access::Caller,
    limits::{BODY_BYTES, BODY_SECONDS},
    problem::Failure,
};

/// Largest request body.
pub(crate) const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a body may take to arrive.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a body that is too large, this much is read and thrown away, so that its sender gets to read the answer.
const DRAIN_BYTES_MAX: usize = 128 * 1024 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest `traceparent` that is passed on.
const TRACE_BYTES_MAX: usize = 64;

/// What every handler can reach.
pub(crate) type App = axum::extract::State<Arc<Shared>>;

/// The identifiers in the path.
pub(crate) struct Params<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Shared>> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Failure> {
        let path = Path::<T>::from_request_parts(parts, shared).await;
        path.map(|Path(params)| Self(params)).map_err(|rejection| match rejection {
            PathRejection::FailedToDeserializePathParams(error) => Failure::invalid(match error.into_kind() {
                ErrorKind::Message(message) | ErrorKind::DeserializeError { message, .. } => message,
                kind => kind.to_string(),
            }),
            other => Failure::internal(other.body_text()),
        })
    }
}

/// The query, without fields that the route does not know.
pub(crate) struct Query<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Shared>> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Failure> {
        let query = AxumQuery::<T>::from_request_parts(parts, shared).await;
        query.map(|AxumQuery(query)| Self(query)).map_err(|rejection| Failure::invalid(rejection.body_text()))
    }
}

/// A JSON body, of at most [`BODY_BYTES_MAX`]. An empty body is `{}`.
pub(crate) struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Shared>> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &Arc<Shared>) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        check_media(&parts.headers)?;
        let bytes = receive(&parts.headers, body).await?;
        parse(if bytes.is_empty() { b"{}" } else { &bytes }).map(Self)
    }
}

fn check_media(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let media = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Failure::wrong_media(format!("send the header content-type: application/json, not {media:?}")))
}

pub(crate) async fn receive(headers: &HeaderMap, body: RawBody) -> Result<Bytes, Failure> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let too_large = || {
        BODY_BYTES.refused();
        Failure::too_large(format!("a body may have at most {BODY_BYTES_MAX} bytes (the limit {})", BODY_BYTES.name))
    };
    if length.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
        // Whoever asks before sending needs no draining.
        if !headers.contains_key(header::EXPECT) {
            drain(body).await;
        }
        return Err(too_large());
    }
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Failure::malformed(format!("the body did not arrive whole: {error}"))),
        Err(_) => {
            BODY_SECONDS.refused();
            Err(Failure::timeout(format!("the body took longer than {} s", BODY_TIMEOUT.as_secs())))
        }
    }
}

async fn drain(body: RawBody) {
    let mut pieces = body.into_data_stream();
    let mut left = DRAIN_BYTES_MAX;
    let draining = async {
        while let Some(Ok(piece)) = pieces.next().await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                break;
            }
        }
    };
    // Too slow or not: the answer is the same.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, draining).await;
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    // An array would be taken too, as the fields in their order: nobody means that.
    if bytes.trim_ascii_start().first().is_some_and(|first| *first == b'[') {
        return Err(Failure::invalid("body: it must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data if path == "." => Failure::invalid(format!("body: {inner}")),
            serde_json::error::Category::Data => Failure::invalid(format!("{path}: {inner}")),
            _ => Failure::malformed(format!("the body is not valid JSON: {inner}")),
        }
    })?;
    json.end().map_err(|error| Failure::malformed(format!("the body is not valid JSON: {error}")))?;
    Ok(value)
}

/// Who asks for a change, and under which id.
pub(crate) struct Asker {
    pub actor: String,
    /// The idempotency key: the caller's, or a new one.
    pub id: RequestId,
    pub trace: Option<String>,
}

impl FromRequestParts<Arc<Shared>> for Asker {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Shared>) -> Result<Self, Failure> {
        let id = match parts.headers.get(IDEMPOTENCY_KEY) {
            Some(value) => {
                let text = String::from_utf8_lossy(value.as_bytes());
                text.parse().map_err(|error| Failure::invalid(format!("header {IDEMPOTENCY_KEY}: {error}")))?
            }
            None => new_id(),
        };
        let actor = match parts.extensions.get::<Caller>() {
            Some(Caller::Holder(identity)) => identity.subject.clone(),
            Some(Caller::Attempt(of)) => of.worker.to_string(),
            None => return Err(Failure::internal("this route's rule does not provide a caller")),
        };
        let trace = parts.headers.get("traceparent").and_then(|value| value.to_str().ok());
        let trace = trace.filter(|trace| trace.len() <= TRACE_BYTES_MAX).map(str::to_owned);
        Ok(Self { actor, id, trace })
    }
}

/// An id that nobody else has.
pub(crate) fn new_id() -> RequestId {
    format!("{:032x}", rand::random::<u128>()).parse().expect("32 hexadecimal digits are a request id")
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use longshore_schemas::http::{BuildBody, DeployBody};

    use super::*;

    #[test]
    fn problems_of_bodies_name_the_field() {
        let artifact = "0".repeat(64);
        let table = [
            ("{", StatusCode::BAD_REQUEST, "not valid JSON"),
            ("{} {}", StatusCode::UNPROCESSABLE_ENTITY, "artifact"),
            (&*format!("{{\"artifact\": \"{artifact}\"}} x"), StatusCode::BAD_REQUEST, "trailing"),
            (&*format!("{{\"artifact\": \"{artifact}\", \"plam\": null}}"), StatusCode::UNPROCESSABLE_ENTITY, "plam"),
            ("{\"artifact\": \"abc\"}", StatusCode::UNPROCESSABLE_ENTITY, "artifact: artifact \"abc\" is not valid"),
        ];
        for (body, status, names) in table {
            let failure = parse::<DeployBody>(body.as_bytes()).expect_err(body);
            assert_eq!(failure.status(), status, "{body}");
            assert!(format!("{failure:?}").replace('\\', "").contains(names), "{failure:?} names {names}");
        }
        let failure = parse::<BuildBody>(b"{\"queue\": \"q\", \"build\": {\"name\": \"n\", \"comand\": 1}}");
        assert!(format!("{:?}", failure.expect_err("a typo")).contains("build.comand"));
    }
}
