//! The task of one partition: follows while others lead, leads while it is assigned.
//!
//! Waiting and acting are apart: [`Wait::next`] awaits and changes nothing, and what it answers is acted on without a
//! wait in the middle, but for the commit itself. Every error ends the role; the task then begins it anew after a
//! back-off, which is right for a fenced writer, an ambiguous commit and a full disk alike.

use std::{sync::Arc, time::Duration};

use longshore_log::{Log, ReadLimit, Reader, StoredRecord, TopicPartition, Writer};
use longshore_schemas::{Timestamp, events::Event};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Wire,
    error::chain,
    replica::Replica,
    service::Clock,
    step::{Barrier, Leader, Place},
};

/// What a leader reads at once.
const READ: ReadLimit = ReadLimit { records: 2_000, bytes: 1024 * 1024 };
/// How far back a new leader reads signals: beyond the time that an open claim lasts.
const SIGNALS_LOOKBACK: Duration = Duration::from_secs(30);
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Between deadlines at least, should a processor say that one stays due.
const WAKE_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// What a partition does on this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Following,
    TakingOver,
    Leading,
    /// A committed fact cannot be applied: a person has to look.
    Halted,
    Stopped,
}

/// A partition's role, and what went wrong last if it is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub role: Role,
    pub error: Option<String>,
}

pub(crate) struct Task<P: Wire> {
    pub(crate) processor: Arc<P>,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) clock: Clock,
    pub(crate) place: Place,
    pub(crate) signals: bool,
    pub(crate) replica: Replica<P>,
    pub(crate) assigned: watch::Receiver<bool>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) shutdown: CancellationToken,
}

enum Action {
    /// Not assigned any more, or shutting down.
    Stop,
    Read(Vec<StoredRecord>),
    /// A deadline has come.
    Due,
}

/// Everything that can end a wait.
struct Wait<'a> {
    assigned: &'a mut watch::Receiver<bool>,
    shutdown: &'a CancellationToken,
    /// The role goes on while `assigned` is this.
    role: bool,
}

impl Wait<'_> {
    async fn next(&mut self, reader: &mut dyn Reader, due: Option<Duration>) -> Result<Action, Error> {
        let role = self.role;
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Ok(Action::Stop),
            // A sender that is gone is a service that is gone.
            _ = self.assigned.wait_for(|assigned| *assigned != role) => Ok(Action::Stop),
            // Before reading, so that a steady stream of records does not hold up what is due.
            () = timer => Ok(Action::Due),
            records = reader.read(READ) => Ok(Action::Read(records?)),
        }
    }
}

