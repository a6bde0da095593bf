//! A job until its end: its log on stdout, its result as the exit code.

use std::time::Duration;

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
/// So many failed looks in a row, and the server counts as gone.
const FAILURES_MAX: u32 = 20;

/// JSON output is the job at its end and nothing else, so the log is left out there.
pub(super) async fn follow(context: &Context, job: &JobId) -> Result<(), Error> {
    if context.format == Format::Table
        && let Err(error) = stream(context, job).await
    {
        output::message(&format!("the log was interrupted ({error}); waiting for the job to end"));
    }
    let view = ended(context, job).await?;
    if context.format == Format::Json {
        output::json(&view)?;
    }
    result(&view)
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

fn result(view: &JobView) -> Result<(), Error> {
    let took = match (view.started_at, view.ended_at) {
        (Some(started), Some(ended)) => format!(" after {}", output::duration(ended.since(started))),
        _ => String::new(),
    };
    match (view.status, &view.artifact, &view.failure) {
        (JobStatus::Succeeded, Some(artifact), _) => {
            let size = output::mib(artifact.size_bytes);
            let new = output::mib(artifact.new_pack_bytes);
            output::message(&format!(
                "{} succeeded{took}: artifact {} ({size}, {new} new)",
                view.job, artifact.artifact
            ));
            Ok(())
        }
        (JobStatus::Failed, _, Some(failure)) => {
            Err(Error::Failed(format!("{} failed{took}: {:?}: {}", view.job, failure.reason, failure.message)))
        }
        (status, ..) => Err(Error::Failed(format!("{} ended as {}{took}", view.job, output::word(&status)))),
    }
}
