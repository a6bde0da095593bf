//! The log on Apache Kafka.
//!
//! ```text
//! append ──one idempotent producer (`append`)────────────────┐
//! commit ──a transactional producer per owner (`writer`)─────┼─▶ brokers, acks=all ─▶ consumers (`reader`), read_committed
//! join ────a group consumer that fetches nothing (`members`)─┘
//! ```
//!
//! - **Durable before acknowledged**: a record is on all replicas that are in sync, at least two of three.
//! - **A commit is visible a moment after it returns**: the brokers then still write the transaction's end to each partition.
//!   Taking a writer waits for that, so a successor sees all of its predecessor's commits.
//! - **Fencing** is the brokers': a transactional id belongs to the last producer that took it.
//! - **Times** are the brokers' (`LogAppendTime`).
//! - **Topics** are created, and refused where their settings are dangerous (`setup`).
//!
//! Offsets of groups are stored for lag tools only, outside of transactions. Names of topics, groups and transactional ids
//! have the installation's prefix on the brokers and nowhere else (`topics`). What librdkafka says is heard in `client`.

mod append;
mod client;
mod members;
mod owners;
mod producer;
mod reader;
mod setup;
mod topics;
mod writer;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use longshore_schemas::Timestamp;
use rdkafka::{
    Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};

pub use self::client::{Client, Figures, Mistake};
use self::{
    append::Appender,
    client::{Context, Watch},
    reader::{Hubs, KafkaReader},
    topics::Topics,
};
use crate::{Error, Log, Membership, Position, Reader, Record, TopicConfig, TopicPartition, Writer};

/// How long an offset may be asked for.
const ASK_TIME: Duration = Duration::from_secs(10);
const ASK_PAUSE: Duration = Duration::from_millis(50);
/// How long members may take to leave their groups when the log is closed. Others take over sooner if they do.
const LEAVE_TIME: Duration = Duration::from_secs(5);

/// How to reach a cluster, and what it must hold.
#[derive(Debug, Clone)]
pub struct Config {
    /// `host:port` of some brokers, with commas between.
    pub brokers: String,
    /// Before the name of every topic, group and transactional id, so that several installations can share a cluster.
    pub prefix: String,
    /// How this process is called in the brokers' logs and quotas.
    pub client_id: String,
    /// Further settings of librdkafka, such as `security.protocol` and `sasl.*`, passed on as they are.
    pub properties: BTreeMap<String, String>,
    /// Those that the process uses.
    pub topics: Vec<TopicConfig>,
    /// Whether to create topics that are missing and to check the settings of those that are there; without, they only have
    /// to exist with the right number of partitions. Needs the right to do so.
    pub manage_topics: bool,
    /// Replicas of a topic that is created. With 3, two must have what is acknowledged.
    pub replication: u16,
}

impl Config {
    pub fn new(brokers: impl Into<String>, topics: impl IntoIterator<Item = impl Into<TopicConfig>>) -> Self {
        Self {
            brokers: brokers.into(),
            prefix: "longshore.".to_owned(),
            client_id: "longshore".to_owned(),
            properties: BTreeMap::new(),
            topics: topics.into_iter().map(Into::into).collect(),
            manage_topics: true,
            replication: 3,
        }
    }
}

/// The log on a Kafka cluster.
pub struct KafkaLog {
    shared: Arc<Shared>,
    appender: Appender,
}

/// Asked about offsets; reads nothing.
type Asked = BaseConsumer<Context>;

/// What all parts of one log share.
struct Shared {
    config: Config,
    topics: Topics,
    watch: Arc<Watch>,
    hubs: Hubs,
    /// Answers questions about offsets.
    asked: Arc<Asked>,
    /// What commits have said that they consumed, for lag tools.
    consumed: Mutex<HashMap<TopicPartition, u64>>,
    members: Members,
    closed: AtomicBool,
}

impl Shared {
    fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    fn consumed(&self, offsets: &[(TopicPartition, u64)]) {
        let mut consumed = self.consumed.lock().unwrap_or_else(PoisonError::into_inner);
        consumed.extend(offsets.iter().cloned());
    }

    fn consumed_of(&self, of: &TopicPartition) -> Option<u64> {
        self.consumed.lock().unwrap_or_else(PoisonError::into_inner).get(of).copied()
    }

    /// The first offset and the end of what is committed.
    async fn bounds(&self, of: &TopicPartition) -> Result<(u64, u64), Error> {
        let (topic, partition) = (self.topics.of(of)?.kafka.clone(), of.partition as i32);
        let watermarks =
            move |asked: &Asked| settled(asked, &topic, || asked.fetch_watermarks(&topic, partition, ASK_TIME));
        let (start, end) = self.ask(watermarks).await?;
        Ok((start.max(0) as u64, end.max(0) as u64))
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Asked) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, Error> {
        self.check_open()?;
        let asked = self.asked.clone();
        let answer = tokio::task::spawn_blocking(move || question(&asked)).await.map_err(|_| Error::Closed)?;
        match answer {
            Ok(answer) => {
                self.watch.worked();
                Ok(answer)
            }
            Err(error) => {
                self.watch.failed(format!("asking for an offset failed: {error}"));
                Err(Error::kafka("asking for an offset", error))
            }
        }
    }
}

