//! The S3 operations of the embedded server.
//!
//! Objects are written, read and removed here, because s3s-fs gives an object its name before it has checked or synced
//! it, and compares `If-None-Match` without holding anything. Buckets and listings are s3s-fs's. All else (multipart,
//! versions …) is answered with NotImplemented: nothing of Longshore asks for it.

use std::{
    io::{self, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::StreamExt;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, checksum::ChecksumHasher, dto::*, s3_error};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    task::spawn_blocking,
};
use tokio_util::io::ReaderStream;

use super::{
    counters::Counters,
    files::{Files, Staged, Stored, sync_dir},
};

/// Largest object, in bytes. Longshore's own are at most 16 MiB.
const OBJECT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Piece in which an object is read and sent.
const PIECE_BYTES: usize = 256 * 1024;

#[derive(Clone)]
pub(super) struct Store {
    listing: Arc<s3s_fs::FileSystem>,
    files: Arc<Files>,
    counters: Counters,
}

impl Store {
    pub(super) fn open(root: &Path, counters: Counters) -> io::Result<Self> {
        let files = Files::open(root)?;
        let listing =
            s3s_fs::FileSystem::new(files.buckets()).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(Self { listing: Arc::new(listing), files: Arc::new(files), counters })
    }

    /// Where the object lies or would lie.
    fn object(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        if !self.files.has_bucket(bucket) {
            return Err(s3_error!(NoSuchBucket));
        }
        let object = self.files.object(bucket, key);
        object.ok_or_else(|| {
            s3_error!(InvalidArgument, "the key must consist of 1 to 255 bytes between slashes, without '.' and '..'")
        })
    }

    async fn find(&self, bucket: &str, key: &str) -> S3Result<(File, Found)> {
        let path = self.object(bucket, key)?;
        let file = File::open(&path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => s3_error!(NoSuchKey),
            _ => storage_error(error),
        })?;
        let metadata = file.metadata().await.map_err(storage_error)?;
        if !metadata.is_file() {
            return Err(s3_error!(NoSuchKey));
        }
        let modified = metadata.modified().map_err(storage_error)?;
        let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Objects are never changed in place, so time and size tell versions apart without reading the bytes.
        let tag = format!("{:x}-{:x}", since.as_nanos(), metadata.len());
        Ok((file, Found { bytes: metadata.len(), modified: Timestamp::from(modified), tag: ETag::Strong(tag) }))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> io::Result<T> + Send + 'static,
    ) -> S3Result<T> {
        let files = self.files.clone();
        let done = spawn_blocking(move || work(&files)).await;
        done.map_err(S3Error::internal_error)?.map_err(storage_error)
    }

    /// Writes the body to a staged file and syncs it, once length and checksums were found right.
    async fn receive(
        &self,
        request: &mut PutObjectInput,
        trailers: Option<s3s::TrailingHeaders>,
    ) -> S3Result<(Staged, u64)> {
        let mut body = request.body.take().ok_or_else(|| s3_error!(IncompleteBody))?;
        let mut sums = hasher(request)?;
        let staged = self.files.stage();
        let mut file = File::create(&staged.path).await.map_err(storage_error)?;
        let mut received = 0;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| S3Error::with_source(S3ErrorCode::IncompleteBody, error))?;
            received += piece.len() as u64;
            if received > OBJECT_BYTES_MAX {
                return Err(s3_error!(EntityTooLarge));
            }
            sums.update(&piece);
            file.write_all(&piece).await.map_err(storage_error)?;
        }
        if request.content_length.is_some_and(|length| u64::try_from(length) != Ok(received)) {
            return Err(s3_error!(IncompleteBody));
        }
        check_sums(request, trailers, sums)?;
        file.flush().await.map_err(storage_error)?;
        file.sync_all().await.map_err(storage_error)?;
        Ok((staged, received))
    }
}

