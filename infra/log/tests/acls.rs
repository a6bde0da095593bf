//! What the brokers let whom do, with the ACLs that `infra/kafka/acls.sh` gives each role: a stranger publishes nothing, whoever
//! may publish builds publishes nothing else, and nobody but a control node can take a processor's transactional id.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use longshore_kafka::{Cluster, Config as ClusterConfig, Sasl};
use longshore_log::{
    Batch, Destination, Log, Record,
    kafka::{Config, KafkaLog},
};
use longshore_schemas::topics;
use rdkafka::{
    ClientConfig, ClientContext, Message,
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};

const PATIENCE: Duration = Duration::from_secs(30);
const USERS: [&str; 4] = ["control-1", "region-eu", "ci", "stranger"];

fn password(user: &str) -> String {
    format!("password-of-{user}")
}

fn properties(user: &str) -> BTreeMap<String, String> {
    Sasl::properties(user, &password(user)).into_iter().collect()
}

/// The log as one of the roles has it.
async fn log(cluster: &Cluster, user: &str, manage_topics: bool) -> Arc<KafkaLog> {
    let config = Config {
        properties: properties(user),
        replication: 1,
        manage_topics,
        ..Config::new(cluster.brokers(), topics::ALL)
    };
    KafkaLog::connect(config).await.unwrap()
}

/// What became of each record, by topic.
#[derive(Default)]
struct Outcomes(Mutex<BTreeMap<String, Result<(), RDKafkaErrorCode>>>);

impl ClientContext for Outcomes {}

impl ProducerContext for Outcomes {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let (topic, outcome) = match result {
            Ok(message) => (message.topic(), Ok(())),
            Err((error, message)) => (message.topic(), Err(error.rdkafka_error_code().unwrap())),
        };
        self.0.lock().unwrap().insert(topic.to_owned(), outcome);
    }
}

fn client(cluster: &Cluster, user: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.brokers()).set("message.timeout.ms", "20000");
    for (key, value) in properties(user) {
        config.set(key, value);
    }
    config
}

/// One record to each topic by a client that is not ours.
fn publish_everywhere(cluster: &Cluster, user: &str) -> BTreeMap<String, Result<(), RDKafkaErrorCode>> {
    let producer: BaseProducer<Outcomes> = client(cluster, user).create_with_context(Outcomes::default()).unwrap();
    for topic in topics::ALL {
        let name = format!("longshore.{}", topic.name);
        producer.send(BaseRecord::to(&name).key("key").payload("value")).map_err(|(error, _)| error).unwrap();
    }
    let begun = Instant::now();
    while producer.context().0.lock().unwrap().len() < topics::ALL.len() {
        assert!(begun.elapsed() < PATIENCE, "every record has an outcome");
        producer.poll(Duration::from_millis(100));
    }
    producer.context().0.lock().unwrap().clone()
}

/// The topics that took the record; every other one refused it for lack of a right.
fn taken(outcomes: BTreeMap<String, Result<(), RDKafkaErrorCode>>) -> Vec<String> {
    let mut taken = Vec::new();
    for (topic, outcome) in outcomes {
        match outcome {
            Ok(()) => taken.push(topic),
            Err(code) => assert_eq!(code, RDKafkaErrorCode::TopicAuthorizationFailed, "{topic}"),
        }
    }
    taken
}

fn record() -> Record {
    Record::new("key", "value")
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_publish_nothing_and_others_what_their_role_needs() {
    let users = USERS.map(|user| (user.to_owned(), password(user))).to_vec();
    let cluster = Cluster::start(&ClusterConfig { sasl: Some(Sasl { users }), ..ClusterConfig::new(1) }).unwrap();
    for (role, user) in [("control", "control-1"), ("region", "region-eu"), ("producer", "ci")] {
        cluster.allow(role, user, "longshore.").unwrap();
    }

    // Creates the topics, checks their settings, and writes in transactions.
    let control = log(&cluster, "control-1", true).await;
    for topic in topics::ALL {
        control.append(topic.name, vec![record()]).await.unwrap();
    }
    let mut writer = control.writer("queue-0").await.unwrap();
    let records = vec![(Destination::Keyed("builds".into()), record())];
    writer.commit(Batch { records, consumed: Vec::new() }).await.unwrap();

    let region = log(&cluster, "region-eu", false).await;
    for topic in topics::ALL {
        let appended = region.append(topic.name, vec![record()]).await;
        let own = [topics::ARTIFACT_REQUESTS, topics::FLEET_REPORTS, topics::NODE_ANSWERS];
        assert_eq!(appended.is_ok(), own.contains(&topic), "{}: {appended:?}", topic.name);
    }

    assert_eq!(taken(publish_everywhere(&cluster, "ci")), ["longshore.build-requests"]);
    assert_eq!(taken(publish_everywhere(&cluster, "stranger")), Vec::<String>::new());

    // With a processor's transactional id anyone could fence its leader.
    for user in ["region-eu", "ci", "stranger"] {
        let thief: BaseProducer = client(&cluster, user).set("transactional.id", "longshore.queue-0").create().unwrap();
        match thief.init_transactions(PATIENCE) {
            Err(KafkaError::Transaction(error)) => {
                assert_eq!(error.code(), RDKafkaErrorCode::TransactionalIdAuthorizationFailed, "{user}");
            }
            other => panic!("{user}: {other:?}"),
        }
    }
    let records = vec![(Destination::Keyed("builds".into()), record())];
    writer.commit(Batch { records, consumed: Vec::new() }).await.expect("nobody has fenced it");
}
