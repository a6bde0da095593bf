//! The processes below this one. As subreaper it is the parent of whatever its children leave behind.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use tokio::time::{Instant, sleep};

const POLL: Duration = Duration::from_millis(20);
/// A process in an uninterruptible sleep must not hold the shim for ever.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Every process whose line of parents leads here.
fn descendants() -> Vec<Pid> {
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| Some((pid, parent(pid)?)))
        .collect();
    let mut found = vec![getpid().as_raw_nonzero().get()];
    let mut at = 0;
    while at < found.len() {
        let children = parents.iter().filter(|(_, parent)| *parent == found[at]).map(|(pid, _)| *pid);
        let children: Vec<i32> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(children);
        at += 1;
    }
    found[1..].iter().filter_map(|pid| Pid::from_raw(*pid)).collect()
}

/// The parent of a process that is not a zombie.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, spaces and parentheses too.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" { None } else { fields.next()?.parse().ok() }
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

/// Collects what has ended: adopted processes would stay zombies.
fn reap() {
    while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
}
