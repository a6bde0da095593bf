//! Readers: each partition's own queue of a shared consumer, read without a thread in between.
//!
//! ```text
//! brokers ─fetch─▶ consumer (`Hub`) ─▶ queue of each partition, bounded ─poll─▶ reader
//!                                            └─ no longer empty ──wakes──────────┘
//! ```
//!
//! A consumer reads a partition for one reader at a time, so a reader takes the first hub where all of its partitions are
//! free. A control node's followers share one; streams that begin elsewhere use others.
//!
//! Markers of transactions have offsets too. librdkafka passes over them and moves the consumer's position, which is looked
//! at whenever the queues are empty; nobody but the reader takes from them, so the position is not ahead of what it has.

use std::{
    collections::HashSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use longshore_schemas::Timestamp;
use rdkafka::{
    Message, Offset, Timestamp as KafkaTimestamp, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer, base_consumer::PartitionQueue},
    error::KafkaError,
    message::{BorrowedMessage, Headers},
    types::RDKafkaErrorCode,
};
use tokio::sync::Notify;

use super::{
    Shared,
    client::{Client, Context},
};
use crate::{Error, ReadLimit, Reader, Record, StoredRecord, TopicPartition};

/// How often a hub serves what is not a record.
const POLL: Duration = Duration::from_millis(100);
/// A reader looks by itself that often, so that nothing is lost with a wake-up.
const LOOK: Duration = Duration::from_secs(1);
/// Hubs that are kept while nobody reads.
const IDLE_HUBS_MAX: usize = 2;
/// Takes the place of headers that cannot be read.
const UNREADABLE_HEADERS: &str = "longshore-unreadable-headers";

/// A consumer that readers share.
struct Hub {
    consumer: Arc<BaseConsumer<Context>>,
    taken: Mutex<HashSet<TopicPartition>>,
}

#[derive(Default)]
pub(super) struct Hubs(Mutex<Vec<Arc<Hub>>>);

impl Hubs {
    /// The first consumer where these are free; they are taken there from now on.
    fn take(&self, shared: &Arc<Shared>, wanted: &[TopicPartition]) -> Result<Arc<Hub>, Error> {
        let mut hubs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for hub in hubs.iter() {
            let mut taken = hub.taken.lock().unwrap_or_else(PoisonError::into_inner);
            if wanted.iter().all(|of| !taken.contains(of)) {
                taken.extend(wanted.iter().cloned());
                return Ok(hub.clone());
            }
        }
        let context = Context::new(Client::Reads, &shared.watch);
        let consumer = BaseConsumer::from_config_and_context(&shared.config.reads(), context)
            .map_err(|error| Error::kafka("starting a reader", error))?;
        let hub = Arc::new(Hub { consumer: Arc::new(consumer), taken: Mutex::new(wanted.iter().cloned().collect()) });
        let weak = Arc::downgrade(&hub);
        std::thread::Builder::new()
            .name("kafka-reader".to_owned())
            .spawn(move || serve(&weak))
            .map_err(|source| Error::Storage { doing: "starting a thread", source: Arc::new(source) })?;
        hubs.push(hub.clone());
        Ok(hub)
    }

    fn give_back(&self, hub: &Arc<Hub>, partitions: impl Iterator<Item = TopicPartition>) {
        let mut hubs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut taken = hub.taken.lock().unwrap_or_else(PoisonError::into_inner);
            for of in partitions {
                taken.remove(&of);
            }
        }
        let idle = |hub: &Arc<Hub>| hub.taken.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if idle(hub) && hubs.iter().filter(|hub| idle(hub)).count() > IDLE_HUBS_MAX {
            hubs.retain(|other| !Arc::ptr_eq(other, hub));
        }
    }
}

/// Statistics and errors of the consumer. Records come by the partitions' queues.
fn serve(hub: &Weak<Hub>) {
    while let Some(hub) = hub.upgrade() {
        if let Some(Err(error)) = hub.consumer.poll(POLL) {
            tracing::debug!(%error, "a reader's consumer");
        }
    }
}

struct Source {
    of: TopicPartition,
    /// As the brokers call the topic.
    topic: String,
    position: u64,
    queue: PartitionQueue<Context>,
    /// Taken from the queue and not returned yet: it was too large for its read.
    waiting: Option<StoredRecord>,
    /// Taken from the queue and not mended yet. librdkafka tells of it once, and may read on only then.
    trouble: Option<KafkaError>,
}

