//! The agent as a release of its own: how a new one takes over from the one that runs, and how it goes back.
//!
//! ```text
//!  a service, as any other: its artifact holds longshore-node, its command is `./longshore-node take-over`, its check `./longshore-node came-up`
//!
//!  take-over ── whose turn it is ─▶ turn.json           agent: SIGUSR2 ─▶ ends its tasks, and becomes the program whose turn it is
//!      │ SIGUSR2 ─▶ agent, by running.json                     │ started by systemd ─▶ the same
//!      └── waits until running.json says: that program, connected for a while ◀┘
//!                  └── in vain: the turn is the old one's again, what did not come up is killed, and the release has failed
//! ```
//!
//! Services are their shims' and go on meanwhile. What watches over the change is the release's own process, under its shim, not the agent that
//! may not come up; whoever starts the agent again when it has ended (systemd) finds in turn.json which program that is. So an agent is
//! rolled out as everything else: by waves, within a budget, with its failures grouped, and back.
//!
//! All that was decided is in turn.json before it is done: the release's process is started again whenever the agent resumes its switch, and
//! goes on from there. A program that has failed stays so until its release is deployed anew; one that was proved is never killed, however
//! long the region is away.

use std::{
    fs,
    io::ErrorKind,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use longshore_schemas::{ArtifactId, Timestamp};
use longshore_service::{durable, now};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use crate::{Error, Folders};

/// By which the agent is asked to become the program whose turn it is.
pub const ASKS: SignalKind = SignalKind::user_defined2();
const ASKS_SIGNAL: Signal = Signal::USR2;
/// How often the one that takes over looks whether it has.
const LOOK: Duration = Duration::from_millis(200);
/// So long a new agent must have been connected to its region, without a break of its own, before it has come up.
const STEADY: Duration = Duration::from_secs(10);
/// Between two looks for processes of the program before this one that have ended.
const REAP: Duration = Duration::from_secs(5);
/// Set for a program that could not become another: it stays what it is.
const STAY: &str = "LONGSHORE_NODE_STAY";

/// Which program the agent is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Turn {
    /// None: the one that was started.
    program: Option<PathBuf>,
    trial: Option<Trial>,
    /// What was tried last, if it was no good.
    failed: Option<Failed>,
}

/// The program whose turn it is has not proved itself yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Trial {
    since: Timestamp,
    within: Duration,
    /// Of the machine, since when it counts: a machine that was off tried nothing.
    boot: String,
    /// It was connected for long enough. From now on only its release's failure takes the turn from it.
    came_up: bool,
    /// Whose turn it is if it does not.
    before: Option<PathBuf>,
}

impl Trial {
    fn begin(within: Duration, before: Option<PathBuf>) -> Self {
        Self { since: now(), within, boot: boot().unwrap_or_default(), came_up: false, before }
    }

    fn is_of_this_boot(&self) -> bool {
        boot().as_ref() == Some(&self.boot)
    }

    /// What is left of its time; None if it has come up.
    fn left(&self) -> Option<Duration> {
        (!self.came_up).then(|| self.within.saturating_sub(now().since(self.since)))
    }

