//! One fact partition: nothing missing, nothing twice, nothing in part.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    marker::PhantomData,
    time::Duration,
};

use longshore_log::{StoredRecord, TopicPartition};
use longshore_runtime::Wire;
use longshore_schemas::{
    RequestId, Timestamp,
    events::{Cause, Consumed, Event, Fact, FactEvent, Processed, ReportOrder, Trigger},
    topics::Topic,
};

use super::{FaultKind, Faults, PartitionReport, misplaced, sender};

/// A request's id may come again once processors have forgotten it, which they do a day after the log has.
const IDS_KEPT: Duration = Duration::from_secs(8 * 24 * 60 * 60);

/// What the other checkers need to know of a fact partition.
pub struct CheckedFacts {
    pub report: PartitionReport,
    /// The name under which this partition's processor sends requests.
    pub(super) sender: String,
    /// The first sequence of each transaction of which the log may have requests left, ascending.
    pub(super) transactions: Vec<u64>,
    /// By offset, the hash of the id of each request that led to facts.
    pub(super) causes: BTreeMap<u64, u64>,
    /// Requests before this one are consumed.
    pub(super) next_request: u64,
}

/// An output of which more is to come.
struct Output {
    trigger: Trigger,
    count: u32,
    next_index: u32,
}

/// Checks the facts of one partition of the processor `P`, from the first on.
pub struct FactChecker<P> {
    of: TopicPartition,
    partitions: u32,
    signals: &'static [Topic],
    faults: Faults,
    facts: u64,
    outputs: u64,
    refusals: u64,
    next_sequence: u64,
    decided_at: Timestamp,
    stored_at: Timestamp,
    output: Option<Output>,
    /// Facts since the last `Processed`.
    open: bool,
    /// Facts are missing, so the next one may be the rest of an output.
    after_gap: bool,
    transactions: u64,
    /// See [`CheckedFacts::transactions`].
    kept: Vec<u64>,
    /// Of transactions stored before this the log has no request left but of these.
    kept_since: Timestamp,
    named: BTreeSet<u64>,
    next_request: u64,
    /// The request last consumed in this transaction.
    last_request: Option<u64>,
    ids: HashMap<RequestId, Timestamp>,
    ids_by_time: VecDeque<(Timestamp, RequestId)>,
    /// The last report of each sender: boot and sequence.
    senders: HashMap<String, (u64, u64)>,
    causes: BTreeMap<u64, u64>,
    /// Of requests before this one the log has nothing left to compare causes with.
    expired_before: u64,
    processor: PhantomData<fn(P)>,
}

impl<P: Wire> FactChecker<P> {
    /// `signals` are the topics besides its requests from which the processor may have drawn conclusions.
    pub fn new(partition: u32, partitions: u32, signals: &'static [Topic]) -> Self {
        Self {
            of: TopicPartition::new(P::Fact::TOPIC.name, partition),
            partitions,
            signals,
            faults: Faults::default(),
            facts: 0,
            outputs: 0,
            refusals: 0,
            next_sequence: 1,
            decided_at: Timestamp(i64::MIN),
            stored_at: Timestamp(i64::MIN),
            output: None,
            open: false,
            after_gap: false,
            transactions: 0,
            kept: Vec::new(),
            kept_since: Timestamp(i64::MIN),
            named: BTreeSet::new(),
            next_request: 0,
            last_request: None,
            ids: HashMap::new(),
            ids_by_time: VecDeque::new(),
            senders: HashMap::new(),
            causes: BTreeMap::new(),
            expired_before: 0,
            processor: PhantomData,
        }
    }

    /// Causes are kept of the requests from this one on, so that memory does not grow with the age of the log.
    pub fn expired_before(&mut self, offset: u64) {
        self.expired_before = offset;
    }

    /// Transactions are kept from this time on, and those that are `named`, which are known to have sent what is left. Memory
    /// then grows with what the log keeps of requests, and not with its age.
    pub fn keep_transactions(&mut self, since: Timestamp, named: BTreeSet<u64>) {
        (self.kept_since, self.named) = (since, named);
    }

