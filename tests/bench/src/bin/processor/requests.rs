//! What all three work on: a topic of build requests of about 200 bytes, for so many queues that keys rarely repeat soon.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use longshore_bench::builds;
use longshore_log::{
    Log, Record,
    kafka::{Config, KafkaLog},
};
use longshore_schemas::{events::BuildSpec, topics};
use tokio::task::JoinSet;

const QUEUES: u64 = 100_000;
const BATCH: u64 = 2_000;
const APPENDS_MAX: usize = 8;

/// A log with requests that nobody has processed.
pub(crate) struct Filled {
    pub(crate) log: Arc<KafkaLog>,
    /// The topics as the broker knows them.
    pub(crate) requests: String,
    pub(crate) facts: String,
}

pub(crate) async fn fill(brokers: &str, prefix: &str, count: u64) -> Result<Filled> {
    let mut config = Config::new(brokers, topics::ALL);
    config.prefix = prefix.to_owned();
    config.replication = 1;
    let log = KafkaLog::connect(config).await?;
    let build = builds::spec()?;
    let mut appends = JoinSet::new();
    for first in (0..count).step_by(BATCH as usize) {
        let records: Result<Vec<Record>> =
            (first..(first + BATCH).min(count)).map(|number| record(&build, number)).collect();
        if appends.len() == APPENDS_MAX {
            appends.join_next().await.context("some append is under way")???;
        }
        let (log, records) = (log.clone(), records?);
        appends.spawn(async move { log.append(topics::BUILD_REQUESTS.name, records).await });
    }
    while let Some(appended) = appends.join_next().await {
        appended??;
    }
    let name = |topic: topics::Topic| format!("{prefix}{}", topic.name);
    Ok(Filled { log, requests: name(topics::BUILD_REQUESTS), facts: name(topics::BUILDS) })
}

/// Numbers that follow each other are of queues that do not.
fn record(build: &BuildSpec, number: u64) -> Result<Record> {
    let queue = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % QUEUES;
    builds::record(build, &format!("queue-{queue}"), &format!("bench-{number}"))
}
