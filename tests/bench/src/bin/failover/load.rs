//! Requests at a steady rate, each sent until it is acknowledged, always as the request that it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use longshore_bench::builds;
use longshore_log::{Log, kafka::KafkaLog};
use longshore_schemas::topics;
use tokio::{task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// So that every partition has requests all the time.
const QUEUES: u64 = 64;
/// A queue takes no more than its limit, and nobody builds here.
const PER_QUEUE: u64 = 50_000;
const RETRY_AFTER: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_millis(10);

pub(crate) struct Load {
    log: Arc<KafkaLog>,
    next: AtomicU64,
    open: AtomicU64,
}

impl Load {
    pub(crate) fn new(log: Arc<KafkaLog>) -> Self {
        Self { log, next: AtomicU64::new(0), open: AtomicU64::new(0) }
    }

    /// The number of the next request.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Requests that are not acknowledged yet.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Acquire)
    }

    /// Until `stop`; then waits for what is under way. The numbers of all requests, each of which was acknowledged.
    pub(crate) async fn run(self: Arc<Self>, per_second: u64, stop: CancellationToken) -> Result<Vec<u64>> {
        let mut tick = tokio::time::interval(TICK);
        // As many as are due, however late.
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let per_tick = per_second * TICK.as_millis() as u64 / 1_000;
        let mut sending = JoinSet::new();
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            for _ in 0..per_tick {
                let number = self.next.fetch_add(1, Ordering::AcqRel);
                self.open.fetch_add(1, Ordering::AcqRel);
                sending.spawn(send(self.clone(), number));
            }
            while let Some(sent) = sending.try_join_next() {
                sent??;
            }
        }
        while let Some(sent) = sending.join_next().await {
            sent??;
        }
        Ok((0..self.next()).collect())
    }
}

async fn send(load: Arc<Load>, number: u64) -> Result<()> {
    let queue = number % QUEUES + number / (QUEUES * PER_QUEUE) * QUEUES;
    let record = builds::record(&builds::spec()?, &format!("queue-{queue}"), &format!("failover-{number}"))?;
    for _ in 0..2_000 {
        if load.log.append(topics::BUILD_REQUESTS.name, vec![record.clone()]).await.is_ok() {
            load.open.fetch_sub(1, Ordering::AcqRel);
            return Ok(());
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
    None.with_context(|| format!("request {number} was never acknowledged"))
}
