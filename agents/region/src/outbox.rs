//! Reports to the log, in an order that survives restarts.
//!
//! Processors drop a report that is not later than the last one of its sender. So a report gets its place and is appended
//! under one lock per topic, and is tried again until the log has it: what is sent twice is processed once. The sender is this
//! process and not its region, of which there may be several: each has a name of its own, made once and kept on disk. Each report is
//! signed with the region's key, without which no processor believes it.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use longshore_log::{Log, Record, clock};
use longshore_region_policy::order;
use longshore_schemas::{
    RegionName,
    auth::{AUTH, RequestKey, Signed},
    codec::{self, Message},
    events::{ArtifactRequest, Event, FleetReport, NodeAnswer, Request},
};
use longshore_service::{ledger::Ledger, metrics::Counters, retry::Backoff};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::Error;

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// What is appended at once.
const PART_BYTES_MAX: usize = 4 * 1024 * 1024;

static REPORTS: LazyLock<Counters<1>> =
    LazyLock::new(|| Counters::new("longshore_region_reports", "Reports written to the log", ["topic"]));

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Boots {
    last: u64,
    /// What this process is called among those of its region; empty until it is made.
    #[serde(default)]
    process: String,
}

pub(crate) struct Outbox {
    log: Arc<dyn Log>,
    sender: String,
    key: RequestKey,
    boot: u64,
    /// The last sequence of each topic that reports go to.
    sequences: BTreeMap<&'static str, Mutex<u64>>,
}

impl Outbox {
    pub(crate) fn open(
        log: Arc<dyn Log>,
        region: &RegionName,
        key: RequestKey,
        data_dir: &Path,
    ) -> Result<Self, Error> {
        let mut boots = Ledger::open(data_dir.join("boots.json"), Boots::default())?;
        let boot = order::next_boot(boots.content().last, clock::now());
        let mut process = boots.content().process.clone();
        if process.is_empty() {
            process = format!("{:016x}", rand::random::<u64>());
        }
        boots.store(Boots { last: boot, process: process.clone() })?;
        let topics = [ArtifactRequest::TOPIC.name, FleetReport::TOPIC.name, NodeAnswer::TOPIC.name];
        let sequences = topics.into_iter().map(|topic| (topic, Mutex::new(0))).collect();
        Ok(Self { log, sender: format!("region/{region}/{process}"), key, boot, sequences })
    }

    /// What this process is called in its reports.
    pub(crate) fn sender(&self) -> &str {
        &self.sender
    }

    /// What this process is called among those of its region.
    pub(crate) fn process(&self) -> &str {
        self.sender.rsplit('/').next().unwrap_or_default()
    }

    /// Returns once the log has all of them; `false` if `shutdown` came first.
    pub(crate) async fn send<E: Event>(&self, events: Vec<E>, shutdown: &CancellationToken) -> bool
    where
        Request<E>: Message,
    {
        let Some(sequence) = self.sequences.get(E::TOPIC.name) else {
            tracing::error!(topic = E::TOPIC.name, "no reports go to this topic");
            return false;
        };
        let mut sequence = sequence.lock().await;
        let records = events.into_iter().filter_map(|event| self.record(event, &mut sequence)).collect();
        self.append(E::TOPIC.name, records, shutdown).await
    }

    /// Tries once; `false` if the log did not take it. For what nobody waits for long.
    pub(crate) async fn send_once<E: Event>(&self, event: E) -> bool
    where
        Request<E>: Message,
    {
        let topic = E::TOPIC.name;
        let Some(sequence) = self.sequences.get(topic) else {
            tracing::error!(topic, "no reports go to this topic");
            return false;
        };
        let Some(record) = self.record(event, &mut *sequence.lock().await) else { return false };
        let sent = self.log.append(topic, vec![record]).await;
        if let Err(error) = &sent {
            tracing::warn!(topic, %error, "the log does not take this, which is dropped");
        }
        sent.is_ok()
    }

    fn record<E: Event>(&self, event: E, sequence: &mut u64) -> Option<Record>
    where
        Request<E>: Message,
    {
        *sequence += 1;
        let key = event.key();
        let request = order::report(&self.sender, self.boot, *sequence, clock::now(), event);
        match codec::encode(&request) {
            Ok(bytes) => {
                let what = Signed { topic: E::TOPIC.name, key: key.as_bytes(), value: &bytes };
                let auth = self.key.sign(what);
                Some(Record::new(key, bytes).with_header(AUTH, auth))
            }
            Err(error) => {
                tracing::error!(%error, key, "a report cannot be written and is dropped");
                None
            }
        }
    }

    /// In parts that a log takes at once, one after the other.
    async fn append(&self, topic: &str, records: Vec<Record>, shutdown: &CancellationToken) -> bool {
        let (mut part, mut bytes) = (Vec::new(), 0);
        for record in records {
            if bytes + record.bytes() > PART_BYTES_MAX && !part.is_empty() {
                bytes = 0;
                if !self.append_part(topic, std::mem::take(&mut part), shutdown).await {
                    return false;
                }
            }
            bytes += record.bytes();
            part.push(record);
        }
        part.is_empty() || self.append_part(topic, part, shutdown).await
    }

    async fn append_part(&self, topic: &str, records: Vec<Record>, shutdown: &CancellationToken) -> bool {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            // Some may be there after an error: they are sent again with the same places, and dropped as seen.
            let error = match self.log.append(topic, records.clone()).await {
                Ok(positions) => {
                    REPORTS.count([topic], positions.len() as u64);
                    return true;
                }
                Err(error) => error,
            };
            if matches!(error, longshore_log::Error::RecordTooLarge { .. } | longshore_log::Error::UnknownTopic { .. })
            {
                tracing::error!(topic, %error, "a report can never be written and is dropped");
                return true;
            }
            let wait = backoff.next_wait(&mut rand::rng());
            tracing::warn!(topic, %error, retry_ms = wait.as_millis(), "reports wait for the log");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return false,
            }
        }
    }
}
