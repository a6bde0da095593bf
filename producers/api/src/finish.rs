//! How an attempt ended, checked before it is written: a success counts only with every pack in the bucket, and with a manifest and
//! a layout that everyone can read. What a worker says of them is not believed.
//!
//! What is about to be published is announced first, so that no collector deletes any of it from then on; and what a collector had
//! condemned before that is waited for.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use longshore_artifact::{ArtifactRoot, PackRef, pack_key, root_key};
use longshore_collector::{Publisher, announce, condemned, is_condemned};
use longshore_log::clock;
use longshore_provenance::{Statement, built};
use longshore_schemas::{
    ArtifactId, ArtifactName,
    events::{ArtifactSummary, AttemptFailed, AttemptFinished, AttemptOutcome, AttemptSucceeded, BuildRequest},
    http::{FinishBody, JobStatus, JobView},
};
use serde_json::Value;

use crate::{
    Shared,
    access::AttemptCredential,
    indexes,
    limits::{MESSAGE_BYTES, above},
    problem::{Answer, Failure},
};

/// Packs looked for at the same time.
pub(crate) const HEADS_AT_ONCE: usize = 32;
/// Of the packs that are not there, so many are named.
const MISSING_NAMED: usize = 5;
/// Longest reason for a failure, in bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// The event of this finish. On success every pack and the root are in the main bucket when this returns.
pub(crate) async fn check(
    shared: &Arc<Shared>,
    of: &AttemptCredential,
    job: &JobView,
    body: &FinishBody,
) -> Answer<BuildRequest> {
    let outcome = match body {
        FinishBody::Succeeded { root, new_pack_bytes } => {
            let artifact = succeeded(shared, of, job, root, *new_pack_bytes).await?;
            AttemptOutcome::AttemptSucceeded(AttemptSucceeded { artifact })
        }
        FinishBody::Failed { message, .. } if message.len() > MESSAGE_BYTES_MAX => {
            return Err(above(&MESSAGE_BYTES, format_args!("message: give at most {MESSAGE_BYTES_MAX} bytes")));
        }
        FinishBody::Failed { reason, message } => {
            AttemptOutcome::AttemptFailed(AttemptFailed { reason: *reason, message: message.clone() })
        }
    };
    let AttemptCredential { job, attempt, worker } = of.clone();
    Ok(AttemptFinished { job, attempt, worker, outcome }.into())
}

/// Whether the job ended just so.
pub(crate) fn is_result(view: &JobView, of: &AttemptCredential, body: &FinishBody) -> bool {
    if view.attempt != of.attempt || view.worker.as_ref().is_some_and(|worker| *worker != of.worker) {
        return false;
    }
    match body {
        FinishBody::Succeeded { root, .. } => {
            let published = view.artifact.as_ref().map(|summary| summary.artifact);
            view.status == JobStatus::Succeeded && published.is_some() && published == artifact_of(root)
        }
        FinishBody::Failed { reason, .. } => {
            view.status == JobStatus::Failed && view.failure.as_ref().is_some_and(|failure| failure.reason == *reason)
        }
    }
}

async fn succeeded(
    shared: &Arc<Shared>,
    of: &AttemptCredential,
    job: &JobView,
    root: &Value,
    new_pack_bytes: u64,
) -> Answer<ArtifactSummary> {
    let AttemptCredential { job: id, attempt, worker } = of;
    // That the attempt published the artifact is decided after this, and true whatever is decided.
    let statement =
        |artifact: &ArtifactId| built(artifact, &job.build, (id, *attempt, worker), job.started_at, clock::now());
    let publisher = Publisher::Attempt { job: id.clone(), attempt: *attempt };
    published(shared, &publisher, &job.build.name, root, new_pack_bytes, statement).await
}

/// An artifact whose packs were uploaded, once all of it is there and sound. Its root is in the main bucket when this returns, with
/// what is said of where it comes from.
pub(crate) async fn published(
    shared: &Arc<Shared>,
    publisher: &Publisher,
    name: &ArtifactName,
    root: &Value,
    new_pack_bytes: u64,
    statement: impl FnOnce(&ArtifactId) -> Statement,
) -> Answer<ArtifactSummary> {
    let artifact = artifact_of(root).ok_or_else(|| Failure::invalid("root.artifact: it must name the artifact"))?;
    let root = ArtifactRoot::from_json(&artifact, root.to_string().as_bytes());
    let mut root = root.map_err(|error| Failure::invalid(format!("root: {error}")))?;
    let packs = root.all_packs();
    let pack_bytes = packs.iter().map(|pack| pack.bytes).sum();
    if packs.is_empty() || root.manifest.is_empty() {
        return Err(Failure::invalid("root.manifest: an artifact has at least the pack of its manifest"));
    }
    if new_pack_bytes > pack_bytes {
        return Err(Failure::invalid(format!("new_pack_bytes: all packs together have only {pack_bytes} bytes")));
    }
    let begun = Instant::now();
    announce(&shared.bucket, &publisher.to_string(), &root).await?;
    check_condemned(shared, &root).await?;
    check_packs(shared, &packs).await?;
    indexes::check(shared, &root).await?;
    if begun.elapsed() > shared.announced_lasts / 2 {
        return Err(Failure::unavailable("the main bucket was too slow to say whether all is there: try again"));
    }
    // Whatever the sender says of it: where an artifact comes from is ours to say.
    root.provenance = Some(statement(&artifact).sign(&shared.provenance_key));
    shared.bucket.put(&root_key(&artifact), Bytes::from(root.to_json())).await?;
    Ok(ArtifactSummary {
        artifact,
        name: name.clone(),
        size_bytes: root.size_bytes,
        files: root.files,
        chunks: root.chunks,
        packs: u32::try_from(packs.len()).map_err(|_| Failure::invalid("root.packs: too many"))?,
        pack_bytes,
        new_pack_bytes,
    })
}

/// Whether nothing of it is just being deleted.
async fn check_condemned(shared: &Arc<Shared>, root: &ArtifactRoot) -> Answer<()> {
    let condemned = condemned(&shared.bucket).await.map_err(|error| Failure::unavailable(error.to_string()))?;
    if is_condemned(&condemned, root) {
        let says =
            "some packs of the artifact are just being collected, since nothing needed them until now: try again soon";
        return Err(Failure::unavailable(says));
    }
    Ok(())
}

/// Whether every pack is in the main bucket with its size.
async fn check_packs(shared: &Arc<Shared>, packs: &[PackRef]) -> Answer<()> {
    let heads = packs.iter().copied().map(|pack| async move {
        let found = shared.bucket.head(&pack_key(&pack.pack)).await?;
        Ok::<_, longshore_s3::Error>(match found {
            Some(bytes) if bytes == pack.bytes => None,
            Some(bytes) => Some(format!("{} has {bytes} bytes there and {} in the root", pack.pack, pack.bytes)),
            None => Some(format!("{} is not there", pack.pack)),
        })
    });
    let mut heads = stream::iter(heads).buffered(HEADS_AT_ONCE);
    let (mut wrong, mut named) = (0, Vec::new());
    while let Some(head) = heads.next().await {
        if let Some(problem) = head? {
            wrong += 1;
            if named.len() < MISSING_NAMED {
                named.push(problem);
            }
        }
    }
    if wrong == 0 {
        return Ok(());
    }
    let named = named.join("; ");
    Err(Failure::packs_missing(format!(
        "root: {wrong} of {} packs are not in the main bucket: {named}. Upload them and finish again",
        packs.len()
    )))
}

fn artifact_of(root: &Value) -> Option<ArtifactId> {
    root.get("artifact")?.as_str()?.parse().ok()
}
