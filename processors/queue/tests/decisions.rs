//! What the queue decides: inputs, and the expected facts beside them.

mod common;

use common::{CLAIM, Step::*, check, driver, failure, finished, ready, show, spec, success, summary, take};
use longshore_queue::{Config, tables};
use longshore_schemas::{
    JobId, Timestamp,
    events::{AttemptOutcome, AttemptSucceeded, BuildRequested, BuildSpec},
    http::JobStatus,
};

fn job(id: &str) -> JobId {
    id.parse().expect("valid")
}

#[test]
fn a_job_is_queued_started_and_succeeds() {
    let driver = check(
        Config::default(),
        &[
            (Build("q"), "queued q-1"),
            (Build("q"), "queued q-2"),
            (Ready("q", "w1", "c1"), "started q-1/1 on w1 for c1"),
            (Beat("q-1", 1, "w1"), ""),
            (Succeed("q-1", 1, "w1"), "succeeded q-1/1, replicate q-1"),
            (Ready("q", "w1", "c2"), "started q-2/1 on w1 for c2"),
            (Fail("q-2", 1, "w1"), "failed q-2/1 CommandFailed"),
            (Pass(1_000), ""),
        ],
    );
    let row = tables::JOBS.expect(driver.state(), &job("q-1")).expect("a row");
    assert_eq!((row.status.kind(), row.artifact()), (JobStatus::Succeeded, Some(&summary("greeter"))));
    let row = tables::JOBS.expect(driver.state(), &job("q-2")).expect("a row");
    assert_eq!(row.failure().map(|failure| failure.message.as_str()), Some("make: *** Error 1"));
    let counts = tables::QUEUES.expect(driver.state(), &"q".parse().expect("valid")).expect("a row");
    assert_eq!((counts.queued, counts.running, counts.last_number), (0, 0, 2));
    assert_eq!(driver.soft().leases(), 0);
}

#[test]
fn claims_wait_in_order_and_each_gets_one_job() {
    check(
        Config::default(),
        &[
            (Ready("q", "w1", "c1"), ""),
            (Ready("q", "w2", "c2"), ""),
            (Ready("other", "w3", "c3"), ""),
            (Ready("q", "w1", "c1"), ""),
            (Build("q"), "queued q-1, started q-1/1 on w1 for c1"),
            // The claim comes again: while its job runs, and after.
            (Ready("q", "w1", "c1"), ""),
            (Build("q"), "queued q-2, started q-2/1 on w2 for c2"),
            (Build("q"), "queued q-3"),
            (Ready("q", "w1", "c1"), ""),
            (Succeed("q-1", 1, "w1"), "succeeded q-1/1, replicate q-1"),
            (Ready("q", "w1", "c1"), ""),
            (Takeover, ""),
            (Ready("q", "w1", "c1"), ""),
            (Ready("q", "w1", "c4"), "started q-3/1 on w1 for c4"),
        ],
    );
}

#[test]
fn an_expired_claim_gets_nothing() {
    check(
        Config::default(),
        &[
            (Ready("q", "w1", "c1"), ""),
            (Pass(10), ""),
            (Ready("q", "w2", "c2"), ""),
            (Pass(5), ""),
            (Build("q"), "queued q-1, started q-1/1 on w2 for c2"),
            (Build("q"), "queued q-2"),
        ],
    );
}

#[test]
fn open_claims_are_bounded() {
    let driver = check(
        Config { claims_max: 2, ..Config::default() },
        &[
            (Ready("q", "w1", "c1"), ""),
            (Ready("q", "w2", "c2"), ""),
            (Ready("q", "w3", "c3"), ""),
            (Pass(20), ""),
            (Ready("q", "w4", "c4"), ""),
        ],
    );
    assert_eq!(driver.soft().open_claims(), 1, "c3 found no place; c4 took that of expired ones");
}

#[test]
fn an_attempt_that_is_not_taken_up_goes_to_the_next_claim() {
    check(
        Config::default(),
        &[
            (Build("q"), "queued q-1"),
            (Build("q"), "queued q-2"),
            (Ready("q", "w1", "c1"), "started q-1/1 on w1 for c1"),
            (Pass(9), ""),
            (Pass(1), "requeued q-1/1"),
            (Beat("q-1", 1, "w1"), ""),
            (
                Succeed("q-1", 1, "w1"),
                "Stale: worker w1 does not have attempt 1 of job q-1: the job waits for its next attempt; stop it and drop \
                 its result",
            ),
            (Ready("q", "w1", "c1"), ""),
            // It keeps its number, so it is the oldest.
            (Ready("q", "w2", "c2"), "started q-1/2 on w2 for c2"),
            (Ready("q", "w3", "c3"), "started q-2/1 on w3 for c3"),
        ],
    );
}

