//! What a worker does with its attempt: beats, uploads, log, finish. All with the attempt's credential.
//!
//! Only the current attempt gets URLs and may finish. An upload that comes late is harmless: packs are named by their
//! content, and what nothing refers to is nothing.

use std::sync::Arc;

use axum::{Json as Answered, extract::State, http::StatusCode};
use futures::{StreamExt, stream};
use longshore_artifact::{PACK_BYTES_MAX, pack_key};
use longshore_schemas::{
    JobId, PackId,
    events::{BuildLog, Heartbeat, LogSegmentStored, PackHint, PacksUploaded, UploadedPack, WorkerSignal},
    http::{
        BeatAnswer, FinishBody, JobStatus, JobView, LOG_SEGMENT_BYTES_MAX, LogAnswer, LogBody, LogSegment, PackSize,
        UPLOADS_MAX, Upload, UploadsAnswer, UploadsBody,
    },
};
use std::time::Duration;

use crate::{
    Shared,
    access::{AttemptCredential, OfAttempt},
    extract::{App, Asker, Json, new_id},
    finish::{self, HEADS_AT_ONCE},
    job_log::segment_key,
    limits::{LOG_SEGMENT_BYTES, LOG_SEGMENTS, PACK_BYTES, UPLOADS, above},
    problem::{Answer, Failure},
    submit::{accepted, answer, append, submit},
};

/// How long an upload may wait to begin.
pub(crate) const UPLOAD_URL_VALID: Duration = Duration::from_secs(5 * 60);
/// Segments that one call registers.
const STORED_MAX: usize = 64;
/// Segments of one attempt's log.
pub(crate) const SEGMENTS_MAX: u32 = 100_000;

/// `POST /v1/jobs/{job}/attempts/{attempt}/beats`
pub(crate) async fn beat(State(shared): App, asker: Asker, OfAttempt(of): OfAttempt) -> Answer<Answered<BeatAnswer>> {
    let current = is_current(&shared, &of)?;
    if current {
        let AttemptCredential { job, attempt, worker } = of;
        append(&shared, &asker, WorkerSignal::from(Heartbeat { job, attempt, worker })).await?;
    }
    Ok(Answered(BeatAnswer { current }))
}

/// `POST /v1/jobs/{job}/attempts/{attempt}/uploads`
pub(crate) async fn uploads(
    State(shared): App,
    asker: Asker,
    OfAttempt(of): OfAttempt,
    Json(body): Json<UploadsBody>,
) -> Answer<Answered<UploadsAnswer>> {
    check_packs("stored", &body.stored)?;
    require_current(&shared, &of)?;
    let answer = places(&shared, body.packs).await?;
    hint(&shared, &asker, &of, body.stored).await;
    Ok(Answered(answer))
}

/// Where to upload packs, and which of them need not be.
pub(crate) async fn places(shared: &Shared, packs: Vec<PackSize>) -> Answer<UploadsAnswer> {
    check_packs("packs", &packs)?;
    let mut uploads = Vec::with_capacity(packs.len());
    for PackSize { pack, bytes } in &packs {
        let put = shared.bucket.presign_put(&pack_key(pack), UPLOAD_URL_VALID, *bytes).await?;
        uploads.push(Upload { pack: *pack, url: put.url, headers: put.headers });
    }
    Ok(UploadsAnswer { uploads, already_stored: already_stored(shared, packs).await })
}

/// The packs that an earlier attempt, or another job with the same output, has uploaded. Asking costs a small part of what an
/// upload costs; one that cannot be asked for is uploaded.
async fn already_stored(shared: &Shared, packs: Vec<PackSize>) -> Vec<PackId> {
    let heads = packs.into_iter().map(|PackSize { pack, bytes }| async move {
        match shared.bucket.head(&pack_key(&pack)).await {
            Ok(found) => (found == Some(bytes)).then_some(pack),
            Err(error) => {
                tracing::warn!(%pack, %error, "the main bucket does not say whether it has a pack");
                None
            }
        }
    });
    stream::iter(heads).buffered(HEADS_AT_ONCE).filter_map(async |stored| stored).collect().await
}

fn check_packs(field: &str, packs: &[PackSize]) -> Answer<()> {
    if packs.len() > UPLOADS_MAX {
        return Err(above(&UPLOADS, format_args!("{field}: name at most {UPLOADS_MAX} at a time")));
    }
    match packs.iter().find(|pack| !(1..=PACK_BYTES_MAX as u64).contains(&pack.bytes)) {
        Some(PackSize { pack, bytes }) => {
            let says = format_args!("{field}: {pack} has {bytes} bytes; a pack has 1 to {PACK_BYTES_MAX}");
            Err(above(&PACK_BYTES, says))
        }
        None => Ok(()),
    }
}

