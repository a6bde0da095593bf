//! One task per service: asks [`plan`](crate::plan) what is next, and does it, one step at a time.
//!
//! A release that was proved is watched as long as it is the goal's ([`watch`](crate::watch)), and how it does is reported.
//!
//! A goal that changes while bytes are on their way ends the fetch at once. Once the switch has begun it is carried to its
//! end, healthy or back; then the plan is asked again.

mod drift;
mod ports;
mod switch;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use longshore_schemas::{
    ArtifactId, NodeId, ServiceName, ZoneName,
    events::{NodeStatus, RegionalGoal},
    stream::NodeReport,
};
use longshore_service::{ledger::Ledger, retry::Backoff};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use self::drift::Drift;
pub use self::ports::{PORTS, Ports};
use crate::{
    Error, Folders, environment,
    goals::{GoalKeeper, Goals, Wanted},
    plan::{self, Release, ServiceState, Step},
    releases::Releases,
    reports::Reports,
    shim::Shim,
    watch::Watch,
};

/// How often a settled service is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The health check of a release that was proved is not asked less often than this, however patient it is.
const ASK_MAX: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What all services of a node share.
pub struct Shared {
    pub node: NodeId,
    pub zone: ZoneName,
    pub host: String,
    pub folders: Folders,
    pub goals: Arc<GoalKeeper>,
    pub releases: Releases,
    pub reports: Reports,
    pub http: reqwest::Client,
    pub ports: Ports,
    /// Between two looks at the files of a release that runs.
    pub drift_interval: Duration,
    /// When the agent was started.
    pub began: Instant,
}

/// A service on this node.
pub struct Service {
    name: ServiceName,
    shared: Arc<Shared>,
    folder: PathBuf,
    shim: Shim,
    state: Ledger<ServiceState>,
    watch: Watch,
    watch_began: Instant,
    asked_at: Option<Instant>,
    /// What all services kept when this one last had the rest removed.
    cleaned: Option<BTreeSet<ArtifactId>>,
    /// The release that waits only for its bytes.
    prepared: Option<Release>,
    /// What the hooks of the last stop complained of.
    complaint: Option<String>,
    drift: Drift,
}

impl Service {
    /// Reads what is known of the service, and keeps what its goal wants from being removed.
    pub fn open(goal: &RegionalGoal, shared: Arc<Shared>) -> Result<Self, Error> {
        let name = &goal.service;
        let folder = shared.folders.service(name);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let shim = Shim::of(&folder);
        let state = open_state(&folder, &shim)?;
        // Not all services, nor all nodes, at once.
        let first_look = Instant::now() + shared.drift_interval.mul_f64(rand::random());
        let service = Self {
            name: name.clone(),
            shim,
            shared,
            folder,
            state,
            watch: Watch::default(),
            watch_began: Instant::now(),
            asked_at: None,
            cleaned: None,
            prepared: None,
            complaint: None,
            drift: Drift::new(first_look),
        };
        if let Some(port) = service.state.content().port {
            service.shared.ports.of(name, Some(port))?;
        }
        let wanted = Wanted::of(goal, &service.shared.node, &service.shared.zone);
        service.keep(wanted.target.map(|target| target.artifact));
        Ok(service)
    }

    /// Brings the service to its goal, and keeps it there, until the shutdown.
    pub async fn run(mut self, mut goals: watch::Receiver<Goals>, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        while !shutdown.is_cancelled() {
            let Some(wanted) = self.wanted(&goals.borrow_and_update()) else { return };
            match self.step(&wanted, &mut goals, &shutdown).await {
                Ok(()) => backoff.reset(),
                Err(Error::Stopping) => return,
                Err(error) => {
                    tracing::warn!(service = %self.name, %error, "cannot go on; trying again");
                    self.report(&wanted, self.status_in_trouble(&wanted), Some(error.whole()));
                    let wait = backoff.next_wait(&mut rand::rng());
                    let _ = shutdown.run_until_cancelled(tokio::time::timeout(wait, goals.changed())).await;
                }
            }
        }
    }

    /// How far it had got. What was settled is not any more, and says nothing of another version.
    fn status_in_trouble(&self, wanted: &Wanted) -> NodeStatus {
        match self.shared.reports.status_of(&self.name, wanted.version) {
            Some(status @ (NodeStatus::Fetching | NodeStatus::Staged | NodeStatus::Starting)) => status,
            _ if self.state.content().current.is_some() => NodeStatus::Starting,
            _ => NodeStatus::Fetching,
        }
    }

    fn wanted(&self, goals: &Goals) -> Option<Wanted> {
        goals.get(&self.name).map(|goal| Wanted::of(goal, &self.shared.node, &self.shared.zone))
    }

    async fn step(
        &mut self,
        wanted: &Wanted,
        goals: &mut watch::Receiver<Goals>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        match plan::next(wanted, self.state.content()) {
            Step::Settled(status) => {
                self.mend(wanted, goals, shutdown).await?;
                self.ensure_running(shutdown).await?;
                self.keep(None);
                let failed = self.state.content().failed.as_ref().filter(|_| status.is_failure());
                let mut level = (status, failed.map(|failed| failed.message.clone()));
                if status == NodeStatus::Healthy {
                    tokio::select! {
                        seen = self.look() => level = seen,
                        _ = goals.changed() => return Ok(()),
                        () = shutdown.cancelled() => return Ok(()),
                    }
                }
                self.report(wanted, level.0, level.1);
                self.clean().await;
                // Whichever ends it, the plan is asked again.
                let next = next_look(self.shared.began, Instant::now());
                let _ = shutdown.run_until_cancelled(tokio::time::timeout_at(next, goals.changed())).await;
                Ok(())
            }
            Step::Install(release) => self.install(wanted, release, goals, shutdown).await,
            Step::Prove(release) => self.activate(wanted, release, false, shutdown).await,
            Step::Stop => {
                self.shared.goals.confirm(&self.name)?;
                self.stop_running(None).await?;
                self.state.update(ServiceState::stopped)?;
                self.link_current()
            }
        }
    }

