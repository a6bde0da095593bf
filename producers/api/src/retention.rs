//! What is kept of artifacts: what people want kept, and what would be retired and collected now.

use axum::{Json as Answered, extract::State, http::StatusCode};
use longshore_schemas::{
    ArtifactId,
    events::{ArtifactRequest, KeepRequested, LetGoRequested},
    http::{KeepBody, RetentionView},
};
use tokio::sync::Semaphore;

use crate::{
    extract::{App, Asker, Json, Params},
    problem::{Answer, Failure},
    reads::known_artifact,
    submit::{accepted, answer, submit},
};

/// Each reads every root of the main bucket.
static DRY_RUNS: Semaphore = Semaphore::const_new(1);

/// `GET /v1/retention`
pub(crate) async fn plan(State(shared): App) -> Answer<Answered<RetentionView>> {
    let busy = |_| Failure::unavailable("somebody else is asking the same: try again once that is answered");
    let _turn = DRY_RUNS.try_acquire().map_err(busy)?;
    Ok(Answered(shared.read.clone().retention().await?))
}

/// `POST /v1/artifacts/{artifact}/keep`
pub(crate) async fn keep(
    State(shared): App,
    asker: Asker,
    Params((artifact,)): Params<(ArtifactId,)>,
    Json(body): Json<KeepBody>,
) -> Answer {
    change(&shared, &asker, &artifact, KeepRequested { artifact, reason: body.reason }.into()).await
}

/// `DELETE /v1/artifacts/{artifact}/keep`
pub(crate) async fn let_go(State(shared): App, asker: Asker, Params((artifact,)): Params<(ArtifactId,)>) -> Answer {
    change(&shared, &asker, &artifact, LetGoRequested { artifact }.into()).await
}

async fn change(
    shared: &std::sync::Arc<crate::Shared>,
    asker: &Asker,
    artifact: &ArtifactId,
    event: ArtifactRequest,
) -> Answer {
    let submitted = submit(shared, asker, event).await?;
    if !submitted.processed {
        return Ok(accepted(asker, &submitted));
    }
    Ok(submitted.placed(answer(StatusCode::OK, asker, &known_artifact(shared, artifact)?)))
}