/// An object that was found.
struct Found {
    bytes: u64,
    modified: Timestamp,
    tag: ETag,
}

/// A failing disk as an answer. A full one has a status of its own, which no client repeats at once.
fn storage_error(error: io::Error) -> S3Error {
    use io::ErrorKind::{AlreadyExists, IsADirectory, NotADirectory, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => {
            let code = S3ErrorCode::from_bytes(b"InsufficientStorage").unwrap_or(S3ErrorCode::InternalError);
            let mut full = S3Error::with_message(code, "the disk is full");
            full.set_status_code(hyper::StatusCode::INSUFFICIENT_STORAGE);
            full
        }
        NotADirectory | IsADirectory | AlreadyExists => {
            s3_error!(InvalidRequest, "another object's key is this key's folder, or the other way round")
        }
        _ => {
            tracing::error!(%error, "the embedded S3 server's disk failed");
            S3Error::internal_error(error)
        }
    }
}

/// Computes what the client sent a checksum of, or announced one for.
fn hasher(request: &PutObjectInput) -> S3Result<ChecksumHasher> {
    let mut sums = ChecksumHasher::default();
    let announced = request.checksum_algorithm.as_ref().map(ChecksumAlgorithm::as_str);
    if request.checksum_crc32.is_some() || announced == Some(ChecksumAlgorithm::CRC32) {
        sums.crc32 = Some(Default::default());
    }
    if request.checksum_crc32c.is_some() || announced == Some(ChecksumAlgorithm::CRC32C) {
        sums.crc32c = Some(Default::default());
    }
    if request.checksum_crc64nvme.is_some() || announced == Some(ChecksumAlgorithm::CRC64NVME) {
        sums.crc64nvme = Some(Default::default());
    }
    if request.checksum_sha1.is_some() || announced == Some(ChecksumAlgorithm::SHA1) {
        sums.sha1 = Some(Default::default());
    }
    if request.checksum_sha256.is_some() || announced == Some(ChecksumAlgorithm::SHA256) {
        sums.sha256 = Some(Default::default());
    }
    if request.content_md5.is_some() {
        return Err(s3_error!(NotImplemented, "Content-MD5 is not checked here; send a CRC32 instead"));
    }
    Ok(sums)
}

