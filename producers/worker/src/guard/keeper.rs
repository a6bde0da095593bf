//! The keeper: the guard's guard. It owns what becomes of a command's processes if the guard itself is killed.
//!
//! It is a subreaper as well, and the nearest one once the guard is gone, so that the kernel gives it the guard's orphans.
//! It reads the order only to hand it on; each of the two sees at its pipe when the one above it is gone.

use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    process::{ChildStdin, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{net::unix::pipe, time::timeout};

use super::{End, KILL_PATIENCE, Report, Signals, kill_descendants, own_session, read_line, reap, worker_pipe};

/// Set for the guard that a keeper started.
pub(super) const KEPT: &str = "LONGSHORE_GUARD_KEPT";

/// `None`: the guard has reported itself.
pub(super) async fn keep() -> io::Result<Option<Report>> {
    let own = own_session()?;
    let mut signals = Signals::listen()?;
    let mut worker = worker_pipe()?;
    let Some(line) = read_line(&mut worker).await? else {
        return Ok(Some(Report { end: End::Killed, left: 0 }));
    };
    let (guard, mut orders) = start_guard()?;
    // A guard that died already is noticed below.
    let _ = orders.write_all(&line);
    let end = supervise(guard, orders, &mut signals, &mut worker).await;
    let left = kill_descendants(own, &mut signals).await;
    Ok(match end {
        End::Exited { status: 0 } => None,
        End::Exited { .. } => Some(Report { end: End::Lost { signal: 0 }, left }),
        End::Signaled { signal } => Some(Report { end: End::Lost { signal }, left }),
        other => Some(Report { end: other, left }),
    })
}

fn start_guard() -> io::Result<(Pid, ChildStdin)> {
    // This program, also when its file was replaced by a newer one.
    let mut guard = Command::new("/proc/self/exe")
        .arg0("longshore-guard")
        .args(std::env::args_os().skip(1))
        .env(KEPT, "1")
        .stdin(Stdio::piped())
        .spawn()?;
    let orders = guard.stdin.take().ok_or_else(|| io::Error::other("the guard has no pipe"))?;
    let pid = i32::try_from(guard.id()).ok().and_then(Pid::from_raw);
    Ok((pid.ok_or_else(|| io::Error::other("no process id"))?, orders))
}

/// Until the guard has ended. Whatever means "kill" is handed on, by closing its pipe. A guard that does not act on it, as
/// when its command stopped it, is killed.
async fn supervise(guard: Pid, orders: ChildStdin, signals: &mut Signals, worker: &mut pipe::Receiver) -> End {
    let mut orders = Some(orders);
    loop {
        if let Some(end) = reap(Some(guard)) {
            return end;
        }
        if orders.is_none() {
            if timeout(KILL_PATIENCE + Duration::from_secs(2), signals.child.recv()).await.is_err() {
                // It may have ended just now.
                let _ = kill_process(guard, Signal::KILL);
            }
        } else if signals.told_to_kill(worker).await {
            orders = None;
        }
    }
}
