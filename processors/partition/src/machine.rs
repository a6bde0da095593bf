//! The role of one partition on one replica: follows while others lead, leads while it is assigned.
//!
//! ```text
//!            ┌────────────────────────────── anew, after a rest ◀── any error ──┐
//!            ▼                                                                  │
//!  not assigned ─▶ Ask start of facts ─▶ Open, Read … (follows)                 │
//!      assigned ─▶ TakeWriter ─▶ Ask end of facts ─▶ Open, Read up to it ─▶ Ask ─▶ Open ─▶ Commit*, Read, Ask ends …
//!                  (fences)                         (replays)               │          (leads)
//!                                       requests are missing: halted, follows until a fact passes them over
//! ```
//!
//! A leader that reads over offsets asks where requests start: in some logs ends of transactions leave such gaps, and retention that
//! overtakes the leader does. Then it takes over again, and halts there if that is so.
//!
//! There is always exactly one effect under way; its answer brings the next one. So nothing is half done between two
//! calls, and whoever carries effects out decides nothing. Every error ends the role, which then begins anew: that is right
//! for a fenced writer, a commit that may or may not have happened, and a full disk alike.
//!
//! What the log has lost is not passed over in silence. Facts that are missing halt the replica for good: its State can
//! come from a snapshot only. Requests that are missing halt the partition until a person accepts that, which is a fact too: a
//! `Processed` of that person's ([`crate::loss`]), which every replica and every later leader reads.

use std::{sync::Arc, time::Duration};

use longshore_log::{Batch, CommitError, Position, StoredRecord, TopicPartition, clock::Steady};
use longshore_planted::{Bug, planted};
use longshore_schemas::{Timestamp, events::Event};

use crate::{
    Applied, Error, Gate, Projection, Replica, Wire,
    error::chain,
    step::{Barrier, Leader, Place, Transaction},
};

/// How far back a new leader reads signals: those of a moment ago were heard by nobody yet, and are repeated every 5 s.
const SIGNALS_LOOKBACK: Duration = Duration::from_secs(6);
/// What a transaction leaves of offsets without a record, in some logs.
const TRANSACTION_END_OFFSETS: u64 = 1;
const REST_MIN: Duration = Duration::from_millis(10);
const REST_MAX: Duration = Duration::from_secs(5);
/// Between deadlines at least, should a processor say that one stays due.
const WAKE_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// What a partition does on this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Following,
    TakingOver,
    Leading,
    /// A committed fact cannot be applied, or the log has lost what is needed: a person has to look.
    Halted,
    Stopped,
}

/// A partition's role, and what went wrong last if it is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub role: Role,
    pub error: Option<String>,
}

/// What to do next. The answer to each is given with it.
#[derive(Debug)]
pub enum Effect {
    /// Read from these offsets on, with a new reader: [`Answer::Done`].
    Open(Vec<(TopicPartition, u64)>),
    /// Wait for records of what was opened last, at most until `due`, and while the assignment is `assigned`:
    /// [`Answer::Read`], [`Answer::Due`] or [`Answer::Ended`].
    Read { due: Option<Duration>, assigned: bool },
    /// Take a writer for this owner in place of an earlier one: [`Answer::Done`].
    TakeWriter(String),
    /// Ask these of the log, in this order: [`Answer::Offsets`].
    Ask(Vec<Question>),
    /// Commit with the writer that was taken last: [`Answer::Committed`].
    Commit(Batch),
    /// Let this time pass, unless all is stopping: [`Answer::Done`].
    Rest(Duration),
    /// The role has ended for good; there is no answer.
    End,
}

/// What a log can be asked. The answer is an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    Start(TopicPartition),
    End(TopicPartition),
    At(TopicPartition, Timestamp),
}

/// What came of an effect.
#[derive(Debug)]
pub enum Answer {
    Done,
    /// The positions are those of what was opened, in that order.
    Read {
        records: Vec<StoredRecord>,
        positions: Vec<u64>,
    },
    Due,
    /// The assignment has changed, or all is stopping.
    Ended,
    Offsets(Vec<u64>),
    Committed(Vec<Position>),
    Failed(Error),
}

/// What is the case outside, as the answer comes.
#[derive(Debug, Clone, Copy)]
pub struct Around {
    /// What the clock shows. It may jump.
    pub now: Timestamp,
    /// The time since some moment in the past, by a clock that nobody sets.
    pub steady: Duration,
    pub assigned: bool,
    pub stopping: bool,
}

impl Around {
    fn must_stop(&self) -> bool {
        self.stopping || !self.assigned
    }
}

