//! Snapshots of the projections, as they are set.
//!
//! ```text
//! [snapshots]
//! interval = "10m"   # LONGSHORE_SNAPSHOTS_INTERVAL: between two of them
//! facts = 10000      # LONGSHORE_SNAPSHOTS_FACTS: so many must have come since the last one
//! keep = 3           # LONGSHORE_SNAPSHOTS_KEEP: of each node
//! ```

use std::{path::Path, time::Duration};

use longshore_control::snapshots::{Settings, SnapshotConfig};
use longshore_s3::Bucket;
use longshore_service::durable;
use serde::Deserialize;

use super::leases::Seconds;

/// What the environment may set.
pub(crate) const KEYS: [&str; 3] = ["snapshots.interval", "snapshots.facts", "snapshots.keep"];

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Snapshots {
    pub(crate) interval: Seconds,
    pub(crate) facts: u64,
    pub(crate) keep: u32,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { interval: Seconds(600), facts: 10_000, keep: 3 }
    }
}

impl Snapshots {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.keep == 0 || self.facts == 0 {
            return Err("snapshots.keep and snapshots.facts: use at least 1".to_owned());
        }
        Ok(())
    }

    /// Of this node, to the main bucket. All nodes of an installation name it alike, and no other installation does.
    pub(crate) fn of(&self, installation: String, node: &str, bucket: &Bucket) -> anyhow::Result<SnapshotConfig> {
        let settings = Settings {
            interval: Duration::from_secs(self.interval.0.into()),
            facts_min: self.facts,
            keep: usize::try_from(self.keep)?,
            ..Settings::new(installation, node)
        };
        Ok(SnapshotConfig { bucket: bucket.clone(), settings })
    }
}

/// A name that nobody else has, made the first time and kept in this file of the data folder.
pub(crate) fn kept_name(data: &Path, file: &str, prefix: &str) -> anyhow::Result<String> {
    let path = data.join(file);
    if let Some(Ok(name)) = durable::read(&path)?.map(String::from_utf8)
        && !name.trim().is_empty()
    {
        return Ok(name.trim().to_owned());
    }
    let name = format!("{prefix}-{:032x}", rand::random::<u128>());
    durable::write(&path, name.as_bytes(), durable::SHARED_MODE)?;
    Ok(name)
}