    fn is_over(&self) -> bool {
        self.is_of_this_boot() && self.left().is_some_and(|left| left.is_zero())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failed {
    program: PathBuf,
    reason: String,
}

impl Turn {
    fn read(folders: &Folders) -> Result<Self, Error> {
        Ok(read(&folders.turn())?.unwrap_or_default())
    }

    fn write(&self, folders: &Folders) -> Result<(), Error> {
        write(&folders.turn(), self)
    }

    fn is_on_trial(&self, program: &Path) -> bool {
        self.trial.is_some() && self.program.as_deref() == Some(program)
    }

    /// The program on trial is no good.
    fn give_back(self, reason: &str) -> Self {
        let before = self.trial.and_then(|trial| trial.before);
        let failed = self.program.map(|program| Failed { program, reason: reason.to_owned() });
        Self { program: before, trial: None, failed }
    }

    /// Its time is over.
    fn expire(self) -> Self {
        let seconds = self.trial.as_ref().map_or(0, |trial| trial.within.as_secs());
        self.give_back(&format!("the new agent was not connected to its region within {seconds} s"))
    }
}

/// Which program it is, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Of the machine: pids and their starts come again after it.
    boot: String,
    pid: u32,
    /// When the kernel started that process. A program that becomes another keeps both.
    started: u64,
    program: PathBuf,
    connected_at: Option<Timestamp>,
}

impl Running {
    /// This process runs this program, and is not connected yet.
    fn of(program: PathBuf) -> Result<Self, Error> {
        let pid = std::process::id();
        let unknown = || Error::Refused("/proc does not say when this process was started".to_owned());
        let (started, boot) = (started(pid).ok_or_else(unknown)?, boot().ok_or_else(unknown)?);
        Ok(Self { boot, pid, started, program, connected_at: None })
    }

    /// This agent runs.
    pub fn begin(folders: &Folders) -> Result<Self, Error> {
        let running = Self::of(own_program()?)?;
        write(&folders.running(), &running)?;
        Ok(running)
    }

    /// Its region has taken it. Said once.
    pub fn connected(&mut self, folders: &Folders) -> Result<(), Error> {
        if self.connected_at.is_none() {
            let connected = Self { connected_at: Some(now()), ..self.clone() };
            write(&folders.running(), &connected)?;
            *self = connected;
        }
        Ok(())
    }

    /// The connection has ended. What was connected for a moment only has proved nothing.
    pub fn disconnected(&mut self, folders: &Folders) -> Result<(), Error> {
        if self.connected_at.is_some() && !self.came_up() {
            self.connected_at = None;
            write(&folders.running(), self)?;
        }
        Ok(())
    }

    fn lives(&self) -> bool {
        started(self.pid) == Some(self.started) && boot().as_ref() == Some(&self.boot)
    }

    fn came_up(&self) -> bool {
        self.connected_at.is_some_and(|at| now().since(at) >= STEADY)
    }

    /// Whether the process is what was said of it. What it became may say nothing.
    fn is_itself(&self) -> bool {
        let Ok(program) = fs::read_link(format!("/proc/{}/exe", self.pid)) else { return false };
        // Another file may lie there by now.
        let program = program.to_string_lossy();
        Path::new(program.strip_suffix(" (deleted)").unwrap_or(&program)) == self.program
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw).filter(|_| self.lives()) {
            // It may have ended since.
            let _ = kill_process(pid, signal);
        }
    }

    /// The agent of this folder, if it lives.
    fn read(folders: &Folders) -> Result<Option<Self>, Error> {
        Ok(read::<Self>(&folders.running())?.filter(Self::lives))
    }
}

/// Becomes the program whose turn it is, with the same arguments; the caller is the folder's only agent. Returns if that is this one, or if it
/// cannot be done.
fn become_whose_turn_it_is(folders: &Folders) {
    let become_it = || -> Result<(), Error> {
        let mut turn = Turn::read(folders)?;
        if turn.trial.as_ref().is_some_and(Trial::is_over) {
            turn = turn.expire();
            turn.write(folders)?;
        }
        let program = match turn.trial {
            // Nobody watches over it yet. Its release's process begins its trial anew.
            Some(trial) if !trial.came_up && !trial.is_of_this_boot() => trial.before,
            _ => turn.program,
        };
        let Some(program) = program.filter(|program| program.is_file()) else { return Ok(()) };
        if program == own_program()? {
            return Ok(());
        }
        tracing::info!(program = %program.display(), "becoming another agent");
        // Said by this one: what comes may never say anything.
        write(&folders.running(), &Running::of(program.clone())?)?;
        let error = Command::new(&program).args(std::env::args_os().skip(1)).env_remove(STAY).exec();
        Err(Error::io(&program)(error))
    };
    if let Err(error) = become_it() {
        tracing::error!(error = error.whole(), "this agent cannot become the one whose turn it is; it goes on");
    }
}

