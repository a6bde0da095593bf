//! The root of a patch: the JSON object that says what it makes, of what, and in which packs it lies.

use longshore_schemas::{ArtifactId, PackId};
use serde::{Deserialize, Serialize};

use crate::{Error, PACK_BYTES_MAX, PackRef, ROOT_BYTES_MAX, manifest::REFERENCES_MAX};

const PATCH_PREFIX: &str = "patches/";

/// The key of a patch's root: `patches/<artifact>/<base>.json`.
pub fn patch_key(artifact: &ArtifactId, base: &ArtifactId) -> String {
    format!("{PATCH_PREFIX}{artifact}/{base}.json")
}

/// Some of the missing chunks, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchGroup {
    /// Missing chunks before it that the patch does not make: they come from their packs.
    pub skipped: u32,
    pub chunks: u32,
    /// The length of its frame. Frames lie one after the other in the packs, none in two of them.
    pub bytes: u64,
}

/// What a patch consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchRoot {
    pub artifact: ArtifactId,
    /// What must be installed.
    pub base: ArtifactId,
    /// The length of the first frame, which is the manifest; none if that is to be had from its packs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<u64>,
    pub groups: Vec<PatchGroup>,
    pub packs: Vec<PackRef>,
}

/// Where a frame lies: an index into the packs, and where it begins there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) pack: usize,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl PatchRoot {
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a root holds nothing that JSON cannot express")
    }

    /// Reads the root of the patch from this base to this artifact, and checks that it is within the limits.
    pub fn from_json(artifact: &ArtifactId, base: &ArtifactId, json: &[u8]) -> Result<Self, Error> {
        if json.len() > ROOT_BYTES_MAX {
            return Err(malformed(format!("its root has {} bytes, more than {ROOT_BYTES_MAX}", json.len())));
        }
        let root: Self = serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))?;
        if (root.artifact, root.base) != (*artifact, *base) {
            return Err(malformed(format!(
                "it is from {} to {}, not from {base} to {artifact}",
                root.base, root.artifact
            )));
        }
        root.frames()?;
        Ok(root)
    }

    /// Where the manifest lies, if it is there, and then the groups. All is within the packs, and nothing is left over.
    pub(super) fn frames(&self) -> Result<Vec<Frame>, Error> {
        if let Some(pack) = self.packs.iter().find(|pack| pack.bytes == 0 || pack.bytes > PACK_BYTES_MAX as u64) {
            return Err(malformed(format!("pack {} of {} bytes", pack.pack, pack.bytes)));
        }
        let chunks: u64 = self.groups.iter().map(|group| u64::from(group.skipped) + u64::from(group.chunks)).sum();
        if chunks > REFERENCES_MAX as u64 || self.groups.iter().any(|group| group.chunks == 0) {
            return Err(malformed(format!("groups of {chunks} chunks, or one of none")));
        }
        let (mut pack, mut offset) = (0, 0);
        let mut frames = Vec::with_capacity(self.groups.len() + 1);
        for bytes in self.manifest.iter().chain(self.groups.iter().map(|group| &group.bytes)) {
            if self.packs.get(pack).is_some_and(|pack| pack.bytes == offset) {
                (pack, offset) = (pack + 1, 0);
            }
            let end = offset.checked_add(*bytes).filter(|_| *bytes > 0);
            let end = end.filter(|end| self.packs.get(pack).is_some_and(|pack| *end <= pack.bytes));
            let end = end.ok_or_else(|| malformed("a frame lies outside the packs"))?;
            frames.push(Frame { pack, offset, bytes: *bytes });
            offset = end;
        }
        let ended = self.packs.get(pack).map_or(0, |pack| pack.bytes) == offset;
        if !ended || pack + 1 < self.packs.len() {
            return Err(malformed("its packs hold more than its frames"));
        }
        Ok(frames)
    }
}

pub(super) fn malformed(reason: impl Into<String>) -> Error {
    Error::malformed("patch", reason)
}

/// The pack of this name, if these are its bytes.
pub(super) fn named(bytes: &[u8]) -> PackRef {
    PackRef { pack: PackId::of(bytes), bytes: bytes.len() as u64 }
}