#[test]
fn a_silent_worker_is_lost_and_its_late_result_refused() {
    check(
        Config::default(),
        &[
            (Ready("q", "w1", "c1"), ""),
            (Build("q"), "queued q-1, started q-1/1 on w1 for c1"),
            (Beat("q-1", 1, "w1"), ""),
            (Pass(59), ""),
            (Beat("q-1", 1, "w1"), ""),
            (Beat("q-1", 2, "w1"), ""),
            (Beat("q-1", 1, "w9"), ""),
            (Pass(50), ""),
            (Ready("q", "w2", "c2"), ""),
            (Pass(10), "lost w1 after 60 s, requeued q-1/1, started q-1/2 on w2 for c2"),
            (
                Succeed("q-1", 1, "w1"),
                "Stale: worker w1 does not have attempt 1 of job q-1: attempt 2 runs on worker w2; stop it and \
                 drop its result",
            ),
            (Succeed("q-1", 2, "w2"), "succeeded q-1/2, replicate q-1"),
            (
                Fail("q-1", 2, "w2"),
                "Stale: worker w2 does not have attempt 2 of job q-1: the job has ended: succeeded; stop it and drop its \
                 result",
            ),
        ],
    );
}

#[test]
fn a_job_fails_when_its_attempts_are_used_up() {
    let driver = check(
        Config { attempts_max: 2, ..Config::default() },
        &[
            (Build("q"), "queued q-1"),
            (Ready("q", "w1", "c1"), "started q-1/1 on w1 for c1"),
            (Pass(10), "requeued q-1/1"),
            (Ready("q", "w2", "c2"), "started q-1/2 on w2 for c2"),
            (Beat("q-1", 2, "w2"), ""),
            (Pass(60), "lost w2 after 60 s, failed q-1/2 AttemptsExhausted"),
            (Pass(1_000), ""),
        ],
    );
    let row = tables::JOBS.expect(driver.state(), &job("q-1")).expect("a row");
    assert_eq!(
        row.failure().map(|failure| failure.message.as_str()),
        Some(
            "2 attempts were given up; the last because worker w2 was silent for 60 s. Look at the workers, then request \
             the build again"
        )
    );
}

#[test]
fn at_takeover_every_lease_starts_anew() {
    check(
        Config::default(),
        &[
            (Build("q"), "queued q-1"),
            (Ready("q", "w1", "c1"), "started q-1/1 on w1 for c1"),
            (Pass(9), ""),
            (Takeover, ""),
            (Pass(59), ""),
            (Beat("q-1", 1, "w1"), ""),
            (Pass(59), ""),
            (Takeover, ""),
            (Pass(59), ""),
            (Pass(1), "lost w1 after 60 s, requeued q-1/1"),
        ],
    );
}

#[test]
fn jobs_are_canceled_once_and_only_before_their_end() {
    check(
        Config::default(),
        &[
            (Cancel("q-1"), "NotFound: there is no job q-1"),
            (Build("q"), "queued q-1"),
            (Build("q"), "queued q-2"),
            (Build("q"), "queued q-3"),
            (Cancel("q-1"), "canceled q-1/0"),
            (Cancel("q-1"), "Conflict: job q-1 has ended already: canceled; it cannot be canceled"),
            (Ready("q", "w1", "c1"), "started q-2/1 on w1 for c1"),
            (Beat("q-2", 1, "w1"), ""),
            (Cancel("q-2"), "canceled q-2/1"),
            (
                Succeed("q-2", 1, "w1"),
                "Stale: worker w1 does not have attempt 1 of job q-2: the job has ended: canceled; stop it and drop its \
                 result",
            ),
            (Ready("q", "w1", "c2"), "started q-3/1 on w1 for c2"),
            (Succeed("q-3", 1, "w1"), "succeeded q-3/1, replicate q-3"),
            (Cancel("q-3"), "Conflict: job q-3 has ended already: succeeded; it cannot be canceled"),
            (Fail("q-4", 1, "w1"), "NotFound: there is no job q-4"),
        ],
    );
}

#[test]
fn a_full_queue_refuses_and_others_do_not() {
    check(
        Config { queued_max: 2, ..Config::default() },
        &[
            (Build("q"), "queued q-1"),
            (Build("q"), "queued q-2"),
            (
                Build("q"),
                "Exhausted: queue q is full: 2 jobs wait (the limit queue.jobs); try again when some are done",
            ),
            (Build("other"), "queued other-1"),
            (Ready("q", "w1", "c1"), "started q-1/1 on w1 for c1"),
            (Build("q"), "queued q-3"),
        ],
    );
}

#[test]
fn a_repeated_request_is_one_job_that_is_found_by_its_id() {
    let mut driver = driver(Config::default());
    let request = BuildRequested { queue: "q".parse().expect("valid"), build: spec() };
    assert_eq!(show(&driver.request_as("mine", request.clone())), "queued q-1");
    assert_eq!(show(&driver.request_as("mine", request)), "");
    let found = tables::BY_REQUEST.get(driver.state(), &"mine".parse().expect("valid")).expect("memory");
    assert_eq!(found, Some(job("q-1")));
}

