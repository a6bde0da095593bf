//! The leader of one partition, without I/O: what arrives becomes one transaction.
//!
//! ```text
//!   offer_requests, offer_signals, set_barrier            committed / dropped by the caller
//!               └──▶ step(base, now) ──▶ Step { transaction?, next_wake, … } ──▶ │
//! ```
//!
//! - Requests first, then signals, then deadlines. Every decision is evolved into an overlay at once, so the next one
//!   sees it. What fails before the commit is dead-lettered, and only its own changes are dropped. So is a request that is
//!   not by whom it says it is: the [`Gate`] is asked before anything is decided.
//! - Each transaction ends with `Processed`. A consumed request always leads to one, a signal that changes nothing never.
//! - Deadlines are decided only once everything is consumed that was in the log when they were seen to be due: the
//!   [`Barrier`]. Until then time stands still at the barrier, so that a beat which waits in the log counts as in time.
//! - After a failed commit the whole leader is thrown away: its Soft has seen what never happened.

mod draft;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use longshore_log::{Batch, Record, StoredRecord};
use longshore_planted::{Bug, planted};
use longshore_processor::{Changes, Seen, StateError, Store};
use longshore_schemas::{
    Timestamp,
    codec::CodecError,
    events::{Consumed, Event, Fact, Refusal, Request, Trigger},
    topics,
};

use self::draft::{Draft, Origin};
use crate::{Applied, Gate, Wire};

/// Requests of one transaction.
pub const REQUESTS_MAX: usize = 2_000;
/// Signals of one step.
pub const SIGNALS_MAX: usize = 4_000;
/// Decisions of one step's deadlines.
pub const WAKES_MAX: usize = 2_000;
/// No further decision is made in a transaction of this size in bytes.
pub const TRANSACTION_BYTES_SOFT_MAX: usize = 2 * 1024 * 1024;

/// Much less than requests are kept.
const PASS_OVER_AFTER: Duration = Duration::from_secs(60 * 60);
/// After a deadline could not be decided, the time before the next attempt.
const WAKE_RETRY: Duration = Duration::from_secs(1);

/// Where a leader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub partition: u32,
    /// Of the request topic.
    pub partitions: u32,
}

/// What the log held when a deadline was seen to be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Barrier {
    /// At or after the deadline, and before the ends were read.
    pub at: Timestamp,
    /// End of the request partition.
    pub requests: u64,
    /// End of the signal partition; 0 without signals.
    pub signals: u64,
}

/// What is to be committed, and what the state is after that.
#[derive(Debug)]
pub struct Transaction<F: Event> {
    /// Facts, then outgoing requests, then dead letters.
    pub batch: Batch,
    /// Those of the batch, in its order; the last is `Processed`.
    pub facts: Vec<Fact<F>>,
    pub changes: Changes,
    /// The next request to process after this.
    pub next_offset: u64,
}

/// The outcome of one step.
#[derive(Debug)]
pub struct Step<F: Event> {
    pub transaction: Option<Transaction<F>>,
    /// When a deadline is due, if nothing happens before. Valid once the transaction is committed.
    pub next_wake: Option<Timestamp>,
    /// Whether there is more to do at once.
    pub again: bool,
}

#[derive(Default)]
struct Inbox {
    records: VecDeque<StoredRecord>,
    /// What comes after the last record offered.
    position: u64,
}

impl Inbox {
    fn offer(&mut self, records: impl IntoIterator<Item = StoredRecord>, position: u64) {
        self.records.extend(records);
        self.position = self.position.max(position);
    }

    fn is_drained_to(&self, end: u64) -> bool {
        self.records.is_empty() && self.position >= end
    }
}

/// One partition's leader.
pub struct Leader<P: Wire> {
    processor: Arc<P>,
    gate: Arc<dyn Gate>,
    place: Place,
    soft: P::Soft,
    /// What is committed and applied.
    applied: Applied,
    now: Timestamp,
    requests: Inbox,
    signals: Inbox,
    barrier: Option<Barrier>,
    /// No deadline before this: the last one could not be decided.
    wake_not_before: Timestamp,
}

impl<P: Wire> Leader<P> {
    /// Starts with an empty Soft after what is applied.
    pub fn new(processor: Arc<P>, gate: Arc<dyn Gate>, place: Place, applied: Applied) -> Self {
        Self {
            processor,
            gate,
            place,
            soft: P::Soft::default(),
            applied,
            now: applied.at,
            requests: Inbox { records: VecDeque::new(), position: applied.request_offset },
            signals: Inbox::default(),
            barrier: None,
            wake_not_before: applied.at,
        }
    }

