//! A request's body on its way to a file, held against what the client said of it.

use std::{fs::File, io::Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::StreamExt;
use md5::{Digest, Md5};
use s3s::{S3Error, S3ErrorCode, S3Result, TrailingHeaders, checksum::ChecksumHasher, dto::*, s3_error};
use tokio::task::spawn_blocking;

use super::store::storage_error;

/// How much is gathered before it is written.
const WRITE_BYTES: usize = 1024 * 1024;

/// What a client said of a body.
pub(super) struct Claims {
    length: Option<i64>,
    /// Announced for the end of the body, or given.
    algorithm: Option<ChecksumAlgorithm>,
    crc32: Option<String>,
    crc32c: Option<String>,
    crc64nvme: Option<String>,
    sha1: Option<String>,
    sha256: Option<String>,
    md5: Option<String>,
}

macro_rules! claims_of {
    ($($input:ty),*) => {
        $(impl From<&$input> for Claims {
            fn from(input: &$input) -> Self {
                Self {
                    length: input.content_length,
                    algorithm: input.checksum_algorithm.clone(),
                    crc32: input.checksum_crc32.clone(),
                    crc32c: input.checksum_crc32c.clone(),
                    crc64nvme: input.checksum_crc64nvme.clone(),
                    sha1: input.checksum_sha1.clone(),
                    sha256: input.checksum_sha256.clone(),
                    md5: input.content_md5.clone(),
                }
            }
        })*
    };
}

claims_of!(PutObjectInput, UploadPartInput);

/// Writes the body to the file, from where it stands, and syncs it, once length and checksums were found right. Says the length.
pub(super) async fn receive(
    claims: &Claims,
    body: Option<StreamingBlob>,
    trailers: Option<TrailingHeaders>,
    file: File,
    bytes_max: u64,
) -> S3Result<u64> {
    let mut body = body.ok_or_else(|| s3_error!(IncompleteBody))?;
    let mut sink = Sink { file, sums: claims.hasher(), md5: claims.md5.is_some().then(Md5::new) };
    let (mut received, mut waiting, mut pieces) = (0, 0, Vec::new());
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| S3Error::with_source(S3ErrorCode::IncompleteBody, error))?;
        received += piece.len() as u64;
        if received > bytes_max {
            return Err(s3_error!(EntityTooLarge));
        }
        waiting += piece.len();
        pieces.push(piece);
        if waiting >= WRITE_BYTES {
            sink = sink.write(std::mem::take(&mut pieces)).await?;
            waiting = 0;
        }
    }
    if claims.length.is_some_and(|length| u64::try_from(length) != Ok(received)) {
        return Err(s3_error!(IncompleteBody));
    }
    let Sink { file, sums, md5 } = sink.write(pieces).await?;
    claims.check(trailers, sums, md5)?;
    let synced = spawn_blocking(move || file.sync_all()).await;
    synced.map_err(S3Error::internal_error)?.map_err(storage_error)?;
    Ok(received)
}

/// Where a body goes.
struct Sink {
    file: File,
    sums: ChecksumHasher,
    md5: Option<Md5>,
}

impl Sink {
    /// Writing and hashing are for a thread that may be kept busy.
    async fn write(mut self, pieces: Vec<Bytes>) -> S3Result<Self> {
        let written = spawn_blocking(move || {
            for piece in pieces {
                self.sums.update(&piece);
                if let Some(md5) = &mut self.md5 {
                    md5.update(&piece);
                }
                self.file.write_all(&piece)?;
            }
            Ok(self)
        });
        written.await.map_err(S3Error::internal_error)?.map_err(storage_error)
    }
}

impl Claims {
    /// Computes what the client sent a checksum of, or announced one for.
    fn hasher(&self) -> ChecksumHasher {
        let mut sums = ChecksumHasher::default();
        let announced = self.algorithm.as_ref().map(ChecksumAlgorithm::as_str);
        if self.crc32.is_some() || announced == Some(ChecksumAlgorithm::CRC32) {
            sums.crc32 = Some(Default::default());
        }
        if self.crc32c.is_some() || announced == Some(ChecksumAlgorithm::CRC32C) {
            sums.crc32c = Some(Default::default());
        }
        if self.crc64nvme.is_some() || announced == Some(ChecksumAlgorithm::CRC64NVME) {
            sums.crc64nvme = Some(Default::default());
        }
        if self.sha1.is_some() || announced == Some(ChecksumAlgorithm::SHA1) {
            sums.sha1 = Some(Default::default());
        }
        if self.sha256.is_some() || announced == Some(ChecksumAlgorithm::SHA256) {
            sums.sha256 = Some(Default::default());
        }
        sums
    }

    /// Compares what came in a header, or behind the body, with what was computed.
    fn check(&self, trailers: Option<TrailingHeaders>, sums: ChecksumHasher, md5: Option<Md5>) -> S3Result<()> {
        let trailers = trailers.and_then(|trailers| trailers.take());
        let trailer = |name: &str| {
            let value = trailers.as_ref().and_then(|trailers| trailers.get(name));
            value.and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let found = sums.finalize();
        let md5 = md5.map(|md5| STANDARD.encode(md5.finalize()));
        let pairs = [
            ("x-amz-checksum-crc32", &self.crc32, found.checksum_crc32),
            ("x-amz-checksum-crc32c", &self.crc32c, found.checksum_crc32c),
            ("x-amz-checksum-crc64nvme", &self.crc64nvme, found.checksum_crc64nvme),
            ("x-amz-checksum-sha1", &self.sha1, found.checksum_sha1),
            ("x-amz-checksum-sha256", &self.sha256, found.checksum_sha256),
            ("content-md5", &self.md5, md5),
        ];
        for (name, given, found) in pairs {
            let given = given.clone().or_else(|| trailer(name));
            if given.is_some() && found.is_some() && given != found {
                return Err(s3_error!(BadDigest, "{name} does not match the body"));
            }
        }
        Ok(())
    }
}
