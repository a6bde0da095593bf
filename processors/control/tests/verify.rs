//! Logs with planted gaps, duplicates and torn outputs: each is found, told as what it is, and told once.

use std::collections::BTreeMap;

use longshore_control::verify::{
    CheckedFacts, CheckedRequests, FactChecker, FaultKind, Faults, LetterChecker, RequestChecker,
};
use longshore_log::{Record, StoredRecord, TopicPartition};
use longshore_queue::Queue;
use longshore_schemas::{
    ArtifactId, Timestamp,
    codec::{self, Message},
    events::{
        ArtifactRequest, BuildFact, BuildRequest, CancelRequested, Cause, Consumed, DeadLetter, Event, Fact,
        JobCanceled, Processed, Refusal, RefusalCode, ReportOrder, Request, TimerFired, Trigger, UnpinRequested,
    },
    topics,
};

use FaultKind::{Backwards, Duplicate, Gap, Misplaced, Torn, Uncaused, Undecodable};

/// Whose key is the queue `default`.
const JOB: &str = "default-1";

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("valid")
}

fn partition() -> u32 {
    topics::partition_of(b"default", topics::BUILDS.partitions)
}

fn consumed(offset: u64, request: &str, report: Option<ReportOrder>) -> Trigger {
    let topic = topics::BUILD_REQUESTS.name.to_owned();
    Trigger::Consumed(Consumed { topic, partition: partition(), offset, request: id(request), report })
}

fn report(sequence: u64) -> Option<ReportOrder> {
    Some(ReportOrder { sender: "eu-1".to_owned(), boot: 1, sequence })
}

/// Facts in the making: sequences and times are given in the end.
#[derive(Default)]
struct Facts(Vec<Fact<BuildFact>>);

impl Facts {
    fn push(&mut self, cause: Cause, event: BuildFact) {
        let sequence = self.0.len() as u64 + 1;
        let at = Timestamp(1_000 + sequence as i64);
        self.0.push(Fact { sequence, at, actor: "test".to_owned(), trace: None, cause, event });
    }

    fn output(&mut self, trigger: &Trigger, count: u32) {
        for index in 0..count {
            let event = JobCanceled { job: id(JOB), attempt: index };
            self.push(Cause { index, count, trigger: trigger.clone() }, event.into());
        }
    }

    fn processed(&mut self, next_offset: u64, refused: &[u64]) {
        let refusals = refused.iter().map(|offset| Refusal {
            request: id(&format!("refused-{offset}")),
            offset: *offset,
            code: RefusalCode::Conflict,
            reason: "no".to_owned(),
        });
        let now = Timestamp(0);
        let event = Processed { next_offset, now, refusals: refusals.collect() };
        let trigger = Trigger::TimerFired(TimerFired { due: now });
        self.push(Cause { index: 0, count: 1, trigger }, event.into());
    }
}

/// Three transactions: two requests, then a deadline with two outputs, then a refusal and a report.
///
/// | sequence | 1, 2 | 3 | 4 | 5, 6 | 7 | 8 | 9 | 10 |
/// |---|---|---|---|---|---|---|---|---|
/// | | request 0 | request 1 | Processed 2 | deadline | deadline | Processed 2 | report 3 | Processed 4, request 2 refused |
fn whole() -> Facts {
    let mut facts = Facts::default();
    facts.output(&consumed(0, "a", None), 2);
    facts.output(&consumed(1, "b", None), 1);
    facts.processed(2, &[]);
    let deadline = Trigger::TimerFired(TimerFired { due: Timestamp(7) });
    facts.output(&deadline, 2);
    facts.output(&deadline, 1);
    facts.processed(2, &[]);
    facts.output(&consumed(3, "report-1", report(1)), 1);
    facts.processed(4, &[2]);
    facts
}

fn stored(topic: &str, partition: u32, offset: u64, key: String, value: Vec<u8>) -> StoredRecord {
    let source = TopicPartition::new(topic, partition);
    StoredRecord { source, offset, at: Timestamp(5_000 + offset as i64), record: Record::new(key, value) }
}

fn records(facts: &Facts) -> Vec<StoredRecord> {
    let record = |(offset, fact): (u64, &Fact<BuildFact>)| {
        stored(topics::BUILDS.name, partition(), offset, fact.event.key(), codec::encode(fact).expect("encodes"))
    };
    (0..).zip(&facts.0).map(record).collect()
}

fn checker() -> FactChecker<Queue> {
    FactChecker::new(partition(), topics::BUILDS.partitions, &[topics::WORKER_SIGNALS])
}

