//! What all clients of librdkafka here have in common: their settings, and who hears what they say.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use rdkafka::{
    ClientConfig, ClientContext, Statistics, config::RDKafkaLogLevel, consumer::ConsumerContext, error::KafkaError,
    types::RDKafkaErrorCode,
};

use super::Config;
use crate::{Error, RECORD_BYTES_MAX};

/// A record with its headers, and what the protocol adds.
pub(super) const MESSAGE_BYTES_MAX: usize = 2 * RECORD_BYTES_MAX;
/// How long a transaction may stay open before the brokers abort it.
pub(super) const TRANSACTION_MILLIS_MAX: u64 = 10_000;
/// How long a member of a group may be silent before its partitions go to others.
const SESSION_MILLIS: u64 = 6_000;

/// Settings of librdkafka that the promises of this log depend on: it makes them itself.
pub const OWN_PROPERTIES: [&str; 17] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "client.id",
    "enable.auto.commit",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "isolation.level",
    "max.in.flight.requests.per.connection",
    "message.max.bytes",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "transactional.id",
];

/// What a client does, in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    Appends,
    Commits,
    Reads,
    Membership,
    Admin,
}

impl Client {
    /// In a word, for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Appends => "appends",
            Self::Commits => "commits",
            Self::Reads => "reads",
            Self::Membership => "membership",
            Self::Admin => "admin",
        }
    }
}

/// Figures of librdkafka's statistics, summed over the clients of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    pub clients: u64,
    /// Messages that wait in producers' queues, or in readers' for whoever reads.
    pub queued_messages: u64,
    pub queued_bytes: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub requests: u64,
    pub request_errors: u64,
    pub timeouts: u64,
    pub retries: u64,
    pub connects: u64,
    /// The slowest broker's mean round trip of the last interval.
    pub round_trip_seconds: f64,
}

/// Hears what the clients say.
pub(super) struct Watch {
    trouble: Mutex<Option<String>>,
    figures: Mutex<BTreeMap<(Client, String), Figures>>,
}

impl Watch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { trouble: Mutex::default(), figures: Mutex::default() })
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something did not work.
    pub(super) fn failed(&self, reason: String) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_none() {
            tracing::warn!(reason, "the Kafka cluster does not take records");
        }
        *trouble = Some(reason);
    }

    /// Something was written or answered.
    pub(super) fn worked(&self) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.take().is_some() {
            tracing::info!("the Kafka cluster works again");
        }
    }

    pub(super) fn figures(&self) -> BTreeMap<Client, Figures> {
        let mut sums: BTreeMap<Client, Figures> = BTreeMap::new();
        for ((client, _), one) in self.figures.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let sum = sums.entry(*client).or_default();
            sum.clients += 1;
            sum.queued_messages += one.queued_messages;
            sum.queued_bytes += one.queued_bytes;
            sum.sent_bytes += one.sent_bytes;
            sum.received_bytes += one.received_bytes;
            sum.requests += one.requests;
            sum.request_errors += one.request_errors;
            sum.timeouts += one.timeouts;
            sum.retries += one.retries;
            sum.connects += one.connects;
            sum.round_trip_seconds = sum.round_trip_seconds.max(one.round_trip_seconds);
        }
        sums
    }
}

/// A client's context, and what belongs to its kind. When it goes, its figures go.
pub(super) struct Context<T = ()> {
    client: Client,
    watch: Arc<Watch>,
    /// As librdkafka calls the client, once it has told.
    name: Mutex<Option<String>>,
    pub(super) own: T,
}

impl Context {
    pub(super) fn new(client: Client, watch: &Arc<Watch>) -> Self {
        Self::with(client, watch, ())
    }
}

impl<T> Context<T> {
    pub(super) fn with(client: Client, watch: &Arc<Watch>, own: T) -> Self {
        Self { client, watch: watch.clone(), name: Mutex::default(), own }
    }
}

impl<T> Drop for Context<T> {
    fn drop(&mut self) {
        if let Some(name) = self.name.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.watch.figures.lock().unwrap_or_else(PoisonError::into_inner).remove(&(self.client, name));
        }
    }
}

fn count(figure: impl TryInto<u64>) -> u64 {
    figure.try_into().unwrap_or(0)
}

impl<T: Send + Sync> ClientContext for Context<T> {
    /// Connections come and go, and librdkafka tells of each as an error. What matters comes back to callers.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, message, "librdkafka");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning if !matches!(facility, "FAIL" | "ERROR" | "REQTMOUT") => {
                tracing::warn!(facility, message, "librdkafka");
            }
            _ => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let mut figures = Figures {
            queued_messages: statistics.msg_cnt,
            queued_bytes: statistics.msg_size,
            sent_bytes: count(statistics.tx_bytes),
            received_bytes: count(statistics.rx_bytes),
            requests: count(statistics.tx),
            ..Figures::default()
        };
        for broker in statistics.brokers.values() {
            figures.request_errors += broker.txerrs;
            figures.timeouts += broker.req_timeouts;
            figures.retries += broker.txretries;
            figures.connects += count(broker.connects.unwrap_or(0));
            let seconds = broker.rtt.as_ref().map_or(0.0, |rtt| rtt.avg as f64 / 1e6);
            figures.round_trip_seconds = figures.round_trip_seconds.max(seconds);
        }
        if self.client == Client::Reads {
            let partitions = statistics.topics.values().flat_map(|topic| topic.partitions.values());
            let (messages, bytes) = partitions.fold((0, 0), |(messages, bytes), partition| {
                (messages + count(partition.fetchq_cnt), bytes + partition.fetchq_size)
            });
            (figures.queued_messages, figures.queued_bytes) = (messages, bytes);
        }
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = Some(statistics.name.clone());
        let mut all = self.watch.figures.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert((self.client, statistics.name), figures);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => self.watch.failed("no broker can be reached".to_owned()),
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) => self.watch.failed(reason.to_owned()),
            _ => tracing::debug!(%error, reason, "librdkafka"),
        }
    }
}

