//! `longshore artifact diff`: what changed, and what a machine that has the one needs for the other.

use longshore_artifact::{Change, Changes, Entry, Index, Installed, Need};
use longshore_schemas::ArtifactId;
use serde::Serialize;

use super::{Context, files::permissions};
use crate::{args::DiffArgs, error::Error, output};

#[derive(Serialize)]
struct Diff {
    from: ArtifactId,
    to: ArtifactId,
    changes: Vec<Changed>,
    needs: Needs,
}

#[derive(Serialize)]
struct Changed {
    path: String,
    change: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Side>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Side>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Added,
    Removed,
    Changed,
    ModeChanged,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum Side {
    File { size_bytes: u64, mode: String },
    Link { target: String },
    Directory,
}

/// What a machine that has `from` must fetch for `to`.
#[derive(Serialize)]
struct Needs {
    /// Of `to`, all different ones and those that `from` lacks.
    chunks: u64,
    new_chunks: u64,
    chunk_bytes: u64,
    new_chunk_bytes: u64,
    /// The packs that hold them, each whole.
    packs: usize,
    pack_bytes: u64,
    /// Manifest and layout, which are always fetched.
    index_bytes: u64,
}

pub(super) async fn run(context: &Context, args: &DiffArgs) -> Result<(), Error> {
    let (from, to) = (context.find_artifact(&args.from).await?, context.find_artifact(&args.to).await?);
    let (from, to) = tokio::try_join!(context.index(&from), context.index(&to))?;
    let diff = compare(&from, &to);
    context.show(&diff, text)
}

fn compare(from: &Index, to: &Index) -> Diff {
    let changes = Changes::new(&from.manifest, &to.manifest).map(changed).collect();
    // Where it lies does not matter: its files are not read.
    let installed = Installed { dir: Default::default(), manifest: from.manifest.clone() };
    let need = Need::compute(to, &[installed]);
    let chunk_bytes: u64 = to.manifest.chunks().iter().map(|chunk| u64::from(chunk.bytes)).sum();
    let needs = Needs {
        chunks: to.root.chunks,
        new_chunks: to.root.chunks - need.reused_chunks,
        chunk_bytes,
        new_chunk_bytes: chunk_bytes - need.reused_bytes,
        packs: need.packs.len(),
        pack_bytes: need.pack_bytes,
        index_bytes: Index::packs(&to.root).map(|pack| pack.bytes).sum(),
    };
    Diff { from: from.root.artifact, to: to.root.artifact, changes, needs }
}

fn changed(change: Change<'_>) -> Changed {
    let (kind, before, after) = match change {
        Change::Added(entry) => (Kind::Added, None, Some(entry)),
        Change::Removed(entry) => (Kind::Removed, Some(entry), None),
        Change::Changed(before, after) => (Kind::Changed, Some(before), Some(after)),
        Change::Mode(before, after) => (Kind::ModeChanged, Some(before), Some(after)),
    };
    Changed { path: change.path().to_owned(), change: kind, before: before.map(side), after: after.map(side) }
}

fn side(entry: &Entry) -> Side {
    match entry {
        Entry::File(file) => Side::File { size_bytes: file.bytes, mode: format!("{:03o}", file.mode) },
        Entry::Link { target, .. } => Side::Link { target: target.to_string() },
        Entry::Directory { .. } => Side::Directory,
    }
}

fn text(diff: &Diff) -> String {
    let mut lines: Vec<_> = diff.changes.iter().map(line).collect();
    if lines.is_empty() {
        lines.push("no file changed".to_owned());
    }
    let Needs { chunks, new_chunks, chunk_bytes, new_chunk_bytes, packs, pack_bytes, index_bytes } = &diff.needs;
    let share = *new_chunk_bytes as f64 / (*chunk_bytes).max(1) as f64 * 100.0;
    lines.push(format!(
        "\na machine that has {} needs {} of {} in chunks ({share:.1} %, {new_chunks} of {chunks}): {} in {packs} packs, and {} of manifest and layout",
        diff.from.short(),
        output::size(*new_chunk_bytes),
        output::size(*chunk_bytes),
        output::size(*pack_bytes),
        output::size(*index_bytes),
    ));
    lines.join("\n")
}

/// `M bin/web  2.0 MiB -> 2.1 MiB`
fn line(changed: &Changed) -> String {
    let Changed { path, change, before, after } = changed;
    let sides = [before, after].map(|side| side.as_ref().map(|side| short(side, *change)));
    let sign = match change {
        Kind::Added => "+",
        Kind::Removed => "-",
        Kind::Changed => "M",
        Kind::ModeChanged => "m",
    };
    let sides: Vec<_> = sides.into_iter().flatten().collect();
    format!("{sign} {path}  {}", sides.join(" -> "))
}

fn short(side: &Side, change: Kind) -> String {
    match side {
        Side::File { mode, .. } if change == Kind::ModeChanged => permissions(mode),
        Side::File { size_bytes, .. } => output::size(*size_bytes),
        Side::Link { target } => format!("link to {target}"),
        Side::Directory => "empty folder".to_owned(),
    }
}
