//! From one release to the next, and back: carries out the steps of [`lifecycle`](longshore_node_policy::lifecycle).
//!
//! What was decided is on disk before it is done, so that an agent that was killed in between goes on from there:
//!
//! ```text
//!  killed before the switch was decided ─▶ the release is installed anew, from before_fetch on
//!  killed after it, at any step         ─▶ the plan proves it: what runs is stopped by its own hooks, then before_start and so on
//!  killed while it goes back            ─▶ before the one before is current again: as above; after it: that one is resumed
//! ```
//!
//! A hook that ran when the agent was killed is killed too, by its runner.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use longshore_node_policy::lifecycle::{self, Act, HookName, Start};
use longshore_schemas::{
    ArtifactId,
    events::{NodeStatus, StringMap},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{LOOK, Service};
use crate::{
    Error, account, environment,
    goals::{Goals, Wanted},
    health::Prober,
    hooks::{self, Mark, Switch},
    plan::{Release, ServiceState},
    shim::ShimSpec,
    takeover,
    watch::Watch,
};

/// Free space without which nothing is switched.
const ROOM_BYTES: usize = 256 * 1024;

impl Service {
    /// Fetches a release and switches to it.
    pub(super) async fn install(
        &mut self,
        wanted: &Wanted,
        release: Release,
        goals: &mut watch::Receiver<Goals>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        // Whatever becomes of the new one, and however long that takes: what was proved goes on.
        self.go_on(shutdown).await?;
        // Before its hooks are run, which are a part of it.
        self.shared.goals.confirm(&self.name)?;
        self.keep(Some(release.artifact));
        // What comes now may turn out to be surplus.
        self.cleaned = None;
        self.take_port()?;
        self.report(wanted, NodeStatus::Fetching, None);
        if self.prepared.as_ref() != Some(&release) {
            let prepared = tokio::select! {
                prepared = self.prepare(&release) => prepared,
                () = self.other_target(wanted, goals) => return Ok(()),
                () = shutdown.cancelled() => return Ok(()),
            };
            match prepared {
                Err(Error::Unhealthy(reason)) => return self.refuse(wanted, &release, &reason),
                other => other?,
            }
            // Once is enough, however often the bytes are tried for.
            self.prepared = Some(release.clone());
        }
        let (shared, name) = (self.shared.clone(), self.name.clone());
        let mut ensuring = std::pin::pin!(shared.releases.ensure(&name, release.artifact));
        loop {
            tokio::select! {
                ensured = &mut ensuring => break drop(ensured?),
                () = self.other_target(wanted, goals) => return Ok(()),
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            self.go_on(shutdown).await?;
        }
        self.prepared = None;
        self.report(wanted, NodeStatus::Staged, None);
        self.activate(wanted, release, true, shutdown).await
    }

    /// Starts what was proved and does not run, while something else is wanted and not there yet.
    async fn go_on(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let is_proved = self.state.content().current.as_ref().is_some_and(|current| current.healthy);
        match is_proved {
            true => self.ensure_running(shutdown).await,
            false => Ok(()),
        }
    }

    /// What can be known before the bytes are there: its environment, its user, and what its `before_fetch` says.
    async fn prepare(&self, release: &Release) -> Result<(), Error> {
        let spec = self.spec(release, environment::take(&self.folder, release)?)?;
        let old = self.state.content().current.as_ref().map(|current| current.artifact);
        self.hook(HookName::BeforeFetch, release, &spec, old).await
    }

    /// The release is not taken: what runs goes on running.
    fn refuse(&mut self, wanted: &Wanted, release: &Release, reason: &str) -> Result<(), Error> {
        tracing::warn!(service = %self.name, reason, "the release is not taken");
        self.state.update(|state| state.refused(release, reason))?;
        let back = self.state.content().current.as_ref().is_some_and(|current| current.healthy);
        let status = if back { NodeStatus::RolledBack } else { NodeStatus::Failed };
        self.report(wanted, status, Some(reason.to_owned()));
        Ok(())
    }

    /// Stops the old release, starts the new one, and goes back if it is no good.
    pub(super) async fn activate(
        &mut self,
        wanted: &Wanted,
        release: Release,
        switch: bool,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        // What was believed when it was fetched may have been disowned since. Then what ran before it runs again.
        let goal = self.shared.goals.confirm(&self.name);
        match goal.and_then(|()| self.shared.releases.confirm(release.artifact)) {
            Err(Error::Refused(reason)) if !switch && !self.shim.is_running() => {
                return self.go_back(wanted, &release, &reason, shutdown).await;
            }
            other => other?,
        }
        // Nothing is stopped for a release that a full disk would not let start.
        self.check_room()?;
        self.take_port()?;
        if switch {
            takeover::forget_failure(&self.shared.folders, release.artifact)?;
            self.state.update(|state| state.switched(release.clone()))?;
        }
        // An agent on trial does not stop what watches over it.
        let watched =
            !switch && self.shim.is_running() && takeover::is_on_trial(&self.shared.folders, release.artifact)?;
        if !watched {
            self.stop_running(Some(release.artifact)).await?;
            self.link_current()?;
        }
        self.report(wanted, NodeStatus::Starting, None);
        let old = self.state.content().earlier.first().map(|earlier| earlier.artifact);
        let start = if watched { Start::ProveRunning } else { Start::Prove };
        match self.start(start, &release, old, shutdown).await {
            Ok(()) => {
                takeover::accept(&self.shared.folders, release.artifact)?;
                self.state.update(ServiceState::proved)?;
                self.watch_anew();
                self.report(wanted, NodeStatus::Healthy, None);
                Ok(())
            }
            Err(Error::Unhealthy(reason)) => self.go_back(wanted, &release, &reason, shutdown).await,
            Err(error) => Err(error),
        }
    }

    async fn go_back(
        &mut self,
        wanted: &Wanted,
        failed: &Release,
        reason: &str,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        tracing::warn!(service = %self.name, reason, "the release failed");
        self.stop_running(self.state.content().earlier.first().map(|earlier| earlier.artifact)).await?;
        takeover::withdraw(&self.shared.folders, failed.artifact, reason)?;
        self.state.update(|state| state.gave_way(reason))?;
        self.link_current()?;
        let Some(before) = self.state.content().current.clone() else {
            self.report(wanted, NodeStatus::Failed, Some(reason.to_owned()));
            return Ok(());
        };
        // It is not read first, as that takes a while. The release that failed may have spoilt what the two share.
        self.drift.look_soon();
        match self.start(Start::Prove, &before, Some(failed.artifact), shutdown).await {
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

    /// Carries out the steps of a start. An agent that is told to stop leaves the question open; its next start asks it again.
    async fn start(
        &self,
        start: Start,
        release: &Release,
        old: Option<ArtifactId>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let spec = self.spec(release, environment::kept(&self.folder, release)?)?;
        for act in lifecycle::starting(start, &release.run.hooks) {
            let acting = async {
                match act {
                    Act::Hook(name) => self.hook(name, release, &spec, old).await,
                    Act::Health => self.prober(release).prove().await,
                    Act::Start => self.shim.start(&spec).await,
                    Act::Stop => self.shim.stop().await,
                }
            };
            shutdown.run_until_cancelled(acting).await.unwrap_or(Err(Error::Stopping))?;
        }
        Ok(())
    }

    async fn hook(
        &self,
        name: HookName,
        release: &Release,
        spec: &ShimSpec,
        old: Option<ArtifactId>,
    ) -> Result<(), Error> {
        let Some(hook) = name.of(&release.run.hooks) else { return Ok(()) };
        let switch = Switch { old, new: Some(release.artifact) };
        hooks::run(&self.folder, (name, hook), spec, switch).await.map(drop)
    }

    /// Stops what runs, by the hooks of its own release. What they complained of goes with the next reports.
    pub(super) async fn stop_running(&mut self, new: Option<ArtifactId>) -> Result<(), Error> {
        let complaints = hooks::stop(&self.folder, new).await?;
        self.complaint = (!complaints.is_empty()).then(|| complaints.join("\n"));
        Ok(())
    }

    /// A shim that died is started again; what a living one runs is its own affair.
    pub(super) async fn ensure_running(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let owed = Mark::resuming(&self.folder);
        let (running, Some(release)) = (self.shim.is_running(), self.state.content().current.clone()) else {
            return if self.shim.is_running() { self.stop_running(None).await } else { Ok(()) };
        };
        if running && !owed.is_set() {
            return Ok(());
        }
        let start = if running { Start::Resumed } else { Start::Resume };
        if !running {
            tracing::info!(service = %self.name, artifact = %release.artifact, "starting");
            self.link_current()?;
        }
        if release.run.hooks.after_start.is_some() {
            owed.set()?;
        }
        self.start(start, &release, None, shutdown).await?;
        owed.clear()
    }

    /// An error unless there is space for what switching and starting write, and for some of what the service logs.
    fn check_room(&self) -> Result<(), Error> {
        let path = self.folder.join("room");
        let written = fs::write(&path, vec![0; ROOM_BYTES]).map_err(Error::io(&path));
        // It may not even have been made.
        let _ = fs::remove_file(&path);
        written
    }

    fn take_port(&mut self) -> Result<(), Error> {
        let had = self.state.content().port;
        let port = self.shared.ports.of(&self.name, had)?;
        if had != Some(port) {
            self.state.update(|state| state.port = Some(port))?;
        }
        Ok(())
    }

    pub(super) fn watch_anew(&mut self) {
        (self.watch, self.asked_at) = (Watch::default(), None);
    }

    pub(super) fn prober<'a>(&'a self, release: &'a Release) -> Prober<'a> {
        Prober {
            http: &self.shared.http,
            check: &release.run.health,
            host: &self.shared.host,
            port: self.state.content().port.unwrap_or_default(),
            shim: &self.shim,
            folder: &self.folder,
        }
    }

    /// How a release is run, with what its environment files said.
    fn spec(&self, release: &Release, variables: StringMap) -> Result<ShimSpec, Error> {
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
        environment.extend(variables);
        let account = account::of(release.run.user.as_deref(), release.run.group.as_deref())?;
        let folder = self.shared.folders.releases().join(release.artifact.to_string());
        Ok(ShimSpec::new(&release.run, &folder, environment, account))
    }

    /// Where `current` is to point.
    pub(super) fn current_target(&self) -> Option<PathBuf> {
        let current = self.state.content().current.as_ref()?;
        Some(Path::new("../../releases").join(current.artifact.to_string()))
    }

    /// Points `current` at the current release, in one step.
    pub(super) fn link_current(&self) -> Result<(), Error> {
        let link = self.folder.join("current");
        let Some(target) = self.current_target() else {
            return match fs::remove_file(&link) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&link)(error)),
                _ => Ok(()),
            };
        };
        let new = self.folder.join("current.new");
        // Left by an agent that died between these two steps.
        let _ = fs::remove_file(&new);
        symlink(target, &new).map_err(Error::io(&new))?;
        fs::rename(&new, &link).map_err(Error::io(&link))
    }
}
