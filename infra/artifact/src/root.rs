//! The root: the one small JSON object from which everything of an artifact is found, and where things lie in a bucket.
//!
//! The root is not trusted. Whoever reads it checks the manifest against the artifact's name and every chunk against the
//! manifest; a wrong root costs time, never wrong bytes.

use std::collections::BTreeSet;

use longshore_schemas::{ArtifactId, PackId, envelope::Envelope};
use serde::{Deserialize, Serialize};

use crate::{
    Error, INDEX_BYTES_MAX, PACK_BYTES_MAX,
    manifest::{ENTRIES_MAX, REFERENCES_MAX},
};

/// Where roots lie in a bucket.
pub const ROOT_PREFIX: &str = "artifacts/";
/// Where packs lie in a bucket.
pub const PACK_PREFIX: &str = "packs/";
/// Largest root, in bytes: enough for 100,000 packs, 400 GiB.
pub const ROOT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The key of an artifact's root: `artifacts/<artifact>.json`.
pub fn root_key(artifact: &ArtifactId) -> String {
    format!("{ROOT_PREFIX}{artifact}.json")
}

/// The key of a pack: `packs/<pack>`.
pub fn pack_key(pack: &PackId) -> String {
    format!("{PACK_PREFIX}{pack}")
}

/// A pack and how large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackRef {
    pub pack: PackId,
    pub bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What an artifact consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRoot {
    pub artifact: ArtifactId,
    /// Sum of the sizes of all files.
    pub size_bytes: u64,
    /// Regular files, symbolic links and empty directories together.
    pub files: u64,
    /// Different chunks.
    pub chunks: u64,
    /// The manifest, compressed and cut into packs, in order.
    pub manifest: Vec<PackRef>,
    /// So many of these packs come first that are an earlier artifact's manifest, which the other ones are compressed by: its key.
    /// Whoever has that one needs only what has changed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub manifest_key: u32,
    /// The layout, likewise.
    pub layout: Vec<PackRef>,
    /// The packs that hold the chunks, in the layout's order.
    pub packs: Vec<PackRef>,
    /// Where the artifact comes from, signed. It travels with the root, so whoever can use an artifact can ask whose it is; and it is
    /// worth what its verification says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Envelope>,
}

impl ArtifactRoot {
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a root holds nothing that JSON cannot express")
    }

    /// Reads a root and checks that it is the one of this artifact and within the limits.
    pub fn from_json(artifact: &ArtifactId, json: &[u8]) -> Result<Self, Error> {
        if json.len() > ROOT_BYTES_MAX {
            return Err(Error::malformed("root", format!("it has {} bytes, more than {ROOT_BYTES_MAX}", json.len())));
        }
        let root: Self = serde_json::from_slice(json).map_err(|error| Error::malformed("root", error.to_string()))?;
        if root.artifact != *artifact {
            return Err(Error::malformed("root", format!("it is the root of {}, not of {artifact}", root.artifact)));
        }
        root.check()?;
        Ok(root)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if let Some(pack) = self.listed().find(|pack| pack.bytes == 0 || pack.bytes > PACK_BYTES_MAX as u64) {
            return Err(Error::malformed("root", format!("pack {} of {} bytes", pack.pack, pack.bytes)));
        }
        if self.files > ENTRIES_MAX as u64 || self.chunks > REFERENCES_MAX as u64 {
            let says = format!(
                "{} entries and {} chunks; {ENTRIES_MAX} and {REFERENCES_MAX} are possible",
                self.files, self.chunks
            );
            return Err(Error::malformed("root", says));
        }
        if self.manifest_key > 0 && self.manifest_key as usize >= self.manifest.len() {
            return Err(Error::malformed("root", "its manifest is a key and nothing else"));
        }
        for (what, packs) in [("manifest", &self.manifest), ("layout", &self.layout)] {
            let bytes: u64 = packs.iter().map(|pack| pack.bytes).sum();
            if bytes > INDEX_BYTES_MAX {
                return Err(Error::malformed(
                    "root",
                    format!("its {what} has {bytes} bytes; {INDEX_BYTES_MAX} are possible"),
                ));
            }
        }
        Ok(())
    }

    /// Every pack that a replica must hold, each once.
    pub fn all_packs(&self) -> Vec<PackRef> {
        self.listed().copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The packs of the manifest's key, and those of the manifest itself.
    pub(crate) fn manifest_parts(&self) -> (&[PackRef], &[PackRef]) {
        self.manifest.split_at(self.manifest.len().min(self.manifest_key as usize))
    }

    fn listed(&self) -> impl Iterator<Item = &PackRef> {
        self.manifest.iter().chain(&self.layout).chain(&self.packs)
    }
}
