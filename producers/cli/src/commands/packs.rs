//! Packs, fetched from the main bucket by presigned GETs: the API is asked where they are, and no byte of them goes through it.
//!
//! ```text
//! packs ─▶ 64 at a time: POST …/packs ─▶ URLs ─▶ 8 GETs at once ─▶ verified ─▶ kept by the caller
//! ```
//!
//! A URL that has expired, and a GET that failed or brought other bytes, is asked for again, for a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use longshore_artifact::{ArtifactRoot, Index, PackRef};
use longshore_schemas::{
    ArtifactId, PackId,
    http::{PacksAnswer, PacksBody, UPLOADS_MAX},
};
use longshore_service::retry::Backoff;
use longshore_worker::{client::Client, packs::get};
use tokio::{task::JoinSet, time::Instant};

use super::Context;
use crate::error::Error;

/// GETs at the same time, each of up to 8 MiB.
const AT_ONCE: usize = 8;
/// How long one pack is tried, over all its failures.
const PATIENCE: Duration = Duration::from_secs(120);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What to do with a pack that was fetched and verified.
pub(super) type Keep = Arc<dyn Fn(&PackRef, Bytes) -> anyhow::Result<()> + Send + Sync>;

impl Context {
    pub(super) async fn root(&self, artifact: &ArtifactId) -> Result<ArtifactRoot, Error> {
        let root: serde_json::Value = self.client.get(&["artifacts", &artifact.to_string(), "root"]).fetch().await?;
        let root = ArtifactRoot::from_json(artifact, root.to_string().as_bytes());
        root.map_err(|error| Error::Other(anyhow!("the server has no usable root of {artifact}: {error}")))
    }

    /// What an artifact consists of, verified against its name.
    pub(super) async fn index(&self, artifact: &ArtifactId) -> Result<Index, Error> {
        let root = self.root(artifact).await?;
        let packs = Arc::new(Mutex::new(HashMap::new()));
        let kept = packs.clone();
        let keep = move |pack: &PackRef, bytes: Bytes| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).insert(pack.pack, bytes);
            Ok::<_, anyhow::Error>(())
        };
        self.packs(artifact, Index::packs(&root).copied().collect(), Arc::new(keep)).await?;
        let decoded = tokio::task::spawn_blocking(move || {
            Index::decode(&root, &packs.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let index = decoded.await.map_err(|error| Error::Other(error.into()))?;
        index.map_err(|error| Error::Other(anyhow!("the server has {artifact} damaged: {error}")))
    }

    /// Fetches packs of an artifact and hands each to `keep`, on a thread that may block.
    pub(super) async fn packs(&self, artifact: &ArtifactId, packs: Vec<PackRef>, keep: Keep) -> Result<(), Error> {
        let mut running = JoinSet::new();
        for batch in packs.chunks(UPLOADS_MAX) {
            let urls = urls(&self.client, artifact, batch.iter().map(|pack| pack.pack).collect()).await?;
            for (pack, url) in batch.iter().zip(urls) {
                if running.len() == AT_ONCE {
                    ended(running.join_next().await)?;
                }
                let (client, artifact, pack, keep) = (self.client.clone(), *artifact, *pack, keep.clone());
                running.spawn(async move {
                    let bytes = fetch(&client, &artifact, &pack, url).await?;
                    tokio::task::spawn_blocking(move || keep(&pack, bytes)).await?
                });
            }
        }
        while let Some(fetched) = running.join_next().await {
            ended(Some(fetched))?;
        }
        Ok(())
    }
}

fn ended(fetched: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>) -> Result<(), Error> {
    match fetched {
        Some(Ok(result)) => Ok(result?),
        Some(Err(error)) => Err(Error::Other(error.into())),
        None => Ok(()),
    }
}

/// Where these packs can be read, in their order.
async fn urls(client: &Client, artifact: &ArtifactId, packs: Vec<PackId>) -> Result<Vec<String>, Error> {
    let count = packs.len();
    let call = client.post(&["artifacts", &artifact.to_string(), "packs"]).json(&PacksBody { packs });
    let answer: PacksAnswer = call.fetch().await?;
    let urls: Vec<_> = answer.packs.into_iter().map(|pack| pack.url).collect();
    if urls.len() == count { Ok(urls) } else { Err(Error::Other(anyhow!("the server named too few packs"))) }
}

async fn fetch(client: &Client, artifact: &ArtifactId, pack: &PackRef, url: String) -> anyhow::Result<Bytes> {
    let give_up = Instant::now() + PATIENCE;
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut url = Some(url);
    loop {
        match try_fetch(client, artifact, pack, url.take()).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) if Instant::now() >= give_up => {
                return Err(error.context(format!("pack {} cannot be fetched from the bucket", pack.pack)));
            }
            Err(_) => {
                let wait = backoff.next_wait(&mut rand::rng());
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// From where it is said to be; or asks where that is now.
async fn try_fetch(
    client: &Client,
    artifact: &ArtifactId,
    pack: &PackRef,
    url: Option<String>,
) -> anyhow::Result<Bytes> {
    let url = match url {
        Some(url) => url,
        None => urls(client, artifact, vec![pack.pack]).await?.pop().context("the server names no place")?,
    };
    Ok(get(client.plain(), &url, pack).await?)
}
