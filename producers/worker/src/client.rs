//! The API's client: JSON in and out, problems as errors, everything bounded.
//!
//! It retries nothing: whether a call may be repeated, and for how long, is its caller's business.

use std::time::Duration;

use bytes::Bytes;
use longshore_schemas::{
    RequestId,
    http::{IDEMPOTENCY_KEY, Problem},
};
use reqwest::{Method, StatusCode, Url, header};
use serde::{Serialize, de::DeserializeOwned};

/// To reach the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For a whole call, unless the caller gives another.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer, in bytes.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How much of an answer that is no problem+json is shown.
const SHOWN_CHARS_MAX: usize = 300;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot reach {url}: {}", root_cause(source))]
    Unreachable {
        url: Url,
        #[source]
        source: reqwest::Error,
    },
    #[error("{}: {} ({})", .0.title, .0.detail, .0.status)]
    Problem(Box<Problem>),
    #[error(
        "{url} answered what Longshore's API does not: {what}; is this the right address, and of the same version?"
    )]
    Unexpected { url: Url, status: u16, what: String },
    #[error("the token holds characters that no token has; copy it again")]
    Token,
    #[error("{0:?} is no address of an API: give one such as http://127.0.0.1:7070")]
    Address(String),
    #[error("cannot set up the HTTP client")]
    Setup(#[source] reqwest::Error),
}

impl Error {
    /// The HTTP status, if the server answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem(problem) => Some(problem.status),
            Self::Unexpected { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the same call may succeed later: the server was not reached, is overloaded or has a fault.
    pub fn is_transient(&self) -> bool {
        match self.status() {
            Some(status) => status >= 500 || matches!(status, 408 | 425 | 429),
            None => matches!(self, Self::Unreachable { .. }),
        }
    }
}

/// The innermost error says what happened ("connection refused"); the outer ones say where, which is known.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// What a call came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer<T> {
    Done(T),
    /// 202: written to the log, and not decided within the server's patience.
    Accepted {
        location: Option<String>,
    },
    /// 204.
    Nothing,
}

/// One server and one token. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<header::HeaderValue>,
}

impl Client {
    pub fn new(base: Url, token: Option<&str>) -> Result<Self, Error> {
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(Error::Address(base.to_string()));
        }
        Self { http: http()?, base, token: None }.with_token(token)
    }

    /// The same server, as someone else.
    pub fn with_token(&self, token: Option<&str>) -> Result<Self, Error> {
        let value = |token: &str| {
            let mut value = header::HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Error::Token)?;
            value.set_sensitive(true);
            Ok(value)
        };
        Ok(Self { token: token.map(value).transpose()?, ..self.clone() })
    }

    pub fn base(&self) -> &Url {
        &self.base
    }

    /// A call to `/v1` and these path segments, each of which is escaped.
    pub fn call(&self, method: Method, path: &[&str]) -> Call {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        let mut request = self.http.request(method, url.clone());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token.clone());
        }
        Call { request, url, timeout: Some(CALL_TIMEOUT) }
    }

    pub fn get(&self, path: &[&str]) -> Call {
        self.call(Method::GET, path)
    }

    pub fn post(&self, path: &[&str]) -> Call {
        self.call(Method::POST, path)
    }

    pub fn delete(&self, path: &[&str]) -> Call {
        self.call(Method::DELETE, path)
    }

    /// For presigned URLs, which need no token.
    pub fn plain(&self) -> &reqwest::Client {
        &self.http
    }
}

fn http() -> Result<reqwest::Client, Error> {
    // One provider per process: that another role of it came first is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        // A token must not follow a redirect elsewhere.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(Error::Setup)
}

/// One call, before it is sent.
#[must_use = "a call does nothing until it is sent"]
pub struct Call {
    request: reqwest::RequestBuilder,
    url: Url,
    timeout: Option<Duration>,
}

impl Call {
    pub fn json(mut self, body: &impl Serialize) -> Self {
        self.request = self.request.json(body);
        self
    }

    pub fn query(mut self, query: &impl Serialize) -> Self {
        self.request = self.request.query(query);
        self
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// Makes the call one that may be repeated.
    pub fn idempotency_key(self, key: &RequestId) -> Self {
        self.header(IDEMPOTENCY_KEY, key.as_str())
    }

    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The same call once more.
    pub fn repeat(&self) -> Self {
        let request = self.request.try_clone().expect("a body of JSON is in memory and can be sent again");
        Self { request, url: self.url.clone(), timeout: self.timeout }
    }

    /// Sends it and reads the whole answer.
    pub async fn send<T: DeserializeOwned>(self) -> Result<Answer<T>, Error> {
        let url = self.url.clone();
        let response = self.response().await?;
        let status = response.status();
        if status == StatusCode::ACCEPTED {
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            return Ok(Answer::Accepted { location: location.map(str::to_owned) });
        }
        if status == StatusCode::NO_CONTENT {
            return Ok(Answer::Nothing);
        }
        let body = body(response, &url).await?;
        serde_json::from_slice(&body).map(Answer::Done).map_err(|error| Error::Unexpected {
            url,
            status: status.as_u16(),
            what: error.to_string(),
        })
    }

    /// Sends it; anything but data is an error.
    pub async fn fetch<T: DeserializeOwned>(self) -> Result<T, Error> {
        let url = self.url.clone();
        match self.send().await? {
            Answer::Done(data) => Ok(data),
            Answer::Accepted { .. } => Err(Error::Unexpected { url, status: 202, what: "202 without data".to_owned() }),
            Answer::Nothing => Err(Error::Unexpected { url, status: 204, what: "204 without data".to_owned() }),
        }
    }

    /// Sends it and leaves the body to be read piece by piece, without a time limit.
    pub async fn stream(mut self) -> Result<reqwest::Response, Error> {
        self.timeout = None;
        self.response().await
    }

    /// The answer's head; a status of 300 and above is an error.
    async fn response(self) -> Result<reqwest::Response, Error> {
        let Self { mut request, url, timeout } = self;
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        let sent = request.send().await;
        let response = sent.map_err(|source| Error::Unreachable { url: url.clone(), source })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = body(response, &url).await?;
        Err(match serde_json::from_slice(&body) {
            Ok(problem) => Error::Problem(Box::new(problem)),
            Err(_) => {
                let shown: String = String::from_utf8_lossy(&body).chars().take(SHOWN_CHARS_MAX).collect();
                Error::Unexpected { url, status, what: format!("status {status}, {:?}", shown.trim()) }
            }
        })
    }
}

async fn body(mut response: reqwest::Response, url: &Url) -> Result<Bytes, Error> {
    let status = response.status().as_u16();
    let mut body = bytes::BytesMut::new();
    while let Some(piece) = response.chunk().await.map_err(|source| Error::Unreachable { url: url.clone(), source })? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            let what = format!("more than {ANSWER_BYTES_MAX} bytes");
            return Err(Error::Unexpected { url: url.clone(), status, what });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}