#[test]
fn an_artifact_of_another_name_is_refused() {
    let mut driver =
        check(Config::default(), &[(Build("q"), "queued q-1"), (Ready("q", "w1", "c1"), "started q-1/1 on w1 for c1")]);
    let other = AttemptOutcome::AttemptSucceeded(AttemptSucceeded { artifact: summary("other") });
    let decision = driver.request(finished("q-1", 1, "w1", other));
    assert_eq!(show(&decision), "Invalid: artifact.name is other, but job q-1 builds greeter");
    assert_eq!(show(&driver.request(finished("q-1", 1, "w1", success()))), "succeeded q-1/1, replicate q-1");
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let mut driver =
        check(Config::default(), &[(Build("q"), "queued q-1"), (Ready("q", "w1", "c1"), "started q-1/1 on w1 for c1")]);
    let AttemptOutcome::AttemptFailed(mut failed) = failure() else { unreachable!("a failure") };
    failed.message = format!("a{}", "ä".repeat(longshore_queue::MESSAGE_BYTES_MAX));
    driver.request(finished("q-1", 1, "w1", AttemptOutcome::AttemptFailed(failed)));
    let row = tables::JOBS.expect(driver.state(), &job("q-1")).expect("a row");
    let message = &row.failure().expect("failed").message;
    assert_eq!(message.len(), longshore_queue::MESSAGE_BYTES_MAX - 1);
}

#[test]
fn bad_specifications_are_refused_by_field() {
    type Change = fn(&mut BuildSpec);
    let table: &[(Change, &str)] = &[
        (|b| b.command.clear(), "command is empty"),
        (|b| b.command = vec![String::new()], "command is empty"),
        (|b| b.command.push("a\0b".into()), "command holds a zero byte"),
        (|b| b.command = vec!["x".into(); 1_001], "command has more than 1000 arguments"),
        (|b| b.repository.clear(), "repository is empty"),
        (|b| b.repository = "--upload-pack=/bin/sh".into(), "repository must be a URL"),
        (|b| b.repository = "https://a b".into(), "repository must be a URL"),
        (|b| b.output.clear(), "output is empty"),
        (|b| b.output = "/etc/passwd".into(), "output \"/etc/passwd\" must be a relative path"),
        (|b| b.output = "out/../../x".into(), "output \"out/../../x\" must be a relative path"),
        (|b| b.time_limit_seconds = 0, "time_limit_seconds must be from 1 to 86400"),
        (|b| b.time_limit_seconds = 86_401, "time_limit_seconds must be from 1 to 86400"),
        (|b| drop(b.environment.insert("A=B".into(), String::new())), "environment has the variable \"A=B\""),
        (|b| drop(b.environment.insert("A".into(), "\0".into())), "environment.A holds a zero byte"),
        (|b| drop(b.labels.insert(String::new(), String::new())), "labels has an entry without a name"),
        (|b| b.run.command.clear(), "run.command is empty"),
        (|b| drop(b.run.environment.insert(String::new(), String::new())), "run.environment has the variable \"\""),
        (|b| b.run.stop_seconds = 3_601, "run.stop_seconds must be from 0 to 3600"),
        (|b| b.run.health.http_path = "healthz".into(), "run.health.http_path must begin with '/'"),
        (|b| b.run.health.successes = 0, "run.health.successes must be from 1 to 1000"),
        (|b| b.run.health.interval_ms = 0, "run.health.interval_ms must be from 10 to 60000"),
        (|b| b.run.health.deadline_seconds = 0, "run.health.deadline_seconds must be from 1"),
        (|b| b.command.push("x".repeat(65_536)), "build holds 65"),
        (|b| b.run.health.exec.push("x".repeat(65_536)), "build holds 65"),
    ];
    let mut driver = driver(Config::default());
    for (change, expected) in table {
        let mut build = spec();
        change(&mut build);
        let decision = driver.request(BuildRequested { queue: "q".parse().expect("valid"), build });
        let shown = show(&decision);
        assert!(shown.starts_with(&format!("Invalid: {expected}")), "{shown:?} should say {expected:?}");
    }
    assert!(driver.facts().iter().all(|fact| matches!(fact.event, longshore_schemas::events::BuildFact::Processed(_))));
}

#[test]
fn how_long_a_claim_waits_is_counted_by_its_senders_clock() {
    let hour = 3_600_000;
    for skew in [-hour, 0, hour] {
        let mut driver = driver(Config::default());
        let said_at = Timestamp(driver.now().millis() + skew);
        let claim = |id| ready("q", "w", id, said_at);
        driver.signal_by(claim("c1"), said_at);
        let started = show(&take(&mut driver, Build("q")));
        assert_eq!(started, "queued q-1, started q-1/1 on w for c1", "{skew} ms");
        driver.signal_by(claim("c2"), said_at);
        driver.advance(CLAIM);
        assert_eq!(show(&take(&mut driver, Build("q"))), "queued q-2", "{skew} ms: it waits no longer");
        assert_eq!(show(&driver.signal_by(claim("c3"), said_at + CLAIM)), "", "{skew} ms: over when it was said");
        assert_eq!(show(&driver.signal_by(claim("c4"), said_at)), "started q-2/1 on w for c4", "{skew} ms");
        driver.signal_by(claim("c5"), said_at);
        driver.signal_by(claim("c5"), said_at + CLAIM);
        assert_eq!(show(&take(&mut driver, Build("q"))), "queued q-3", "{skew} ms: taken back");
    }
}