fn check_records(records: &[StoredRecord], requests: std::ops::Range<u64>) -> (CheckedFacts, Faults) {
    let mut checker = checker();
    records.iter().for_each(|record| checker.record(record));
    checker.finish(requests.start, requests.end)
}

fn kinds(faults: &Faults) -> Vec<(FaultKind, Option<u64>)> {
    faults.first.iter().map(|fault| (fault.kind, fault.offset)).collect()
}

fn remove(facts: &mut Facts, sequences: std::ops::RangeInclusive<u64>) {
    facts.0.retain(|fact| !sequences.contains(&fact.sequence));
}

/// Removes facts as a writer would that never wrote them: the rest is numbered on.
fn never_written(facts: &mut Facts, sequences: std::ops::RangeInclusive<u64>) {
    remove(facts, sequences);
    (1..).zip(&mut facts.0).for_each(|(sequence, fact)| fact.sequence = sequence);
}

fn trigger_of(facts: &mut Facts, sequence: u64) -> &mut Trigger {
    &mut facts.0[sequence as usize - 1].cause.trigger
}

fn processed_of(facts: &mut Facts, sequence: u64) -> &mut Processed {
    match &mut facts.0[sequence as usize - 1].event {
        BuildFact::Processed(processed) => processed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_partition_has_no_fault() {
    let (checked, faults) = check_records(&records(&whole()), 0..5);
    assert_eq!(faults, Faults::default());
    let report = checked.report;
    assert_eq!((report.facts, report.transactions, report.outputs), (10, 3, 5));
    assert_eq!((report.refusals, report.waiting), (1, 1));
    let (checked, faults) = check_records(&[], 0..0);
    assert_eq!((checked.report.facts, faults.total), (0, 0));
}

type Plant = fn(&mut Facts);
type Found = &'static [(FaultKind, Option<u64>)];

#[test]
fn planted_faults_are_found_where_they_are() {
    let table: &[(&str, Plant, Found)] = &[
        ("a fact is lost", |f| remove(f, 3..=3), &[(Gap, Some(2))]),
        ("the rest of an output is lost", |f| remove(f, 2..=2), &[(Gap, Some(1))]),
        ("the beginning of an output is lost", |f| remove(f, 5..=5), &[(Gap, Some(4))]),
        ("a whole transaction is lost", |f| remove(f, 5..=8), &[(Gap, Some(4))]),
        ("the first facts are lost", |f| remove(f, 1..=4), &[(Gap, Some(0))]),
        ("an output was written without its end", |f| never_written(f, 2..=2), &[(Torn, Some(1))]),
        ("an output was written without its beginning", |f| never_written(f, 1..=1), &[(Torn, Some(0))]),
        ("an output breaks off before Processed", |f| never_written(f, 6..=7), &[(Torn, Some(5))]),
        ("a transaction has no end", |f| never_written(f, 10..=10), &[(Torn, None)]),
        ("a fact is there twice", |f| f.0.insert(3, f.0[2].clone()), &[(Duplicate, Some(3))]),
        (
            "a transaction is there twice",
            |f| (4..8).for_each(|i| f.0.insert(i + 4, f.0[i].clone())),
            &[(Duplicate, Some(8)), (Duplicate, Some(9)), (Duplicate, Some(10)), (Duplicate, Some(11))],
        ),
        ("an index is beyond the count", |f| f.0[2].cause.index = 1, &[(Torn, Some(2))]),
        (
            "a request is consumed by two transactions",
            |f| *trigger_of(f, 9) = consumed(1, "c", None),
            &[(Duplicate, Some(8))],
        ),
        ("a request is consumed twice in one", |f| *trigger_of(f, 3) = consumed(0, "c", None), &[(Duplicate, Some(2))]),
        ("an id is processed twice", |f| *trigger_of(f, 9) = consumed(3, "a", None), &[(Duplicate, Some(8))]),
        (
            "a report is processed twice",
            |f| {
                *trigger_of(f, 3) = consumed(1, "r", report(2));
                *trigger_of(f, 9) = consumed(3, "s", report(2));
            },
            &[(Duplicate, Some(8))],
        ),
        ("consumption goes back", |f| processed_of(f, 8).next_offset = 1, &[(Backwards, Some(7))]),
        ("Processed says too little", |f| processed_of(f, 4).next_offset = 1, &[(Torn, Some(3))]),
        (
            "a refused request was consumed before",
            |f| processed_of(f, 10).refusals[0].offset = 1,
            &[(Duplicate, Some(9))],
        ),
        ("a refused request is not consumed", |f| processed_of(f, 10).refusals[0].offset = 4, &[(Torn, Some(9))]),
        ("time goes back", |f| f.0[5].at = Timestamp(1), &[(Backwards, Some(5))]),
        (
            "a cause is another partition's",
            |f| {
                if let Trigger::Consumed(consumed) = trigger_of(f, 3) {
                    consumed.partition += 1;
                }
            },
            &[(Misplaced, Some(2))],
        ),
        (
            "a cause is another processor's",
            |f| {
                if let Trigger::Consumed(consumed) = trigger_of(f, 3) {
                    consumed.topic = topics::GOAL_REQUESTS.name.to_owned();
                }
            },
            &[(Misplaced, Some(2))],
        ),
    ];
    for (name, plant, expected) in table {
        let mut facts = whole();
        plant(&mut facts);
        let (_, faults) = check_records(&records(&facts), 0..4);
        assert_eq!(kinds(&faults), *expected, "{name}: {:#?}", faults.first);
    }
}

#[test]
fn signals_are_drawn_upon_again_and_again() {
    let mut facts = Facts::default();
    for _ in 0..2 {
        let mut signal = consumed(9, "beat", None);
        if let Trigger::Consumed(consumed) = &mut signal {
            consumed.topic = topics::WORKER_SIGNALS.name.to_owned();
        }
        facts.output(&signal, 1);
        facts.processed(0, &[]);
    }
    assert_eq!(check_records(&records(&facts), 0..0).1, Faults::default());
}

#[test]
fn records_are_read_and_must_lie_where_their_key_belongs() {
    let mut undecodable = records(&whole());
    undecodable[2].record.value = Some(vec![0, 0, 0, 0, 99, 1].into());
    assert_eq!(kinds(&check_records(&undecodable, 0..4).1), [(Undecodable, Some(2))]);
    let mut other_key = records(&whole());
    other_key[2].record.key = "other".into();
    assert_eq!(kinds(&check_records(&other_key, 0..4).1), [(Misplaced, Some(2))]);
    let mut earlier = records(&whole());
    earlier[4].at = Timestamp(0);
    assert_eq!(kinds(&check_records(&earlier, 0..4).1), [(Backwards, Some(4))]);
}

#[test]
fn the_request_partition_must_hold_what_was_consumed() {
    let facts = records(&whole());
    assert_eq!(kinds(&check_records(&facts, 0..3).1), [(Gap, None)], "a processed request is lost");
    assert_eq!(kinds(&check_records(&facts, 5..9).1), [(Gap, None)], "a request expired unprocessed");
}

#[test]
fn many_faults_are_counted() {
    let facts = records(&whole());
    let mut all = facts.clone();
    (0..60).for_each(|_| all.extend_from_slice(&facts));
    let (_, faults) = check_records(&all, 0..4);
    assert!(faults.total >= 600, "{}", faults.total);
    assert_eq!(faults.first.len(), longshore_control::verify::FAULTS_MAX);
}

fn cancel(name: &str, report: Option<ReportOrder>) -> Request<BuildRequest> {
    let event = CancelRequested { job: id(JOB) }.into();
    Request { id: id(name), at: Timestamp(0), actor: "test".to_owned(), trace: None, report, event }
}

fn request_records<E: Event>(requests: &[Request<E>]) -> Vec<StoredRecord>
where
    Request<E>: Message,
{
    let record = |(offset, request): (u64, &Request<E>)| {
        let key = request.event.key();
        let partition = topics::partition_of(key.as_bytes(), E::TOPIC.partitions);
        stored(E::TOPIC.name, partition, offset, key, codec::encode(request).expect("encodes"))
    };
    (0..).zip(requests).map(record).collect()
}

fn check_requests<E: Event>(records: &[StoredRecord], facts: &CheckedFactsByPlace) -> (CheckedRequests, Faults)
where
    Request<E>: Message,
{
    let partition = records[0].source.partition;
    let consumer = (E::TOPIC == topics::BUILD_REQUESTS).then(|| &facts[&(topics::BUILDS.name, partition)]);
    let mut checker = RequestChecker::<E>::new(partition, E::TOPIC.partitions, consumer, facts);
    records.iter().for_each(|record| checker.record(record));
    checker.finish()
}

type CheckedFactsByPlace = BTreeMap<(&'static str, u32), CheckedFacts>;

/// What the facts of [`whole`] tell the other checkers.
fn facts() -> CheckedFactsByPlace {
    let (checked, faults) = check_records(&records(&whole()), 0..4);
    assert_eq!(faults.total, 0);
    BTreeMap::from([((topics::BUILDS.name, partition()), checked)])
}

#[test]
fn causes_name_the_requests_that_are_there() {
    let good = ["a", "b", "refused-2", "report-1", "not-consumed"].map(|name| cancel(name, None));
    let (_, faults) = check_requests::<BuildRequest>(&request_records(&good), &facts());
    assert_eq!(faults, Faults::default());
    let swapped = ["b", "a", "refused-2", "report-1"].map(|name| cancel(name, None));
    let (_, faults) = check_requests::<BuildRequest>(&request_records(&swapped), &facts());
    assert_eq!(kinds(&faults), [(Uncaused, Some(0)), (Uncaused, Some(1))]);
}

/// What the queue sent with a transaction.
fn sent(transaction: u64, index: u64) -> Request<ArtifactRequest> {
    let order = ReportOrder { sender: format!("queue-{}", partition()), boot: transaction, sequence: index };
    let event = UnpinRequested { artifact: ArtifactId::of(b"a"), service: id("web") };
    let (at, actor) = (Timestamp(0), "queue".to_owned());
    Request { id: id("sent"), at, actor, trace: None, report: Some(order), event: ArtifactRequest::from(event) }
}

/// Transactions of which no request can be left are not kept; those are that a compacted topic names.
#[test]
fn transactions_are_kept_as_long_as_what_they_sent() {
    let mut checker = checker();
    let records = records(&whole());
    // The third begins with the ninth record.
    checker.keep_transactions(records[8].at, [1].into());
    records.iter().for_each(|record| checker.record(record));
    let (checked, faults) = checker.finish(0, 4);
    assert_eq!((checked.report.transactions, faults.total), (3, 0));
    let facts = BTreeMap::from([((topics::BUILDS.name, partition()), checked)]);
    let requests = [(1, 0), (5, 0), (9, 0)].map(|(transaction, index)| sent(transaction, index));
    let (_, faults) = check_requests::<ArtifactRequest>(&request_records(&requests), &facts);
    assert_eq!(kinds(&faults), [(Torn, Some(1))], "nothing is known any more of the second");
}

#[test]
fn what_processors_send_is_there_once_and_with_its_facts() {
    // Transactions begin at 1, 5 and 9.
    let table: &[(&[(u64, u64)], Found)] = &[
        (&[(1, 0), (1, 1), (5, 0), (9, 2)], &[]),
        (&[(1, 0), (1, 0)], &[(Duplicate, Some(1))]),
        (&[(5, 0), (1, 0)], &[(Duplicate, Some(1))]),
        (&[(1, 0), (2, 0)], &[(Torn, Some(1))]),
        (&[(9, 0), (11, 0)], &[(Torn, Some(1))]),
    ];
    for (requests, expected) in table {
        let requests: Vec<_> = requests.iter().map(|(transaction, index)| sent(*transaction, *index)).collect();
        let (_, faults) = check_requests::<ArtifactRequest>(&request_records(&requests), &facts());
        assert_eq!(kinds(&faults), *expected, "{:#?}", faults.first);
    }
}

#[test]
fn what_nobody_could_take_has_one_dead_letter() {
    let mut requests = request_records(&["a", "b", "x", "report-1", "y"].map(|name| cancel(name, None)));
    // One that was consumed, and one that waits.
    for offset in [2, 4] {
        requests[offset].record.value = Some(b"nonsense".to_vec().into());
    }
    let (checked, faults) = check_requests::<BuildRequest>(&requests, &facts());
    assert_eq!(faults, Faults::default());
    let checked = BTreeMap::from([((topics::BUILD_REQUESTS.name, partition()), checked)]);
    let letter = |place: u64, topic: &str| {
        let letter = DeadLetter {
            topic: topic.to_owned(),
            partition: partition(),
            offset: 2,
            error: "undecodable".to_owned(),
            key: Vec::new(),
            value: b"nonsense".to_vec(),
        };
        stored(topics::DEAD_LETTERS.name, 0, place, topic.to_owned(), codec::encode(&letter).expect("encodes"))
    };
    let (requests, signals) = (topics::BUILD_REQUESTS.name, topics::WORKER_SIGNALS.name);
    let table: &[(Vec<StoredRecord>, Found)] = &[
        (vec![letter(0, requests)], &[]),
        (vec![], &[(Gap, Some(2))]),
        (vec![letter(0, requests), letter(1, requests)], &[(Duplicate, Some(1))]),
        (vec![letter(0, requests), letter(1, signals), letter(2, signals)], &[]),
        (vec![letter(0, requests), stored("dead-letters", 0, 1, String::new(), vec![9])], &[(Undecodable, Some(1))]),
    ];
    for (letters, expected) in table {
        let mut checker = LetterChecker::new(&checked);
        letters.iter().for_each(|record| checker.record(record));
        assert_eq!(kinds(&checker.finish()), *expected);
    }
}
