//! The region process: a region on a log and buckets of its own, which publishes a goal when it is told to.

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use longshore_bench::s3;
use longshore_identity::files::AuthorityFiles;
use longshore_log::{
    Log, Record,
    local::{Config, LocalLog},
};
use longshore_region::{Limits, Region, RegionConfig};
use longshore_schemas::{
    ArtifactId, RegionName, Timestamp,
    auth::{RequestKey, Sender},
    codec,
    events::{Cohort, Event, GoalState, GoalVersion, RegionalGoal, Request, RunSpec, Target},
    topics,
};
use longshore_signing::{SigningKey, goal::GOAL, record};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The word before the address, on the standard output.
pub(crate) const READY: &str = "ready ";

fn region() -> Result<RegionName> {
    Ok("eu".parse()?)
}

/// The files of its authority, which are made if they are not there.
pub(crate) fn authority(folder: &Path) -> AuthorityFiles {
    AuthorityFiles::new(&folder.join("authorities"), &region().expect("a valid name"))
}

/// Until its input ends. A line is a version to publish; one that is there from the start is published before nodes are taken.
pub(crate) async fn serve(folder: &Path, port: u16, connections: usize) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let path = |name: &str| -> PathBuf { folder.join(name) };
    let log = LocalLog::open(Config::new(path("log"), topics::ALL))?;
    let server = s3::serve(path("s3")).await?;
    let (main, own) = (
        s3::bucket_named(server.endpoint(), "longshore-main").await?,
        s3::bucket_named(server.endpoint(), "longshore-eu").await?,
    );
    let authority = authority(folder);
    authority.make(longshore_service::now())?;
    let key = SigningKey::from_seed(&[8; 32]);
    let mut lines = lines();
    // The first line comes with the start.
    let first = lines.recv().await.context("no first version")?;
    publish(&log, &key, first.trim().parse()?).await?;
    let stop = CancellationToken::new();
    let config = RegionConfig {
        region: region()?,
        log: log.clone(),
        main_bucket: main,
        bucket: own,
        listen: SocketAddr::from(([127, 0, 0, 1], port)),
        shards_per_region: 4,
        tokens_file: path("tokens.json"),
        authority,
        request_keys: vec![RequestKey::new(Sender::Region(region()?), &[7; 32])],
        goal_keys: (*key.public()).into(),
        data_dir: path("region"),
        limits: Limits {
            connections_max: connections + 1,
            collect_interval: Duration::from_secs(3600),
            ..Limits::default()
        },
    };
    let region = Region::start(config, stop.clone()).await?;
    say(&format!("{READY}{}", region.address()))?;
    while let Some(line) = lines.recv().await {
        publish(&log, &key, line.trim().parse()?).await?;
        say("published")?;
    }
    stop.cancel();
    region.stopped().await;
    log.close();
    Ok(())
}

/// Of the standard input.
fn lines() -> mpsc::UnboundedReceiver<String> {
    let (line, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for text in std::io::stdin().lines().map_while(Result::ok) {
            if line.send(text).is_err() {
                return;
            }
        }
    });
    lines
}

#[expect(clippy::print_stdout, reason = "it is how it talks with the process that started it")]
fn say(text: &str) -> Result<()> {
    println!("{text}");
    Ok(std::io::stdout().flush()?)
}

/// Version 0 is none.
async fn publish(log: &Arc<LocalLog>, key: &SigningKey, version: u64) -> Result<()> {
    if version == 0 {
        return Ok(());
    }
    let event = GoalState::from(goal_of(version)?);
    let (id, name) = (format!("goal-{version}").parse()?, event.key());
    let request = Request { id, at: Timestamp(0), actor: "goals".to_owned(), trace: None, report: None, event };
    let value = codec::encode(&request)?;
    let signature = record::sign(&GOAL, &value, key);
    let record = Record::new(name, value).with_header(record::SIGNATURE, signature);
    log.append(topics::GOAL_STATE.name, vec![record]).await?;
    Ok(())
}

/// As a service's usually is.
fn goal_of(version: u64) -> Result<RegionalGoal> {
    let variables = (0..8).map(|n| (format!("VARIABLE_{n}"), format!("a value of some length, number {n}")));
    let run = RunSpec {
        command: ["./server", "--listen", "0.0.0.0:8080"].map(str::to_owned).to_vec(),
        environment: variables.collect(),
        ..RunSpec::default()
    };
    let target = Target { cohort: Cohort::everyone(), revision: version, artifact: ArtifactId::of(b"one"), run };
    Ok(RegionalGoal {
        region: region()?,
        service: "web".parse()?,
        version: GoalVersion { revision: version, step: 1 },
        targets: vec![target],
    })
}
