//! Whatever comes in whatever order, with leaders that change at any moment, the queue's promises hold.
//!
//! A model follows the facts alone and knows nothing of the queue's tables; at the end both must agree.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use common::{CLAIM, Step, driver, failure, finished, ready, spec, success, take};
use longshore_processor::{Order, Range, testing::Driver};
use longshore_queue::{Config, Queue, tables};
use longshore_schemas::{
    ClaimId, JobId, RequestId, Timestamp, WorkerId,
    events::{BuildFact, BuildRequested, CancelRequested, Fact, FailureReason, Heartbeat, Trigger},
};
use proptest::prelude::*;

const CONFIG: Config =
    Config { queued_max: 6, attempts_max: 3, confirm_seconds: 10, silent_seconds: 60, claims_max: 4 };
const QUEUES: [&str; 2] = ["a", "b"];

/// Numbers choose among what there is, or name something that is not there.
#[derive(Debug, Clone)]
enum Input {
    Build {
        queue: usize,
        id: u8,
    },
    Cancel {
        queue: usize,
        number: u64,
    },
    Ready {
        queue: usize,
        worker: u8,
        claim: u8,
    },
    /// Of a running attempt, if there is one.
    Beat {
        pick: usize,
    },
    Finish {
        pick: usize,
        ok: bool,
    },
    /// Of any attempt by any worker.
    StrangeBeat {
        queue: usize,
        number: u64,
        attempt: u32,
        worker: u8,
    },
    StrangeFinish {
        queue: usize,
        number: u64,
        attempt: u32,
        worker: u8,
    },
    Pass {
        seconds: u64,
    },
    Takeover,
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let queue = || 0..QUEUES.len();
    let input = prop_oneof![
        4 => (queue(), any::<u8>()).prop_map(|(queue, id)| Input::Build { queue, id }),
        1 => (queue(), 0u64..10).prop_map(|(queue, number)| Input::Cancel { queue, number }),
        6 => (queue(), 0u8..4, any::<u8>()).prop_map(|(queue, worker, claim)| Input::Ready { queue, worker, claim }),
        4 => any::<usize>().prop_map(|pick| Input::Beat { pick }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(pick, ok)| Input::Finish { pick, ok }),
        1 => (queue(), 0u64..10, 0u32..4, 0u8..4)
            .prop_map(|(queue, number, attempt, worker)| Input::StrangeBeat { queue, number, attempt, worker }),
        1 => (queue(), 0u64..10, 0u32..4, 0u8..4)
            .prop_map(|(queue, number, attempt, worker)| Input::StrangeFinish { queue, number, attempt, worker }),
        4 => (0u64..40).prop_map(|seconds| Input::Pass { seconds }),
        1 => Just(Input::Takeover),
    ];
    prop::collection::vec(input, 0..150)
}

#[derive(Debug, Clone, PartialEq)]
struct Attempt {
    attempt: u32,
    worker: WorkerId,
    heard_at: Timestamp,
}

/// What the facts say, and what they may never say.
#[derive(Default)]
struct Model {
    seen: usize,
    /// With the last attempt of each.
    waiting: BTreeMap<JobId, u32>,
    running: BTreeMap<JobId, Attempt>,
    ended: BTreeSet<JobId>,
    requests: BTreeSet<RequestId>,
    claims: BTreeSet<ClaimId>,
}

impl Model {
    fn follow(&mut self, facts: &[Fact<BuildFact>]) {
        for fact in &facts[self.seen..] {
            self.apply(fact);
        }
        self.seen = facts.len();
    }

