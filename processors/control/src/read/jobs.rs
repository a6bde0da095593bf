//! Jobs and queues, from the queue's tables.

use std::ops::ControlFlow;

use longshore_processor::{Order, Range, StateError, Store};
use longshore_queue::{
    Queue,
    tables::{BY_NAME, BY_REQUEST, CLAIMS, Counts, JOBS, Job, QUEUED, QUEUES, RUNNING, SPECS},
};
use longshore_runtime::{Handle, PartitionStore};
use longshore_schemas::{
    ArtifactName, ClaimId, JobId, QueueName, RequestId, Timestamp,
    http::{ClaimedJob, JobFailure, JobQuery, JobStatus, JobView, Page, QueueView},
    read::ReadError,
};

use super::{
    page::{Cursor, Part, ROWS_MAX, limit, merge},
    unavailable,
};

type JobPart = Part<JobId, JobView>;

pub(super) fn queues(handle: &Handle<Queue>) -> Result<Vec<QueueView>, StateError> {
    let mut views = Vec::new();
    for store in handle.stores() {
        QUEUES.scan(store, &Range::all(), Order::Ascending, |queue, counts| {
            views.push(QueueView { queue, queued: counts.queued, running: counts.running });
            ControlFlow::Continue(())
        })?;
    }
    views.sort_by(|a, b| a.queue.cmp(&b.queue));
    Ok(views)
}

pub(crate) fn one(handle: &Handle<Queue>, job: &JobId) -> Result<Option<JobView>, StateError> {
    let held = handle.store_of(job.queue.as_str()).hold()?;
    let state = held.view();
    let Some(row) = JOBS.get(&state, job)? else { return Ok(None) };
    view(&state, job, row).map(Some)
}

pub(super) fn of_request(handle: &Handle<Queue>, request: &RequestId) -> Result<Option<JobView>, StateError> {
    // The request's id does not say its queue.
    for store in handle.stores() {
        if let Some(job) = BY_REQUEST.get(store, request)? {
            return one(handle, &job);
        }
    }
    Ok(None)
}

/// The claim's job, while the claim still runs it.
pub(super) fn claimed(
    handle: &Handle<Queue>,
    queue: &QueueName,
    claim: &ClaimId,
) -> Result<Option<ClaimedJob>, ReadError> {
    let held = handle.store_of(queue.as_str()).hold().map_err(unavailable)?;
    let state = held.view();
    let Some(job) = CLAIMS.get(&state, claim).map_err(unavailable)? else { return Ok(None) };
    let row = JOBS.expect(&state, &job).map_err(unavailable)?;
    let current = row.is_running() && row.claim.as_ref() == Some(claim);
    let Some(worker) = row.worker.filter(|_| current) else {
        return Err(ReadError::Spent(format!(
            "claim {claim} got job {job}, and that attempt is over: make a new claim"
        )));
    };
    let build = SPECS.expect(&state, &job).map_err(unavailable)?.build;
    Ok(Some(ClaimedJob { job, attempt: row.attempt, worker, claim: claim.clone(), build }))
}

pub(super) fn list(handle: &Handle<Queue>, query: &JobQuery) -> Result<Page<JobView>, ReadError> {
    let limit = limit(query.limit)?;
    let before = Cursor::<JobId>::parse(query.after.as_deref())?;
    let mut parts = Vec::new();
    let stores: Vec<&PartitionStore> = match &query.queue {
        Some(queue) => vec![handle.store_of(queue.as_str())],
        None => handle.stores().collect(),
    };
    for store in stores {
        let held = store.hold().map_err(unavailable)?;
        let mut search = Search { state: &held.view(), query, before: before.as_ref(), limit };
        parts.extend(search.parts().map_err(unavailable)?);
    }
    Ok(merge(parts, limit))
}

/// One list query in one partition.
struct Search<'a> {
    state: &'a dyn Store,
    query: &'a JobQuery,
    before: Option<&'a Cursor<JobId>>,
    limit: usize,
}

