//! The shim: a small process per service that owns the service's processes, log and exit status, and outlives the agent.
//!
//! ```text
//!  agent ──shim.json──▶ shim ──starts, restarts──▶ service (its own process group)
//!        ◀─status.json─   │ ◀──────output──────────┘
//!        ──SIGTERM──▶     └──▶ log/current, log/1 …
//! ```
//!
//! All that the two share is files in the service's folder, so that an agent that restarts finds the shim again: the shim
//! holds a lock on `shim.lock` as long as it lives, and writes `status.json` at each change. SIGTERM to the shim stops the
//! service: the release's stop signal, then after its grace SIGKILL for the whole tree, for which the shim is subreaper.
//!
//! A service that ends is started again, after 1 s, then twice as long each time up to 30 s, until the shim is told to stop.
//!
//! The agent may be killed, restarted or replaced at any moment: the shim does not notice. If the shim itself is killed, its
//! service goes on, but nobody restarts it or knows how it ends. Its processes cannot be adopted by another; so the agent, which
//! notices within a second, ends them, children in other sessions too, and starts the service under a new shim. They are found by
//! [`MARK`] in their environment. What it cannot do: find a process that cleared its environment and whose shim was killed.
//!
//! Neither file is trusted: `status.json` may be old, cut off or nonsense. Nobody is signalled before `/proc` says that he is this
//! folder's shim, and a shim that does not stop in time is killed, with what it ran.

mod log;
mod tree;

pub use self::log::LOG_BYTES_MAX;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use longshore_schemas::{
    Timestamp,
    events::{RunSpec, StopSignal, StringMap},
};
use longshore_service::durable;
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal},
};
use serde::{Deserialize, Serialize};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, timeout},
};

use crate::Error;
use log::RotatedLog;

const RESTART_FIRST: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A service that ran for so long starts with the short wait again.
const RAN_WELL: Duration = Duration::from_secs(60);
/// How often files are looked at while something is waited for.
const POLL: Duration = Duration::from_millis(20);
/// A shim must be up within this.
const START: Duration = Duration::from_secs(10);
/// What a shim may take to stop beyond the service's own grace.
const STOP_EXTRA: Duration = Duration::from_secs(10);

const OWN_PROGRAM: &str = "/proc/self/exe";
/// What the shim calls itself.
const OWN_NAME: &str = "longshore-node";
/// In the environment of every process of a service: the folder of its shim.
pub const MARK: &str = "LONGSHORE_SHIM";
/// The grace of a service whose `shim.json` cannot be read.
const STOP_SECONDS_UNKNOWN: u32 = 60;
/// Whoever asks whether the shim lives holds its lock for a moment; longer, and it is another shim.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often processes that the service left to the shim are collected.
const REAP: Duration = Duration::from_secs(5);

/// What to run; `shim.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShimSpec {
    pub command: Vec<String>,
    pub folder: PathBuf,
    /// All of the service's environment.
    pub environment: StringMap,
    pub stop_signal: StopSignal,
    pub stop_seconds: u32,
}

impl ShimSpec {
    /// The run of a release. A program with a `/` is looked up in the release's folder.
    pub fn new(run: &RunSpec, folder: &Path, environment: StringMap) -> Self {
        let mut command = run.command.clone();
        if let Some(program) = command.first_mut()
            && program.contains('/')
            && !program.starts_with('/')
        {
            *program = folder.join(&program).to_string_lossy().into_owned();
        }
        let (stop_signal, stop_seconds) = (run.stop_signal, run.stop_seconds);
        Self { command, folder: folder.to_owned(), environment, stop_signal, stop_seconds }
    }
}

/// What became of the service; `status.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShimStatus {
    pub shim_pid: u32,
    /// The service's process, while it runs.
    pub pid: Option<u32>,
    /// How often it ended by itself since the shim started.
    pub exits: u32,
    /// How it ended last.
    pub last_exit: Option<String>,
    pub started_at: Option<Timestamp>,
}

fn spec_path(folder: &Path) -> PathBuf {
    folder.join("shim.json")
}

fn status_path(folder: &Path) -> PathBuf {
    folder.join("status.json")
}