    fn apply(&mut self, fact: &Fact<BuildFact>) {
        match &fact.event {
            BuildFact::JobQueued(e) => {
                let Trigger::Consumed(consumed) = &fact.cause.trigger else { panic!("queued by a timer") };
                assert_eq!(consumed.request, e.request);
                assert!(self.requests.insert(e.request.clone()), "invariant 1: {} was queued twice", e.request);
                let before = self.waiting.insert(e.job.clone(), 0);
                assert!(before.is_none() && !self.running.contains_key(&e.job) && !self.ended.contains(&e.job));
            }
            BuildFact::JobStarted(e) => {
                let last = self.waiting.remove(&e.job).expect("only a waiting job starts");
                assert_eq!(e.attempt, last + 1, "invariant 5: attempts count by one");
                let older = self.waiting.keys().find(|job| job.queue == e.job.queue && job.number < e.job.number);
                assert_eq!(older, None, "invariant 6: an older job waits while {} starts", e.job);
                assert!(self.claims.insert(e.claim.clone()), "claim {} was given two jobs", e.claim);
                let attempt = Attempt { attempt: e.attempt, worker: e.worker.clone(), heard_at: fact.at };
                self.running.insert(e.job.clone(), attempt);
            }
            BuildFact::WorkerLost(e) => {
                let attempt = &self.running[&e.job];
                assert_eq!((attempt.attempt, &attempt.worker), (e.attempt, &e.worker));
                let silent = fact.at.since(attempt.heard_at);
                assert!(silent >= Duration::from_secs(CONFIG.silent_seconds.into()), "lost after {silent:?}");
            }
            BuildFact::JobRequeued(e) => {
                let attempt = self.running.remove(&e.job).expect("only a running job is requeued");
                assert_eq!(attempt.attempt, e.attempt);
                let silent = fact.at.since(attempt.heard_at);
                assert!(silent >= Duration::from_secs(CONFIG.confirm_seconds.into()), "requeued after {silent:?}");
                assert!(e.attempt < CONFIG.attempts_max);
                self.waiting.insert(e.job.clone(), e.attempt);
            }
            BuildFact::JobCanceled(e) => {
                let ran = self.running.remove(&e.job).map(|attempt| attempt.attempt);
                let waited = self.waiting.remove(&e.job);
                assert!(ran.is_some() != waited.is_some(), "{} is canceled once", e.job);
                assert_eq!(ran.unwrap_or(0), e.attempt);
                assert!(self.ended.insert(e.job.clone()));
            }
            BuildFact::BuildSucceeded(e) => {
                self.end(&e.job, e.attempt);
            }
            BuildFact::BuildFailed(e) => {
                let attempt = self.end(&e.job, e.attempt);
                let exhausted = e.reason == FailureReason::AttemptsExhausted;
                assert!(!exhausted || attempt.attempt == CONFIG.attempts_max);
            }
            BuildFact::Processed(_) => {}
        }
    }

    fn end(&mut self, job: &JobId, attempt: u32) -> Attempt {
        let current = self.running.remove(job).expect("invariant 4: a job ends once, while it runs");
        assert_eq!(current.attempt, attempt, "invariant 5: only the current attempt ends a job");
        assert!(self.ended.insert(job.clone()));
        current
    }

    fn pick(&self, pick: usize) -> Option<(JobId, Attempt)> {
        let count = self.running.len().max(1);
        self.running.iter().nth(pick % count).map(|(job, attempt)| (job.clone(), attempt.clone()))
    }
}

fn feed(driver: &mut Driver<Queue>, model: &mut Model, input: &Input) {
    let job = |queue: usize, number: u64| JobId { queue: QUEUES[queue].parse().expect("valid"), number };
    let now = driver.now();
    match *input {
        Input::Build { queue, id } => {
            // Few ids, so that some come again; each is of one queue, as the key of a repeated request is the same.
            let queue = QUEUES[(queue + usize::from(id)) % QUEUES.len()];
            let request = BuildRequested { queue: queue.parse().expect("valid"), build: spec() };
            driver.request_as(&format!("build-{queue}-{id}"), request);
        }
        Input::Cancel { queue, number } => {
            driver.request(CancelRequested { job: job(queue, number) });
        }
        Input::Ready { queue, worker, claim } => {
            // A claim belongs to one worker and queue.
            let claim = format!("{}-{worker}-{}", QUEUES[queue], claim % 8);
            driver.signal(ready(QUEUES[queue], &format!("w{worker}"), &claim, now));
        }
        Input::Beat { pick } => {
            if let Some((job, Attempt { attempt, worker, .. })) = model.pick(pick) {
                driver.signal(Heartbeat { job: job.clone(), attempt, worker });
                model.running.get_mut(&job).expect("picked").heard_at = now;
            }
        }
        Input::Finish { pick, ok } => {
            if let Some((job, Attempt { attempt, worker, .. })) = model.pick(pick) {
                let outcome = if ok { success() } else { failure() };
                let decision = driver.request(finished(&job.to_string(), attempt, worker.as_str(), outcome));
                assert_eq!((decision.facts.len(), decision.requests.len()), (1, usize::from(ok)));
            }
        }
        Input::StrangeBeat { queue, number, attempt, worker } => {
            let (job, worker) = (job(queue, number), format!("w{worker}").parse().expect("valid"));
            if let Some(current) = model.running.get_mut(&job)
                && (current.attempt, &current.worker) == (attempt, &worker)
            {
                current.heard_at = now;
            }
            driver.signal(Heartbeat { job, attempt, worker });
        }
        Input::StrangeFinish { queue, number, attempt, worker } => {
            let (job, worker) = (job(queue, number), format!("w{worker}"));
            let current = model.running.get(&job);
            let is_current = current.is_some_and(|c| c.attempt == attempt && c.worker.as_str() == worker);
            let event = longshore_schemas::events::AttemptFinished {
                job,
                attempt,
                worker: worker.parse().expect("valid"),
                outcome: success(),
            };
            let decision = driver.request(event);
            assert_eq!(decision.refusal.is_none(), is_current, "invariant 5");
        }
        Input::Pass { seconds } => {
            driver.advance(Duration::from_secs(seconds));
        }
        Input::Takeover => {
            driver.takeover();
            // A new leader has its first look at once; from then on its leases run.
            driver.next_wake();
            for attempt in model.running.values_mut() {
                attempt.heard_at = now;
            }
        }
    }
}

