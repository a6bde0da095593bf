//! Earlier artifacts of the same name: what they have need not be uploaded again.
//!
//! They only save work. One that cannot be read, or is not what it says it is, is left out.

use std::collections::HashMap;

use bytes::Bytes;
use longshore_artifact::{ArtifactRoot, Bases, Index};
use longshore_schemas::{ArtifactId, PackId, http::BaseArtifact};

use crate::packs;

/// Earlier artifacts that are looked at.
const BASES_MAX: usize = 3;
/// Packed manifest and layout of one base, in bytes; a larger one costs more than it saves.
const PACKED_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// A root, and the packs of its manifest and layout.
type Packed = (ArtifactRoot, HashMap<PackId, Bytes>);
type Reason = Box<dyn std::error::Error + Send + Sync>;

pub(crate) async fn load(http: &reqwest::Client, bases: &[BaseArtifact]) -> Bases {
    let mut loaded = Bases::default();
    for base in bases.iter().take(BASES_MAX) {
        let artifact = base.artifact;
        let (root, packs) = match load_one(http, base).await {
            Ok(packed) => packed,
            Err(error) => {
                unusable(artifact, &*error);
                continue;
            }
        };
        // Adding verifies every byte, and takes long for a large artifact. One that is wrong adds nothing.
        let added = tokio::task::spawn_blocking(move || {
            if let Err(error) = loaded.add(&root, &packs) {
                unusable(artifact, &error);
            }
            loaded
        });
        loaded = added.await.unwrap_or_default();
    }
    loaded
}

fn unusable(artifact: ArtifactId, error: &(dyn std::error::Error + 'static)) {
    let cause = error.source().map(ToString::to_string);
    tracing::warn!(%artifact, %error, cause, "an earlier artifact cannot be used as a base");
}

async fn load_one(http: &reqwest::Client, base: &BaseArtifact) -> Result<Packed, Reason> {
    let root = ArtifactRoot::from_json(&base.artifact, &serde_json::to_vec(&base.root)?)?;
    let packed: u64 = Index::packs(&root).map(|pack| pack.bytes).sum();
    if packed > PACKED_BYTES_MAX {
        return Err(format!("its manifest and layout have {packed} bytes").into());
    }
    let mut packs = HashMap::new();
    for pack in Index::packs(&root) {
        let url = base.packs.iter().find(|known| known.pack == pack.pack).ok_or("the server gave no URL for a pack")?;
        packs.insert(pack.pack, packs::get(http, &url.url, pack).await?);
    }
    Ok((root, packs))
}