/// Compares what came in a header, or behind the body, with what was computed.
fn check_sums(request: &PutObjectInput, trailers: Option<s3s::TrailingHeaders>, sums: ChecksumHasher) -> S3Result<()> {
    let trailers = trailers.and_then(|trailers| trailers.take());
    let trailer = |name: &str| {
        let value = trailers.as_ref().and_then(|trailers| trailers.get(name));
        value.and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let found = sums.finalize();
    let pairs = [
        ("x-amz-checksum-crc32", &request.checksum_crc32, found.checksum_crc32),
        ("x-amz-checksum-crc32c", &request.checksum_crc32c, found.checksum_crc32c),
        ("x-amz-checksum-crc64nvme", &request.checksum_crc64nvme, found.checksum_crc64nvme),
        ("x-amz-checksum-sha1", &request.checksum_sha1, found.checksum_sha1),
        ("x-amz-checksum-sha256", &request.checksum_sha256, found.checksum_sha256),
    ];
    for (name, given, found) in pairs {
        let given = given.clone().or_else(|| trailer(name));
        if given.is_some() && found.is_some() && given != found {
            return Err(s3_error!(BadDigest, "{name} does not match the body"));
        }
    }
    Ok(())
}

#[async_trait::async_trait]
impl S3 for Store {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let mut input = request.input;
        let object = self.object(&input.bucket, &input.key)?;
        if input.if_match.is_some() {
            return Err(s3_error!(NotImplemented, "If-Match is not supported; If-None-Match: * is"));
        }
        let if_absent = match &input.if_none_match {
            None => false,
            Some(ETagCondition::Any) => true,
            Some(ETagCondition::ETag(_)) => {
                return Err(s3_error!(NotImplemented, "only If-None-Match: * is supported"));
            }
        };
        let (staged, bytes) = self.receive(&mut input, request.trailing_headers).await?;
        let stored = self.blocking(move |files| files.publish(&staged, &object, if_absent)).await?;
        if stored == Stored::AlreadyThere {
            return Err(s3_error!(PreconditionFailed, "the object is already there"));
        }
        self.counters.count(&input.bucket, &input.key, |traffic| {
            traffic.puts += 1;
            traffic.put_bytes += bytes;
        });
        let (_, found) = self.find(&input.bucket, &input.key).await?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(found.tag), ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let (mut file, found) = self.find(&input.bucket, &input.key).await?;
        let range = input.range.map(|range| range.check(found.bytes)).transpose()?;
        let content_range =
            range.as_ref().map(|range| format!("bytes {}-{}/{}", range.start, range.end - 1, found.bytes));
        let range = range.unwrap_or(0..found.bytes);
        if range.start > 0 {
            file.seek(SeekFrom::Start(range.start)).await.map_err(storage_error)?;
        }
        let length = range.end - range.start;
        file.set_max_buf_size(PIECE_BYTES);
        self.counters.count(&input.bucket, &input.key, |traffic| traffic.gets += 1);
        let (counters, bucket, key) = (self.counters.clone(), input.bucket, input.key);
        let pieces = ReaderStream::with_capacity(file.take(length), PIECE_BYTES).inspect(move |piece| {
            let sent = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            counters.count(&bucket, &key, |traffic| traffic.get_bytes += sent);
        });
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(pieces)),
            content_length: Some(i64::try_from(length).map_err(S3Error::internal_error)?),
            content_range,
            e_tag: Some(found.tag),
            last_modified: Some(found.modified),
            ..Default::default()
        }))
    }

    /// A copy counts as one object that went out of the source's bucket and one that came into the other.
    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = request.input;
        let object = self.object(&input.bucket, &input.key)?;
        let CopySource::Bucket { bucket, key, version_id: None } = input.copy_source else {
            return Err(s3_error!(NotImplemented, "copies are of a bucket's object as it is, without versions"));
        };
        let (bucket, key) = (bucket.into_string(), key.into_string());
        let (mut source, found) = {
            let (file, found) = self.find(&bucket, &key).await?;
            (file.into_std().await, found)
        };
        self.blocking(move |files| {
            let staged = files.stage();
            let mut copy = std::fs::File::create(&staged.path)?;
            io::copy(&mut source, &mut copy)?;
            copy.sync_all()?;
            files.publish(&staged, &object, false)
        })
        .await?;
        self.counters.count(&bucket, &key, |traffic| {
            traffic.gets += 1;
            traffic.get_bytes += found.bytes;
        });
        self.counters.count(&input.bucket, &input.key, |traffic| {
            traffic.puts += 1;
            traffic.put_bytes += found.bytes;
        });
        let (_, found) = self.find(&input.bucket, &input.key).await?;
        let result = CopyObjectResult {
            e_tag: Some(found.tag),
            last_modified: Some(found.modified),
            ..CopyObjectResult::default()
        };
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let (_, found) = self.find(&request.input.bucket, &request.input.key).await?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(i64::try_from(found.bytes).map_err(S3Error::internal_error)?),
            e_tag: Some(found.tag),
            last_modified: Some(found.modified),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let object = self.object(&request.input.bucket, &request.input.key)?;
        self.blocking(move |files| files.remove(&object)).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let created = self.listing.create_bucket(request).await?;
        self.blocking(|files| sync_dir(files.buckets())).await?;
        Ok(created)
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.listing.head_bucket(request).await
    }

    async fn list_buckets(&self, request: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        self.listing.list_buckets(request).await
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.listing.get_bucket_location(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.listing.list_objects_v2(request).await
    }
}
