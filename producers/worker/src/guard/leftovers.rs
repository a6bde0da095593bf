//! Processes of commands that no guard owns any more, found by the mark in their environment or by the folder that they work in.
//!
//! The second line of defence: it is needed only if a command's guard and its keeper were both killed. A process that
//! clears its environment and leaves the folder as well is not found.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::descendants;

/// In the environment of every process of a worker's commands: the worker's folder, `:`, and which command.
pub(crate) const MARK: &str = "LONGSHORE_WORK";
/// Only a process stuck in the kernel takes this long.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// A mark that no other command has.
pub(crate) fn mark(work_dir: &Path) -> String {
    format!("{}:{:032x}", work_dir.display(), rand::random::<u128>())
}

/// Whose processes are meant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Those with this mark.
    ByCommand(&'a str),
    /// Those with any mark of this worker's folder, or working where its attempts are. Nobody else has business there.
    ByWorker(&'a Path),
}

/// Kills until none is left; answers how many there were, and how many would not die. Blocks.
pub(crate) fn end(left: Left<'_>) -> (usize, usize) {
    let deadline = Instant::now() + PATIENCE;
    let mut met = BTreeSet::new();
    loop {
        let found = find(left);
        if found.is_empty() || Instant::now() > deadline {
            return (met.len(), found.len());
        }
        for pid in found {
            met.insert(pid.as_raw_pid());
            // It may have ended just now, or belong to another user.
            let _ = kill_process(pid, Signal::KILL);
        }
        sleep(PAUSE);
    }
}

fn find(left: Left<'_>) -> Vec<Pid> {
    let own = descendants::with_ancestors(rustix::process::getpid());
    let others = descendants::all().filter(|pid| !own.contains(pid));
    others.filter(|pid| is_left(*pid, left)).filter_map(Pid::from_raw).collect()
}

fn is_left(pid: i32, left: Left<'_>) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let prefix = format!("{MARK}=");
    let marks = environment.split(|byte| *byte == 0).filter_map(|entry| entry.strip_prefix(prefix.as_bytes()));
    match left {
        Left::ByCommand(mark) => marks.into_iter().any(|found| found == mark.as_bytes()),
        Left::ByWorker(folder) => {
            let of_folder = |mark: &[u8]| {
                mark.strip_prefix(folder.as_os_str().as_bytes()).is_some_and(|rest| rest.first() == Some(&b':'))
            };
            let works_in =
                || fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at.starts_with(folder.join("attempts")));
            marks.into_iter().any(of_folder) || works_in()
        }
    }
}
