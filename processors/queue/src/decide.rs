//! What requests, signals and deadlines change.

use longshore_planted::{Bug, planted};
use longshore_processor::{Decision, Order, Range, StateError, Store};
use longshore_schemas::{
    JobId, QueueName, RequestId, Timestamp, WorkerId,
    events::{
        ArtifactRequest, ArtifactSource, AttemptFailed, AttemptFinished, AttemptOutcome, AttemptSucceeded, BuildFact,
        BuildFailed, BuildRequested, BuildSucceeded, CancelRequested, FailureReason, Heartbeat, JobCanceled, JobQueued,
        JobRequeued, JobStarted, RefusalCode, ReplicationRequested, WorkerLost, WorkerReady,
    },
};

use crate::{
    MESSAGE_BYTES_MAX, Queue,
    soft::{Lease, Soft},
    spec,
    tables::{self, Counts, Job, Status},
};

type Decided = Result<Decision<BuildFact>, StateError>;

impl Queue {
    pub(crate) fn build(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        request: &RequestId,
        event: &BuildRequested,
        now: Timestamp,
    ) -> Decided {
        if let Err(reason) = spec::check(&event.build) {
            return Ok(Decision::refuse(RefusalCode::Invalid, reason));
        }
        let queue = &event.queue;
        let counts = counts(state, queue)?;
        if counts.queued >= self.config.queued_max {
            let reason = format!(
                "queue {queue} is full: {} jobs wait (the limit queue.jobs); try again when some are done",
                counts.queued
            );
            return Ok(Decision::refuse(RefusalCode::Exhausted, reason));
        }
        let job = JobId { queue: queue.clone(), number: counts.last_number + 1 };
        let queued = JobQueued { job: job.clone(), request: request.clone(), build: event.build.clone() };
        let decision = Decision::nothing().fact(queued);
        self.start_oldest(state, soft, queue, Some((job, 0)), now, decision)
    }

    pub(crate) fn cancel(&self, state: &dyn Store, soft: &mut Soft, event: &CancelRequested) -> Decided {
        let id = &event.job;
        let Some(job) = tables::JOBS.get(state, id)? else {
            return Ok(unknown(id));
        };
        let attempt = match job.status {
            Status::Queued => 0,
            Status::Running => job.attempt,
            Status::Succeeded(_) | Status::Failed(_) | Status::Canceled => {
                let reason = format!("job {id} has ended already: {}; it cannot be canceled", job.status.word());
                return Ok(Decision::refuse(RefusalCode::Conflict, reason));
            }
        };
        soft.leases.remove(id);
        Ok(Decision::nothing().fact(JobCanceled { job: id.clone(), attempt }))
    }

    /// Only the current attempt's worker has a say.
    pub(crate) fn finish(&self, state: &dyn Store, soft: &mut Soft, event: &AttemptFinished) -> Decided {
        let AttemptFinished { job: id, attempt, worker, outcome } = event;
        let Some(job) = tables::JOBS.get(state, id)? else {
            return Ok(unknown(id));
        };
        let is_current = is_current(&job, *attempt, worker)
            || (planted(Bug::SkipAttemptCheck) && job.is_running())
            || (planted(Bug::PublishTwice) && job.artifact().is_some());
        if !is_current {
            return Ok(Decision::refuse(RefusalCode::Stale, stale(id, &job, *attempt, worker)));
        }
        let decision = match outcome {
            AttemptOutcome::AttemptSucceeded(success) => succeeded(state, event, success)?,
            AttemptOutcome::AttemptFailed(AttemptFailed { reason, message }) => {
                let message = shortened(message);
                Decision::nothing().fact(BuildFailed { job: id.clone(), attempt: *attempt, reason: *reason, message })
            }
        };
        if decision.refusal.is_none() {
            soft.leases.remove(id);
        }
        Ok(decision)
    }

    /// A claim waits, or gets the oldest job at once. How long it waits is its sender's word, by its sender's clock from
    /// `said_at` on: that clock need not agree with ours.
    pub(crate) fn ready(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        event: &WorkerReady,
        said_at: Timestamp,
        now: Timestamp,
    ) -> Decided {
        let WorkerReady { queue, worker, claim, expires_at } = event;
        let valid = expires_at.since(said_at);
        let is_spent = tables::CLAIMS.contains(state, claim)? && !planted(Bug::ForgetSpentClaims);
        let is_over = valid.is_zero() && !planted(Bug::ForgetClaimExpiry);
        if is_over || is_spent {
            return Ok(Decision::nothing());
        }
        soft.claims.add(queue, worker, claim, now + valid, now, self.config.claims_max as usize);
        self.start_oldest(state, soft, queue, None, now, Decision::nothing())
    }

    pub(crate) fn beat(&self, state: &dyn Store, soft: &mut Soft, event: &Heartbeat, now: Timestamp) -> Decided {
        let Heartbeat { job: id, attempt, worker } = event;
        let job = tables::JOBS.get(state, id)?;
        if job.is_some_and(|job| is_current(&job, *attempt, worker)) {
            let due = now + self.config.silent();
            let due = match soft.leases.due(id) {
                Some(before) if planted(Bug::IgnoreBeats) => before,
                _ => due,
            };
            soft.leases.put(id.clone(), Lease { attempt: *attempt, confirmed: true, heard_at: now, due });
        }
        Ok(Decision::nothing())
    }

