//! How an attempt's result gets to the server.

use std::time::Duration;

use longshore_artifact::Published;
use longshore_schemas::{
    events::FailureReason,
    http::{Assignment, FinishBody, PACKS_MISSING, Problem},
};
use longshore_service::retry::Backoff;
use tokio_util::sync::CancellationToken;

use super::{Built, Failure, Halt, publish, until};
use crate::{
    beats::{self, AttemptApi},
    client, wait_after,
};

const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// So often the server is given the artifact.
const AGAIN_MAX: u32 = 3;

fn succeeded(published: &Published) -> FinishBody {
    let root = serde_json::to_value(&published.root).expect("a root holds nothing that JSON cannot express");
    FinishBody::Succeeded { root, new_pack_bytes: published.new_bytes }
}

/// Has the server take the artifact. A pack that an earlier artifact had, or that was there already, may have been collected meanwhile:
/// then it is published once more, with nothing that is not looked at anew. What is missing then was announced by that try, so that the next
/// one finds all of it.
pub(super) async fn finish_built(
    of: &Assignment,
    api: &AttemptApi,
    built: Built,
    over: &CancellationToken,
) -> Result<(), Halt> {
    let Built { output, mut published, _lease } = built;
    for tries_left in (0..AGAIN_MAX).rev() {
        let Some(problem) = finish(of, api, &succeeded(&published), over).await else { return Ok(()) };
        if !problem.is(PACKS_MISSING) || tries_left == 0 {
            return Err(not_taken(&problem).into());
        }
        tracing::warn!(job = %of.job, missing = problem.detail, "packs are not there any more; publishing once more");
        (published, _) = until(over, publish(of, api, &output, &[])).await?;
    }
    Ok(())
}

fn not_taken(problem: &Problem) -> Failure {
    let message = format!("the server did not take the artifact: {}", problem.detail);
    Failure::new(FailureReason::UploadFailed, message)
}

/// Repeats the result until the server has it or does not take it, which it says why, or the attempt is over. A call on its way is never given up: it may be
/// the one that counts.
pub(super) async fn finish(
    of: &Assignment,
    api: &AttemptApi,
    body: &FinishBody,
    over: &CancellationToken,
) -> Option<Box<Problem>> {
    let Assignment { job, attempt, .. } = of;
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        let error = match api.finish(body).await {
            Ok(_) => {
                tracing::info!(%job, attempt, "attempt finished");
                return None;
            }
            Err(error) => error,
        };
        if beats::is_over(&error) {
            tracing::warn!(%job, attempt, %error, "the result came too late");
            return None;
        }
        if !error.is_transient() {
            tracing::error!(%job, attempt, %error, "the server does not take the result");
            return if let client::Error::Problem(problem) = error { Some(problem) } else { None };
        }
        tracing::warn!(%job, attempt, %error, "the result did not get through, it is sent again");
        tokio::select! {
            () = tokio::time::sleep(wait_after(&mut backoff)) => {}
            () = over.cancelled() => {
                tracing::warn!(%job, attempt, "the attempt is over before its result got through");
                return None;
            }
        }
    }
}
