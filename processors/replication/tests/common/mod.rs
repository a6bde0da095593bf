//! Steps that drive replication, and decisions as short texts, so that a test reads as a table.

#![allow(dead_code, reason = "each test file uses its part")]

use std::time::Duration;

use longshore_processor::{Decision, Outgoing, testing::Driver};
use longshore_replication::{Config, Keep, Replication, Retention, Rule};
use longshore_schemas::{
    ArtifactId,
    events::{
        ArtifactFact, ArtifactOrigin, ArtifactSource, ArtifactSummary, GoalRequest, ImportRequested, KeepRequested,
        LetGoRequested, PinRequested, ReplicaReported, ReplicaStatus, ReplicationRequested, RunSpec, StringMap,
        UnpinRequested,
    },
};

pub(crate) const PACKS: u32 = 30;

/// Artifacts are told apart by one word, and shown by it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// Artifact, name, command to run it.
    Built(&'static str, &'static str, &'static str),
    /// Artifact, name, where it comes from; run by `web`.
    Imported(&'static str, &'static str, &'static str),
    /// Artifact, region, packs done.
    Copying(&'static str, &'static str, u32),
    Stored(&'static str, &'static str),
    Failed(&'static str, &'static str, &'static str),
    /// Artifact, service, deploy, regions separated by spaces.
    Pin(&'static str, &'static str, &'static str, &'static str),
    Unpin(&'static str, &'static str),
    /// Artifact, reason.
    Keep(&'static str, &'static str),
    LetGo(&'static str),
    /// So many seconds pass.
    Wait(u64),
}

pub(crate) fn driver(regions: &str) -> Driver<Replication> {
    let regions = regions.split_whitespace().map(|region| region.parse().expect("valid")).collect();
    Driver::new(Replication::new(Config::new(regions)))
}

/// Of one region, which keeps the newest `last` of each name and what was built in the last `lately_seconds`, and looks each second.
pub(crate) fn retaining(last: u32, lately_seconds: u64) -> Driver<Replication> {
    let keep = Keep { last, lately: Duration::from_secs(lately_seconds) };
    let rule = Rule { name: "keep-*".into(), keep: Keep { last: 100, ..keep } };
    let retention = Retention { rules: vec![rule], otherwise: keep, look_every: Duration::from_secs(1) };
    Driver::new(Replication::new(Config { regions: vec!["eu".parse().expect("valid")], retention }))
}

pub(crate) fn id(artifact: &str) -> ArtifactId {
    ArtifactId::of(artifact.as_bytes())
}

pub(crate) fn run(command: &str) -> RunSpec {
    RunSpec {
        command: vec![command.into()],
        environment: StringMap::new(),
        health: Default::default(),
        stop_signal: Default::default(),
        stop_seconds: 10,
        ..RunSpec::default()
    }
}

pub(crate) fn built(artifact: &str, name: &str, command: &str) -> ReplicationRequested {
    ReplicationRequested {
        summary: ArtifactSummary {
            artifact: id(artifact),
            name: name.parse().expect("valid"),
            size_bytes: 10,
            files: 1,
            chunks: 1,
            packs: PACKS,
            pack_bytes: 10,
            new_pack_bytes: 10,
        },
        source: ArtifactSource {
            job: "q-1".parse().expect("valid"),
            repository: "https://git.example/greeter".into(),
            commit: "0123456789012345678901234567890123456789".parse().expect("valid"),
        },
        run: run(command),
    }
}

pub(crate) fn report(
    artifact: &str,
    region: &str,
    status: ReplicaStatus,
    done: u32,
    error: Option<&str>,
) -> ReplicaReported {
    ReplicaReported {
        artifact: id(artifact),
        region: region.parse().expect("valid"),
        status,
        packs_done: done,
        bytes_copied: u64::from(done) * 1_000,
        error: error.map(str::to_owned),
    }
}

pub(crate) fn pin(artifact: &str, service: &str, deploy: &str, regions: &str) -> PinRequested {
    PinRequested {
        artifact: id(artifact),
        service: service.parse().expect("valid"),
        deploy: deploy.parse().expect("valid"),
        regions: regions.split_whitespace().map(|region| region.parse().expect("valid")).collect(),
    }
}

pub(crate) fn take(driver: &mut Driver<Replication>, step: Step) -> Decision<ArtifactFact> {
    match step {
        Step::Built(artifact, name, command) => driver.request(built(artifact, name, command)),
        Step::Imported(artifact, name, origin) => {
            let ReplicationRequested { summary, run, .. } = built(artifact, name, "web");
            let origin = ArtifactOrigin { url: origin.to_owned(), imported_by: "alice".to_owned() };
            driver.request(ImportRequested { summary, origin, run })
        }
        Step::Copying(artifact, region, done) => {
            driver.request(report(artifact, region, ReplicaStatus::Copying, done, None))
        }
        Step::Stored(artifact, region) => driver.request(report(artifact, region, ReplicaStatus::Stored, PACKS, None)),
        Step::Failed(artifact, region, error) => {
            driver.request(report(artifact, region, ReplicaStatus::Failed, 3, Some(error)))
        }
        Step::Pin(artifact, service, deploy, regions) => driver.request(pin(artifact, service, deploy, regions)),
        Step::Unpin(artifact, service) => {
            driver.request(UnpinRequested { artifact: id(artifact), service: service.parse().expect("valid") })
        }
        Step::Keep(artifact, reason) => driver.request(KeepRequested { artifact: id(artifact), reason: reason.into() }),
        Step::LetGo(artifact) => driver.request(LetGoRequested { artifact: id(artifact) }),
        Step::Wait(seconds) => driver.advance(Duration::from_secs(seconds)),
    }
}

/// The decision in short, with the artifacts' words for their ids.
pub(crate) fn show(decision: &Decision<ArtifactFact>) -> String {
    let mut parts: Vec<String> = decision.facts.iter().map(show_fact).collect();
    parts.extend(decision.requests.iter().map(|request| match request {
        Outgoing::Goal(GoalRequest::PinAnswered(e)) => match (&e.run, &e.refusal) {
            (Some(run), None) => format!("answer {}: run {}", e.deploy, run.command[0]),
            (None, Some(refusal)) => format!("answer {}: {refusal}", e.deploy),
            both => panic!("an answer is one of both: {both:?}"),
        },
        other => format!("{other:?}"),
    }));
    parts.extend(decision.refusal.iter().map(|refused| format!("{:?}: {}", refused.code, refused.reason)));
    in_words(&parts.join(", "))
}

/// With the artifacts' words for their ids.
pub(crate) fn in_words(text: &str) -> String {
    ["one", "two", "three"].into_iter().fold(text.to_owned(), |text, word| text.replace(&id(word).to_string(), word))
}

pub(crate) fn show_fact(fact: &ArtifactFact) -> String {
    match fact {
        ArtifactFact::ReplicationStarted(e) => {
            let regions: Vec<_> = e.regions.iter().map(|region| region.as_str()).collect();
            format!("started {} in {}", e.summary.artifact, regions.join(" "))
        }
        ArtifactFact::ReplicaProgressed(e) => format!("progressed {}: {}", e.region, e.packs_done),
        ArtifactFact::ReplicaStored(e) => format!("stored {}", e.region),
        ArtifactFact::ReplicaFailed(e) => format!("failed {}: {}", e.region, e.error),
        ArtifactFact::ReplicationCompleted(e) => format!("completed {}", e.artifact),
        ArtifactFact::ArtifactPinned(e) => format!("pinned {} by {}", e.artifact, e.service),
        ArtifactFact::ArtifactUnpinned(e) => format!("unpinned {} by {}", e.artifact, e.service),
        ArtifactFact::ArtifactRetired(e) => format!("retired {}", e.artifact),
        ArtifactFact::ArtifactKept(e) => format!("kept {}: {}", e.artifact, e.reason),
        ArtifactFact::ArtifactLetGo(e) => format!("let go {}", e.artifact),
        ArtifactFact::Processed(_) => "processed".into(),
        ArtifactFact::ArtifactImported(e) => format!("imported {} from {}", e.summary.artifact, e.origin.url),
        ArtifactFact::ReplicaRegionsSet(e) => {
            let list = |regions: &[longshore_schemas::RegionName]| {
                regions.iter().map(|region| region.as_str()).collect::<Vec<_>>().join(" ")
            };
            format!("regions of {}: {}; new: {}", e.artifact, list(&e.regions), list(&e.added))
        }
    }
}

/// Takes each step and compares what was decided with the text beside it.
pub(crate) fn check(driver: &mut Driver<Replication>, table: &[(Step, &str)]) {
    for (row, (step, expected)) in table.iter().enumerate() {
        let decision = take(driver, *step);
        assert_eq!(show(&decision), *expected, "row {row}: {step:?}");
    }
    driver.assert_replay();
}