    /// Gives up the attempt whose lease ran out first, if one did.
    pub(crate) fn give_up_next(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Decided {
        while let Some((id, lease)) = soft.leases.take_due(now) {
            // Soft may remember an attempt whose facts were never committed.
            let job = tables::JOBS.get(state, &id)?;
            if let Some(job) = job.filter(|job| job.is_running() && job.attempt == lease.attempt) {
                return self.give_up(state, soft, id, &job, &lease, now);
            }
        }
        Ok(Decision::nothing())
    }

    fn give_up(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        id: JobId,
        job: &Job,
        lease: &Lease,
        now: Timestamp,
    ) -> Decided {
        let attempt = job.attempt;
        let worker =
            job.worker.clone().ok_or_else(|| StateError::Contradiction(format!("job {id} runs without a worker")))?;
        let silent_seconds = u32::try_from(now.since(lease.heard_at).as_secs()).unwrap_or(u32::MAX);
        let mut decision = Decision::nothing();
        let reason = if lease.confirmed {
            decision = decision.fact(WorkerLost { worker: worker.clone(), job: id.clone(), attempt, silent_seconds });
            format!("worker {worker} was silent for {silent_seconds} s")
        } else {
            format!("worker {worker} did not take up the attempt within {silent_seconds} s")
        };
        if attempt >= self.config.attempts_max {
            let message = format!(
                "{attempt} attempts were given up; the last because {reason}. Look at the workers, then request the build \
                 again"
            );
            let reason = FailureReason::AttemptsExhausted;
            return Ok(decision.fact(BuildFailed { job: id, attempt, reason, message }));
        }
        let queue = id.queue.clone();
        let decision = decision.fact(JobRequeued { job: id.clone(), attempt, reason });
        self.start_oldest(state, soft, &queue, Some((id, attempt)), now, decision)
    }

    /// If a claim waits, gives it the oldest job: of those in the queue and the one (with its last attempt) that the
    /// decision so far puts there.
    fn start_oldest(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        queue: &QueueName,
        joining: Option<(JobId, u32)>,
        now: Timestamp,
        decision: Decision<BuildFact>,
    ) -> Decided {
        if !soft.claims.any(queue, now) {
            return Ok(decision);
        }
        let waiting = oldest_queued(state, queue, &counts(state, queue)?)?;
        let (job, attempt) = match (waiting, joining) {
            (Some(waiting), Some((joining, attempt))) if joining < waiting && !planted(Bug::RequeueAtTail) => {
                (joining, attempt)
            }
            (Some(waiting), _) => {
                let attempt = tables::JOBS.expect(state, &waiting)?.attempt;
                (waiting, attempt)
            }
            (None, Some(joining)) => joining,
            (None, None) => return Ok(decision),
        };
        let Some(claim) = soft.claims.take(queue, now) else {
            return Ok(decision);
        };
        let attempt = attempt + 1;
        let due = now + self.config.confirm();
        soft.leases.put(job.clone(), Lease { attempt, confirmed: false, heard_at: now, due });
        Ok(decision.fact(JobStarted { job, attempt, worker: claim.worker, claim: claim.claim }))
    }
}

fn counts(state: &dyn Store, queue: &QueueName) -> Result<Counts, StateError> {
    Ok(tables::QUEUES.get(state, queue)?.unwrap_or_default())
}

/// Nearly always the head itself, which is a look-up; after jobs were canceled, a scan from there.
fn oldest_queued(state: &dyn Store, queue: &QueueName, counts: &Counts) -> Result<Option<JobId>, StateError> {
    if counts.queued == 0 {
        return Ok(None);
    }
    let head = JobId { queue: queue.clone(), number: counts.head };
    if tables::QUEUED.contains(state, &head)? {
        return Ok(Some(head));
    }
    let later = Range::prefix(queue).from(&head);
    Ok(tables::QUEUED.first(state, &later, Order::Ascending)?.map(|(job, ())| job))
}

fn succeeded(state: &dyn Store, event: &AttemptFinished, AttemptSucceeded { artifact }: &AttemptSucceeded) -> Decided {
    let AttemptFinished { job, attempt, worker, .. } = event;
    let build = tables::SPECS.expect(state, job)?.build;
    if artifact.name != build.name {
        let reason = format!("artifact.name is {}, but job {job} builds {}", artifact.name, build.name);
        return Ok(Decision::refuse(RefusalCode::Invalid, reason));
    }
    let source = ArtifactSource { job: job.clone(), repository: build.repository, commit: build.commit };
    let replication = ReplicationRequested { summary: artifact.clone(), source, run: build.run };
    let fact =
        BuildSucceeded { job: job.clone(), attempt: *attempt, worker: worker.clone(), artifact: artifact.clone() };
    Ok(Decision::nothing().fact(fact).request(ArtifactRequest::from(replication)))
}

fn is_current(job: &Job, attempt: u32, worker: &WorkerId) -> bool {
    job.is_running() && job.attempt == attempt && job.worker.as_ref() == Some(worker)
}

fn stale(id: &JobId, job: &Job, attempt: u32, worker: &WorkerId) -> String {
    let standing = match (&job.status, &job.worker) {
        (Status::Running, Some(current)) => format!("attempt {} runs on worker {current}", job.attempt),
        (Status::Queued | Status::Running, _) => "the job waits for its next attempt".to_owned(),
        (ended, _) => format!("the job has ended: {}", ended.word()),
    };
    format!("worker {worker} does not have attempt {attempt} of job {id}: {standing}; stop it and drop its result")
}

fn unknown(id: &JobId) -> Decision<BuildFact> {
    Decision::refuse(RefusalCode::NotFound, format!("there is no job {id}"))
}

fn shortened(message: &str) -> String {
    message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned()
}
