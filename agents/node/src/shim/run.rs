//! The shim's own side.

use std::{fs::File, path::Path, time::Duration};

use longshore_schemas::events::StopSignal;
use longshore_service::{durable, now};
use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, timeout},
};

use super::{
    POLL, Shim, ShimSpec, ShimStatus,
    limited::{self, Limited},
    lock_path,
    log::RotatedLog,
    log_folder, pid,
    program::Program,
    status_path, tree,
};
use crate::{Error, private_file};

const RESTART_FIRST: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A service that ran for so long starts with the short wait again.
const RAN_WELL: Duration = Duration::from_secs(60);
/// Whoever asks whether the shim lives holds its lock for a moment; longer, and it is another shim.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often processes that the service left to the shim are collected.
const REAP: Duration = Duration::from_secs(5);

/// `longshore-node shim --folder FOLDER`: runs until SIGTERM.
pub async fn main(folder: &Path) -> Result<(), Error> {
    let lock = keep(folder).await?;
    let spec = Shim::of(folder).spec().ok_or_else(|| Error::Refused("shim.json is missing or broken".into()))?;
    let log = RotatedLog::open(&log_folder(folder), &spec.log).map_err(Error::io(folder))?;
    log.begin("a release");
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io(folder))?;
    let mut running = Running { folder, spec, log, limited: None, status: ShimStatus::default() };
    running.status.shim_pid = std::process::id();
    running.hold();
    running.write_status()?;
    tokio::select! {
        () = running.supervise() => {}
        _ = terminate.recv() => {}
    }
    running.stop().await;
    drop(lock);
    Ok(())
}

/// Makes this process the keeper of what is run in a folder, as long as the lock is held: in a session of its own, and parent of
/// whatever its children leave behind.
pub(super) async fn keep(folder: &Path) -> Result<File, Error> {
    // An error means that it leads a session already.
    let _ = rustix::process::setsid();
    let lock = private_file(&lock_path(folder)).map_err(Error::io(folder))?;
    own(&lock).await.map_err(|_| Error::Refused(format!("another shim runs in {}", folder.display())))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| Error::io(folder)(error.into()))?;
    Ok(lock)
}

async fn own(lock: &File) -> Result<(), rustix::io::Errno> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(_) if Instant::now() < deadline => sleep(POLL).await,
            result => return result,
        }
    }
}

struct Running<'a> {
    folder: &'a Path,
    spec: ShimSpec,
    log: RotatedLog,
    /// How what it starts is held to its limits, if it has any.
    limited: Option<Limited>,
    status: ShimStatus,
}

impl Running<'_> {
    fn write_status(&self) -> Result<(), Error> {
        let json = serde_json::to_vec(&self.status).map_err(|error| Error::Refused(error.to_string()))?;
        Ok(durable::write(&status_path(self.folder), &json, durable::PRIVATE_MODE)?)
    }

    /// A full disk loses the status, never the service.
    fn tell(&self) {
        if let Err(error) = self.write_status() {
            self.log.note(&format!("the status cannot be written: {error}"));
        }
    }

    fn hold(&mut self) {
        if self.spec.limits.is_none() {
            return;
        }
        let service = self.folder.file_name().unwrap_or_default().to_string_lossy();
        let (limited, words) = limited::hold(&service, &self.spec.limits, self.spec.account);
        self.log.note(&format!("limits: {}", words.join("; ")));
        (self.limited, self.status.limits) = (Some(limited), words);
    }

    /// Starts the service again and again.
    async fn supervise(&mut self) {
        let mut wait = RESTART_FIRST;
        loop {
            let begun = Instant::now();
            let ended = match self.start() {
                Ok(mut child) => {
                    self.status.pid = child.id();
                    self.status.started_at = Some(now());
                    self.tell();
                    self.wait(&mut child).await
                }
                Err(error) => error.to_string(),
            };
            self.log.note(&format!("the service ended: {ended}"));
            self.status = ShimStatus {
                pid: None,
                exits: self.status.exits.saturating_add(1),
                last_exit: Some(ended),
                ..self.status.clone()
            };
            self.tell();
            if begun.elapsed() > RAN_WELL {
                wait = RESTART_FIRST;
            }
            // What the ended process left behind would hold the port.
            tree::kill_descendants().await;
            sleep(wait).await;
            wait = (wait * 2).min(RESTART_MAX);
        }
    }

    /// Waits for the service's process, and meanwhile collects those that it left behind.
    async fn wait(&self, child: &mut Child) -> String {
        loop {
            match timeout(REAP, child.wait()).await {
                Ok(Ok(status)) => return status.to_string(),
                Ok(Err(error)) => return format!("cannot be waited for: {error}"),
                Err(_) => {
                    tree::reap_adopted(self.status.pid.and_then(pid));
                    if Shim::of(self.folder).status().as_ref() != Some(&self.status) {
                        self.tell();
                    }
                }
            }
        }
    }

    fn start(&self) -> Result<Child, Error> {
        let ShimSpec { command, folder, environment, account, .. } = &self.spec;
        let program =
            Program { command, folder, environment, account: account.as_ref(), limited: self.limited.as_ref() };
        let (output, _) = self.log.writer().map_err(Error::io(self.folder))?;
        program.start(self.folder, output)
    }

    /// The stop signal to the service's process group, then after its grace SIGKILL to all that is left.
    async fn stop(&mut self) {
        let signal = match self.spec.stop_signal {
            StopSignal::Term => Signal::TERM,
            StopSignal::Int => Signal::INT,
            StopSignal::Quit => Signal::QUIT,
            StopSignal::Hup => Signal::HUP,
        };
        if let Some(group) = self.status.pid.and_then(pid) {
            // It may have ended just now.
            let _ = rustix::process::kill_process_group(group, signal);
            let grace = Duration::from_secs(self.spec.stop_seconds.into());
            if timeout(grace, tree::childless()).await.is_err() {
                self.log.note("the service did not stop in time and is killed");
            }
        }
        tree::kill_descendants().await;
        if let Some(limited) = &self.limited {
            limited.let_go();
        }
        self.status.pid = None;
        self.tell();
    }
}
