//! Topics that others made, or changed.

use std::time::{Duration, Instant};

use longshore_log::{Batch, Destination, Error, Log, ReadLimit, Record, TopicPartition, kafka::KafkaLog};

use crate::{PATIENCE, TOPIC, config, first, shared, soon};

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
    delete_before(&name, 0, 15);
    assert_eq!(soon(log.start_offset(&first())).await.unwrap(), 15);
    let mut late = log.reader(vec![(first(), 3)]).unwrap();
    let mut offsets = Vec::new();
    while late.position(&first()).unwrap() < 20 {
        offsets.extend(soon(late.read(ReadLimit::default())).await.unwrap().into_iter().map(|stored| stored.offset));
    }
    assert_eq!(offsets, [15, 16, 17, 18, 19]);
}

/// One partition of several is out of range, and its reader is busy with the others, or leaves each read early.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_out_of_range_is_read_on_whatever_its_reader_does_meanwhile() {
    const OTHERS: u64 = 3_000;
    let config = config(shared().brokers(), 2);
    let name = format!("{}{TOPIC}", config.prefix);
    let log = soon(KafkaLog::connect(config)).await.unwrap();
    let mut writer = soon(log.writer("owner")).await.unwrap();
    let partitions = [first(), TopicPartition::new(TOPIC, 1)];
    for (of, count) in partitions.iter().zip([20, OTHERS]) {
        let record = |number| (Destination::Exact(of.clone()), Record::new("key", format!("{number}")));
        let batch = Batch { records: (0..count).map(record).collect(), consumed: Vec::new() };
        soon(writer.commit(batch)).await.unwrap();
    }
    delete_before(&name, 0, 15);
    // Each read takes so few that the error of the one comes while there are records of the other; and the other way
    // round each read is given up as soon as it waits.
    for briefly in [false, true] {
        let mut reader = log.reader(partitions.iter().map(|of| (of.clone(), 0)).collect()).unwrap();
        let (mut found, begun) = (Vec::new(), Instant::now());
        while found.len() < 5 + OTHERS as usize {
            assert!(begun.elapsed() < PATIENCE, "only {} of {} records were read", found.len(), 5 + OTHERS);
            let limit = ReadLimit { records: 7, ..ReadLimit::default() };
            if briefly {
                let waited = tokio::time::timeout(Duration::from_millis(1), reader.read(limit)).await;
                found.extend(waited.map_or_else(|_| Vec::new(), |read| read.unwrap()));
            } else {
                found.extend(soon(reader.read(limit)).await.unwrap());
            }
        }
        let of_first: Vec<u64> =
            found.iter().filter(|stored| stored.source == first()).map(|stored| stored.offset).collect();
        assert_eq!(of_first, [15, 16, 17, 18, 19]);
    }
}

/// As retention does it.
fn delete_before(topic: &str, partition: u32, offset: u64) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("offsets.json");
    let wanted =
        format!(r#"{{"version":1,"partitions":[{{"topic":"{topic}","partition":{partition},"offset":{offset}}}]}}"#);
    std::fs::write(&file, wanted).unwrap();
    shared().tool("DeleteRecordsCommand", &["--offset-json-file", file.to_str().unwrap()]).unwrap();
}