fn lock_path(folder: &Path) -> PathBuf {
    folder.join("shim.lock")
}

fn log_folder(folder: &Path) -> PathBuf {
    folder.join("log")
}

// The agent's side.

/// A service's shim, as the agent sees it. Holds nothing open: all is in the folder.
#[derive(Debug, Clone)]
pub struct Shim {
    folder: PathBuf,
}

impl Shim {
    pub fn of(service_folder: &Path) -> Self {
        Self { folder: service_folder.to_owned() }
    }

    /// Whether the shim lives: it holds the lock.
    pub fn is_running(&self) -> bool {
        let Ok(file) = File::open(lock_path(&self.folder)) else { return false };
        flock(&file, FlockOperation::NonBlockingLockShared).is_err()
    }

    pub fn status(&self) -> Option<ShimStatus> {
        let bytes = durable::read(&status_path(&self.folder)).ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    /// The status, if it is that of the shim that lives. A shim mends a file that does not say what it said last.
    pub fn live_status(&self) -> Option<ShimStatus> {
        self.status().filter(|status| pid(status.shim_pid).is_some_and(|shim| self.is_shim(shim)))
    }

    /// The end of the service's output.
    pub fn log_end(&self, lines: usize) -> String {
        log::end(&log_folder(&self.folder), lines)
    }

    /// Starts a shim for this spec, after stopping the one that may be there. Returns once it lives.
    pub async fn start(&self, spec: &ShimSpec) -> Result<(), Error> {
        self.stop().await?;
        let json = serde_json::to_vec_pretty(spec).map_err(|error| Error::Refused(error.to_string()))?;
        durable::write(&spec_path(&self.folder), &json, durable::PRIVATE_MODE)?;
        remove(&status_path(&self.folder))?;
        // The running program, also when its file was replaced by a newer one.
        let mut child = Command::new(OWN_PROGRAM)
            .arg0(OWN_NAME)
            .arg("shim")
            .arg("--folder")
            .arg(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| Error::Start { program: OWN_PROGRAM.to_owned(), source })?;
        let child_pid = child.id();
        let deadline = Instant::now() + START;
        // Not just any shim: an agent that was killed may have left one that only now takes the lock.
        let is_up = |status: ShimStatus| Some(status.shim_pid) == child_pid;
        while !(self.is_running() && self.status().is_some_and(is_up)) {
            if Instant::now() > deadline || child.try_wait().ok().flatten().is_some() {
                return Err(Error::Refused(format!("the shim in {} did not start", self.folder.display())));
            }
            sleep(POLL).await;
        }
        // Reaped when it ends, should this agent still be there.
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }

    /// Stops the service and its shim; returns once both are gone, and everything that they left.
    pub async fn stop(&self) -> Result<(), Error> {
        let grace = self.spec().map_or(STOP_SECONDS_UNKNOWN, |spec| spec.stop_seconds);
        let deadline = Instant::now() + Duration::from_secs(grace.into()) + STOP_EXTRA;
        let mut told = false;
        while self.is_running() {
            if Instant::now() > deadline {
                self.kill_shim().await?;
                break;
            }
            if !told && let Some(shim) = self.process() {
                // It may be gone since it was looked at.
                let _ = rustix::process::kill_process(shim, Signal::TERM);
                told = true;
            }
            sleep(POLL).await;
        }
        self.kill_leftovers().await
    }

    /// The shim's process: the one that its status names, if it is that, or whichever says that it is this folder's.
    fn process(&self) -> Option<Pid> {
        let named = self.status().and_then(|status| pid(status.shim_pid)).filter(|process| self.is_shim(*process));
        named.or_else(|| tree::all().into_iter().find(|process| self.is_shim(*process)))
    }

    fn is_shim(&self, process: Pid) -> bool {
        tree::is_called(process, &[OWN_NAME, "shim", "--folder"], &self.own_folder())
    }

    /// As a shim knows it, whatever way it was named here.
    fn own_folder(&self) -> PathBuf {
        self.folder.canonicalize().unwrap_or_else(|_| self.folder.clone())
    }

    /// For a shim that does not do what it is told.
    async fn kill_shim(&self) -> Result<(), Error> {
        let stuck = || Error::Refused(format!("the shim in {} does not stop", self.folder.display()));
        let shim = self.process().ok_or_else(stuck)?;
        tracing::error!(folder = %self.folder.display(), pid = shim.as_raw_nonzero(), "a shim does not stop, and is killed");
        let deadline = Instant::now() + STOP_EXTRA;
        while self.is_running() {
            if Instant::now() > deadline {
                return Err(stuck());
            }
            // It may have ended just now.
            let _ = rustix::process::kill_process(shim, Signal::KILL);
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Kills what a shim that was killed itself left behind: nobody owns it any more, and it holds the port.
    async fn kill_leftovers(&self) -> Result<(), Error> {
        let deadline = Instant::now() + STOP_EXTRA;
        let mut told = false;
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let folder = self.folder.display();
                return Err(Error::Refused(format!("{} processes of {folder} cannot be killed", left.len())));
            }
            if !told {
                tracing::warn!(folder = %self.folder.display(), processes = left.len(), "killing what a shim left behind");
                told = true;
            }
            for process in left {
                // It may have ended just now.
                let _ = rustix::process::kill_process(process, Signal::KILL);
            }
            sleep(POLL).await;
        }
    }

    fn leftovers(&self) -> Vec<Pid> {
        let mut left = tree::with_variable(&mark(&self.own_folder()));
        left.extend(self.leftover().filter(|process| !left.contains(process)));
        left
    }

    /// The process that the last status names, if it still is the service's: the number may have gone to another. Finds what
    /// was started by an agent that did not mark it.
    fn leftover(&self) -> Option<Pid> {
        let (spec, process) = (self.spec()?, pid(self.status()?.pid?)?);
        let same = |name: &str| {
            let value = spec.environment.get(name);
            value.is_some_and(|value| tree::has_variable(process, format!("{name}={value}").as_bytes()))
        };
        ["SERVICE", "NODE", "ARTIFACT", "PORT"].into_iter().all(same).then_some(process)
    }

    pub fn spec(&self) -> Option<ShimSpec> {
        let bytes = durable::read(&spec_path(&self.folder)).ok()??;
        serde_json::from_slice(&bytes).ok()
    }
}

/// The variable, and its value.
fn mark(folder: &Path) -> Vec<u8> {
    [MARK.as_bytes(), b"=", folder.as_os_str().as_encoded_bytes()].concat()
}

fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

// The shim's own side.

/// `longshore-node shim --folder FOLDER`: runs until SIGTERM.
pub async fn main(folder: &Path) -> Result<(), Error> {
    // An error means that it leads a session already.
    let _ = rustix::process::setsid();
    let lock = File::create(lock_path(folder)).map_err(Error::io(folder))?;
    own(&lock).await.map_err(|_| Error::Refused(format!("another shim runs in {}", folder.display())))?;
    let spec = Shim::of(folder).spec().ok_or_else(|| Error::Refused("shim.json is missing or broken".into()))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| Error::io(folder)(error.into()))?;
    let log = RotatedLog::open(&log_folder(folder)).map_err(Error::io(folder))?;
    log.begin();
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io(folder))?;
    let mut running = Running { folder, spec, log, status: ShimStatus::default() };
    running.status.shim_pid = std::process::id();
    running.write_status()?;
    tokio::select! {
        () = running.supervise() => {}
        _ = terminate.recv() => {}
    }
    running.stop().await;
    drop(lock);
    Ok(())
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
        let (program, arguments) = self
            .spec
            .command
            .split_first()
            .ok_or_else(|| Error::Refused("the run has no command: give a program and its arguments".into()))?;
        let output = self.log.writer().map_err(Error::io(self.folder))?;
        let errors = output.try_clone().map_err(Error::io(self.folder))?;
        Command::new(program)
            .args(arguments)
            .current_dir(&self.spec.folder)
            .env_clear()
            .envs(&self.spec.environment)
            .env(MARK, self.folder)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|source| Error::Start { program: program.clone(), source })
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
        self.status.pid = None;
        self.tell();
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
