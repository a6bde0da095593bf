//! Asking for builds, and canceling them.

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
};
use longshore_schemas::{
    JobId,
    events::{BuildRequest, BuildRequested, CancelRequested},
    http::{BuildBody, JobView},
};

use crate::{
    extract::{App, Asker, Json, Params},
    problem::{Answer, Failure},
    repository,
    submit::{accepted, answer, submit},
};

/// `POST /v1/builds`
pub(crate) async fn request(State(shared): App, asker: Asker, Json(body): Json<BuildBody>) -> Answer {
    repository::check(&body.build.repository, shared.allow_file_repositories).map_err(Failure::invalid)?;
    let BuildBody { queue, build } = body;
    let event = BuildRequested { queue: queue.clone(), build: build.clone() };
    let submitted = submit(&shared, &asker, BuildRequest::from(event)).await?;
    if !submitted.processed {
        return Ok(accepted(&asker, &submitted));
    }
    let Some(view) = shared.read.job_of_request(&asker.id)? else {
        // Processed, and no job of it: the key belongs to something else, which was done before.
        return Err(Failure::key_reused("it was used for something else before: use a new key").of(&asker.id));
    };
    if view.job.queue != queue || view.build != build {
        let detail = format!("it asked for job {} before, which differs from this: use a new key", view.job);
        return Err(Failure::key_reused(detail).of(&asker.id));
    }
    let mut response = submitted.placed(answer(StatusCode::CREATED, &asker, &view));
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/jobs/{}", view.job)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// `POST /v1/jobs/{job}/cancel`
pub(crate) async fn cancel(State(shared): App, asker: Asker, Params((job,)): Params<(JobId,)>) -> Answer {
    let event = CancelRequested { job: job.clone() };
    let submitted = submit(&shared, &asker, BuildRequest::from(event)).await?;
    if !submitted.processed {
        return Ok(accepted(&asker, &submitted));
    }
    let view: JobView = shared.read.job(&job)?.ok_or_else(|| no_job(&job))?;
    Ok(submitted.placed(answer(StatusCode::OK, &asker, &view)))
}

pub(crate) fn no_job(job: &JobId) -> Failure {
    Failure::not_found(format!("there is no job {job}; GET /v1/jobs lists them"))
}
