//! The guard: a process between the worker and a command, which owns every process that the command leaves behind.
//!
//! ```text
//!            stdin: the order, then nothing; its end means "kill"
//!  worker ──────────▶ [keeper] ──────────▶ guard ──▶ command ──▶ … ──▶ daemons, whatever session they fled to
//!     ▲ ▲                │                  │ │          │
//!     │ └──stderr: one report───────────────┘ │          │
//!     └────stdout: the command's output───────┴──────────┘
//! ```
//!
//! The guard is a subreaper: a process whose parent died becomes the guard's child instead of init's, so nobody escapes by
//! forking twice or by a session of his own. It ends only once no descendant is left. If the worker dies, the kernel closes the
//! pipe, and the guard kills them all.
//!
//! **The promise.** However a worker, a guard or a keeper ends, SIGKILL included, no process of its commands is left:
//!
//! | who is killed | who ends the command's processes |
//! |---|---|
//! | the worker | the guard: its pipe closes |
//! | the guard (by the kernel for lack of memory, or by its command) | the keeper, which inherits them all |
//! | the keeper | the guard: its pipe closes |
//! | guard and keeper | the worker, by the mark in their environment ([`leftovers`]) |
//! | all three | the next worker in the same folder, by the mark, before it takes up work |
//!
//! Only in the last two cases can a process get away: one that cleared its environment and left the worker's folder. None of it
//! needs root. The guard and all that it starts are the first choice of the kernel's killer when memory runs out; the
//! worker and the keeper are not.
//!
//! It knows nothing of jobs, logs or time limits.

mod descendants;
mod keeper;
pub(crate) mod leftovers;

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

use self::keeper::KEPT;
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
/// How often the children are killed between two looks at all descendants.
const CHILDREN_ROUNDS: u32 = 200;
/// How much rather than others the kernel should kill the command's processes, of 1,000.
const MEMORY_SCORE: i32 = 500;

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
    /// The guard was killed by this signal; 0 if it ended in another way.
    Lost {
        signal: i32,
    },
}

/// The whole life of either of the two: reads the order from stdin, reports on stderr.
pub fn main() -> ExitCode {
    let is_kept = std::env::var_os(KEPT).is_some();
    let live = async { if is_kept { guard().await.map(Some) } else { keeper::keep().await } };
    let ended =
        tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| runtime.block_on(live));
    let cannot_start = |error: io::Error| Some(Report { end: End::CannotStart { error: error.to_string() }, left: 0 });
    if let Some(report) = ended.unwrap_or_else(cannot_start) {
        let mut line = serde_json::to_vec(&report).expect("a report holds numbers and text only");
        line.push(b'\n');
        // Nobody listens any more if the worker is dead.
        let _ = io::stderr().write_all(&line);
    }
    ExitCode::SUCCESS
}

async fn guard() -> io::Result<Report> {
    let own = own_session()?;
    offer_to_memory_killer();
    // Before the command starts, so that no signal is missed.
    let mut signals = Signals::listen()?;
    let mut worker = worker_pipe()?;
    let Some(line) = read_line(&mut worker).await? else {
        return Ok(Report { end: End::Killed, left: 0 });
    };
    let order =
        serde_json::from_slice(&line).map_err(|error| io::Error::other(format!("the order is not valid: {error}")))?;
    let command = match start(&order) {
        Ok(pid) => pid,
        Err(end) => return Ok(Report { end, left: 0 }),
    };
    let end = supervise(command, &mut signals, &mut worker).await;
    let left = kill_descendants(own, &mut signals).await;
    Ok(Report { end, left })
}

/// A session of its own: a Ctrl-C in the worker's terminal is the worker's to handle. And heir of all orphans below.
fn own_session() -> io::Result<Pid> {
    // It fails only for a group's leader, which this is when started by hand.
    let _ = rustix::process::setsid();
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))?;
    Ok(own)
}

/// Children inherit the score. Raising it needs no privilege.
fn offer_to_memory_killer() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(SCORE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if score.is_some_and(|score| score < MEMORY_SCORE) {
        // Where this cannot be written, the kernel decides as it does for all.
        let _ = std::fs::write(SCORE, MEMORY_SCORE.to_string());
    }
}

fn worker_pipe() -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)
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

    /// Waits for anything to happen; whether it means that everything is to be killed.
    async fn told_to_kill(&mut self, worker: &mut pipe::Receiver) -> bool {
        let mut nothing = [0; 64];
        tokio::select! {
            _ = self.child.recv() => false,
            read = worker.read(&mut nothing) => !matches!(read, Ok(1..)),
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
            _ = self.hangup.recv() => true,
        }
    }
}

/// The order as it came. None: whoever gives it went away before that.
async fn read_line(worker: &mut pipe::Receiver) -> io::Result<Option<Vec<u8>>> {
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
    Ok(Some(line))
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
        if signals.told_to_kill(worker).await {
            return End::Killed;
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

/// Kills until nobody is left: a process that forks while it is being killed leaves a child that the next round finds. One that
/// forks and ends is faster than a look at all processes, but its child comes here at once, and those are killed in between.
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
        for _ in 0..CHILDREN_ROUNDS {
            let children = descendants::children(own);
            if children.is_empty() {
                break;
            }
            for pid in children {
                // As above.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            reap(None);
        }
        let _ = tokio::time::timeout(KILL_PAUSE, signals.child.recv()).await;
    }
}
