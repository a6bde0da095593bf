//! Kafka Streams, started as a program of its own.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

const THREADS: u32 = 2;

pub(crate) struct Run {
    pub(crate) events_per_second: f64,
    pub(crate) restore_records_per_second: f64,
    pub(crate) sum: u64,
}

#[derive(Deserialize)]
struct Printed {
    committed_s: f64,
    restore_s: f64,
    restored: u64,
    sum: u64,
}

pub(crate) fn run(brokers: &str, requests: &str, count: u64) -> Result<Run> {
    let home = longshore_checkout::path("tests/bench/streams");
    let cache = std::env::var_os("LONGSHORE_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/longshore")));
    let jars = cache.context("HOME is not set")?.join("streams");
    let folder = tempfile::tempdir()?;
    let out = format!("{requests}-streams");
    longshore_bench::bare::create(brokers, &out, crate::bare::PARTITIONS)?;
    let output = Command::new("java")
        .args(["-Xms1g", "-Xmx1g", "-XX:+UseG1GC"])
        .arg(format!("-Dlog4j2.configurationFile={}", home.join("log4j2.properties").display()))
        .arg("-cp")
        .arg(format!("{}/*", jars.display()))
        .arg(home.join("Projection.java"))
        .args([brokers, requests, &out, &count.to_string()])
        .arg(folder.path().join("state"))
        .arg(THREADS.to_string())
        .output()
        .context("java cannot be run")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "Streams failed: {said}");
    let printed = String::from_utf8(output.stdout)?;
    let line = printed.lines().rev().find(|line| line.starts_with('{')).context("Streams printed no result")?;
    let Printed { committed_s, restore_s, restored, sum } = serde_json::from_str(line)?;
    ensure!(committed_s > 0.0, "Streams did not end in time: {said}");
    Ok(Run {
        events_per_second: count as f64 / committed_s,
        restore_records_per_second: restored as f64 / restore_s,
        sum,
    })
}
