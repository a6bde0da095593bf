//! Errors of S3 services, sorted by what a person can do about them.

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use longshore_s3_answers::{Complaint, sorted};

/// Where a service says in which region a bucket is.
const REGION_HEADER: &str = "x-amz-bucket-region";
/// What the SDK says when it found no keys.
const NO_CREDENTIALS: &str = "credential";
/// Longest text of a service's own message that is passed on, in characters.
const MESSAGE_CHARS_MAX: usize = 500;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("bucket setting {field} is not usable: {reason}")]
    Config { field: &'static str, reason: String },
    #[error("bucket {bucket:?} does not exist at {endpoint}; create it, or correct the bucket setting")]
    MissingBucket { bucket: String, endpoint: String },
    #[error("access to bucket {bucket:?} at {endpoint} was denied ({code}): {}", complaint.advice())]
    AccessDenied { bucket: String, endpoint: String, code: String, complaint: Complaint },
    #[error(
        "there are no credentials for bucket {bucket:?} at {endpoint}: set s3.access_key and s3.secret_key, or AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY, a profile, or a role of the machine ({reason})"
    )]
    NoCredentials { bucket: String, endpoint: String, reason: String },
    #[error(
        "bucket {bucket:?} is not in region {region:?}{}; correct s3.region",
        actual.as_ref().map(|actual| format!(", but in {actual:?}")).unwrap_or_default()
    )]
    WrongRegion { bucket: String, region: String, actual: Option<String> },
    /// What a person can do something about, or the service itself in time.
    #[error("bucket {bucket:?} at {endpoint} answered {code}: {}", complaint.advice())]
    Complained { bucket: String, endpoint: String, code: String, complaint: Complaint },
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
    #[error(
        "{endpoint} failed on {key:?}: {code}: {message}{}{}",
        if complaint.advice().is_empty() { "" } else { "; " },
        complaint.advice()
    )]
    Service { endpoint: String, key: String, code: String, message: String, complaint: Complaint },
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
            let reason = causes(error);
            // The SDK has no kind of its own for that.
            if reason.contains(NO_CREDENTIALS) {
                return Self::NoCredentials { bucket: place.bucket.to_owned(), endpoint, reason };
            }
            return Self::Unreachable { endpoint, reason };
        };
        let status = service.raw().status().as_u16();
        let code = service.err().code().unwrap_or_default().to_owned();
        let message: String = service.err().message().unwrap_or_default().chars().take(MESSAGE_CHARS_MAX).collect();
        let (bucket, key) = (place.bucket.to_owned(), place.key.to_owned());
        let shown = if code.is_empty() { status.to_string() } else { code.clone() };
        let actual = service.raw().headers().get(REGION_HEADER).map(str::to_owned);
        let complaint = match sorted(&code, status) {
            // A HEAD in the wrong region is a bad request, and says where the bucket is.
            Complaint::Other if actual.as_ref().is_some_and(|actual| actual != place.region) => Complaint::WrongRegion,
            complaint => complaint,
        };
        match complaint {
            Complaint::NoBucket => Self::MissingBucket { bucket, endpoint },
            Complaint::NoObject => Self::NotFound { bucket, key },
            Complaint::Taken => Self::PreconditionFailed { bucket, key },
            Complaint::ClockSkew => Self::ClockSkew { endpoint },
            Complaint::WrongRegion => Self::WrongRegion { bucket, region: place.region.to_owned(), actual },
            Complaint::NoSpace => Self::NoSpace { endpoint, key },
            Complaint::Denied | Complaint::UnknownKeys | Complaint::Expired => {
                Self::AccessDenied { bucket, endpoint, code: shown, complaint }
            }
            Complaint::Quota | Complaint::Throttled | Complaint::Encryption => {
                Self::Complained { bucket, endpoint, code: shown, complaint }
            }
            Complaint::Damaged | Complaint::Fault | Complaint::Unsupported | Complaint::Other => {
                Self::Service { endpoint, key, code: shown, message, complaint }
            }
        }
    }

    /// Whether the service does not do what was asked, or not for these keys: it will not later either.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::AccessDenied { .. } | Self::Service { complaint: Complaint::Unsupported, .. })
    }

    /// Whether the same request may succeed later without anyone doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Service { complaint, .. } | Self::Complained { complaint, .. } => complaint.is_passing(),
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
