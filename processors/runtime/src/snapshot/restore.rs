//! How a new process comes by the state of a snapshot.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use futures::{StreamExt as _, TryStreamExt as _};
use longshore_partition::chain;
use longshore_processor::fingerprint;
use longshore_schemas::Timestamp;

use super::{
    Error, Snapshots, Wrong, blocking,
    description::{self, Description, File, Name, PIECE_BYTES_MAX},
};
use crate::{Rocks, store::CURRENT};

/// Where files are put until all of them are right.
const RESTORING: &str = "restoring";
/// Files fetched at the same time; each holds one piece in memory.
const FILES_AT_ONCE: usize = 4;

/// What the state was taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub key: String,
    pub at: Timestamp,
    pub facts: u64,
    pub bytes: u64,
}

/// Fills a folder without a RocksDB from the newest snapshot that is whole and of this log. None if there is a RocksDB, or no
/// such snapshot: then the log is read from where the folder's state ends, or from the beginning.
pub async fn restore(snapshots: &Snapshots, folder: &Path) -> Result<Option<Restored>, Error> {
    if Rocks::is_in(folder) {
        return Ok(None);
    }
    fs::create_dir_all(folder).map_err(Error::disk(folder))?;
    let names = match snapshots.names().await {
        Ok(names) => names,
        Err(error @ Error::Objects(_)) => {
            tracing::warn!(error = chain(&error), "no snapshot can be looked for: the log is read from its beginning");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let there = names.len();
    for name in names {
        match try_one(snapshots, &name, folder).await? {
            Ok(restored) => {
                tracing::info!(?restored, "the state comes from a snapshot");
                return Ok(Some(restored));
            }
            Err(wrong) => tracing::warn!(snapshot = name.key(), wrong = chain(&wrong), "a snapshot is of no use"),
        }
    }
    remove(&folder.join(RESTORING))?;
    tracing::info!(snapshots = there, "no snapshot is of use: the log is read from its beginning");
    Ok(None)
}

async fn try_one(snapshots: &Snapshots, name: &Name, folder: &Path) -> Result<Result<Restored, Wrong>, Error> {
    let description = match snapshots.describe(name).await {
        Ok(description) => description,
        Err(wrong) => return Ok(Err(wrong)),
    };
    if let Err(wrong) = snapshots.check(&description).await? {
        return Ok(Err(wrong));
    }
    let restoring = folder.join(RESTORING);
    remove(&restoring)?;
    fs::create_dir(&restoring).map_err(Error::disk(&restoring))?;
    if let Err(wrong) = fetch(snapshots, &name.node, &description, &restoring).await? {
        return Ok(Err(wrong));
    }
    let restored = Restored {
        key: name.key(),
        at: description.at,
        facts: description.facts(),
        bytes: description.pieces().map(|piece| piece.bytes).sum(),
    };
    let (snapshots, folder) = (snapshots.clone(), folder.to_owned());
    blocking(move || {
        if let Err(wrong) = verify(&snapshots, &description, &restoring)? {
            return Ok(Err(wrong));
        }
        install(&description, &restoring, &folder)?;
        Ok(Ok(restored))
    })
    .await
}

/// What can be wrong with a file, or with everything.
type Fetched = Result<Result<(), Wrong>, Error>;

async fn fetch(snapshots: &Snapshots, node: &str, description: &Description, to: &Path) -> Fetched {
    for name in description.files.iter().map(|file| file.name.as_str()) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
            let reason = format!("{name:?} is no name of a file of RocksDB");
            return Ok(Err(Wrong::Description(reason)));
        }
    }
    let files = futures::stream::iter(&description.files);
    let fetching = files.map(|file| fetch_file(snapshots, node, file, to)).buffer_unordered(FILES_AT_ONCE);
    let fetched: Vec<_> = fetching.try_collect().await?;
    Ok(fetched.into_iter().collect())
}

