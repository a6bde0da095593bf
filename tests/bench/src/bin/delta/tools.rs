//! Other tools on the same pair: casync for the tree, and three that make a patch for each file that has changed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use longshore_bench::trees;

use crate::pairs::{Changed, FILE_BYTES_MAX, Pair};

/// What zstd compresses at the highest level in time; of larger files it looks at more, less closely.
const ZSTD_HIGH_BYTES_MAX: u64 = 16 << 20;

pub(crate) struct Tools {
    casync: u64,
    per_file: [PerFile; 3],
    /// Files that are too large for the others.
    too_large: usize,
}

/// A tool that makes a patch for each file.
struct PerFile {
    name: &'static str,
    command: fn(&Files<'_>) -> Command,
    bytes: u64,
    /// Files that took too long.
    failed: usize,
}

struct Files<'a> {
    old: &'a Path,
    new: &'a Path,
    patch: &'a Path,
    bytes: u64,
}

/// How a tool is told to patch a file.
type Tool = fn(&Files<'_>) -> Command;

const PER_FILE: [(&str, Tool); 3] = [("xdelta3", xdelta3), ("zstd", zstd), ("bsdiff", bsdiff)];

fn xdelta3(files: &Files<'_>) -> Command {
    // The whole old file is looked at, as the others do.
    let window = FILE_BYTES_MAX.to_string();
    command("xdelta3", &["-e", "-f", "-9", "-B", &window, "-s"], &[files.old, files.new, files.patch])
}

fn zstd(files: &Files<'_>) -> Command {
    let level = if files.bytes <= ZSTD_HIGH_BYTES_MAX { "-19" } else { "-15" };
    let mut command = command("zstd", &["-q", "-f", level, "--long=27", "-o"], &[files.patch, files.new]);
    command.arg(format!("--patch-from={}", files.old.display()));
    command
}

fn bsdiff(files: &Files<'_>) -> Command {
    command("bsdiff", &[], &[files.old, files.new, files.patch])
}

fn command(tool: &str, flags: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new(tool);
    command.args(flags).args(paths);
    command
}

impl Tools {
    /// Every tool with its bytes, in the order of the table. A tool that some files took too long has none.
    pub(crate) fn figures(&self) -> Vec<(&'static str, Option<u64>)> {
        let per_file = self.per_file.iter().map(|tool| (tool.name, (tool.failed == 0).then_some(tool.bytes)));
        [("casync", Some(self.casync))].into_iter().chain(per_file).collect()
    }

    /// The fewest bytes of those that make patches.
    pub(crate) fn best(&self) -> Option<u64> {
        self.per_file.iter().filter(|tool| tool.failed == 0).map(|tool| tool.bytes).min()
    }

    pub(crate) fn note(&self) -> Option<String> {
        let failed = self.per_file.iter().filter(|tool| tool.failed > 0);
        let mut notes: Vec<_> =
            failed.map(|tool| format!("{} took too long for {} files", tool.name, tool.failed)).collect();
        if self.too_large > 0 {
            notes.push(format!(
                "{} files of more than {} MB are left out of xdelta3, zstd, bsdiff and patched_compared",
                self.too_large,
                FILE_BYTES_MAX / 1_000_000
            ));
        }
        (!notes.is_empty()).then(|| notes.join("; "))
    }
}

pub(crate) fn measure(pair: &Pair, dir: &Path, seconds: u64) -> Result<Tools> {
    fs::create_dir_all(dir)?;
    let per_file = PER_FILE.map(|(name, command)| PerFile { name, command, bytes: 0, failed: 0 });
    let mut tools = Tools { casync: casync(pair, dir)?, per_file, too_large: 0 };
    let (empty, patch) = (dir.join("empty"), dir.join("patch"));
    // For what had no counterpart. A byte, because bsdiff cannot map a file that has none.
    fs::write(&empty, b"\n")?;
    for Changed { old, new } in pair.changed()? {
        let bytes = new.metadata()?.len();
        if bytes > FILE_BYTES_MAX {
            tools.too_large += 1;
            continue;
        }
        let files = Files { old: old.as_deref().unwrap_or(&empty), new: &new, patch: &patch, bytes };
        for tool in tools.per_file.iter_mut().filter(|tool| tool.failed == 0) {
            match run(&(tool.command)(&files), seconds)? {
                true => tool.bytes += fs::metadata(&patch)?.len(),
                false => tool.failed += 1,
            }
        }
    }
    Ok(tools)
}

/// False if it took too long.
fn run(command: &Command, seconds: u64) -> Result<bool> {
    let mut gentle = Command::new("nice");
    gentle.args(["timeout", &seconds.to_string()]).arg(command.get_program()).args(command.get_args());
    let output = gentle.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let output = output.with_context(|| format!("{:?} cannot be run", command.get_program()))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    // What `timeout` says when it had to end the program.
    let late = output.status.code() == Some(124);
    ensure!(output.status.success() || late, "{command:?} failed: {stderr}");
    Ok(!late)
}

/// What extracting the new tree, with links and without modes, reads of its store, and the index, where the old tree is the seed. The chunks that the old tree has too are
/// removed before, so that it can read no others.
fn casync(pair: &Pair, dir: &Path) -> Result<u64> {
    let store = |name: &str| dir.join(format!("{name}.castr"));
    let index = |name: &str| dir.join(format!("{name}.caidx"));
    let casync = |verb: &str, store: &Path, arguments: &[&Path]| {
        let mut command = command("casync", &[verb, "--with=symlinks"], &[]);
        command.arg(format!("--store={}", store.display()));
        if verb == "extract" {
            command.arg(format!("--seed={}", pair.old.display()));
        }
        command.args(arguments);
        ensure!(run(&command, 600)?, "{command:?} took too long");
        anyhow::Ok(())
    };
    casync("make", &store("old"), &[&index("old"), &pair.old])?;
    casync("make", &store("new"), &[&index("new"), &pair.new])?;
    let mut bytes = index("new").metadata()?.len();
    for chunk in trees::files(&store("new"))? {
        let name: PathBuf = chunk.strip_prefix(store("new"))?.to_owned();
        if store("old").join(name).exists() {
            fs::remove_file(&chunk)?;
        } else {
            bytes += chunk.metadata()?.len();
        }
    }
    let target = dir.join("extracted");
    casync("extract", &store("new"), &[&index("new"), &target])?;
    trees::compare_bytes(&pair.new, &target)?;
    match fs::remove_dir_all(&target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(bytes),
    }
}
