//! Runs hooks, one at a time for each service, as the service itself is run; and stops a service with those of its release.
//!
//! That something was begun and not ended is a file in the service's folder ([`Mark`]), which whoever comes next finds: the next
//! agent after a `kill -9`, or `longshore-node stop-services`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use longshore_node_policy::lifecycle::{self, Act, HookName, Old, OnFailure};
use longshore_schemas::{ArtifactId, events::Hook};
use longshore_service::durable;

use crate::{
    Error,
    shim::{
        Shim, ShimSpec,
        once::{Once, OnceSpec},
    },
};

/// Below the service's folder: where its hooks are run, and their output is kept.
pub const FOLDER: &str = "hooks";

/// What a hook is told of the switch that it belongs to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Switch {
    pub old: Option<ArtifactId>,
    pub new: Option<ArtifactId>,
}

/// Runs a hook of the release that `service` is the run of. One that fails is `Unhealthy`; that of a stop a complaint, with
/// which the stop goes on.
pub async fn run(
    folder: &Path,
    (name, hook): (HookName, &Hook),
    service: &ShimSpec,
    switch: Switch,
) -> Result<Option<String>, Error> {
    // The bytes may not be there yet.
    let place = if name == HookName::BeforeFetch { folder } else { &service.folder };
    let timeout = Duration::from_secs(hook.timeout_seconds.max(1).into());
    let mut spec = OnceSpec::new(format!("the hook {}", name.as_str()), &hook.command, place, timeout);
    spec.environment = service.environment.clone();
    let text = |artifact: Option<ArtifactId>| artifact.map_or_else(String::new, |artifact| artifact.to_string());
    let own = [
        ("LONGSHORE_HOOK", name.as_str().to_owned()),
        ("LONGSHORE_SERVICE", service.environment.get("SERVICE").cloned().unwrap_or_default()),
        ("LONGSHORE_OLD_ARTIFACT", text(switch.old)),
        ("LONGSHORE_NEW_ARTIFACT", text(switch.new)),
    ];
    spec.environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
    spec.account = service.account;
    let Err(reason) = Once::of(&folder.join(FOLDER)).run(&spec).await? else { return Ok(None) };
    tracing::warn!(folder = %folder.display(), hook = name.as_str(), reason, "a hook failed");
    match name.on_failure() {
        OnFailure::GoOn => Ok(Some(reason)),
        OnFailure::Refuse | OnFailure::GoBack => Err(Error::Unhealthy(reason)),
    }
}

/// Stops what runs in a service's folder, with the stop hooks of the release that runs. Returns once nothing of it is left, and what
/// the hooks that failed said.
pub async fn stop(folder: &Path, new: Option<ArtifactId>) -> Result<Vec<String>, Error> {
    let (shim, begun) = (Shim::of(folder), Mark::stopping(folder));
    let Some(service) = shim.spec() else {
        shim.stop().await?;
        return Ok(Vec::new());
    };
    let old = match (shim.is_running(), begun.is_set()) {
        (true, _) => Old::Runs,
        (false, true) => Old::Halfway,
        (false, false) => Old::Gone,
    };
    if old == Old::Runs && service.hooks.after_stop.is_some() {
        begun.set()?;
    }
    let artifact = service.environment.get("ARTIFACT").and_then(|artifact| artifact.parse().ok());
    let mut complaints = Vec::new();
    for act in lifecycle::stopping(old, &service.hooks) {
        match act {
            Act::Hook(name) => {
                let Some(hook) = name.of(&service.hooks) else { continue };
                complaints.extend(run(folder, (name, hook), &service, Switch { old: artifact, new }).await?);
            }
            _ => shim.stop().await?,
        }
    }
    begun.clear()?;
    Ok(complaints)
}

/// Stops every service that a node's folder knows of, with its hooks, and their shims.
pub async fn stop_all(services: &Path) -> Result<(), Error> {
    let Ok(entries) = fs::read_dir(services) else { return Ok(()) };
    let stops = entries.flatten().map(|entry| async move { stop(&entry.path(), None).await });
    for stopped in futures::future::join_all(stops).await {
        stopped?;
    }
    Ok(())
}

/// That something was begun whose end is owed, also after a restart.
#[derive(Debug)]
pub struct Mark(PathBuf);

impl Mark {
    /// A stop: `after_stop` is owed.
    pub fn stopping(folder: &Path) -> Self {
        Self(folder.join("stopping"))
    }

    /// A start of a release that was proved before: `after_start` is owed.
    pub fn resuming(folder: &Path) -> Self {
        Self(folder.join("resuming"))
    }

    pub fn is_set(&self) -> bool {
        self.0.exists()
    }

    pub fn set(&self) -> Result<(), Error> {
        Ok(durable::write(&self.0, b"", durable::SHARED_MODE)?)
    }

    pub fn clear(&self) -> Result<(), Error> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.0)(error)),
            _ => Ok(()),
        }
    }
}
