//! One task per service: asks [`plan`](crate::plan) what is next, and does it, one step at a time.
//!
//! A release that was proved is watched as long as it is the goal's ([`watch`](crate::watch)), and how it does is reported.
//!
//! A goal that changes while bytes are on their way ends the fetch at once. Once the switch has begun it is carried to its
//! end, healthy or back; then the plan is asked again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use longshore_schemas::{
    ArtifactId, NodeId, ServiceName, ZoneName,
    events::{NodeStatus, RegionalGoal, StringMap},
    stream::NodeReport,
};
use longshore_service::{ledger::Ledger, retry::Backoff};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Folders,
    goals::{GoalKeeper, Goals, Wanted},
    health,
    plan::{self, Release, ServiceState, Step},
    releases::Releases,
    reports::Reports,
    shim::{Shim, ShimSpec},
    watch::Watch,
};

/// How often a settled service is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The health check of a release that was proved is not asked less often than this, however patient it is.
const ASK_MAX: Duration = Duration::from_secs(10);
/// Ports that a node's services may use, from its base on.
pub const PORTS: u16 = 16;
/// Free space without which nothing is switched.
const ROOM_BYTES: usize = 256 * 1024;
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
    /// What each service keeps on disk.
    pub kept: Mutex<BTreeMap<ServiceName, BTreeSet<ArtifactId>>>,
}

/// Which service has which port.
pub struct Ports {
    pub base: u16,
    taken: Mutex<BTreeMap<u16, ServiceName>>,
}

impl Ports {
    pub fn new(base: u16) -> Self {
        Self { base, taken: Mutex::default() }
    }

    /// The service's port: the one it had, or the lowest that is free.
    fn of(&self, service: &ServiceName, had: Option<u16>) -> Result<u16, Error> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = |port: &u16| taken.get(port).is_none_or(|other| other == service);
        let free = |port: &u16| own(port) && std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok();
        let range = self.base..self.base.saturating_add(PORTS);
        let port = had.filter(own).or_else(|| range.into_iter().find(free));
        let port = port.ok_or(Error::NoPort { base: self.base, tried: PORTS })?;
        taken.insert(port, service.clone());
        Ok(port)
    }
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
}

