//! One process for each target: an input that aborts, overflows the stack or hangs ends only its own, and is a finding.

use std::{
    fmt::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{Target, corpus, hunt};

/// How the program calls itself for one target.
pub const INSIDE: &str = "--inside";

/// Hunts through the target in a process of its own. Answers whether it found something.
pub fn hunt_apart(target: &Target, options: &hunt::Hunt) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let running = folder.path().join("running");
    let program = std::env::current_exe().context("this program has no path")?;
    let status = Command::new(program)
        .args([INSIDE, "--target", target.name])
        .args(["--seed", &options.seed.to_string(), "--cases", &options.cases.to_string()])
        .args(["--seconds", &options.time.as_secs_f64().to_string()])
        .arg("--corpus")
        .arg(&options.corpus)
        .arg("--running")
        .arg(&running)
        .stdin(Stdio::null())
        .status()?;
    match status.code() {
        Some(0) => Ok(false),
        Some(FOUND) => Ok(true),
        _ => {
            let input = std::fs::read(&running).unwrap_or_default();
            let path = corpus::keep(&options.corpus, target.name, &input)?;
            report(&format!("{}: FOUND {}: the process died: {status}\n", target.name, shown(&path)));
            Ok(true)
        }
    }
}

/// The exit status of a process that found something.
pub const FOUND: i32 = 3;

/// Hunts in this process, and prints one line, and one for each finding; with `kinds`, also one for each kind of outcome.
pub fn hunt_inside(target: &Target, options: &hunt::Hunt, kinds: bool) -> Result<bool> {
    let began = std::time::Instant::now();
    let hunted = hunt::hunt(target, options)?;
    let (memory, input) = hunted.memory_max;
    let mut text = format!(
        "{:<12} {:>8} cases in {:>5.1} s, {:>4} kinds of outcome, at most {:>6.1} KiB (for {input} bytes)\n",
        target.name,
        hunted.cases,
        began.elapsed().as_secs_f64(),
        hunted.kinds.len(),
        memory as f64 / 1024.0,
    );
    for (path, wrong) in &hunted.findings {
        let _ = writeln!(text, "{}: FOUND {}: {wrong}", target.name, shown(path));
    }
    for (kind, cases) in hunted.kinds.iter().filter(|_| kinds) {
        let _ = writeln!(text, "{cases:>10} {kind}");
    }
    report(&text);
    Ok(!hunted.findings.is_empty())
}

fn shown(path: &Path) -> String {
    path.strip_prefix(longshore_checkout::path("")).unwrap_or(path).display().to_string()
}

#[allow(clippy::print_stdout, reason = "what was found is what this program is for")]
fn report(text: &str) {
    print!("{text}");
}

/// How much time each target gets of so many minutes.
pub fn share(minutes: f64, targets: usize) -> Duration {
    Duration::from_secs_f64((minutes * 60.0 / targets.max(1) as f64).max(0.1))
}
