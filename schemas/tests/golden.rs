//! Golden bytes: an example of every event, as every released version wrote it, is read with today's code.
//!
//! `golden/TOPIC.vN.txt` holds a line per event: its type, the record's bytes in hexadecimal, and the JSON of what they
//! mean. A new event's line is appended by `LONGSHORE_WRITE_GOLDEN=1 cargo test -p longshore-schemas --test golden`;
//! lines that are there are never changed.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, str::FromStr};

use longshore_schemas::{
    ArtifactId, PackId, Timestamp,
    codec::{self, Message, SCHEMAS},
    events::*,
};
use serde_json::Value;

fn id<T: FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a valid identifier")
}

fn artifact() -> ArtifactId {
    ArtifactId::of(b"golden")
}

fn map(pairs: &[(&str, &str)]) -> StringMap {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn run() -> RunSpec {
    let hook = |program: &str| Some(Hook { command: vec![program.into()], timeout_seconds: 5 });
    RunSpec {
        command: vec!["bin/greeter".into(), "--verbose".into()],
        environment: map(&[("MODE", "live")]),
        health: HealthCheck { http_path: "/health".into(), grace_seconds: Some(3), ..HealthCheck::default() },
        stop_signal: StopSignal::Int,
        stop_seconds: 7,
        hooks: Hooks { before_stop: hook("bin/drain"), after_start: hook("bin/register"), ..Hooks::default() },
        environment_files: vec!["/etc/greeter.env".into()],
        user: Some("greeter".into()),
        group: None,
        limits: RunLimits { memory_mib: Some(512), open_files: Some(4_096), ..RunLimits::default() },
        log: LogRotation { file_mib: 1, files: 2 },
    }
}

fn build() -> BuildSpec {
    BuildSpec {
        name: id("greeter"),
        repository: "https://git.example/greeter.git".into(),
        commit: id("0123456789abcdef0123456789abcdef01234567"),
        command: vec!["make".into()],
        output: "out".into(),
        environment: map(&[("PROFILE", "release")]),
        time_limit_seconds: 900,
        labels: map(&[("team", "web")]),
        run: run(),
    }
}

fn summary() -> ArtifactSummary {
    ArtifactSummary {
        artifact: artifact(),
        name: id("greeter"),
        size_bytes: 10_000_000_000,
        files: 12,
        chunks: 160_000,
        packs: 1_700,
        pack_bytes: 9_000_000_000,
        new_pack_bytes: 8_000_000,
    }
}

fn source() -> ArtifactSource {
    let build = build();
    ArtifactSource { job: id("default-17"), repository: build.repository, commit: build.commit }
}

fn origin() -> ArtifactOrigin {
    ArtifactOrigin { url: "https://vendor.example/greeter-2.tar.gz".into(), imported_by: "alice".into() }
}

fn plan() -> RolloutPlan {
    let wave = Wave { regions: vec![id("eu"), id("us")], zones: vec![id("a")], fraction_bp: 500, bake_seconds: 60 };
    RolloutPlan { waves: vec![wave], failure_budget_bp: 100 }
}

fn cohort() -> Cohort {
    Cohort { zones: vec![id("a")], fraction_bp: 500 }
}

const VERSION: GoalVersion = GoalVersion { revision: 3, step: 2 };
const LEVEL: Convergence = Convergence { eligible: 100, converged: 90, failed: 1 };

fn processed() -> Processed {
    let refusal =
        Refusal { request: id("r-1"), offset: 41, code: RefusalCode::Conflict, reason: "it has ended".into() };
    Processed { next_offset: 42, now: Timestamp(1_700_000_000_123), refusals: vec![refusal] }
}

fn build_requests() -> Vec<BuildRequest> {
    let finished = |outcome| AttemptFinished { job: id("default-17"), attempt: 2, worker: id("w-1"), outcome };
    let failed = AttemptFailed { reason: FailureReason::CommandFailed, message: "exit status 2".into() };
    vec![
        BuildRequested { queue: id("default"), build: build() }.into(),
        CancelRequested { job: id("default-17") }.into(),
        finished(AttemptOutcome::AttemptSucceeded(AttemptSucceeded { artifact: summary() })).into(),
        finished(AttemptOutcome::AttemptFailed(failed)).into(),
    ]
}

fn worker_signals() -> Vec<WorkerSignal> {
    let expires_at = Timestamp(1_700_000_015_000);
    vec![
        WorkerReady { queue: id("default"), worker: id("w-1"), claim: id("c-1"), expires_at }.into(),
        Heartbeat { job: id("default-17"), attempt: 2, worker: id("w-1") }.into(),
    ]
}

fn builds() -> Vec<BuildFact> {
    let job = || id("default-17");
    let reason = FailureReason::TimeLimitExceeded;
    vec![
        JobQueued { job: job(), request: id("r-1"), build: build() }.into(),
        JobStarted { job: job(), attempt: 1, worker: id("w-1"), claim: id("c-1") }.into(),
        JobRequeued { job: job(), attempt: 1, reason: "silent for 60 s".into() }.into(),
        JobCanceled { job: job(), attempt: 0 }.into(),
        BuildSucceeded { job: job(), attempt: 2, worker: id("w-1"), artifact: summary() }.into(),
        BuildFailed { job: job(), attempt: 2, reason, message: "ran for 900 s".into() }.into(),
        WorkerLost { worker: id("w-1"), job: job(), attempt: 1, silent_seconds: 60 }.into(),
        processed().into(),
    ]
}

fn build_logs() -> Vec<BuildLog> {
    let object = "logs/default-17/2/0".into();
    vec![LogSegmentStored { job: id("default-17"), attempt: 2, index: 0, bytes: 1_000, object }.into()]
}

fn pack_hints() -> Vec<PackHint> {
    let packs = [(b"one", 4_000_000), (b"two", 1)];
    let packs = packs.map(|(content, bytes)| UploadedPack { pack: PackId::of(content), bytes }).to_vec();
    vec![PacksUploaded { job: id("default-17"), attempt: 2, packs }.into()]
}

fn node_queries() -> Vec<NodeQuery> {
    vec![LogWanted { region: id("eu"), node: id("node-1"), service: id("web"), bytes: 65_536 }.into()]
}

fn node_answers() -> Vec<NodeAnswer> {
    let (query, region) = (|| id("q-1"), || id("eu"));
    vec![
        LogRead { query: query(), region: region(), text: "listening\n".into() }.into(),
        NotAnswered { query: query(), region: region(), reason: "it is not connected".into() }.into(),
    ]
}

fn artifact_requests() -> Vec<ArtifactRequest> {
    let (artifact, service, region) = (artifact(), id("web"), id("eu"));
    let error = Some("pack not found".to_owned());
    let status = ReplicaStatus::Failed;
    vec![
        ReplicationRequested { summary: summary(), source: source(), run: run() }.into(),
        ReplicaReported { artifact, region, status, packs_done: 3, bytes_copied: 9, error }.into(),
        PinRequested { artifact, service, deploy: id("d-1"), regions: vec![id("eu")] }.into(),
        UnpinRequested { artifact, service: id("web") }.into(),
        ImportRequested { summary: summary(), origin: origin(), run: run() }.into(),
        KeepRequested { artifact, reason: "an audit".into() }.into(),
        LetGoRequested { artifact }.into(),
    ]
}

fn artifacts() -> Vec<ArtifactFact> {
    let artifact = artifact();
    vec![
        ReplicationStarted { summary: summary(), source: source(), run: run(), regions: vec![id("eu")] }.into(),
        ReplicaProgressed { artifact, region: id("eu"), packs_done: 3, bytes_copied: 9 }.into(),
        ReplicaStored { artifact, region: id("eu"), bytes_copied: 9 }.into(),
        ReplicaFailed { artifact, region: id("eu"), error: "bucket is full".into() }.into(),
        ReplicationCompleted { artifact }.into(),
        ArtifactPinned { artifact, service: id("web"), deploy: id("d-1") }.into(),
        ArtifactUnpinned { artifact, service: id("web") }.into(),
        ArtifactRetired { artifact }.into(),
        processed().into(),
        ReplicaRegionsSet { artifact, regions: vec![id("eu"), id("us")], added: vec![id("us")] }.into(),
        ArtifactImported { summary: summary(), origin: origin(), run: run(), regions: vec![id("eu")] }.into(),
        ArtifactKept { artifact, reason: "an audit".into() }.into(),
        ArtifactLetGo { artifact }.into(),
    ]
}

fn goal_requests() -> Vec<GoalRequest> {
    let (artifact, service) = (artifact(), || id("web"));
    let reported = ConvergenceReported {
        service: service(),
        region: id("eu"),
        shard: 1,
        version: VERSION,
        level: LEVEL,
        failure: Some("exit status 1".into()),
    };
    vec![
        DeployRequested { service: service(), artifact, plan: plan() }.into(),
        RollbackRequested { service: service(), to: Some(artifact) }.into(),
        PauseRequested { service: service() }.into(),
        ResumeRequested { service: service() }.into(),
        LiftHoldRequested { service: service(), artifact }.into(),
        PinAnswered { service: service(), deploy: id("d-1"), artifact, run: Some(run()), refusal: None }.into(),
        reported.into(),
    ]
}

fn goals() -> Vec<GoalFact> {
    let (artifact, deploy) = (artifact(), id("d-1"));
    let service = || id("web");
    let recorded = ConvergenceRecorded {
        service: service(),
        region: id("eu"),
        shard: 1,
        version: VERSION,
        level: LEVEL,
        failure: None,
    };
    let halted = RolloutHalted {
        service: service(),
        version: VERSION,
        wave: 1,
        level: LEVEL,
        allowed: 0,
        failure: Some("exit status 1".into()),
    };
    let reason = "not in region eu yet".into();
    vec![
        DeployAccepted { service: service(), deploy: id("d-1"), artifact, plan: plan(), rollback_of: 2 }.into(),
        DeployRefused { service: service(), deploy: id("d-1"), artifact, reason }.into(),
        GoalSet { service: service(), revision: 3, deploy, artifact, run: run(), plan: plan() }.into(),
        WaveStarted { service: service(), version: VERSION, wave: 1 }.into(),
        recorded.into(),
        WavePassed { service: service(), version: VERSION, wave: 1, level: LEVEL }.into(),
        RolloutPaused { service: service(), version: VERSION }.into(),
        RolloutResumed { service: service(), version: VERSION }.into(),
        halted.into(),
        RolledBack { service: service(), from_revision: 3, revision: 4, held: artifact }.into(),
        RolloutCompleted { service: service(), revision: 3 }.into(),
        HoldLifted { service: service(), artifact }.into(),
        processed().into(),
    ]
}

fn goal_state() -> Vec<GoalState> {
    let target = Target { cohort: cohort(), revision: 3, artifact: artifact(), run: run() };
    vec![RegionalGoal { region: id("eu"), service: id("web"), version: VERSION, targets: vec![target] }.into()]
}

fn description() -> NodeDescription {
    NodeDescription {
        node: id("node-1"),
        zone: id("a"),
        rack: id("r1"),
        host: "10.0.0.1".into(),
        agent_version: "0.1.0".into(),
        labels: map(&[("gpu", "a100")]),
    }
}

fn fleet_reports() -> Vec<FleetReport> {
    let status = StatusReport {
        service: id("web"),
        version: VERSION,
        artifact: Some(artifact()),
        status: NodeStatus::RolledBack,
        port: 8080,
        message: Some("exit status 1".into()),
        nodes: vec![id("node-1")],
    };
    let reported = RegionReported {
        region: id("eu"),
        shard: 1,
        seen: vec![description()],
        statuses: vec![status],
        lost: vec![id("node-2")],
        returned: vec![id("node-3")],
    };
    let announced = CohortAnnounced {
        region: id("eu"),
        shard: 1,
        service: id("web"),
        version: VERSION,
        artifact: artifact(),
        cohort: cohort(),
    };
    vec![reported.into(), announced.into()]
}

fn fleet() -> Vec<FleetFact> {
    let nodes = || [1, 2, 200].into_iter().collect();
    let (region, shard, service) = (|| id("eu"), 1, || id("web"));
    let reported = NodesReported {
        region: region(),
        shard,
        service: service(),
        version: VERSION,
        artifact: Some(artifact()),
        status: NodeStatus::Healthy,
        port: 8080,
        message: None,
        nodes: nodes(),
    };
    let (version, artifact, cohort) = (VERSION, artifact(), cohort());
    vec![
        NodeJoined { region: region(), shard, number: 7, description: description() }.into(),
        reported.into(),
        NodesLost { region: region(), shard, nodes: nodes() }.into(),
        NodesReturned { region: region(), shard, nodes: nodes() }.into(),
        CohortSet { region: region(), shard, service: service(), version, artifact, cohort }.into(),
        processed().into(),
    ]
}

fn requests<E: Event>(events: Vec<E>) -> Vec<(String, Request<E>)> {
    let at = Timestamp(1_700_000_000_000);
    let report = Some(ReportOrder { sender: "region/eu".into(), boot: 2, sequence: 9 });
    let trace = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let wrap = |event: E| {
        let (trace, report) = (trace.clone(), report.clone());
        (event.kind().to_owned(), Request { id: id("r-1"), at, actor: "alice".into(), trace, report, event })
    };
    events.into_iter().map(wrap).collect()
}

fn facts<E: Event>(events: Vec<E>) -> Vec<(String, Fact<E>)> {
    let consumed = Consumed { topic: E::TOPIC.name.into(), partition: 3, offset: 41, request: id("r-1"), report: None };
    let due = TimerFired { due: Timestamp(1_700_000_000_000) };
    let triggers = [Trigger::Consumed(consumed), Trigger::TimerFired(due)];
    let wrap = |(n, event): (usize, E)| {
        let cause = Cause { index: 0, count: 2, trigger: triggers[n % 2].clone() };
        let kind = event.kind().to_owned();
        (
            kind,
            Fact { sequence: 100, at: Timestamp(1_700_000_000_123), actor: "alice".into(), trace: None, cause, event },
        )
    };
    events.into_iter().enumerate().map(wrap).collect()
}

/// The golden bytes of every version of a topic's schema; the newest has today's examples.
fn check<M: Message + PartialEq + std::fmt::Debug>(topic: &str, examples: Vec<(String, M)>) {
    let versions: Vec<u32> =
        SCHEMAS.iter().filter(|schema| schema.topic == topic).map(|schema| schema.version).collect();
    let (newest, older) = versions.split_last().expect("every topic has a schema");
    for version in older {
        check_older::<M>(&format!("{topic}.v{version}.txt"));
    }
    check_newest(&format!("{topic}.v{newest}.txt"), examples);
}

/// What an older version has written means what it meant; what came later is beside it.
fn check_older<M: Message>(file: &str) {
    let path = Path::new("golden").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    for line in text.lines() {
        let mut parts = line.splitn(3, ' ');
        let (kind, bytes, json) = (parts.next(), parts.next().expect("hex"), parts.next().expect("json"));
        let message: M = codec::decode(&unhex(bytes)).unwrap_or_else(|e| panic!("{file}: {kind:?}: {e}"));
        let expected: Value = serde_json::from_str(json).expect("golden JSON");
        let found = serde_json::to_value(&message).expect("JSON");
        assert!(contains(&found, &expected), "{file}: {kind:?}: {found} is not {expected}");
    }
}

fn contains(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            expected.iter().all(|(name, value)| found.get(name).is_some_and(|found| contains(found, value)))
        }
        (Value::Array(found), Value::Array(expected)) => {
            found.len() == expected.len() && found.iter().zip(expected).all(|(found, value)| contains(found, value))
        }
        _ => found == expected,
    }
}

