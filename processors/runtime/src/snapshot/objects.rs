//! Where snapshots are kept, as much of it as they need: a bucket, seen from here.

use async_trait::async_trait;
use bytes::Bytes;

/// What a bucket said no with.
#[derive(Debug, thiserror::Error)]
#[error("the bucket failed at {key:?}")]
pub struct ObjectError {
    pub key: String,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    pub bytes: u64,
}

/// Objects by key, each there as a whole or not at all.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// None if it is not there. An error also if it has more than `bytes_max`.
    async fn get(&self, key: &str, bytes_max: u64) -> Result<Option<Bytes>, ObjectError>;

    /// Stores it, in place of what was there. Durable when it returns.
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), ObjectError>;

    /// One that is not there is no error.
    async fn delete(&self, key: &str) -> Result<(), ObjectError>;

    /// All whose keys begin so, sorted by key.
    async fn list(&self, prefix: &str) -> Result<Vec<Object>, ObjectError>;
}
