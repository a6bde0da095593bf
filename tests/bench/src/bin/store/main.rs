//! Publishing and fetching a tree of 1 GiB, and publishing it again with 2 % of it changed.
//!
//! The parent makes the tree, and starts an S3 server, a publisher and a fetcher as processes of their own, so that
//! CPU time and memory are those of one role alone. What was fetched is compared byte by byte with what was published.
#![allow(clippy::print_stdout, reason = "the children tell their results on standard output")]

mod roles;
mod tree;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use longshore_bench::{Goal, Report};
use serde::de::DeserializeOwned;

use roles::{Fetched, PublishedBy};

const MIB: u64 = 1024 * 1024;
const GB: f64 = 1e9;
/// Runs of changed bytes.
const RUNS: u64 = 32;
/// What cutting may add to each run: two chunks.
const RUN_OVERHEAD_BYTES: u64 = 2 * 256 * 1024;

#[derive(Parser)]
#[command(about = "Publishes and fetches a tree through an S3 server, and measures it.")]
struct Options {
    /// Size of the tree.
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// The same seed makes the same tree and the same changes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to work; about four times the size must be free. The system's temporary directory by default.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What a child process does.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Serve { root: PathBuf },
    #[command(hide = true)]
    Publish { endpoint: String, source: PathBuf, base: Option<String> },
    #[command(hide = true)]
    Fetch { endpoint: String, artifact: String, dir: PathBuf, installed: Option<String> },
}

fn main() -> Result<()> {
    let options = Options::parse();
    match options.role {
        None => bench(&options),
        Some(Role::Serve { root }) => roles::serve(root),
        Some(Role::Publish { endpoint, source, base }) => roles::publish(&endpoint, &source, base.as_deref()),
        Some(Role::Fetch { endpoint, artifact, dir, installed }) => {
            roles::fetch(&endpoint, &artifact, &dir, installed.as_deref())
        }
    }
}

fn bench(options: &Options) -> Result<()> {
    let work = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .context("cannot make a working directory")?;
    let (source, machine) = (work.path().join("source"), work.path().join("machine"));
    fs::create_dir(&machine)?;
    let size_bytes = tree::make(&source, options.size_mib * MIB, options.seed)?;
    let server = Server::start(&work.path().join("bucket"))?;

    let first: PublishedBy = child(&["publish", &server.endpoint, text(&source)?])?;
    let fetched: Fetched = child(&["fetch", &server.endpoint, &first.artifact, text(&machine)?])?;
    tree::compare(&source, &machine.join("releases").join(&first.artifact))?;

    let changed = tree::change(&source, RUNS, size_bytes / 50, options.seed)?;
    let second: PublishedBy = child(&["publish", &server.endpoint, text(&source)?, &first.artifact])?;
    let update: Fetched = child(&["fetch", &server.endpoint, &second.artifact, text(&machine)?, &first.artifact])?;
    tree::compare(&source, &machine.join("releases").join(&second.artifact))?;
    report(size_bytes, changed, &first, &fetched, &second, &update);
    Ok(())
}

fn report(
    size_bytes: u64,
    changed: u64,
    first: &PublishedBy,
    fetched: &Fetched,
    second: &PublishedBy,
    update: &Fetched,
) {
    let (size, upload_max) = (size_bytes as f64, (changed + RUNS * RUN_OVERHEAD_BYTES) as f64);
    let rss = first.usage.peak_rss_mib.max(second.usage.peak_rss_mib);
    let mut report = Report::new("store");
    report.figure("size_bytes", size, Goal::None);
    report.figure("publish_gb_per_cpu_second", size / GB / first.usage.cpu_seconds, Goal::None);
    report.figure("publish_wall_seconds", first.wall_seconds, Goal::None);
    report.figure("uploaded_bytes", first.uploaded_bytes as f64, Goal::None);
    report.figure("fetch_gb_per_cpu_second", size / GB / fetched.usage.cpu_seconds, Goal::None);
    report.figure("fetch_wall_seconds", fetched.wall_seconds, Goal::None);
    report.figure("fetch_peak_rss_mib", fetched.usage.peak_rss_mib, Goal::None);
    report.figure("peak_rss_mib", rss, Goal::AtMost(256.0));
    report.figure("changed_bytes", changed as f64, Goal::None);
    report.figure("second_upload_bytes", second.uploaded_bytes as f64, Goal::AtMost(upload_max));
    report.figure("second_publish_gb_per_cpu_second", size / GB / second.usage.cpu_seconds, Goal::None);
    report.figure("second_fetched_bytes", update.fetched_bytes as f64, Goal::None);
    report.print();
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the working directory's path is not UTF-8")
}

fn this_program(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).stdout(Stdio::piped());
    Ok(command)
}

/// Runs a role to its end and reads its result, the last line that it prints.
fn child<T: DeserializeOwned>(arguments: &[&str]) -> Result<T> {
    let output = this_program(arguments)?.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} ended with {}", arguments[0], output.status);
    let text = String::from_utf8(output.stdout)?;
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .with_context(|| format!("{} printed {text:?}", arguments[0]))
}

/// The S3 server's process. It ends when its standard input does, so also when this process dies.
struct Server {
    endpoint: String,
    child: Child,
}

impl Server {
    fn start(root: &Path) -> Result<Self> {
        let mut child = this_program(&["serve", text(root)?])?.stdin(Stdio::piped()).spawn()?;
        let mut endpoint = String::new();
        let stdout = child.stdout.take().context("the server's output is piped")?;
        BufReader::new(stdout).read_line(&mut endpoint)?;
        ensure!(endpoint.starts_with("http"), "the S3 server did not start");
        Ok(Self { endpoint: endpoint.trim().to_owned(), child })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Nothing can be done about a child that cannot be waited for.
        let _ = self.child.wait();
    }
}
