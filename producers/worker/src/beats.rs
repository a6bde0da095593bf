//! What a worker says of one attempt, with the attempt's own credential; and the beats that keep the attempt its own.

use std::time::Duration;

use longshore_schemas::{
    JobId, RequestId,
    http::{Assignment, BeatAnswer, FinishBody, LogAnswer, LogBody, UploadsAnswer, UploadsBody},
};
use longshore_service::retry::Backoff;
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Answer, Client, Error},
    uploads::Places,
    wait_after,
};

/// The first pause after a beat that did not get through.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// The routes of one attempt.
#[derive(Clone)]
pub(crate) struct AttemptApi {
    client: Client,
    job: JobId,
    attempt: u32,
}

impl AttemptApi {
    pub(crate) fn new(client: &Client, assignment: &Assignment) -> Result<Self, Error> {
        let client = client.with_token(Some(&assignment.credential))?;
        Ok(Self { client, job: assignment.job.clone(), attempt: assignment.attempt })
    }

    pub(crate) fn plain(&self) -> &reqwest::Client {
        self.client.plain()
    }

    fn post(&self, route: &str) -> crate::client::Call {
        let (job, attempt) = (self.job.to_string(), self.attempt.to_string());
        self.client.post(&["jobs", &job, "attempts", &attempt, route])
    }

    async fn beat(&self, patience: Duration) -> Result<BeatAnswer, Error> {
        self.post("beats").timeout(patience).fetch().await
    }

    pub(crate) async fn log(&self, body: &LogBody) -> Result<LogAnswer, Error> {
        self.post("log").json(body).fetch().await
    }

    /// May be repeated: the server takes one result per attempt.
    pub(crate) async fn finish(&self, body: &FinishBody) -> Result<Answer<serde_json::Value>, Error> {
        let outcome = if matches!(body, FinishBody::Succeeded { .. }) { "succeeded" } else { "failed" };
        let key = format!("finish-{}-{}-{outcome}", self.job, self.attempt);
        let key: RequestId =
            key.parse().expect("a job's name, a number and a word are within 128 printable characters");
        self.post("finish").json(body).idempotency_key(&key).send().await
    }
}

#[async_trait::async_trait]
impl Places for AttemptApi {
    async fn uploads(&self, body: &UploadsBody) -> Result<UploadsAnswer, Error> {
        self.post("uploads").json(body).fetch().await
    }
}

/// Whether this answer means that the attempt is another's, or nobody's.
pub(crate) fn is_over(error: &Error) -> bool {
    matches!(error.status(), Some(401 | 403 | 404 | 409 | 410))
}

/// Beats until the attempt is over, and then cancels the token. The first beat confirms the assignment.
///
/// A server that cannot be reached changes nothing: it may be back before the lease ends.
pub(crate) async fn keep(api: AttemptApi, every: Duration, over: CancellationToken) {
    let mut backoff = Backoff::new(RETRY_FIRST, every);
    loop {
        let wait = match api.beat(every).await {
            Ok(BeatAnswer { current: true }) => {
                backoff.reset();
                every
            }
            Ok(BeatAnswer { current: false }) => {
                tracing::info!(job = %api.job, attempt = api.attempt, "the attempt is over");
                return over.cancel();
            }
            Err(error) if is_over(&error) => {
                tracing::info!(job = %api.job, attempt = api.attempt, %error, "the attempt is over");
                return over.cancel();
            }
            Err(error) => {
                tracing::warn!(job = %api.job, attempt = api.attempt, %error, "a beat did not get through");
                wait_after(&mut backoff)
            }
        };
        tokio::time::sleep(wait).await;
    }
}
