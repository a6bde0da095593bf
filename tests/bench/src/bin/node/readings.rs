//! What processes use between two moments.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use longshore_bench::Usage;
use longshore_e2e::Process;

const GB: f64 = 1e9;
/// So long a sender is looked at that has nothing to do.
const IDLE: Duration = Duration::from_secs(10);

/// What a process had used by a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    at: Instant,
    usage: Usage,
}

/// Between two readings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    pub(crate) cpu_seconds: f64,
    pub(crate) seconds: f64,
    /// Since the process began, until the later reading.
    pub(crate) peak_rss_mib: f64,
}

impl Reading {
    /// An error if the process has ended.
    pub(crate) fn of(process: &Process) -> Result<Self> {
        let pid = process.pid().to_string();
        let usage = Usage::of(&pid).with_context(|| format!("process {pid} has ended: {}", process.log_end()))?;
        Ok(Self { at: Instant::now(), usage })
    }

    pub(crate) fn since(&self, earlier: &Self) -> Spent {
        Spent {
            cpu_seconds: self.usage.cpu_seconds - earlier.usage.cpu_seconds,
            seconds: (self.at - earlier.at).as_secs_f64(),
            peak_rss_mib: self.usage.peak_rss_mib,
        }
    }
}

/// The share of a core that a process takes when nothing is asked of it.
pub(crate) async fn idle(process: &Process) -> Result<f64> {
    let before = Reading::of(process)?;
    tokio::time::sleep(IDLE).await;
    let spent = Reading::of(process)?.since(&before);
    Ok(spent.cpu_seconds / spent.seconds)
}

/// Content that went from one process to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passage {
    /// From whomever.
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) receiver: Spent,
    pub(crate) sender: Spent,
    /// The sender's, in cores, before.
    pub(crate) idle: f64,
}

impl Passage {
    pub(crate) fn receive_cpu_s_per_gb(&self) -> f64 {
        per_gb(self.receiver.cpu_seconds, self.received_bytes)
    }

    /// Without what the sender would have taken anyhow.
    pub(crate) fn send_cpu_s_per_gb(&self) -> f64 {
        let anyhow = self.idle * self.sender.seconds;
        per_gb((self.sender.cpu_seconds - anyhow).max(0.0), self.sent_bytes)
    }
}

/// A GB is 10⁹ bytes.
pub(crate) fn per_gb(cpu_seconds: f64, bytes: u64) -> f64 {
    cpu_seconds / (bytes as f64 / GB)
}
