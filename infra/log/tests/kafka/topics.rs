//! Topics that others made, or changed.

use longshore_log::{Error, Log, ReadLimit, Record, kafka::KafkaLog};

use crate::{TOPIC, config, first, shared, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_dangerous_settings_is_refused_with_what_mends_it() {
    let brokers = shared().brokers();
    let config = config(brokers, 1);
    let name = format!("{}{TOPIC}", config.prefix);
    let settings = ["--config", "retention.ms=1000", "--config", "max.message.bytes=2097152"];
    let create = [&["--create", "--topic", &name, "--partitions", "1"][..], &settings].concat();
    shared().tool("TopicCommand", &create).unwrap();
    let error = soon(KafkaLog::connect(config.clone())).await.err().unwrap();
    let Error::KafkaTopic { topic, problem, mend } = &error else { panic!("{error}") };
    assert_eq!(topic, &name);
    assert!(
        problem.contains("retention.ms=1000") && problem.contains("message.timestamp.type=CreateTime"),
        "{problem}"
    );
    let command =
        format!("kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {name}");
    assert!(mend.starts_with(&command), "{mend}");

    // The command, as it was told, without the name of the program.
    let arguments: Vec<&str> = mend.split_whitespace().skip(3).collect();
    shared().tool("kafka.admin.ConfigCommand", &arguments).unwrap();
    soon(KafkaLog::connect(config)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_partitions_is_refused() {
    let mut config = config(shared().brokers(), 2);
    drop(soon(KafkaLog::connect(config.clone())).await.unwrap());
    config.topics[0].partitions = 3;
    let error = soon(KafkaLog::connect(config)).await.err().unwrap();
    assert!(matches!(&error, Error::TopicChanged { existing, .. } if existing == "2 partitions"), "{error}");
}

/// Whoever asks for what was deleted reads from the first record on that is left.
#[tokio::test(flavor = "multi_thread")]
async fn reading_what_retention_deleted_goes_on_after_it() {
    let config = config(shared().brokers(), 1);
    let name = format!("{}{TOPIC}", config.prefix);
    let log = soon(KafkaLog::connect(config)).await.unwrap();
    let records = (0..20).map(|number| Record::new("key", format!("{number}"))).collect();
    soon(log.append(TOPIC, records)).await.unwrap();
    let mut early = log.reader(vec![(first(), 0)]).unwrap();
    assert_eq!(soon(early.read(ReadLimit { records: 1, ..ReadLimit::default() })).await.unwrap().len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("offsets.json");
    let wanted = format!(r#"{{"version":1,"partitions":[{{"topic":"{name}","partition":0,"offset":15}}]}}"#);
    std::fs::write(&file, wanted).unwrap();
    shared().tool("DeleteRecordsCommand", &["--offset-json-file", file.to_str().unwrap()]).unwrap();
    assert_eq!(soon(log.start_offset(&first())).await.unwrap(), 15);
    let mut late = log.reader(vec![(first(), 3)]).unwrap();
    let mut offsets = Vec::new();
    while late.position(&first()).unwrap() < 20 {
        offsets.extend(soon(late.read(ReadLimit::default())).await.unwrap().into_iter().map(|stored| stored.offset));
    }
    assert_eq!(offsets, [15, 16, 17, 18, 19]);
}