/// When the agent is started: becomes the program whose turn it is. Returns if that is this one, or if it cannot be done.
pub fn begin(folders: &Folders) {
    if std::env::var_os(STAY).is_none() {
        become_whose_turn_it_is(folders);
    }
}

/// Starts anew, as the program whose turn it is, or else as this one.
pub fn begin_anew(folders: &Folders) -> Error {
    become_whose_turn_it_is(folders);
    let again = || -> Result<(), Error> {
        let own = own_program()?;
        let error = Command::new(&own).args(std::env::args_os().skip(1)).env(STAY, "1").exec();
        Err(Error::io(&own)(error))
    };
    again().err().unwrap_or(Error::Stopping)
}

/// An agent on trial gives its turn back itself when its time is over, in case nobody else does.
pub async fn watch_own_trial(folders: Folders) {
    let own = own_program();
    loop {
        let turn = Turn::read(&folders).unwrap_or_default();
        let Some(trial) = turn.trial.as_ref().filter(|_| own.as_ref().is_ok_and(|own| turn.is_on_trial(own))) else {
            return;
        };
        match trial.left() {
            Some(left) if !left.is_zero() => sleep(left).await,
            Some(_) => {
                if let Err(error) = turn.expire().write(&folders) {
                    tracing::error!(error = error.whole(), "this agent cannot give its turn back");
                }
                // It listens, or has ended.
                let _ = kill_process(getpid(), ASKS_SIGNAL);
                return;
            }
            None => return,
        }
    }
}

/// The program before this one left its children to this process: whoever of them ends must be collected. To be called before any is
/// started.
pub fn collect_children() {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids =
        children.flat_map(|pids| pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>());
    let mut left: Vec<Pid> = pids.filter_map(Pid::from_raw).collect();
    tokio::spawn(async move {
        while !left.is_empty() {
            left.retain(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)));
            sleep(REAP).await;
        }
    });
}

/// The release is deployed: whatever was said of it before, its program may be tried.
pub fn forget_failure(folders: &Folders, artifact: ArtifactId) -> Result<(), Error> {
    let turn = Turn::read(folders)?;
    match &turn.failed {
        Some(failed) if is_of(folders, &failed.program, artifact) => Turn { failed: None, ..turn }.write(folders),
        _ => Ok(()),
    }
}

/// Whether this release's program has its turn, and is on trial. Then its process watches over that, and goes on doing so.
pub fn is_on_trial(folders: &Folders, artifact: ArtifactId) -> Result<bool, Error> {
    let turn = Turn::read(folders)?;
    Ok(turn.trial.is_some() && turn.program.is_some_and(|program| is_of(folders, &program, artifact)))
}

/// The release was proved: its trial is over.
pub fn accept(folders: &Folders, artifact: ArtifactId) -> Result<(), Error> {
    match is_on_trial(folders, artifact)? {
        true => Turn { trial: None, ..Turn::read(folders)? }.write(folders),
        false => Ok(()),
    }
}

/// The release was gone back from: if its program is the agent, or is to be, the one before it is that again.
pub fn withdraw(folders: &Folders, artifact: ArtifactId, reason: &str) -> Result<(), Error> {
    let turn = Turn::read(folders)?;
    let of_release = |program: &PathBuf| is_of(folders, program, artifact);
    if turn.trial.is_some() && turn.program.as_ref().is_some_and(of_release) {
        turn.give_back(reason).write(folders)?;
        if let Some(running) = Running::read(folders)?.filter(|running| of_release(&running.program)) {
            running.signal(ASKS_SIGNAL);
        }
    }
    Ok(())
}

fn is_of(folders: &Folders, program: &Path, artifact: ArtifactId) -> bool {
    program.starts_with(folders.releases().join(artifact.to_string()))
}