impl<P: Wire> Task<P> {
    /// Runs until shutdown, or until the partition halts.
    pub(crate) async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        while !self.shutdown.is_cancelled() {
            let assigned = *self.assigned.borrow_and_update();
            let before = self.replica.applied();
            let ended = match self.replica.refresh() {
                Err(error) => Err(error),
                Ok(()) if assigned => self.lead().await,
                Ok(()) => self.follow().await,
            };
            let Err(error) = ended else { continue };
            let text = chain(&error);
            if error.halts() {
                tracing::error!(
                    processor = P::NAME,
                    partition = self.place.partition,
                    error = text,
                    "partition halted"
                );
                self.status.send_replace(Status { role: Role::Halted, error: Some(text) });
                return;
            }
            tracing::warn!(processor = P::NAME, partition = self.place.partition, error = text, "beginning anew");
            self.status.send_replace(Status { role: Role::Following, error: Some(text) });
            if error.is_beyond_log() {
                self.rebuild();
            }
            backoff = if self.replica.applied() == before { (backoff * 2).min(BACKOFF_MAX) } else { BACKOFF_MIN };
            let pause = tokio::time::sleep(backoff);
            let _ = self.shutdown.run_until_cancelled(pause).await;
        }
        self.status.send_replace(Status { role: Role::Stopped, error: None });
    }

    fn rebuild(&mut self) {
        tracing::warn!(
            processor = P::NAME,
            partition = self.place.partition,
            "the state is ahead of the log: rebuilding"
        );
        if let Err(error) = self.replica.reset() {
            tracing::error!(
                processor = P::NAME,
                partition = self.place.partition,
                error = chain(&error),
                "state not deleted"
            );
        }
    }

    fn set_role(&self, role: Role) {
        self.status.send_replace(Status { role, error: None });
    }

    async fn follow(&mut self) -> Result<(), Error> {
        let facts = self.replica.facts().clone();
        let mut reader = self.log.reader(vec![(facts.clone(), self.replica.applied().fact_offset)])?;
        self.set_role(Role::Following);
        let mut wait = Wait { assigned: &mut self.assigned, shutdown: &self.shutdown, role: false };
        while let Action::Read(records) = wait.next(&mut *reader, None).await? {
            let position = reader.position(&facts).unwrap_or_default();
            self.replica.follow(&records, position)?;
        }
        Ok(())
    }

    /// Takes over and leads until revoked or shut down.
    async fn lead(&mut self) -> Result<(), Error> {
        self.set_role(Role::TakingOver);
        // First fence: after this no fact of a predecessor can appear behind the end that is read next.
        let mut writer = self.log.writer(&format!("{}-{}", P::NAME, self.place.partition)).await?;
        self.catch_up().await?;
        let requests = TopicPartition::new(P::Request::TOPIC.name, self.place.partition);
        let signals = TopicPartition::new(P::Signal::TOPIC.name, self.place.partition);
        let applied = self.replica.applied();
        let mut leader = Leader::new(self.processor.clone(), self.place, applied);
        let mut sources = vec![(requests.clone(), applied.request_offset)];
        if self.signals {
            let now = (self.clock)();
            let since = Timestamp(now.millis().saturating_sub(SIGNALS_LOOKBACK.as_millis() as i64));
            let from = self.log.offset_at(&signals, since).await?;
            leader.offer_signals([], from);
            sources.push((signals.clone(), from));
        }
        self.report_lost_requests(&requests).await?;
        let mut reader = self.log.reader(sources)?;
        tracing::info!(processor = P::NAME, partition = self.place.partition, ?applied, "leading");
        self.set_role(Role::Leading);
        let mut next_wake = self.settle(&mut leader, &mut *writer).await?;
        loop {
            let due = next_wake.filter(|_| !leader.has_barrier()).map(|at| self.until(at));
            let mut wait = Wait { assigned: &mut self.assigned, shutdown: &self.shutdown, role: true };
            match wait.next(&mut *reader, due).await? {
                Action::Stop => return Ok(()),
                Action::Read(records) => {
                    let (read, heard) = records.into_iter().partition::<Vec<_>, _>(|record| record.source == requests);
                    leader.offer_requests(read, reader.position(&requests).unwrap_or_default());
                    leader.offer_signals(heard, reader.position(&signals).unwrap_or_default());
                }
                Action::Due => {
                    // The time first, the ends second: whatever came before the deadline is before the ends.
                    let at = (self.clock)();
                    let ends = self.ends(&requests, &signals).await?;
                    leader.set_barrier(Barrier { at, requests: ends.0, signals: ends.1 });
                }
            }
            next_wake = self.settle(&mut leader, &mut *writer).await?;
        }
    }

    async fn ends(&self, requests: &TopicPartition, signals: &TopicPartition) -> Result<(u64, u64), Error> {
        let requests = self.log.end_offset(requests).await?;
        let signals = if self.signals { self.log.end_offset(signals).await? } else { 0 };
        Ok((requests, signals))
    }

    fn until(&self, at: Timestamp) -> Duration {
        at.since((self.clock)()).max(WAKE_INTERVAL_MIN)
    }

    /// Applies every fact that is committed now. The predecessor is fenced, so these are all of its facts.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let facts = self.replica.facts().clone();
        let end = self.log.end_offset(&facts).await?;
        let from = self.replica.applied().fact_offset;
        let mut reader = self.log.reader(vec![(facts.clone(), from)])?;
        if from > end {
            return Err(longshore_log::Error::BeyondEnd { of: facts, offset: from, end }.into());
        }
        while reader.position(&facts).is_some_and(|position| position < end) {
            let records = reader.read(READ).await?;
            self.replica.follow(&records, reader.position(&facts).unwrap_or_default())?;
        }
        Ok(())
    }

    async fn report_lost_requests(&self, requests: &TopicPartition) -> Result<(), Error> {
        let start = self.log.start_offset(requests).await?;
        let next = self.replica.applied().request_offset;
        if start > next {
            tracing::error!(partition = %requests, next, start, "requests expired before they were processed");
        }
        Ok(())
    }

    /// Decides and commits until there is nothing more to do. Answers the next deadline.
    async fn settle(&mut self, leader: &mut Leader<P>, writer: &mut dyn Writer) -> Result<Option<Timestamp>, Error> {
        loop {
            let step = leader.step(self.replica.base(), (self.clock)())?;
            if let Some(mut transaction) = step.transaction {
                let batch = std::mem::take(&mut transaction.batch);
                let positions = writer.commit(batch).await?;
                let last = positions.get(transaction.facts.len() - 1).map_or(0, |position| position.offset);
                self.replica.lead(transaction, last + 1)?;
                leader.committed(self.replica.applied());
            }
            let stop = self.shutdown.is_cancelled() || !*self.assigned.borrow();
            if !step.again || stop {
                return Ok(step.next_wake);
            }
        }
    }
}
