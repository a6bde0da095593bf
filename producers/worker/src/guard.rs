//! The guard: a process between the worker and a command, which owns every process that the command leaves behind.
//!
//! ```text
//!            stdin: the order, then nothing; its end means "kill"
//!  worker ──────────────────────────▶ guard ──▶ command ──▶ … ──▶ daemons, whatever session they fled to
//!     ▲ ▲                              │ │          │
//!     │ └──stderr: one report──────────┘ │          │
//!     └────stdout: the command's output──┴──────────┘
//! ```
//!
//! The guard is a subreaper: a process whose parent died becomes the guard's child instead of init's, so nobody escapes by
//! forking twice or by a session of his own. It ends only once no descendant is left. If the worker dies, the kernel closes the
//! pipe, and the guard kills them all.
//!
//! It knows nothing of jobs, logs or time limits. What it cannot do: survive a command that kills the guard itself with
//! SIGKILL, which a command of the same user may.

mod descendants;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Command, ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, WaitOptions, WaitStatus};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

/// Largest order, in bytes: Linux allows 2 MiB of arguments and environment.
const ORDER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long to try to kill what is left before giving up on it: only a process stuck in the kernel takes this long.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for a killed process to be gone before looking again.
const KILL_PAUSE: Duration = Duration::from_millis(5);

/// What to run. One line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) directory: PathBuf,
    /// The whole environment.
    pub(crate) environment: BTreeMap<String, String>,
}

/// How it ended. One line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) end: End,
    /// Processes that would not die.
    pub(crate) left: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Exited {
        status: i32,
    },
    Signaled {
        signal: i32,
    },
    /// The guard was told to, by the pipe or by a signal.
    Killed,
    NotFound,
    CannotStart {
        error: String,
    },
}

/// The guard's whole life: reads the order from stdin, reports on stderr.
pub fn main() -> ExitCode {
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(guard()));
    let report = ended.unwrap_or_else(|error| Report { end: End::CannotStart { error: error.to_string() }, left: 0 });
    let mut line = serde_json::to_vec(&report).expect("a report holds numbers and text only");
    line.push(b'\n');
    // Nobody listens any more if the worker is dead.
    let _ = io::stderr().write_all(&line);
    ExitCode::SUCCESS
}

async fn guard() -> io::Result<Report> {
    // A session of its own: a Ctrl-C in the worker's terminal is the worker's to handle. It fails only for a group's leader,
    // which the guard is when started by hand.
    let _ = rustix::process::setsid();
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))?;
    // Before the command starts, so that no signal is missed.
    let mut signals = Signals::listen()?;
    let mut worker = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let Some(order) = read_order(&mut worker).await? else {
        return Ok(Report { end: End::Killed, left: 0 });
    };
    let command = match start(&order) {
        Ok(pid) => pid,
        Err(end) => return Ok(Report { end, left: 0 }),
    };
    let end = supervise(command, &mut signals, &mut worker).await;
    let left = kill_descendants(own, &mut signals).await;
    Ok(Report { end, left })
}

struct Signals {
    child: Signal,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            child: signal(SignalKind::child())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// None: the worker went away before it had given the order.
async fn read_order(worker: &mut pipe::Receiver) -> io::Result<Option<Order>> {
    let mut line = Vec::new();
    let mut buffer = [0; 8192];
    while !line.ends_with(b"\n") {
        let read = worker.read(&mut buffer).await?;
        if read == 0 {
            return Ok(None);
        }
        line.extend_from_slice(&buffer[..read]);
        if line.len() > ORDER_BYTES_MAX {
            return Err(io::Error::other("the order is too long: arguments and environment must be below 4 MiB"));
        }
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|error| io::Error::other(format!("the order is not valid: {error}")))
}

fn start(order: &Order) -> Result<Pid, End> {
    let cannot_start = |error: io::Error| End::CannotStart { error: error.to_string() };
    let output = || io::stdout().as_fd().try_clone_to_owned().map(|fd: OwnedFd| Stdio::from(fd)).map_err(cannot_start);
    let child = Command::new(&order.program)
        .args(&order.arguments)
        .current_dir(&order.directory)
        .env_clear()
        .envs(&order.environment)
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?)
        // So that `kill 0` in a script does not reach the guard.
        .process_group(0)
        .spawn()
        .map_err(|error| match error.kind() {
            // The same error means that the directory is not there.
            io::ErrorKind::NotFound if order.directory.is_dir() => End::NotFound,
            _ => cannot_start(error),
        })?;
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| cannot_start(io::Error::other("no process id")))
}

/// Until the command ends, or the worker goes away, or someone tells the guard to stop.
async fn supervise(command: Pid, signals: &mut Signals, worker: &mut pipe::Receiver) -> End {
    loop {
        if let Some(end) = reap(Some(command)) {
            return end;
        }
        let mut nothing = [0; 64];
        tokio::select! {
            _ = signals.child.recv() => {}
            read = worker.read(&mut nothing) => if !matches!(read, Ok(1..)) { return End::Killed },
            _ = signals.terminate.recv() => return End::Killed,
            _ = signals.interrupt.recv() => return End::Killed,
            _ = signals.hangup.recv() => return End::Killed,
        }
    }
}

/// Takes leave of every child that ended, adopted ones included; answers how the command did, if it is among them.
fn reap(command: Option<Pid>) -> Option<End> {
    let mut end = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if Some(pid) == command {
            end = Some(ended(status));
        }
    }
    end
}

fn ended(status: WaitStatus) -> End {
    let status = ExitStatus::from_raw(status.as_raw());
    match (status.code(), status.signal()) {
        (Some(status), _) => End::Exited { status },
        (None, signal) => End::Signaled { signal: signal.unwrap_or(0) },
    }
}

/// Kills until nobody is left: a process that forks while it is being killed leaves a child that the next round finds.
async fn kill_descendants(own: Pid, signals: &mut Signals) -> usize {
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        reap(None);
        let left = descendants::of(own);
        if left.is_empty() || Instant::now() > deadline {
            return left.len();
        }
        for pid in left {
            // It may have ended by itself, or belong to another user: the deadline sees to that.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = tokio::time::timeout(KILL_PAUSE, signals.child.recv()).await;
    }
}
