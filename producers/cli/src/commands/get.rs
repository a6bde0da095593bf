//! `longshore artifact get`: an artifact, or a part of it, as plain files.
//!
//! ```text
//! root ─▶ manifest, layout ─▶ packs that are not there yet ─▶ .NAME.fetch/ ─▶ assemble ─▶ NAME
//! ```
//!
//! What was fetched stays in a hidden folder beside the target until the target is there, wholly: the next run goes on with it. So it
//! takes the space of the files and of their packs for a while.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow};
use longshore_artifact::{DirPacks, Index, Need, PackRef, assemble, save_pack};
use longshore_schemas::ArtifactId;
use serde::Serialize;

use super::Context;
use crate::{args::GetArgs, error::Error, output};

/// What was done, for programs.
#[derive(Serialize)]
struct Got {
    artifact: ArtifactId,
    to: PathBuf,
    files: u64,
    size_bytes: u64,
    fetched_bytes: u64,
    /// Left by a run before.
    there_bytes: u64,
}

pub(super) async fn run(context: &Context, args: &GetArgs) -> Result<(), Error> {
    if args.to.symlink_metadata().is_ok() {
        return Err(Error::Usage(format!("{} exists already: name what is to be made", args.to.display())));
    }
    let artifact = context.find_artifact(&args.artifact.artifact).await?;
    let path = args.path.as_deref().unwrap_or_default().trim_matches('/').to_owned();
    let index = context.index(&artifact).await?;
    let part = index.part(&path).map_err(anyhow::Error::from)?.ok_or_else(|| {
        let short = artifact.short();
        Error::Refused(format!("{short} has nothing at {path:?}; `longshore artifact ls {short}` lists what it has"))
    })?;
    let folder = packs_folder(&args.to, &artifact)?;
    let need = Need::compute(&part, &[]);
    let missing = missing(&folder, &need.packs)?;
    let fetched_bytes: u64 = missing.iter().map(|pack| pack.bytes).sum();
    let save = folder.clone();
    let keep = move |pack: &PackRef, bytes: bytes::Bytes| {
        save_pack(&save, &pack.pack, &bytes).map(drop).map_err(anyhow::Error::from)
    };
    context.packs(&artifact, missing, Arc::new(keep)).await?;
    let got = Got {
        artifact,
        to: args.to.clone(),
        files: part.root.files,
        size_bytes: part.root.size_bytes,
        fetched_bytes,
        there_bytes: need.pack_bytes - fetched_bytes,
    };
    let to = args.to.clone();
    let made = tokio::task::spawn_blocking(move || make(&part, &need, &folder, &path, &to)).await;
    made.map_err(anyhow::Error::from)??;
    context.show(&got, text)
}

fn text(got: &Got) -> String {
    let Got { to, files, size_bytes, fetched_bytes, there_bytes, .. } = got;
    let there = if *there_bytes > 0 { format!(", {} were there", output::size(*there_bytes)) } else { String::new() };
    let (size, fetched) = (output::size(*size_bytes), output::size(*fetched_bytes));
    format!("{}: {size} in {files} entries, verified; {fetched} were fetched{there}", to.display())
}

/// Where packs are kept until all are there: beside the target, and found again by the next run for the same one.
fn packs_folder(to: &Path, artifact: &ArtifactId) -> anyhow::Result<PathBuf> {
    let name = to.file_name().with_context(|| format!("{} names no file or folder", to.display()))?;
    let folder = to.with_file_name(format!(".{}.{}.fetch", name.to_string_lossy(), artifact.short()));
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    Ok(folder)
}

/// A pack under its name was verified before it got it; whether it still is what it was, assembly finds out chunk by chunk.
fn missing(folder: &Path, packs: &[PackRef]) -> anyhow::Result<Vec<PackRef>> {
    let here = DirPacks::new(folder);
    let is_there = |pack: &PackRef| fs::metadata(here.path(&pack.pack)).is_ok_and(|file| file.len() == pack.bytes);
    Ok(packs.iter().filter(|pack| !is_there(pack)).copied().collect())
}

fn make(part: &Index, need: &Need, folder: &Path, path: &str, to: &Path) -> anyhow::Result<()> {
    let packs = DirPacks::new(folder);
    // A part is put together with its folders around it, and then taken out of them.
    let tree = if path.is_empty() { to.to_owned() } else { folder.join("tree") };
    if !path.is_empty() && tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("{} cannot be removed", tree.display()))?;
    }
    if let Err(error) = assemble(part, need, &[], &packs, &tree) {
        use longshore_artifact::Error::{Read, WrongChunk};
        if let Read { pack, .. } | WrongChunk { pack, .. } = &error {
            // So that the next run fetches it anew.
            let _ = fs::remove_file(packs.path(pack));
            return Err(anyhow!("{error}: run the command again, which fetches this pack anew"));
        }
        return Err(error.into());
    }
    if !path.is_empty() {
        let made = tree.join(path);
        fs::rename(&made, to).with_context(|| format!("{} cannot be made", to.display()))?;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(parent).and_then(|parent| parent.sync_all()).context("cannot sync the folder")?;
    }
    fs::remove_dir_all(folder).with_context(|| format!("{} cannot be removed", folder.display()))
}
