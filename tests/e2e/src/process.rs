//! Child processes that are ended with their owner, and waiting for conditions.

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};

/// A program of this workspace that runs until it is ended.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts a binary that lies beside this one; its output is appended to `log`.
    pub fn start(binary: &str, arguments: &[&str], log: &Path) -> Result<Self> {
        Self::start_in(&[], binary, arguments, log)
    }

    /// The same, with further variables in its environment.
    pub fn start_in(environment: &[(String, String)], binary: &str, arguments: &[&str], log: &Path) -> Result<Self> {
        let mut command = Command::new(binary_path(binary)?);
        command.args(arguments).envs(environment.iter().cloned());
        Self::run(command, &format!("{binary} {}", arguments.first().unwrap_or(&"")), log)
    }

    /// Starts any command; its output is appended to `log`.
    pub fn run(mut command: Command, name: &str, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of its log if it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}; its log ends:\n{}", self.name, self.log_end()),
        }
    }

    /// All that it wrote, in earlier lives too.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn log_end(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGSTOP: it does nothing any more, and nobody is told.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT: it goes on as if no time had passed.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            rustix::process::kill_process(pid.context("a pid")?, signal)?;
        }
        Ok(())
    }

    /// Waits for its end; kills it after `bound`, which is an error.
    pub fn wait_ended(&mut self, bound: Duration) -> Result<()> {
        let deadline = Instant::now() + bound;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.kill()?;
                bail!("{} did not end within {bound:?} of SIGTERM; its log ends:\n{}", self.name, self.log_end());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that is paused hears nothing.
        let _ = self.resume();
        // Asked first, so that a node can end its services; a process that ended already is no error here.
        if self.terminate().and_then(|()| self.wait_ended(Duration::from_secs(15))).is_err() {
            let _ = self.kill();
        }
    }
}

const POLL: Duration = Duration::from_millis(20);

/// Asks until there is an answer; an error names what was waited for.
pub async fn wait_for<T>(what: &str, bound: Duration, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + bound;
    loop {
        let failed = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() > deadline {
            let waited = format!("waited {bound:?} for {what}");
            return Err(failed.map_or_else(|| anyhow::anyhow!(waited.clone()), |error| error.context(waited.clone())));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A program of this workspace, in the folder that this one was built into.
pub fn binary_path(binary: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut folder = own.parent().context("the executable has a folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("deps has a parent")?;
    }
    let path = folder.join(binary);
    if !path.exists() {
        bail!("{} is not built; run: cargo build -p longshore -p longshore-node", path.display());
    }
    Ok(path)
}

/// The first of `count` consecutive free ports below the ephemeral range, so that no outgoing connection takes one.
pub fn free_ports(count: u16) -> Result<u16> {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const LAST: u16 = 32_000;
    let start = (std::process::id() % 700) as u16 * 16;
    for _ in 0..1_000 {
        let offset = NEXT.fetch_add(count, Ordering::Relaxed).wrapping_add(start) % (LAST - FIRST);
        let base = FIRST + offset;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (base..base + count).all(free) {
            return Ok(base);
        }
    }
    bail!("no {count} free ports between {FIRST} and {LAST}")
}