    /// The next record of the partition.
    pub fn record(&mut self, record: &StoredRecord) {
        self.facts += 1;
        let offset = record.offset;
        if record.at < self.stored_at {
            self.fault(
                FaultKind::Backwards,
                offset,
                format!("the log took it at {}, before its forerunner", record.at),
            );
        }
        self.stored_at = self.stored_at.max(record.at);
        let fact = match record.record.value.as_deref().map(P::decode_fact) {
            Some(Ok(fact)) => fact,
            Some(Err(error)) => return self.undecodable(offset, &error.to_string()),
            None => return self.undecodable(offset, "it has no value"),
        };
        if fact.sequence < self.next_sequence {
            let text = format!("sequence {} is there before, {} follows", fact.sequence, self.next_sequence);
            return self.fault(FaultKind::Duplicate, offset, text);
        }
        if fact.sequence > self.next_sequence {
            let missing = fact.sequence - self.next_sequence;
            let text = format!("{missing} facts are missing before sequence {}", fact.sequence);
            self.fault(FaultKind::Gap, offset, text);
            // What the missing ones belonged to is not known, so nothing more is said of it.
            (self.output, self.after_gap) = (None, true);
        }
        self.next_sequence = fact.sequence + 1;
        if fact.at < self.decided_at {
            self.fault(FaultKind::Backwards, offset, format!("it was decided at {}, before its forerunner", fact.at));
        }
        self.decided_at = self.decided_at.max(fact.at);
        if !self.open {
            self.open = true;
            self.transactions += 1;
            if record.at >= self.kept_since || self.named.contains(&fact.sequence) {
                self.kept.push(fact.sequence);
            }
        }
        match fact.event.processed() {
            Some(processed) => self.end_transaction(offset, &fact, processed),
            None => self.fact(record, &fact),
        }
    }

    fn fact(&mut self, record: &StoredRecord, fact: &Fact<P::Fact>) {
        if let Some(reason) = misplaced(record, &fact.event.key(), self.partitions) {
            self.fault(FaultKind::Misplaced, record.offset, format!("{}: {reason}", fact.event.kind()));
        }
        if self.begins_output(record.offset, &fact.cause) {
            self.outputs += 1;
            self.cause(record.offset, &fact.cause.trigger, fact.at);
        }
    }

    /// Whether this is the first fact of an output; if it is a later one, it must follow its forerunner.
    fn begins_output(&mut self, offset: u64, cause: &Cause) -> bool {
        let Cause { index, count, trigger } = cause;
        let before = self.output.take();
        let goes_on = before
            .as_ref()
            .is_some_and(|before| before.trigger == *trigger && before.count == *count && before.next_index == *index);
        if let Some(before) = before.filter(|_| !goes_on) {
            self.torn(offset, &before);
        }
        let headless = !goes_on && *index > 0 && !self.after_gap;
        if headless || index >= count {
            self.fault(
                FaultKind::Torn,
                offset,
                format!("fact {index} of an output of {count}, without its forerunner"),
            );
        }
        self.after_gap = false;
        let next_index = index.saturating_add(1);
        if next_index < *count {
            self.output = Some(Output { trigger: trigger.clone(), count: *count, next_index });
        }
        *index == 0
    }

    fn torn(&mut self, offset: u64, output: &Output) {
        let Output { trigger, count, next_index } = output;
        let cause = match trigger {
            Trigger::Consumed(consumed) => format!("{} at offset {}", consumed.topic, consumed.offset),
            Trigger::TimerFired(timer) => format!("the deadline {}", timer.due),
        };
        self.fault(FaultKind::Torn, offset, format!("an output of {count} facts, of {cause}, ends after {next_index}"));
    }

    fn cause(&mut self, offset: u64, trigger: &Trigger, at: Timestamp) {
        let Trigger::Consumed(consumed) = trigger else { return };
        if consumed.partition != self.of.partition {
            let text = format!("its cause is on partition {} of {}", consumed.partition, consumed.topic);
            return self.fault(FaultKind::Misplaced, offset, text);
        }
        if consumed.topic != P::Request::TOPIC.name {
            // Signals come again and again; the processor recognises them by what they say.
            if !self.signals.iter().any(|signals| signals.name == consumed.topic) {
                let text = format!("its cause is on topic {}, which this processor does not read", consumed.topic);
                self.fault(FaultKind::Misplaced, offset, text);
            }
            return;
        }
        if consumed.offset < self.next_request || self.last_request.is_some_and(|last| consumed.offset <= last) {
            let text = format!("request {} at offset {} was consumed before", consumed.request, consumed.offset);
            self.fault(FaultKind::Duplicate, offset, text);
        }
        self.last_request = self.last_request.max(Some(consumed.offset));
        if consumed.offset >= self.expired_before {
            self.causes.insert(consumed.offset, hash(&consumed.request));
        }
        self.remember(offset, consumed, at);
    }

