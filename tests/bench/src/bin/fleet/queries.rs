//! What people and dashboards ask of the fleet, one question after the other, over HTTP.

use std::time::{Duration, Instant};

use anyhow::Result;
use longshore_e2e::Client;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Pages of nodes are those of a person's screen.
const QUESTIONS: [&str; 5] = [
    "/v1/services/web/fleet",
    "/v1/nodes?limit=100",
    "/v1/nodes?region=r7&limit=100",
    "/v1/nodes?region=r3&service=web&where=zone%3Db,status%3Dhealthy&limit=100",
    "/v1/services/web",
];

pub(crate) struct Queries {
    stop: CancellationToken,
    asking: JoinHandle<Result<Vec<Duration>>>,
}

impl Queries {
    pub(crate) fn start(client: Client) -> Self {
        let stop = CancellationToken::new();
        let asking = tokio::spawn(ask(client, stop.clone()));
        Self { stop, asking }
    }

    /// How long each took.
    pub(crate) async fn stop(self) -> Result<Vec<Duration>> {
        self.stop.cancel();
        let mut times = self.asking.await??;
        times.sort();
        Ok(times)
    }
}

async fn ask(client: Client, stop: CancellationToken) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    // Until there is anything to ask about.
    while !stop.is_cancelled() && client.text(QUESTIONS[0]).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for question in QUESTIONS.iter().cycle() {
        if stop.is_cancelled() {
            break;
        }
        let begun = Instant::now();
        client.text(question).await?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// In milliseconds; of times in order.
pub(crate) fn quantile(times: &[Duration], share: f64) -> f64 {
    let at = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
    times.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