/// See the module.
pub struct Machine<P: Wire, S> {
    processor: Arc<P>,
    gate: Arc<dyn Gate>,
    place: Place,
    /// Whether the processor has signals.
    signals: bool,
    replica: Replica<P, S>,
    phase: Phase<P>,
    status: Status,
    rest: Duration,
    /// What was applied when the role began: a role that got nowhere is followed by a longer rest.
    began_at: Applied,
    /// Where the log's facts began when that was last asked.
    facts_start: u64,
}

enum Phase<P: Wire> {
    /// Nothing is under way: the role begins with the next answer.
    Between,
    AskingFactsStart,
    Opening,
    Following,
    Fencing {
        /// Known only by the bug that asks for the end too early.
        end: Option<u64>,
    },
    AskingFactsEnd,
    CatchingUp {
        end: u64,
    },
    AskingWhereToLead,
    /// Requests before `start` are lost. It follows until a fact passes them over.
    OpeningHalted {
        start: u64,
    },
    FollowingHalted {
        start: u64,
    },
    OpeningToLead(Box<Lead<P>>),
    Leading(Box<Lead<P>>),
    Over,
}

/// What only a leader has.
struct Lead<P: Wire> {
    leader: Leader<P>,
    requests: TopicPartition,
    next_wake: Option<Timestamp>,
    /// The last step said that there is more to do at once.
    again: bool,
    /// What was read behind a gap, while it is asked whether the log has lost what was there.
    behind_gap: Option<Taken>,
    /// What is being committed.
    committing: Option<Transaction<P::Fact>>,
    /// When a deadline was seen to be due, while the ends are asked for.
    due_at: Timestamp,
    /// Its time: from what its predecessor wrote last on, so that deadlines come due also where that one's clock was ahead.
    /// A clock that is set must not end any lease, nor prolong it.
    clock: Steady,
}

/// Requests and signals as they were read, and the positions after them.
struct Taken {
    requests: Vec<StoredRecord>,
    signals: Vec<StoredRecord>,
    positions: Vec<u64>,
}

impl<P: Wire> Lead<P> {
    fn take(&mut self, Taken { requests, signals, positions }: Taken) {
        self.leader.offer_requests(requests, first(&positions));
        self.leader.offer_signals(signals, positions.get(1).copied().unwrap_or(0));
    }

    /// Whether there are offsets that this reading has passed over before its first request.
    fn is_behind_gap(&self, taken: &Taken) -> bool {
        let next = taken.requests.first().map_or(first(&taken.positions), |record| record.offset);
        next > self.leader.requests_position()
    }

    fn now(&mut self, around: Around) -> Timestamp {
        self.clock.read_at(around.now, around.steady)
    }
}

impl<P: Wire, S: Projection> Machine<P, S> {
    pub fn new(processor: Arc<P>, gate: Arc<dyn Gate>, place: Place, signals: bool, replica: Replica<P, S>) -> Self {
        let began_at = replica.applied();
        let status = Status { role: Role::Following, error: None };
        Self {
            processor,
            gate,
            place,
            signals,
            replica,
            phase: Phase::Between,
            status,
            rest: REST_MIN,
            began_at,
            facts_start: 0,
        }
    }

    pub fn status(&self) -> &Status {
        &self.status
    }