    /// How the current release does, and if it is not well, why.
    async fn look(&mut self) -> (NodeStatus, Option<String>) {
        let Some(current) = self.state.content().current.clone() else { return (NodeStatus::Healthy, None) };
        let check = &current.run.health;
        let interval = Duration::from_millis(check.interval_ms.into()).clamp(LOOK, ASK_MAX);
        let now = Instant::now();
        let ask = is_due(self.asked_at, interval, now);
        let seen = self.prober(&current).look(ask).await;
        if ask {
            self.asked_at = Some(now);
        }
        if self.watch.see(&seen, check, self.watch_began.elapsed()) {
            let (condition, reason) = (self.watch.condition(), self.watch.reason());
            tracing::warn!(service = %self.name, artifact = %current.artifact, ?condition, reason, "a proved release");
        }
        (self.watch.condition().status(), self.watch.reason().map(str::to_owned))
    }

    /// Waits until the goal wants something else.
    async fn other_target(&self, wanted: &Wanted, goals: &mut watch::Receiver<Goals>) {
        loop {
            if goals.changed().await.is_err() {
                return std::future::pending().await;
            }
            let now = self.wanted(&goals.borrow_and_update());
            if now.is_none_or(|now| now.target != wanted.target) {
                return;
            }
        }
    }

    fn report(&self, wanted: &Wanted, status: NodeStatus, message: Option<String>) {
        let runs = self.state.content().current.is_some();
        let said: Vec<String> = message.into_iter().chain(self.complaint.clone()).collect();
        self.shared.reports.say(NodeReport {
            service: self.name.clone(),
            version: wanted.version,
            artifact: wanted.target.as_ref().map(|target| target.artifact),
            status,
            port: self.state.content().port.filter(|_| runs),
            message: (!said.is_empty()).then(|| said.join("\n")),
        });
    }

    /// Notes which artifacts this service needs on disk.
    fn keep(&self, also: Option<ArtifactId>) {
        let kept = self.state.content().kept().chain(also).collect();
        self.shared.releases.kept.note(&self.name, kept);
    }

    /// Has removed what no service keeps. Trouble with that is no trouble of the service.
    async fn clean(&mut self) {
        let kept = self.shared.releases.kept.by_all();
        if kept.is_none() || kept == self.cleaned {
            return;
        }
        match self.shared.releases.clean().await {
            Ok(None) => {}
            Ok(cleaned) => {
                self.cleaned = cleaned;
                environment::forget_others(&self.folder, &self.state.content().revisions());
            }
            Err(error) => tracing::warn!(service = %self.name, %error, "old releases cannot be removed"),
        }
    }
}

/// Whether to ask at this look: the looks are not exactly as far apart as they should be.
fn is_due(asked_at: Option<Instant>, interval: Duration, now: Instant) -> bool {
    asked_at.is_none_or(|at| now.saturating_duration_since(at) + LOOK / 2 >= interval)
}

/// When all settled services are looked at next: together, so that an idle machine wakes up once for all of them.
fn next_look(began: Instant, now: Instant) -> Instant {
    let looks = now.saturating_duration_since(began).as_millis() / LOOK.as_millis();
    began + LOOK.saturating_mul(u32::try_from(looks).unwrap_or(u32::MAX).saturating_add(1))
}

/// What is known of the service. A file that does not hold what it should is set aside: what the goal wants is installed already,
/// and is started and proved anew. What it gave way to is forgotten; the port is that of the process that runs.
fn open_state(folder: &Path, shim: &Shim) -> Result<Ledger<ServiceState>, Error> {
    let path = folder.join("state.json");
    match Ledger::open(&path, ServiceState::default()) {
        Err(error @ longshore_service::Error::Content { .. }) => {
            let aside = folder.join("state.json.broken");
            tracing::error!(%error, aside = %aside.display(), "what was known of a service is lost; the file is set aside");
            fs::rename(&path, &aside).map_err(Error::io(&path))?;
            let port = shim.spec().and_then(|spec| spec.environment.get("PORT")?.parse().ok());
            let mut state = Ledger::open(&path, ServiceState::default())?;
            state.update(|state| state.port = port)?;
            Ok(state)
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_looked_at_together_and_each_second() {
        let began = Instant::now();
        let ms = Duration::from_millis;
        for (asked, interval, now, due) in [
            (0, 1_000, 990, true),
            (10, 1_000, 1_001, true),
            (0, 1_000, 100, false),
            (0, 3_000, 2_001, false),
            (0, 3_000, 2_999, true),
        ] {
            assert_eq!(is_due(Some(began + ms(asked)), ms(interval), began + ms(now)), due, "{interval} at {now}");
        }
        for (now, next) in [(0, 1_000), (1, 1_000), (999, 1_000), (1_000, 2_000), (86_400_500, 86_401_000)] {
            assert_eq!(next_look(began, began + ms(now)) - began, ms(next), "at {now}");
        }
    }
}
