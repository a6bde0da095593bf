//! Which requests have become jobs, as a `read_committed` reader of the facts sees them.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use longshore_log::{Log, ReadLimit, TopicPartition, kafka::KafkaLog};
use longshore_schemas::{
    codec,
    events::{BuildFact, Fact},
    topics,
};

#[derive(Default)]
pub(crate) struct Watch(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// How often each request became a job.
    times: BTreeMap<u64, u32>,
    /// The highest request of each partition.
    last: BTreeMap<u32, u64>,
    ended: Option<String>,
}

impl Watch {
    pub(crate) async fn run(self: Arc<Self>, log: Arc<KafkaLog>) {
        let Err(error) = self.follow(log).await;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ended =
            Some(format!("; the reading has ended: {error:#}"));
    }

    async fn follow(&self, log: Arc<KafkaLog>) -> Result<Infallible> {
        let partitions = 0..topics::BUILDS.partitions;
        let sources = partitions.map(|partition| (TopicPartition::new(topics::BUILDS.name, partition), 0)).collect();
        let mut reader = log.reader(sources)?;
        loop {
            for record in reader.read(ReadLimit::default()).await? {
                let value = record.record.value.context("a fact has a value")?;
                let fact: Fact<BuildFact> = codec::decode(&value)?;
                if let BuildFact::JobQueued(queued) = &fact.event
                    && let Some(number) = queued.request.as_str().strip_prefix("failover-")
                {
                    let number = number.parse()?;
                    let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    *seen.times.entry(number).or_default() += 1;
                    let last = seen.last.entry(record.source.partition).or_default();
                    *last = number.max(*last);
                }
            }
        }
    }

    /// Whether every partition has told of a request from this one on.
    pub(crate) fn all_beyond(&self, first: u64) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.last.len() == topics::BUILDS.partitions as usize && seen.last.values().all(|last| *last >= first)
    }

    /// How far each partition is, and how the reading ended if it did, for whoever looks why it stands.
    pub(crate) fn told(&self) -> String {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last: Vec<String> = seen.last.iter().map(|(partition, last)| format!("{partition} has {last}")).collect();
        format!("{}{}", last.join(", "), seen.ended.as_deref().unwrap_or_default())
    }

    pub(crate) fn times(&self, number: u64) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).times.get(&number).copied().unwrap_or(0)
    }

    pub(crate) fn doubled(&self) -> u64 {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.times.values().filter(|times| **times > 1).count() as u64
    }
}
