//! The S3 operations of the embedded server.
//!
//! Objects are written, read and removed here, because s3s-fs gives an object its name before it has checked or synced
//! it, and compares `If-None-Match` without holding anything. Buckets and listings are s3s-fs's. All else (versions …) is
//! answered with NotImplemented: nothing of Longshore asks for it.

use std::{
    io::{self, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::StreamExt;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto::*, s3_error};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    task::spawn_blocking,
};
use tokio_util::io::ReaderStream;

use super::{
    counters::Counters,
    files::{Files, Stored, sync_dir},
    multipart::Uploads,
    receive::{Claims, receive},
};

/// Largest object, in bytes. Longshore's own are at most 16 MiB.
const OBJECT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Piece in which an object is read and sent.
const PIECE_BYTES: usize = 256 * 1024;

#[derive(Clone)]
pub(super) struct Store {
    listing: Arc<s3s_fs::FileSystem>,
    files: Arc<Files>,
    uploads: Arc<Uploads>,
    counters: Counters,
}

impl Store {
    pub(super) fn open(root: &Path, counters: Counters) -> io::Result<Self> {
        let files = Files::open(root)?;
        let listing =
            s3s_fs::FileSystem::new(files.buckets()).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(Self { listing: Arc::new(listing), files: Arc::new(files), uploads: Arc::default(), counters })
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

    /// Counts an object that was stored and says its tag.
    async fn stored(&self, bucket: &str, key: &str, bytes: u64) -> S3Result<ETag> {
        self.counters.count(bucket, key, |traffic| {
            traffic.puts += 1;
            traffic.put_bytes += bytes;
        });
        Ok(self.find(bucket, key).await?.1.tag)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> io::Result<T> + Send + 'static,
    ) -> S3Result<T> {
        let files = self.files.clone();
        let done = spawn_blocking(move || work(&files)).await;
        done.map_err(S3Error::internal_error)?.map_err(storage_error)
    }
}

/// An object that was found.
struct Found {
    bytes: u64,
    modified: Timestamp,
    tag: ETag,
}

/// A failing disk as an answer. A full one has a status of its own, which no client repeats at once.
pub(super) fn storage_error(error: io::Error) -> S3Error {
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
        let staged = self.files.stage();
        let file = std::fs::File::create(&staged.path).map_err(storage_error)?;
        let claims = Claims::from(&input);
        let bytes = receive(&claims, input.body.take(), request.trailing_headers, file, OBJECT_BYTES_MAX).await?;
        let stored = self.blocking(move |files| files.publish(&staged, &object, if_absent)).await?;
        if stored == Stored::AlreadyThere {
            return Err(s3_error!(PreconditionFailed, "the object is already there"));
        }
        let tag = self.stored(&input.bucket, &input.key, bytes).await?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(tag), ..Default::default() }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let CreateMultipartUploadInput { bucket, key, .. } = request.input;
        self.object(&bucket, &key)?;
        let id = self.uploads.create(&self.files, &bucket, &key)?;
        let (bucket, key, upload_id) = (Some(bucket), Some(key), Some(id));
        Ok(S3Response::new(CreateMultipartUploadOutput { bucket, key, upload_id, ..Default::default() }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let tag = self.uploads.part(request.input, request.trailing_headers).await?;
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(tag), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        if input.if_match.is_some() {
            return Err(s3_error!(NotImplemented, "If-Match is not supported; If-None-Match: * is"));
        }
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        let (stored, bytes) = self.uploads.complete(self.files.clone(), input).await?;
        if stored == Stored::AlreadyThere {
            return Err(s3_error!(PreconditionFailed, "the object is already there"));
        }
        let e_tag = Some(self.stored(&bucket, &key, bytes).await?);
        let (bucket, key) = (Some(bucket), Some(key));
        Ok(S3Response::new(CompleteMultipartUploadOutput { bucket, key, e_tag, ..Default::default() }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let AbortMultipartUploadInput { bucket, key, upload_id, .. } = request.input;
        self.uploads.abort(&upload_id, &bucket, &key)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
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