/// Today's examples of one topic against the lines of its file.
fn check_newest<M: Message + PartialEq + std::fmt::Debug>(file: &str, examples: Vec<(String, M)>) {
    let path = Path::new("golden").join(file);
    let mut text = fs::read_to_string(&path).unwrap_or_default();
    let mut seen = BTreeMap::<String, usize>::new();
    let write = std::env::var_os("LONGSHORE_WRITE_GOLDEN").is_some();
    for (kind, example) in examples {
        let nth = seen.entry(kind.clone()).and_modify(|n| *n += 1).or_insert(0);
        let found = text.lines().filter(|line| line.split(' ').next() == Some(kind.as_str())).nth(*nth);
        if found.is_none() && write {
            let bytes = codec::encode(&example).expect("an example can be written");
            let json = serde_json::to_string(&example).expect("an example is JSON");
            writeln!(text, "{kind} {} {json}", hex(&bytes)).expect("writing to a string");
        }
    }
    if write {
        fs::create_dir_all(path.parent().expect("has a folder")).expect("folder");
        fs::write(&path, &text).expect("golden file is writable");
    }
    for (kind, nth) in seen {
        let lines = text.lines().filter(|line| line.split(' ').next() == Some(kind.as_str())).count();
        assert!(lines > nth, "{file} has no golden bytes of {kind}; see the head of this file");
    }
    for line in text.lines() {
        let mut parts = line.splitn(3, ' ');
        let (kind, bytes, json) = (parts.next(), parts.next().expect("hex"), parts.next().expect("json"));
        let message: M = codec::decode(&unhex(bytes)).unwrap_or_else(|e| panic!("{file}: {kind:?}: {e}"));
        let expected: Value = serde_json::from_str(json).expect("golden JSON");
        assert_eq!(serde_json::to_value(&message).expect("JSON"), expected, "{file}: {kind:?}");
        assert_eq!(serde_json::from_str::<M>(json).expect("JSON reads back"), message, "{file}: {kind:?}");
        let again = codec::encode(&message).expect("can be written");
        assert_eq!(codec::decode::<M>(&again).expect("reads back"), message);
        let reference: M = codec::reference::decode(&unhex(bytes)).expect("apache-avro reads it");
        assert_eq!(reference, message, "{file}: {kind:?}");
        assert_eq!(again, codec::reference::encode(&message).expect("apache-avro writes it"), "{file}: {kind:?}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hexadecimal")).collect()
}

