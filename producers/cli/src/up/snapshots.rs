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

use super::settings::Seconds;

/// What the environment may set.
pub(super) const KEYS: [&str; 3] = ["snapshots.interval", "snapshots.facts", "snapshots.keep"];
/// In the data folder: whose log this is.
const INSTALLATION: &str = "installation";

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Snapshots {
    pub(super) interval: Seconds,
    pub(super) facts: u64,
    pub(super) keep: u32,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { interval: Seconds(600), facts: 10_000, keep: 3 }
    }
}

impl Snapshots {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.keep == 0 || self.facts == 0 {
            return Err("snapshots.keep and snapshots.facts: use at least 1".to_owned());
        }
        Ok(())
    }

    /// To the main bucket, in the name of this data folder, which is made the first time.
    pub(super) fn config(&self, data: &Path, bucket: &Bucket) -> anyhow::Result<SnapshotConfig> {
        let path = data.join(INSTALLATION);
        let installation = match durable::read(&path)?.map(String::from_utf8) {
            Some(Ok(name)) if !name.trim().is_empty() => name.trim().to_owned(),
            _ => {
                let name = format!("up-{:032x}", rand::random::<u128>());
                durable::write(&path, name.as_bytes(), durable::SHARED_MODE)?;
                name
            }
        };
        let settings = Settings {
            interval: Duration::from_secs(self.interval.0.into()),
            facts_min: self.facts,
            keep: usize::try_from(self.keep)?,
            ..Settings::new(installation, "up")
        };
        Ok(SnapshotConfig { bucket: bucket.clone(), settings })
    }
}
