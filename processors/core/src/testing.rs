//! A driver for tests of one processor: it does what the runtime does, in memory and one input at a time.
//!
//! ```text
//!   request / signal / advance ──▶ decide ──▶ envelope (sequence, cause) ──▶ evolve ──▶ log of facts
//! ```
//!
//! Each input answers its [`Decision`], so that a test shows input and expected facts side by side. A driver panics
//! where the runtime would halt a partition: this module is for tests only.

use std::time::Duration;

use longshore_schemas::{
    RequestId, Timestamp,
    events::{Cause, Consumed, Event, Fact, Processed, Refusal, Request, TimerFired, Trigger},
};

use crate::{Decision, Fingerprint, Memory, Outgoing, Processor, Seen, fingerprint};

/// Decisions of one `wake`, at most: more are an endless loop.
const WAKE_DECISIONS_MAX: usize = 100_000;
/// Where a driver's time starts.
const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// One partition of a processor.
pub struct Driver<P: Processor> {
    processor: P,
    state: Memory,
    soft: P::Soft,
    now: Timestamp,
    next_offset: u64,
    facts: Vec<Fact<P::Fact>>,
    requests: Vec<Outgoing>,
}

impl<P: Processor> Driver<P> {
    pub fn new(processor: P) -> Self {
        Self {
            processor,
            state: Memory::default(),
            soft: P::Soft::default(),
            now: START,
            next_offset: 0,
            facts: Vec::new(),
            requests: Vec::new(),
        }
    }

    pub fn now(&self) -> Timestamp {
        self.now
    }

    pub fn state(&self) -> &Memory {
        &self.state
    }

    pub fn soft(&self) -> &P::Soft {
        &self.soft
    }

    /// Every fact so far, `Processed` included.
    pub fn facts(&self) -> &[Fact<P::Fact>] {
        &self.facts
    }

    /// Every request to other processors so far.
    pub fn sent(&self) -> &[Outgoing] {
        &self.requests
    }

    /// A request with an id of its own.
    pub fn request(&mut self, event: impl Into<P::Request>) -> Decision<P::Fact> {
        let request = envelope(&format!("request-{}", self.next_offset), event.into(), self.now);
        self.submit(&request)
    }

    /// A request with the given id; an id that was processed before changes nothing.
    pub fn request_as(&mut self, id: &str, event: impl Into<P::Request>) -> Decision<P::Fact> {
        self.submit(&envelope(id, event.into(), self.now))
    }

    /// A request as it stands on its topic.
    pub fn submit(&mut self, request: &Request<P::Request>) -> Decision<P::Fact> {
        let offset = self.next_offset;
        self.next_offset += 1;
        if Seen::contains(&self.state, request).expect("state in memory") {
            return Decision::nothing();
        }
        let decision = self
            .processor
            .decide(&self.state, &mut self.soft, request, self.now)
            .unwrap_or_else(|e| panic!("{} cannot be decided: {e}", request.event.kind()));
        let consumed = Consumed {
            topic: P::Request::TOPIC.name.to_owned(),
            partition: 0,
            offset,
            request: request.id.clone(),
            report: request.report.clone(),
        };
        let refusals = decision.refusal.iter().map(|refused| Refusal {
            request: request.id.clone(),
            offset,
            code: refused.code,
            reason: refused.reason.clone(),
        });
        let refusals = refusals.collect();
        self.commit(&decision, &Trigger::Consumed(consumed), &request.actor, refusals);
        decision
    }

    pub fn signal(&mut self, event: impl Into<P::Signal>) -> Decision<P::Fact> {
        self.signal_by(event, self.now)
    }

    /// From a sender whose clock shows `at`.
    pub fn signal_by(&mut self, event: impl Into<P::Signal>, at: Timestamp) -> Decision<P::Fact> {
        let signal = envelope("signal", event.into(), at);
        let decision = self
            .processor
            .signal(&self.state, &mut self.soft, &signal, self.now)
            .unwrap_or_else(|e| panic!("signal {} cannot be decided: {e}", signal.event.kind()));
        if !decision.is_nothing() {
            self.commit_timer(&decision, "signal");
        }
        decision
    }

