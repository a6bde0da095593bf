//! Writers: one transactional producer each, one transaction for each batch.
//!
//! ```text
//! take over ─▶ new producer, init_transactions: fences the predecessor, and ends what it left open
//! commit ─▶ begin ─▶ send all ─▶ every delivery report ─▶ commit ─▶ positions
//!                        └─ any failed ─▶ abort ─▶ nothing was written
//! ```
//!
//! All of it blocks, so it runs on a blocking thread and goes on there if the caller leaves. After an outcome that is not
//! known the producer is never used again: librdkafka's client cannot say what became of the transaction, only the log can.

use std::{
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rdkafka::{error::KafkaError, producer::Producer, types::RDKafkaErrorCode};

use super::{
    Shared,
    client::{Client, Context, TRANSACTION_MILLIS_MAX},
    producer::{self, Report, Reported, outgoing},
    topics::{Size, Topic},
};
use crate::{Batch, CommitError, Error, Position, Record, TopicPartition, Writer};

/// The predecessor's open transaction is ended first, which needs a majority of the brokers.
const TAKE_OVER_TIME: Duration = Duration::from_secs(30);
/// Longer than the brokers keep a transaction open.
const COMMIT_TIME: Duration = Duration::from_millis(TRANSACTION_MILLIS_MAX + 2_000);

/// How long to wait for room in librdkafka's queue, which is larger than any batch.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// What became of the messages of the transaction under way.
#[derive(Default)]
struct Reports {
    offsets: Vec<u64>,
    left: usize,
    failed: Option<KafkaError>,
}

#[derive(Default)]
struct Deliveries {
    reports: Mutex<Reports>,
    changed: Condvar,
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report for Deliveries {
    /// The message's place in the batch.
    type Ticket = usize;

    fn report(&self, result: Result<u64, KafkaError>, index: usize) {
        let mut reports = self.lock();
        match result {
            Ok(offset) => {
                if let Some(place) = reports.offsets.get_mut(index) {
                    *place = offset;
                }
            }
            Err(error) => {
                reports.failed.get_or_insert(error);
            }
        }
        reports.left = reports.left.saturating_sub(1);
        if reports.left == 0 || reports.failed.is_some() {
            self.changed.notify_all();
        }
    }
}

type Commits = Reported<Deliveries>;

/// Fences every earlier writer of the owner.
pub(super) async fn take_over(shared: &Arc<Shared>, owner: &str) -> Result<KafkaWriter, Error> {
    let context = Context::with(Client::Commits, &shared.watch, Deliveries::default());
    let config = shared.config.commits(owner);
    let taken = tokio::task::spawn_blocking(move || {
        let producer: Commits = producer::start(&config, context)?;
        producer.init_transactions(TAKE_OVER_TIME).map_err(|error| Error::kafka("taking a partition over", error))?;
        Ok::<_, Error>(producer)
    });
    match taken.await.map_err(|_| Error::Closed)? {
        Ok(producer) => {
            shared.watch.worked();
            Ok(KafkaWriter { shared: shared.clone(), state: State::Ready(Arc::new(producer)) })
        }
        Err(error) => {
            shared.watch.failed(error.to_string());
            Err(error)
        }
    }
}

enum State {
    Ready(Arc<Commits>),
    /// A commit is under way, was dropped midway, or its outcome is not known.
    Unsure,
    Fenced,
}

pub(super) struct KafkaWriter {
    shared: Arc<Shared>,
    state: State,
}

type Placed = (Arc<Topic>, u32, Record);

impl KafkaWriter {
    fn place(&self, batch: Batch) -> Result<Vec<Placed>, Error> {
        for (of, _) in &batch.consumed {
            self.shared.topics.of(of)?;
        }
        let mut size = Size::default();
        let place = |(destination, record): (_, Record)| {
            let (topic, partition) = self.shared.topics.place(&destination, &record)?;
            size.add(&topic.name, &record)?;
            Ok((topic, partition, record))
        };
        batch.records.into_iter().map(place).collect()
    }
}

#[async_trait]
impl Writer for KafkaWriter {
    async fn commit(&mut self, mut batch: Batch) -> Result<Vec<Position>, CommitError> {
        let producer = match &self.state {
            State::Ready(producer) => producer.clone(),
            State::Unsure => return Err(CommitError::Failed(Error::WriterSpent)),
            State::Fenced => return Err(CommitError::Fenced),
        };
        let consumed = mem::take(&mut batch.consumed);
        let placed = self.place(batch).map_err(CommitError::Failed)?;
        // Stays so if this future is dropped while it waits.
        let before = mem::replace(&mut self.state, State::Unsure);
        let committed = tokio::task::spawn_blocking(move || transact(&producer, &placed));
        let outcome = committed.await.unwrap_or_else(|_| Err(CommitError::Ambiguous(Error::Closed)));
        match &outcome {
            Ok(_) => {
                self.state = before;
                self.shared.watch.worked();
                self.shared.consumed(&consumed);
            }
            Err(CommitError::Failed(error)) => {
                self.state = before;
                self.shared.watch.failed(error.to_string());
            }
            Err(CommitError::Fenced) => self.state = State::Fenced,
            Err(CommitError::Ambiguous(error)) => self.shared.watch.failed(error.to_string()),
        }
        outcome
    }
}

fn transact(producer: &Commits, placed: &[Placed]) -> Result<Vec<Position>, CommitError> {
    if placed.is_empty() {
        return Ok(Vec::new());
    }
    let deadline = Instant::now() + COMMIT_TIME;
    let context = producer.client().context().clone();
    let deliveries = &context.own;
    *deliveries.lock() = Reports { offsets: vec![0; placed.len()], left: placed.len(), failed: None };
    producer.begin_transaction().map_err(|error| unsuccessful(producer, error))?;
    for (index, (topic, partition, record)) in placed.iter().enumerate() {
        let mut out = outgoing(topic, *partition, record, index);
        while let Err((error, back)) = producer.send(out) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) || Instant::now() > deadline {
                return Err(abort(producer, error));
            }
            out = back;
            std::thread::sleep(FULL_PAUSE);
        }
    }
    let offsets = delivered(deliveries, deadline).map_err(|error| abort(producer, error))?;
    // A message is in flight a moment longer than until its report, and to commit meanwhile waits in steps of 100 ms.
    while producer.in_flight_count() > 0 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    producer.commit_transaction(COMMIT_TIME).map_err(|error| unsuccessful(producer, error))?;
    let position = |((topic, partition, _), offset): (&Placed, u64)| Position {
        source: TopicPartition::new(topic.name.clone(), *partition),
        offset,
    };
    Ok(placed.iter().zip(offsets).map(position).collect())
}