#[test]
fn every_topics_golden_bytes_read_as_before() {
    check("build-requests", requests(build_requests()));
    check("worker-signals", requests(worker_signals()));
    check("builds", facts(builds()));
    check("build-logs", requests(build_logs()));
    check("artifact-requests", requests(artifact_requests()));
    check("artifacts", facts(artifacts()));
    check("goal-requests", requests(goal_requests()));
    check("goals", facts(goals()));
    check("goal-state", requests(goal_state()));
    check("fleet-reports", requests(fleet_reports()));
    check("fleet", facts(fleet()));
    check("pack-hints", requests(pack_hints()));
    check("node-queries", requests(node_queries()));
    check("node-answers", requests(node_answers()));
    let letter = DeadLetter {
        topic: "build-requests".into(),
        partition: 1,
        offset: 7,
        error: "not in wire format".into(),
        key: b"default".to_vec(),
        value: PackId::of(b"x").as_bytes().to_vec(),
    };
    check("dead-letters", vec![("DeadLetter".to_owned(), letter)]);
}

#[test]
fn a_run_of_an_older_release_means_what_it_meant() {
    let line = fs::read_to_string("golden/build-requests.v1.txt").expect("there");
    let line = line.lines().find(|line| line.starts_with("BuildRequested ")).expect("a build").to_owned();
    let bytes = unhex(line.split(' ').nth(1).expect("hex"));
    let request: Request<BuildRequest> = codec::decode(&bytes).expect("an older record");
    let BuildRequest::BuildRequested(BuildRequested { build, .. }) = request.event else { panic!("{request:?}") };
    let expected = RunSpec {
        health: HealthCheck { http_path: "/health".into(), ..HealthCheck::default() },
        command: vec!["bin/greeter".into(), "--verbose".into()],
        environment: map(&[("MODE", "live")]),
        stop_signal: StopSignal::Int,
        stop_seconds: 7,
        ..RunSpec::default()
    };
    assert_eq!(build.run, expected, "all that came later has its default");
}

#[test]
fn foreign_bytes_are_errors_and_never_panics() {
    let good = codec::encode(&requests(build_requests()).remove(0).1).expect("can be written");
    let read = codec::decode::<Request<BuildRequest>>;
    for end in 0..good.len() {
        read(&good[..end]).expect_err("cut short");
    }
    let mut trailing = good.clone();
    trailing.push(0);
    read(&trailing).expect_err("trailing byte");
    let mut other_schema = good.clone();
    other_schema[4] = 2;
    assert!(read(&other_schema).expect_err("other schema").to_string().contains("schema id 2"));
    assert!(read(b"{\"json\": true}").expect_err("JSON").to_string().contains("wire format"));
    for position in 5..good.len() {
        let mut flipped = good.clone();
        flipped[position] ^= 0xff;
        // Some flips give another valid text; none may panic.
        let _ = read(&flipped);
    }
}