    /// Records of the request partition, in order, without gaps to those before; `position` is what comes after them.
    pub fn offer_requests(&mut self, records: impl IntoIterator<Item = StoredRecord>, position: u64) {
        self.requests.offer(records, position);
    }

    /// What comes after the last request offered.
    pub fn requests_position(&self) -> u64 {
        self.requests.position
    }

    /// Records of the signal partition, alike.
    pub fn offer_signals(&mut self, records: impl IntoIterator<Item = StoredRecord>, position: u64) {
        self.signals.offer(records, position);
    }

    /// A deadline is due: it is decided once everything before these ends is consumed.
    pub fn set_barrier(&mut self, barrier: Barrier) {
        self.barrier = Some(barrier);
    }

    pub fn has_barrier(&self) -> bool {
        self.barrier.is_some()
    }

    /// What was stepped is in the log and in `base` now.
    pub fn committed(&mut self, applied: Applied) {
        self.applied = applied;
    }

    /// Decides as much as fits one transaction. The error is the store's; the leader is of no use after one.
    pub fn step(&mut self, base: &dyn Store, now: Timestamp) -> Result<Step<P::Fact>, StateError> {
        let now = self.barrier.map_or(now, |barrier| barrier.at);
        self.now = if planted(Bug::LetTimeGoBack) { now } else { self.now.max(now).max(self.applied.at) };
        let gate = self.gate.clone();
        let mut draft = Draft::<P>::new(&*gate, self.place, self.applied, self.now, base);
        self.take_requests(&mut draft)?;
        self.take_signals(&mut draft)?;
        let woken = self.take_deadlines(&mut draft)?;
        let pass_at = self.pass_over(&mut draft);
        let again = woken || !self.requests.records.is_empty() || !self.signals.records.is_empty();
        let next_wake = match self.processor.next_wake(draft.state(), &mut self.soft, self.now) {
            Ok(due) => due.map(|due| due.max(self.wake_not_before)).into_iter().chain(pass_at).min(),
            Err(error) => Some(self.retry_wake_later(error)?),
        };
        Ok(Step { transaction: draft.finish()?, next_wake, again })
    }

    fn take_requests(&mut self, draft: &mut Draft<'_, P>) -> Result<(), StateError> {
        for _ in 0..REQUESTS_MAX {
            if draft.is_full() {
                break;
            }
            let Some(record) = self.requests.records.pop_front() else { break };
            self.take_request(draft, &record)?;
            let next = self.requests.records.front().map_or(self.requests.position, |next| next.offset);
            draft.consumed(next);
        }
        Ok(())
    }

    fn take_request(&mut self, draft: &mut Draft<'_, P>, record: &StoredRecord) -> Result<(), StateError> {
        let request = match self.open(record, P::decode_request) {
            Ok(request) => request,
            Err(reason) => {
                draft.dead_letter(record, &reason);
                return Ok(());
            }
        };
        if Seen::contains(draft.state(), &request)? {
            tracing::debug!(processor = P::NAME, source = %record.source, offset = record.offset, request = %request.id, "request was processed before");
            return Ok(());
        }
        let decided = self.processor.decide(draft.state(), &mut self.soft, &request, self.now);
        let origin = origin(record, &request);
        match decided.and_then(|decision| draft.take(decision, &origin)) {
            Ok(Some(refused)) => draft.refuse(Refusal {
                request: request.id,
                offset: record.offset,
                code: refused.code,
                reason: refused.reason,
            }),
            Ok(None) => {}
            Err(error @ StateError::Unreadable { .. }) => return Err(error),
            Err(error) => draft.dead_letter(record, &format!("{}: {error}", request.event.kind())),
        }
        Ok(())
    }

