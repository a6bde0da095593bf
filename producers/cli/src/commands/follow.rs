//! A job until its end: its log on stdout, its result as the exit code.

use std::{convert::Infallible, time::Duration};

use longshore_schemas::{
    JobId,
    http::{JobStatus, JobView},
};

use super::Context;
use crate::{
    error::Error,
    output::{self, Format},
};

/// Between two looks at a job whose log has ended or was interrupted.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two looks at a job whose log is being shown.
const LOOK: Duration = Duration::from_secs(2);
/// So many failed looks in a row, and the server counts as gone.
const FAILURES_MAX: u32 = 20;

/// JSON output is the job at its end and nothing else, so the log is left out there.
pub(super) async fn follow(context: &Context, job: &JobId) -> Result<(), Error> {
    let mut is_shown = false;
    if context.format == Format::Table {
        let streamed = tokio::select! {
            streamed = stream(context, job) => streamed,
            never = narrate(context, job) => match never {},
        };
        match streamed {
            Ok(()) => is_shown = true,
            Err(error) => output::message(&format!("the log was interrupted ({error}); waiting for the job to end")),
        }
    }
    let view = ended(context, job).await?;
    if context.format == Format::Json {
        output::json(&view)?;
    }
    result(&view, is_shown)
}

/// Says on stderr where the job is, each time that changes: a log that stays empty has a reason.
async fn narrate(context: &Context, job: &JobId) -> Infallible {
    let mut last = None;
    loop {
        // The log's own errors are told; those of this look are the same.
        if let Ok(view) = context.job(job).await {
            let place = place(&view);
            if place.is_some() && place != last {
                output::message(&format!("{job} {}", place.as_deref().unwrap_or_default()));
                last = place;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn place(view: &JobView) -> Option<String> {
    let worker = view.worker.as_ref().map_or("a worker", |worker| worker.as_str());
    match (view.status, view.attempt) {
        (JobStatus::Queued, attempt) => {
            let again = if attempt > 0 { format!(" again: {worker} lost attempt {attempt}") } else { String::new() };
            let ahead = view.ahead.unwrap_or(0);
            let queue = &view.job.queue;
            Some(match ahead {
                0 => format!("is queued{again}; it is next, as soon as a worker of the queue {queue} is free"),
                ahead => format!("is queued{again}; {ahead} are ahead of it in the queue {queue}"),
            })
        }
        (JobStatus::Running, 1) => Some(format!("runs on {worker}")),
        (JobStatus::Running, attempt) => Some(format!("runs on {worker}, attempt {attempt}")),
        _ => None,
    }
}

async fn stream(context: &Context, job: &JobId) -> Result<(), Error> {
    let call = context.client.get(&["jobs", &job.to_string(), "log"]).query(&[("follow", "true")]);
    let mut response = call.stream().await?;
    while let Some(piece) = response.chunk().await.map_err(|error| anyhow::Error::new(error.without_url()))? {
        output::raw(&piece)?;
    }
    Ok(())
}

async fn ended(context: &Context, job: &JobId) -> Result<JobView, Error> {
    let mut failures = 0;
    loop {
        match context.job(job).await {
            Ok(view) if view.status.is_ended() => return Ok(view),
            Ok(_) => failures = 0,
            Err(error) if error.is_transient() && failures < FAILURES_MAX => failures += 1,
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// With `is_shown`, the log has said what the command printed last.
fn result(view: &JobView, is_shown: bool) -> Result<(), Error> {
    let took = match (view.started_at, view.ended_at) {
        (Some(started), Some(ended)) => format!(" after {}", output::duration(ended.since(started))),
        _ => String::new(),
    };
    match (view.status, &view.artifact, &view.failure) {
        (JobStatus::Succeeded, Some(artifact), _) => {
            let size = output::size(artifact.size_bytes);
            let new = output::size(artifact.new_pack_bytes);
            output::message(&format!(
                "{} succeeded{took}: artifact {} ({size}, {new} new)",
                view.job, artifact.artifact
            ));
            Ok(())
        }
        (JobStatus::Failed, _, Some(failure)) => {
            let message = if is_shown { failure.message.lines().next().unwrap_or_default() } else { &failure.message };
            let message = message.trim_end_matches("; its last lines:");
            Err(Error::Failed(format!("{} failed{took}: {}: {message}", view.job, output::word(&failure.reason))))
        }
        (status, ..) => Err(Error::Failed(format!("{} ended as {}{took}", view.job, output::word(&status)))),
    }
}
