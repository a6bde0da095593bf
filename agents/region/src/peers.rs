//! What the other processes of this region tell the log, read into the levels.
//!
//! ```text
//! log: fleet-reports ─of this region's shards─▶ Levels::read ─▶ homes of nodes, which processes there are
//!      └─not by this region: dropped, counted       └─▶ sessions of nodes that went elsewhere end
//! ```
//!
//! A report is believed if fleet believes it: if it carries the hash of one of this region's keys.
//!
//! Read from where an earlier run stopped. A process without a memory reads the last day: nodes that said nothing for longer it
//! does not know, and will not miss if the process that has them is gone, together with them.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
    time::Duration,
};

use longshore_log::{Log, ReadLimit, Reader, StoredRecord, TopicPartition, clock};
use longshore_schemas::{
    RegionName, Timestamp,
    auth::{AUTH, KnownKeys, Signed, Untrusted},
    codec,
    events::{Event, FleetReport, RegionReported, Request},
    topics,
};
use longshore_service::metrics::Counters;
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    catching_up::{ends, is_behind},
    nodes::Sessions,
    reports::Reports,
};

const REOPEN_WAIT: Duration = Duration::from_secs(1);
const HISTORY: Duration = Duration::from_secs(24 * 60 * 60);

static UNTRUSTED: LazyLock<Counters<1>> = LazyLock::new(|| {
    Counters::new(
        "longshore_region_untrusted_reports",
        "Reports in this region's name that none of its processes made, and that were not believed",
        ["reason"],
    )
});

/// See the module.
pub(crate) struct Peers {
    log: Arc<dyn Log>,
    region: RegionName,
    /// How this process is called in its reports.
    own: String,
    keys: KnownKeys,
    partitions: Vec<TopicPartition>,
    reader: Box<dyn Reader>,
    reports: Arc<Reports>,
    sessions: Arc<Sessions>,
}

impl Peers {
    /// Reads all that is there now: a node that connects after this is known to be elsewhere, if it is.
    pub(crate) async fn catch_up(
        log: Arc<dyn Log>,
        region: &RegionName,
        shards: u32,
        own: &str,
        keys: KnownKeys,
        reports: Arc<Reports>,
        sessions: Arc<Sessions>,
    ) -> Result<Self, Error> {
        let topic = topics::FLEET_REPORTS.name;
        let count = log.partitions(topic)?;
        let of_shard = |shard| topics::partition_of(key(region, shard).as_bytes(), count);
        let partitions: BTreeSet<u32> = (0..shards).map(of_shard).collect();
        let partitions: Vec<_> = partitions.into_iter().map(|number| TopicPartition::new(topic, number)).collect();
        let ends = ends(&*log, partitions.iter().cloned()).await?;
        let reader = open(&*log, &partitions, &reports).await?;
        let mut peers =
            Self { log, region: region.clone(), own: own.to_owned(), keys, partitions, reader, reports, sessions };
        while is_behind(&*peers.reader, &ends) {
            let records = peers.reader.read(ReadLimit::default()).await?;
            peers.take(&records);
        }
        Ok(peers)
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let read = tokio::select! {
                read = self.reader.read(ReadLimit::default()) => read,
                () = shutdown.cancelled() => return,
            };
            match read {
                Ok(records) => self.take(&records),
                Err(error) => {
                    tracing::warn!(region = %self.region, %error, "other processes cannot be followed; trying again");
                    if shutdown.run_until_cancelled(tokio::time::sleep(REOPEN_WAIT)).await.is_none() {
                        return;
                    }
                    if let Ok(reader) = open(&*self.log, &self.partitions, &self.reports).await {
                        self.reader = reader;
                    }
                }
            }
        }
    }

    fn take(&self, records: &[StoredRecord]) {
        for stored in records {
            let Some(value) = &stored.record.value else { continue };
            // What cannot be read becomes a dead letter at fleet, which says so.
            if let Ok(request) = codec::decode::<Request<FleetReport>>(value) {
                self.take_report(stored, value, &request);
            }
            self.reports.read_to(stored.source.partition, stored.offset + 1);
        }
    }

    fn take_report(&self, stored: &StoredRecord, value: &[u8], request: &Request<FleetReport>) {
        let (FleetReport::RegionReported(report), Some(order)) = (&request.event, &request.report) else { return };
        if report.region != self.region {
            return;
        }
        if let Err(untrusted) = self.check(stored, value, request) {
            UNTRUSTED.count([untrusted.word()], 1);
            let (of, offset) = (&stored.source, stored.offset);
            tracing::warn!(region = %self.region, %of, offset, error = %untrusted, "a report is not believed");
            return;
        }
        let sender = (order.sender != self.own).then_some(order.sender.as_str());
        for node in self.reports.read(sender, report) {
            if self.sessions.end(&node) {
                tracing::info!(%node, "the node has gone to another process of the region");
            }
        }
    }

    fn check(&self, stored: &StoredRecord, value: &[u8], request: &Request<FleetReport>) -> Result<(), Untrusted> {
        let what = Signed { topic: &stored.source.topic, key: &stored.record.key, value };
        let auth = stored.record.headers_named(AUTH);
        self.keys.check(request.event.speaker(), request.report.as_ref(), auth, what)
    }
}

fn key(region: &RegionName, shard: u32) -> String {
    let (seen, statuses, lost, returned) = Default::default();
    FleetReport::from(RegionReported { region: region.clone(), shard, seen, statuses, lost, returned })
        .key()
        .to_string()
}

/// From where an earlier run stopped, if the log still has it, else from the last day on.
async fn open(log: &dyn Log, partitions: &[TopicPartition], reports: &Reports) -> Result<Box<dyn Reader>, Error> {
    let history = Timestamp::from_millis(clock::now().millis().saturating_sub(HISTORY.as_millis() as i64));
    let mut from = Vec::with_capacity(partitions.len());
    for of in partitions {
        let (start, end) = (log.start_offset(of).await?, log.end_offset(of).await?);
        let offset = match reports.offset(of.partition).filter(|offset| *offset <= end) {
            Some(offset) => offset.max(start),
            None => log.offset_at(of, history).await?,
        };
        from.push((of.clone(), offset));
    }
    Ok(log.reader(from)?)
}
