//! The step: inputs beside the transaction that they become.

use std::sync::Arc;

use longshore_log::{Destination, Record, StoredRecord, TopicPartition};
use longshore_processor::{Changes, Memory, StoreMut};
use longshore_runtime::{
    Applied, Wire, seal,
    step::{Barrier, Leader, Place, REQUESTS_MAX, Transaction},
};
use longshore_schemas::{
    Timestamp,
    auth::{AUTH, RequestKey, Sender, Speaker},
    codec,
    events::{ArtifactRequest, BuildFact, BuildRequest, DeadLetter, Event, Fact, FactEvent, Request, Trigger},
    topics::{self, partition_of},
};

use crate::toy::{COUNTS, Toy, beat, gate, job, key, record, report, request, stored, unsigned};

type Toy1 = Toy<1>;
const PARTITIONS: u32 = 4;

/// A leader over a state in memory.
struct Bench {
    leader: Leader<Toy1>,
    state: Memory,
    applied: Applied,
    offset: u64,
}

impl Bench {
    fn new() -> Self {
        let (applied, place) =
            (Applied::default(), Place { partition: partition_of(b"q", PARTITIONS), partitions: PARTITIONS });
        Self {
            leader: Leader::new(Arc::new(Toy), gate(), place, applied),
            state: Memory::default(),
            applied,
            offset: 0,
        }
    }

    fn offer(&mut self, records: impl IntoIterator<Item = Record>) {
        for record in records {
            let place = partition_of(b"q", PARTITIONS);
            let stored = stored(topics::BUILD_REQUESTS.name, place, self.offset, record);
            self.offset += 1;
            self.leader.offer_requests([stored], self.offset);
        }
    }

    fn step(&mut self, now: i64) -> Option<Transaction<BuildFact>> {
        let step = self.leader.step(&self.state, Timestamp(now)).expect("state in memory");
        let transaction = step.transaction?;
        apply(&mut self.state, &transaction.changes);
        let last = transaction.facts.last().expect("Processed is there");
        self.applied.sequence = last.sequence;
        self.applied.at = last.at;
        self.applied.request_offset = transaction.next_offset;
        self.leader.committed(self.applied);
        Some(transaction)
    }

    fn count(&self, text: &str) -> u32 {
        COUNTS.get(&self.state, &job(text)).expect("memory").unwrap_or(0)
    }
}

fn apply(state: &mut Memory, changes: &Changes) {
    for ((table, key), value) in changes.clone() {
        match value {
            Some(value) => state.put(table, key, value),
            None => state.delete(table, key),
        }
    }
}

fn kinds(transaction: &Transaction<BuildFact>) -> Vec<&'static str> {
    transaction.facts.iter().map(|fact| fact.event.kind()).collect()
}

