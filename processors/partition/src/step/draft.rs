//! A transaction in the making.

use bytes::Bytes;
use longshore_log::{Batch, Destination, RECORD_BYTES_MAX, Record, StoredRecord, TopicPartition};
use longshore_processor::{Decision, Outgoing, Overlay, Refused, StateError, Store};
use longshore_schemas::{
    Timestamp, codec,
    events::{Cause, DeadLetter, Event, Fact, Processed, Refusal, TimerFired, Trigger},
    letters, topics,
};

use super::{Place, REQUESTS_MAX, TRANSACTION_BYTES_SOFT_MAX, Transaction};
use crate::{
    Applied, Gate, Wire,
    wire::{Encoded, Sender, apply_fact, encode_outgoing},
};

/// Largest fact or outgoing request in bytes; the rest of the log's limit is for key and framing.
const EVENT_BYTES_MAX: usize = RECORD_BYTES_MAX - 16 * 1024;
/// Largest output of one decision in bytes.
const DECISION_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Longest reason of a refusal, in bytes: all of a transaction's refusals stand in one record.
const REASON_BYTES_MAX: usize = 1024;
/// No further request is taken once a transaction's refusals have this many bytes.
const REFUSALS_BYTES_SOFT_MAX: usize = 512 * 1024;
const DEAD_VALUE_BYTES_MAX: usize = 512 * 1024;
const DEAD_KEY_BYTES_MAX: usize = 4 * 1024;
const DEAD_ERROR_BYTES_MAX: usize = 4 * 1024;

/// What made the processor decide.
pub(super) struct Origin {
    pub(super) trigger: Trigger,
    pub(super) actor: String,
    pub(super) trace: Option<String>,
}

impl Origin {
    pub(super) fn timer(due: Timestamp) -> Self {
        Self { trigger: Trigger::TimerFired(TimerFired { due }), actor: "timer".to_owned(), trace: None }
    }
}

type Headers = Vec<(String, Bytes)>;

/// One decision, encoded.
struct Written {
    records: Vec<(Destination, Record)>,
    outgoing: Vec<Encoded>,
    bytes: usize,
}

pub(super) struct Draft<'a, P: Wire> {
    gate: &'a dyn Gate,
    place: Place,
    /// Where its facts go.
    facts_to: TopicPartition,
    now: Timestamp,
    before: Applied,
    overlay: Overlay<'a>,
    facts: Vec<Fact<P::Fact>>,
    records: Vec<(Destination, Record)>,
    outgoing: Vec<Encoded>,
    dead: Vec<(DeadLetter, Headers)>,
    refusals: Vec<Refusal>,
    refusal_bytes: usize,
    bytes: usize,
    next_offset: Option<u64>,
}

impl<'a, P: Wire> Draft<'a, P> {
    pub(super) fn new(gate: &'a dyn Gate, place: Place, before: Applied, now: Timestamp, base: &'a dyn Store) -> Self {
        Self {
            gate,
            place,
            facts_to: TopicPartition::new(P::Fact::TOPIC.name, place.partition),
            now,
            before,
            overlay: Overlay::new(base),
            facts: Vec::new(),
            records: Vec::new(),
            outgoing: Vec::new(),
            dead: Vec::new(),
            refusals: Vec::new(),
            refusal_bytes: 0,
            bytes: 0,
            next_offset: None,
        }
    }

    /// The state with everything decided so far.
    pub(super) fn state(&self) -> &dyn Store {
        &self.overlay
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= TRANSACTION_BYTES_SOFT_MAX || self.refusal_bytes >= REFUSALS_BYTES_SOFT_MAX
    }

    /// Requests below this offset are dealt with.
    pub(super) fn consumed(&mut self, next_offset: u64) {
        self.next_offset = Some(next_offset);
    }

    /// Requests below this offset are dealt with, or were before.
    pub(super) fn next_offset(&self) -> u64 {
        self.next_offset.unwrap_or(self.before.request_offset)
    }

