//! `GET /v1/artifacts/{artifact}/files`: what a tree holds; and for programs that put trees together themselves, as `longshore
//! artifact get` does, its root and where its packs can be read.

use std::time::Duration;

use axum::{Json as Answered, extract::State};
use longshore_artifact::{ArtifactRoot, Entry, pack_key};
use longshore_schemas::{
    ArtifactId,
    envelope::Envelope,
    http::{
        FileKind, FileView, FilesQuery, FilesView, PAGE_ITEMS_MAX, PackUrl, PacksAnswer, PacksBody, Page, UPLOADS_MAX,
    },
};

use crate::{
    extract::{App, Json, Params, Query},
    indexes,
    limits::{UPLOADS, above},
    problem::{Answer, Failure},
    reads::{check_limit, known_artifact},
};

/// How long the download of a pack may wait to begin.
const PACK_URL_VALID: Duration = Duration::from_secs(5 * 60);

/// `GET /v1/artifacts/{artifact}/files`
pub(crate) async fn list(
    State(shared): App,
    Params((artifact,)): Params<(ArtifactId,)>,
    Query(query): Query<FilesQuery>,
) -> Answer<Answered<FilesView>> {
    check_limit(query.limit)?;
    let known = known_artifact(&shared, &artifact)?;
    let index = shared.indexes.get(&shared, &artifact).await?;
    let under = query.under.as_deref().unwrap_or_default().trim_end_matches('/');
    let entries = index.manifest.under(under);
    if entries.is_empty() {
        return Err(no_path(&artifact, under));
    }
    let after = query.after.as_deref().unwrap_or_default();
    let first = entries.partition_point(|entry| entry.path().as_bytes() <= after.as_bytes());
    let limit = query.limit.unwrap_or(PAGE_ITEMS_MAX) as usize;
    let items: Vec<_> = entries[first..].iter().take(limit).map(view).collect();
    let is_more = entries.len() > first + items.len();
    let next = items.last().filter(|_| is_more).map(|last| last.path.clone());
    Ok(Answered(FilesView { artifact, name: known.summary.name, page: Page { items, next } }))
}

pub(crate) fn no_path(artifact: &ArtifactId, path: &str) -> Failure {
    let artifact = artifact.short();
    Failure::not_found(format!(
        "{artifact} has nothing at {path:?}; GET /v1/artifacts/{artifact}…/files lists what it has"
    ))
}

fn view(entry: &Entry) -> FileView {
    let path = entry.path().to_owned();
    match entry {
        Entry::File(file) => {
            let mode = Some(format!("{:03o}", file.mode));
            FileView { path, kind: FileKind::File, mode, size_bytes: file.bytes, target: None }
        }
        Entry::Link { target, .. } => {
            let target = Some(target.to_string());
            FileView { path, kind: FileKind::Link, mode: None, size_bytes: 0, target }
        }
        Entry::Directory { .. } => {
            FileView { path, kind: FileKind::Directory, mode: None, size_bytes: 0, target: None }
        }
    }
}

/// `GET /v1/artifacts/{artifact}/root`
pub(crate) async fn root(
    State(shared): App,
    Params((artifact,)): Params<(ArtifactId,)>,
) -> Answer<Answered<ArtifactRoot>> {
    known_artifact(&shared, &artifact)?;
    indexes::root(&shared, &artifact).await.map(Answered)
}

/// `GET /v1/artifacts/{artifact}/provenance`
pub(crate) async fn provenance(
    State(shared): App,
    Params((artifact,)): Params<(ArtifactId,)>,
) -> Answer<Answered<Envelope>> {
    known_artifact(&shared, &artifact)?;
    let none = || Failure::not_found(format!("{artifact} was published without provenance: build it again"));
    indexes::root(&shared, &artifact).await?.provenance.map(Answered).ok_or_else(none)
}

/// `POST /v1/artifacts/{artifact}/packs`
pub(crate) async fn packs(
    State(shared): App,
    Params((artifact,)): Params<(ArtifactId,)>,
    Json(body): Json<PacksBody>,
) -> Answer<Answered<PacksAnswer>> {
    known_artifact(&shared, &artifact)?;
    if body.packs.len() > UPLOADS_MAX {
        return Err(above(&UPLOADS, format_args!("packs: name at most {UPLOADS_MAX} at a time")));
    }
    // Only what the root names: nothing else of the bucket can be read this way.
    let root = indexes::root(&shared, &artifact).await?;
    let mut packs = Vec::with_capacity(body.packs.len());
    for pack in body.packs {
        if !root.packs.iter().chain(&root.manifest).chain(&root.layout).any(|known| known.pack == pack) {
            return Err(Failure::invalid(format!("packs: {pack} is none of {artifact}: GET …/root names its packs")));
        }
        let url = shared.bucket.presign_get(&pack_key(&pack), PACK_URL_VALID).await?.url;
        packs.push(PackUrl { pack, url });
    }
    Ok(Answered(PacksAnswer { packs }))
}
