//! What moved, hop by hop: from the embedded S3 server's counters, the projections and the nodes' own records.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{Client, Node};

/// Bytes of packs that were read from each bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketReads(pub BTreeMap<String, u64>);

impl BucketReads {
    /// Reads the counters from `/metrics`.
    pub async fn now(client: &Client) -> Result<Self> {
        let mut reads = BTreeMap::new();
        for line in client.text("/metrics").await?.lines() {
            let Some(rest) = line.strip_prefix("longshore_s3_get_bytes_total{") else { continue };
            let (labels, value) = rest.split_once("} ").context("a metric has a value")?;
            let label = |name: &str| {
                let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
                labels[start..].split('"').next()
            };
            if label("prefix") == Some("packs/") {
                let bucket = label("bucket").context("the metric has a bucket")?;
                *reads.entry(bucket.to_owned()).or_default() += value.trim().parse::<u64>()?;
            }
        }
        Ok(Self(reads))
    }

    /// What was read from a region's bucket since an earlier count.
    pub fn since(&self, earlier: &Self, region: &str) -> u64 {
        let bucket = format!("longshore-{region}");
        let of = |reads: &Self| reads.0.get(&bucket).copied().unwrap_or(0);
        of(self).saturating_sub(of(earlier))
    }
}

/// One artifact's arrival on one node, as the node recorded it.
#[derive(Debug, Clone, Deserialize)]
pub struct Transfer {
    pub service: String,
    pub artifact: String,
    /// Packs that the node lacked.
    pub needed_bytes: u64,
    pub from_peers_bytes: u64,
    pub from_bucket_bytes: u64,
    /// Of the release's files, what came from releases that were there.
    pub reused_bytes: u64,
}

/// The transfers of one artifact for one service, over all nodes.
pub fn transfers(nodes: &[Node], service: &str, artifact: &str) -> Result<Vec<Transfer>> {
    let mut found = Vec::new();
    for node in nodes {
        let path = node.folder.join("transfers.json");
        let Ok(bytes) = fs::read(&path) else { continue };
        let all: Vec<Transfer> = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
        found.extend(all.into_iter().filter(|t| t.service == service && t.artifact == artifact));
    }
    Ok(found)
}