fn assert_agreement(driver: &Driver<Queue>, model: &Model) {
    let state = driver.state();
    let all = |table: &longshore_processor::Table<JobId, ()>| -> Vec<JobId> {
        let rows = table.list(state, &Range::all(), Order::Ascending, usize::MAX).expect("memory");
        rows.into_iter().map(|(job, ())| job).collect()
    };
    assert_eq!(all(&tables::QUEUED), model.waiting.keys().cloned().collect::<Vec<_>>());
    assert_eq!(all(&tables::RUNNING), model.running.keys().cloned().collect::<Vec<_>>());
    let mut ended = 0;
    tables::JOBS
        .scan(state, &Range::all(), Order::Ascending, |job, row| {
            assert_eq!(row.status.kind().is_ended(), model.ended.contains(&job), "{job}");
            ended += usize::from(row.status.kind().is_ended());
            std::ops::ControlFlow::Continue(())
        })
        .expect("memory");
    assert_eq!(ended, model.ended.len());
    for (queue, counts) in tables::QUEUES.list(state, &Range::all(), Order::Ascending, usize::MAX).expect("memory") {
        let of = |jobs: &mut dyn Iterator<Item = &JobId>| jobs.filter(|job| job.queue == queue).count() as u32;
        assert_eq!(counts.queued, of(&mut model.waiting.keys()));
        assert_eq!(counts.running, of(&mut model.running.keys()));
    }
}

/// When no more builds come and every worker works, every job ends.
fn drain(driver: &mut Driver<Queue>, model: &mut Model) {
    driver.advance(CLAIM);
    model.follow(driver.facts());
    for round in 0..1_000 {
        if model.waiting.is_empty() && model.running.is_empty() {
            return;
        }
        for queue in QUEUES {
            if model.waiting.keys().any(|job| job.queue.as_str() == queue) {
                driver.signal(ready(queue, "last", &format!("last-{queue}-{round}"), driver.now()));
                model.follow(driver.facts());
            }
        }
        while let Some((job, attempt)) = model.pick(0) {
            driver.request(finished(&job.to_string(), attempt.attempt, attempt.worker.as_str(), success()));
            model.follow(driver.facts());
        }
    }
    panic!("jobs are left: {:?} wait, {:?} run", model.waiting, model.running);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_invariants_hold(inputs in inputs()) {
        let mut driver = driver(CONFIG);
        let mut model = Model::default();
        for input in &inputs {
            feed(&mut driver, &mut model, input);
            model.follow(driver.facts());
            assert!(driver.soft().open_claims() <= CONFIG.claims_max as usize, "invariant 11");
            assert!(driver.soft().leases() <= model.running.len(), "invariant 11");
        }
        assert_agreement(&driver, &model);
        drain(&mut driver, &mut model);
        assert_agreement(&driver, &model);
        driver.assert_replay();
        let replications = driver.sent().len();
        let successes = driver.facts().iter().filter(|f| matches!(f.event, BuildFact::BuildSucceeded(_))).count();
        prop_assert_eq!(replications, successes);
    }

    /// Wherever leaders change, no claim that is repeated as the API does leaves a job waiting.
    #[test]
    fn a_repeated_claim_gets_a_waiting_job(takeovers in prop::collection::vec(any::<bool>(), 1..12)) {
        let mut driver = driver(CONFIG);
        let mut started = 0;
        for (step, takeover) in takeovers.iter().enumerate() {
            take(&mut driver, Step::Ready("a", "w1", "patient"));
            if *takeover {
                take(&mut driver, Step::Takeover);
            }
            if step == takeovers.len() / 2 {
                take(&mut driver, Step::Build("a"));
            }
            take(&mut driver, Step::Ready("a", "w1", "patient"));
            let claim = "patient".parse().expect("valid");
            started += usize::from(tables::CLAIMS.contains(driver.state(), &claim).expect("memory"));
        }
        prop_assert_eq!(started, takeovers.len() - takeovers.len() / 2);
        let starts = driver.facts().iter().filter(|f| matches!(f.event, BuildFact::JobStarted(_))).count();
        prop_assert_eq!(starts, 1);
    }
}
