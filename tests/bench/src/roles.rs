//! The roles of benchmarks that publish and fetch, each a process of its own, so that CPU time and memory are those of one role
//! alone: an S3 server, a publisher, a fetcher. The parent starts them from its own program; each prints one line.
#![allow(clippy::print_stdout, reason = "the children tell their results on standard output")]

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Subcommand;
use futures::{StreamExt, TryStreamExt, stream};
use longshore_artifact::{
    ArtifactRoot, Bases, DirPacks, Index, Need, PACK_BYTES_MAX, PackRef, PackSink, ROOT_BYTES_MAX, SinkError, assemble,
    load_installed, pack_key, root_key, save_manifest, save_pack,
};
use longshore_s3::Bucket;
use longshore_schemas::{ArtifactId, PackId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Usage, s3};

/// What a child process does. A benchmark has it as its subcommand.
#[derive(Subcommand)]
pub enum Role {
    #[command(hide = true)]
    Serve { root: PathBuf },
    #[command(hide = true)]
    Publish { endpoint: String, bucket: String, source: PathBuf, base: Option<String> },
    #[command(hide = true)]
    Fetch { endpoint: String, bucket: String, artifact: String, dir: PathBuf, installed: Option<String> },
}

impl Role {
    /// Plays it in this process, to its end.
    pub fn play(&self) -> Result<()> {
        match self {
            Self::Serve { root } => serve(root.clone()),
            Self::Publish { endpoint, bucket, source, base } => publish(endpoint, bucket, source, base.as_deref()),
            Self::Fetch { endpoint, bucket, artifact, dir, installed } => {
                fetch(endpoint, bucket, artifact, dir, installed.as_deref())
            }
        }
    }
}

/// Packs that a fetcher asks for at once.
const DOWNLOADS: usize = 4;
const URL_VALID: Duration = Duration::from_secs(300);

/// What a publisher tells.
#[derive(Serialize, Deserialize)]
pub struct PublishedBy {
    pub artifact: String,
    pub size_bytes: u64,
    pub files: u64,
    pub uploaded_bytes: u64,
    pub wall_seconds: f64,
    pub usage: Usage,
}

/// What a fetcher tells.
#[derive(Serialize, Deserialize)]
pub struct Fetched {
    pub fetched_bytes: u64,
    /// Different chunks, uncompressed.
    pub unique_bytes: u64,
    pub wall_seconds: f64,
    pub usage: Usage,
}

/// As a worker does it: by presigned PUTs.
struct Uploads {
    bucket: Bucket,
    http: reqwest::Client,
}

#[async_trait::async_trait]
impl PackSink for Uploads {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        let put = self.bucket.presign_put(&pack_key(&pack), URL_VALID, bytes.len() as u64).await?;
        let mut request = self.http.put(&put.url).body(bytes);
        for (name, value) in &put.headers {
            if !matches!(&**name, "host" | "content-length") {
                request = request.header(name, value);
            }
        }
        let status = request.send().await?.status();
        if status.is_success() || status == reqwest::StatusCode::PRECONDITION_FAILED {
            return Ok(());
        }
        Err(format!("the S3 server answered {status}").into())
    }
}

#[tokio::main]
async fn serve(root: PathBuf) -> Result<()> {
    let server = s3::serve(root).await?;
    println!("{}", server.endpoint());
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    server.shutdown().await;
    Ok(())
}

#[tokio::main]
async fn publish(endpoint: &str, bucket: &str, source: &Path, base: Option<&str>) -> Result<()> {
    let begun = Instant::now();
    let bucket = s3::bucket_named(endpoint, bucket).await?;
    let mut bases = Bases::default();
    if let Some(base) = base {
        let (root, packs) = index_packs(&bucket, base.parse()?).await?;
        bases.add(&root, &packs)?;
    }
    let published =
        longshore_artifact::publish(source, bases, Arc::new(Uploads { bucket: bucket.clone(), http: http()? })).await?;
    let artifact = published.root.artifact;
    bucket.put(&root_key(&artifact), published.root.to_json().into()).await?;
    tell(&PublishedBy {
        artifact: artifact.to_string(),
        size_bytes: published.root.size_bytes,
        files: published.root.files,
        uploaded_bytes: published.new_bytes,
        wall_seconds: begun.elapsed().as_secs_f64(),
        usage: Usage::of_this_process().context("cannot read /proc/self")?,
    })
}

