//! What all clients of librdkafka here have in common: their settings, and who hears what they say.

use std::{
    collections::BTreeMap,
    fmt,
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
/// How long a record waits for the brokers: no longer than the transaction that it may be of.
pub(super) const MESSAGE_MILLIS_MAX: u64 = TRANSACTION_MILLIS_MAX;
/// How long a member of a group may be silent before its partitions go to others.
const SESSION_MILLIS: u64 = 6_000;

/// Settings of librdkafka that the promises of this log depend on: it makes them itself.
const OWN_PROPERTIES: [&str; 18] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "client.id",
    "enable.auto.commit",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
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

/// What topics begin with; a topic's name has 249 characters at most.
const PREFIX_CHARS_MAX: usize = 100;
const REPLICATION_MAX: u16 = 9;

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

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// As people name it, such as `kafka.brokers`.
    pub field: String,
    /// What is wrong with it, and what to do.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.what)
    }
}

fn is_address(broker: &str) -> bool {
    let port = broker.trim().rsplit_once(':').filter(|(host, _)| !host.is_empty());
    port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
}

impl Config {
    /// All that is wrong with the settings, without connecting anywhere.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mut found = Vec::new();
        let mut add = |field: &str, what: String| found.push(Mistake { field: format!("kafka.{field}"), what });
        if self.brokers.trim().is_empty() {
            add("brokers", "name some brokers as HOST:PORT, with commas between".to_owned());
        } else {
            for bad in self.brokers.split(',').filter(|broker| !is_address(broker)) {
                add("brokers", format!("{bad:?} is no broker's address: write HOST:PORT"));
            }
        }
        let is_allowed = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
        if self.prefix.len() > PREFIX_CHARS_MAX || !self.prefix.chars().all(is_allowed) {
            let prefix = &self.prefix;
            add("prefix", format!("{prefix:?}: use at most {PREFIX_CHARS_MAX} letters, digits, '.', '_' and '-'"));
        }
        if !(1..=REPLICATION_MAX).contains(&self.replication) {
            let what = "use 3, or 1 on a cluster for trying things out";
            add("replication", format!("{}: {what}; at most {REPLICATION_MAX}", self.replication));
        }
        for (key, value) in &self.properties {
            let field = format!("properties.{key}");
            if OWN_PROPERTIES.contains(&key.as_str()) {
                let what = "Longshore sets this itself, and promises nothing with another value: remove it";
                add(&field, what.to_owned());
                continue;
            }
            // librdkafka knows its own settings. One by one, for it tells of the first that is wrong.
            match ClientConfig::new().set(key, value).create_native_config() {
                Ok(_) => {}
                Err(KafkaError::ClientConfig(_, reason, _, value)) => add(&field, format!("{value:?}: {reason}")),
                Err(other) => add(&field, other.to_string()),
            }
        }
        found
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let mistakes = self.mistakes();
        if mistakes.is_empty() { Ok(()) } else { Err(Error::KafkaConfig { mistakes }) }
    }

    fn base(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", &self.client_id)
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            .set("socket.connection.setup.timeout.ms", "5000")
            // A question that waits for a broker that died is asked of its successor this late.
            .set("socket.timeout.ms", "5000")
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
            // So that a group of records becomes one request.
            .set("linger.ms", "1")
            .set("message.timeout.ms", MESSAGE_MILLIS_MAX.to_string())
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
            // A transaction's first messages wait for the coordinator anyway, and the others gather meanwhile.
            .set("linger.ms", "0")
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

    /// A member that is known as `instance` keeps its partitions when it comes back within its session's time.
    pub(super) fn membership(&self, group: &str, instance: &str) -> ClientConfig {
        let mut config = self.base();
        config
            .set("group.id", format!("{}{group}", self.prefix))
            .set("group.instance.id", instance)
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

    fn mistakes(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::new("127.0.0.1:1", longshore_schemas::topics::ALL);
        change(&mut config);
        config.check().map_or_else(|error| error.to_string(), |()| String::new())
    }

    fn properties(given: &[(&str, &str)]) -> String {
        let given = given.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        mistakes(|config| config.properties.extend(given))
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_field() {
        assert_eq!(mistakes(|_| ()), "");
        assert_eq!(mistakes(|config| config.brokers = "one:9092, [::1]:9092,3.example:1".to_owned()), "");
        assert_eq!(properties(&[("socket.timeout.ms", "7000"), ("security.protocol", "SASL_SSL")]), "");
        let table = [
            (mistakes(|config| config.brokers = " ".to_owned()), "kafka.brokers: name some"),
            (mistakes(|config| config.brokers = "one:9092,two".to_owned()), "kafka.brokers: \"two\" is no"),
            (mistakes(|config| config.brokers = "one:0".to_owned()), "kafka.brokers: \"one:0\" is no"),
            (mistakes(|config| config.prefix = "a/b".to_owned()), "kafka.prefix: \"a/b\""),
            (mistakes(|config| config.prefix = "a".repeat(PREFIX_CHARS_MAX + 1)), "kafka.prefix: \"aaa"),
            (mistakes(|config| config.replication = 0), "kafka.replication: 0"),
            (properties(&[("acks", "1")]), "kafka.properties.acks: Longshore sets this itself"),
            (properties(&[("no.such.thing", "1")]), "kafka.properties.no.such.thing: \"1\": No such"),
            (properties(&[("socket.timeout.ms", "soon")]), "kafka.properties.socket.timeout.ms: \"soon\""),
        ];
        for (told, expected) in table {
            assert!(told.starts_with(expected), "{told:?} says {expected:?}");
            assert_eq!(told.matches("kafka.").count(), 1, "{told}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let told = mistakes(|config| {
            (config.brokers, config.prefix, config.replication) = ("one,two".to_owned(), "a b".to_owned(), 10);
            let bad = [("acks", "1"), ("no.such.thing", "1"), ("socket.timeout.ms", "soon"), ("client.rack", "r1")];
            config.properties.extend(bad.map(|(key, value)| (key.to_owned(), value.to_owned())));
        });
        assert_eq!(told.matches("kafka.").count(), 7, "{told}");
    }
}
