//! Build requests, as benchmarks write them past the API.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use longshore_log::{Record, clock};
use longshore_schemas::{
    codec,
    events::{BuildRequest, BuildRequested, BuildSpec, Event, HealthCheck, Request, RunSpec, StopSignal},
};

/// A small build: about 200 bytes.
pub fn spec() -> Result<BuildSpec> {
    Ok(BuildSpec {
        name: "bench".parse()?,
        repository: "https://git.example/bench.git".into(),
        commit: "0123456789abcdef0123456789abcdef01234567".parse().context("a commit")?,
        command: vec!["make".into()],
        output: "out".into(),
        environment: Default::default(),
        time_limit_seconds: 900,
        labels: Default::default(),
        run: RunSpec {
            command: vec!["bin/bench".into()],
            environment: Default::default(),
            health: HealthCheck::default(),
            stop_signal: StopSignal::Term,
            stop_seconds: 10,
            ..RunSpec::default()
        },
    })
}

/// A request with this id to build it in this queue.
pub fn record(build: &BuildSpec, queue: &str, id: &str) -> Result<Record> {
    let event = BuildRequest::from(BuildRequested { queue: queue.parse()?, build: build.clone() });
    let key = event.key();
    let at = clock::now();
    let request = Request { id: id.parse()?, at, actor: "bench".into(), trace: None, report: None, event };
    Ok(Record { key: Bytes::from(key), value: Some(codec::encode(&request)?.into()), headers: Vec::new() })
}
