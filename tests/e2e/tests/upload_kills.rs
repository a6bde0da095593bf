//! Workers that are killed at each tenth of an upload: the next attempt goes on with the packs that are there.
//!
//! The victims die one after the other, so that what grows in the bucket is theirs; their successors work at the same time.

mod common;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use common::folder;
use longshore_e2e::{Client, Cluster, Options, process::wait_for, quick::Quick};
use longshore_schemas::{JobId, http::JobStatus};

const OUTPUT_MIB: u64 = 48;
const MIB: u64 = 1024 * 1024;
const BOUND: Duration = Duration::from_secs(120);
const LEASES: [&str; 6] = ["--worker-silence", "3s", "--worker-beat", "1s", "--worker-confirm", "5s"];

/// Bytes of all packs in the main bucket.
fn stored(folder: &Path) -> Result<u64> {
    let packs = folder.join("up/s3/buckets/longshore-main/packs");
    let Ok(entries) = fs::read_dir(packs) else { return Ok(0) };
    let mut bytes = 0;
    for entry in entries {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

struct Victim {
    job: JobId,
    queue: String,
    /// What its packs had in the bucket when it was dead.
    stored: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_killed_at_any_tenth_goes_on_where_it_was() -> Result<()> {
    let folder = folder()?;
    let repository = Quick::create(&folder.path().join("repository"))?;
    let commit = repository.commit("large")?;
    let options = Options { up: LEASES.map(str::to_owned).to_vec(), ..Options::default() };
    let mut cluster = Cluster::start_with(folder.path(), &["eu"], options).await?;
    let mut victims = Vec::new();
    for tenth in 1..10 {
        let queue = format!("tenth-{tenth}");
        // The same bytes in each attempt, others in each job, and none that compress.
        let noise = format!(
            "python3 -c 'import random; open(\"noise\", \"wb\").write(random.Random({tenth}).randbytes({}))'",
            OUTPUT_MIB * MIB
        );
        let mut body = repository.build(&queue, &queue, commit.clone(), &noise)?;
        body.build.output = "noise".to_owned();
        let before = stored(folder.path())?;
        let mut worker = cluster.worker(&format!("{queue}-first"), &queue)?;
        let job = cluster.client.build(&body).await?.job;
        let enough = before + OUTPUT_MIB * MIB * tenth / 10;
        wait_for(&format!("{tenth}/10 of {job}"), BOUND, async || Ok((stored(folder.path())? >= enough).then_some(())))
            .await?;
        worker.kill()?;
        let stored = quiet(folder.path()).await? - before;
        victims.push(Victim { job, queue, stored });
    }
    let mut successors = Vec::new();
    for Victim { queue, .. } in &victims {
        successors.push(cluster.worker(&format!("{queue}-second"), queue)?);
    }
    let mut resumed = 0;
    for Victim { job, stored, .. } in &victims {
        let view = cluster.client.job_ended(job, BOUND).await?;
        ensure!(view.status == JobStatus::Succeeded, "{view:?}");
        if view.attempt == 1 {
            // It had uploaded everything and finished before it died.
            continue;
        }
        resumed += 1;
        let (uploaded, there) = said(&cluster.client, job).await?;
        ensure!(there >= *stored, "{job}: {there} bytes were found, {stored} had been stored");
        let whole = view.artifact.with_context(|| format!("{job} has an artifact"))?.pack_bytes;
        ensure!(uploaded + there == whole, "{job}: {uploaded} and {there} bytes of {whole}");
    }
    ensure!(resumed >= 7, "only {resumed} of the attempts were killed before they finished");
    for worker in &mut successors {
        worker.terminate()?;
        worker.wait_ended(BOUND)?;
    }
    cluster.stop()
}

/// The bucket's size once requests that were on their way have ended.
async fn quiet(folder: &Path) -> Result<u64> {
    let staging = folder.join("up/s3/staging");
    wait_for("requests of the dead to end", BOUND, async || {
        let none = fs::read_dir(&staging)?.count() == 0;
        Ok(if none { Some(stored(folder)?) } else { None })
    })
    .await
}

/// What the log of the second attempt says was uploaded, and was there.
async fn said(client: &Client, job: &JobId) -> Result<(u64, u64)> {
    wait_for(&format!("the log of {job}"), BOUND, async || {
        let log = client.text(&format!("/v1/jobs/{job}/log?attempt=2")).await?;
        let line = log.lines().find(|line| line.contains("published artifact")).map(str::to_owned);
        Ok(line.and_then(|line| {
            let number = |before: &str| line.split(before).next()?.rsplit([' ', ':']).next()?.parse().ok();
            Some((number(" bytes were uploaded")?, number(" were there")?))
        }))
    })
    .await
}