pub(super) struct KafkaReader {
    shared: Arc<Shared>,
    hub: Arc<Hub>,
    wake: Arc<Notify>,
    sources: Vec<Source>,
    /// The source that the next read begins with.
    turn: usize,
}

impl KafkaReader {
    pub(super) fn new(shared: &Arc<Shared>, from: Vec<(TopicPartition, u64)>) -> Result<Self, Error> {
        let mut wanted: Vec<TopicPartition> = Vec::with_capacity(from.len());
        for (of, _) in &from {
            shared.topics.of(of)?;
            if wanted.contains(of) {
                return Err(Error::RepeatedPartition { of: of.clone() });
            }
            wanted.push(of.clone());
        }
        let hub = shared.hubs.take(shared, &wanted)?;
        let mut reader =
            Self { shared: shared.clone(), hub, wake: Arc::new(Notify::new()), sources: Vec::new(), turn: 0 };
        // From here on dropping the reader gives back what it took.
        for (of, position) in from {
            let topic = shared.topics.of(&of)?.kafka.clone();
            // Before it is assigned, so that no record comes another way.
            let queue = reader.hub.consumer.split_partition_queue(&topic, of.partition as i32);
            let mut queue = queue.ok_or_else(|| Error::UnknownTopic { topic: of.topic.to_string() })?;
            let wake = reader.wake.clone();
            queue.set_nonempty_callback(move || wake.notify_one());
            reader.sources.push(Source { of, topic, position, queue, waiting: None, trouble: None });
        }
        let consumer = &reader.hub.consumer;
        consumer
            .incremental_assign(&list(&reader.sources)?)
            .map_err(|error| Error::kafka("starting to read", error))?;
        Ok(reader)
    }

    /// Takes what is there, within the limit. Partitions in trouble are left alone until they are mended.
    fn take(&mut self, limit: ReadLimit) -> Vec<StoredRecord> {
        let (records_max, bytes_max) = (limit.records.max(1), limit.bytes);
        let (mut records, mut bytes) = (Vec::new(), 0);
        let count = self.sources.len();
        self.turn = (self.turn + 1) % count.max(1);
        for index in (self.turn..count).chain(0..self.turn) {
            let source = &mut self.sources[index];
            while records.len() < records_max && source.trouble.is_none() {
                let record = match source.waiting.take() {
                    Some(record) => record,
                    None => match source.queue.poll(Duration::ZERO) {
                        None => break,
                        Some(Ok(message)) => stored(&source.of, &message),
                        Some(Err(error)) => {
                            source.trouble = Some(error);
                            break;
                        }
                    },
                };
                let size = record.record.bytes();
                if !records.is_empty() && bytes + size > bytes_max {
                    source.waiting = Some(record);
                    return records;
                }
                bytes += size;
                source.position = record.offset + 1;
                records.push(record);
            }
        }
        records
    }

    /// Follows positions that moved over what is not a record. To be called when the queues are empty.
    fn moved(&mut self) -> Result<bool, Error> {
        let positions = self.hub.consumer.position().map_err(|error| Error::kafka("reading a position", error))?;
        let mut moved = false;
        for source in self.sources.iter_mut().filter(|source| source.waiting.is_none()) {
            let found = positions.find_partition(&source.topic, source.of.partition as i32);
            if let Some(Offset::Offset(position)) = found.map(|found| found.offset())
                && position > 0
                && position as u64 > source.position
            {
                source.position = position as u64;
                moved = true;
            }
        }
        Ok(moved)
    }

    /// Reads a partition from its position on, after librdkafka has given it up.
    fn restart(&self, index: usize) -> Result<(), Error> {
        let list = list(std::slice::from_ref(&self.sources[index]))?;
        let consumer = &self.hub.consumer;
        let restarted = consumer.incremental_unassign(&list).and_then(|()| consumer.incremental_assign(&list));
        restarted.map_err(|error| Error::kafka("reading", error))
    }

