//! How fast State is rebuilt from facts: writes JobQueued facts of about 200 bytes into a log, starts the control role on an empty
//! folder and waits until all are applied.
//!
//! `rebuild [FACTS] [local|simulated]`; the last line is one JSON object.

use std::{sync::Arc, time::Instant};

use longshore_control::{Control, ControlConfig};
use longshore_log::{
    Batch, Destination, Log, Record, TopicPartition,
    local::{self, LocalLog},
    simulated::SimulatedLog,
};
use longshore_schemas::{
    CommitSha, JobId, Timestamp, codec,
    events::{BuildFact, BuildSpec, Cause, Consumed, Event, Fact, JobQueued, Processed, RunSpec, TimerFired, Trigger},
    topics,
};
use longshore_service::request_keys::RequestKeys;
use longshore_signing::SigningKey;
use tokio_util::sync::CancellationToken;

const BATCH: u64 = 1_000;
const QUEUES: u64 = 1_000;

fn fact(sequence: u64, trigger: Trigger, event: BuildFact) -> Fact<BuildFact> {
    let cause = Cause { index: 0, count: 1, trigger };
    Fact {
        sequence,
        at: Timestamp(1_700_000_000_000 + sequence as i64),
        actor: "ada".to_owned(),
        trace: None,
        cause,
        event,
    }
}

fn queued(partition: u32, number: u64, job: JobId, sequence: u64) -> Fact<BuildFact> {
    let request: longshore_schemas::RequestId = format!("r-{partition}-{number:08}").parse().expect("valid");
    let run = RunSpec { command: vec!["./web".to_owned()], ..serde_json::from_str("{\"command\":[]}").expect("valid") };
    let build = BuildSpec {
        name: "web".parse().expect("valid"),
        repository: "https://example.com/web.git".to_owned(),
        commit: "0123456789012345678901234567890123456789".parse::<CommitSha>().expect("valid"),
        command: vec!["make".to_owned()],
        output: "out".to_owned(),
        environment: Default::default(),
        time_limit_seconds: 900,
        labels: Default::default(),
        run,
    };
    let consumed = Consumed {
        topic: topics::BUILD_REQUESTS.name.to_owned(),
        partition,
        offset: number,
        request: request.clone(),
        report: None,
    };
    fact(sequence, Trigger::Consumed(consumed), JobQueued { job, request, build }.into())
}

/// Facts of one partition, as a leader would have written them, but that there are no requests to go on from. Answers how many.
async fn fill(log: &dyn Log, partition: u32, jobs: u64) -> u64 {
    let names = (0..).map(|n| format!("queue-{n}"));
    let names: Vec<_> = names
        .filter(|name| topics::partition_of(name.as_bytes(), topics::BUILDS.partitions) == partition)
        .take((QUEUES / u64::from(topics::BUILDS.partitions)) as usize)
        .collect();
    let mut numbers = vec![0_u64; names.len()];
    let mut writer = log.writer(&format!("queue-{partition}")).await.expect("a writer");
    let to = Destination::Exact(TopicPartition::new(topics::BUILDS.name, partition));
    let (mut sequence, mut number) = (0, 0);
    while number < jobs {
        let mut records = Vec::new();
        for _ in 0..BATCH.min(jobs - number) {
            let queue = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % names.len();
            numbers[queue] += 1;
            sequence += 1;
            let job = format!("{}-{}", names[queue], numbers[queue]).parse().expect("valid");
            records.push(queued(partition, number, job, sequence));
            number += 1;
        }
        sequence += 1;
        let processed =
            Processed { next_offset: 0, now: Timestamp(1_700_000_000_000 + sequence as i64), refusals: Vec::new() };
        records.push(fact(sequence, Trigger::TimerFired(TimerFired { due: Timestamp(0) }), processed.into()));
        let records = records
            .iter()
            .map(|fact| (to.clone(), Record::new(fact.event.key(), codec::encode(fact).expect("encodes"))));
        writer.commit(Batch { records: records.collect(), consumed: Vec::new() }).await.expect("commits");
    }
    sequence
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "a program")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let jobs: u64 = arguments.next().map_or(1_000_000, |text| text.parse().expect("a number of facts"));
    let kind = arguments.next().unwrap_or_else(|| "simulated".to_owned());
    let folder = tempfile::tempdir().expect("a folder");
    let log: Arc<dyn Log> = match kind.as_str() {
        "local" => LocalLog::open(local::Config::new(folder.path().join("log"), topics::ALL)).expect("opens"),
        _ => Arc::new(SimulatedLog::new(topics::ALL.map(Into::into))),
    };
    let mut facts = 0;
    for partition in 0..topics::BUILDS.partitions {
        facts += fill(&*log, partition, jobs / u64::from(topics::BUILDS.partitions)).await;
    }
    let bytes = codec::encode(&queued(0, 1, "queue-1-1".parse().expect("valid"), 1)).expect("encodes").len();
    println!("{facts} facts of about {bytes} bytes are in the {kind} log");
    let shutdown = CancellationToken::new();
    let regions = vec!["eu".parse().expect("valid")];
    let keys = RequestKeys::of_one_secret(&[7; 32], &regions);
    let config =
        ControlConfig::new(log, folder.path().join("state"), regions, keys, Arc::new(SigningKey::from_seed(&[8; 32])));
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let control = Control::start(config, &shutdown).expect("starts");
    loop {
        let health = control.health().await;
        if health.iter().filter(|of| of.processor == "queue").map(|of| of.applied.sequence).sum::<u64>() >= facts {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    shutdown.cancel();
    control.stopped().await;
    let (rate, per_core) = (facts as f64 / seconds, facts as f64 / cpu);
    println!(
        "{{\"facts\":{facts},\"bytes\":{bytes},\"seconds\":{seconds:.2},\"cpu_seconds\":{cpu:.2},\"facts_per_second\":{rate:.0},\"facts_per_cpu_second\":{per_core:.0}}}"
    );
}

/// Of this process, all threads.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