    pub(super) fn refuse(&mut self, mut refusal: Refusal) {
        shorten(&mut refusal.reason, REASON_BYTES_MAX);
        self.refusal_bytes += refusal.reason.len() + refusal.request.as_str().len() + 32;
        self.refusals.push(refusal);
    }

    pub(super) fn dead_letter(&mut self, record: &StoredRecord, reason: &str) {
        tracing::warn!(processor = P::NAME, source = %record.source, offset = record.offset, reason, "dead letter");
        let mut error = reason.to_owned();
        shorten(&mut error, DEAD_ERROR_BYTES_MAX);
        let key = &record.record.key;
        let value = record.record.value.as_deref().unwrap_or_default();
        if value.len() > DEAD_VALUE_BYTES_MAX {
            error.push_str(&format!(" (only the first {DEAD_VALUE_BYTES_MAX} of {} bytes are here)", value.len()));
        }
        let headers = kept_headers(&record.record, &mut error);
        let letter = DeadLetter {
            topic: record.source.topic.to_string(),
            partition: record.source.partition,
            offset: record.offset,
            error,
            key: key[..key.len().min(DEAD_KEY_BYTES_MAX)].to_vec(),
            value: value[..value.len().min(DEAD_VALUE_BYTES_MAX)].to_vec(),
        };
        let header_bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.bytes += letter.value.len() + letter.key.len() + letter.error.len() + header_bytes;
        self.dead.push((letter, headers));
    }

    /// Takes a decision with all its facts and requests, or leaves everything as it was.
    pub(super) fn take(&mut self, decision: Decision<P::Fact>, origin: &Origin) -> Result<Option<Refused>, StateError> {
        let Decision { facts, requests, refusal } = decision;
        if facts.is_empty() && requests.is_empty() {
            return Ok(refusal);
        }
        let facts = self.envelopes(facts, origin);
        self.overlay.begin();
        let written = match self.write(&facts, requests, origin) {
            Ok(written) => written,
            Err(error) => {
                self.overlay.undo();
                return Err(error);
            }
        };
        self.overlay.keep();
        self.bytes += written.bytes;
        self.facts.extend(facts);
        self.records.extend(written.records);
        self.outgoing.extend(written.outgoing);
        Ok(refusal)
    }

    /// Applies the facts to the overlay, and encodes everything.
    fn write(
        &mut self,
        facts: &[Fact<P::Fact>],
        requests: Vec<Outgoing>,
        origin: &Origin,
    ) -> Result<Written, StateError> {
        let mut records = Vec::with_capacity(facts.len());
        for fact in facts {
            apply_fact::<P>(&mut self.overlay, fact)?;
            records.push(self.fact_record(fact)?);
        }
        let outgoing = self.encode(requests, origin)?;
        let fact_bytes: usize = records.iter().map(|(_, record)| record.bytes()).sum();
        let bytes = fact_bytes + outgoing.iter().map(|(_, key, value)| key.len() + value.len()).sum::<usize>();
        if bytes > DECISION_BYTES_MAX {
            return Err(StateError::Contradiction(format!(
                "the decision has {bytes} bytes, at most {DECISION_BYTES_MAX} fit"
            )));
        }
        Ok(Written { records, outgoing, bytes })
    }

    fn envelopes(&self, events: Vec<P::Fact>, origin: &Origin) -> Vec<Fact<P::Fact>> {
        let count = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let first = self.next_sequence();
        let facts = events.into_iter().enumerate().map(|(index, event)| Fact {
            sequence: first + index as u64,
            at: self.now,
            actor: origin.actor.clone(),
            trace: origin.trace.clone(),
            cause: Cause { index: u32::try_from(index).unwrap_or(u32::MAX), count, trigger: origin.trigger.clone() },
            event,
        });
        facts.collect()
    }

    fn next_sequence(&self) -> u64 {
        self.before.sequence + 1 + self.facts.len() as u64
    }

