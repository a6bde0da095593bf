//! Objects that come in parts, as other tools upload large ones. Longshore's own are small.
//!
//! ```text
//! create ─▶ upload part ×n, in any order, several at once ─▶ complete: one synced file gets its name
//! ```
//!
//! Each part is written where it belongs in the one staged file, so that completing copies nothing. For that all parts but the last must
//! have one size, that of the part that comes first; every tool does it so. Uploads are forgotten with the process.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{Seek, SeekFrom},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use s3s::{S3Error, S3Result, TrailingHeaders, dto::*, s3_error};
use tokio::task::spawn_blocking;

use super::{
    files::{Files, Staged, Stored},
    receive::{Claims, receive},
    store::storage_error,
};

/// Uploads that have begun and not ended. One more takes the place of the oldest.
const UPLOADS_MAX: usize = 64;
/// S3's own limit.
const PARTS_MAX: i32 = 10_000;
/// Largest part: S3's limit.
const PART_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;

/// The uploads of one server.
#[derive(Default)]
pub(super) struct Uploads(Mutex<Open>);

#[derive(Default)]
struct Open {
    begun: u64,
    uploads: HashMap<String, (u64, Arc<Upload>)>,
}

/// One object on its way.
struct Upload {
    bucket: String,
    key: String,
    staged: Staged,
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    /// Of every part but the last.
    bytes: Option<u64>,
    /// By number, those that are stored: length and tag.
    stored: BTreeMap<i32, (u64, String)>,
}

impl Upload {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uploads {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn create(&self, files: &Files, bucket: &str, key: &str) -> S3Result<String> {
        let staged = files.stage();
        File::create(&staged.path).map_err(storage_error)?;
        let upload = Upload { bucket: bucket.to_owned(), key: key.to_owned(), staged, parts: Mutex::default() };
        let mut open = self.open();
        if open.uploads.len() >= UPLOADS_MAX {
            let oldest = open.uploads.iter().min_by_key(|(_, (begun, _))| *begun).map(|(id, _)| id.clone());
            if let Some(oldest) = oldest {
                tracing::warn!(upload = oldest, "an upload in parts that has not ended is forgotten for a new one");
                open.uploads.remove(&oldest);
            }
        }
        open.begun += 1;
        let (number, id) = (open.begun, format!("upload-{}-{}", std::process::id(), open.begun));
        open.uploads.insert(id.clone(), (number, Arc::new(upload)));
        Ok(id)
    }

    fn find(&self, id: &str, bucket: &str, key: &str) -> S3Result<Arc<Upload>> {
        let found = self.open().uploads.get(id).map(|(_, upload)| upload.clone());
        found.filter(|upload| upload.bucket == bucket && upload.key == key).ok_or_else(|| s3_error!(NoSuchUpload))
    }

    /// Stores a part durably and says its tag.
    pub(super) async fn part(&self, mut input: UploadPartInput, trailers: Option<TrailingHeaders>) -> S3Result<ETag> {
        let upload = self.find(&input.upload_id, &input.bucket, &input.key)?;
        let number = input.part_number;
        if !(1..=PARTS_MAX).contains(&number) {
            return Err(s3_error!(InvalidArgument, "parts have the numbers 1 to {PARTS_MAX}"));
        }
        let length = input.content_length.and_then(|length| u64::try_from(length).ok());
        let length = length.ok_or_else(|| s3_error!(MissingContentLength))?;
        let size = *upload.parts().bytes.get_or_insert(length);
        if length > size || length > PART_BYTES_MAX {
            return Err(s3_error!(
                InvalidRequest,
                "part {number} has {length} bytes and the first that came {size}: here all parts but the last need one size"
            ));
        }
        let offset = (u64::from(number.unsigned_abs()) - 1) * size;
        let mut file = File::options().write(true).open(&upload.staged.path).map_err(storage_error)?;
        file.seek(SeekFrom::Start(offset)).map_err(storage_error)?;
        let claims = Claims::from(&input);
        let received = receive(&claims, input.body.take(), trailers, file, length).await?;
        let tag = format!("{number:x}-{received:x}");
        upload.parts().stored.insert(number, (received, tag.clone()));
        Ok(ETag::Strong(tag))
    }

    /// Gives the object its name, if the parts that the client lists are those that are there.
    pub(super) async fn complete(
        &self,
        files: Arc<Files>,
        input: CompleteMultipartUploadInput,
    ) -> S3Result<(Stored, u64)> {
        let upload = self.find(&input.upload_id, &input.bucket, &input.key)?;
        let bytes = whole(&upload.parts(), &input.multipart_upload.unwrap_or_default())?;
        let object = files.object(&input.bucket, &input.key).ok_or_else(|| s3_error!(InvalidArgument))?;
        let if_absent = input.if_none_match.is_some();
        // Nobody else completes it too, and no part comes to it any more.
        self.open().uploads.remove(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let published = spawn_blocking(move || {
            let file = File::options().write(true).open(&upload.staged.path)?;
            file.set_len(bytes)?;
            file.sync_all()?;
            files.publish(&upload.staged, &object, if_absent)
        });
        let stored = published.await.map_err(S3Error::internal_error)?.map_err(storage_error)?;
        Ok((stored, bytes))
    }

    pub(super) fn abort(&self, id: &str, bucket: &str, key: &str) -> S3Result<()> {
        self.find(id, bucket, key)?;
        self.open().uploads.remove(id);
        Ok(())
    }
}

/// The length of the object that consists of these parts.
fn whole(parts: &Parts, listed: &CompletedMultipartUpload) -> S3Result<u64> {
    let listed = listed.parts.as_deref().unwrap_or_default();
    let size = parts.bytes.unwrap_or(0);
    let mut bytes = 0;
    for (number, part) in (1..).zip(listed) {
        let stored = parts.stored.get(&number).filter(|_| part.part_number == Some(number));
        let Some((length, tag)) = stored else {
            return Err(s3_error!(InvalidPart, "part {number} is not there: list all from 1 on, in order"));
        };
        if part.e_tag.as_ref().is_some_and(|given| given.value() != tag) {
            return Err(s3_error!(InvalidPart, "part {number} has another tag"));
        }
        if *length != size && number as usize != listed.len() {
            return Err(s3_error!(InvalidPart, "part {number} has {length} bytes and others {size}"));
        }
        bytes += length;
    }
    if listed.is_empty() {
        return Err(s3_error!(InvalidRequest, "an object has at least one part"));
    }
    Ok(bytes)
}
