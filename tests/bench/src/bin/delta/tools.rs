//! Other tools on the same pair: casync for the tree, and three that make a patch for each file that has changed. What comes of a
//! patch is compared with the file, byte for byte: a tool that gives back another file has no figure.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use longshore_bench::trees;

use crate::pairs::{Changed, FILE_BYTES_MAX, Pair};

/// What zstd compresses at the highest level in time; of larger files it looks at more, less closely.
const ZSTD_HIGH_BYTES_MAX: u64 = 16 << 20;
/// Files at a time.
const AT_ONCE: usize = 2;

pub(crate) struct Tools {
    casync: u64,
    per_file: [PerFile; 3],
    /// Files that are too large for the others.
    too_large: usize,
}

/// A tool that makes a patch for each file.
struct PerFile {
    tool: &'static Tool,
    /// Of all files; or why one of them has no patch, without which the others are of no use.
    bytes: Result<u64, &'static str>,
}

/// How a tool is told to make a patch of a file, and to apply it.
struct Tool {
    name: &'static str,
    make: fn(&Files<'_>) -> Command,
    apply: fn(&Files<'_>) -> Command,
}

struct Files<'a> {
    old: &'a Path,
    new: &'a Path,
    patch: &'a Path,
    applied: &'a Path,
    /// Of the larger of both.
    bytes: u64,
}

static PER_FILE: [Tool; 3] = [
    Tool {
        name: "xdelta3",
        make: |files| xdelta3(files, "-e", files.new, files.patch),
        apply: |files| xdelta3(files, "-d", files.patch, files.applied),
    },
    Tool { name: "zstd", make: zstd, apply: unzstd },
    Tool {
        name: "bsdiff",
        make: |files| command("bsdiff", &[], &[files.old, files.new, files.patch]),
        apply: |files| command("bspatch", &[], &[files.old, files.applied, files.patch]),
    },
];

fn xdelta3(files: &Files<'_>, verb: &str, from: &Path, to: &Path) -> Command {
    // The whole old file is looked at, as the others do.
    let window = files.bytes.next_power_of_two().max(1 << 20).to_string();
    // Without `-D` it unpacks what is compressed, packs it again, and gives back other bytes than it was given.
    command("xdelta3", &[verb, "-D", "-f", "-9", "-B", &window, "-s"], &[files.old, from, to])
}

fn zstd(files: &Files<'_>) -> Command {
    let level = if files.bytes <= ZSTD_HIGH_BYTES_MAX { "-19" } else { "-15" };
    zstd_from(files, &["-q", "-f", level, &long(files), "-o"], &[files.patch, files.new])
}

fn unzstd(files: &Files<'_>) -> Command {
    zstd_from(files, &["-q", "-f", "-d", &long(files), "-o"], &[files.applied, files.patch])
}

fn zstd_from(files: &Files<'_>, flags: &[&str], paths: &[&Path]) -> Command {
    let mut command = command("zstd", flags, paths);
    command.arg(format!("--patch-from={}", files.old.display()));
    command
}

/// A window over all of both files, and no larger: it is made anew for each.
fn long(files: &Files<'_>) -> String {
    let window = (2 * files.bytes).next_power_of_two().trailing_zeros().clamp(20, 28);
    format!("--long={window}")
}

fn command(tool: &str, flags: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new(tool);
    command.args(flags).args(paths);
    command
}

impl Tools {
    /// Every tool with its bytes, in the order of the table. One that lacks a file has none.
    pub(crate) fn figures(&self) -> Vec<(&'static str, Option<u64>)> {
        let per_file = self.per_file.iter().map(|made| (made.tool.name, made.bytes.ok()));
        [("casync", Some(self.casync))].into_iter().chain(per_file).collect()
    }

    /// The fewest bytes of those that make patches.
    pub(crate) fn best(&self) -> Option<u64> {
        self.per_file.iter().filter_map(|made| made.bytes.ok()).min()
    }

    pub(crate) fn note(&self) -> Option<String> {
        let failed = |made: &PerFile| Some(format!("{} {}", made.tool.name, made.bytes.err()?));
        let mut notes: Vec<_> = self.per_file.iter().filter_map(failed).collect();
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
    let empty = dir.join("empty");
    // For what had no counterpart. A byte, because bsdiff cannot map a file that has none.
    fs::write(&empty, b"\n")?;
    let (mut files, mut too_large) = (Vec::new(), 0);
    for Changed { old, new } in pair.changed()? {
        let bytes = new.metadata()?.len();
        if bytes > FILE_BYTES_MAX {
            too_large += 1;
        } else {
            let old = old.unwrap_or_else(|| empty.clone());
            files.push((bytes.max(old.metadata()?.len()), old, new));
        }
    }
    // The longest first, so that the threads end together.
    files.sort();
    let left = Mutex::new(files);
    let made = Mutex::new(PER_FILE.each_ref().map(|tool| PerFile { tool, bytes: Ok(0) }));
    let casync = thread::scope(|scope| {
        let casync = scope.spawn(|| casync(pair, dir));
        let work = |number| {
            let (left, made) = (&left, &made);
            let (patch, applied) = (dir.join(format!("patch-{number}")), dir.join(format!("applied-{number}")));
            scope.spawn(move || each(left, made, &patch, &applied, seconds))
        };
        let workers: Vec<_> = (0..AT_ONCE).map(work).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a thread died"))??;
        }
        casync.join().map_err(|_| anyhow!("the thread of casync died"))?
    })?;
    let per_file = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Tools { casync, per_file, too_large })
}

/// Size, old and new file.
type Work = (u64, PathBuf, PathBuf);

/// File after file, for as long as there are some.
fn each(left: &Mutex<Vec<Work>>, made: &Mutex<[PerFile; 3]>, patch: &Path, applied: &Path, seconds: u64) -> Result<()> {
    let lock = || made.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let next = left.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some((bytes, old, new)) = next else { return Ok(()) };
        let files = Files { old: &old, new: &new, patch, applied, bytes };
        for (number, tool) in PER_FILE.iter().enumerate() {
            if lock()[number].bytes.is_err() {
                continue;
            }
            let patched = patched(tool, &files, seconds)?;
            let bytes = &mut lock()[number].bytes;
            *bytes = bytes.and_then(|before| Ok(before + patched?));
        }
    }
}

/// The bytes of one file's patch, or why there is none.
fn patched(tool: &Tool, files: &Files<'_>, seconds: u64) -> Result<Result<u64, &'static str>> {
    if !run(&(tool.make)(files), seconds)? || !run(&(tool.apply)(files), seconds)? {
        return Ok(Err("took too long for a file"));
    }
    if fs::read(files.applied)? != fs::read(files.new)? {
        return Ok(Err("gave back another file than it was given"));
    }
    Ok(Ok(files.patch.metadata()?.len()))
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