impl Search<'_> {
    fn parts(&mut self) -> Result<Vec<JobPart>, StateError> {
        if let Some(name) = &self.query.name {
            return Ok(vec![self.by_name(name)?]);
        }
        let queues = match &self.query.queue {
            Some(queue) => vec![queue.clone()],
            None => self.queues()?,
        };
        queues.iter().map(|queue| self.by_queue(queue)).collect()
    }

    fn queues(&self) -> Result<Vec<QueueName>, StateError> {
        let mut queues = Vec::new();
        QUEUES.scan(self.state, &Range::all(), Order::Ascending, |queue, _| {
            queues.push(queue);
            ControlFlow::Continue(())
        })?;
        Ok(queues)
    }

    fn by_name(&self, name: &ArtifactName) -> Result<JobPart, StateError> {
        let mut range = Range::prefix(name);
        if let Some(before) = self.before {
            range = range.before(&(name.clone(), before.at, before.id.clone()));
        }
        self.collect(|visit| BY_NAME.scan(self.state, &range, Order::Descending, |(_, _, job), ()| visit(job)))
    }

    /// A queue's jobs by descending number, which is by descending time. Those that wait or run have a table of their own.
    fn by_queue(&self, queue: &QueueName) -> Result<JobPart, StateError> {
        let mut range = Range::prefix(queue);
        if let Some(before) = self.before {
            range = range.before(&JobId { queue: queue.clone(), number: self.first_not_before(queue, before)? });
        }
        self.collect(|visit| match self.query.status {
            Some(JobStatus::Queued) => QUEUED.scan(self.state, &range, Order::Descending, |job, ()| visit(job)),
            Some(JobStatus::Running) => RUNNING.scan(self.state, &range, Order::Descending, |job, ()| visit(job)),
            _ => JOBS.scan(self.state, &range, Order::Descending, |job, _| visit(job)),
        })
    }

    /// The first number of the queue whose job is not before the cursor: numbers have no gaps and follow time, so by
    /// bisection.
    fn first_not_before(&self, queue: &QueueName, before: &Cursor<JobId>) -> Result<u64, StateError> {
        let last = QUEUES.get(self.state, queue)?.unwrap_or_default().last_number;
        let (mut low, mut high) = (1, last + 1);
        while low < high {
            let number = low + (high - low) / 2;
            let job = JobId { queue: queue.clone(), number };
            let at = JOBS.expect(self.state, &job)?.queued_at;
            if (Cursor { at, id: job }) < *before { low = number + 1 } else { high = number }
        }
        Ok(low)
    }

    /// Takes the matching jobs that `walk` visits, until one more than a page or too many rows were seen.
    fn collect(
        &self,
        walk: impl FnOnce(&mut dyn FnMut(JobId) -> ControlFlow<()>) -> Result<(), StateError>,
    ) -> Result<JobPart, StateError> {
        let mut part = Part { rows: Vec::new(), unread: None };
        let (mut seen, mut failed) = (0, None);
        walk(&mut |job| {
            seen += 1;
            match self.matching(&job) {
                Ok((at, found)) => {
                    let cursor = Cursor { at, id: job };
                    if seen >= ROWS_MAX || part.rows.len() > self.limit {
                        part.unread = Some(cursor.clone());
                    }
                    part.rows.extend(found.map(|view| (cursor, view)));
                }
                Err(error) => failed = Some(error),
            }
            if failed.is_some() || part.unread.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        match failed {
            Some(error) => Err(error),
            None => Ok(part),
        }
    }

    /// When the job was queued, and its view if the query asks for it.
    fn matching(&self, job: &JobId) -> Result<(Timestamp, Option<JobView>), StateError> {
        let row = JOBS.expect(self.state, job)?;
        let at = row.queued_at;
        let JobQuery { queue, status, commit, .. } = self.query;
        let wanted = queue.as_ref().is_none_or(|queue| *queue == job.queue)
            && status.is_none_or(|status| status == row.status.kind());
        if !wanted {
            return Ok((at, None));
        }
        let view = view(self.state, job, row)?;
        let wanted = commit.as_ref().is_none_or(|commit| *commit == view.build.commit);
        Ok((at, wanted.then_some(view)))
    }
}

fn view(state: &dyn Store, job: &JobId, row: Job) -> Result<JobView, StateError> {
    let build = SPECS.expect(state, job)?.build;
    let status = row.status.kind();
    let ahead = match status {
        JobStatus::Queued => Some(ahead(state, job)?),
        _ => None,
    };
    Ok(JobView {
        job: job.clone(),
        status,
        build,
        attempt: row.attempt,
        artifact: row.artifact().cloned(),
        failure: row.failure().map(|failure| JobFailure { reason: failure.reason, message: failure.message.clone() }),
        worker: row.worker,
        queued_at: row.queued_at,
        started_at: row.started_at,
        ended_at: row.ended_at,
        ahead,
    })
}

/// How many older jobs wait. Counted on the side that can hold fewer: the newest of a long queue is the usual question.
fn ahead(state: &dyn Store, job: &JobId) -> Result<u32, StateError> {
    let Counts { queued, last_number, head, .. } = QUEUES.get(state, &job.queue)?.unwrap_or_default();
    let queue = Range::prefix(&job.queue);
    let next = JobId { queue: job.queue.clone(), number: job.number + 1 };
    if job.number.saturating_sub(head) <= last_number.saturating_sub(job.number) {
        count(state, &queue.before(job))
    } else {
        let newer = count(state, &queue.from(&next))?;
        Ok(queued.saturating_sub(1).saturating_sub(newer))
    }
}

fn count(state: &dyn Store, range: &Range) -> Result<u32, StateError> {
    let mut count = 0;
    QUEUED.scan(state, range, Order::Ascending, |_, ()| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}
