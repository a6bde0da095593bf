//! Whether a release is any good: one that was just started must prove it, one that did is looked at from time to time.
//!
//! What the answers mean is decided without I/O, by [`trial`] and [`watch`](crate::watch); here they are got.

use std::{path::Path, time::Duration};

use longshore_node_policy::trial::{self, Trial, Verdict};
use longshore_schemas::events::HealthCheck;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    Error,
    shim::{
        Shim,
        once::{Once, OnceSpec},
    },
    watch::{Process, Seen},
};

/// Lines of the service's output that go into the message of its failure.
const LOG_LINES: usize = 5;
/// Below the service's folder: where its `exec` checks are run.
pub const CHECK_FOLDER: &str = "check";

/// How one service is asked.
pub struct Prober<'a> {
    pub http: &'a reqwest::Client,
    pub check: &'a HealthCheck,
    pub host: &'a str,
    pub port: u16,
    pub shim: &'a Shim,
    /// The service's.
    pub folder: &'a Path,
}

impl Prober<'_> {
    /// Waits until the release is healthy; an error says why it is not.
    pub async fn prove(&self) -> Result<(), Error> {
        let (begun, mut trial) = (Instant::now(), Trial::new(self.check));
        loop {
            let status = self.shim.status().unwrap_or_default();
            let how = status.last_exit.unwrap_or_default();
            let mut verdict = trial.ended(status.exits, &how, begun.elapsed());
            if verdict == Verdict::Open {
                let answer = self.ask(status.pid.is_some()).await?;
                verdict = trial.answered(answer, begun.elapsed());
            }
            match verdict {
                Verdict::Open => sleep(trial::interval(self.check)).await,
                Verdict::Healthy => return Ok(()),
                Verdict::Failed(reason) => return Err(self.unhealthy(&reason)),
            }
        }
    }

    /// What is seen of the release now. Its health check is asked only if `ask` says so.
    pub async fn look(&self, ask: bool) -> Seen {
        let process = self.shim.live_status().map(|status| Process {
            shim: status.shim_pid,
            exits: status.exits,
            running: status.pid.is_some(),
            last_exit: status.last_exit,
        });
        let running = process.as_ref().is_none_or(|process| process.running);
        // A check that cannot be run says nothing of the service.
        let answer = if ask { self.ask(running).await.ok() } else { None };
        Seen { process, answer }
    }

    /// One check. An error: it could not be made.
    async fn ask(&self, running: bool) -> Result<Result<(), String>, Error> {
        if !running {
            return Ok(Err("the process does not run".to_owned()));
        }
        let within = Duration::from_millis(self.check.timeout_ms.clamp(10, 60_000).into());
        if !self.check.exec.is_empty() {
            return self.ask_exec(within).await;
        }
        if self.check.tcp {
            return Ok(self.ask_tcp(within).await);
        }
        Ok(if self.check.http_path.is_empty() { Ok(()) } else { self.ask_http(within).await })
    }

    async fn ask_http(&self, within: Duration) -> Result<(), String> {
        let (host, port, path) = (self.host, self.port, self.check.http_path.trim_start_matches('/'));
        let request = self.http.get(format!("http://{host}:{port}/{path}")).timeout(within).send();
        match request.await {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(format!("/{path} answered {}", response.status())),
            Err(error) => Err(format!("/{path} did not answer: {}", error.without_url())),
        }
    }

    async fn ask_tcp(&self, within: Duration) -> Result<(), String> {
        let port = self.port;
        match timeout(within, TcpStream::connect((self.host, port))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("port {port} takes no connection: {error}")),
            Err(_) => Err(format!("port {port} takes no connection within {within:?}")),
        }
    }

    /// As the service itself is run: in its folder, with its environment, as its user.
    async fn ask_exec(&self, within: Duration) -> Result<Result<(), String>, Error> {
        let Some(service) = self.shim.spec() else { return Ok(Err("it is not known how it was started".into())) };
        let spec = OnceSpec::new("the health check".into(), &self.check.exec, &service.folder, within);
        let spec = OnceSpec { environment: service.environment, account: service.account, ..spec };
        Once::of(&self.folder.join(CHECK_FOLDER)).run(&spec).await
    }

    fn unhealthy(&self, reason: &str) -> Error {
        let end = self.shim.log_end(LOG_LINES);
        let output = if end.is_empty() { String::new() } else { format!("; its output ends:\n{end}") };
        Error::Unhealthy(format!("{reason}{output}"))
    }
}
