//! The machine of one partition: answers, and beside them the effects that they bring.

use std::{sync::Arc, time::Duration};

use longshore_log::{CommitError, Error as LogError, Position, TopicPartition};
use longshore_partition::{
    Answer, Applied, Around, Effect, Error, Listener, Machine, Projection, Question, Replica, Role, Status,
    loss::{Found, Lost, Refused, accept},
    step::Place,
};
use longshore_processor::{Changes, Memory, Order, Range, StateError, Store, StoreMut, Visit};
use longshore_schemas::{
    Timestamp,
    events::{BuildFact, Fact},
    topics,
};

use crate::toy::{Toy, gate, job, record, request, stored};

const HOUR_MILLIS: i64 = 60 * 60 * 1_000;

/// A projection in memory.
#[derive(Default)]
struct Kept {
    tables: Memory,
    applied: Option<Applied>,
}

impl Store for Kept {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.tables.get(table, key)
    }

    fn scan(&self, table: u8, range: &Range, order: Order, visit: &mut Visit<'_>) -> Result<(), StateError> {
        self.tables.scan(table, range, order, visit)
    }
}

impl Projection for Kept {
    fn applied(&self, _: &str, _: u32) -> Result<Option<Applied>, StateError> {
        Ok(self.applied)
    }

    fn apply(&mut self, changes: &Changes, _: &str, _: u32, applied: Applied) -> Result<(), StateError> {
        for ((table, key), value) in changes.clone() {
            match value {
                Some(value) => self.tables.put(table, key, value),
                None => self.tables.delete(table, key),
            }
        }
        self.applied = Some(applied);
        Ok(())
    }

    fn clear(&mut self) -> Result<(), StateError> {
        *self = Self::default();
        Ok(())
    }
}

struct Deaf;

impl Listener<BuildFact> for Deaf {
    fn applied(&mut self, _: Applied, _: &[Fact<BuildFact>]) {}
}

fn builds() -> TopicPartition {
    TopicPartition::new(topics::BUILDS.name, 0)
}

fn requests() -> TopicPartition {
    TopicPartition::new(topics::BUILD_REQUESTS.name, 0)
}

fn signals() -> TopicPartition {
    TopicPartition::new(topics::WORKER_SIGNALS.name, 0)
}

fn machine() -> Machine<Toy<1>, Kept> {
    let replica = Replica::open(Kept::default(), builds(), |_| Box::new(Deaf)).expect("memory");
    Machine::new(Arc::new(Toy), gate(), Place { partition: 0, partitions: 1 }, true, replica)
}

fn at(now: i64, steady: u64) -> Around {
    Around { now: Timestamp(now), steady: Duration::from_millis(steady), assigned: true, stopping: false }
}

/// Brings the machine to where it leads and waits.
fn lead(machine: &mut Machine<Toy<1>, Kept>, around: Around) -> Effect {
    machine.start(around);
    for answer in [Answer::Done, Answer::Offsets(vec![0]), Answer::Done, Answer::Offsets(vec![0, 0, 0, 0])] {
        machine.handle(answer, around);
    }
    machine.handle(Answer::Done, around)
}

fn asked(id: &str, text: &str) -> Answer {
    let records = vec![stored(topics::BUILD_REQUESTS.name, 0, 0, record(&request(id, text)))];
    Answer::Read { records, positions: vec![1, 0] }
}

fn committed(count: u64) -> Answer {
    Answer::Committed((0..count).map(|offset| Position { source: builds(), offset }).collect())
}

#[test]
fn a_leader_fences_then_reads_the_end_then_replays_then_leads() {
    let mut machine = machine();
    let around = at(1_000, 0);
    assert!(matches!(machine.start(around), Effect::TakeWriter(owner) if owner == "toy-0"));
    let end = machine.handle(Answer::Done, around);
    assert!(matches!(end, Effect::Ask(asked) if asked == [Question::End(builds()), Question::Start(builds())]));
    assert!(matches!(machine.handle(Answer::Offsets(vec![4]), around), Effect::Open(from) if from == [(builds(), 0)]));
    assert!(matches!(machine.handle(Answer::Done, around), Effect::Read { due: None, .. }));
    // A gap, as transactions leave it: the position is what counts.
    let gap = |position| Answer::Read { records: Vec::new(), positions: vec![position] };
    assert!(matches!(machine.handle(gap(3), around), Effect::Read { due: None, .. }), "one offset is missing");
    assert_eq!(machine.status().role, Role::TakingOver);
    let Effect::Ask(asked) = machine.handle(gap(4), around) else { panic!("it knows all facts") };
    assert!(matches!(asked.as_slice(), [Question::Start(of), ..] if *of == requests()));
    let sources = [(requests(), 0), (signals(), 7)];
    let open = machine.handle(Answer::Offsets(vec![0, 7, 9, 9]), around);
    assert!(matches!(open, Effect::Open(from) if from == sources));
    assert!(matches!(machine.handle(Answer::Done, around), Effect::Read { assigned: true, .. }));
    assert_eq!(machine.status().role, Role::Leading);
}

