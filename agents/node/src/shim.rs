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
//! What is run only once, a hook or a check, has a runner of the same kind ([`once`]).
//!
//! Neither file is trusted: `status.json` may be old, cut off or nonsense. Nobody is signalled before `/proc` says that he is this
//! folder's shim, and a shim that does not stop in time is killed, with what it ran.

mod limited;
mod log;
pub mod once;
mod program;
mod run;
mod tree;

pub use self::{
    limited::{main as limited, settle},
    log::LOG_BYTES_USUAL,
    program::Account,
    run::main,
};

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use longshore_schemas::{
    Timestamp,
    events::{Hooks, LogRotation, RunLimits, RunSpec, StopSignal, StringMap},
};
use longshore_service::durable;
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal},
};
use serde::{Deserialize, Serialize};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::Error;

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

/// What to run; `shim.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShimSpec {
    pub command: Vec<String>,
    pub folder: PathBuf,
    /// All of the service's environment.
    pub environment: StringMap,
    pub stop_signal: StopSignal,
    pub stop_seconds: u32,
    /// None: as whom the agent runs.
    #[serde(default)]
    pub account: Option<Account>,
    #[serde(default)]
    pub limits: RunLimits,
    #[serde(default)]
    pub log: LogRotation,
    /// Of the release that runs: whoever stops it, whenever, runs those of its stop.
    #[serde(default)]
    pub hooks: Hooks,
}

impl ShimSpec {
    /// The run of a release.
    pub fn new(run: &RunSpec, folder: &Path, environment: StringMap, account: Option<Account>) -> Self {
        Self {
            command: program::located(&run.command, folder),
            folder: folder.to_owned(),
            environment,
            stop_signal: run.stop_signal,
            stop_seconds: run.stop_seconds,
            account,
            limits: run.limits.clone(),
            log: run.log.clone(),
            hooks: run.hooks.clone(),
        }
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
    /// How it is held to its limits, in words.
    #[serde(default)]
    pub limits: Vec<String>,
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
    /// The subcommand that it is.
    role: &'static str,
}

impl Shim {
    pub fn of(service_folder: &Path) -> Self {
        Self { folder: service_folder.to_owned(), role: "shim" }
    }

    /// Whether the shim lives: it holds the lock.
    pub fn is_running(&self) -> bool {
        let file = match File::open(lock_path(&self.folder)) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
            // It cannot be told now. What may live is not started a second time.
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "whether a shim lives cannot be told");
                return true;
            }
        };
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

    /// The last whole lines of its log, of whatever release they are.
    pub fn log_tail(&self, bytes_max: u64) -> std::io::Result<String> {
        log::tail(&log_folder(&self.folder), bytes_max)
    }

    /// The end of what the release that runs wrote.
    pub fn log_end(&self, lines: usize) -> String {
        log::end(&log_folder(&self.folder), lines)
    }

    /// Starts a shim for this spec, after stopping the one that may be there. Returns once it lives.
    pub async fn start(&self, spec: &ShimSpec) -> Result<(), Error> {
        self.stop().await?;
        let json = serde_json::to_vec_pretty(spec).map_err(|error| Error::Refused(error.to_string()))?;
        durable::write(&spec_path(&self.folder), &json, durable::PRIVATE_MODE)?;
        remove(&status_path(&self.folder))?;
        let mut child = self.spawn(Stdio::null(), Stdio::null())?;
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

    /// The running program, also when its file was replaced by a newer one.
    fn spawn(&self, stdin: Stdio, stdout: Stdio) -> Result<tokio::process::Child, Error> {
        let mut command = Command::new(OWN_PROGRAM);
        command.arg0(OWN_NAME).arg(self.role).arg("--folder").arg(&self.folder);
        command.stdin(stdin).stdout(stdout).stderr(Stdio::null());
        command.spawn().map_err(|source| Error::Start { program: OWN_PROGRAM.to_owned(), source })
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
        tree::is_called(process, &[OWN_NAME, self.role, "--folder"], &self.own_folder())
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