    /// No request and no report of a sender leads to facts twice, wherever it stands.
    fn remember(&mut self, offset: u64, consumed: &Consumed, at: Timestamp) {
        if let Some(ReportOrder { sender, boot, sequence }) = &consumed.report {
            let place = (*boot, *sequence);
            let last = self.senders.insert(sender.clone(), place);
            if let Some(last) = last.filter(|last| place <= *last) {
                self.senders.insert(sender.clone(), last);
                let text = format!("report {boot}/{sequence} of {sender} was processed after {}/{}", last.0, last.1);
                self.fault(FaultKind::Duplicate, offset, text);
            }
            return;
        }
        let kept_millis = i64::try_from(IDS_KEPT.as_millis()).unwrap_or(i64::MAX);
        let horizon = Timestamp(at.millis().saturating_sub(kept_millis));
        while let Some((_, id)) = self.ids_by_time.pop_front_if(|(seen, _)| *seen < horizon) {
            self.ids.remove(&id);
        }
        if let Some(before) = self.ids.insert(consumed.request.clone(), at) {
            let text = format!("request {} was processed at {before} already", consumed.request);
            return self.fault(FaultKind::Duplicate, offset, text);
        }
        self.ids_by_time.push_back((at, consumed.request.clone()));
    }

    fn end_transaction(&mut self, offset: u64, fact: &Fact<P::Fact>, processed: &Processed) {
        if let Some(output) = self.output.take() {
            self.torn(offset, &output);
        }
        let Cause { index, count, trigger } = &fact.cause;
        if (*index, *count) != (0, 1) || !matches!(trigger, Trigger::TimerFired(_)) {
            self.fault(FaultKind::Torn, offset, "Processed is not an output of its own".to_owned());
        }
        let (from, to) = (self.next_request, processed.next_offset);
        if to < from {
            let text = format!("requests before {to} are processed, it says; those before {from} were already");
            self.fault(FaultKind::Backwards, offset, text);
        }
        if let Some(last) = self.last_request.filter(|last| *last >= to) {
            let text = format!("requests before {to} are processed, it says; its transaction processed {last}");
            self.fault(FaultKind::Torn, offset, text);
        }
        let mut refused = None;
        for refusal in &processed.refusals {
            if refusal.offset < from || refused.is_some_and(|refused| refusal.offset <= refused) {
                let text = format!("request {} at offset {} was consumed before", refusal.request, refusal.offset);
                self.fault(FaultKind::Duplicate, offset, text);
            } else if refusal.offset >= to {
                let text =
                    format!("request {} at offset {} is refused and not processed", refusal.request, refusal.offset);
                self.fault(FaultKind::Torn, offset, text);
            }
            refused = refused.max(Some(refusal.offset));
        }
        self.refusals += processed.refusals.len() as u64;
        self.next_request = from.max(to);
        (self.open, self.after_gap, self.last_request) = (false, false, None);
    }

    fn undecodable(&mut self, offset: u64, reason: &str) {
        self.fault(FaultKind::Undecodable, offset, reason.to_owned());
        // It was one fact of something.
        self.next_sequence += 1;
        (self.output, self.after_gap) = (None, true);
    }

    fn fault(&mut self, kind: FaultKind, offset: u64, what: String) {
        self.faults.add(kind, &self.of, offset, what);
    }

    /// After the last record. `start` and `end` are the bounds of the request partition.
    pub fn finish(mut self, start: u64, end: u64) -> (CheckedFacts, Faults) {
        if self.open {
            let text = "the partition ends within a transaction: its Processed is missing".to_owned();
            self.faults.add(FaultKind::Torn, &self.of, None, text);
        }
        let next = self.next_request;
        if next > end {
            let text = format!("requests before {next} are processed, of which the log has only those before {end}");
            self.faults.add(FaultKind::Gap, &self.of, None, text);
        }
        if next < start {
            let text =
                format!("requests from {next} on were not processed before they expired; the first left is {start}");
            self.faults.add(FaultKind::Gap, &self.of, None, text);
        }
        let report = PartitionReport {
            topic: P::Fact::TOPIC.name.to_owned(),
            partition: self.of.partition,
            facts: self.facts,
            transactions: self.transactions,
            outputs: self.outputs,
            refusals: self.refusals,
            waiting: end.saturating_sub(next),
        };
        let sender = sender::<P>(self.of.partition);
        let Self { kept, causes, faults, .. } = self;
        (CheckedFacts { report, sender, transactions: kept, causes, next_request: next }, faults)
    }
}

/// A request's id in 8 bytes: enough to tell that another request stands where a cause points.
pub(super) fn hash(request: &RequestId) -> u64 {
    let mut hasher = DefaultHasher::new();
    request.hash(&mut hasher);
    hasher.finish()
}