/// `longshore-node take-over`: makes this release's program the agent, and stays for as long as it is to be that.
pub async fn take_over(program: Option<PathBuf>, within: Duration) -> Result<(), Error> {
    let program = release_program(program)?;
    let folders = folders_of(&program)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io(&program))?;
    let changing = async {
        if let Err(error) = change(&folders, &program, within).await {
            tracing::error!(error = error.whole(), "this release's program is not the agent");
            return Err(error);
        }
        std::future::pending().await
    };
    tokio::select! {
        changed = changing => changed,
        // Whoever goes on from here finds in turn.json how far it was.
        _ = terminate.recv() => Ok(()),
    }
}

async fn change(folders: &Folders, program: &Path, within: Duration) -> Result<(), Error> {
    let mut turn = Turn::read(folders)?;
    if let Some(failed) = turn.failed.as_ref().filter(|failed| failed.program == program) {
        end(folders, program)?;
        return Err(Error::Refused(failed.reason.clone()));
    }
    if turn.program.as_deref() != Some(program) {
        let before = turn.trial.map_or(turn.program, |trial| trial.before);
        let trial = Some(Trial::begin(within, before));
        turn = Turn { program: Some(program.to_owned()), trial, failed: turn.failed };
        turn.write(folders)?;
    } else if let Some(trial) = turn.trial.as_mut().filter(|trial| !trial.came_up && !trial.is_of_this_boot()) {
        *trial = Trial::begin(within, trial.before.take());
        turn.write(folders)?;
    }
    let mut asked = None;
    loop {
        let running = Running::read(folders)?;
        if running.as_ref().is_some_and(|running| running.program == program && running.came_up()) {
            let came_up = |trial| Trial { came_up: true, ..trial };
            return Turn { trial: turn.trial.map(came_up), ..turn }.write(folders);
        }
        if let Some(other) = running.as_ref().filter(|running| running.program != program && running.is_itself()) {
            // Each process is asked once: it may take its time.
            let process = Some((other.pid, other.started));
            if asked != process {
                asked = process;
                other.signal(ASKS_SIGNAL);
            }
        }
        if turn.trial.as_ref().is_some_and(Trial::is_over) {
            break;
        }
        sleep(LOOK).await;
    }
    // The agent may have gone back from this release meanwhile.
    if Turn::read(folders)? == turn {
        turn.expire().write(folders)?;
    }
    end(folders, program)?;
    Err(Error::Refused(Turn::read(folders)?.failed.map_or_else(String::new, |failed| failed.reason)))
}

/// Whatever runs as this program's agent, or what the agent became, ends: it is not its turn.
fn end(folders: &Folders, program: &Path) -> Result<(), Error> {
    match Running::read(folders)? {
        Some(running) if running.program == program || !running.is_itself() => running.signal(Signal::KILL),
        _ => {}
    }
    Ok(())
}

/// `longshore-node came-up`: an error unless this release's program is the agent, and proved once that it can be.
pub fn came_up(program: Option<PathBuf>) -> Result<(), Error> {
    let program = release_program(program)?;
    let no = |what: &str| Err(Error::Refused(what.to_owned()));
    let folders = folders_of(&program)?;
    let turn = Turn::read(&folders)?;
    match Running::read(&folders)? {
        _ if turn.program.as_ref() != Some(&program) => no("it is another agent's turn"),
        Some(running) if running.program != program => no("another agent runs"),
        Some(_) if turn.trial.is_some_and(|trial| !trial.came_up) => {
            no("it has not been connected to its region for long enough")
        }
        Some(_) => Ok(()),
        None => no("no agent runs"),
    }
}

fn own_program() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(Error::io(Path::new("/proc/self/exe")))?;
    Ok(own.canonicalize().unwrap_or(own))
}

fn release_program(program: Option<PathBuf>) -> Result<PathBuf, Error> {
    match program {
        Some(program) => program.canonicalize().map_err(Error::io(&program)),
        None => own_program(),
    }
}

