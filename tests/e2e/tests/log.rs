//! The log for those who look after it, with the real programs: what strangers forge is set aside and holds up nobody, and
//! `longshore log` lists it, shows it, tries it again, and says that the whole is well.

mod common;

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Cluster,
    process::{binary_path, wait_for},
};
use longshore_log::{
    Log, Record,
    local::{Config as LogConfig, LocalLog},
};
use longshore_schemas::{
    RegionName, Timestamp,
    auth::{AUTH, RequestKey, Signed},
    codec::{self, Message},
    events::{
        ArtifactRequest, AttemptFailed, AttemptFinished, AttemptOutcome, BuildRequest, BuildRequested, Event,
        FailureReason, FleetReport, GoalRequest, PauseRequested, RegionReported, ReplicaReported, ReplicaStatus,
        ReportOrder, Request,
    },
    topics,
};
use longshore_service::request_keys::RequestKeys;
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);

/// `longshore log …` with JSON, against the server in this folder.
fn log(folder: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    let mut command = Command::new(binary_path("longshore")?);
    command.arg("log").args(arguments).args(["--output", "json", "--data"]).arg(folder.join("up"));
    let output = command.output()?;
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((output.status.success(), if output.status.success() { out } else { err }))
}

fn log_json(folder: &Path, arguments: &[&str]) -> Result<Value> {
    let (success, text) = log(folder, arguments)?;
    ensure!(success, "longshore log {}: {text}", arguments.join(" "));
    serde_json::from_str(&text).with_context(|| text)
}