    fn take_signals(&mut self, draft: &mut Draft<'_, P>) -> Result<(), StateError> {
        for _ in 0..SIGNALS_MAX {
            if draft.is_full() {
                break;
            }
            let Some(record) = self.signals.records.pop_front() else { break };
            let signal = match self.open(&record, P::decode_signal) {
                Ok(signal) => signal,
                Err(reason) => {
                    draft.dead_letter(&record, &reason);
                    continue;
                }
            };
            let decided = self.processor.signal(draft.state(), &mut self.soft, &signal, self.now);
            match decided.and_then(|decision| draft.take(decision, &origin(&record, &signal))) {
                Ok(None) => {}
                // Nobody waits for a signal's outcome.
                Ok(Some(refused)) => {
                    tracing::debug!(processor = P::NAME, source = %record.source, offset = record.offset, reason = refused.reason, "signal refused");
                }
                Err(error @ StateError::Unreadable { .. }) => return Err(error),
                Err(error) => draft.dead_letter(&record, &format!("{}: {error}", signal.event.kind())),
            }
        }
        Ok(())
    }

    /// Wakes the processor until it decides nothing, if the barrier is reached. Answers whether more is due.
    fn take_deadlines(&mut self, draft: &mut Draft<'_, P>) -> Result<bool, StateError> {
        let Some(barrier) = self.barrier else { return Ok(false) };
        if !self.requests.is_drained_to(barrier.requests) || !self.signals.is_drained_to(barrier.signals) {
            return Ok(false);
        }
        let origin = Origin::timer(barrier.at);
        for decisions in 0.. {
            if draft.is_full() || decisions >= WAKES_MAX {
                return Ok(true);
            }
            match self.processor.wake(draft.state(), &mut self.soft, self.now) {
                Ok(decision) if decision.is_nothing() => break,
                Ok(decision) => match draft.take(decision, &origin) {
                    Ok(_) => continue,
                    Err(error) => self.retry_wake_later(error)?,
                },
                Err(error) => self.retry_wake_later(error)?,
            };
            break;
        }
        self.barrier = None;
        Ok(false)
    }

    /// Offsets without a record, as ends of transactions leave them, are consumed with the next request. If none comes they are
    /// passed over after a time, or they would look like requests that were lost once the log has removed what is before
    /// them. Answers when that is, if there are any.
    fn pass_over(&self, draft: &mut Draft<'_, P>) -> Option<Timestamp> {
        let Inbox { records, position } = &self.requests;
        if !records.is_empty() || *position <= draft.next_offset() {
            return None;
        }
        let due = self.applied.at + PASS_OVER_AFTER;
        if self.now < due {
            return Some(due);
        }
        draft.consumed(*position);
        None
    }

    /// A deadline is no record that could be set aside: requests go on, and it is tried again.
    fn retry_wake_later(&mut self, error: StateError) -> Result<Timestamp, StateError> {
        if matches!(error, StateError::Unreadable { .. }) {
            return Err(error);
        }
        let Place { partition, .. } = self.place;
        tracing::error!(processor = P::NAME, partition, %error, "a deadline cannot be decided");
        self.wake_not_before = self.now + WAKE_RETRY;
        Ok(self.wake_not_before)
    }

    /// Decodes a record, and checks that it belongs here and is by whom it must be; the error is for people.
    fn open<E: Event>(
        &self,
        record: &StoredRecord,
        decode: fn(&[u8]) -> Result<Request<E>, CodecError>,
    ) -> Result<Request<E>, String> {
        let Record { key, value, .. } = &record.record;
        let value = value.as_deref().ok_or("undecodable: the record has no value")?;
        let request = decode(value).map_err(|error| format!("undecodable: {}", crate::error::chain(&error)))?;
        let wanted = request.event.key();
        if wanted.as_bytes() != key.as_ref() {
            let key = String::from_utf8_lossy(key);
            return Err(format!("misrouted: the record's key is {key:?}, the event's is {wanted:?}"));
        }
        let partition = topics::partition_of(key, self.place.partitions);
        if partition != self.place.partition {
            return Err(format!("misrouted: key {wanted:?} belongs on partition {partition}"));
        }
        if !planted(Bug::AcceptUnsigned) {
            let speaker = request.event.speaker();
            let believed = self.gate.check(speaker, request.report.as_ref(), record);
            believed.map_err(|untrusted| format!("not believed: {}: {untrusted}", request.event.kind()))?;
        }
        Ok(request)
    }
}

fn origin<E: Event>(record: &StoredRecord, request: &Request<E>) -> Origin {
    Origin {
        trigger: Trigger::Consumed(Consumed {
            topic: E::TOPIC.name.to_owned(),
            partition: record.source.partition,
            offset: record.offset,
            request: request.id.clone(),
            report: request.report.clone(),
        }),
        actor: request.actor.clone(),
        trace: request.trace.clone(),
    }
}
