//! Appends: one idempotent producer for the whole process, and a lane for each partition.
//!
//! ```text
//! append ─room─▶ lane ─a group─▶ producer's queue ─▶ brokers (acks=all) ─▶ reports ─▶ last of the append? answer
//!                  └──── the next group, once each of the last one was reported ─┘
//! ```
//!
//! What waits, waits in the lane: librdkafka's thread spins for as long as messages of a partition wait behind others in flight. That
//! is a core of every process that writes, for seconds, whenever a broker dies, and just then the others need it.
//!
//! Room is bounded by bytes, so callers wait where the brokers are slow. A producer that librdkafka gives up is replaced by a
//! new one; what it had under way fails as unconfirmed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    error::KafkaError,
    producer::{BaseRecord, Producer},
    types::RDKafkaErrorCode,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    Config,
    client::{Client, Context, MESSAGE_MILLIS_MAX, Watch},
    producer::{self, Report, Reported, outgoing},
    topics::{Size, Topic},
};
use crate::{BATCH_BYTES_MAX, Error, Position, Record, TopicPartition};

/// Content that waits for the brokers.
const ROOM_BYTES: usize = 4 * BATCH_BYTES_MAX;
/// What a record costs beside its content.
const RECORD_OVERHEAD: usize = 64;
/// Records of a lane that are in flight at once.
const GROUP_RECORDS_MAX: usize = 1_000;
/// How long a record may wait in its lane: callers get an answer, whatever becomes of those before it.
const WAIT_MAX: Duration = Duration::from_millis(MESSAGE_MILLIS_MAX);
/// How long to wait for room in librdkafka's queue, which is larger than what is let in.
const FULL_PAUSE: Duration = Duration::from_millis(5);

type Appends = Reported<Tickets>;

pub(super) struct Appender {
    source: Arc<Source>,
    lanes: Mutex<HashMap<TopicPartition, mpsc::UnboundedSender<Waiting>>>,
    room: Arc<Semaphore>,
}

/// Where lanes take their producer from.
struct Source {
    config: Config,
    watch: Arc<Watch>,
    producer: Mutex<Appends>,
}

/// A record in its lane.
struct Waiting {
    record: Record,
    pending: Arc<Pending>,
    index: usize,
    since: Instant,
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
    /// Of its group. With the last one, the lane goes on.
    _group: Arc<oneshot::Sender<()>>,
}

/// Reports carry all that they need.
struct Tickets;

impl Report for Tickets {
    type Ticket = Box<Ticket>;

    fn report(&self, result: Result<u64, KafkaError>, ticket: Box<Ticket>) {
        ticket.pending.delivered(ticket.index, result);
    }
}

impl Source {
    /// The producer, or a new one where librdkafka has given it up.
    fn producer(&self) -> Result<Appends, Error> {
        let mut current = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((code, reason)) = current.client().fatal_error() {
            tracing::warn!(%code, reason, "the producer has failed for good: a new one takes its place");
            *current = producer(&self.config, &self.watch)?;
        }
        Ok(current.clone())
    }
}

/// Hands over what waits for a partition, group by group, until nobody can append to it any more.
async fn lane(source: Arc<Source>, topic: Arc<Topic>, partition: u32, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
    let mut group = Vec::new();
    while waiting.recv_many(&mut group, GROUP_RECORDS_MAX).await > 0 {
        // Nobody sends: it ends with the last ticket.
        let _ = hand_over(&source, &topic, partition, &mut group).await.await;
    }
}

/// What is answered once each record of the group was reported.
async fn hand_over(source: &Source, topic: &Topic, partition: u32, group: &mut Vec<Waiting>) -> oneshot::Receiver<()> {
    let (last, reported) = oneshot::channel();
    let last = Arc::new(last);
    let producer = source.producer().map_err(|_| KafkaError::MessageProduction(RDKafkaErrorCode::Fatal));
    for Waiting { record, pending, index, since } in group.drain(..) {
        let sent = match &producer {
            // It has waited as long as librdkafka would have kept it.
            _ if since.elapsed() > WAIT_MAX => Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)),
            Err(error) => Err(error.clone()),
            Ok(producer) => {
                let ticket = Box::new(Ticket { pending: pending.clone(), index, _group: last.clone() });
                send(producer, outgoing(topic, partition, &record, ticket)).await
            }
        };
        if let Err(error) = sent {
            // No report will come for it.
            pending.delivered(index, Err(error));
        }
    }
    reported
}

async fn send(producer: &Appends, mut out: BaseRecord<'_, [u8], [u8], Box<Ticket>>) -> Result<(), KafkaError> {
    while let Err((error, back)) = producer.send(out) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
            return Err(error);
        }
        out = back;
        tokio::time::sleep(FULL_PAUSE).await;
    }
    Ok(())
}

impl Appender {
    pub(super) fn new(config: &Config, watch: &Arc<Watch>) -> Result<Self, Error> {
        let producer = Mutex::new(producer(config, watch)?);
        let source = Arc::new(Source { config: config.clone(), watch: watch.clone(), producer });
        Ok(Self { source, lanes: Mutex::default(), room: Arc::new(Semaphore::new(ROOM_BYTES)) })
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
        let partitions: Vec<u32> = records.iter().map(|record| topic.partition_of(record)).collect();
        let since = Instant::now();
        for (index, (record, partition)) in records.into_iter().zip(&partitions).enumerate() {
            self.queue(topic, *partition, Waiting { record, pending: pending.clone(), index, since });
        }
        let offsets = outcome.await.map_err(|_| Error::Closed)?.map_err(|error| self.failed(error))?;
        self.source.watch.worked();
        let position =
            |(partition, offset)| Position { source: TopicPartition::new(topic.name.clone(), partition), offset };
        Ok(partitions.into_iter().zip(offsets).map(position).collect())
    }

    fn queue(&self, topic: &Arc<Topic>, partition: u32, waiting: Waiting) {
        let start = || {
            let (lane_of, records) = mpsc::unbounded_channel();
            tokio::spawn(lane(self.source.clone(), topic.clone(), partition, records));
            lane_of
        };
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry(TopicPartition::new(topic.name.clone(), partition)).or_insert_with(start);
        // A lane ends with the runtime that it was started in.
        if let Err(mpsc::error::SendError(waiting)) = lane.send(waiting) {
            *lane = start();
            let _ = lane.send(waiting);
        }
    }

    fn failed(&self, error: KafkaError) -> Error {
        self.source.watch.failed(format!("appending failed: {error}"));
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