#[test]
fn signals_of_long_ago_are_not_taken_for_recent_ones() {
    let mut machine = machine();
    let around = at(1_000, 0);
    machine.start(around);
    for answer in [Answer::Done, Answer::Offsets(vec![0]), Answer::Done] {
        machine.handle(answer, around);
    }
    // The log has records of the future: its clock was, or is, ahead of this one.
    let open = machine.handle(Answer::Offsets(vec![0, 2, 5, 9]), around);
    assert!(matches!(open, Effect::Open(from) if from == [(requests(), 0), (signals(), 9)]));
}

#[test]
fn nothing_is_applied_before_it_is_committed() {
    let mut machine = machine();
    let around = at(1_000, 0);
    lead(&mut machine, around);
    let Effect::Commit(batch) = machine.handle(asked("r", "q-1"), around) else {
        panic!("there is something to commit")
    };
    assert_eq!(batch.records.len(), 2, "JobCanceled and Processed");
    assert_eq!(machine.replica().applied(), Applied::default());
    assert!(matches!(machine.handle(committed(2), around), Effect::Read { .. }));
    let applied = machine.replica().applied();
    assert_eq!((applied.fact_offset, applied.request_offset, applied.sequence), (2, 1, 2));
}

#[test]
fn after_a_commit_that_may_have_happened_the_role_begins_anew() {
    for error in
        [CommitError::Fenced, CommitError::Ambiguous(LogError::WriterSpent), CommitError::Failed(LogError::WriterSpent)]
    {
        let mut machine = machine();
        let around = at(1_000, 0);
        lead(&mut machine, around);
        machine.handle(asked("r", "q-1"), around);
        let rest = machine.handle(Answer::Failed(Error::Commit(error)), around);
        assert!(matches!(rest, Effect::Rest(_)), "{rest:?}");
        assert_eq!(machine.replica().applied(), Applied::default());
        assert!(machine.status().error.is_some());
        assert!(matches!(machine.handle(Answer::Done, around), Effect::TakeWriter(_)));
    }
}

#[test]
fn a_clock_that_is_set_neither_ends_a_lease_nor_prolongs_it() {
    for hours in [-1, 1] {
        let mut machine = machine();
        lead(&mut machine, at(HOUR_MILLIS * 2, 0));
        // A deadline 20 ms later.
        machine.handle(asked("r", "q-30"), at(HOUR_MILLIS * 2, 0));
        let around = at(HOUR_MILLIS * (2 + hours), 5);
        let Effect::Read { due: Some(due), .. } = machine.handle(committed(3), around) else { panic!("it waits") };
        assert!(due >= Duration::from_millis(15) && due <= Duration::from_millis(20), "{due:?} after {hours} h");
        // The time first, the ends second; then it is due by the time that has passed, but for the little by which it follows
        // the clock.
        let around = at(HOUR_MILLIS * (2 + hours), 21);
        let ends = machine.handle(Answer::Due, around);
        assert!(matches!(ends, Effect::Ask(asked) if asked == [Question::End(requests()), Question::End(signals())]));
        let Effect::Commit(batch) = machine.handle(Answer::Offsets(vec![1, 0]), around) else { panic!("it is due") };
        assert_eq!(batch.records.len(), 2, "JobRequeued of {} and Processed", job("q-30"));
    }
}

#[test]
fn a_revoked_leader_commits_what_is_under_way_and_follows() {
    let mut machine = machine();
    let around = at(1_000, 0);
    lead(&mut machine, around);
    machine.handle(asked("r", "q-1"), around);
    let revoked = Around { assigned: false, ..around };
    assert!(matches!(machine.handle(committed(2), revoked), Effect::Read { assigned: true, .. }));
    assert_eq!(machine.replica().applied().sequence, 2);
    let start = machine.handle(Answer::Ended, revoked);
    assert!(matches!(start, Effect::Ask(asked) if asked == [Question::Start(builds())]));
    let open = machine.handle(Answer::Offsets(vec![0]), revoked);
    assert!(matches!(open, Effect::Open(from) if from == [(builds(), 2)]));
    assert!(matches!(machine.handle(Answer::Done, revoked), Effect::Read { assigned: false, due: None }));
    assert_eq!(machine.status().role, Role::Following);
    let stopping = Around { stopping: true, ..revoked };
    assert!(matches!(machine.handle(Answer::Ended, stopping), Effect::End));
    assert_eq!(machine.status().role, Role::Stopped);
}

