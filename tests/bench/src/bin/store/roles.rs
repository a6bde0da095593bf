//! What the child processes do: serve, publish, fetch. Each prints one line.

use std::{
    collections::HashMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use longshore_artifact::{
    ArtifactRoot, Base, DirPacks, Index, Need, PACK_BYTES_MAX, PackRef, PackSink, ROOT_BYTES_MAX, SinkError, assemble,
    load_installed, pack_key, root_key, save_manifest, save_pack,
};
use longshore_bench::{Usage, s3};
use longshore_s3::Bucket;
use longshore_schemas::{ArtifactId, PackId};
use serde::{Deserialize, Serialize};

/// Packs that a fetcher asks for at once.
const DOWNLOADS: usize = 4;

/// What a publisher tells.
#[derive(Serialize, Deserialize)]
pub(crate) struct PublishedBy {
    pub(crate) artifact: String,
    pub(crate) uploaded_bytes: u64,
    pub(crate) wall_seconds: f64,
    pub(crate) usage: Usage,
}

/// What a fetcher tells.
#[derive(Serialize, Deserialize)]
pub(crate) struct Fetched {
    pub(crate) fetched_bytes: u64,
    pub(crate) wall_seconds: f64,
    pub(crate) usage: Usage,
}

struct Uploads(Bucket);

#[async_trait::async_trait]
impl PackSink for Uploads {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        self.0.put_if_absent(&pack_key(&pack), bytes).await?;
        Ok(())
    }
}

#[tokio::main]
pub(crate) async fn serve(root: PathBuf) -> Result<()> {
    let server = s3::serve(root).await?;
    println!("{}", server.endpoint());
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    server.shutdown().await;
    Ok(())
}

#[tokio::main]
pub(crate) async fn publish(endpoint: &str, source: &Path, base: Option<&str>) -> Result<()> {
    let begun = Instant::now();
    let bucket = s3::bucket(endpoint).await?;
    let mut bases = Vec::new();
    if let Some(base) = base {
        let index = index(&bucket, base.parse()?).await?;
        bases.push(Base::new(&index));
    }
    let published = longshore_artifact::publish(source, &bases, Arc::new(Uploads(bucket.clone()))).await?;
    let artifact = published.root.artifact;
    bucket.put(&root_key(&artifact), published.root.to_json().into()).await?;
    tell(&PublishedBy {
        artifact: artifact.to_string(),
        uploaded_bytes: published.new_bytes,
        wall_seconds: begun.elapsed().as_secs_f64(),
        usage: Usage::of_this_process().context("cannot read /proc/self")?,
    })
}

async fn index(bucket: &Bucket, artifact: ArtifactId) -> Result<Index> {
    let json = bucket.get(&root_key(&artifact), ROOT_BYTES_MAX as u64).await?;
    let root = ArtifactRoot::from_json(&artifact, &json)?;
    let mut packs = HashMap::new();
    for pack in Index::packs(&root) {
        packs.insert(pack.pack, bucket.get(&pack_key(&pack.pack), PACK_BYTES_MAX as u64).await?);
    }
    Ok(Index::decode(&root, &packs)?)
}

#[tokio::main]
pub(crate) async fn fetch(endpoint: &str, artifact: &str, dir: &Path, installed: Option<&str>) -> Result<()> {
    let begun = Instant::now();
    let bucket = s3::bucket(endpoint).await?;
    let (packs, releases) = (dir.join("packs"), dir.join("releases"));
    fs::create_dir_all(&packs)?;
    fs::create_dir_all(&releases)?;
    let index = index(&bucket, artifact.parse()?).await?;
    let installed = installed.map(|id| anyhow::Ok(load_installed(&releases, &id.parse()?)?)).transpose()?;
    let installed: Vec<_> = installed.into_iter().collect();
    let need = Need::compute(&index, &installed);
    let downloads = stream::iter(need.packs.clone()).map(|pack| download(bucket.clone(), pack, packs.clone()));
    downloads.buffer_unordered(DOWNLOADS).try_collect::<Vec<()>>().await?;
    let index_bytes: u64 = Index::packs(&index.root).map(|pack| pack.bytes).sum();
    let fetched_bytes = index_bytes + need.pack_bytes;
    let artifact = artifact.to_owned();
    tokio::task::spawn_blocking(move || -> Result<()> {
        assemble(&index, &need, &installed, &DirPacks::new(&packs), &releases.join(artifact))?;
        Ok(save_manifest(&releases, &index.manifest)?)
    })
    .await??;
    tell(&Fetched {
        fetched_bytes,
        wall_seconds: begun.elapsed().as_secs_f64(),
        usage: Usage::of_this_process().context("cannot read /proc/self")?,
    })
}

async fn download(bucket: Bucket, pack: PackRef, dir: PathBuf) -> Result<()> {
    let bytes = bucket.get(&pack_key(&pack.pack), PACK_BYTES_MAX as u64).await?;
    tokio::task::spawn_blocking(move || save_pack(&dir, &pack.pack, &bytes)).await??;
    Ok(())
}

fn tell(result: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}
