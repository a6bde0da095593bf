//! Processes, as `/proc` tells of them: those below this one, which as subreaper is the parent of whatever its children leave behind; and
//! others, by what they are called and by their environment.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use tokio::time::{Instant, sleep};

const POLL: Duration = Duration::from_millis(20);
/// A process in an uninterruptible sleep must not hold the shim for ever.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// What `/proc` tells of a process.
struct Process {
    pid: i32,
    parent: i32,
    ended: bool,
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, spaces and parentheses too.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let ended = fields.next()? == "Z";
    Some(Process { pid, parent: fields.next()?.parse().ok()?, ended })
}

/// Every process that has not ended.
pub(super) fn all() -> Vec<Pid> {
    processes().into_iter().filter(|process| !process.ended).filter_map(|process| Pid::from_raw(process.pid)).collect()
}

/// Whether a process was started with these arguments and this path, and no others.
pub(super) fn is_called(process: Pid, arguments: &[&str], path: &Path) -> bool {
    let line = fs::read(format!("/proc/{}/cmdline", process.as_raw_nonzero())).unwrap_or_default();
    let path = path.as_os_str().as_encoded_bytes();
    let expected = arguments.iter().map(|argument| argument.as_bytes()).chain([path]);
    line.strip_suffix(b"\0").is_some_and(|line| line.split(|byte| *byte == 0).eq(expected))
}

/// Whether a process was started with this in its environment, as `NAME=value`. Of another user's nobody can tell.
pub(super) fn has_variable(process: Pid, variable: &[u8]) -> bool {
    let environment = fs::read(format!("/proc/{}/environ", process.as_raw_nonzero())).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == variable)
}

/// All others with this in their environment.
pub(super) fn with_variable(variable: &[u8]) -> Vec<Pid> {
    let own = getpid();
    all().into_iter().filter(|process| *process != own && has_variable(*process, variable)).collect()
}

/// Every process whose line of parents leads here and that has not ended.
fn descendants() -> Vec<Pid> {
    let living: Vec<Process> = processes().into_iter().filter(|process| !process.ended).collect();
    let mut found = vec![getpid().as_raw_nonzero().get()];
    let mut at = 0;
    while at < found.len() {
        let children = living.iter().filter(|process| process.parent == found[at]).map(|process| process.pid);
        let children: Vec<i32> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(children);
        at += 1;
    }
    found[1..].iter().filter_map(|pid| Pid::from_raw(*pid)).collect()
}

/// Waits until no process is left below this one.
pub(super) async fn childless() {
    while !descendants().is_empty() {
        reap();
        sleep(POLL).await;
    }
}

/// Kills all processes below this one, and those that they start meanwhile.
pub(super) async fn kill_descendants() {
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        let left = descendants();
        if left.is_empty() || Instant::now() > deadline {
            break;
        }
        for pid in left {
            // It may have ended just now.
            let _ = kill_process(pid, Signal::KILL);
        }
        reap();
        sleep(POLL).await;
    }
    reap();
}

/// Collects what has ended of the adopted; the service's own process is for whoever waits for it.
pub(super) fn reap_adopted(own: Option<Pid>) {
    let here = getpid().as_raw_nonzero().get();
    let ended = processes().into_iter().filter(|process| process.ended && process.parent == here);
    for pid in ended.filter_map(|process| Pid::from_raw(process.pid)).filter(|pid| Some(*pid) != own) {
        // It is a zombie of ours: there is nothing to go wrong.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// Collects what has ended: adopted processes would stay zombies.
fn reap() {
    while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
}