/// A release's program lies in the folder of a release, in that of all releases of a node's folder.
fn folders_of(program: &Path) -> Result<Folders, Error> {
    let data = program.ancestors().nth(3).map(Path::to_owned);
    let folders = data.map(|data| Folders { data }).filter(|folders| program.starts_with(folders.releases()));
    folders.ok_or_else(|| {
        let program = program.display();
        Error::Refused(format!("{program} is not in the folder of a release: deploy it as a service, with longshore-node at the top of its artifact"))
    })
}

/// When the kernel started the process, in its own ticks.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything; of a process that has ended, only its parent knows.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if fields.next()? == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let Some(bytes) = durable::read(path)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(content) => Ok(Some(content)),
        Err(error) => Err(Error::io(path)(std::io::Error::new(ErrorKind::InvalidData, error))),
    }
}

fn write(path: &Path, content: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_vec(content).map_err(|error| Error::Refused(error.to_string()))?;
    Ok(durable::write(path, &json, durable::SHARED_MODE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = Running::of("/nowhere".into()).expect("Linux");
        assert!(own.lives() && !own.is_itself() && !own.came_up());
        assert!(!Running { started: own.started + 1, ..own.clone() }.lives());
        assert!(!Running { boot: "another".to_owned(), ..own.clone() }.lives());
        assert!(Running { program: own_program().expect("it is"), ..own }.is_itself());
        assert_eq!(started(u32::MAX), None);
    }

    #[test]
    fn the_folder_is_found_by_where_a_release_is() {
        let found = folders_of(Path::new("/var/lib/node/releases/0a1b/longshore-node")).expect("it is one");
        assert_eq!(found.data, Path::new("/var/lib/node"));
        for path in ["/usr/local/bin/longshore-node", "/longshore-node", "/a/releases/bin/0a1b/longshore-node"] {
            let error = folders_of(Path::new(path)).map(drop).expect_err(path).to_string();
            assert!(error.contains(path) && error.contains("deploy it"), "{error}");
        }
    }

    /// Whoever asks, whenever: a failure is told until the release is deployed anew, and what was before it has its turn.
    #[tokio::test]
    async fn a_program_that_failed_is_not_tried_again_by_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let folders = Folders { data: folder.path().to_owned() };
        let artifact = ArtifactId::of(b"bad");
        let program = folders.releases().join(artifact.to_string()).join("longshore-node");
        let before = folder.path().join("before");
        Turn { program: Some(before.clone()), ..Turn::default() }.write(&folders).expect("written");
        // No agent runs here that could become it.
        for _ in 0..2 {
            let error = change(&folders, &program, Duration::ZERO).await.expect_err("nobody came up").to_string();
            assert!(error.contains("not connected"), "{error}");
            assert_eq!(Turn::read(&folders).expect("there").program, Some(before.clone()));
        }
        forget_failure(&folders, artifact).expect("written");
        assert_eq!(Turn::read(&folders).expect("there").failed, None);

        // Its agent went back from it: the turn is given back though its time is not over.
        let trial = Some(Trial::begin(Duration::from_secs(60), Some(before.clone())));
        Turn { program: Some(program.clone()), trial, failed: None }.write(&folders).expect("written");
        withdraw(&folders, ArtifactId::of(b"other"), "why").expect("nothing");
        assert_eq!(Turn::read(&folders).expect("there").program, Some(program.clone()));
        withdraw(&folders, artifact, "why").expect("written");
        let turn = Turn::read(&folders).expect("there");
        assert_eq!(
            (turn.program, turn.trial, turn.failed.map(|failed| failed.reason)),
            (Some(before), None, Some("why".into()))
        );

        // One that was proved stays, whatever is asked.
        Turn { program: Some(program.clone()), ..Turn::default() }.write(&folders).expect("written");
        withdraw(&folders, artifact, "why").expect("nothing");
        assert_eq!(Turn::read(&folders).expect("there").program, Some(program));
    }
}