impl Service {
    /// Reads what is known of the service, and keeps what its goal wants from being removed.
    pub fn open(goal: &RegionalGoal, shared: Arc<Shared>) -> Result<Self, Error> {
        let name = &goal.service;
        let folder = shared.folders.service(name);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let shim = Shim::of(&folder);
        let state = open_state(&folder, &shim)?;
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
                self.ensure_running().await?;
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
                self.clean(goals).await;
                // Whichever ends it, the plan is asked again.
                let _ = shutdown.run_until_cancelled(tokio::time::timeout(LOOK, goals.changed())).await;
                Ok(())
            }
            Step::Install(release) => {
                self.shared.goals.confirm(&self.name)?;
                self.keep(Some(release.artifact));
                // What comes now may turn out to be surplus.
                self.cleaned = None;
                self.report(wanted, NodeStatus::Fetching, None);
                let ensured = tokio::select! {
                    ensured = self.shared.releases.ensure(&self.name, release.artifact) => ensured,
                    () = self.other_target(wanted, goals) => return Ok(()),
                    () = shutdown.cancelled() => return Ok(()),
                };
                ensured?;
                self.report(wanted, NodeStatus::Staged, None);
                self.activate(wanted, release, true, shutdown).await
            }
            Step::Prove(release) => self.activate(wanted, release, false, shutdown).await,
            Step::Stop => {
                self.shim.stop().await?;
                self.state.update(ServiceState::stopped)?;
                self.link_current()
            }
        }
    }

    /// How the current release does, and if it is not well, why.
    async fn look(&mut self) -> (NodeStatus, Option<String>) {
        let content = self.state.content();
        let Some(current) = content.current.clone() else { return (NodeStatus::Healthy, None) };
        let check = &current.run.health;
        let interval = Duration::from_millis(check.interval_ms.into()).clamp(LOOK, ASK_MAX);
        let ask = self.asked_at.is_none_or(|at| at.elapsed() >= interval);
        let port = content.port.unwrap_or_default();
        let seen = health::look(&self.shared.http, check, &self.shared.host, port, &self.shim, ask).await;
        if ask {
            self.asked_at = Some(Instant::now());
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

    /// Stops the old release, starts the new one, and goes back if it is no good.
    async fn activate(
        &mut self,
        wanted: &Wanted,
        release: Release,
        switch: bool,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        // What was believed when it was fetched may have been disowned since.
        self.shared.goals.confirm(&self.name)?;
        self.shared.releases.confirm(release.artifact)?;
        // Nothing is stopped for a release that a full disk would not let start.
        self.check_room()?;
        let port = self.shared.ports.of(&self.name, self.state.content().port)?;
        self.state.update(|state| {
            state.port = Some(port);
            if switch {
                state.switched(release.clone());
            }
        })?;
        self.shim.stop().await?;
        self.link_current()?;
        self.report(wanted, NodeStatus::Starting, None);
        match self.start_and_check(&release, shutdown).await {
            Ok(()) => {
                self.state.update(ServiceState::proved)?;
                (self.watch, self.asked_at) = (Watch::default(), None);
                self.report(wanted, NodeStatus::Healthy, None);
                Ok(())
            }
            Err(Error::Unhealthy(reason)) => self.go_back(wanted, &reason, shutdown).await,
            Err(error) => Err(error),
        }
    }

    async fn go_back(&mut self, wanted: &Wanted, reason: &str, shutdown: &CancellationToken) -> Result<(), Error> {
        tracing::warn!(service = %self.name, reason, "the release failed");
        self.shim.stop().await?;
        self.state.update(|state| state.gave_way(reason))?;
        self.link_current()?;
        let Some(before) = self.state.content().current.clone() else {
            self.report(wanted, NodeStatus::Failed, Some(reason.to_owned()));
            return Ok(());
        };
        match self.start_and_check(&before, shutdown).await {
            Ok(()) => self.report(wanted, NodeStatus::RolledBack, Some(reason.to_owned())),
            Err(Error::Unhealthy(again)) => {
                let reason = format!("{reason}\nand the release before it, {}, failed too: {again}", before.artifact);
                self.state.update(|state| state.failed_again(&reason))?;
                self.report(wanted, NodeStatus::Failed, Some(reason));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// An agent that is told to stop leaves the question open; its next start asks it again.
    async fn start_and_check(&self, release: &Release, shutdown: &CancellationToken) -> Result<(), Error> {
        self.shim.start(&self.spec(release)).await?;
        let port = self.state.content().port.unwrap_or_default();
        let check = health::check(&self.shared.http, &release.run.health, &self.shared.host, port, &self.shim);
        shutdown.run_until_cancelled(check).await.unwrap_or(Err(Error::Stopping))
    }

    /// An error unless there is space for what switching and starting write, and for some of what the service logs.
    fn check_room(&self) -> Result<(), Error> {
        let path = self.folder.join("room");
        let written = fs::write(&path, vec![0; ROOM_BYTES]).map_err(Error::io(&path));
        // It may not even have been made.
        let _ = fs::remove_file(&path);
        written
    }

    /// A shim that died is started again; what a living one runs is its own affair.
    async fn ensure_running(&mut self) -> Result<(), Error> {
        match self.state.content().current.clone() {
            Some(release) if !self.shim.is_running() => {
                tracing::info!(service = %self.name, artifact = %release.artifact, "starting");
                self.link_current()?;
                self.shim.start(&self.spec(&release)).await
            }
            None if self.shim.is_running() => self.shim.stop().await,
            _ => Ok(()),
        }
    }

    fn spec(&self, release: &Release) -> ShimSpec {
        let port = self.state.content().port.unwrap_or_default();
        let own = [
            ("PATH", std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into())),
            ("PORT", port.to_string()),
            ("SERVICE", self.name.to_string()),
            ("ARTIFACT", release.artifact.to_string()),
            ("NODE", self.shared.node.to_string()),
        ];
        let mut environment: StringMap = own.map(|(name, value)| (name.to_owned(), value)).into();
        environment.extend(release.run.environment.clone());
        ShimSpec::new(&release.run, &self.release_folder(release.artifact), environment)
    }

    fn release_folder(&self, artifact: ArtifactId) -> PathBuf {
        self.shared.folders.releases().join(artifact.to_string())
    }

    /// Points `current` at the current release, in one step.
    fn link_current(&self) -> Result<(), Error> {
        let link = self.folder.join("current");
        let Some(current) = &self.state.content().current else {
            return match fs::remove_file(&link) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&link)(error)),
                _ => Ok(()),
            };
        };
        let target = Path::new("../../releases").join(current.artifact.to_string());
        let new = self.folder.join("current.new");
        // Left by an agent that died between these two steps.
        let _ = fs::remove_file(&new);
        symlink(target, &new).map_err(Error::io(&new))?;
        fs::rename(&new, &link).map_err(Error::io(&link))
    }

    fn report(&self, wanted: &Wanted, status: NodeStatus, message: Option<String>) {
        let runs = self.state.content().current.is_some();
        self.shared.reports.say(NodeReport {
            service: self.name.clone(),
            version: wanted.version,
            artifact: wanted.target.as_ref().map(|target| target.artifact),
            status,
            port: self.state.content().port.filter(|_| runs),
            message,
        });
    }

    /// Notes which artifacts this service needs on disk.
    fn keep(&self, also: Option<ArtifactId>) {
        let kept = self.state.content().kept().chain(also).collect();
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(self.name.clone(), kept);
    }

    /// What all services keep, if each of them has said so: one that could not be opened may still run.
    fn kept_by_all(&self, goals: &watch::Receiver<Goals>) -> Option<BTreeSet<ArtifactId>> {
        let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let complete = goals.borrow().keys().all(|service| kept.contains_key(service));
        complete.then(|| kept.values().flatten().copied().collect())
    }

    /// Has removed what no service keeps. Trouble with that is no trouble of the service.
    async fn clean(&mut self, goals: &watch::Receiver<Goals>) {
        let Some(kept) = self.kept_by_all(goals).filter(|kept| self.cleaned.as_ref() != Some(kept)) else { return };
        // Another service may have begun to use one since.
        let still = || self.kept_by_all(goals).filter(|now| *now == kept);
        match self.shared.releases.clean(still).await {
            Ok(true) => self.cleaned = Some(kept),
            Ok(false) => {}
            Err(error) => tracing::warn!(service = %self.name, %error, "old releases cannot be removed"),
        }
    }
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

/// Stops every service that a node's folder knows of, and their shims.
pub async fn stop_all(folders: &Folders) -> Result<(), Error> {
    let folder = folders.services();
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(()) };
    let stops = entries.flatten().map(|entry| async move { Shim::of(&entry.path()).stop().await });
    for stopped in futures::future::join_all(stops).await {
        stopped?;
    }
    Ok(())
}
