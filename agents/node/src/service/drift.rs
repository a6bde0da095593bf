//! What others changed behind the agent's back: a file of the release that runs, or where `current` points. It is seen, reported and
//! mended; what ran on wrong bytes is started again.

use std::path::Path;

use longshore_schemas::{ArtifactId, events::NodeStatus};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::Service;
use crate::{
    Error,
    goals::{Goals, Wanted},
};

/// Bytes a second that looking at a release may read.
const RATE: u64 = 64 * 1024 * 1024;

/// A look at a release that is under way.
#[derive(Debug)]
pub(super) struct Looking {
    artifact: ArtifactId,
    task: JoinHandle<Result<Option<String>, Error>>,
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known of the release that runs.
#[derive(Debug)]
pub(super) struct Drift {
    looking: Option<Looking>,
    /// When to look next.
    due: Instant,
    /// What was found and is not mended yet.
    found: Option<(ArtifactId, String)>,
}

impl Drift {
    pub(super) fn new(due: Instant) -> Self {
        Self { looking: None, due, found: None }
    }

    /// Looks as soon as nothing else is to be done.
    pub(super) fn look_soon(&mut self) {
        self.due = Instant::now();
    }
}

impl Service {
    /// Looks now and then whether the release that runs is still what it was, and mends what is not.
    pub(super) async fn mend(
        &mut self,
        wanted: &Wanted,
        goals: &mut watch::Receiver<Goals>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let Some(artifact) = self.state.content().current.as_ref().map(|current| current.artifact) else {
            return Ok(());
        };
        self.mend_link()?;
        self.look_for_drift(artifact).await;
        let Some((_, what)) = self.drift.found.clone().filter(|(of, _)| *of == artifact) else { return Ok(()) };
        self.report(wanted, NodeStatus::Starting, Some(format!("drift: {what}; it is fetched and started again")));
        tokio::select! {
            mended = self.shared.releases.mend(&self.name, artifact) => mended?,
            () = self.other_target(wanted, goals) => return Ok(()),
            () = shutdown.cancelled() => return Ok(()),
        }
        self.drift.found = None;
        // Started again by whoever sees that it does not run.
        self.stop_running(Some(artifact)).await?;
        self.watch_anew();
        self.complaint = Some(format!("drift was mended: {what}"));
        Ok(())
    }

    async fn look_for_drift(&mut self, artifact: ArtifactId) {
        let drift = &mut self.drift;
        drift.looking.take_if(|looking| looking.artifact != artifact);
        if drift.looking.is_none() && Instant::now() >= drift.due {
            let shared = self.shared.clone();
            let task = tokio::spawn(async move { shared.releases.differs(artifact, Some(RATE)).await });
            drift.looking = Some(Looking { artifact, task });
        }
        let Some(mut looking) = drift.looking.take_if(|looking| looking.task.is_finished()) else { return };
        drift.due = Instant::now() + self.shared.drift_interval;
        match (&mut looking.task).await {
            Ok(Ok(found)) => drift.found = found.map(|what| (artifact, what)),
            Ok(Err(error)) => tracing::warn!(service = %self.name, %error, "the release cannot be looked at"),
            Err(error) => tracing::warn!(service = %self.name, %error, "looking at the release ended"),
        }
        if let Some((_, what)) = &drift.found {
            tracing::warn!(service = %self.name, %artifact, what, "the release is not what it was");
        }
    }

    /// Sets `current` back if it points elsewhere.
    fn mend_link(&self) -> Result<(), Error> {
        let Some(target) = self.current_target() else { return Ok(()) };
        let found = std::fs::read_link(self.folder.join("current")).ok();
        if found.as_deref() == Some(Path::new(&target)) {
            return Ok(());
        }
        tracing::warn!(service = %self.name, ?found, "current pointed elsewhere and is set back");
        self.link_current()
    }
}
