//! Steps that drive a queue, and decisions as short texts, so that a test reads as a table.

#![allow(dead_code, reason = "each test file uses its part")]

use std::time::Duration;

use longshore_processor::{Decision, Outgoing, testing::Driver};
use longshore_queue::{Config, Queue};
use longshore_schemas::{
    ArtifactId, Timestamp,
    events::{
        ArtifactRequest, ArtifactSummary, AttemptFailed, AttemptFinished, AttemptOutcome, AttemptSucceeded, BuildFact,
        BuildRequested, BuildSpec, CancelRequested, FailureReason, Heartbeat, RunSpec, StringMap, WorkerReady,
    },
};

/// How long a test's claims wait.
pub(crate) const CLAIM: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// A build is requested of a queue.
    Build(&'static str),
    Cancel(&'static str),
    /// Queue, worker, claim.
    Ready(&'static str, &'static str, &'static str),
    /// Job, attempt, worker.
    Beat(&'static str, u32, &'static str),
    Succeed(&'static str, u32, &'static str),
    Fail(&'static str, u32, &'static str),
    /// Seconds go by.
    Pass(u64),
    Takeover,
}

pub(crate) fn driver(config: Config) -> Driver<Queue> {
    Driver::new(Queue::new(config))
}

pub(crate) fn spec() -> BuildSpec {
    BuildSpec {
        name: "greeter".parse().expect("valid"),
        repository: "https://git.example/greeter".into(),
        commit: "0123456789012345678901234567890123456789".parse().expect("valid"),
        command: vec!["make".into()],
        output: "out/greeter".into(),
        environment: StringMap::new(),
        time_limit_seconds: 60,
        labels: StringMap::new(),
        run: RunSpec {
            command: vec!["./greeter".into()],
            environment: StringMap::new(),
            health: Default::default(),
            stop_signal: Default::default(),
            stop_seconds: 10,
            ..RunSpec::default()
        },
    }
}

pub(crate) fn summary(name: &str) -> ArtifactSummary {
    ArtifactSummary {
        artifact: ArtifactId::of(name.as_bytes()),
        name: name.parse().expect("valid"),
        size_bytes: 10,
        files: 1,
        chunks: 1,
        packs: 3,
        pack_bytes: 10,
        new_pack_bytes: 10,
    }
}

pub(crate) fn ready(queue: &str, worker: &str, claim: &str, now: Timestamp) -> WorkerReady {
    WorkerReady {
        queue: queue.parse().expect("valid"),
        worker: worker.parse().expect("valid"),
        claim: claim.parse().expect("valid"),
        expires_at: now + CLAIM,
    }
}

pub(crate) fn finished(job: &str, attempt: u32, worker: &str, outcome: AttemptOutcome) -> AttemptFinished {
    AttemptFinished { job: job.parse().expect("valid"), attempt, worker: worker.parse().expect("valid"), outcome }
}

pub(crate) fn success() -> AttemptOutcome {
    AttemptOutcome::AttemptSucceeded(AttemptSucceeded { artifact: summary("greeter") })
}

pub(crate) fn failure() -> AttemptOutcome {
    let reason = FailureReason::CommandFailed;
    AttemptOutcome::AttemptFailed(AttemptFailed { reason, message: "make: *** Error 1".into() })
}

pub(crate) fn take(driver: &mut Driver<Queue>, step: Step) -> Decision<BuildFact> {
    let now = driver.now();
    match step {
        Step::Build(queue) => driver.request(BuildRequested { queue: queue.parse().expect("valid"), build: spec() }),
        Step::Cancel(job) => driver.request(CancelRequested { job: job.parse().expect("valid") }),
        Step::Ready(queue, worker, claim) => driver.signal(ready(queue, worker, claim, now)),
        Step::Beat(job, attempt, worker) => driver.signal(Heartbeat {
            job: job.parse().expect("valid"),
            attempt,
            worker: worker.parse().expect("valid"),
        }),
        Step::Succeed(job, attempt, worker) => driver.request(finished(job, attempt, worker, success())),
        Step::Fail(job, attempt, worker) => driver.request(finished(job, attempt, worker, failure())),
        Step::Pass(seconds) => driver.advance(Duration::from_secs(seconds)),
        Step::Takeover => {
            driver.takeover();
            Decision::nothing()
        }
    }
}

/// The decision in short: facts, requests to others, refusal.
pub(crate) fn show(decision: &Decision<BuildFact>) -> String {
    let mut parts: Vec<String> = decision.facts.iter().map(show_fact).collect();
    parts.extend(decision.requests.iter().map(|request| match request {
        Outgoing::Artifact(ArtifactRequest::ReplicationRequested(e)) => format!("replicate {}", e.source.job),
        other => format!("{other:?}"),
    }));
    parts.extend(decision.refusal.iter().map(|refused| format!("{:?}: {}", refused.code, refused.reason)));
    parts.join(", ")
}

fn show_fact(fact: &BuildFact) -> String {
    match fact {
        BuildFact::JobQueued(e) => format!("queued {}", e.job),
        BuildFact::JobStarted(e) => format!("started {}/{} on {} for {}", e.job, e.attempt, e.worker, e.claim),
        BuildFact::JobRequeued(e) => format!("requeued {}/{}", e.job, e.attempt),
        BuildFact::JobCanceled(e) => format!("canceled {}/{}", e.job, e.attempt),
        BuildFact::BuildSucceeded(e) => format!("succeeded {}/{}", e.job, e.attempt),
        BuildFact::BuildFailed(e) => format!("failed {}/{} {:?}", e.job, e.attempt, e.reason),
        BuildFact::WorkerLost(e) => format!("lost {} after {} s", e.worker, e.silent_seconds),
        BuildFact::Processed(_) => "processed".into(),
    }
}

/// Takes each step and compares what was decided with the text beside it.
pub(crate) fn check(config: Config, table: &[(Step, &str)]) -> Driver<Queue> {
    let mut driver = driver(config);
    for (row, (step, expected)) in table.iter().enumerate() {
        let decision = take(&mut driver, *step);
        assert_eq!(show(&decision), *expected, "row {row}: {step:?}");
    }
    driver.assert_replay();
    driver
}
