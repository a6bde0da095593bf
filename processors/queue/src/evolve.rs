//! What facts mean. Frozen for every released event.

use longshore_planted::{Bug, planted};
use longshore_processor::{StateError, StoreMut};
use longshore_schemas::{
    JobId, QueueName, Timestamp,
    events::{BuildFact, BuildFailed, BuildSucceeded, Fact, JobCanceled, JobQueued, JobRequeued, JobStarted},
};

use crate::tables::{self, Counts, Failure, Job, SpecRef, Status};

type Evolved = Result<(), StateError>;

pub(crate) fn evolve(state: &mut dyn StoreMut, fact: &Fact<BuildFact>) -> Evolved {
    let at = fact.at;
    match &fact.event {
        BuildFact::JobQueued(event) => queued(state, event, at),
        BuildFact::JobStarted(event) => started(state, event, at),
        BuildFact::JobRequeued(event) => requeued(state, event),
        BuildFact::JobCanceled(event) => canceled(state, event, at),
        BuildFact::BuildSucceeded(BuildSucceeded { job, attempt, artifact, .. }) => {
            ended(state, job, *attempt, Status::Succeeded(artifact.clone()), at)
        }
        BuildFact::BuildFailed(BuildFailed { job, attempt, reason, message }) => {
            let failure = Failure { reason: *reason, message: message.clone() };
            ended(state, job, *attempt, Status::Failed(failure), at)
        }
        // For people; what follows for the job is said by the fact beside it.
        BuildFact::WorkerLost(_) => Ok(()),
        BuildFact::Processed(_) => Ok(()),
    }
}

fn queued(state: &mut dyn StoreMut, event: &JobQueued, at: Timestamp) -> Evolved {
    let JobQueued { job, request, build } = event;
    change_counts(state, &job.queue, |counts| {
        if counts.last_number.checked_add(1) != Some(job.number) {
            return None;
        }
        if counts.queued == 0 {
            counts.head = job.number;
        }
        counts.last_number = job.number;
        counts.queued = counts.queued.checked_add(1)?;
        Some(())
    })?;
    tables::JOBS.put(state, job, &Job::queued(at))?;
    tables::QUEUED.put(state, job, &())?;
    tables::BY_NAME.put(state, &(build.name.clone(), at, job.clone()), &())?;
    tables::BY_REQUEST.put(state, request, job)?;
    tables::SPECS.put_parts(state, job, &SpecRef { request, build })
}

fn started(state: &mut dyn StoreMut, event: &JobStarted, at: Timestamp) -> Evolved {
    let JobStarted { job: id, attempt, worker, claim } = event;
    let mut job = tables::JOBS.expect(state.as_store(), id)?;
    if job.status != Status::Queued || *attempt != job.attempt + 1 {
        return Err(contradiction("JobStarted", id, &job));
    }
    change_counts(state, &id.queue, |counts| {
        counts.queued = counts.queued.checked_sub(1)?;
        counts.running = counts.running.checked_add(1)?;
        // The oldest starts first, so none waits below it.
        counts.head = id.number + 1;
        Some(())
    })?;
    job.status = Status::Running;
    job.attempt = *attempt;
    job.worker = Some(worker.clone());
    job.claim = Some(claim.clone());
    job.started_at = Some(at);
    tables::JOBS.put(state, id, &job)?;
    tables::QUEUED.delete(state, id);
    tables::RUNNING.put(state, id, &())?;
    tables::CLAIMS.put(state, claim, id)
}

fn requeued(state: &mut dyn StoreMut, event: &JobRequeued) -> Evolved {
    let id = &event.job;
    let mut job = tables::JOBS.expect(state.as_store(), id)?;
    if !job.is_running() || event.attempt != job.attempt {
        return Err(contradiction("JobRequeued", id, &job));
    }
    change_counts(state, &id.queue, |counts| {
        counts.running = counts.running.checked_sub(1)?;
        counts.queued = counts.queued.checked_add(1)?;
        if !planted(Bug::KeepHeadAtRequeue) {
            counts.head = counts.head.min(id.number);
        }
        Some(())
    })?;
    job.status = Status::Queued;
    tables::JOBS.put(state, id, &job)?;
    tables::RUNNING.delete(state, id);
    tables::QUEUED.put(state, id, &())
}

fn canceled(state: &mut dyn StoreMut, event: &JobCanceled, at: Timestamp) -> Evolved {
    let id = &event.job;
    let mut job = tables::JOBS.expect(state.as_store(), id)?;
    match job.status {
        Status::Running => return ended(state, id, event.attempt, Status::Canceled, at),
        Status::Queued => {}
        Status::Succeeded(_) | Status::Failed(_) | Status::Canceled => {
            return Err(contradiction("JobCanceled", id, &job));
        }
    }
    change_counts(state, &id.queue, |counts| {
        counts.queued = counts.queued.checked_sub(1)?;
        Some(())
    })?;
    job.status = Status::Canceled;
    job.ended_at = Some(at);
    tables::QUEUED.delete(state, id);
    tables::JOBS.put(state, id, &job)
}

/// The current attempt ended, and the job with it.
fn ended(state: &mut dyn StoreMut, id: &JobId, attempt: u32, status: Status, at: Timestamp) -> Evolved {
    let mut job = tables::JOBS.expect(state.as_store(), id)?;
    let again = planted(Bug::PublishTwice) && job.artifact().is_some();
    let other = planted(Bug::SkipAttemptCheck) && job.is_running();
    if again {
        return Ok(());
    }
    if !other && (!job.is_running() || attempt != job.attempt) {
        return Err(contradiction(status.word(), id, &job));
    }
    change_counts(state, &id.queue, |counts| {
        counts.running = counts.running.checked_sub(1)?;
        Some(())
    })?;
    job.status = status;
    job.ended_at = Some(at);
    tables::RUNNING.delete(state, id);
    tables::JOBS.put(state, id, &job)
}

/// `change` answers None if the counts do not allow it.
fn change_counts(
    state: &mut dyn StoreMut,
    queue: &QueueName,
    change: impl FnOnce(&mut Counts) -> Option<()>,
) -> Evolved {
    let before = tables::QUEUES.get(state.as_store(), queue)?.unwrap_or_default();
    let mut counts = before;
    change(&mut counts)
        .ok_or_else(|| StateError::Contradiction(format!("a fact does not fit queue {queue}: {before:?}")))?;
    tables::QUEUES.put(state, queue, &counts)
}

fn contradiction(fact: &str, id: &JobId, job: &Job) -> StateError {
    let status = job.status.word();
    StateError::Contradiction(format!("{fact} does not fit job {id}, which is {status} at attempt {}", job.attempt))
}