/// Waits for the report of every message; their offsets.
fn delivered(deliveries: &Deliveries, deadline: Instant) -> Result<Vec<u64>, KafkaError> {
    let mut reports = deliveries.lock();
    loop {
        if let Some(error) = reports.failed.take() {
            return Err(error);
        }
        if reports.left == 0 {
            return Ok(mem::take(&mut reports.offsets));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
        }
        reports = deliveries.changed.wait_timeout(reports, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Ends a transaction that cannot be committed any more. Nothing of it is ever visible, aborted here or by the brokers.
fn abort(producer: &Commits, error: KafkaError) -> CommitError {
    if let Some(fatal) = fatal(producer, &error) {
        return fatal;
    }
    match producer.abort_transaction(COMMIT_TIME) {
        Ok(()) => CommitError::Failed(Error::kafka("committing", error)),
        Err(error) => {
            fatal(producer, &error).unwrap_or_else(|| CommitError::Ambiguous(Error::kafka("aborting", error)))
        }
    }
}

/// What a call that ends a transaction has failed with.
fn unsuccessful(producer: &Commits, error: KafkaError) -> CommitError {
    if let Some(fatal) = fatal(producer, &error) {
        return fatal;
    }
    match &error {
        KafkaError::Transaction(reason) if reason.txn_requires_abort() => abort(producer, error),
        _ => CommitError::Ambiguous(Error::kafka("committing", error)),
    }
}

/// The error of a producer that can do nothing more.
fn fatal(producer: &Commits, error: &KafkaError) -> Option<CommitError> {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    let first = producer.client().fatal_error().map(|(code, _)| code);
    let codes = [first, error.rdkafka_error_code()];
    if codes.into_iter().flatten().any(|code| matches!(code, Fenced | InvalidProducerEpoch | ProducerFenced)) {
        return Some(CommitError::Fenced);
    }
    first.map(|_| CommitError::Ambiguous(Error::kafka("committing", error.clone())))
}
