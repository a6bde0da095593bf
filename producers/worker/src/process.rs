//! Runs one command under the guard, streams its output to the log, and tells how it ended.
//!
//! The command is stopped by closing the guard's stdin, for whatever reason: time limit, the attempt being over, the worker being dropped.
//! In each case the guard has killed every process before this returns. If it is gone without a word, its keeper too, the
//! processes are looked for here.

use std::{collections::VecDeque, io, process::Stdio, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{GuardProgram, WorkerConfig},
    guard::{
        End, Order, Report,
        leftovers::{self, Left, MARK},
    },
    log,
};

/// Output read at once.
const READ_BYTES: usize = 64 * 1024;
/// The last output that is kept for messages.
pub(crate) const TAIL_BYTES_MAX: usize = 2 * 1024;
/// Longest report, in bytes.
const REPORT_BYTES_MAX: u64 = 64 * 1024;
/// How long the guard may take to kill everything before it is killed itself; longer than its own patience.
const GUARD_PATIENCE: Duration = Duration::from_secs(40);

/// How a command ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ended {
    Exited(i32),
    Signaled(i32),
    TimedOut,
    /// The stop token asked for it.
    Stopped,
    NotFound,
    CannotStart(String),
}

pub(crate) struct Outcome {
    pub(crate) ended: Ended,
    /// The end of what it printed.
    pub(crate) tail: String,
}

/// Limits for one command.
pub(crate) struct Until<'a> {
    pub(crate) limit: Duration,
    pub(crate) stop: &'a CancellationToken,
}

/// Errors are the worker's own: the guard cannot be started or went away.
pub(crate) async fn run(
    config: &WorkerConfig,
    order: &Order,
    until: Until<'_>,
    log: Option<&log::Writer>,
) -> io::Result<Outcome> {
    let mark = leftovers::mark(&config.work_dir.canonicalize()?);
    let mut order = order.clone();
    order.environment.insert(MARK.to_owned(), mark.clone());
    let outcome = run_guarded(&config.guard, &order, &mark, until, log).await;
    if outcome.is_err() {
        end_leftovers(&mark).await?;
    }
    outcome
}

/// What neither guard nor keeper could end.
async fn end_leftovers(mark: &str) -> io::Result<()> {
    let mark = mark.to_owned();
    let ending = tokio::task::spawn_blocking(move || leftovers::end(Left::ByCommand(&mark)));
    let (met, left) = ending.await.map_err(io::Error::other)?;
    if met > 0 {
        tracing::error!(met, left, "a command lost its guard; what it had left was killed");
    }
    if left > 0 { Err(io::Error::other("processes of the command could not be killed")) } else { Ok(()) }
}

async fn run_guarded(
    guard: &GuardProgram,
    order: &Order,
    mark: &str,
    until: Until<'_>,
    log: Option<&log::Writer>,
) -> io::Result<Outcome> {
    let deadline = Instant::now() + until.limit;
    let mut child = Command::new(&guard.program)
        .args(&guard.arguments)
        // Neither guard nor keeper has the mark.
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let missing = || io::Error::other("the guard has no pipe");
    let mut orders = child.stdin.take().ok_or_else(missing)?;
    let output = child.stdout.take().ok_or_else(missing)?;
    let report = child.stderr.take().ok_or_else(missing)?;

    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    // A guard that died already is noticed by its missing report.
    let _ = orders.write_all(&line).await;

    let reported = async {
        let report = read_report(report).await;
        if report.is_err() {
            // They hold the output's pipe open, which would be waited for.
            end_leftovers(mark).await?;
        }
        report
    };
    let work = async { tokio::join!(stream(output, log), reported) };
    tokio::pin!(work);
    let reason = tokio::select! {
        ended = &mut work => return finish(ended, None),
        () = sleep_until(deadline) => Ended::TimedOut,
        () = until.stop.cancelled() => Ended::Stopped,
    };
    close(orders);
    match timeout(GUARD_PATIENCE, &mut work).await {
        Ok(ended) => finish(ended, Some(reason)),
        Err(_) => give_up(&mut child).await,
    }
}

/// Closing the pipe is the order to kill.
fn close(orders: ChildStdin) {
    drop(orders);
}

async fn give_up(guard: &mut Child) -> io::Result<Outcome> {
    tracing::error!(pid = guard.id(), "the guard does not end; it is killed, and processes may be left");
    guard.kill().await?;
    Err(io::Error::other("processes of the command could not be killed"))
}

fn finish((tail, report): (String, io::Result<Report>), reason: Option<Ended>) -> io::Result<Outcome> {
    let report = report?;
    if report.left > 0 {
        tracing::error!(left = report.left, "processes of a command could not be killed");
    }
    let ended = match (reason, report.end) {
        (Some(reason), _) => reason,
        (None, End::Exited { status }) => Ended::Exited(status),
        (None, End::Signaled { signal }) => Ended::Signaled(signal),
        (None, End::NotFound) => Ended::NotFound,
        (None, End::CannotStart { error }) => Ended::CannotStart(error),
        (None, End::Lost { signal }) => {
            let reason = format!(
                "the guard was killed by signal {signal}, as happens when the machine runs out of memory, and the command's \
                 processes with it"
            );
            return Err(io::Error::other(reason));
        }
        (None, End::Killed) => return Err(io::Error::other("the guard was told to stop by someone else")),
    };
    Ok(Outcome { ended, tail })
}

async fn read_report(from: impl AsyncRead + Unpin) -> io::Result<Report> {
    let mut line = Vec::new();
    from.take(REPORT_BYTES_MAX).read_to_end(&mut line).await?;
    // A guard that was killed right after its report is reported by its keeper as well.
    let first = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice(first)
        .map_err(|_| io::Error::other(format!("the guard ended without a report: {}", String::from_utf8_lossy(&line))))
}

/// Passes output on to the log until its end; answers its last lines.
async fn stream(mut output: impl AsyncRead + Unpin, log: Option<&log::Writer>) -> String {
    let mut tail = Tail::default();
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        match output.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return tail.text(),
            Ok(_) => {}
        }
        let piece = buffer.split().freeze();
        tail.push(&piece);
        if let Some(log) = log {
            log.write(piece).await;
        }
    }
}

/// The last bytes of a stream.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(TAIL_BYTES_MAX)..];
        self.0.extend(kept);
        let surplus = self.0.len().saturating_sub(TAIL_BYTES_MAX);
        self.0.drain(..surplus);
    }

    /// Whole lines only, unless there is just one.
    fn text(mut self) -> String {
        let cut = self.0.len() == TAIL_BYTES_MAX;
        let bytes = self.0.make_contiguous();
        let start = if cut { bytes.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1) } else { 0 };
        String::from_utf8_lossy(&bytes[start..]).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_bounded_and_begins_with_a_line() {
        let mut tail = Tail::default();
        for n in 0..10_000 {
            tail.push(format!("line {n}\n").as_bytes());
        }
        let text = tail.text();
        assert!(text.len() <= TAIL_BYTES_MAX && text.starts_with("line ") && text.ends_with("line 9999"), "{text}");
    }

    #[test]
    fn a_short_tail_is_whole() {
        let mut tail = Tail::default();
        tail.push(b"one\ntwo\n");
        assert_eq!(tail.text(), "one\ntwo");
    }
}
