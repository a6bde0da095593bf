//! `make bench-latency`: from a request's acknowledgement until its fact is visible to a `read_committed` reader, against a bare
//! transaction with one record on the same broker, taken in turn.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use longshore_bench::{Goal, Report, builds, keys};
use longshore_kafka::{Cluster, Config as ClusterConfig};
use longshore_log::{
    Log, ReadLimit, Reader, TopicPartition,
    kafka::{Config, KafkaLog},
};
use longshore_queue::Queue;
use longshore_runtime::{Config as RuntimeConfig, Handle, Rocks, Role, Runtime, system_clock};
use longshore_schemas::{
    codec,
    events::{BuildFact, Fact},
    topics,
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use tokio_util::sync::CancellationToken;

const BARE_TOPIC: &str = "bare";
const WARM_UP: usize = 200;
const BOUND: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Arguments {
    /// Ten times as many
    #[arg(long)]
    full: bool,
}

fn main() -> Result<ExitCode> {
    let Arguments { full } = Arguments::parse();
    let count = if full { 20_000 } else { 2_000 };
    let cluster = Cluster::start(&ClusterConfig { heap: "1g".to_owned(), ..ClusterConfig::new(1) })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mut ours, mut bare) = runtime.block_on(measure(cluster.brokers(), count))?;
    let mut report = Report::new("latency");
    report.figure("requests", count as f64, Goal::None);
    let percentile = |values: &mut Vec<f64>, share: f64| {
        values.sort_by(f64::total_cmp);
        values[((values.len() as f64 * share) as usize).min(values.len() - 1)]
    };
    let ours_p50 = percentile(&mut ours, 0.5);
    let bare_p50 = percentile(&mut bare, 0.5);
    report.figure("ours_p50_ms", ours_p50, Goal::None);
    report.figure("ours_p99_ms", percentile(&mut ours, 0.99), Goal::None);
    report.figure("bare_p50_ms", bare_p50, Goal::None);
    report.figure("bare_p99_ms", percentile(&mut bare, 0.99), Goal::None);
    report.figure("times_bare_p50", ours_p50 / bare_p50, Goal::AtMost(1.5));
    report.print();
    Ok(ExitCode::SUCCESS)
}

/// Milliseconds, ours and bare.
async fn measure(brokers: &str, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut config = Config::new(brokers, topics::ALL);
    config.replication = 1;
    let log = KafkaLog::connect(config).await?;
    let folder = tempfile::tempdir()?;
    let shutdown = CancellationToken::new();
    let config = RuntimeConfig {
        log: log.clone(),
        rocks: Rocks::open(folder.path())?,
        store_id: 1,
        signals: true,
        clock: system_clock(),
        gate: keys::gate(),
    };
    let handle = Runtime::start(Queue::default(), &config, Arc::new(()), &shutdown)?;
    led(&handle).await?;
    let partitions = 0..topics::BUILDS.partitions;
    let sources = partitions.map(|partition| (TopicPartition::new(topics::BUILDS.name, partition), 0)).collect();
    let mut reader = log.reader(sources)?;
    let bare = Arc::new(Bare::start(brokers)?);
    let (mut ours, mut theirs) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for number in 0..count + WARM_UP {
        let one = request(&log, &mut *reader, number).await?;
        let bare = bare.clone();
        let other = tokio::task::spawn_blocking(move || bare.transaction()).await??;
        if number >= WARM_UP {
            ours.push(one.as_secs_f64() * 1e3);
            theirs.push(other.as_secs_f64() * 1e3);
        }
    }
    shutdown.cancel();
    handle.stopped().await;
    Ok((ours, theirs))
}

async fn led(handle: &Handle<Queue>) -> Result<()> {
    let begun = Instant::now();
    while !handle.statuses().iter().all(|status| status.role == Role::Leading) {
        ensure!(begun.elapsed() < BOUND, "nobody leads the queue's partitions");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn request(log: &KafkaLog, reader: &mut dyn Reader, number: usize) -> Result<Duration> {
    let record = builds::record(&builds::spec()?, &format!("queue-{}", number % 16), &format!("latency-{number}"))?;
    log.append(topics::BUILD_REQUESTS.name, vec![record]).await?;
    let acknowledged = Instant::now();
    loop {
        let read = tokio::time::timeout(BOUND, reader.read(ReadLimit::default())).await;
        for record in read.context("the fact did not come")?? {
            let value = record.record.value.context("a fact has a value")?;
            let fact: Fact<BuildFact> = codec::decode(&value)?;
            if matches!(fact.event, BuildFact::JobQueued(_)) {
                return Ok(acknowledged.elapsed());
            }
        }
    }
}

/// One record, one transaction, seen by a consumer.
struct Bare {
    producer: ThreadedProducer<DefaultProducerContext>,
    consumer: BaseConsumer,
}

impl Bare {
    fn start(brokers: &str) -> Result<Self> {
        longshore_bench::bare::create(brokers, BARE_TOPIC, 1)?;
        let producer: ThreadedProducer<DefaultProducerContext> =
            longshore_bench::bare::client(brokers).set("transactional.id", "bare").set("linger.ms", "0").create()?;
        producer.init_transactions(BOUND)?;
        let mut config: ClientConfig = longshore_bench::bare::client(brokers);
        let consumer: BaseConsumer = config
            .set("group.id", "bare")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(BARE_TOPIC, 0, Offset::Beginning)?;
        consumer.assign(&assignment)?;
        Ok(Self { producer, consumer })
    }

    fn transaction(&self) -> Result<Duration> {
        let begun = Instant::now();
        self.producer.begin_transaction()?;
        let record = BaseRecord::to(BARE_TOPIC).partition(0).key("key").payload(&[b'x'; 300]);
        self.producer.send(record).map_err(|(error, _)| error)?;
        // To commit while a message is in flight waits in steps of 100 ms.
        while self.producer.in_flight_count() > 0 {
            std::thread::yield_now();
        }
        self.producer.commit_transaction(BOUND)?;
        let message = self.consumer.poll(BOUND).context("the record did not come")??;
        ensure!(message.payload().is_some_and(|value| value.len() == 300), "another record came");
        Ok(begun.elapsed())
    }
}