/// As it is asked for: whether the log has lost facts, by where the facts start and how far the replica is.
#[test]
fn facts_that_are_lost_halt_a_replica_for_good() {
    for (start, halts) in [(0, false), (2, false), (3, false), (4, true), (9, true)] {
        let around = at(1_000, 0);
        let mut machine = machine();
        lead(&mut machine, around);
        machine.handle(asked("r", "q-1"), around);
        machine.handle(committed(2), around);
        // It has applied facts 0 and 1; an offset more may be the end of a transaction.
        for assigned in [false, true] {
            let around = Around { assigned, ..around };
            let mut machine = Machine::new(Arc::new(Toy::<1>), gate(), machine.place(), true, replica_of(&machine));
            machine.start(around);
            if assigned {
                machine.handle(Answer::Done, around);
            }
            let starts = if assigned { vec![9, start] } else { vec![start] };
            let next = machine.handle(Answer::Offsets(starts), around);
            assert_eq!(matches!(next, Effect::End), halts, "{start}: {next:?}");
            assert_eq!(machine.status().role == Role::Halted, halts);
            let told = machine.status().error.clone().unwrap_or_default();
            assert_eq!(told.contains(&format!("facts 2 to {} of builds/0", start.max(1) - 1)), halts, "{told}");
        }
    }
}

/// One offset may be the end of a transaction. That it was a fact shows with the next, and then the same is said.
#[test]
fn one_fact_that_is_lost_is_told_as_many_are() {
    let around = at(1_000, 0);
    let mut leader = machine();
    lead(&mut leader, around);
    let Effect::Commit(batch) = leader.handle(asked("r", "q-1"), around) else { panic!("there are facts") };
    let record = batch.records.into_iter().map(|(_, record)| record).nth(1).expect("Processed");
    let second = stored(topics::BUILDS.name, 0, 1, record);

    let (mut follower, around) = (machine(), Around { assigned: false, ..around });
    follower.start(around);
    assert!(matches!(follower.handle(Answer::Offsets(vec![1]), around), Effect::Open(_)));
    follower.handle(Answer::Done, around);
    let read = Answer::Read { records: vec![second], positions: vec![2] };
    assert!(matches!(follower.handle(read, around), Effect::End));
    let told = follower.status().error.clone().unwrap_or_default();
    assert!(told.contains("facts 0 to 0 of builds/0 were removed"), "{told}");
}

/// Another replica with the same state.
fn replica_of(machine: &Machine<Toy<1>, Kept>) -> Replica<Toy<1>, Kept> {
    let kept = Kept { tables: machine.replica().store().tables.clone(), applied: Some(machine.replica().applied()) };
    Replica::open(kept, builds(), |_| Box::new(Deaf)).expect("memory")
}

/// A leader before its answer to where requests start.
fn before_leading(around: Around) -> Machine<Toy<1>, Kept> {
    let mut machine = machine();
    machine.start(around);
    for answer in [Answer::Done, Answer::Offsets(vec![0, 0]), Answer::Done] {
        machine.handle(answer, around);
    }
    machine
}