    /// Lets time pass, and stops at each deadline on the way. Answers everything that came due.
    pub fn advance(&mut self, duration: Duration) -> Decision<P::Fact> {
        let target = self.now + duration;
        let mut all = Decision::nothing();
        while let Some(due) = self.next_wake().filter(|due| *due <= target) {
            self.now = self.now.max(due);
            self.wake(&mut all);
            let next = self.next_wake();
            assert!(next.is_none_or(|next| next > self.now), "a deadline stays due at {} after wake", self.now);
        }
        self.now = target;
        all
    }

    /// When the processor wants to be woken next.
    pub fn next_wake(&mut self) -> Option<Timestamp> {
        self.processor.next_wake(&self.state, &mut self.soft, self.now).expect("state in memory")
    }

    /// Another leader takes over: Soft is forgotten.
    pub fn takeover(&mut self) {
        self.soft = P::Soft::default();
    }

    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.state, P::TABLES).expect("state in memory")
    }

    /// The state as a replay of all facts from zero gives it.
    pub fn replay(&self) -> Memory {
        let mut state = Memory::default();
        for fact in &self.facts {
            evolve::<P>(&mut state, fact);
        }
        state
    }

    /// Invariant 2: state equals a replay from zero.
    pub fn assert_replay(&self) {
        let replayed = fingerprint(&self.replay(), P::TABLES).expect("state in memory");
        assert_eq!(replayed, self.fingerprint(), "a replay from zero gives another state");
        for table in P::TABLES {
            assert!(table.id < 240, "table {} takes an id of Seen's", table.name);
        }
    }

    fn wake(&mut self, all: &mut Decision<P::Fact>) {
        for _ in 0..WAKE_DECISIONS_MAX {
            let decision =
                self.processor.wake(&self.state, &mut self.soft, self.now).expect("a deadline can be decided");
            if decision.is_nothing() {
                return;
            }
            self.commit_timer(&decision, "timer");
            all.facts.extend(decision.facts);
            all.requests.extend(decision.requests);
        }
        panic!("wake decides without end at {}", self.now);
    }

    fn commit_timer(&mut self, decision: &Decision<P::Fact>, actor: &str) {
        assert!(decision.refusal.is_none(), "only requests can be refused");
        self.commit(decision, &Trigger::TimerFired(TimerFired { due: self.now }), actor, Vec::new());
    }

    /// One transaction: the facts, then `Processed`.
    fn commit(&mut self, decision: &Decision<P::Fact>, trigger: &Trigger, actor: &str, refusals: Vec<Refusal>) {
        assert!(decision.refusal.is_none() || decision.facts.is_empty(), "a refused request changes nothing");
        let count = u32::try_from(decision.facts.len()).expect("a decision has few facts");
        for (index, event) in (0..).zip(&decision.facts) {
            let cause = Cause { index, count, trigger: trigger.clone() };
            self.append(event.clone(), cause, actor);
        }
        let processed = Processed { next_offset: self.next_offset, now: self.now, refusals };
        let trigger = Trigger::TimerFired(TimerFired { due: self.now });
        self.append(processed.into(), Cause { index: 0, count: 1, trigger }, "runtime");
        self.requests.extend(decision.requests.iter().cloned());
    }

    fn append(&mut self, event: P::Fact, cause: Cause, actor: &str) {
        let sequence = self.facts.len() as u64 + 1;
        let fact = Fact { sequence, at: self.now, actor: actor.to_owned(), trace: None, cause, event };
        evolve::<P>(&mut self.state, &fact);
        self.facts.push(fact);
    }
}

fn evolve<P: Processor>(state: &mut Memory, fact: &Fact<P::Fact>) {
    P::evolve(state, fact).unwrap_or_else(|e| panic!("{} cannot be applied: {e}", fact.event.kind()));
    Seen::evolve(state, &fact.cause, fact.at).expect("state in memory");
}

fn envelope<E: Event>(id: &str, event: E, at: Timestamp) -> Request<E> {
    let id: RequestId = id.parse().expect("a test's request id is valid");
    Request { id, at, actor: "test".to_owned(), trace: None, report: None, event }
}
