//! `GET /v1/jobs/{job}/log`: a build's output as text, whole or as it comes.
//!
//! Segments are objects of the main bucket with consecutive numbers, so what is stored is found without an index, for as
//! long as the bucket keeps it. Following, the `build-logs` topic says when the next is there, and the read model when
//! the attempt is over.

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use longshore_log::{ReadLimit, Reader, TopicPartition};
use longshore_schemas::{
    JobId,
    events::{BuildLog, Event, LogSegmentStored},
    http::{JobView, LOG_SEGMENT_BYTES_MAX},
    topics,
};
use serde::Deserialize;

use crate::{
    Shared,
    builds::no_job,
    extract::{App, Params, Query},
    problem::{Answer, Failure},
    streams::{self, Gone, Sender},
};

/// How often a follower looks whether the job has ended: a look at this process's own projections.
const LOOK: Duration = Duration::from_millis(250);
/// Of other attempts' news, so much is looked through at a time.
const READ: ReadLimit = ReadLimit { records: 256, bytes: 256 * 1024 };

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogQuery {
    /// Goes on until the job has ended.
    #[serde(default)]
    follow: bool,
    /// None: the last one; when following, each one from the present on.
    attempt: Option<u32>,
    /// Read by the access check.
    #[serde(rename = "access_token")]
    _access_token: Option<String>,
}

/// Where segment `index` of an attempt's output lies in the main bucket.
pub(crate) fn segment_key(job: &JobId, attempt: u32, index: u32) -> String {
    format!("logs/{job}/{attempt}/{index}")
}

/// `GET /v1/jobs/{job}/log`
pub(crate) async fn read(
    State(shared): App,
    Params((job,)): Params<(JobId,)>,
    Query(query): Query<LogQuery>,
) -> Answer {
    let view = shared.read.job(&job)?.ok_or_else(|| no_job(&job))?;
    if let Some(attempt) = query.attempt.filter(|attempt| *attempt == 0 || *attempt > view.attempt) {
        return Err(Failure::not_found(format!(
            "{job} has had {} attempts, so there is no attempt {attempt}",
            view.attempt
        )));
    }
    let (sender, response) = streams::open(&shared, "text/plain; charset=utf-8")?;
    let attempt = query.attempt.unwrap_or(view.attempt);
    let mut log = JobLog { shared: shared.clone(), job, attempt, only: query.attempt.is_some(), next: 0, sender };
    let stop = shared.stop.clone();
    tokio::spawn(async move {
        let run = async { if query.follow { log.follow().await } else { log.whole().await } };
        if stop.run_until_cancelled(run).await.is_none() {
            log.sender.farewell("\n[longshore] the server stops; ask again for the rest\n");
        }
    });
    Ok(response)
}

struct JobLog {
    shared: Arc<Shared>,
    job: JobId,
    attempt: u32,
    /// Whether to stay with this attempt when another begins.
    only: bool,
    /// Index of the next segment.
    next: u32,
    sender: Sender,
}

impl JobLog {
    async fn whole(&mut self) -> Result<(), Gone> {
        while self.attempt > 0 && self.send_stored().await? {}
        Ok(())
    }

    async fn follow(&mut self) -> Result<(), Gone> {
        loop {
            // First listen, then look: a segment that is stored in between is seen by one of them.
            let mut news = self.news().await?;
            let ended = loop {
                let view = self.view()?;
                while self.attempt > 0 && self.send_stored().await? {}
                if self.is_over(&view) {
                    break view.status.is_ended();
                }
                self.wait(&mut *news).await?;
            };
            let view = self.view()?;
            if ended || self.only {
                return Ok(());
            }
            if self.attempt > 0 {
                self.sender.send(format!("\n[longshore] attempt {} follows\n", view.attempt)).await?;
            }
            (self.attempt, self.next) = (view.attempt, 0);
        }
    }

    /// Sends the next segment, if it is stored.
    async fn send_stored(&mut self) -> Result<bool, Gone> {
        let key = segment_key(&self.job, self.attempt, self.next);
        match self.shared.bucket.get(&key, u64::from(LOG_SEGMENT_BYTES_MAX)).await {
            Ok(bytes) => {
                self.next += 1;
                self.sender.send(bytes).await?;
                Ok(true)
            }
            Err(longshore_s3::Error::NotFound { .. }) => Ok(false),
            Err(error) => {
                tracing::warn!(job = %self.job, attempt = self.attempt, segment = self.next, %error, "a log segment cannot be read");
                let line = format!("\n[longshore] the log cannot be read further: {error}\n");
                self.sender.send(line).await?;
                Err(Gone)
            }
        }
    }

    /// Returns when there may be something new.
    async fn wait(&self, news: &mut dyn Reader) -> Result<(), Gone> {
        let deadline = tokio::time::Instant::now() + LOOK;
        let key = self.record_key();
        loop {
            let read = tokio::select! {
                read = tokio::time::timeout_at(deadline, news.read(READ)) => read,
                () = self.sender.closed() => return Err(Gone),
            };
            match read {
                Ok(Ok(records)) if records.iter().any(|record| *record.record.key == *key.as_bytes()) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::error!(job = %self.job, %error, "a job's log cannot be followed");
                    return Err(Gone);
                }
                Err(_) => return Ok(()),
            }
        }
    }

    /// The records that come after now on the partition of this attempt.
    async fn news(&self) -> Result<Box<dyn Reader>, Gone> {
        let key = self.record_key();
        let partition = topics::partition_of(key.as_bytes(), topics::BUILD_LOGS.partitions);
        let of = TopicPartition::new(topics::BUILD_LOGS.name, partition);
        let reader = match self.shared.log.end_offset(&of).await {
            Ok(end) => self.shared.log.reader(vec![(of, end)]),
            Err(error) => Err(error),
        };
        reader.map_err(|error| {
            tracing::error!(job = %self.job, %error, "a job's log cannot be followed");
            Gone
        })
    }

    fn record_key(&self) -> String {
        let (job, attempt) = (self.job.clone(), self.attempt);
        BuildLog::from(LogSegmentStored { job, attempt, index: 0, bytes: 0, object: String::new() }).key()
    }

    fn view(&self) -> Result<JobView, Gone> {
        self.shared.read.job(&self.job).ok().flatten().ok_or(Gone)
    }

    fn is_over(&self, view: &JobView) -> bool {
        view.status.is_ended() || view.attempt != self.attempt
    }
}
