//! `make bench-delta`: what an update costs, in bytes, for pairs of real releases: with chunks, with a patch, and with other tools.
//!
//! ```text
//! pair ─▶ publish old, publish new on top of it ─▶ S3 server on disk ─▶ a machine fetches old, then new
//!   │                                                     └─▶ patch from old to new ─▶ applied on the machine, assembled, compared
//!   └─▶ casync with the old tree as its seed; xdelta3, zstd --patch-from and bsdiff for each file that changed
//! ```
//!
//! Bytes are exact, so that a busy machine changes nothing but how long this takes. What was fetched, patched or extracted is compared with the
//! new tree, byte by byte.

#![allow(clippy::print_stderr, reason = "progress is told to people")]

mod ours;
mod pairs;
mod tools;

use std::{
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use longshore_bench::{
    Goal, Report,
    roles::{Role, Server},
    trees,
};
use serde_json::{Value, json};

use ours::Ours;
use pairs::Pair;
use tools::Tools;

/// A patch that is larger than the best tool's by no more than this is as good.
const AS_GOOD_BYTES: u64 = 64 * 1024;
const PAIRS_MIN: f64 = 8.0;

#[derive(Parser)]
#[command(about = "Compares what updates of real releases cost, in bytes.")]
struct Options {
    /// Other tools get ten minutes for a file instead of one
    #[arg(long)]
    full: bool,
    /// Only this pair
    #[arg(long)]
    pair: Option<String>,
    /// Leaves the other tools out, to look at ours alone
    #[arg(long)]
    only_ours: bool,
    /// Where to work. The system's temporary directory by default.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    match &options.role {
        None => bench(&options),
        Some(role) => role.play(),
    }
}

/// One pair's figures.
struct Row {
    name: String,
    ours: Ours,
    /// None if they were left out.
    tools: Option<Tools>,
    /// Ours without the files that are too large for the tools, if there are any.
    compared: Option<Ours>,
}

fn bench(options: &Options) -> Result<()> {
    let work = trees::work_in(options.dir.as_deref())?;
    let found = pairs::find()?;
    let chosen = found.iter().filter(|pair| options.pair.as_ref().is_none_or(|name| *name == pair.name));
    let server = Server::start(&work.path().join("server"))?;
    let seconds = if options.full { 600 } else { 60 };
    let rows: Vec<Row> = chosen.map(|pair| row(pair, &server, work.path(), options, seconds)).collect::<Result<_>>()?;
    ensure!(!rows.is_empty(), "there is no such pair");
    print_table(&rows);
    report(&rows, options.only_ours);
    Ok(())
}

fn row(pair: &Pair, server: &Server, work: &Path, options: &Options, seconds: u64) -> Result<Row> {
    eprintln!("delta: {}", pair.name);
    let dir = work.join(&pair.name);
    let name = pair.name.clone();
    let measured = thread::scope(|scope| -> Result<Row> {
        let tools = (!options.only_ours).then(|| scope.spawn(|| tools::measure(pair, &dir.join("tools"), seconds)));
        let ours = ours::measure(pair, &server.endpoint, &dir.join("ours"))?;
        let compared = match pair.without_large(&dir.join("smaller"))? {
            Some(smaller) if !options.only_ours => {
                Some(ours::measure(&smaller, &server.endpoint, &dir.join("compared"))?)
            }
            _ => None,
        };
        let tools = tools.map(|tools| tools.join().map_err(|_| anyhow!("the thread of the other tools died"))?);
        Ok(Row { name, ours, tools: tools.transpose()?, compared })
    });
    let row = measured.with_context(|| format!("pair {}", pair.name))?;
    std::fs::remove_dir_all(&dir)?;
    Ok(row)
}

impl Row {
    /// What a machine needs, for each byte of chunks that it lacks.
    fn over_missing(&self) -> f64 {
        self.ours.needed as f64 / self.ours.missing_chunks as f64
    }

