//! Copies packs of builds that still run, so that little is left once they have succeeded.
//!
//! ```text
//! log: pack-hints ─▶ Hinted (bounded; while it is full, the log keeps them) ─▶ copies, a few at once ─▶ own bucket
//! ```
//!
//! Hints are worth time and nothing else: they may be lost, late, or wrong. Nothing is reported of them. What a hint brought is found
//! in the bucket when the artifact is replicated. After a start those of the last minutes are read again; what of them is there already
//! costs a look each.
//!
//! The processes of a region share the packs of every hint.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use longshore_log::{Log, ReadLimit, Reader, StoredRecord, TopicPartition, clock};
use longshore_region_policy::{hinted::Hinted, turns::Source};
use longshore_schemas::{
    RegionName, Timestamp, codec,
    events::{PackHint, Request, UploadedPack},
    topics,
};
use longshore_service::{metrics::Counters, retry::Backoff};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    copy::{Ahead, Copy, CopyError},
    outbox::Outbox,
    reports::Reports,
    turns::sleep_until,
};

/// Hints of builds that began longer ago are not looked for after a start.
const HISTORY: Duration = Duration::from_secs(15 * 60);
/// Packs that wait. About 50 GB.
pub(crate) const HINTED_MAX: usize = 10_000;
/// Packs that are looked for or copied at the same time; how many of them are in memory, the turns say.
const AT_ONCE: usize = 32;
const READ: ReadLimit = ReadLimit { records: 64, bytes: 256 * 1024 };
const REOPEN_WAIT: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

static AHEAD: LazyLock<Counters<1>> = LazyLock::new(|| {
    Counters::new("longshore_region_hints", "Packs of builds that run, by what became of them", ["outcome"])
});

type Copied = (Source, UploadedPack, Result<Ahead, CopyError>);

/// See the module.
pub(crate) struct Hints {
    region: RegionName,
    log: Arc<dyn Log>,
    outbox: Arc<Outbox>,
    reports: Arc<Reports>,
    copy: Copy,
    hinted: Hinted,
    backoff: Backoff,
    /// Until then nothing is begun: something failed.
    rest: Option<Instant>,
}

impl Hints {
    pub(crate) fn new(
        region: RegionName,
        log: Arc<dyn Log>,
        outbox: Arc<Outbox>,
        reports: Arc<Reports>,
        copy: Copy,
    ) -> Self {
        let (hinted, backoff) = (Hinted::new(HINTED_MAX), Backoff::new(RETRY_FIRST, RETRY_MAX));
        Self { region, log, outbox, reports, copy, hinted, backoff, rest: None }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        while let Some(Err(error)) = shutdown.run_until_cancelled(self.follow()).await {
            tracing::warn!(region = %self.region, %error, "hints cannot be followed; trying again");
            if shutdown.run_until_cancelled(tokio::time::sleep(REOPEN_WAIT)).await.is_none() {
                return;
            }
        }
    }

    /// Ends with an error only.
    async fn follow(&mut self) -> Result<std::convert::Infallible, longshore_log::Error> {
        let mut reader = self.open().await?;
        let mut running = JoinSet::new();
        loop {
            self.rest = self.rest.filter(|until| *until > Instant::now());
            while self.rest.is_none()
                && running.len() < AT_ONCE
                && let Some((source, pack)) = self.hinted.take_next()
            {
                let copy = self.copy.clone();
                running.spawn(async move {
                    let copied = copy.ahead(&source, &pack).await;
                    (source, pack, copied)
                });
            }
            tokio::select! {
                records = reader.read(READ), if self.hinted.has_room() => self.take(&records?),
                Some(done) = running.join_next() => match done {
                    Ok(done) => self.ended(done),
                    Err(error) => tracing::error!(region = %self.region, %error, "copying ahead failed unexpectedly"),
                },
                () = sleep_until(self.rest), if self.rest.is_some() => {}
            }
        }
    }

    async fn open(&self) -> Result<Box<dyn Reader>, longshore_log::Error> {
        let topic = topics::PACK_HINTS.name;
        let since = Timestamp::from_millis(clock::now().millis().saturating_sub(HISTORY.as_millis() as i64));
        let mut from = Vec::new();
        for partition in 0..self.log.partitions(topic)? {
            let of = TopicPartition::new(topic, partition);
            let offset = self.log.offset_at(&of, since).await?;
            from.push((of, offset));
        }
        self.log.reader(from)
    }

    fn take(&mut self, records: &[StoredRecord]) {
        let Self { reports, outbox, hinted, .. } = self;
        for stored in records {
            let Some(value) = &stored.record.value else { continue };
            match codec::decode::<Request<PackHint>>(value) {
                Ok(Request { event: PackHint::PacksUploaded(hint), .. }) => {
                    hinted.take_in(hint, |pack| reports.is_to_do(outbox.sender(), &pack.to_string()));
                }
                Err(error) => tracing::warn!(source = %stored.source, offset = stored.offset, %error, "hint skipped"),
            }
        }
    }

    fn ended(&mut self, (source, pack, copied): Copied) {
        let outcome = match copied {
            Ok(Ahead::Here) => "here",
            Ok(Ahead::Copied(_)) => "copied",
            Ok(Ahead::NotAsSaid) => {
                tracing::warn!(region = %self.region, pack = %pack.pack, ?source, "a build is said to have uploaded this pack, and it is not there");
                "not as said"
            }
            Err(error) => {
                AHEAD.count(["failed"], 1);
                // One rest for all that fail together.
                if self.rest.is_none() {
                    let wait = self.backoff.next_wait(&mut rand::rng());
                    self.rest = Some(Instant::now() + wait);
                    tracing::warn!(region = %self.region, %error, rest_ms = wait.as_millis(), "a pack is not copied ahead yet");
                }
                if error.is_transient() {
                    self.hinted.put_back(source, pack);
                }
                return;
            }
        };
        self.backoff.reset();
        AHEAD.count([outcome], 1);
    }
}