    fn fact_record(&self, fact: &Fact<P::Fact>) -> Result<(Destination, Record), StateError> {
        let kind = fact.event.kind();
        let value = P::encode_fact(fact).map_err(|error| unwritable(kind, &error.to_string()))?;
        fits(kind, value.len())?;
        Ok((Destination::Exact(self.facts_to.clone()), Record::new(fact.event.key(), value)))
    }

    fn encode(&self, requests: Vec<Outgoing>, origin: &Origin) -> Result<Vec<Encoded>, StateError> {
        let mut encoded = Vec::with_capacity(requests.len());
        for request in requests {
            let sender = Sender {
                processor: P::NAME,
                partition: self.place.partition,
                transaction: self.before.sequence + 1,
                index: (self.outgoing.len() + encoded.len()) as u64,
                at: self.now,
                trace: origin.trace.as_deref(),
            };
            let one = encode_outgoing(request, &sender).map_err(|error| unwritable("request", &error.to_string()))?;
            fits("request", one.2.len())?;
            encoded.push(one);
        }
        Ok(encoded)
    }

    /// Closes the transaction with `Processed`. None if nothing was consumed, decided or dead-lettered.
    pub(super) fn finish(mut self) -> Result<Option<Transaction<P::Fact>>, StateError> {
        let nothing = self.facts.is_empty() && self.outgoing.is_empty() && self.dead.is_empty();
        if nothing && self.next_offset.is_none() {
            return Ok(None);
        }
        let next_offset = self.next_offset();
        let refusals = std::mem::take(&mut self.refusals);
        debug_assert!(refusals.len() <= REQUESTS_MAX, "a refusal per request");
        let processed = Processed { next_offset, now: self.now, refusals };
        let cause = Cause { index: 0, count: 1, trigger: Trigger::TimerFired(TimerFired { due: self.now }) };
        let (sequence, actor) = (self.next_sequence(), "runtime".to_owned());
        let fact = Fact { sequence, at: self.now, actor, trace: None, cause, event: processed.into() };
        apply_fact::<P>(&mut self.overlay, &fact)?;
        self.records.push(self.fact_record(&fact)?);
        self.facts.push(fact);
        for (topic, key, value) in self.outgoing {
            let record = self.gate.seal(topic, Record::new(key, value));
            self.records.push((Destination::Keyed(topic.into()), record));
        }
        let to = TopicPartition::new(topics::DEAD_LETTERS.name, 0);
        for (letter, headers) in self.dead {
            let value = codec::encode(&letter).map_err(|error| unwritable("dead letter", &error.to_string()))?;
            let key = Bytes::from(letter.topic);
            let record = Record { headers, ..Record::new(key, value) };
            self.records.push((Destination::Exact(to.clone()), record));
        }
        let source = TopicPartition::new(P::Request::TOPIC.name, self.place.partition);
        Ok(Some(Transaction {
            batch: Batch { records: self.records, consumed: vec![(source, next_offset)] },
            facts: self.facts,
            changes: self.overlay.into_changes(),
            next_offset,
        }))
    }
}

/// What is kept of the headers of a dead record, as headers of its letter.
fn kept_headers(record: &Record, error: &mut String) -> Headers {
    let bytes: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > letters::HEADERS_BYTES_MAX {
        error.push_str(&format!(" (its {bytes} bytes of headers are not here)"));
        return Headers::new();
    }
    let kept = record.headers.iter().map(|(name, value)| (format!("{}{name}", letters::ORIGINAL), value.clone()));
    kept.collect()
}

fn fits(kind: &str, bytes: usize) -> Result<(), StateError> {
    if bytes <= EVENT_BYTES_MAX {
        return Ok(());
    }
    Err(StateError::Contradiction(format!("{kind} has {bytes} bytes, at most {EVENT_BYTES_MAX} fit")))
}

fn unwritable(kind: &str, reason: &str) -> StateError {
    StateError::Contradiction(format!("{kind} cannot be written: {reason}"))
}

/// Cuts a text at a character's border.
fn shorten(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}