/// Tells the regions of packs that are stored. A hint that is lost costs time, and no call fails for it.
async fn hint(shared: &Shared, asker: &Asker, of: &AttemptCredential, stored: Vec<PackSize>) {
    if stored.is_empty() {
        return;
    }
    let AttemptCredential { job, attempt, .. } = of.clone();
    let packs = stored.into_iter().map(|PackSize { pack, bytes }| UploadedPack { pack, bytes }).collect();
    let asker = Asker { actor: asker.actor.clone(), id: new_id(), trace: None };
    if let Err(failure) = append(shared, &asker, PackHint::from(PacksUploaded { job, attempt, packs })).await {
        tracing::warn!(job = %of.job, ?failure, "the regions are not told of packs; they copy them after the build");
    }
}

/// `POST /v1/jobs/{job}/attempts/{attempt}/log`
pub(crate) async fn log(
    State(shared): App,
    asker: Asker,
    OfAttempt(of): OfAttempt,
    Json(body): Json<LogBody>,
) -> Answer<Answered<LogAnswer>> {
    if body.stored.len() > STORED_MAX {
        return Err(Failure::invalid(format!("stored: register at most {STORED_MAX} segments at a time")));
    }
    body.stored.iter().chain(&body.next).try_for_each(check_segment)?;
    require_current(&shared, &of)?;
    for LogSegment { index, bytes } in body.stored {
        let AttemptCredential { job, attempt, .. } = of.clone();
        let object = segment_key(&job, attempt, index);
        let asker = Asker { actor: asker.actor.clone(), id: new_id(), trace: None };
        append(&shared, &asker, BuildLog::from(LogSegmentStored { job, attempt, index, bytes, object })).await?;
    }
    let Some(LogSegment { index, bytes }) = body.next else {
        return Ok(Answered(LogAnswer { url: None, headers: Vec::new() }));
    };
    let key = segment_key(&of.job, of.attempt, index);
    let put = shared.bucket.presign_put(&key, UPLOAD_URL_VALID, bytes.into()).await?;
    Ok(Answered(LogAnswer { url: Some(put.url), headers: put.headers }))
}

fn check_segment(segment: &LogSegment) -> Answer<()> {
    let LogSegment { index, bytes } = segment;
    if *index >= SEGMENTS_MAX || !(1..=LOG_SEGMENT_BYTES_MAX).contains(bytes) {
        let limit = if *index >= SEGMENTS_MAX { &LOG_SEGMENTS } else { &LOG_SEGMENT_BYTES };
        let says = format_args!(
            "segment {index} of {bytes} bytes: indexes are below {SEGMENTS_MAX}, sizes 1 to {LOG_SEGMENT_BYTES_MAX}"
        );
        return Err(above(limit, says));
    }
    Ok(())
}

/// `POST /v1/jobs/{job}/attempts/{attempt}/finish`
pub(crate) async fn finish(
    State(shared): App,
    asker: Asker,
    OfAttempt(of): OfAttempt,
    Json(body): Json<FinishBody>,
) -> Answer {
    let view = view(&shared, &of.job)?;
    if !runs(&view, &of) {
        // The answer to an earlier call may have been lost on its way.
        return if finish::is_result(&view, &of, &body) {
            Ok(answer(StatusCode::OK, &asker, &view))
        } else {
            Err(over(&of))
        };
    }
    let event = finish::check(&shared, &of, &view, &body).await?;
    match submit(&shared, &asker, event).await {
        Ok(submitted) if !submitted.processed => return Ok(accepted(&asker, &submitted)),
        Ok(_) => {}
        // Two calls at the same time: one of them comes second, and is right nevertheless.
        Err(failure) => {
            let view = self::view(&shared, &of.job)?;
            return if finish::is_result(&view, &of, &body) {
                Ok(answer(StatusCode::OK, &asker, &view))
            } else {
                Err(failure)
            };
        }
    }
    let view = self::view(&shared, &of.job)?;
    if finish::is_result(&view, &of, &body) { Ok(answer(StatusCode::OK, &asker, &view)) } else { Err(over(&of)) }
}

fn view(shared: &Arc<Shared>, job: &JobId) -> Answer<JobView> {
    shared.read.job(job)?.ok_or_else(|| crate::builds::no_job(job))
}

fn is_current(shared: &Arc<Shared>, of: &AttemptCredential) -> Answer<bool> {
    Ok(shared.read.job(&of.job)?.is_some_and(|view| runs(&view, of)))
}

fn require_current(shared: &Arc<Shared>, of: &AttemptCredential) -> Answer<()> {
    if is_current(shared, of)? { Ok(()) } else { Err(over(of)) }
}

fn runs(view: &JobView, of: &AttemptCredential) -> bool {
    view.status == JobStatus::Running && view.attempt == of.attempt && view.worker.as_ref() == Some(&of.worker)
}

fn over(of: &AttemptCredential) -> Failure {
    let AttemptCredential { job, attempt, .. } = of;
    Failure::stale(format!("attempt {attempt} of {job} is over: stop the build, clean up and claim again"))
}
