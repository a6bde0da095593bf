//! Errors of S3 services, sorted by what a person can do about them.

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

/// Longest text of a service's own message that is passed on, in characters.
const MESSAGE_CHARS_MAX: usize = 500;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("bucket setting {field} is not usable: {reason}")]
    Config { field: &'static str, reason: String },
    #[error("bucket {bucket:?} does not exist at {endpoint}; create it, or correct the bucket setting")]
    MissingBucket { bucket: String, endpoint: String },
    #[error(
        "access to {bucket:?} at {endpoint} was denied ({code}); check the access key, the secret key and the bucket's policy"
    )]
    AccessDenied { bucket: String, endpoint: String, code: String },
    #[error("bucket {bucket:?} is not in region {region:?}; correct the region setting")]
    WrongRegion { bucket: String, region: String },
    #[error("{endpoint} cannot be reached ({reason}); check the endpoint setting and the network")]
    Unreachable { endpoint: String, reason: String },
    #[error("{endpoint} says that this machine's clock is wrong; set the clock, for example by NTP")]
    ClockSkew { endpoint: String },
    #[error("{key:?} is not in bucket {bucket:?}")]
    NotFound { bucket: String, key: String },
    #[error("{key:?} is already in bucket {bucket:?}")]
    PreconditionFailed { bucket: String, key: String },
    #[error("{endpoint} has no space left for {key:?}; free some or enlarge its disk")]
    NoSpace { endpoint: String, key: String },
    #[error("{key:?} has more than the {limit} bytes that are expected of it")]
    TooLarge { key: String, limit: u64 },
    #[error("{endpoint} failed on {key:?}: {code}: {message}")]
    Service { endpoint: String, key: String, code: String, message: String },
    #[error("the embedded server cannot {action}")]
    Embedded {
        action: String,
        #[source]
        source: std::io::Error,
    },
}

/// Where a request went, for its error.
pub(crate) struct Place<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) region: &'a str,
    pub(crate) bucket: &'a str,
    pub(crate) key: &'a str,
}

impl Error {
    /// Sorts what the SDK says. The error of a HEAD has no code: there the status alone must do.
    pub(crate) fn sorted<E>(place: &Place<'_>, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let endpoint = place.endpoint.to_owned();
        let SdkError::ServiceError(service) = error else {
            return Self::Unreachable { endpoint, reason: causes(error) };
        };
        let status = service.raw().status().as_u16();
        let code = service.err().code().unwrap_or_default().to_owned();
        let message: String = service.err().message().unwrap_or_default().chars().take(MESSAGE_CHARS_MAX).collect();
        let (bucket, key) = (place.bucket.to_owned(), place.key.to_owned());
        match (code.as_str(), status) {
            ("NoSuchBucket", _) => Self::MissingBucket { bucket, endpoint },
            ("NoSuchKey" | "NotFound", _) => Self::NotFound { bucket, key },
            ("PreconditionFailed" | "ConditionalRequestConflict", _) => Self::PreconditionFailed { bucket, key },
            ("RequestTimeTooSkewed", _) => Self::ClockSkew { endpoint },
            ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _) => {
                Self::WrongRegion { bucket, region: place.region.to_owned() }
            }
            ("XMinioStorageFull" | "InsufficientStorage" | "QuotaExceeded", _) | (_, 507) => {
                Self::NoSpace { endpoint, key }
            }
            ("AccessDenied" | "InvalidAccessKeyId" | "NotSignedUp" | "SignatureDoesNotMatch" | "ExpiredToken", _) => {
                Self::AccessDenied { bucket, endpoint, code }
            }
            ("", 301) => Self::WrongRegion { bucket, region: place.region.to_owned() },
            ("", 403) => Self::AccessDenied { bucket, endpoint, code: "403".to_owned() },
            ("", 404) => Self::NotFound { bucket, key },
            ("", 412) => Self::PreconditionFailed { bucket, key },
            ("", _) => Self::Service { endpoint, key, code: status.to_string(), message },
            _ => Self::Service { endpoint, key, code, message },
        }
    }

    /// Whether the service does not do what was asked, or not for these keys: it will not later either.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::AccessDenied { .. } => true,
            Self::Service { code, .. } => {
                matches!(code.as_str(), "NotImplemented" | "MethodNotAllowed" | "405" | "501")
            }
            _ => false,
        }
    }

    /// Whether the same request may succeed later without anyone doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Service { code, .. } => {
                matches!(
                    code.as_str(),
                    "BadDigest"
                        | "IncompleteBody"
                        | "InternalError"
                        | "ServiceUnavailable"
                        | "SlowDown"
                        | "RequestTimeout"
                        | "500"
                        | "502"
                        | "503"
                        | "504"
                )
            }
            _ => false,
        }
    }
}

/// An error and its causes in one line, without repeating what the cause says again.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text.chars().take(MESSAGE_CHARS_MAX).collect()
}
