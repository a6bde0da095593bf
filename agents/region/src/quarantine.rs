//! Objects with wrong bytes: told from right ones, and moved out of the way.
//!
//! What is moved lies under `quarantine/` in the same bucket, for people; nothing reads it. Its place is free then, so that the
//! right bytes can be put there by whoever has them: a build, a copy, another region.

use bytes::Bytes;
use longshore_artifact::{ArtifactRoot, ROOT_BYTES_MAX, pack_key, root_key};
use longshore_s3::{Bucket, Error};
use longshore_schemas::{ArtifactId, PackId};

/// What a bucket has under a pack's key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Held {
    Right(Bytes),
    /// `None`: more bytes than the pack has, which were not read.
    Wrong(Option<Bytes>),
    Gone,
}

impl Held {
    fn is_wrong(&self) -> bool {
        matches!(self, Self::Wrong(_))
    }
}

fn quarantine_key(key: &str) -> String {
    format!("quarantine/{key}")
}

/// Reads the object and compares it with its name.
pub(crate) async fn inspect(bucket: &Bucket, pack: &PackId, bytes: u64) -> Result<Held, Error> {
    match bucket.get(&pack_key(pack), bytes).await {
        Ok(content) if content.len() as u64 == bytes && PackId::of(&content) == *pack => Ok(Held::Right(content)),
        Ok(content) => Ok(Held::Wrong(Some(content))),
        Err(Error::NotFound { .. }) => Ok(Held::Gone),
        Err(Error::TooLarge { .. }) => Ok(Held::Wrong(None)),
        Err(error) => Err(error),
    }
}

/// Moves a pack with these wrong bytes into quarantine. It is read once more before that, for it may be the reading that was wrong;
/// answers what is held then, which is [`Held::Gone`] if it was moved.
pub(crate) async fn set_aside(bucket: &Bucket, pack: &PackId, bytes: u64, wrong: &Held) -> Result<Held, Error> {
    let again = inspect(bucket, pack, bytes).await?;
    if !again.is_wrong() || again != *wrong {
        return Ok(again);
    }
    if let Held::Wrong(Some(content)) = again {
        bucket.put(&quarantine_key(&pack_key(pack)), content).await?;
    }
    bucket.delete(&pack_key(pack)).await?;
    tracing::error!(%pack, bucket = bucket.name(), "a pack with wrong bytes was moved to quarantine/");
    Ok(Held::Gone)
}

/// Moves an artifact's root into quarantine if it is there and cannot be used; answers whether it is gone.
pub(crate) async fn set_root_aside(bucket: &Bucket, artifact: &ArtifactId) -> Result<bool, Error> {
    let key = root_key(artifact);
    match bucket.get(&key, ROOT_BYTES_MAX as u64).await {
        Ok(json) if ArtifactRoot::from_json(artifact, &json).is_ok() => return Ok(false),
        Ok(json) => bucket.put(&quarantine_key(&key), json).await?,
        Err(Error::TooLarge { .. }) => {}
        Err(Error::NotFound { .. }) => return Ok(true),
        Err(error) => return Err(error),
    }
    bucket.delete(&key).await?;
    tracing::error!(%artifact, bucket = bucket.name(), "the root of an artifact is not usable and was moved to quarantine/");
    Ok(true)
}
