//! `POST /v1/queues/{queue}/claims`: a worker waits for a job.
//!
//! While the call is open its claim is repeated on `worker-signals`, where the queue's leader sees it; each says until when it
//! counts, so a worker that goes away is soon forgotten. The job that a claim became is read from the projections:
//! whichever API process the worker asks again, it gets the same one.

use std::{sync::Arc, time::Duration};

use axum::{
    Json as Answered,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures::future::try_join_all;
use longshore_artifact::{ArtifactRoot, ROOT_BYTES_MAX, pack_key, root_key};
use longshore_log::clock;
use longshore_schemas::{
    ArtifactId, ArtifactName, QueueName, Timestamp,
    events::{ReplicaStatus, WorkerReady, WorkerSignal},
    http::{ArtifactQuery, ArtifactStatus, ArtifactView, Assignment, BaseArtifact, ClaimBody, ClaimedJob, PackUrl},
};
use tokio::time::Instant;

use crate::{
    Shared,
    access::AttemptCredential,
    extract::{App, Asker, Json, Params, new_id},
    limits::{CLAIM_SECONDS, above},
    problem::{Answer, Failure},
    submit::append,
};

/// Longest that a call stays open.
pub(crate) const WAIT_SECONDS_MAX: u32 = 60;
/// How often an open call repeats its claim.
const CLAIM_REPEATED: Duration = Duration::from_secs(5);
/// How long a claim counts that is not repeated.
const CLAIM_VALID: Duration = Duration::from_secs(15);
/// Earlier artifacts that a worker may build upon.
const BASES_MAX: u32 = 3;
/// A base is worth no more waiting than this: the assignment must be confirmed soon.
const BASES_WAIT: Duration = Duration::from_secs(3);
/// How long a worker may take until it reads a base.
const BASE_URL_VALID: Duration = Duration::from_secs(30 * 60);
/// Packs of manifest and layout of one base; an artifact with more is not worth reading.
const BASE_PACKS_MAX: usize = 64;

/// `POST /v1/queues/{queue}/claims`
pub(crate) async fn claim(
    State(shared): App,
    asker: Asker,
    Params((queue,)): Params<(QueueName,)>,
    Json(body): Json<ClaimBody>,
) -> Answer {
    if body.wait_seconds > WAIT_SECONDS_MAX {
        return Err(above(&CLAIM_SECONDS, format_args!("wait_seconds: give at most {WAIT_SECONDS_MAX}")));
    }
    let _pass = shared.gates.claims.enter().map_err(|full| Failure::full(&full))?;
    let waiting = wait(&shared, &asker, &queue, &body);
    let claimed = shared.stop.run_until_cancelled(waiting).await.transpose()?.flatten();
    match claimed {
        Some(job) if job.worker != body.worker => {
            Err(Failure::conflict(format!("claim {} is of worker {}, not of {}", body.claim, job.worker, body.worker)))
        }
        Some(job) => assign(&shared, job).await,
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

async fn wait(shared: &Arc<Shared>, asker: &Asker, queue: &QueueName, body: &ClaimBody) -> Answer<Option<ClaimedJob>> {
    let deadline = Instant::now() + Duration::from_secs(body.wait_seconds.into());
    // A repeated call's job is there already.
    if let Some(job) = shared.read.claimed(queue, &body.claim, Duration::ZERO).await? {
        return Ok(Some(job));
    }
    loop {
        let now = clock::now();
        signal(shared, asker, queue, body, now + CLAIM_VALID).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let job = shared.read.claimed(queue, &body.claim, left.min(CLAIM_REPEATED)).await?;
        if job.is_some() || Instant::now() >= deadline {
            return Ok(job);
        }
    }
}

async fn signal(
    shared: &Arc<Shared>,
    asker: &Asker,
    queue: &QueueName,
    body: &ClaimBody,
    expires_at: Timestamp,
) -> Answer<()> {
    let (worker, claim) = (body.worker.clone(), body.claim.clone());
    let ready = WorkerReady { queue: queue.clone(), worker, claim, expires_at };
    let asker = Asker { actor: asker.actor.clone(), id: new_id(), trace: asker.trace.clone() };
    append(shared, &asker, WorkerSignal::from(ready)).await.map(drop)
}

async fn assign(shared: &Arc<Shared>, claimed: ClaimedJob) -> Answer<Response> {
    let ClaimedJob { job, attempt, worker, build, .. } = claimed;
    tracing::info!(%job, attempt, %worker, "job assigned");
    let credential = AttemptCredential { job: job.clone(), attempt, worker };
    let credential = shared.attempts.sign(&credential).map_err(|error| Failure::internal(error.to_string()))?;
    let bases = tokio::time::timeout(BASES_WAIT, bases(shared, &build.name)).await.unwrap_or_else(|_| {
        tracing::warn!(%job, "the bases of an assignment took too long; it goes without");
        Vec::new()
    });
    let assignment = Assignment { job, attempt, build, credential, beat_seconds: shared.limits.beat_seconds, bases };
    Ok(Answered(assignment).into_response())
}

/// The last artifacts of that name whose parts are all there. What cannot be read is no base, and no error either.
async fn bases(shared: &Arc<Shared>, name: &ArtifactName) -> Vec<BaseArtifact> {
    let query = ArtifactQuery { name: Some(name.clone()), after: None, limit: Some(BASES_MAX) };
    let artifacts = shared.read.artifacts(&query).map(|page| page.items).unwrap_or_default();
    let mut bases = Vec::new();
    for artifact in artifacts.iter().filter(|artifact| can_be_base(artifact)) {
        let id = &artifact.summary.artifact;
        match base(shared, id).await {
            Ok(base) => bases.push(base),
            Err(reason) => tracing::warn!(artifact = %id, reason, "an artifact cannot serve as a base"),
        }
    }
    bases
}

/// An artifact that a region cannot copy and none has may lack packs in the main bucket. If one has it, it gives them back.
fn can_be_base(artifact: &ArtifactView) -> bool {
    let has = |status| artifact.replicas.iter().any(|replica| replica.status == Some(status));
    artifact.status != ArtifactStatus::Retired && (!has(ReplicaStatus::Failed) || has(ReplicaStatus::Stored))
}

async fn base(shared: &Arc<Shared>, artifact: &ArtifactId) -> Result<BaseArtifact, String> {
    let bucket = &shared.bucket;
    let json = bucket.get(&root_key(artifact), ROOT_BYTES_MAX as u64).await.map_err(|error| error.to_string())?;
    let root = ArtifactRoot::from_json(artifact, &json).map_err(|error| error.to_string())?;
    let parts: Vec<_> = root.manifest.iter().chain(&root.layout).collect();
    if parts.len() > BASE_PACKS_MAX {
        return Err(format!("its manifest and layout take {} packs", parts.len()));
    }
    let packs = parts.into_iter().map(|part| async move {
        let key = pack_key(&part.pack);
        match bucket.head(&key).await {
            Ok(Some(bytes)) if bytes == part.bytes => {}
            Ok(_) => return Err(format!("pack {} is not there whole", part.pack)),
            Err(error) => return Err(error.to_string()),
        }
        let url = bucket.presign_get(&key, BASE_URL_VALID).await.map_err(|error| error.to_string())?.url;
        Ok(PackUrl { pack: part.pack, url })
    });
    let packs = try_join_all(packs).await?;
    let root = serde_json::to_value(&root).map_err(|error| error.to_string())?;
    Ok(BaseArtifact { artifact: *artifact, root, packs })
}