#[test]
fn a_batch_is_one_transaction_that_ends_with_processed() {
    let mut bench = Bench::new();
    bench.offer(["q-1", "q-1", "q-13"].into_iter().zip(["a", "b", "c"]).map(|(job, id)| record(&request(id, job))));
    let transaction = bench.step(5).expect("something was consumed");
    assert_eq!(kinds(&transaction), ["JobCanceled", "JobCanceled", "Processed"]);
    assert_eq!(transaction.facts.iter().map(|fact| fact.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    let processed = transaction.facts[2].event.processed().expect("the last");
    assert_eq!((processed.next_offset, processed.now), (3, Timestamp(5)));
    let [refusal] = processed.refusals.as_slice() else { panic!("one refusal: {processed:?}") };
    assert_eq!((refusal.offset, refusal.request.as_str()), (2, "c"));
    let Trigger::Consumed(consumed) = &transaction.facts[1].cause.trigger else { panic!("a request was the cause") };
    assert_eq!((consumed.offset, consumed.request.as_str()), (1, "b"));
    assert_eq!(bench.count("q-1"), 2);
    // What is in the batch is what the facts say.
    for (fact, (to, record)) in transaction.facts.iter().zip(&transaction.batch.records) {
        let decoded = Toy1::decode_fact(record.value.as_deref().expect("a fact")).expect("decodes");
        assert_eq!(decoded, *fact);
        assert!(matches!(to, Destination::Exact(to) if &*to.topic == topics::BUILDS.name));
    }
    assert!(bench.step(6).is_none(), "nothing more to do");
}

#[test]
fn what_was_processed_is_not_processed_again() {
    let mut bench = Bench::new();
    let requests =
        [request("a", "q-1"), request("a", "q-1"), report(1, 2, "q-2"), report(1, 1, "q-2"), report(1, 3, "q-2")];
    bench.offer(requests.iter().map(record));
    bench.step(0).expect("facts");
    bench.offer(requests.iter().map(record));
    let again = bench.step(1).expect("consumed");
    assert_eq!(kinds(&again), ["Processed"], "who waits for a repeated request is answered too");
    assert_eq!((bench.count("q-1"), bench.count("q-2")), (1, 2));
}

#[test]
fn what_fails_is_a_dead_letter_and_changes_nothing() {
    let mut bench = Bench::new();
    let elsewhere = (0..)
        .map(|n| format!("q{n}-1"))
        .find(|text| partition_of(job(text).queue.as_str().as_bytes(), PARTITIONS) != partition_of(b"q", PARTITIONS));
    let misrouted = request("m", &elsewhere.expect("some queue"));
    let cases = [
        (Record::new("q", "no schema"), "undecodable"),
        (Record::tombstone("q"), "undecodable"),
        (Record { key: "other".into(), ..record(&request("k", "q-1")) }, "misrouted: the record's key"),
        (record(&misrouted), "misrouted: key"),
        (record(&request("d", "q-66")), "CancelRequested: sixty-six"),
        (record(&request("e", "q-67")), "CancelRequested: 1000 is not 2"),
    ];
    bench.offer([record(&request("before", "q-1"))]);
    bench.offer(cases.iter().map(|(record, _)| record.clone()));
    bench.offer([record(&request("after", "q-1"))]);
    let transaction = bench.step(0).expect("consumed");
    assert_eq!(kinds(&transaction), ["JobCanceled", "JobCanceled", "Processed"]);
    assert_eq!(transaction.next_offset, 8);
    let letters: Vec<DeadLetter> = transaction.batch.records[3..]
        .iter()
        .map(|(_, record)| codec::decode(record.value.as_deref().expect("a letter")).expect("decodes"))
        .collect();
    assert_eq!(letters.len(), cases.len());
    for ((letter, (record, error)), offset) in letters.iter().zip(&cases).zip(1..) {
        assert!(letter.error.starts_with(error), "{} is not {error}", letter.error);
        assert_eq!((letter.offset, &*letter.value), (offset, record.value.as_deref().unwrap_or_default()));
    }
    assert_eq!((bench.count("q-1"), bench.count("q-67")), (2, 0));
}

#[test]
fn what_is_not_by_whom_it_must_be_is_a_dead_letter() {
    let mut bench = Bench::new();
    let request = |id: &str| request(id, "q-1");
    let stranger = RequestKey::new(Sender::Control, &[8; 32]);
    let eu = RequestKey::new(Sender::Region("eu".parse().expect("valid")), &[7; 32]);
    let signed = |id: &str| record(&request(id));
    let signals = topics::WORKER_SIGNALS.name;
    let twice = {
        let record = signed("h");
        let header = record.headers[0].clone();
        record.with_header(header.0, header.1)
    };
    let cases = [
        (unsigned(&request("a")), "CancelRequested: it has no header"),
        (unsigned(&request("b")).with_header(AUTH, "1 control"), "is not of the form"),
        (seal(&stranger, topics::BUILD_REQUESTS.name, unsigned(&request("c"))), "nobody here knows the key"),
        (seal(&eu, topics::BUILD_REQUESTS.name, unsigned(&request("d"))), "nobody here knows the key"),
        (seal(&key(), signals, unsigned(&request("e"))), "was not made by control for this topic"),
        (Record { headers: signed("other").headers, ..signed("f") }, "was not made by control"),
        (twice, "once"),
    ];
    bench.offer([signed("before")]);
    bench.offer(cases.iter().map(|(record, _)| record.clone()));
    bench.offer([signed("after")]);
    let transaction = bench.step(0).expect("consumed");
    assert_eq!(kinds(&transaction), ["JobCanceled", "JobCanceled", "Processed"], "the good ones go on");
    assert_eq!(bench.count("q-1"), 2);
    let letters: Vec<&Record> = transaction.batch.records[3..].iter().map(|(_, record)| record).collect();
    assert_eq!(letters.len(), cases.len());
    for (letter, (record, error)) in letters.iter().zip(&cases) {
        let decoded: DeadLetter = codec::decode(letter.value.as_deref().expect("a letter")).expect("decodes");
        assert!(decoded.error.starts_with("not believed: CancelRequested: "), "{}", decoded.error);
        assert!(decoded.error.contains(error), "{} is not {error}", decoded.error);
        let kept = record.headers.iter().map(|(name, value)| (format!("original.{name}"), value.clone()));
        assert_eq!(letter.headers, kept.collect::<Vec<_>>(), "it can be tried again as it was");
    }
    // A beat that anyone could have sent puts off no deadline.
    bench.offer([record(&request_for("g", "q-30"))]);
    bench.step(100).expect("consumed");
    bench.leader.offer_signals([stored(signals, 0, 0, unsigned(&beat("q-30")))], 1);
    let dead = bench.step(110).expect("a dead letter");
    assert_eq!(kinds(&dead), ["Processed"]);
    let step = bench.leader.step(&bench.state, Timestamp(111)).expect("memory");
    assert_eq!(step.next_wake, Some(Timestamp(120)));
}

fn request_for(id: &str, job: &str) -> Request<BuildRequest> {
    request(id, job)
}

#[test]
fn outgoing_requests_have_an_id_and_an_order_of_their_own() {
    let mut bench = Bench::new();
    bench.offer([record(&request("a", "q-70")), record(&request("b", "q-70"))]);
    let first = bench.step(0).expect("consumed");
    bench.offer([record(&request("c", "q-70"))]);
    let second = bench.step(0).expect("consumed");
    let sent = [first, second].into_iter().flat_map(|transaction| transaction.batch.records);
    let sent =
        sent.filter(|(to, _)| matches!(to, Destination::Keyed(topic) if &**topic == topics::ARTIFACT_REQUESTS.name));
    let sealed: Vec<Record> = sent.map(|(_, record)| record).collect();
    let sent: Vec<Request<ArtifactRequest>> = sealed
        .iter()
        .map(|record| codec::decode(record.value.as_deref().expect("a request")).expect("decodes"))
        .collect();
    let partition = partition_of(b"q", PARTITIONS);
    let ids: Vec<_> = sent.iter().map(|request| request.id.to_string()).collect();
    assert_eq!(ids, ["1-0", "1-1", "4-0"].map(|place| format!("toy-{partition}-{place}")));
    let orders: Vec<_> = sent.iter().map(|r| r.report.as_ref().map(|order| (order.boot, order.sequence))).collect();
    assert!(orders.is_sorted() && orders.iter().all(Option::is_some), "{orders:?}");
    for record in sealed {
        let of = StoredRecord {
            source: TopicPartition::new(ArtifactRequest::TOPIC.name, 0),
            offset: 0,
            at: Timestamp(0),
            record,
        };
        gate().check(Speaker::Control, None, &of).expect("the next processor believes it");
    }
}

#[test]
fn a_deadline_waits_for_the_beats_that_came_before_it() {
    let mut bench = Bench::new();
    let signals = |offset| stored(topics::WORKER_SIGNALS.name, 0, offset, record(&beat("q-30")));
    bench.offer([record(&request("a", "q-30"))]);
    bench.step(100).expect("consumed");
    // Due at 120, seen at 121, when the log holds a beat that was not read yet.
    bench.leader.set_barrier(Barrier { at: Timestamp(121), requests: 1, signals: 1 });
    assert!(bench.step(130).is_none(), "not drained: nothing is due");
    bench.leader.offer_signals([signals(0)], 1);
    assert!(bench.step(150).is_none(), "the beat counts as of the barrier, and puts the deadline off to 141");
    let step = bench.leader.step(&bench.state, Timestamp(151)).expect("memory");
    assert_eq!(step.next_wake, Some(Timestamp(141)));
    assert!(step.transaction.is_none() && !bench.leader.has_barrier());
    bench.leader.set_barrier(Barrier { at: Timestamp(152), requests: 1, signals: 1 });
    let transaction = bench.step(160).expect("due");
    assert_eq!(kinds(&transaction), ["JobRequeued", "Processed"]);
    assert!(matches!(&transaction.facts[0].cause.trigger, Trigger::TimerFired(timer) if timer.due == Timestamp(152)));
    assert_eq!(transaction.next_offset, 1, "nothing was consumed");
}

/// Or a topic that was idle for as long as requests are kept would look as if it had lost some.
#[test]
fn offsets_without_a_record_are_passed_over_with_the_next_request_or_after_an_hour() {
    const HOUR: i64 = 60 * 60 * 1_000;
    let mut bench = Bench::new();
    bench.offer([record(&request("a", "q-1"))]);
    bench.step(100).expect("consumed");
    // The end of somebody's transaction.
    bench.offset += 1;
    bench.leader.offer_requests([], bench.offset);
    let step = bench.leader.step(&bench.state, Timestamp(200)).expect("memory");
    assert!(step.transaction.is_none());
    assert_eq!(step.next_wake, Some(Timestamp(100 + HOUR)));
    let transaction = bench.step(100 + HOUR).expect("it is time");
    assert_eq!((kinds(&transaction), transaction.next_offset), (vec!["Processed"], 2));
    let step = bench.leader.step(&bench.state, Timestamp(200 + HOUR)).expect("memory");
    assert!(step.transaction.is_none() && step.next_wake.is_none(), "once");
    // With a request at once.
    bench.offset += 1;
    bench.offer([record(&request("b", "q-1"))]);
    assert_eq!(bench.step(300 + HOUR).expect("consumed").next_offset, 4);
}

#[test]
fn time_never_goes_back() {
    let mut bench = Bench::new();
    bench.offer([record(&request("a", "q-1"))]);
    bench.step(100).expect("consumed");
    bench.offer([record(&request("b", "q-1"))]);
    let transaction = bench.step(50).expect("consumed");
    assert!(transaction.facts.iter().all(|fact: &Fact<BuildFact>| fact.at == Timestamp(100)));
}

#[test]
fn transactions_are_bounded() {
    let mut bench = Bench::new();
    bench.offer((0..REQUESTS_MAX + 5).map(|n| record(&request(&format!("r{n}"), "q-1"))));
    let first = bench.step(0).expect("consumed");
    assert_eq!(first.next_offset, REQUESTS_MAX as u64);
    let second = bench.step(0).expect("consumed");
    assert_eq!(second.next_offset, REQUESTS_MAX as u64 + 5);
    assert_eq!(bench.count("q-1"), REQUESTS_MAX as u32 + 5);
    // Refusals stand in one record, so their size ends a transaction as well.
    bench.offer((0..REQUESTS_MAX).map(|n| record(&request(&format!("{n:0>128}"), "q-13"))));
    while let Some(transaction) = bench.step(0) {
        assert!(transaction.batch.records.iter().all(|(_, record)| record.bytes() < longshore_log::RECORD_BYTES_MAX));
    }
}
