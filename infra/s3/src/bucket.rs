//! One bucket, as much of it as Longshore needs.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        http::HttpResponse, retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    operation::put_object::{PutObjectError, PutObjectOutput},
    primitives::ByteStream,
    types::{ChecksumAlgorithm, ServerSideEncryption},
};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use bytes::{Bytes, BytesMut};

use crate::{
    Error, Presigned,
    error::{Place, causes},
    presign::expires_in,
};

/// Attempts of one request, the first included.
const ATTEMPTS_MAX: u32 = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of what is sent, at least so much gets through, of several objects at once.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;
/// How long a service may take to begin its answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How AWS's own endpoints are shown.
const AWS: &str = "AWS ";
/// Objects in one page of a listing.
const PAGE_OBJECTS_MAX: i32 = 1000;

/// Where a bucket is and how to get in.
#[derive(Clone, Default)]
pub struct BucketConfig {
    /// URL of an S3-compatible service; without it, AWS.
    pub endpoint: Option<String>,
    pub region: String,
    pub bucket: String,
    /// Without keys, they come from the environment, a profile or the machine's role, as AWS tools do it.
    pub access_key: Option<String>,
    pub secret_key: Option<String>,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`; most services other than AWS need it.
    pub path_style: bool,
    /// Put before every key: several installations can share a bucket. Empty, or ending in `/`.
    pub prefix: String,
    pub encryption: Encryption,
}

/// How the service encrypts what it stores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As the bucket is set.
    #[default]
    Bucket,
    /// With keys of the service's own.
    Service,
    /// With this key of the service's key management, or its usual one.
    Key(Option<String>),
}

impl Encryption {
    fn mode(&self) -> Option<ServerSideEncryption> {
        match self {
            Self::Bucket => None,
            Self::Service => Some(ServerSideEncryption::Aes256),
            Self::Key(_) => Some(ServerSideEncryption::AwsKms),
        }
    }

    fn key(&self) -> Option<String> {
        if let Self::Key(key) = self { key.clone() } else { None }
    }
}

impl std::fmt::Debug for BucketConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, region, bucket, path_style, prefix, .. } = self;
        write!(
            f,
            "BucketConfig({endpoint:?}, {region:?}, {bucket:?}, path_style {path_style}, {prefix:?}, keys hidden)"
        )
    }
}

/// A bucket. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Bucket(Arc<Inner>);

struct Inner {
    client: Client,
    endpoint: String,
    access_key: Option<String>,
    region: String,
    bucket: String,
    prefix: String,
    encryption: Encryption,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    pub bytes: u64,
    /// By the service's clock.
    pub modified: SystemTime,
}

impl Bucket {
    /// Prepares a client; nothing is sent yet, except what finding the keys may need.
    pub async fn connect(config: &BucketConfig) -> Result<Self, Error> {
        check(config)?;
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
        let mut builder = match (&config.access_key, &config.secret_key) {
            (Some(access), Some(secret)) => {
                let credentials = Credentials::new(access, secret, None, None, "longshore settings");
                Builder::new().behavior_version(BehaviorVersion::latest()).credentials_provider(credentials)
            }
            _ => {
                let defaults = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
                let shared = defaults.region(Region::new(config.region.clone())).load().await;
                aws_sdk_s3::config::Builder::from(&shared)
            }
        };
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build();
        let settings = builder
            .http_client(http)
            .region(Region::new(config.region.clone()))
            .force_path_style(config.path_style)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX))
            .timeout_config(timeouts)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        let endpoint = config.endpoint.clone().unwrap_or_else(|| format!("{AWS}{}", config.region));
        let client = Client::from_conf(settings);
        let (region, bucket, prefix) = (config.region.clone(), config.bucket.clone(), config.prefix.clone());
        let (access_key, encryption) = (config.access_key.clone(), config.encryption.clone());
        Ok(Self(Arc::new(Inner { client, endpoint, access_key, region, bucket, prefix, encryption })))
    }

    pub fn name(&self) -> &str {
        &self.0.bucket
    }

    /// Creates the bucket unless it is there: for the embedded server. Elsewhere, people create buckets.
    pub async fn ensure_exists(&self) -> Result<(), Error> {
        match self.check_exists().await {
            Err(Error::MissingBucket { .. }) => {}
            other => return other,
        }
        let created = self.0.client.create_bucket().bucket(self.name()).send().await;
        match created {
            Ok(_) => Ok(()),
            // Somebody else was faster. Whether the bucket is ours, the check says.
            Err(SdkError::ServiceError(error)) if error.raw().status().as_u16() == 409 => self.check_exists().await,
            Err(error) => Err(self.sorted("", &error)),
        }
    }

    /// Whether the bucket is there and may be used; the error says what is wrong.
    pub async fn check_exists(&self) -> Result<(), Error> {
        let head = self.0.client.head_bucket().bucket(self.name()).send().await;
        let error = match head {
            Ok(_) => return Ok(()),
            Err(error) => self.sorted("", &error),
        };
        match error {
            Error::NotFound { bucket, .. } => Err(Error::MissingBucket { bucket, endpoint: self.0.endpoint.clone() }),
            // The answer to a HEAD has no words; that to a listing says why.
            Error::AccessDenied { .. } | Error::Service { .. } => {
                let list = self.0.client.list_objects_v2().bucket(self.name()).max_keys(1).send().await;
                list.map(drop).map_err(|error| self.sorted("", &error))
            }
            other => Err(other),
        }
    }

    /// The whole object, if it has at most `bytes_max`.
    pub async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes, Error> {
        let mut download = self.get_stream(key).await?;
        let too_large = || Error::TooLarge { key: key.to_owned(), limit: bytes_max };
        if download.bytes > bytes_max {
            return Err(too_large());
        }
        // The size is now known to be within what the caller has room for.
        let mut whole = BytesMut::with_capacity(usize::try_from(download.bytes).map_err(|_| too_large())?);
        while let Some(part) = download.next().await? {
            if (whole.len() + part.len()) as u64 > bytes_max {
                return Err(too_large());
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    /// So many bytes of the object, from this offset on. An object that ends before is an error.
    pub async fn get_range(&self, key: &str, offset: u64, bytes: usize) -> Result<Bytes, Error> {
        let Some(last) = (bytes as u64).checked_sub(1) else { return Ok(Bytes::new()) };
        let request = self.0.client.get_object().bucket(self.name()).key(self.full(key));
        let request = request.range(format!("bytes={offset}-{}", offset.saturating_add(last)));
        let answer = request.send().await.map_err(|error| self.sorted(key, &error))?;
        let mut download = Download { bytes: bytes as u64, body: answer.body, endpoint: self.0.endpoint.clone() };
        let mut whole = BytesMut::with_capacity(bytes);
        while let Some(part) = download.next().await? {
            if whole.len() + part.len() > bytes {
                return Err(Error::TooLarge { key: key.to_owned(), limit: bytes as u64 });
            }
            whole.extend_from_slice(&part);
        }
        if whole.len() < bytes {
            let reason = format!("{key} ended after {} of {bytes} bytes", whole.len());
            return Err(Error::Unreachable { endpoint: self.0.endpoint.clone(), reason });
        }
        Ok(whole.freeze())
    }

    /// The object piece by piece.
    pub async fn get_stream(&self, key: &str) -> Result<Download, Error> {
        let request = self.0.client.get_object().bucket(self.name()).key(self.full(key));
        let answer = request.send().await.map_err(|error| self.sorted(key, &error))?;
        let bytes = answer.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        Ok(Download { bytes, body: answer.body, endpoint: self.0.endpoint.clone() })
    }

    /// Stores an object, in place of what was there. It is durable when this returns.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), Error> {
        self.send_put(key, bytes, false).await.map(drop).map_err(|error| self.sorted(key, &error))
    }

    /// Stores an object unless the key is taken; `false` if it was. Either way it is there when this returns.
    pub async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<bool, Error> {
        let stored = self.send_put(key, bytes, true).await.map_err(|error| self.sorted(key, &error));
        match stored {
            Ok(_) => Ok(true),
            Err(Error::PreconditionFailed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn send_put(
        &self,
        key: &str,
        bytes: Bytes,
        if_absent: bool,
    ) -> Result<PutObjectOutput, SdkError<PutObjectError, HttpResponse>> {
        // A CRC is checked by the service and costs little; hashing the body for the signature would cost more than
        // everything else here, and what matters has its BLAKE3 as its name.
        let request = self.0.client.put_object().bucket(self.name()).key(self.full(key));
        let request = request.checksum_algorithm(ChecksumAlgorithm::Crc32);
        let encryption = &self.0.encryption;
        let request = request.set_server_side_encryption(encryption.mode()).set_ssekms_key_id(encryption.key());
        let request = request.set_if_none_match(if_absent.then(|| "*".to_owned()));
        // The answer begins once all was sent.
        let time = READ_TIMEOUT + Duration::from_secs(bytes.len() as u64 / SLOWEST_BYTES_PER_SECOND);
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(time).build();
        // The client computes no checksum that the operation does not require, though it is asked for one, unless it is told so here.
        let of_puts = aws_sdk_s3::config::Config::builder()
            .timeout_config(timeouts)
            .request_checksum_calculation(RequestChecksumCalculation::WhenSupported);
        let request = request.body(ByteStream::from(bytes)).customize();
        request.config_override(of_puts).disable_payload_signing().send().await
    }

    /// Whether the other bucket is likely one that this one's service can copy from: it is the same service, asked with the same
    /// keys. Whether it may, [`Bucket::copy_from`] will tell.
    pub fn may_copy_from(&self, other: &Self) -> bool {
        let (own, other) = (&self.0, &other.0);
        let both_aws = own.endpoint.starts_with(AWS) && other.endpoint.starts_with(AWS);
        (own.endpoint == other.endpoint || both_aws) && own.access_key == other.access_key
    }

    /// Stores a copy of an object of another bucket, or of another key, in place of what was there; the service copies, and no byte
    /// comes by here. What it copies is as right or as wrong as it was.
    pub async fn copy_from(&self, other: &Self, other_key: &str, key: &str) -> Result<(), Error> {
        let source = format!("{}/{}", other.name(), escaped(&other.full(other_key)));
        let encryption = &self.0.encryption;
        let request = self.0.client.copy_object().bucket(self.name()).key(self.full(key)).copy_source(source);
        let request = request.set_server_side_encryption(encryption.mode()).set_ssekms_key_id(encryption.key());
        request.send().await.map(drop).map_err(|error| match self.sorted(key, &error) {
            Error::NotFound { .. } => Error::NotFound { bucket: other.name().to_owned(), key: other_key.to_owned() },
            error => error,
        })
    }

    /// The object's size, or `None` if it is not there.
    pub async fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        let request = self.0.client.head_object().bucket(self.name()).key(self.full(key));
        match request.send().await {
            Ok(answer) => Ok(Some(answer.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0))),
            Err(error) => match self.sorted(key, &error) {
                Error::NotFound { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Removes an object. One that is not there is no error.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        let request = self.0.client.delete_object().bucket(self.name()).key(self.full(key));
        request.send().await.map(drop).map_err(|error| self.sorted(key, &error))
    }

    /// The objects whose keys begin so, sorted, page by page.
    pub fn list(&self, prefix: &str) -> Pages {
        Pages { bucket: self.clone(), prefix: prefix.to_owned(), next: Next::First }
    }

    /// The next objects of a listing after this key, which need not be there; none at the end.
    pub async fn list_after(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Object>, Error> {
        let next = after.map_or(Next::First, |after| Next::After(self.full(after)));
        let mut pages = Pages { bucket: self.clone(), prefix: prefix.to_owned(), next };
        // A service may answer a page without objects before the end.
        while let Some(page) = pages.next().await? {
            if !page.is_empty() {
                return Ok(page);
            }
        }
        Ok(Vec::new())
    }

    /// A GET of this object for someone without keys.
    pub async fn presign_get(&self, key: &str, ttl: Duration) -> Result<Presigned, Error> {
        let request = self.0.client.get_object().bucket(self.name()).key(self.full(key));
        let presigned = request.presigned(expires_in(ttl)?).await;
        presigned.map(Presigned::from).map_err(|error| self.sorted(key, &error))
    }

    /// A PUT of exactly this many bytes for someone without keys. It cannot replace what is already there.
    pub async fn presign_put(&self, key: &str, ttl: Duration, content_length: u64) -> Result<Presigned, Error> {
        let length = i64::try_from(content_length);
        let length = length.map_err(|error| Error::Config { field: "content_length", reason: error.to_string() })?;
        let request = self.0.client.put_object().bucket(self.name()).key(self.full(key));
        let encryption = &self.0.encryption;
        let request = request.set_server_side_encryption(encryption.mode()).set_ssekms_key_id(encryption.key());
        let request = request.if_none_match("*").content_length(length);
        let presigned = request.presigned(expires_in(ttl)?).await;
        presigned.map(Presigned::from).map_err(|error| self.sorted(key, &error))
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.0.prefix)
    }

    fn sorted<E>(&self, key: &str, error: &SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let Inner { endpoint, region, bucket, .. } = &*self.0;
        Error::sorted(&Place { endpoint, region, bucket, key }, error)
    }
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({} at {})", self.0.bucket, self.0.endpoint)
    }
}

/// A key as it stands in a header that is read as a URL's path.
fn escaped(key: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(byte.into());
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn check(config: &BucketConfig) -> Result<(), Error> {
    let wrong = |field, reason: &str| Err(Error::Config { field, reason: reason.to_owned() });
    match &config.endpoint {
        Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
            return wrong("endpoint", "write it as http://host:port or https://host");
        }
        _ => {}
    }
    if config.bucket.is_empty() || config.region.is_empty() {
        return wrong("bucket and region", "neither may be empty");
    }
    if config.access_key.is_some() != config.secret_key.is_some() {
        return wrong("access_key and secret_key", "give both, or neither");
    }
    if !config.prefix.is_empty() && (!config.prefix.ends_with('/') || config.prefix.starts_with('/')) {
        return wrong("prefix", "it must end in '/' and not begin with it");
    }
    Ok(())
}

/// An object on its way.
pub struct Download {
    /// What the service said about its size.
    pub bytes: u64,
    body: ByteStream,
    endpoint: String,
}

impl Download {
    /// The next piece; `None` at the end. A connection that breaks before the end is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let next = self.body.try_next().await;
        next.map_err(|error| Error::Unreachable { endpoint: self.endpoint.clone(), reason: causes(&error) })
    }
}

/// A listing on its way.
pub struct Pages {
    bucket: Bucket,
    prefix: String,
    next: Next,
}

enum Next {
    First,
    After(String),
    Token(String),
    End,
}

impl Pages {
    /// The next page; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Object>>, Error> {
        let (after, token) = match std::mem::replace(&mut self.next, Next::End) {
            Next::First => (None, None),
            Next::After(after) => (Some(after), None),
            Next::Token(token) => (None, Some(token)),
            Next::End => return Ok(None),
        };
        let inner = &self.bucket.0;
        let request = inner.client.list_objects_v2().bucket(&inner.bucket).prefix(self.bucket.full(&self.prefix));
        let request = request.max_keys(PAGE_OBJECTS_MAX).set_start_after(after).set_continuation_token(token);
        let page = request.send().await.map_err(|error| self.bucket.sorted(&self.prefix, &error))?;
        if let (Some(true), Some(token)) = (page.is_truncated(), page.next_continuation_token()) {
            self.next = Next::Token(token.to_owned());
        }
        let objects = page.contents().iter().filter_map(|object| {
            let key = object.key()?.strip_prefix(&*inner.prefix)?.to_owned();
            let bytes = object.size().and_then(|size| u64::try_from(size).ok())?;
            let modified = object.last_modified().and_then(|time| SystemTime::try_from(*time).ok());
            // What has no time is not to be taken for old.
            Some(Object { key, bytes, modified: modified.unwrap_or_else(SystemTime::now) })
        });
        Ok(Some(objects.collect()))
    }

    /// All that is left, but no more than `objects_max`.
    pub async fn collect(mut self, objects_max: usize) -> Result<Vec<Object>, Error> {
        let mut objects = Vec::new();
        while let Some(page) = self.next().await? {
            objects.extend(page);
            if objects.len() > objects_max {
                return Err(Error::TooLarge { key: self.prefix, limit: objects_max as u64 });
            }
        }
        Ok(objects)
    }
}
