//! Requests that someone without keys may make, once, for a while.

use std::time::Duration;

use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};

use crate::Error;

/// A signed request. Its holder sends exactly this method, URL and headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presigned {
    pub method: String,
    pub url: String,
    /// Headers that are part of the signature. `content-length` is among those of a PUT: the body must have that length.
    pub headers: Vec<(String, String)>,
}

impl From<PresignedRequest> for Presigned {
    fn from(request: PresignedRequest) -> Self {
        let headers = request.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { method: request.method().to_owned(), url: request.uri().to_owned(), headers }
    }
}

pub(crate) fn expires_in(ttl: Duration) -> Result<PresigningConfig, Error> {
    PresigningConfig::expires_in(ttl)
        .map_err(|error| Error::Config { field: "presigned lifetime", reason: error.to_string() })
}