/// Each line of a tail.
fn tail(folder: &Path, arguments: &[&str]) -> Result<Vec<Value>> {
    let (success, text) = log(folder, &[&["tail"], arguments].concat())?;
    ensure!(success, "{text}");
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn request<E: Event>(id: &str, report: Option<&str>, event: E) -> Result<Record>
where
    Request<E>: Message,
{
    let report = report.map(|sender| ReportOrder { sender: sender.to_owned(), boot: i64::MAX as u64, sequence: 1 });
    let (id, key) = (id.parse()?, event.key());
    let request = Request { id, at: Timestamp(0), actor: "stranger".to_owned(), trace: None, report, event };
    Ok(Record::new(key, codec::encode(&request)?))
}

fn signed(record: Record, key: &RequestKey, topic: &str) -> Record {
    let value = record.value.clone().unwrap_or_default();
    let auth = key.sign(Signed { topic, key: &record.key.clone(), value: &value });
    record.with_header(AUTH, auth)
}

/// What strangers write, and one build that is in order.
async fn forge(folder: &Path) -> Result<usize> {
    let data = folder.join("up");
    let log = LocalLog::open(LogConfig::new(data.join("log"), topics::ALL))?;
    let keys = RequestKeys::load(&data.join("secrets").join("requests"))?;
    let eu: RegionName = "eu".parse()?;
    let us: RegionName = "us".parse()?;
    let eu_key = keys.of(&eu).and_then(|keys| keys.first()).context("a key")?;
    let finished = AttemptFinished {
        job: "default-1".parse()?,
        attempt: 1,
        worker: "w-1".parse()?,
        outcome: AttemptOutcome::AttemptFailed(AttemptFailed {
            reason: FailureReason::CommandFailed,
            message: "so it is said".to_owned(),
        }),
    };
    let report = |region: &RegionName| {
        let (region, lists) = (region.clone(), Vec::new());
        FleetReport::from(RegionReported {
            region,
            shard: 0,
            seen: lists,
            statuses: vec![],
            lost: vec![],
            returned: vec![],
        })
    };
    let stored = ArtifactRequest::from(ReplicaReported {
        artifact: longshore_schemas::ArtifactId::of(b"x"),
        region: us.clone(),
        status: ReplicaStatus::Stored,
        packs_done: 1,
        bytes_copied: 1,
        error: None,
    });
    let pause = || GoalRequest::from(PauseRequested { service: "web".parse().expect("a name") });
    let (builds, goals) = (topics::BUILD_REQUESTS.name, topics::GOAL_REQUESTS.name);
    let (fleet, artifacts) = (topics::FLEET_REPORTS.name, topics::ARTIFACT_REQUESTS.name);
    let pause_of_eu = signed(request("f-5", None, pause())?, eu_key, goals);
    let forged = [
        (builds, Record::new("default", "garbage")),
        (builds, request("f-1", None, BuildRequest::from(finished))?),
        (fleet, request("f-2", Some("region/eu"), report(&eu))?),
        // A region for another, and in another's name.
        (fleet, signed(request("f-3", Some("region/us"), report(&us))?, eu_key, fleet)),
        (fleet, signed(request("f-3b", Some("goals-0"), report(&eu))?, eu_key, fleet)),
        (artifacts, signed(request("f-4", Some("region/eu"), stored)?, eu_key, artifacts)),
        (goals, pause_of_eu),
        // Control's word on another request.
        (goals, signed(request("f-6", None, pause())?, keys.own(), builds)),
        (goals, request("f-7", None, pause())?),
    ];
    let count = forged.len();
    for (topic, record) in forged {
        log.append(topic, vec![record]).await?;
    }
    let build = json!({
        "name": "web", "repository": "https://example.com/web.git", "commit": "0".repeat(40), "command": ["make"],
        "output": "out", "run": { "command": ["./web"] },
    });
    let event = BuildRequested { queue: "default".parse()?, build: serde_json::from_value(build)? };
    log.append(builds, vec![request("good", None, BuildRequest::from(event))?]).await?;
    log.close();
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_write_is_set_aside_and_operators_see_it() -> Result<()> {
    let folder = common::folder()?;
    let path = folder.path();
    let mut cluster = Cluster::start(path, &["eu", "us"]).await?;
    cluster.stop()?;
    let forged = forge(path).await?;
    cluster.restart_control().await?;

    // The good one behind them is processed, without a signature: the brokers say who may ask for builds.
    wait_for("the job of the good request", BOUND, async || {
        let jobs: Value = cluster.client.get("/v1/jobs").await?;
        Ok((jobs["items"].as_array().is_some_and(|jobs| jobs.len() == 1)).then_some(()))
    })
    .await?;
    let letters = wait_for("the dead letters", BOUND, async || {
        let page = log_json(path, &["dead-letters", "list"])?;
        let letters = page["items"].as_array().cloned().unwrap_or_default();
        Ok((letters.len() == forged).then_some(letters))
    })
    .await?;
    let error = |letter: &Value| letter["error"].as_str().unwrap_or_default().to_owned();
    let not_believed: Vec<&Value> = letters.iter().filter(|letter| error(letter).starts_with("not believed")).collect();
    ensure!(not_believed.len() == forged - 1, "{letters:?}");

    let topics = log_json(path, &["topics"])?;
    let queue = topics.as_array().context("a list")?.iter().filter(|view| view["topic"] == "build-requests");
    for view in queue {
        let processing = &view["processing"];
        ensure!(processing["role"] == "leading" && processing["lag"] == 0, "{view}");
        ensure!(view["records"] == 0 || view["bytes"].as_u64() > view["records"].as_u64(), "{view}");
    }
    let reports = tail(path, &["fleet-reports", "--from", "beginning", "--until-end", "--where", "actor=stranger"])?;
    ensure!(reports.len() == 3 && reports.iter().all(|report| report["key"].is_string()), "{reports:?}");
    let facts = tail(path, &["all", "--from", "10m", "--until-end", "--type", "JobQueued"])?;
    ensure!(facts.len() == 1 && facts[0]["actor"] == "stranger", "{facts:?}");

    // Tried again it is no more believed, and tried once only.
    let unsigned =
        letters.iter().find(|letter| error(letter).contains("AttemptFinished")).context("the forged word")?;
    let offset = unsigned["offset"].to_string();
    let shown = log_json(path, &["dead-letters", "show", &offset])?;
    ensure!(shown["content"]["kind"] == "AttemptFinished", "{shown}");
    let first = log_json(path, &["dead-letters", "retry", &offset])?;
    let outcome = first["outcome"].as_str().unwrap_or_default();
    ensure!(first["retried"] == true && outcome.contains("a dead letter again"), "{first}");
    let second = log_json(path, &["dead-letters", "retry", &offset])?;
    ensure!(second["retried"] == false, "{second}");
    let metrics = cluster.client.text("/metrics").await?;
    ensure!(metrics.contains("longshore_untrusted_requests_total{"), "what was not believed is counted");

    let report = log_json(path, &["verify"])?;
    ensure!(report["faults_total"] == 0 && report["projections"] == 28, "while it runs: {report}");
    ensure!(report["dead_letters"].as_u64() >= Some(forged as u64 + 1), "{report}");
    cluster.stop()?;
    let report = log_json(path, &["verify"])?;
    // On disk are the projections of those partitions that have facts.
    ensure!(report["faults_total"] == 0 && report["projections"].as_u64() > Some(0), "stopped: {report}");
    Ok(())
}