    pub fn replica(&self) -> &Replica<P, S> {
        &self.replica
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// The first effect.
    pub fn start(&mut self, around: Around) -> Effect {
        self.begin(around)
    }

    /// Takes the answer to the effect under way, and says what is next.
    pub fn handle(&mut self, answer: Answer, around: Around) -> Effect {
        match self.advance(answer, around) {
            Ok(effect) => effect,
            Err(error) => self.fail(&error),
        }
    }

    fn advance(&mut self, answer: Answer, around: Around) -> Result<Effect, Error> {
        if let Answer::Failed(error) = answer {
            return self.failed(error);
        }
        match (std::mem::replace(&mut self.phase, Phase::Between), answer) {
            (Phase::AskingFactsStart, Answer::Offsets(starts)) => {
                self.check_facts(first(&starts))?;
                self.phase = Phase::Opening;
                Ok(self.open_facts())
            }
            (Phase::Opening, Answer::Done) => {
                self.set_role(Role::Following);
                Ok(self.follow())
            }
            (Phase::Following, Answer::Read { records, positions }) => {
                self.follow_facts(&records, first(&positions))?;
                Ok(self.follow())
            }
            (Phase::Fencing { end: None }, Answer::Done) => Ok(self.ask_facts_end()),
            (Phase::Fencing { end: Some(end) }, Answer::Done) => self.catch_up(end, around),
            (Phase::AskingFactsEnd, Answer::Offsets(offsets)) => {
                self.check_facts(offsets.get(1).copied().unwrap_or_default())?;
                let end = first(&offsets);
                if planted(Bug::ReadEndBeforeFencing) {
                    return Ok(self.take_writer(Some(end)));
                }
                self.catch_up(end, around)
            }
            (Phase::CatchingUp { end }, Answer::Done) => {
                self.catch_up_further(end, self.replica.applied().fact_offset, around)
            }
            (Phase::CatchingUp { end }, Answer::Read { records, positions }) => {
                let position = first(&positions);
                self.follow_facts(&records, position)?;
                self.catch_up_further(end, position, around)
            }
            (Phase::AskingWhereToLead, Answer::Offsets(offsets)) => Ok(self.open_to_lead(&offsets)),
            (Phase::OpeningHalted { start }, Answer::Done) => Ok(self.follow_halted(start)),
            (Phase::FollowingHalted { start }, Answer::Read { records, positions }) => {
                self.follow_facts(&records, first(&positions))?;
                let passed_over = self.replica.applied().request_offset >= start;
                Ok(if passed_over { self.begin(around) } else { self.follow_halted(start) })
            }
            (Phase::OpeningToLead(mut lead), Answer::Done) => {
                // What the log holds is not of the future, whatever the clock shows.
                let last = self.replica.applied().at;
                let at = if planted(Bug::LetTimeGoBack) { around.now } else { around.now.max(last) };
                lead.clock = Steady::from_time(at, around.steady);
                self.set_role(Role::Leading);
                self.settle(lead, around)
            }
            (Phase::Leading(lead), answer) => self.lead(lead, answer, around),
            // The assignment has changed, or the rest is over.
            (_, _) => Ok(self.begin(around)),
        }
    }

    fn begin(&mut self, around: Around) -> Effect {
        if around.stopping {
            self.phase = Phase::Over;
            self.set_role(Role::Stopped);
            return Effect::End;
        }
        if let Err(error) = self.replica.refresh() {
            return self.fail(&error);
        }
        self.began_at = self.replica.applied();
        if !around.assigned {
            self.phase = Phase::AskingFactsStart;
            return Effect::Ask(vec![Question::Start(self.replica.facts().clone())]);
        }
        self.set_role(Role::TakingOver);
        if planted(Bug::ReadEndBeforeFencing) {
            return self.ask_facts_end();
        }
        // First fence: after this no fact of a predecessor can appear behind the end that is read next.
        self.take_writer(None)
    }

    fn set_role(&mut self, role: Role) {
        self.status = Status { role, error: None };
    }

    fn take_writer(&mut self, end: Option<u64>) -> Effect {
        self.phase = Phase::Fencing { end };
        self.writer()
    }

    fn writer(&self) -> Effect {
        Effect::TakeWriter(owner::<P>(self.place.partition))
    }

    fn follow(&mut self) -> Effect {
        self.phase = Phase::Following;
        Effect::Read { due: None, assigned: false }
    }

    fn ask_facts_end(&mut self) -> Effect {
        self.phase = Phase::AskingFactsEnd;
        let facts = self.replica.facts();
        Effect::Ask(vec![Question::End(facts.clone()), Question::Start(facts.clone())])
    }

    fn open_facts(&self) -> Effect {
        Effect::Open(vec![(self.replica.facts().clone(), self.replica.applied().fact_offset)])
    }

    /// Whether the facts that follow are still there. One offset may be the end of a transaction and no fact; if it was
    /// one, the sequence of the next shows it.
    fn check_facts(&mut self, start: u64) -> Result<(), Error> {
        self.facts_start = start;
        let applied = self.replica.applied().fact_offset;
        if start > applied + TRANSACTION_END_OFFSETS { Err(self.facts_lost(applied)) } else { Ok(()) }
    }

    fn follow_facts(&mut self, records: &[StoredRecord], position: u64) -> Result<(), Error> {
        let applied = self.replica.applied().fact_offset;
        self.replica.follow(records, position).map_err(|error| match error {
            Error::Unappliable { .. } if self.facts_start > applied => self.facts_lost(applied),
            error => error,
        })
    }

    fn facts_lost(&self, applied: u64) -> Error {
        Error::FactsLost { partition: self.replica.facts().to_string(), applied, start: self.facts_start }
    }

    fn follow_halted(&mut self, start: u64) -> Effect {
        self.phase = Phase::FollowingHalted { start };
        Effect::Read { due: None, assigned: true }
    }

    /// Applies every fact that is committed now. The predecessor is fenced, so these are all of its facts.
    fn catch_up(&mut self, end: u64, around: Around) -> Result<Effect, Error> {
        let (facts, from) = (self.replica.facts(), self.replica.applied().fact_offset);
        if from > end {
            return Err(longshore_log::Error::BeyondEnd { of: facts.clone(), offset: from, end }.into());
        }
        if planted(Bug::LeadBeforeReplayed) {
            return Ok(self.ask_where_to_lead(around));
        }
        self.phase = Phase::CatchingUp { end };
        Ok(self.open_facts())
    }

    fn catch_up_further(&mut self, end: u64, position: u64, around: Around) -> Result<Effect, Error> {
        if position < end {
            self.phase = Phase::CatchingUp { end };
            // Revoked or not, what is committed is applied: it is little, and a follower needs it too.
            return Ok(Effect::Read { due: None, assigned: true });
        }
        Ok(self.ask_where_to_lead(around))
    }

    fn ask_where_to_lead(&mut self, around: Around) -> Effect {
        self.phase = Phase::AskingWhereToLead;
        let mut questions = vec![Question::Start(self.requests())];
        if self.signals {
            let (signals, apart) = (self.signals(), SIGNALS_LOOKBACK.as_millis() as i64);
            let shifted = |millis| Timestamp::from_millis(around.now.millis().saturating_add(millis));
            questions.push(Question::At(signals.clone(), shifted(-apart)));
            questions.push(Question::At(signals.clone(), shifted(apart)));
            questions.push(Question::End(signals));
        }
        Effect::Ask(questions)
    }

    fn requests(&self) -> TopicPartition {
        TopicPartition::new(P::Request::TOPIC.name, self.place.partition)
    }

    fn signals(&self) -> TopicPartition {
        TopicPartition::new(P::Signal::TOPIC.name, self.place.partition)
    }

    fn open_to_lead(&mut self, offsets: &[u64]) -> Effect {
        let (requests, applied) = (self.requests(), self.replica.applied());
        let (next, start) = (applied.request_offset, first(offsets));
        if start > next {
            let (partition, processor, number) = (requests.to_string(), P::NAME, self.place.partition);
            let lost = Error::RequestsLost { partition, processor, number, next, start };
            self.status = Status { role: Role::Halted, error: Some(lost.to_string()) };
            self.phase = Phase::OpeningHalted { start };
            return self.open_facts();
        }
        let mut leader = Leader::new(self.processor.clone(), self.gate.clone(), self.place, applied);
        let mut sources = vec![(requests.clone(), next)];
        if let [_, recent, ahead, end] = offsets {
            // With records of the future the clocks do not agree, and nobody can say what is recent. Claims come again.
            let from = if ahead < end { *end } else { *recent };
            leader.offer_signals([], from);
            sources.push((self.signals(), from));
        }
        let lead = Lead {
            leader,
            requests,
            next_wake: None,
            again: false,
            behind_gap: None,
            committing: None,
            due_at: Timestamp::default(),
            clock: Steady::default(),
        };
        self.phase = Phase::OpeningToLead(Box::new(lead));
        Effect::Open(sources)
    }

    fn lead(&mut self, mut lead: Box<Lead<P>>, answer: Answer, around: Around) -> Result<Effect, Error> {
        match answer {
            Answer::Read { records, positions } => {
                let (requests, signals) = records.into_iter().partition(|record| record.source == lead.requests);
                let taken = Taken { requests, signals, positions };
                if lead.is_behind_gap(&taken) && !planted(Bug::PassOverLosses) {
                    let question = Question::Start(lead.requests.clone());
                    lead.behind_gap = Some(taken);
                    self.phase = Phase::Leading(lead);
                    return Ok(Effect::Ask(vec![question]));
                }
                lead.take(taken);
                self.settle(lead, around)
            }
            Answer::Due => {
                // The time first, the ends second: whatever came before the deadline is before the ends.
                lead.due_at = lead.now(around);
                let mut questions = vec![Question::End(lead.requests.clone())];
                if self.signals {
                    questions.push(Question::End(self.signals()));
                }
                self.phase = Phase::Leading(lead);
                Ok(Effect::Ask(questions))
            }
            Answer::Offsets(starts) if lead.behind_gap.is_some() => {
                let start = first(&starts);
                // They are lost, or another leader has processed them: taking over again shows which.
                if start > lead.leader.requests_position() {
                    return Ok(self.begin(around));
                }
                if let Some(taken) = lead.behind_gap.take() {
                    lead.take(taken);
                }
                self.settle(lead, around)
            }
            Answer::Offsets(ends) => {
                let (requests, signals) = (first(&ends), ends.get(1).copied().unwrap_or(0));
                let (requests, signals) = if planted(Bug::WakeBeforeDraining) { (0, 0) } else { (requests, signals) };
                lead.leader.set_barrier(Barrier { at: lead.due_at, requests, signals });
                self.settle(lead, around)
            }
            Answer::Committed(positions) => self.committed(lead, &positions, around),
            // A new writer, for the bug that goes on with what it has.
            Answer::Done => self.settle(lead, around),
            Answer::Ended | Answer::Failed(_) => Ok(self.begin(around)),
        }
    }

    /// Decides until something is to be committed or nothing more is to be done.
    fn settle(&mut self, mut lead: Box<Lead<P>>, around: Around) -> Result<Effect, Error> {
        loop {
            let now = lead.now(around);
            let step = lead.leader.step(self.replica.store(), now)?;
            (lead.next_wake, lead.again) = (step.next_wake, step.again);
            if let Some(mut transaction) = step.transaction {
                let batch = std::mem::take(&mut transaction.batch);
                lead.committing = Some(transaction);
                if planted(Bug::ApplyBeforeCommit) {
                    self.apply_committing(&mut lead, None)?;
                }
                self.phase = Phase::Leading(lead);
                return Ok(Effect::Commit(batch));
            }
            if !lead.again || around.must_stop() {
                return Ok(self.wait(lead, around));
            }
        }
    }

    /// It is in the log, so it is applied.
    fn committed(&mut self, mut lead: Box<Lead<P>>, positions: &[Position], around: Around) -> Result<Effect, Error> {
        self.apply_committing(&mut lead, Some(positions))?;
        if lead.again && !around.must_stop() { self.settle(lead, around) } else { Ok(self.wait(lead, around)) }
    }

    fn apply_committing(&mut self, lead: &mut Lead<P>, positions: Option<&[Position]>) -> Result<(), Error> {
        let Some(transaction) = lead.committing.take() else { return Ok(()) };
        let last = transaction.facts.len() - 1;
        let guess = self.replica.applied().fact_offset + last as u64;
        let last = positions.and_then(|positions| positions.get(last)).map_or(guess, |position| position.offset);
        self.replica.lead(transaction, last + 1)?;
        lead.leader.committed(self.replica.applied());
        Ok(())
    }

    fn wait(&mut self, mut lead: Box<Lead<P>>, around: Around) -> Effect {
        let due = lead.next_wake.filter(|_| !lead.leader.has_barrier());
        let due = due.map(|due| due.since(lead.now(around)).max(WAKE_INTERVAL_MIN));
        self.phase = Phase::Leading(lead);
        Effect::Read { due, assigned: true }
    }

    fn failed(&mut self, error: Error) -> Result<Effect, Error> {
        let ambiguous = matches!(error, Error::Commit(CommitError::Ambiguous(_)));
        if planted(Bug::GoOnAfterAmbiguousCommit)
            && ambiguous
            && let Phase::Leading(lead) = &mut self.phase
        {
            lead.committing = None;
            return Ok(self.writer());
        }
        Err(error)
    }

    /// Ends the role. Nothing of it is used again: a leader's Soft may have seen what never happened.
    fn fail(&mut self, error: &Error) -> Effect {
        let text = chain(error);
        if error.halts() {
            self.phase = Phase::Over;
            self.status = Status { role: Role::Halted, error: Some(text) };
            return Effect::End;
        }
        self.phase = Phase::Between;
        self.status = Status { role: Role::Following, error: Some(text) };
        if error.is_beyond_log() {
            self.rebuild();
        }
        let got_nowhere = self.replica.applied() == self.began_at;
        self.rest = if got_nowhere { (self.rest * 2).min(REST_MAX) } else { REST_MIN };
        Effect::Rest(self.rest)
    }

    fn rebuild(&mut self) {
        let (processor, partition) = (P::NAME, self.place.partition);
        tracing::warn!(processor, partition, "the state is ahead of the log: rebuilding");
        if let Err(error) = self.replica.reset() {
            tracing::error!(processor, partition, error = chain(&error), "state not deleted");
        }
    }
}

/// By which the log knows who leads a partition.
pub fn owner<P: Wire>(partition: u32) -> String {
    format!("{}-{partition}", P::NAME)
}

fn first(offsets: &[u64]) -> u64 {
    offsets.first().copied().unwrap_or_default()
}