    /// The patch, and the best of the tools that made all files.
    fn patches(&self) -> Option<(u64, u64)> {
        let best = self.tools.as_ref()?.best()?;
        Some((self.compared.as_ref().unwrap_or(&self.ours).patched, best))
    }

    /// The patch over the best of them; none if it is as good.
    fn over_best(&self) -> Option<f64> {
        let (patched, best) = self.patches()?;
        (patched > best + AS_GOOD_BYTES).then(|| patched as f64 / best as f64)
    }

    fn json(&self) -> Value {
        let Ours { full, missing_chunks, uploaded, replicated, needed, patched, index } = &self.ours;
        let mut row = json!({
            "name": self.name, "full": full, "missing_chunks": missing_chunks, "uploaded": uploaded, "replicated": replicated,
            "needed": needed, "index": index, "patched": patched,
        });
        if let Some(tools) = &self.tools {
            for (name, bytes) in tools.figures() {
                row[name] = json!(bytes);
            }
            row["note"] = json!(tools.note());
        }
        if let Some(compared) = &self.compared {
            row["patched_compared"] = json!(compared.patched);
        }
        row
    }
}

fn print_table(rows: &[Row]) {
    let mut table = Table::new();
    let header = [
        "pair, KiB",
        "full",
        "missing",
        "uploaded",
        "replicated",
        "needed",
        "patched",
        "casync",
        "xdelta3",
        "zstd",
        "bsdiff",
    ];
    table.load_style(UTF8_BORDERS_ONLY).set_header(header);
    let kib = |bytes: u64| bytes.div_ceil(1024).to_string();
    for row in rows {
        let Ours { full, missing_chunks, uploaded, replicated, needed, patched, .. } = row.ours;
        let mut cells = vec![row.name.clone()];
        cells.extend([full, missing_chunks, uploaded, replicated, needed, patched].map(kib));
        let figures = row.tools.iter().flat_map(Tools::figures);
        cells.extend(figures.map(|(_, bytes)| bytes.map_or_else(|| "–".to_owned(), kib)));
        table.add_row(cells);
        if let Some(compared) = &row.compared {
            table.add_row([
                format!("  {} MB a file at most", pairs::FILE_BYTES_MAX / 1_000_000),
                kib(compared.full),
                kib(compared.missing_chunks),
                kib(compared.uploaded),
                kib(compared.replicated),
                kib(compared.needed),
                kib(compared.patched),
            ]);
        }
    }
    println_table(&table);
}

#[allow(clippy::print_stdout, reason = "a benchmark's result is what it prints")]
fn println_table(table: &Table) {
    println!("{table}");
}

fn report(rows: &[Row], only_ours: bool) {
    let worst = |figures: Vec<f64>| figures.into_iter().fold(0.0, f64::max);
    let mut report = Report::new("delta");
    report.figure("pairs_measured", rows.len() as f64, Goal::AtLeast(PAIRS_MIN));
    report.figure("worst_over_missing", worst(rows.iter().map(Row::over_missing).collect()), Goal::AtMost(1.05));
    let uploaded = rows.iter().map(|row| row.ours.uploaded as f64 / row.ours.missing_chunks as f64);
    report.figure("worst_uploaded_over_missing", worst(uploaded.collect()), Goal::None);
    if only_ours {
        report.missing("worst_over_best_patch", "the other tools were left out");
    } else {
        let ratio = |row: &Row| row.patches().map(|(patched, best)| patched as f64 / best as f64);
        report.figure("worst_ratio_to_best_patch", worst(rows.iter().filter_map(ratio).collect()), Goal::None);
        // Where it is no more than 64 KiB larger it counts as equal.
        let over = rows.iter().filter(|row| row.patches().is_some()).map(|row| row.over_best().unwrap_or(1.0));
        report.figure("worst_over_best_patch", worst(over.collect()), Goal::AtMost(1.5));
    }
    report.detail("pairs", rows.iter().map(Row::json).collect());
    report.print();
}