    /// What to do about an error of one partition: nothing, go on elsewhere, or tell. Whether the position moved. Where it breaks
    /// off, the next read begins with it again.
    async fn mend(&mut self, index: usize, error: KafkaError) -> Result<bool, Error> {
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return Err(Error::kafka("reading", error));
        }
        let out_of_range = [RDKafkaErrorCode::AutoOffsetReset, RDKafkaErrorCode::OffsetOutOfRange];
        match error.rdkafka_error_code() {
            Some(code) if out_of_range.contains(&code) => {
                let (of, offset) = (self.sources[index].of.clone(), self.sources[index].position);
                let (start, end) = self.shared.bounds(&of).await?;
                if offset > end {
                    return Err(Error::BeyondEnd { of, offset, end });
                }
                self.sources[index].position = offset.max(start);
                self.restart(index)?;
                Ok(offset < start)
            }
            Some(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::UnknownTopicOrPartition) => {
                Err(Error::kafka("reading", error))
            }
            _ => {
                tracing::debug!(%error, partition = %self.sources[index].of, "reading");
                Ok(false)
            }
        }
    }
}

/// The sources as librdkafka takes them, each with its position.
fn list(sources: &[Source]) -> Result<TopicPartitionList, Error> {
    let mut list = TopicPartitionList::with_capacity(sources.len());
    for source in sources {
        let offset = Offset::Offset(i64::try_from(source.position).unwrap_or(i64::MAX));
        list.add_partition_offset(&source.topic, source.of.partition as i32, offset)
            .map_err(|error| Error::kafka("starting to read", error))?;
    }
    Ok(list)
}

#[async_trait]
impl Reader for KafkaReader {
    async fn read(&mut self, limit: ReadLimit) -> Result<Vec<StoredRecord>, Error> {
        loop {
            let troubled = |(index, source): (usize, &Source)| Some((index, source.trouble.clone()?));
            if let Some((index, error)) = self.sources.iter().enumerate().find_map(troubled) {
                let moved = self.mend(index, error).await?;
                self.sources[index].trouble = None;
                if moved {
                    return Ok(Vec::new());
                }
            }
            let records = self.take(limit);
            if !records.is_empty() {
                return Ok(records);
            }
            if self.moved()? {
                return Ok(Vec::new());
            }
            if self.sources.iter().any(|source| source.trouble.is_some()) {
                continue;
            }
            // Too long a wait is no error, and a wake-up that came before is not lost.
            let _ = tokio::time::timeout(LOOK, self.wake.notified()).await;
        }
    }

    fn position(&self, of: &TopicPartition) -> Option<u64> {
        self.sources.iter().find(|source| source.of == *of).map(|source| source.position)
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        if let Ok(list) = list(&self.sources)
            && list.count() > 0
            && let Err(error) = self.hub.consumer.incremental_unassign(&list)
        {
            tracing::debug!(%error, "a reader's partitions were not given back");
        }
        let taken: Vec<TopicPartition> = self.sources.drain(..).map(|source| source.of).collect();
        self.shared.hubs.give_back(&self.hub, taken.into_iter());
    }
}

fn stored(of: &TopicPartition, message: &BorrowedMessage<'_>) -> StoredRecord {
    let at = match message.timestamp() {
        KafkaTimestamp::LogAppendTime(millis) | KafkaTimestamp::CreateTime(millis) => millis,
        KafkaTimestamp::NotAvailable => 0,
    };
    let (key, value) = (message.key().unwrap_or_default(), message.payload());
    // One piece of memory for both.
    let mut content = BytesMut::with_capacity(key.len() + value.map_or(0, <[u8]>::len));
    content.extend_from_slice(key);
    let key = content.split().freeze();
    let value = value.map(|value| {
        content.extend_from_slice(value);
        content.split().freeze()
    });
    let headers = message.headers().map(headers).unwrap_or_default();
    StoredRecord {
        source: of.clone(),
        offset: message.offset().max(0) as u64,
        at: Timestamp::from_millis(at),
        record: Record { key, value, headers },
    }
}

fn headers(headers: &rdkafka::message::BorrowedHeaders) -> Vec<(String, Bytes)> {
    let read = || {
        let header = |header: rdkafka::message::Header<'_, &[u8]>| {
            (header.key.to_owned(), Bytes::copy_from_slice(header.value.unwrap_or_default()))
        };
        headers.iter().map(header).collect()
    };
    // The library panics at a name that is not UTF-8, and anyone can send one.
    std::panic::catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| vec![(UNREADABLE_HEADERS.to_owned(), Bytes::from_static(b"a name is not UTF-8"))])
}
