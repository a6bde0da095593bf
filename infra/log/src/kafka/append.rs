//! Appends: one idempotent producer for the whole process.
//!
//! ```text
//! append ─room─▶ producer's queue ─▶ brokers (acks=all) ─▶ delivery report ─▶ last of the append? answer
//! ```
//!
//! Room is bounded by bytes, so callers wait where the brokers are slow. A producer that librdkafka gives up is replaced by a
//! new one; what it had under way fails as unconfirmed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{error::KafkaError, producer::Producer, types::RDKafkaErrorCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    Config,
    client::{Client, Context, Watch},
    producer::{self, Report, Reported, outgoing},
    topics::{Size, Topic},
};
use crate::{BATCH_BYTES_MAX, Error, Position, Record, TopicPartition};

/// Content that waits for the brokers.
const ROOM_BYTES: usize = 4 * BATCH_BYTES_MAX;
/// What a record costs beside its content.
const RECORD_OVERHEAD: usize = 64;
/// How long to wait for room in librdkafka's queue, which is larger than what is let in.
const FULL_PAUSE: Duration = Duration::from_millis(5);

type Appends = Reported<Tickets>;

pub(super) struct Appender {
    config: Config,
    watch: Arc<Watch>,
    producer: Mutex<Appends>,
    room: Arc<Semaphore>,
}

/// One append under way.
struct Pending {
    state: Mutex<State>,
    _room: OwnedSemaphorePermit,
}

struct State {
    offsets: Vec<u64>,
    left: usize,
    failed: Option<KafkaError>,
    answer: Option<oneshot::Sender<Result<Vec<u64>, KafkaError>>>,
}

impl Pending {
    fn delivered(&self, index: usize, result: Result<u64, KafkaError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(offset) => state.offsets[index] = offset,
            Err(error) => {
                state.failed.get_or_insert(error);
            }
        }
        state.left -= 1;
        if state.left == 0
            && let Some(answer) = state.answer.take()
        {
            let outcome = match state.failed.take() {
                Some(error) => Err(error),
                None => Ok(std::mem::take(&mut state.offsets)),
            };
            // Whoever asked may have gone, which is their right.
            let _ = answer.send(outcome);
        }
    }
}

/// Which record of which append a delivery report is about.
struct Ticket {
    pending: Arc<Pending>,
    index: usize,
}

/// Reports carry all that they need.
struct Tickets;

impl Report for Tickets {
    type Ticket = Box<Ticket>;

    fn report(&self, result: Result<u64, KafkaError>, ticket: Box<Ticket>) {
        ticket.pending.delivered(ticket.index, result);
    }
}

impl Appender {
    pub(super) fn new(config: &Config, watch: &Arc<Watch>) -> Result<Self, Error> {
        let producer = Mutex::new(producer(config, watch)?);
        let room = Arc::new(Semaphore::new(ROOM_BYTES));
        Ok(Self { config: config.clone(), watch: watch.clone(), producer, room })
    }

    pub(super) async fn append(&self, topic: &Arc<Topic>, records: Vec<Record>) -> Result<Vec<Position>, Error> {
        let mut size = Size::default();
        for record in &records {
            size.add(&topic.name, record)?;
        }
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = (size.bytes() + size.records() * RECORD_OVERHEAD).min(ROOM_BYTES) as u32;
        let room = self.room.clone().acquire_many_owned(wanted).await.map_err(|_| Error::Closed)?;
        let (answer, outcome) = oneshot::channel();
        let state = State { offsets: vec![0; records.len()], left: records.len(), failed: None, answer: Some(answer) };
        let pending = Arc::new(Pending { state: Mutex::new(state), _room: room });
        let producer = self.producer()?;
        let partitions: Vec<u32> = records.iter().map(|record| topic.partition_of(record)).collect();
        for (index, (record, partition)) in records.iter().zip(&partitions).enumerate() {
            let mut out = outgoing(topic, *partition, record, Box::new(Ticket { pending: pending.clone(), index }));
            while let Err((error, back)) = producer.send(out) {
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    // This one and those after it are not sent, and no report will come for them.
                    drop(back);
                    (index..records.len()).for_each(|index| pending.delivered(index, Err(error.clone())));
                    break;
                }
                out = back;
                tokio::time::sleep(FULL_PAUSE).await;
            }
            if pending.state.lock().unwrap_or_else(PoisonError::into_inner).left == 0 {
                break;
            }
        }
        let offsets = outcome.await.map_err(|_| Error::Closed)?.map_err(|error| self.failed(error))?;
        self.watch.worked();
        let position =
            |(partition, offset)| Position { source: TopicPartition::new(topic.name.clone(), partition), offset };
        Ok(partitions.into_iter().zip(offsets).map(position).collect())
    }

    /// The producer, or a new one where librdkafka has given it up.
    fn producer(&self) -> Result<Appends, Error> {
        let mut current = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((code, reason)) = current.client().fatal_error() {
            tracing::warn!(%code, reason, "the producer has failed for good: a new one takes its place");
            *current = producer(&self.config, &self.watch)?;
        }
        Ok(current.clone())
    }

    fn failed(&self, error: KafkaError) -> Error {
        self.watch.failed(format!("appending failed: {error}"));
        match error.rdkafka_error_code() {
            // What the brokers refused, they did not write.
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::NotEnoughReplicas,
            ) => Error::kafka("appending", error),
            _ => Error::Unconfirmed { source: Arc::new(error) },
        }
    }
}

fn producer(config: &Config, watch: &Arc<Watch>) -> Result<Appends, Error> {
    producer::start(&config.appends(), Context::with(Client::Appends, watch, Tickets))
}
