//! The loop of a worker: claim, build, claim again.

use std::{sync::Arc, time::Duration};

use longshore_schemas::{
    ClaimId, QueueName,
    http::{Assignment, ClaimBody},
};
use longshore_service::{
    limits::{Settings, announce},
    retry::Backoff,
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    attempt::Builder,
    client::{self, Answer, Client},
    config::{QUEUES_MAX, WorkerConfig},
    git::{Cache, Git},
    limits::LIMITS,
    tidy::WorkDir,
    wait_after,
};

/// How long one claim stays open at the server.
const CLAIM_WAIT_SECONDS: u32 = 30;
/// What the network may take on top of that.
const CLAIM_SLACK: Duration = Duration::from_secs(15);
/// A server that answers "nothing" sooner is not asked again at once.
const CLAIM_TIME_MIN: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);

pub struct Worker;

impl Worker {
    /// Works until the token is cancelled. A build that still runs then is killed; its job goes to another worker once the lease has
    /// ended. Errors are those of the start: afterwards the worker goes on, whatever the server does.
    pub async fn run(config: WorkerConfig, shutdown: CancellationToken) -> Result<(), Error> {
        let queues = checked_queues(&config)?;
        let root = config.work_dir.clone();
        let opened = tokio::task::spawn_blocking(move || WorkDir::open(&root)).await;
        let work = opened.map_err(|error| Error::io("open", &config.work_dir)(error.into()))??;
        let client = Client::new(config.api.clone(), Some(&config.token))?;
        let config = Arc::new(config);
        let git = Git::new(config.clone(), Cache::new(work.cache()));
        let builder = Arc::new(Builder::new(config.clone(), client.clone(), git, work));
        announce(LIMITS, &Settings::default());
        tracing::info!(worker = %config.name, api = %config.api, queues = queues.len(), "worker started");

        let stop = shutdown.child_token();
        let mut slots = JoinSet::new();
        for queue in queues {
            let slot = Slot { queue, config: config.clone(), client: client.clone(), builder: builder.clone() };
            slots.spawn(slot.run(stop.clone()));
        }
        let mut result = Ok(());
        while let Some(ended) = slots.join_next().await {
            let ended = ended.unwrap_or_else(|error| Err(Error::io("work in", &config.work_dir)(error.into())));
            if ended.is_err() {
                stop.cancel();
                result = result.and(ended);
            }
        }
        tracing::info!(worker = %config.name, "worker stopped");
        result
    }
}

fn checked_queues(config: &WorkerConfig) -> Result<Vec<QueueName>, Error> {
    let mut queues = config.queues.clone();
    queues.sort();
    queues.dedup();
    let each_once = queues.len() == config.queues.len();
    if queues.is_empty() || queues.len() > QUEUES_MAX || !each_once {
        return Err(Error::Queues { max: QUEUES_MAX });
    }
    Ok(queues)
}

/// One job at a time, of one queue.
struct Slot {
    queue: QueueName,
    config: Arc<WorkerConfig>,
    client: Client,
    builder: Arc<Builder>,
}

impl Slot {
    async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let mut claim = new_claim();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        // A token that was good once may be refused for a while, by a server that starts; one that never was is a mistake.
        let mut was_accepted = false;
        loop {
            let begun = Instant::now();
            let answer = tokio::select! {
                answer = self.claim(&claim) => answer,
                () = stop.cancelled() => return Ok(()),
            };
            match answer {
                Ok(Answer::Done(assignment)) => {
                    self.builder.attempt(self.queue.as_str(), &assignment, &stop).await;
                    claim = new_claim();
                    was_accepted = true;
                    backoff.reset();
                    continue;
                }
                Ok(Answer::Nothing | Answer::Accepted { .. }) => {
                    was_accepted = true;
                    if begun.elapsed() >= CLAIM_TIME_MIN {
                        backoff.reset();
                        continue;
                    }
                }
                Err(error) if !was_accepted && matches!(error.status(), Some(401 | 403)) => {
                    return Err(Error::NotAccepted(error));
                }
                Err(error) => {
                    tracing::warn!(queue = %self.queue, %error, "a claim did not get through");
                    // The server may know more of this claim than we do: another is needed.
                    if error.status() == Some(409) {
                        claim = new_claim();
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait_after(&mut backoff)) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    async fn claim(&self, claim: &ClaimId) -> Result<Answer<Assignment>, client::Error> {
        let body =
            ClaimBody { worker: self.config.name.clone(), claim: claim.clone(), wait_seconds: CLAIM_WAIT_SECONDS };
        let patience = Duration::from_secs(CLAIM_WAIT_SECONDS.into()) + CLAIM_SLACK;
        self.client.post(&["queues", self.queue.as_str(), "claims"]).json(&body).timeout(patience).send().await
    }
}

/// One wish for one job: repeated until it is granted, never used again.
fn new_claim() -> ClaimId {
    format!("{:032x}", rand::random::<u128>()).parse().expect("32 hexadecimal digits are a claim")
}