/// Asks again while a partition moves from one broker to another, or has just been made. Blocks.
///
/// This client follows no topic, so nobody else refreshes what it once heard of the partition: without that, a partition
/// that had no leader at that moment would have none for minutes.
fn settled<T>(
    asked: &Asked,
    topic: &str,
    mut question: impl FnMut() -> Result<T, KafkaError>,
) -> Result<T, KafkaError> {
    use RDKafkaErrorCode::{
        LeaderNotAvailable, NotLeaderForPartition, UnknownPartition, UnknownTopic, UnknownTopicOrPartition,
    };
    let deadline = Instant::now() + ASK_TIME;
    loop {
        let answer = question();
        let code = answer.as_ref().err().and_then(KafkaError::rdkafka_error_code);
        let moving = matches!(
            code,
            Some(
                LeaderNotAvailable | NotLeaderForPartition | UnknownPartition | UnknownTopic | UnknownTopicOrPartition
            )
        );
        if !moving || Instant::now() > deadline {
            return answer;
        }
        std::thread::sleep(ASK_PAUSE);
        if let Err(error) = asked.fetch_metadata(Some(topic), ASK_TIME) {
            tracing::debug!(%error, topic, "looking for the topic's leaders");
        }
    }
}

/// The threads that are members of groups.
#[derive(Default, Clone)]
struct Members(Arc<(Mutex<usize>, Condvar)>);

/// A thread's place among them.
struct Present(Members);

impl Members {
    fn enter(&self) -> Present {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Present(self.clone())
    }

    /// Blocks until all have left, or the time is over.
    fn wait(&self, time: Duration) {
        let (count, changed) = &*self.0;
        let present = count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_timeout_while(present, time, |count| *count > 0));
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let (count, changed) = &*self.0.0;
        *count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        changed.notify_all();
    }
}

impl KafkaLog {
    /// Connects, and makes sure of the topics. Needs a runtime with several threads.
    pub async fn connect(config: Config) -> Result<Arc<Self>, Error> {
        config.check()?;
        let watch = Watch::new();
        let asked = Asked::from_config_and_context(&config.reads(), Context::new(Client::Admin, &watch))
            .map_err(|error| Error::kafka("connecting", error))?;
        let shared = Shared {
            topics: Topics::new(&config.prefix, &config.topics),
            watch: watch.clone(),
            hubs: Hubs::default(),
            asked: Arc::new(asked),
            consumed: Mutex::default(),
            members: Members::default(),
            closed: AtomicBool::new(false),
            config,
        };
        setup::prepare(&shared).await?;
        let appender = Appender::new(&shared.config, &watch)?;
        tracing::info!(brokers = shared.config.brokers, prefix = shared.config.prefix, "the Kafka log is open");
        Ok(Arc::new(Self { shared: Arc::new(shared), appender }))
    }

    /// The cluster and the prefix: the same for all processes of an installation, and no other installation's.
    pub async fn identity(&self) -> Result<String, Error> {
        let id = self.shared.ask(|asked| {
            let id = asked.client().fetch_cluster_id(ASK_TIME);
            id.ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut))
        });
        Ok(format!("{}-{}", id.await?, self.shared.config.prefix.trim_end_matches('.')))
    }

    /// librdkafka's statistics, by what its clients do.
    pub fn figures(&self) -> BTreeMap<Client, Figures> {
        self.shared.watch.figures()
    }

    /// Refuses everything from now on, and waits until those whose memberships were dropped have left their groups, so that
    /// others need not wait for their sessions to end.
    pub async fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let members = self.shared.members.clone();
        // Nothing depends on it.
        let _ = tokio::task::spawn_blocking(move || members.wait(LEAVE_TIME)).await;
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn owners(&self, group: &str, topic: &str) -> Result<BTreeMap<u32, String>, Error> {
        let topic = self.shared.topics.get(topic)?;
        owners::owners(&self.shared, group, topic).await
    }

    fn partitions(&self, topic: &str) -> Result<u32, Error> {
        Ok(self.shared.topics.get(topic)?.partitions)
    }

    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<Vec<Position>, Error> {
        self.shared.check_open()?;
        let topic = self.shared.topics.get(topic)?;
        self.appender.append(topic, records).await
    }

    fn reader(&self, from: Vec<(TopicPartition, u64)>) -> Result<Box<dyn Reader>, Error> {
        self.shared.check_open()?;
        Ok(Box::new(KafkaReader::new(&self.shared, from)?))
    }

    async fn end_offset(&self, of: &TopicPartition) -> Result<u64, Error> {
        Ok(self.shared.bounds(of).await?.1)
    }

    async fn start_offset(&self, of: &TopicPartition) -> Result<u64, Error> {
        Ok(self.shared.bounds(of).await?.0)
    }

    async fn offset_at(&self, of: &TopicPartition, at: Timestamp) -> Result<u64, Error> {
        let topic = self.shared.topics.of(of)?.kafka.clone();
        let (name, partition) = (topic.clone(), of.partition as i32);
        // Negative times mean something else to the brokers.
        let at = Offset::Offset(at.millis().max(0));
        let found = self.shared.ask(move |asked| {
            let mut list = TopicPartitionList::with_capacity(1);
            list.add_partition_offset(&name, partition, at)?;
            settled(asked, &name, || asked.offsets_for_times(list.clone(), ASK_TIME))
        });
        let found = found.await?.find_partition(&topic, partition).map(|found| found.offset());
        match found {
            Some(Offset::Offset(offset)) => Ok(offset.max(0) as u64),
            _ => self.end_offset(of).await,
        }
    }

    async fn join(&self, group: &str, topic: &str) -> Result<Box<dyn Membership>, Error> {
        self.shared.check_open()?;
        let topic = self.shared.topics.get(topic)?;
        Ok(Box::new(members::join(&self.shared, group, topic)?))
    }

    fn trouble(&self) -> Option<String> {
        self.shared.watch.trouble()
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>, Error> {
        self.shared.check_open()?;
        Ok(Box::new(writer::take_over(&self.shared, owner).await?))
    }
}
