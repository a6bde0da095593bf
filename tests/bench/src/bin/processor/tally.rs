//! The projection that is compared: numbers the jobs of each queue and tells of each one. It does what the real queue does for a
//! request, without the tables of what workers and people ask later, so that Streams can be given the same to do.

use longshore_processor::{Decision, Processor, StateError, Store, StoreMut, Table, TableInfo};
use longshore_schemas::{
    JobId, QueueName, Timestamp,
    events::{BuildFact, BuildRequest, BuildRequested, Fact, JobQueued, Request, WorkerSignal},
};

const LAST: Table<QueueName, u64> = Table::new(0, "last");

pub(crate) struct Tally;

fn next(state: &dyn Store, queue: &QueueName) -> Result<u64, StateError> {
    Ok(LAST.get(state, queue)?.unwrap_or(0) + 1)
}

impl Processor for Tally {
    const NAME: &'static str = "tally";
    const STATE_VERSION: u32 = 1;
    const TABLES: &'static [TableInfo] = &[LAST.info()];
    type Request = BuildRequest;
    type Fact = BuildFact;
    type Signal = WorkerSignal;
    type Soft = ();

    fn decide(
        &self,
        state: &dyn Store,
        (): &mut (),
        request: &Request<BuildRequest>,
        _: Timestamp,
    ) -> Result<Decision<BuildFact>, StateError> {
        let BuildRequest::BuildRequested(BuildRequested { queue, build }) = &request.event else {
            return Ok(Decision::nothing());
        };
        let job = JobId { queue: queue.clone(), number: next(state, queue)? };
        Ok(Decision::nothing().fact(JobQueued { job, request: request.id.clone(), build: build.clone() }))
    }

    fn signal(
        &self,
        _: &dyn Store,
        (): &mut (),
        _: &Request<WorkerSignal>,
        _: Timestamp,
    ) -> Result<Decision<BuildFact>, StateError> {
        Ok(Decision::nothing())
    }

    fn evolve(state: &mut dyn StoreMut, fact: &Fact<BuildFact>) -> Result<(), StateError> {
        let BuildFact::JobQueued(JobQueued { job, .. }) = &fact.event else { return Ok(()) };
        if next(state.as_store(), &job.queue)? != job.number {
            return Err(StateError::Contradiction(format!("{job} does not follow")));
        }
        LAST.put(state, &job.queue, &job.number)
    }

    fn next_wake(&self, _: &dyn Store, (): &mut (), _: Timestamp) -> Result<Option<Timestamp>, StateError> {
        Ok(None)
    }

    fn wake(&self, _: &dyn Store, (): &mut (), _: Timestamp) -> Result<Decision<BuildFact>, StateError> {
        Ok(Decision::nothing())
    }
}
