//! What S3 services answer when they do not do what was asked: sorted by what a person can do about it.
//!
//! The one table of it, for those who call a service by its SDK and for those who have nothing but a signed URL. Pure, without
//! dependencies: workers link it.

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Complaint {
    NoBucket,
    NoObject,
    /// The key is taken.
    Taken,
    Denied,
    /// These keys are not, or no longer, known.
    UnknownKeys,
    Expired,
    WrongRegion,
    ClockSkew,
    Quota,
    NoSpace,
    Throttled,
    /// The key that objects are encrypted with cannot be used.
    Encryption,
    /// What came was not what was sent.
    Damaged,
    /// The service has a fault, which passes.
    Fault,
    /// The service does not know this operation.
    Unsupported,
    Other,
}

/// Sorts an answer. The error of a HEAD has no code: there the status alone must do.
pub fn sorted(code: &str, status: u16) -> Complaint {
    use Complaint::*;
    match code {
        "NoSuchBucket" => NoBucket,
        "NoSuchKey" | "NotFound" => NoObject,
        "PreconditionFailed" | "ConditionalRequestConflict" => Taken,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "NotSignedUp" => Denied,
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "InvalidSecurity" => UnknownKeys,
        "ExpiredToken" | "TokenRefreshRequired" | "RequestExpired" => Expired,
        "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException"
        | "TemporaryRedirect" => WrongRegion,
        "RequestTimeTooSkewed" => ClockSkew,
        "QuotaExceeded" | "ServiceQuotaExceededException" | "XMinioAdminBucketQuotaExceeded" | "TooManyBuckets" => {
            Quota
        }
        "InsufficientStorage" | "XMinioStorageFull" => NoSpace,
        "SlowDown" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded" | "TooManyRequests" | "Busy" => {
            Throttled
        }
        code if code.starts_with("KMS.") || code.starts_with("KMS") => Encryption,
        "BadDigest" | "IncompleteBody" | "XAmzContentChecksumMismatch" => Damaged,
        "InternalError" | "ServiceUnavailable" | "RequestTimeout" | "OperationAborted" => Fault,
        "NotImplemented" | "MethodNotAllowed" => Unsupported,
        _ => by_status(status),
    }
}

fn by_status(status: u16) -> Complaint {
    use Complaint::*;
    match status {
        301 | 307 => WrongRegion,
        401 | 403 => Denied,
        404 => NoObject,
        405 | 501 => Unsupported,
        409 | 412 => Taken,
        429 => Throttled,
        507 => NoSpace,
        408 | 500.. => Fault,
        _ => Other,
    }
}

impl Complaint {
    /// What to do about it; ends a sentence that says which bucket it is about. Empty if there is nothing to be done.
    pub fn advice(self) -> &'static str {
        match self {
            Self::NoBucket => "the bucket does not exist: create it, or correct s3.main_bucket or s3.regional_bucket",
            Self::NoObject => "it is not there",
            Self::Taken => "it is there already",
            Self::Denied => {
                "access was denied: check the bucket's policy, and the rights of s3.access_key or of the machine's role"
            }
            Self::UnknownKeys => "the keys are not known there: check s3.access_key and s3.secret_key",
            Self::Expired => "the credentials have expired: renew them, or give keys that last",
            Self::WrongRegion => "the bucket is in another region: correct s3.region",
            Self::ClockSkew => "this machine's clock is wrong: set it, for example by NTP",
            Self::Quota => "the bucket's quota is used up: raise it, or keep less ([retention])",
            Self::NoSpace => "the service's disk is full: free space there, or enlarge it",
            Self::Throttled => {
                "the service asks to slow down: it is tried again; if it goes on, raise the service's limits"
            }
            Self::Encryption => {
                "the encryption key cannot be used: check s3.encryption, s3.kms_key and who may use the key"
            }
            Self::Damaged => "what arrived is not what was sent: it is tried again; if it goes on, look at the network",
            Self::Fault => "the service has a fault: it is tried again; if it goes on, look at the service",
            Self::Unsupported => "the service does not support it",
            Self::Other => "",
        }
    }

    /// Whether the same request may succeed later without anyone doing anything.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Throttled | Self::Damaged | Self::Fault)
    }
}

/// The code of an answer in XML, and the service's own words; empty if there are none.
pub fn told(answer: &str) -> (&str, &str) {
    (element(answer, "Code"), element(answer, "Message"))
}

fn element<'a>(xml: &'a str, name: &str) -> &'a str {
    let inner = xml.split_once(&format!("<{name}>")).map(|(_, rest)| rest);
    inner.and_then(|rest| rest.split_once(&format!("</{name}>"))).map_or("", |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_a_place_and_most_say_what_to_do() {
        let table = [
            ("NoSuchBucket", 404, Complaint::NoBucket),
            ("", 404, Complaint::NoObject),
            ("", 403, Complaint::Denied),
            ("AccessDenied", 403, Complaint::Denied),
            ("InvalidAccessKeyId", 403, Complaint::UnknownKeys),
            ("SignatureDoesNotMatch", 403, Complaint::UnknownKeys),
            ("ExpiredToken", 400, Complaint::Expired),
            ("PermanentRedirect", 301, Complaint::WrongRegion),
            ("AuthorizationHeaderMalformed", 400, Complaint::WrongRegion),
            ("RequestTimeTooSkewed", 403, Complaint::ClockSkew),
            ("QuotaExceeded", 403, Complaint::Quota),
            ("", 507, Complaint::NoSpace),
            ("SlowDown", 503, Complaint::Throttled),
            ("", 429, Complaint::Throttled),
            ("KMS.DisabledException", 400, Complaint::Encryption),
            ("BadDigest", 400, Complaint::Damaged),
            ("InternalError", 500, Complaint::Fault),
            ("", 503, Complaint::Fault),
            ("NewAtThisService", 400, Complaint::Other),
        ];
        for (code, status, expected) in table {
            let found = sorted(code, status);
            assert_eq!(found, expected, "{code} {status}");
            assert!(!found.advice().is_empty() || found == Complaint::Other, "{code} {status}");
        }
    }

    #[test]
    fn codes_are_found_in_xml_and_nowhere_else() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>less</Message></Error>";
        assert_eq!(told(xml), ("SlowDown", "less"));
        for other in ["", "<html>", "<Code>open", "</Code><Code>"] {
            assert_eq!(told(other), ("", ""), "{other:?}");
        }
    }
}