async fn fetch_file(snapshots: &Snapshots, node: &str, file: &File, to: &Path) -> Fetched {
    let path = to.join(&file.name);
    let mut writing = fs::File::create(&path).map_err(Error::disk(&path))?;
    for piece in &file.pieces {
        let wrong = |reason: String| Ok(Err(Wrong::File { file: file.name.clone(), reason }));
        let key = description::piece_key(node, &piece.blake3);
        let bytes = match snapshots.objects.get(&key, PIECE_BYTES_MAX as u64).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return wrong(format!("{key} is not there")),
            Err(error) => return Ok(Err(error.into())),
        };
        let (expected, to) = (piece.clone(), path.clone());
        let written = blocking(move || {
            if bytes.len() as u64 != expected.bytes {
                return Ok((writing, Some(format!("{} has {} bytes instead of {}", key, bytes.len(), expected.bytes))));
            }
            if blake3::hash(&bytes).to_hex().as_str() != expected.blake3 {
                return Ok((writing, Some(format!("the content of {key} is not what its name says"))));
            }
            writing.write_all(&bytes).map_err(Error::disk(to))?;
            Ok((writing, None))
        });
        let (again, damage) = written.await?;
        if let Some(reason) = damage {
            return wrong(reason);
        }
        writing = again;
    }
    blocking(move || writing.sync_all().map_err(Error::disk(path))).await?;
    Ok(Ok(()))
}

/// Whether RocksDB finds in the files what the description says.
fn verify(snapshots: &Snapshots, description: &Description, folder: &Path) -> Fetched {
    let wrong = |reason: String| Ok(Err(Wrong::Content(reason)));
    let copy = match Rocks::open_copy(folder) {
        Ok(copy) => copy,
        Err(error) => return wrong(chain(&error)),
    };
    for of in &description.partitions {
        let Some(part) = snapshots.part(of) else { continue };
        let (place, number) = (format!("{}/{}", of.processor, of.partition), u16::try_from(of.partition));
        let Ok(number) = number else { return wrong(format!("there is no partition {place}")) };
        let held = copy.partition(part.store_id, number).hold()?;
        let view = held.view();
        let row = view.row()?;
        if row.is_none_or(|row| row.applied != of.applied || row.state_version != of.state_version) {
            return wrong(format!("{place} is not as far as it says"));
        }
        match fingerprint(&view, part.tables) {
            Ok(found) if found.to_string() == of.fingerprint => {}
            Ok(found) => return wrong(format!("the fingerprint of {place} is {found}, and not {}", of.fingerprint)),
            Err(error) => return wrong(format!("{place}: {error}")),
        }
    }
    Ok(Ok(()))
}

/// Moves the files to where RocksDB is opened. The one without which it finds nothing comes last: broken off before, this is
/// done again.
fn install(description: &Description, from: &Path, to: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(to).map_err(Error::disk(to))? {
        let path = entry.map_err(Error::disk(to))?.path();
        if is_rocks(&path) {
            fs::remove_file(&path).map_err(Error::disk(path))?;
        }
    }
    let names = description.files.iter().map(|file| file.name.as_str()).filter(|name| *name != CURRENT);
    for name in names.chain([CURRENT]) {
        if name == CURRENT {
            sync(to)?;
        }
        let path = to.join(name);
        fs::rename(from.join(name), &path).map_err(Error::disk(path))?;
    }
    sync(to)?;
    remove(from)
}

fn sync(folder: &Path) -> Result<(), Error> {
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::disk(folder))
}

/// Whether this is a file of a RocksDB, which without its `CURRENT` is of no use.
fn is_rocks(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let begins = ["MANIFEST-", "OPTIONS-"].iter().any(|begin| name.starts_with(begin));
    path.is_file() && (begins || name == "IDENTITY" || name.ends_with(".sst") || name.ends_with(".log"))
}

fn remove(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::disk(PathBuf::from(folder))(error)),
        _ => Ok(()),
    }
}
