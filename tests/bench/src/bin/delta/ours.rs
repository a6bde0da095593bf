//! A pair through the real pipeline: published, fetched by a machine that has the old release, and patched.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Result, ensure};
use longshore_artifact::{
    DirPacks, Index, Need, PackRef, apply, assemble_patched, load_installed, make_patch, patched_manifest,
};
use longshore_bench::{
    roles::{Fetched, PublishedBy, child, index_packs, text},
    s3, trees,
};
use longshore_s3::Bucket;

use crate::pairs::Pair;

/// Bytes of one pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ours {
    pub(crate) full: u64,
    /// As they are stored.
    pub(crate) missing_chunks: u64,
    pub(crate) uploaded: u64,
    pub(crate) replicated: u64,
    pub(crate) needed: u64,
    pub(crate) patched: u64,
    /// Of what is needed, manifest, layout and root.
    pub(crate) index: u64,
}

pub(crate) fn measure(pair: &Pair, endpoint: &str, dir: &Path) -> Result<Ours> {
    fs::create_dir_all(dir)?;
    let bucket_name = format!("pair-{}", pair.name);
    let machine = dir.join("machine");
    let old: PublishedBy = child(&["publish", endpoint, &bucket_name, text(&pair.old)?])?;
    let _: Fetched = child(&["fetch", endpoint, &bucket_name, &old.artifact, text(&machine)?])?;
    let new: PublishedBy = child(&["publish", endpoint, &bucket_name, text(&pair.new)?, &old.artifact])?;
    let fetched: Fetched = child(&["fetch", endpoint, &bucket_name, &new.artifact, text(&machine)?, &old.artifact])?;
    trees::compare(&pair.new, &machine.join("releases").join(&new.artifact))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (base, index) = runtime.block_on(async {
        let bucket = s3::bucket_named(endpoint, &bucket_name).await?;
        anyhow::Ok((index(&bucket, &old.artifact).await?, index(&bucket, &new.artifact).await?))
    })?;
    let root_bytes = index.root.to_json().len() as u64;
    let (before, packs) = (base.root.all_packs(), index.root.all_packs());
    let before: BTreeSet<_> = before.iter().map(|pack| pack.pack).collect();
    let has: BTreeSet<_> = base.manifest.chunks().iter().map(|chunk| *chunk.id.as_bytes()).collect();
    let places = index.manifest.chunks().iter().zip(index.layout.places());
    let missing = places.filter(|(chunk, _)| !has.contains(chunk.id.as_bytes()));
    let index_bytes = sum(Index::packs(&index.root).filter(|pack| !before.contains(&pack.pack)));
    Ok(Ours {
        full: new.size_bytes,
        missing_chunks: missing.map(|(_, place)| u64::from(place.stored)).sum(),
        uploaded: new.uploaded_bytes + root_bytes,
        // What a region's bucket lacks that has the old release.
        replicated: sum(packs.iter().filter(|pack| !before.contains(&pack.pack))) + root_bytes,
        needed: fetched.fetched_bytes + root_bytes,
        patched: patched(pair, &base, &index, dir)?,
        index: index_bytes + root_bytes,
    })
}

fn sum<'a>(packs: impl Iterator<Item = &'a PackRef>) -> u64 {
    packs.map(|pack| pack.bytes).sum()
}

async fn index(bucket: &Bucket, artifact: &str) -> Result<Index> {
    let (root, packs) = index_packs(bucket, artifact.parse()?).await?;
    Ok(Index::decode(&root, &packs)?)
}

/// Makes the patch, applies it where the old release is installed, and says what the machine had to fetch for that: both roots, the
/// patch, and what the patch leaves to packs.
fn patched(pair: &Pair, base: &Index, index: &Index, dir: &Path) -> Result<u64> {
    let (packs, releases) = (dir.join("machine/packs"), dir.join("machine/releases"));
    let patch = dir.join("patch");
    fs::create_dir(&patch)?;
    let made = make_patch(index, base, &DirPacks::new(&packs), |pack, bytes| {
        Ok(fs::write(patch.join(pack.to_string()), &bytes)?)
    })?;
    let patch = DirPacks::new(&patch);
    let installed = [load_installed(&releases, &base.root.artifact)?];
    let manifest = patched_manifest(&made.root, &installed[0].manifest, &patch)?;
    ensure!(manifest.as_ref().is_none_or(|manifest| *manifest == index.manifest), "the patch has another manifest");
    let done = apply(&made.root, &index.manifest, &installed[0], &patch, &dir.join("scratch"))?;
    let need = Need::compute_patched(index, &installed, Some(&done));
    let mut bytes = index.root.to_json().len() + made.root.to_json().len();
    bytes += usize::try_from(sum(made.root.packs.iter()) + need.pack_bytes)?;
    if manifest.is_none() {
        bytes += usize::try_from(sum(index.root.manifest.iter()))?;
    }
    // A layout is of use to whoever needs a pack.
    let index = if manifest.is_some() && need.packs.is_empty() {
        Index::without_layout(&index.root, index.manifest.clone())?
    } else {
        bytes += usize::try_from(sum(index.root.layout.iter()))?;
        index.clone()
    };
    let target = dir.join("assembled");
    assemble_patched(&index, &need, &installed, Some(&done), &DirPacks::new(&packs), &target)?;
    trees::compare(&pair.new, &target)?;
    Ok(bytes as u64)
}
