//! Errors as RFC 9457 problems. Every answer with a status of 400 or more is made here, but those of `registry`.

use std::sync::LazyLock;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use longshore_schemas::{
    RequestId,
    events::{Refusal, RefusalCode},
    http::{IDEMPOTENCY_KEY, PACKS_MISSING, Problem},
    read::ReadError,
};
use longshore_service::{limits::Full, metrics::Counters};

/// When to try again, where that may help.
pub(crate) const RETRY_SECONDS: u16 = 2;

static PROBLEMS: LazyLock<Counters<1>> =
    LazyLock::new(|| Counters::new("longshore_api_problems", "Calls that were refused or failed, by kind", ["kind"]));

/// An answer that says what is wrong and what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
    request: Option<RequestId>,
}

pub(crate) type Answer<T = Response> = Result<T, Failure>;

impl Failure {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, title, detail: detail.into(), request: None }
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", "The request cannot be read", detail)
    }

    pub(crate) fn unauthenticated(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "A valid token is needed", detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "This token may not do that", detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    pub(crate) fn no_route(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "no-such-route", "The API has no such address", detail)
    }

    pub(crate) fn wrong_method(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "The address does not take this method", detail)
    }

    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "The present state does not allow it", detail)
    }

    pub(crate) fn stale(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "stale", "What this speaks for is over", detail)
    }

    pub(crate) fn not_deployable(detail: impl Into<String>) -> Self {
        let title = "The artifact cannot be deployed";
        Self::new(StatusCode::CONFLICT, "artifact-not-deployable", title, detail)
    }

    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large", detail)
    }

    pub(crate) fn no_range(detail: impl Into<String>) -> Self {
        let title = "The file has no such range";
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", title, detail)
    }

    pub(crate) fn wrong_media(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong-media-type", "The body must be JSON", detail)
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "The request is not valid", detail)
    }

    /// What an artifact refers to is not there, or not any more. Published again, it will be.
    pub(crate) fn packs_missing(detail: impl Into<String>) -> Self {
        let title = "Packs of the artifact are not in the main bucket";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, PACKS_MISSING, title, detail)
    }

    pub(crate) fn key_reused(detail: impl Into<String>) -> Self {
        let title = "The idempotency key belongs to another request";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", title, detail)
    }

    pub(crate) fn exhausted(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "exhausted", "A limit is reached", detail)
    }

    /// A gate is full: the caller is not to blame, and may come back soon.
    pub(crate) fn full(full: &Full) -> Self {
        let detail = format!("{full} at this API process: try again in {RETRY_SECONDS} s, or at another process");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "limit-reached", "A limit is reached", detail)
    }

    pub(crate) fn timeout(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", "The request took too long to arrive", detail)
    }

    /// Whom the call was handed to said nothing.
    pub(crate) fn no_answer(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "no-answer", "The node did not answer", detail)
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The API cannot do this now", detail)
    }

    pub(crate) fn disk_full(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", "The server's disk is full", detail)
    }

    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The API failed", detail)
    }

    /// What a processor said no to.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        let failure = match refusal.code {
            RefusalCode::NotFound => Self::not_found(refusal.reason),
            RefusalCode::Conflict => Self::conflict(refusal.reason),
            RefusalCode::Stale => Self::stale(refusal.reason),
            RefusalCode::Exhausted => Self::exhausted(refusal.reason),
            RefusalCode::Invalid => Self::invalid(refusal.reason),
        };
        failure.of(&refusal.request)
    }

    /// Names the request that failed.
    #[must_use]
    pub(crate) fn of(mut self, request: &RequestId) -> Self {
        self.request = Some(request.clone());
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// For answers in another form than ours.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Invalid(reason) => Self::invalid(reason),
            ReadError::Spent(reason) => Self::conflict(reason),
            ReadError::Unavailable(_) => Self::unavailable(error.to_string()),
        }
    }
}

impl From<longshore_log::Error> for Failure {
    fn from(error: longshore_log::Error) -> Self {
        use longshore_log::Error;
        match &error {
            Error::RecordTooLarge { .. } | Error::BatchTooLarge { .. } => Self::too_large(error.to_string()),
            Error::BeyondEnd { .. } => Self::conflict(error.to_string()),
            full if full.is_disk_full() => {
                tracing::error!(%error, "the log's disk is full");
                Self::disk_full(format!(
                    "the log cannot take the request: free space on its disk, and it goes on by itself. What runs is not \
                     touched, and nothing is lost: try again with the same {IDEMPOTENCY_KEY}"
                ))
            }
            _ => {
                tracing::error!(%error, "the log failed");
                Self::unavailable(format!("{error}; nothing is lost: try again with the same {IDEMPOTENCY_KEY}"))
            }
        }
    }
}

impl From<longshore_s3::Error> for Failure {
    fn from(error: longshore_s3::Error) -> Self {
        tracing::error!(%error, "the main bucket failed");
        if matches!(error, longshore_s3::Error::NoSpace { .. }) {
            return Self::disk_full(format!("the main bucket is full: {error}"));
        }
        Self::unavailable(format!("the main bucket failed: {error}"))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        PROBLEMS.count([self.kind], 1);
        let problem = Problem {
            kind: format!("/problems/{}", self.kind),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            request: self.request,
        };
        let mut response = (self.status, Json(&problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(request) = problem.request.and_then(|id| HeaderValue::from_str(id.as_str()).ok()) {
            headers.insert(IDEMPOTENCY_KEY, request);
        }
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"longshore\""));
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
            }
            _ => {}
        }
        response
    }
}