#[test]
fn requests_that_are_lost_halt_a_leader_until_that_is_accepted() {
    let around = at(1_000, 0);
    let mut machine = before_leading(around);
    let open = machine.handle(Answer::Offsets(vec![5, 0, 0, 0]), around);
    assert!(matches!(open, Effect::Open(from) if from == [(builds(), 0)]), "it follows the facts");
    let halted = Status { role: Role::Halted, error: machine.status().error.clone() };
    let told = halted.error.clone().expect("says why");
    assert!(told.contains("requests 0 to 4 of build-requests/0"), "{told}");
    assert!(told.contains("longshore log accept-loss toy 0 --from 0 --to 5"), "{told}");
    assert!(matches!(machine.handle(Answer::Done, around), Effect::Read { due: None, assigned: true }));

    // Others' offsets are not accepted; what is lost is.
    let found = Found { last_fact: None, facts_end: 0, requests_start: 5 };
    for (from, to) in [(0, 4), (1, 5), (0, 6), (5, 5)] {
        let refused = accept::<Toy<1>>(0, Lost { from, to }, &found, "ada", around.now).expect_err("another loss");
        assert!(matches!(refused, Refused::Other { next: 0, start: 5, .. }), "{refused}");
    }
    let batch = accept::<Toy<1>>(0, Lost { from: 0, to: 5 }, &found, "ada", around.now).expect("that is the loss");
    let (_, fact) = batch.records.into_iter().next().expect("a fact");
    let fact = stored(topics::BUILDS.name, 0, 0, fact);
    // A fact that passes over less changes nothing.
    assert_eq!(machine.status(), &halted);
    let read = Answer::Read { records: vec![fact.clone()], positions: vec![1] };
    assert!(matches!(machine.handle(read, around), Effect::TakeWriter(_)), "it takes over again");
    assert_eq!(machine.status().role, Role::TakingOver);
    assert_eq!(machine.replica().applied().request_offset, 5);
    for answer in [Answer::Done, Answer::Offsets(vec![1, 0]), Answer::Done] {
        machine.handle(answer, around);
    }
    let open = machine.handle(Answer::Offsets(vec![5, 0, 0, 0]), around);
    assert!(matches!(open, Effect::Open(from) if from[0] == (requests(), 5)));
    machine.handle(Answer::Done, around);
    assert_eq!(machine.status().role, Role::Leading);

    let again = Found { last_fact: Some(&fact), facts_end: 1, requests_start: 5 };
    let refused = accept::<Toy<1>>(0, Lost { from: 5, to: 5 }, &again, "ada", around.now).expect_err("nothing");
    assert!(matches!(refused, Refused::NothingLost { .. }), "{refused}");
    let without = Found { last_fact: None, facts_end: 7, requests_start: 5 };
    accept::<Toy<1>>(0, Lost { from: 0, to: 5 }, &without, "ada", around.now).expect_err("its facts are lost too");
}

/// Retention may be faster than a leader, which then reads on where the log goes on.
#[test]
fn a_leader_that_retention_overtakes_halts_before_it_decides_more() {
    let around = at(1_000, 0);
    let read = |offsets: &[u64], end: u64| {
        let record = |offset: &u64| {
            let id = format!("r-{offset}");
            stored(topics::BUILD_REQUESTS.name, 0, *offset, record(&request(&id, &format!("q-{offset}"))))
        };
        Answer::Read { records: offsets.iter().map(record).collect(), positions: vec![end, 0] }
    };
    // Offset 0 is processed; then what is read next, and where the log starts by then.
    let table = [
        (read(&[1], 2), None, true),
        (read(&[2, 4], 5), Some(0), true),
        (read(&[2], 3), Some(1), true),
        (read(&[2], 3), Some(2), false),
        (read(&[7], 8), Some(7), false),
        // All is gone.
        (read(&[], 9), Some(9), false),
        (read(&[], 2), Some(0), true),
    ];
    for (read, start, well) in table {
        let mut machine = machine();
        lead(&mut machine, around);
        machine.handle(asked("r-0", "q-1"), around);
        machine.handle(committed(2), around);
        let told = format!("{read:?}, start {start:?}");
        let next = match (machine.handle(read, around), start) {
            (Effect::Ask(asked), Some(start)) => {
                assert_eq!(asked, [Question::Start(requests())], "{told}");
                machine.handle(Answer::Offsets(vec![start]), around)
            }
            (next, None) => next,
            (next, Some(_)) => panic!("{told}: {next:?}"),
        };
        if well {
            assert!(matches!(next, Effect::Commit(_) | Effect::Read { .. }), "{told}: {next:?}");
            continue;
        }
        // Whether another has processed them meanwhile, its facts say.
        assert!(matches!(next, Effect::TakeWriter(_)), "{told}");
        let start = start.expect("it has lost something");
        for answer in [Answer::Done, Answer::Offsets(vec![2, 0]), Answer::Done] {
            machine.handle(answer, around);
        }
        let next = machine.handle(Answer::Offsets(vec![start, 0, 0, 0]), around);
        assert!(matches!(next, Effect::Open(from) if from == [(builds(), 2)]), "{told}");
        let accept = format!("accept-loss toy 0 --from 1 --to {start}");
        assert!(machine.status().error.as_ref().is_some_and(|error| error.contains(&accept)), "{told}");
        assert_eq!(machine.status().role, Role::Halted, "{told}");
    }
}

#[test]
fn who_is_halted_and_not_assigned_any_more_follows() {
    let around = at(1_000, 0);
    let mut machine = before_leading(around);
    machine.handle(Answer::Offsets(vec![5, 0, 0, 0]), around);
    machine.handle(Answer::Done, around);
    let revoked = Around { assigned: false, ..around };
    let start = machine.handle(Answer::Ended, revoked);
    assert!(matches!(start, Effect::Ask(asked) if asked == [Question::Start(builds())]));
    machine.handle(Answer::Offsets(vec![0]), revoked);
    machine.handle(Answer::Done, revoked);
    assert_eq!(machine.status(), &Status { role: Role::Following, error: None });
}