impl ConsumerContext for Context {}

impl Config {
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |field, reason: String| Err(Error::KafkaConfig { field, reason });
        if self.brokers.trim().is_empty() {
            return wrong("brokers", "name at least one broker, as host:port".to_owned());
        }
        if !self.prefix.chars().all(|char| char.is_ascii_alphanumeric() || "._-".contains(char)) {
            return wrong("prefix", format!("{:?}: use letters, digits, dots, dashes and underscores", self.prefix));
        }
        if self.replication == 0 || self.replication > 9 {
            return wrong("replication", format!("{}: use 1 to 9; 3 for production", self.replication));
        }
        if let Some(key) = self.properties.keys().find(|key| OWN_PROPERTIES.contains(&key.as_str())) {
            return wrong("properties", format!("{key} is set by Longshore: what it promises depends on it"));
        }
        // librdkafka knows its own settings.
        self.base().create_native_config().map(drop).map_err(|error| Error::KafkaConfig {
            field: "properties",
            reason: match error {
                KafkaError::ClientConfig(_, reason, key, value) => format!("{key} = {value:?}: {reason}"),
                other => other.to_string(),
            },
        })
    }

    fn base(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", &self.client_id)
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", "60000")
            .set("topic.metadata.refresh.fast.interval.ms", "100")
            .set("allow.auto.create.topics", "false")
            .set("statistics.interval.ms", "5000")
            .set("log.connection.close", "false");
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    pub(super) fn admin(&self) -> ClientConfig {
        self.base()
    }

    pub(super) fn appends(&self) -> ClientConfig {
        let mut config = self.base();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("message.timeout.ms", TRANSACTION_MILLIS_MAX.to_string())
            .set("request.timeout.ms", "5000")
            .set("retry.backoff.ms", "50")
            .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string())
            .set("queue.buffering.max.messages", "2000000")
            .set("partitioner", "murmur2_random");
        config
    }

    pub(super) fn commits(&self, owner: &str) -> ClientConfig {
        let mut config = self.appends();
        config
            .set("transactional.id", format!("{}{owner}", self.prefix))
            .set("transaction.timeout.ms", TRANSACTION_MILLIS_MAX.to_string());
        config
    }

    /// Reads what is committed, from where it is told to.
    pub(super) fn reads(&self) -> ClientConfig {
        let mut config = self.base();
        config
            // It joins no group; without a name librdkafka refuses to assign.
            .set("group.id", format!("{}readers", self.prefix))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error")
            // A partition that is added is fetched once the fetch under way is answered.
            .set("fetch.wait.max.ms", "50")
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.error.backoff.ms", "50")
            .set("fetch.message.max.bytes", MESSAGE_BYTES_MAX.to_string())
            // For each partition.
            .set("queued.max.messages.kbytes", "8192")
            .set("queued.min.messages", "20000");
        config
    }

    pub(super) fn membership(&self, group: &str) -> ClientConfig {
        let mut config = self.base();
        config
            .set("group.id", format!("{}{group}", self.prefix))
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", SESSION_MILLIS.to_string())
            .set("heartbeat.interval.ms", "500")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "latest");
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl FnOnce(&mut Config)) -> Result<(), String> {
        let mut config = Config::new("127.0.0.1:1", longshore_schemas::topics::ALL);
        change(&mut config);
        config.check().map_err(|error| error.to_string())
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_field() {
        assert_eq!(config(|_| ()), Ok(()));
        let property = |key: &str, value: &str| {
            let (key, value) = (key.to_owned(), value.to_owned());
            config(|config| drop(config.properties.insert(key, value)))
        };
        assert_eq!(property("socket.timeout.ms", "7000"), Ok(()));
        assert_eq!(property("security.protocol", "SASL_SSL"), Ok(()));
        let table = [
            (config(|config| config.brokers = " ".to_owned()), "kafka.brokers: name at least one"),
            (config(|config| config.prefix = "a/b".to_owned()), "kafka.prefix: \"a/b\""),
            (config(|config| config.replication = 0), "kafka.replication: 0"),
            (property("acks", "1"), "kafka.properties: acks is set by Longshore"),
            (property("no.such.thing", "1"), "kafka.properties: no.such.thing"),
            (property("socket.timeout.ms", "soon"), "kafka.properties: socket.timeout.ms = \"soon\""),
        ];
        for (found, expected) in table {
            let error = found.expect_err(expected);
            assert!(error.contains(expected), "{error:?} says {expected:?}");
        }
    }
}
