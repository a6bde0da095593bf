//! A processor that counts: each job's number says what a request for it does.
//!
//! | number | a `CancelRequested` for it |
//! |---|---|
//! | 13 | is refused |
//! | 30 | is counted, and sets a deadline 20 ms later, which a beat puts off |
//! | 66 | fails in `decide` |
//! | 67 | fails in `evolve`, after another fact of it was applied |
//! | 70 | is counted, and asks something of replication |
//! | others | are counted |

use std::{sync::Arc, time::Duration};

use longshore_log::{Record, StoredRecord, TopicPartition};
use longshore_processor::{Decision, Processor, StateError, Store, StoreMut, Table, TableInfo};
use longshore_runtime::{Gate, Keyring, seal};
use longshore_schemas::{
    ArtifactId, JobId, Timestamp,
    auth::{KnownKeys, RequestKey, Sender},
    codec,
    events::{
        ArtifactRequest, BuildFact, BuildRequest, CancelRequested, Event, Fact, Heartbeat, JobCanceled, JobRequeued,
        JobStarted, RefusalCode, ReportOrder, Request, UnpinRequested, WorkerSignal,
    },
};

pub(crate) const COUNTS: Table<JobId, u32> = Table::new(0, "counts");
const DUE: Table<JobId, Timestamp> = Table::new(1, "due");
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// V is the state's version.
pub(crate) struct Toy<const V: u32>;

#[derive(Default)]
pub(crate) struct Soft {
    beat: Option<Timestamp>,
}

impl<const V: u32> Processor for Toy<V> {
    const NAME: &'static str = "toy";
    const STATE_VERSION: u32 = V;
    const TABLES: &'static [TableInfo] = &[COUNTS.info(), DUE.info()];
    type Request = BuildRequest;
    type Fact = BuildFact;
    type Signal = WorkerSignal;
    type Soft = Soft;

    fn decide(
        &self,
        state: &dyn Store,
        _: &mut Soft,
        request: &Request<BuildRequest>,
        _: Timestamp,
    ) -> Result<Decision<BuildFact>, StateError> {
        let BuildRequest::CancelRequested(CancelRequested { job }) = &request.event else {
            return Ok(Decision::nothing());
        };
        let count = COUNTS.get(state, job)?.unwrap_or(0) + 1;
        let counted = Decision::nothing().fact(JobCanceled { job: job.clone(), attempt: count });
        Ok(match job.number {
            13 => Decision::refuse(RefusalCode::Conflict, "thirteen is not counted"),
            30 => counted.fact(JobStarted {
                job: job.clone(),
                attempt: 1,
                worker: "w".parse().expect("valid"),
                claim: "c".parse().expect("valid"),
            }),
            66 => return Err(StateError::Contradiction("sixty-six".to_owned())),
            67 => counted.fact(JobCanceled { job: job.clone(), attempt: 1_000 }),
            70 => counted.request(ArtifactRequest::from(UnpinRequested {
                artifact: ArtifactId::of(b"a"),
                service: "web".parse().expect("valid"),
            })),
            _ => counted,
        })
    }

    fn signal(
        &self,
        _: &dyn Store,
        soft: &mut Soft,
        _: &Request<WorkerSignal>,
        now: Timestamp,
    ) -> Result<Decision<BuildFact>, StateError> {
        soft.beat = Some(now);
        Ok(Decision::nothing())
    }

    fn evolve(state: &mut dyn StoreMut, fact: &Fact<BuildFact>) -> Result<(), StateError> {
        match &fact.event {
            BuildFact::JobCanceled(JobCanceled { job, attempt }) => {
                let count = COUNTS.get(state.as_store(), job)?.unwrap_or(0) + 1;
                if count != *attempt {
                    return Err(StateError::Contradiction(format!("{attempt} is not {count}")));
                }
                COUNTS.put(state, job, &count)
            }
            BuildFact::JobStarted(JobStarted { job, .. }) => DUE.put(state, job, &(fact.at + PAUSE)),
            BuildFact::JobRequeued(JobRequeued { job, .. }) => {
                DUE.delete(state, job);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn next_wake(&self, state: &dyn Store, soft: &mut Soft, _: Timestamp) -> Result<Option<Timestamp>, StateError> {
        Ok(due(state, soft)?.map(|(_, due)| due))
    }

    fn wake(&self, state: &dyn Store, soft: &mut Soft, now: Timestamp) -> Result<Decision<BuildFact>, StateError> {
        Ok(match due(state, soft)? {
            Some((job, due)) if due <= now => {
                Decision::nothing().fact(JobRequeued { job, attempt: 1, reason: "due".to_owned() })
            }
            _ => Decision::nothing(),
        })
    }
}

fn due(state: &dyn Store, soft: &Soft) -> Result<Option<(JobId, Timestamp)>, StateError> {
    let first = DUE.first(state, &longshore_processor::Range::all(), longshore_processor::Order::Ascending)?;
    Ok(first.map(|(job, due)| (job, soft.beat.map_or(due, |beat| due.max(beat + PAUSE)))))
}

pub(crate) fn job(text: &str) -> JobId {
    text.parse().expect("valid")
}

pub(crate) fn request(id: &str, job_text: &str) -> Request<BuildRequest> {
    let event = CancelRequested { job: job(job_text) }.into();
    let id = id.parse().expect("valid");
    Request { id, at: Timestamp(0), actor: "test".to_owned(), trace: None, report: None, event }
}

pub(crate) fn report(boot: u64, sequence: u64, job_text: &str) -> Request<BuildRequest> {
    let report = Some(ReportOrder { sender: "s".to_owned(), boot, sequence });
    Request { report, ..request(&format!("r-{boot}-{sequence}"), job_text) }
}

pub(crate) fn beat(queue_job: &str) -> Request<WorkerSignal> {
    let event = Heartbeat { job: job(queue_job), attempt: 1, worker: "w".parse().expect("valid") }.into();
    let id = "beat".parse().expect("valid");
    Request { id, at: Timestamp(0), actor: "w".to_owned(), trace: None, report: None, event }
}

pub(crate) fn record<E: Event>(request: &Request<E>) -> Record
where
    Request<E>: codec::Message,
{
    seal(&key(), E::TOPIC.name, unsigned(request))
}

pub(crate) fn unsigned<E: Event>(request: &Request<E>) -> Record
where
    Request<E>: codec::Message,
{
    Record::new(request.event.key(), codec::encode(request).expect("encodes"))
}

pub(crate) fn key() -> RequestKey {
    RequestKey::new(Sender::Control, &[7; 32])
}

pub(crate) fn gate() -> Arc<dyn Gate> {
    Arc::new(Keyring::new(key(), KnownKeys::new([key()])))
}

pub(crate) fn stored(topic: &str, partition: u32, offset: u64, record: Record) -> StoredRecord {
    StoredRecord { source: TopicPartition::new(topic, partition), offset, at: Timestamp(0), record }
}
