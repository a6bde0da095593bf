//! Whether a release is any good: one that was just started must prove it, one that did is looked at from time to time.

use std::time::Duration;

use longshore_schemas::events::HealthCheck;
use tokio::time::{Instant, sleep};

use crate::{
    Error,
    shim::Shim,
    watch::{Process, Seen},
};

/// A release that ended so often before it was healthy has failed.
const EXITS_MAX: u32 = 2;
const REQUEST: Duration = Duration::from_secs(5);
/// Lines of the service's output that go into the message of its failure.
const LOG_LINES: usize = 5;

/// Waits until the release is healthy; an error says why it is not.
pub async fn check(
    http: &reqwest::Client,
    check: &HealthCheck,
    host: &str,
    port: u16,
    shim: &Shim,
) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(check.deadline_seconds.max(1).into());
    let interval = Duration::from_millis(check.interval_ms.clamp(10, 60_000).into());
    let (mut successes, mut exits, mut last) = (0, 0, "it was not asked yet".to_owned());
    loop {
        let status = shim.status().unwrap_or_default();
        if status.exits >= EXITS_MAX {
            let how = status.last_exit.unwrap_or_default();
            return Err(unhealthy(shim, &format!("the service ended {} times: {how}", status.exits)));
        }
        if status.exits != exits {
            // What counted was another process.
            (successes, exits) = (0, status.exits);
        }
        match probe(http, check, host, port, status.pid.is_some()).await {
            Ok(()) => successes += 1,
            Err(reason) => (successes, last) = (0, reason),
        }
        if successes >= check.successes.max(1) {
            return Ok(());
        }
        if Instant::now() + interval > deadline {
            let seconds = check.deadline_seconds;
            return Err(unhealthy(shim, &format!("not healthy within {seconds} s: {last}")));
        }
        sleep(interval).await;
    }
}

/// What is seen of a release now. Its health check is asked only if `ask` says so.
pub async fn look(http: &reqwest::Client, check: &HealthCheck, host: &str, port: u16, shim: &Shim, ask: bool) -> Seen {
    let process = shim.live_status().map(|status| Process {
        shim: status.shim_pid,
        exits: status.exits,
        running: status.pid.is_some(),
        last_exit: status.last_exit,
    });
    let running = process.as_ref().is_none_or(|process| process.running);
    let answer = if ask { Some(probe(http, check, host, port, running).await) } else { None };
    Seen { process, answer }
}

async fn probe(
    http: &reqwest::Client,
    check: &HealthCheck,
    host: &str,
    port: u16,
    running: bool,
) -> Result<(), String> {
    if !running {
        return Err("the process does not run".to_owned());
    }
    if check.http_path.is_empty() {
        return Ok(());
    }
    let path = check.http_path.trim_start_matches('/');
    let request = http.get(format!("http://{host}:{port}/{path}")).timeout(REQUEST).send();
    match request.await {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => Err(format!("/{path} answered {}", response.status())),
        Err(error) => Err(format!("/{path} did not answer: {}", error.without_url())),
    }
}

fn unhealthy(shim: &Shim, reason: &str) -> Error {
    let end = shim.log_end(LOG_LINES);
    let output = if end.is_empty() { String::new() } else { format!("; its output ends:\n{end}") };
    Error::Unhealthy(format!("{reason}{output}"))
}
