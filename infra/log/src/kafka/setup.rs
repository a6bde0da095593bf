//! The topics at start: created where they are missing, refused where their settings would lose or reorder what is written.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    config::FromClientConfigAndContext,
    error::KafkaError,
    metadata::Metadata,
    types::RDKafkaErrorCode,
};

use super::{
    Config, Shared,
    client::{Client, Context, MESSAGE_BYTES_MAX},
};
use crate::{Error, TopicConfig};

const TIME: Duration = Duration::from_secs(10);
/// New topics get their leaders within that time.
const READY_TIME: Duration = Duration::from_secs(30);
const READY_PAUSE: Duration = Duration::from_millis(50);

type Admin = AdminClient<Context>;

/// What must hold of a topic's setting.
struct Setting {
    key: &'static str,
    /// As a new topic gets it.
    wanted: String,
    /// Whether another value will do as well.
    good: fn(found: &str, wanted: &str) -> bool,
    why: &'static str,
}

fn same(found: &str, wanted: &str) -> bool {
    found == wanted
}

/// As large or larger, where -1 is for ever.
fn at_least(found: &str, wanted: &str) -> bool {
    let (Ok(found), Ok(wanted)) = (found.parse::<i64>(), wanted.parse::<i64>()) else { return false };
    found == -1 || (wanted != -1 && found >= wanted)
}

fn settings(topic: &TopicConfig, replication: u16) -> Vec<Setting> {
    let setting = |key, wanted: String, good, why| Setting { key, wanted, good, why };
    let retention = topic.retention.map_or_else(|| "-1".to_owned(), |time| time.as_millis().to_string());
    let min_insync = if replication >= 3 { 2 } else { 1 };
    vec![
        setting(
            "cleanup.policy",
            if topic.compacted { "compact" } else { "delete" }.to_owned(),
            same,
            "records would be removed, or kept, that must not be",
        ),
        setting("retention.ms", retention, at_least, "records would be deleted before they may be"),
        setting("retention.bytes", "-1".to_owned(), at_least, "records would be deleted before they may be"),
        setting(
            "message.timestamp.type",
            "LogAppendTime".to_owned(),
            same,
            "times would be what clients claim, and deadlines depend on them",
        ),
        setting("max.message.bytes", MESSAGE_BYTES_MAX.to_string(), at_least, "large records would be refused"),
        setting("min.insync.replicas", min_insync.to_string(), at_least, "one broker could lose what was acknowledged"),
        setting(
            "unclean.leader.election.enable",
            "false".to_owned(),
            same,
            "a broker that lags could become leader and lose what was acknowledged",
        ),
    ]
}

/// Makes sure of every topic.
pub(super) async fn prepare(shared: &Shared) -> Result<(), Error> {
    let config = &shared.config;
    let context = Context::new(Client::Admin, &shared.watch);
    let admin: Admin = AdminClient::from_config_and_context(&config.admin(), context)
        .map_err(|error| Error::kafka("connecting", error))?;
    if config.manage_topics {
        create(&admin, config).await?;
    }
    let found = shapes(&admin, config).await?;
    for topic in &config.topics {
        check_shape(config, topic, found.get(&topic.name))?;
    }
    if config.manage_topics {
        check_settings(&admin, config).await?;
    }
    Ok(())
}

async fn create(admin: &Admin, config: &Config) -> Result<(), Error> {
    let names: Vec<String> = config.topics.iter().map(|topic| kafka_name(config, topic)).collect();
    let existing = metadata(admin, Instant::now() + READY_TIME).await?;
    let exists = |name: &String| existing.topics().iter().any(|topic| topic.name() == name && topic.error().is_none());
    let settings: Vec<Vec<Setting>> = config.topics.iter().map(|topic| settings(topic, config.replication)).collect();
    let mut new = Vec::new();
    for ((topic, name), settings) in config.topics.iter().zip(&names).zip(&settings) {
        if exists(name) {
            continue;
        }
        let replication = TopicReplication::Fixed(i32::from(config.replication));
        let mut wanted = NewTopic::new(name, topic.partitions as i32, replication);
        for setting in settings {
            wanted = wanted.set(setting.key, &setting.wanted);
        }
        new.push(wanted);
    }
    if new.is_empty() {
        return Ok(());
    }
    let options = AdminOptions::new().request_timeout(Some(TIME)).operation_timeout(Some(TIME));
    let created = admin.create_topics(&new, &options).await.map_err(|error| Error::kafka("creating topics", error))?;
    for result in created {
        match result {
            // Another control node was quicker.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                return Err(Error::KafkaTopic {
                    topic,
                    problem: format!("it cannot be created: {code}"),
                    mend: format!(
                        "have at least {} brokers for kafka.replication, and let this user create topics",
                        config.replication
                    ),
                });
            }
        }
    }
    Ok(())
}

