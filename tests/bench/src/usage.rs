//! What this process used, and what machine it runs on, as the kernel tells it under /proc.

use std::fs;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The kernel counts CPU time in ticks of this many per second; fixed for all programs on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process used since it began.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Usage {
    /// All threads, in user and kernel mode.
    pub cpu_seconds: f64,
    /// Now.
    pub rss_mib: f64,
    pub peak_rss_mib: f64,
}

impl Usage {
    pub fn of_this_process() -> Option<Self> {
        Self::of("self")
    }

    /// By its pid, as text.
    pub fn of(process: &str) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The second field is the name in parentheses and may hold spaces; times are the 14th and 15th.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
        let mib = |name: &str| field(&format!("/proc/{process}/status"), name).map(|kib| kib / 1024.0);
        Some(Self { cpu_seconds: ticks / TICKS_PER_SECOND, rss_mib: mib("VmRSS:")?, peak_rss_mib: mib("VmHWM:")? })
    }
}

/// The first number after a field's name.
fn field(path: &str, name: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The machine, for the report's JSON line.
pub fn machine() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, model)| model);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    json!({
        "cores": std::thread::available_parallelism().ok().map(usize::from),
        "cpu": model,
        "memory_gib": field("/proc/meminfo", "MemTotal:").map(|kib| (kib / 1024.0 / 1024.0 * 10.0).round() / 10.0),
        "kernel": kernel.as_deref().map(str::trim),
        "debug_assertions": cfg!(debug_assertions),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::of_this_process().expect("Linux");
        assert!(usage.peak_rss_mib > 0.5 && usage.cpu_seconds >= 0.0, "{usage:?}");
        assert!(machine()["cores"].as_u64().is_some_and(|cores| cores > 0));
    }
}
