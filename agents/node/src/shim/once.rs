//! What is run once, a hook or a check: to its end or to its timeout, and then nothing of it is left.
//!
//! ```text
//!  agent ──spec on stdin, held open──▶ runner ──starts──▶ program (its own process group)
//!        ◀─outcome on stdout──────────   │ ◀──output──────┘
//!                                        └──▶ log/current, log/1
//! ```
//!
//! The runner is a keeper as the shim is: subreaper, with a lock on its folder and a mark on what it starts. When its stdin is closed,
//! because the agent dropped the call or was killed, it kills what it runs and ends. A call first waits for the runner before
//! it, or kills it; so there is never more than one.

use std::{
    io::{PipeWriter, Read, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use longshore_schemas::events::{LogRotation, StringMap};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{Account, POLL, STOP_EXTRA, Shim, log::RotatedLog, log_folder, program, program::Program, run, tree};
use crate::Error;

/// Of the output of all hooks, or all checks, of a service.
const LOG: LogRotation = LogRotation { file_mib: 1, files: 2 };
pub const LOG_BYTES_MAX: u64 = (LOG.file_mib as u64 * LOG.files as u64) << 20;
/// What was written before the end is soon in the log, unless something could not be killed.
const LOG_PATIENCE: Duration = Duration::from_secs(2);
/// Lines of the output that go into the message of a failure.
const LOG_LINES: usize = 5;

/// What to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OnceSpec {
    /// What it is, for its log and messages.
    pub what: String,
    pub command: Vec<String>,
    pub folder: PathBuf,
    /// All of its environment.
    pub environment: StringMap,
    pub account: Option<Account>,
    pub timeout: Duration,
}

/// How it ended, if not well; with nothing it ended well.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Outcome {
    failure: Option<String>,
}

/// Where things are run once, one after the other.
#[derive(Debug, Clone)]
pub struct Once(Shim);

impl Once {
    pub fn of(folder: &Path) -> Self {
        Self(Shim { folder: folder.to_owned(), role: "once" })
    }

    /// Runs it to its end. `Ok(Err)` says why it did not end well, with the end of its output. Dropped, it ends what it runs.
    pub async fn run(&self, spec: &OnceSpec) -> Result<Result<(), String>, Error> {
        let folder = &self.0.folder;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        self.stop().await?;
        let mut child = self.0.spawn(Stdio::piped(), Stdio::piped())?;
        let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::Refused("a runner has no pipes".into()));
        };
        // Reaped when it ends, also when this is dropped.
        tokio::spawn(async move { child.wait().await });
        let mut json = serde_json::to_vec(spec).map_err(|error| Error::Refused(error.to_string()))?;
        json.push(b'\n');
        stdin.write_all(&json).await.map_err(Error::io(folder))?;
        let mut answer = Vec::new();
        let read = timeout(spec.timeout + STOP_EXTRA, stdout.read_to_end(&mut answer)).await;
        drop(stdin);
        let outcome = read.ok().and_then(|_| serde_json::from_slice::<Outcome>(&answer).ok());
        let Some(outcome) = outcome else {
            // It was killed, or hangs.
            self.stop().await?;
            return Ok(Err(format!("{} was lost with its runner", spec.what)));
        };
        let Some(failure) = outcome.failure else { return Ok(Ok(())) };
        let end = self.0.log_end(LOG_LINES);
        let output = if end.is_empty() { String::new() } else { format!("; its output ends:\n{end}") };
        Ok(Err(format!("{} {failure}{output}", spec.what)))
    }

    /// Ends what may be left of an earlier run.
    pub async fn stop(&self) -> Result<(), Error> {
        self.0.stop().await
    }
}

impl OnceSpec {
    /// A command of a release, in its folder.
    pub fn new(what: String, command: &[String], folder: &Path, timeout: Duration) -> Self {
        let command = program::located(command, folder);
        Self { what, command, folder: folder.to_owned(), environment: StringMap::new(), account: None, timeout }
    }
}

/// `longshore-node once --folder FOLDER`: the runner's side.
pub async fn main(folder: &Path) -> Result<(), Error> {
    let lock = run::keep(folder).await?;
    let (spec, closed) = read_spec(folder)?;
    let log = RotatedLog::open(&log_folder(folder), &LOG).map_err(Error::io(folder))?;
    log.begin(&spec.what);
    let (output, copying) = log.writer().map_err(Error::io(folder))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io(folder))?;
    let failure = tokio::select! {
        failure = run(&spec, folder, output) => failure,
        _ = terminate.recv() => Some("was told to stop".to_owned()),
        _ = closed => Some("was left by the agent".to_owned()),
    };
    // What it started and left goes with it.
    tree::kill_descendants().await;
    let deadline = Instant::now() + LOG_PATIENCE;
    while !copying.is_finished() && Instant::now() < deadline {
        sleep(POLL).await;
    }
    let json = serde_json::to_vec(&Outcome { failure }).map_err(|error| Error::Refused(error.to_string()))?;
    // Nobody may listen any more.
    let _ = std::io::stdout().write_all(&json);
    drop(lock);
    Ok(())
}

async fn run(spec: &OnceSpec, folder: &Path, output: PipeWriter) -> Option<String> {
    let OnceSpec { command, environment, account, .. } = spec;
    let program = Program { command, folder: &spec.folder, environment, account: account.as_ref(), limited: None };
    let mut child = match program.start(folder, output) {
        Ok(child) => child,
        Err(error) => return Some(format!("failed: {}", error.whole())),
    };
    match timeout(spec.timeout, child.wait()).await {
        Ok(Ok(status)) if status.success() => None,
        Ok(Ok(status)) => Some(format!("failed: {status}")),
        Ok(Err(error)) => Some(format!("cannot be waited for: {error}")),
        Err(_) => Some(format!("did not end within {:?} and was killed", spec.timeout)),
    }
}

/// The first line of stdin, and word of its end.
fn read_spec(folder: &Path) -> Result<(OnceSpec, oneshot::Receiver<()>), Error> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(Error::io(folder))?;
    let spec = serde_json::from_str(&line).map_err(|error| Error::Refused(format!("no spec on stdin: {error}")))?;
    let (close, closed) = oneshot::channel();
    // A thread of its own: a read that nothing ends must not keep the process from ending.
    std::thread::Builder::new()
        .name("agent".into())
        .spawn(move || {
            let mut rest = [0; 64];
            while let Ok(1..) = std::io::stdin().read(&mut rest) {}
            // The run may have ended.
            let _ = close.send(());
        })
        .map_err(Error::io(folder))?;
    Ok((spec, closed))
}