fn kafka_name(config: &Config, topic: &TopicConfig) -> String {
    format!("{}{}", config.prefix, topic.name)
}

/// How a topic is laid out.
struct Shape {
    partitions: u32,
    /// Of the partition that has the fewest.
    replicas: u16,
}

/// The shape of every topic that is there, once all of them have leaders.
async fn shapes(admin: &Admin, config: &Config) -> Result<BTreeMap<String, Shape>, Error> {
    let deadline = Instant::now() + READY_TIME;
    loop {
        let metadata = metadata(admin, deadline).await?;
        let mut shapes = BTreeMap::new();
        for topic in &config.topics {
            let name = kafka_name(config, topic);
            let Some(found) = metadata.topics().iter().find(|found| found.name() == name) else { continue };
            let led =
                !found.partitions().is_empty() && found.partitions().iter().all(|partition| partition.leader() >= 0);
            if found.error().is_none() && led {
                let replicas = found.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
                let partitions = found.partitions().len() as u32;
                shapes.insert(topic.name.clone(), Shape { partitions, replicas: replicas as u16 });
            }
        }
        if shapes.len() == config.topics.len() || Instant::now() > deadline {
            return Ok(shapes);
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
}

/// Tries again until the deadline: brokers that start are no error.
async fn metadata(admin: &Admin, deadline: Instant) -> Result<Metadata, Error> {
    loop {
        // Blocking, on this thread: a moment only, and at start.
        let found = tokio::task::block_in_place(|| admin.inner().fetch_metadata(None, Duration::from_secs(5)));
        match found {
            Ok(metadata) => return Ok(metadata),
            Err(error) if Instant::now() > deadline => return Err(Error::kafka("looking for the topics", error)),
            Err(error) => {
                tracing::debug!(%error, "looking for the topics");
                tokio::time::sleep(READY_PAUSE).await;
            }
        }
    }
}

fn check_shape(config: &Config, topic: &TopicConfig, found: Option<&Shape>) -> Result<(), Error> {
    let name = kafka_name(config, topic);
    let wrong = |problem, mend| Err(Error::KafkaTopic { topic: name.clone(), problem, mend });
    let Some(found) = found else {
        return wrong(
            "it is not there, or has no leader".to_owned(),
            "start a control node first, which creates it, and see that the brokers run".to_owned(),
        );
    };
    if found.partitions != topic.partitions {
        let (existing, wanted) = (found.partitions, topic.partitions);
        return Err(Error::TopicChanged {
            topic: name.clone(),
            existing: format!("{existing} partitions"),
            wanted: format!("{wanted} partitions"),
        });
    }
    if config.manage_topics && found.replicas < config.replication {
        return wrong(
            format!("it has {} replicas, and kafka.replication is {}", found.replicas, config.replication),
            format!(
                "kafka-reassign-partitions.sh --bootstrap-server {} with {} replicas of each partition",
                config.brokers, config.replication
            ),
        );
    }
    Ok(())
}

async fn check_settings(admin: &Admin, config: &Config) -> Result<(), Error> {
    let names: Vec<String> = config.topics.iter().map(|topic| kafka_name(config, topic)).collect();
    for ((topic, name), described) in config.topics.iter().zip(&names).zip(describe(admin, &names).await?) {
        if let Some((problem, changes)) = dangers(topic, config.replication, &described) {
            let mend = format!(
                "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {name} --add-config {changes}",
                config.brokers
            );
            return Err(Error::KafkaTopic { topic: name.clone(), problem, mend });
        }
    }
    Ok(())
}

/// The settings of these topics. A broker that has not heard of a new topic yet says nothing of it, and is asked again.
async fn describe(admin: &Admin, names: &[String]) -> Result<Vec<ConfigResource>, Error> {
    let specifiers: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let options = AdminOptions::new().request_timeout(Some(TIME));
    let failed = |error| Error::kafka("reading the topics' settings", error);
    let deadline = Instant::now() + READY_TIME;
    loop {
        let described = admin.describe_configs(&specifiers, &options).await.map_err(failed)?;
        let described: Result<Vec<ConfigResource>, RDKafkaErrorCode> = described.into_iter().collect();
        let late = Instant::now() > deadline;
        match described {
            Ok(described) if late || described.iter().all(|topic| !topic.entries.is_empty()) => return Ok(described),
            Err(code) if late || code != RDKafkaErrorCode::UnknownTopicOrPartition => {
                return Err(failed(KafkaError::AdminOp(code)));
            }
            Ok(_) | Err(_) => tokio::time::sleep(READY_PAUSE).await,
        }
    }
}

/// What is wrong with a topic's settings, and the settings that mend it.
fn dangers(topic: &TopicConfig, replication: u16, described: &ConfigResource) -> Option<(String, String)> {
    let (mut problems, mut changes) = (Vec::new(), Vec::new());
    for setting in settings(topic, replication) {
        // A compacted topic is not deleted by age or size.
        if topic.compacted && setting.key.starts_with("retention.") {
            continue;
        }
        let found = described.get(setting.key).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        if !(setting.good)(found, &setting.wanted) {
            problems.push(format!("{}={found}: {}", setting.key, setting.why));
            changes.push(format!("{}={}", setting.key, setting.wanted));
        }
    }
    (!problems.is_empty()).then(|| (problems.join("; "), changes.join(",")))
}

#[cfg(test)]
mod tests {
    use rdkafka::admin::{ConfigEntry, ConfigSource, OwnedResourceSpecifier};

    use super::*;

    fn described(entries: &[(&str, &str)]) -> ConfigResource {
        let entry = |(name, value): &(&str, &str)| ConfigEntry {
            name: (*name).to_owned(),
            value: Some((*value).to_owned()),
            source: ConfigSource::DynamicTopic,
            is_read_only: false,
            is_default: false,
            is_sensitive: false,
        };
        ConfigResource {
            specifier: OwnedResourceSpecifier::Topic("t".to_owned()),
            entries: entries.iter().map(entry).collect(),
        }
    }

    #[test]
    fn dangerous_settings_are_named_with_what_mends_them() {
        let day = TopicConfig { retention: Some(Duration::from_secs(86_400)), ..TopicConfig::new("t", 1) };
        let compacted = TopicConfig { compacted: true, ..TopicConfig::new("t", 1) };
        let kept = TopicConfig::new("t", 1);
        let table: [(&TopicConfig, &str, &str, Option<&str>); 12] = [
            (&kept, "retention.ms", "-1", None),
            (&kept, "retention.ms", "604800000", Some("retention.ms=-1")),
            (&day, "retention.ms", "86400000", None),
            (&day, "retention.ms", "-1", None),
            (&day, "retention.ms", "3600000", Some("retention.ms=86400000")),
            (&compacted, "retention.ms", "3600000", None),
            (&kept, "cleanup.policy", "compact", Some("cleanup.policy=delete")),
            (&compacted, "cleanup.policy", "compact,delete", Some("cleanup.policy=compact")),
            (&kept, "message.timestamp.type", "CreateTime", Some("message.timestamp.type=LogAppendTime")),
            (&kept, "min.insync.replicas", "1", Some("min.insync.replicas=2")),
            (&kept, "unclean.leader.election.enable", "true", Some("unclean.leader.election.enable=false")),
            (&kept, "max.message.bytes", "1048588", Some("max.message.bytes=2097152")),
        ];
        for (topic, key, value, expected) in table {
            let good = settings(topic, 3);
            let mut entries: Vec<(&str, &str)> =
                good.iter().map(|setting| (setting.key, setting.wanted.as_str())).collect();
            entries.iter_mut().filter(|(name, _)| *name == key).for_each(|entry| entry.1 = value);
            let found = dangers(topic, 3, &described(&entries)).map(|(_, changes)| changes);
            assert_eq!(found.as_deref(), expected, "{key}={value}");
        }
    }
}
