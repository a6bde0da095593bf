//! What a machine needs for an artifact: the packs of those chunks that no installed release has.

use std::collections::BTreeSet;

use crate::{Entry, Index, Installed, Manifest, PackRef, Patched};

/// A chunk in a file of an installed release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Index into the installed releases that were asked.
    pub release: u32,
    /// Index into the entries of that release's manifest.
    pub entry: u32,
    pub offset: u64,
}

/// The difference between an artifact and what is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Packs to fetch, in the layout's order.
    pub packs: Vec<PackRef>,
    /// Their size together.
    pub pack_bytes: u64,
    /// Different chunks that an installed release has.
    pub reused_chunks: u64,
    /// Their size, uncompressed.
    pub reused_bytes: u64,
    /// For each chunk of the manifest, where an installed release has it.
    origins: Vec<Option<Origin>>,
}

impl Need {
    /// Looks each chunk up in the installed releases, by their manifests; their files are not read.
    pub fn compute(index: &Index, installed: &[Installed]) -> Self {
        Self::compute_patched(index, installed, None)
    }

    /// The same, where a patch has made some of what is missing.
    pub fn compute_patched(index: &Index, installed: &[Installed], patched: Option<&Patched>) -> Self {
        let chunks = index.manifest.chunks();
        let mut origins = vec![None; chunks.len()];
        for (release, installed) in (0..).zip(installed) {
            find_in(release, installed, &index.manifest, &mut origins);
        }
        let missing = || origins.iter().enumerate().filter(|(_, origin)| origin.is_none()).map(|(at, _)| at);
        let wanted = missing().filter(|at| !patched.is_some_and(|patched| patched.has(*at)));
        let packs: BTreeSet<u32> = wanted.filter_map(|at| Some(index.layout.places().get(at)?.pack)).collect();
        let packs: Vec<PackRef> = packs.into_iter().map(|pack| index.layout.packs()[pack as usize]).collect();
        let total: u64 = chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum();
        let missing_bytes: u64 = missing().map(|at| u64::from(chunks[at].bytes)).sum();
        Self {
            pack_bytes: packs.iter().map(|pack| pack.bytes).sum(),
            packs,
            reused_chunks: (chunks.len() - missing().count()) as u64,
            reused_bytes: total - missing_bytes,
            origins,
        }
    }

    /// Where an installed release has this chunk of the manifest.
    pub fn origin(&self, chunk: usize) -> Option<Origin> {
        self.origins.get(chunk).copied().flatten()
    }
}

fn find_in(release: u32, installed: &Installed, wanted: &Manifest, origins: &mut [Option<Origin>]) {
    let manifest = &installed.manifest;
    for (entry, found) in (0..).zip(manifest.entries()) {
        let Entry::File(file) = found else { continue };
        let mut offset = 0;
        for chunk in manifest.chunks_of(file) {
            let chunk = manifest.chunks()[*chunk as usize];
            if let Some(at) = wanted.table().find(&chunk.id) {
                origins[at].get_or_insert(Origin { release, entry, offset });
            }
            offset += u64::from(chunk.bytes);
        }
    }
}
