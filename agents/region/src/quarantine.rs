//! Objects with wrong bytes: told from right ones, and moved out of the way.
//!
//! What is moved lies under `quarantine/` in the same bucket, for people; nothing reads it. Its place is free then, so that the
//! right bytes can be put there by whoever has them: a build, a copy, another region.

use bytes::Bytes;
use longshore_artifact::pack_key;
use longshore_s3::{Bucket, Error};
use longshore_schemas::PackId;

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

pub(crate) fn quarantine_key(pack: &PackId) -> String {
    format!("quarantine/{}", pack_key(pack))
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
        bucket.put(&quarantine_key(pack), content).await?;
    }
    bucket.delete(&pack_key(pack)).await?;
    tracing::error!(%pack, bucket = bucket.name(), "a pack with wrong bytes was moved to quarantine/");
    Ok(Held::Gone)
}
