//! One partition of a request topic: what stands there was sent once, by a transaction that is there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    marker::PhantomData,
};

use longshore_log::{StoredRecord, TopicPartition};
use longshore_schemas::{
    Timestamp,
    codec::{self, Message},
    events::{Event, ReportOrder, Request},
    letters,
};

use super::{CheckedFacts, FaultKind, Faults, facts::hash, misplaced};

/// What the other checkers need to know of a request partition.
pub struct CheckedRequests {
    pub(super) records: u64,
    /// Offsets of consumed requests that no processor could take.
    pub(super) unusable: BTreeSet<u64>,
}

/// Checks one partition of the topic of `E`, from the first record that is left.
pub struct RequestChecker<'a, E> {
    of: TopicPartition,
    partitions: u32,
    /// The facts of the processor that consumes these, if one does.
    consumer: Option<&'a CheckedFacts>,
    /// Each processor's transactions, by the name under which it sends.
    senders: HashMap<&'a str, &'a [u64]>,
    /// The last request of each of these: transaction and index.
    last: HashMap<&'a str, (u64, u64)>,
    /// Offsets of those that were set aside: anybody may have written them, under any name.
    dead: BTreeSet<u64>,
    /// Whether the log is written meanwhile: facts that came after those that were read are not missing.
    running: bool,
    faults: Faults,
    checked: CheckedRequests,
    stored_at: Timestamp,
    event: PhantomData<fn(E)>,
}

impl<'a, E: Event> RequestChecker<'a, E>
where
    Request<E>: Message,
{
    pub fn new(
        partition: u32,
        partitions: u32,
        consumer: Option<&'a CheckedFacts>,
        facts: &'a BTreeMap<(&'static str, u32), CheckedFacts>,
    ) -> Self {
        let senders = facts.values().map(|checked| (checked.sender.as_str(), checked.transactions.as_slice()));
        Self {
            of: TopicPartition::new(E::TOPIC.name, partition),
            partitions,
            consumer,
            senders: senders.collect(),
            last: HashMap::new(),
            dead: BTreeSet::new(),
            running: false,
            faults: Faults::default(),
            checked: CheckedRequests { records: 0, unusable: BTreeSet::new() },
            stored_at: Timestamp(i64::MIN),
            event: PhantomData,
        }
    }

    /// What the dead letters name of this partition.
    pub fn set_aside(&mut self, dead: BTreeSet<u64>) {
        self.dead = dead;
    }

    pub fn is_running(&mut self, running: bool) {
        self.running = running;
    }

    /// The next record of the partition.
    pub fn record(&mut self, record: &StoredRecord) {
        self.checked.records += 1;
        let offset = record.offset;
        if record.at < self.stored_at {
            let text = format!("the log took it at {}, before its forerunner", record.at);
            self.faults.add(FaultKind::Backwards, &self.of, offset, text);
        }
        self.stored_at = self.stored_at.max(record.at);
        // Anybody may write nonsense: its place is among the dead letters, which are checked later.
        let Some(Ok(request)) = record.record.value.as_deref().map(codec::decode::<Request<E>>) else {
            return self.unusable(offset);
        };
        if misplaced(record, &request.event.key(), self.partitions).is_some() {
            return self.unusable(offset);
        }
        if let Some(cause) = self.consumer.and_then(|consumer| consumer.causes.get(&offset))
            && *cause != hash(&request.id)
        {
            let text = format!("facts name another request as the one at this offset, which is {}", request.id);
            self.faults.add(FaultKind::Uncaused, &self.of, offset, text);
        }
        // One that was tried again stands behind what its sender sent since.
        let again = record.record.headers.iter().any(|(name, _)| name == letters::RETRY_OF);
        if let Some(order) = request.report.as_ref().filter(|_| !again && !self.dead.contains(&offset)) {
            self.sent(offset, order);
        }
    }

    fn unusable(&mut self, offset: u64) {
        if let Some(consumer) = self.consumer.filter(|consumer| offset < consumer.next_request) {
            self.checked.unusable.insert(offset);
            if consumer.causes.contains_key(&offset) {
                let text = "facts name the request at this offset, which cannot be read".to_owned();
                self.faults.add(FaultKind::Uncaused, &self.of, offset, text);
            }
        }
    }

    /// What processors send is part of their transactions: once, in order, and only with the facts.
    fn sent(&mut self, offset: u64, order: &ReportOrder) {
        let ReportOrder { sender, boot: transaction, sequence: index } = order;
        let Some((sender, transactions)) = self.senders.get_key_value(sender.as_str()) else { return };
        if self.running && transactions.last().is_none_or(|last| last < transaction) {
            return;
        }
        if transactions.binary_search(transaction).is_err() {
            let text =
                format!("{sender} sent it with the transaction that begins at {transaction}, which is not there");
            self.faults.add(FaultKind::Torn, &self.of, offset, text);
        }
        let last = self.last.entry(sender).or_insert((0, 0));
        // Sequences begin at 1, so no transaction is (0, 0).
        if (*transaction, *index) <= *last {
            let text = format!("{sender} sent {transaction}/{index} after {}/{}", last.0, last.1);
            self.faults.add(FaultKind::Duplicate, &self.of, offset, text);
        }
        *last = (*last).max((*transaction, *index));
    }

    pub fn finish(self) -> (CheckedRequests, Faults) {
        (self.checked, self.faults)
    }
}