fn http() -> Result<reqwest::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().build()?)
}

async fn root(bucket: &Bucket, artifact: ArtifactId) -> Result<ArtifactRoot> {
    let json = bucket.get(&root_key(&artifact), ROOT_BYTES_MAX as u64).await?;
    Ok(ArtifactRoot::from_json(&artifact, &json)?)
}

/// An artifact's root, and the packs of its manifest and layout.
pub async fn index_packs(bucket: &Bucket, artifact: ArtifactId) -> Result<(ArtifactRoot, HashMap<PackId, Bytes>)> {
    let root = root(bucket, artifact).await?;
    let mut packs = HashMap::new();
    for pack in Index::packs(&root) {
        packs.insert(pack.pack, bucket.get(&pack_key(&pack.pack), PACK_BYTES_MAX as u64).await?);
    }
    Ok((root, packs))
}

#[tokio::main]
async fn fetch(endpoint: &str, bucket: &str, artifact: &str, dir: &Path, installed: Option<&str>) -> Result<()> {
    let begun = Instant::now();
    let bucket = s3::bucket_named(endpoint, bucket).await?;
    let (packs, releases) = (dir.join("packs"), dir.join("releases"));
    fs::create_dir_all(&packs)?;
    fs::create_dir_all(&releases)?;
    let root = root(&bucket, artifact.parse()?).await?;
    // As a node does, it asks for no pack that it has.
    let mut index_packs = Vec::from_iter(Index::packs(&root).copied());
    index_packs.retain(|pack| !packs.join(pack.pack.to_string()).exists());
    let mut fetched_bytes: u64 = index_packs.iter().map(|pack| pack.bytes).sum();
    download_all(&bucket, index_packs, &packs).await?;
    let index = Index::load(&root, &DirPacks::new(&packs))?;
    let installed = installed.map(|id| anyhow::Ok(load_installed(&releases, &id.parse()?)?)).transpose()?;
    let installed: Vec<_> = installed.into_iter().collect();
    let need = Need::compute(&index, &installed);
    download_all(&bucket, need.packs.clone(), &packs).await?;
    fetched_bytes += need.pack_bytes;
    let unique_bytes = index.manifest.chunks().iter().map(|chunk| u64::from(chunk.bytes)).sum();
    let artifact = artifact.to_owned();
    tokio::task::spawn_blocking(move || -> Result<()> {
        assemble(&index, &need, &installed, &DirPacks::new(&packs), &releases.join(artifact))?;
        Ok(save_manifest(&releases, &index.manifest)?)
    })
    .await??;
    tell(&Fetched {
        fetched_bytes,
        unique_bytes,
        wall_seconds: begun.elapsed().as_secs_f64(),
        usage: Usage::of_this_process().context("cannot read /proc/self")?,
    })
}

async fn download_all(bucket: &Bucket, wanted: Vec<PackRef>, dir: &Path) -> Result<()> {
    let downloads = stream::iter(wanted).map(|pack| download(bucket.clone(), pack, dir.to_owned()));
    downloads.buffer_unordered(DOWNLOADS).try_collect().await
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

pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the working directory's path is not UTF-8")
}

fn this_program(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).stdout(Stdio::piped());
    Ok(command)
}

/// Runs a role to its end and reads its result, the last line that it prints.
pub fn child<T: DeserializeOwned>(arguments: &[&str]) -> Result<T> {
    let output = this_program(arguments)?.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} ended with {}", arguments[0], output.status);
    let text = String::from_utf8(output.stdout)?;
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .with_context(|| format!("{} printed {text:?}", arguments[0]))
}

/// The S3 server's process. It ends when its standard input does, so also when this process dies.
pub struct Server {
    pub endpoint: String,
    child: Child,
}

impl Server {
    pub fn start(root: &Path) -> Result<Self> {
        let mut child = this_program(&["serve", text(root)?])?.stdin(Stdio::piped()).spawn()?;
        let mut endpoint = String::new();
        let stdout = child.stdout.take().context("the server's output is piped")?;
        BufReader::new(stdout).read_line(&mut endpoint)?;
        ensure!(endpoint.starts_with("http"), "the S3 server did not start");
        Ok(Self { endpoint: endpoint.trim().to_owned(), child })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Nothing can be done about a child that cannot be waited for.
        let _ = self.child.wait();
    }
}
