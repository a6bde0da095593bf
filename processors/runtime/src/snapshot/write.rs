//! How a snapshot is written: a copy first, then its pieces, then what describes it.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use longshore_log::TopicPartition;
use longshore_processor::fingerprint;
use longshore_schemas::Timestamp;

use super::{
    Error, Snapshots, Snapshotter, blocking,
    description::{self, Description, FORMAT, File, Name, PIECE_BYTES_MAX, Partition, Piece},
    known_log::last_fact,
};
use crate::Rocks;

/// Within the state's folder, which RocksDB does not look into.
const COPY: &str = "snapshot";
/// The file with this folder's name among those who write snapshots.
const NODE: &str = "snapshot-node";

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub key: String,
    pub at: Timestamp,
    /// Facts in it, of all partitions together.
    pub facts: u64,
    pub bytes: u64,
    /// Of these, what no earlier snapshot had.
    pub uploaded_bytes: u64,
}

impl Snapshotter {
    /// Blocks on the disk, for a moment.
    pub fn new(snapshots: Snapshots, rocks: Rocks) -> Result<Self, Error> {
        let node = format!("{}-{}", plain(&snapshots.settings.node), folder_name(rocks.path())?);
        // What a process that was killed has left.
        let _ = std::fs::remove_dir_all(rocks.path().join(COPY));
        Ok(Self { snapshots, rocks, node })
    }

    /// Writes a snapshot if it is time for one, and removes those that are not kept. To be called every interval: the node
    /// that wrote the last one goes on, since it uploads the least; others step in when it is late.
    pub async fn write_if_due(&self) -> Result<Option<Written>, Error> {
        let settings = &self.snapshots.settings;
        let rocks = self.rocks.clone();
        let parts = self.snapshots.parts.clone();
        let applied = blocking(move || {
            let mut facts = 0;
            for part in parts {
                for partition in 0..part.partitions {
                    facts += rocks.partition(part.store_id, partition).hold()?.view().applied()?.sequence;
                }
            }
            Ok(facts)
        });
        let (facts, now) = (applied.await?, (self.snapshots.clock)());
        let (before, since) = match self.snapshots.newest().await? {
            Some((name, description)) => {
                // Half an interval of grace for others, and a little for the own timer.
                let grace = settings.interval / if name.node == self.node { 20 } else { 2 };
                let waited = now.since(name.at);
                let due = if name.node == self.node { waited + grace } else { waited.saturating_sub(grace) };
                (description.facts(), Some(due))
            }
            None => (0, None),
        };
        let enough = facts >= before.saturating_add(settings.facts_min.max(1));
        if !enough || since.is_some_and(|since| since < settings.interval) {
            return Ok(None);
        }
        self.write().await.map(Some)
    }

    /// Writes a snapshot, and removes those that are not kept.
    pub async fn write(&self) -> Result<Written, Error> {
        let folder = self.rocks.path().join(COPY);
        let written = self.write_through(&folder).await;
        // What is left of the copy keeps files that RocksDB has no use for any more.
        if let Err(error) = remove_folder(&folder).await {
            tracing::warn!(error = longshore_partition::chain(&error), "a copy of the state was left behind");
        }
        let written = written?;
        if let Err(error) = self.collect().await {
            tracing::warn!(error = longshore_partition::chain(&error), "old snapshots were not removed");
        }
        Ok(written)
    }

    async fn write_through(&self, folder: &Path) -> Result<Written, Error> {
        let Snapshots { log, parts, settings, clock, .. } = &self.snapshots;
        remove_folder(folder).await?;
        let (rocks, parts, to) = (self.rocks.clone(), parts.clone(), folder.to_owned());
        let (files, mut partitions) = blocking(move || {
            rocks.copy_to(&to)?;
            // Before it is opened: what that leaves is not part of the copy.
            let files = files_of(&to)?;
            let copy = Rocks::open_copy(&to).map_err(|error| Error::Copy(Box::new(error)))?;
            Ok((files, describe(&copy, &parts)?))
        })
        .await?;
        for (facts, of) in &mut partitions {
            of.last_fact = last_fact(&**log, facts, of.applied.fact_offset).await?;
        }
        let (files, uploaded_bytes) = self.upload(folder, files).await?;
        let name = Name { at: clock(), node: self.node.clone() };
        let description = Description {
            format: FORMAT,
            installation: settings.installation.clone(),
            node: settings.node.clone(),
            at: name.at,
            partitions: partitions.into_iter().map(|(_, partition)| partition).collect(),
            files,
        };
        let key = name.key();
        self.snapshots.objects.put(&key, description.encode()?.into()).await?;
        let bytes = description.pieces().map(|piece| piece.bytes).sum();
        let written = Written { key, at: name.at, facts: description.facts(), bytes, uploaded_bytes };
        tracing::info!(?written, "snapshot written");
        Ok(written)
    }

    /// Uploads the pieces that are not there, and says what the files are made of.
    async fn upload(&self, folder: &Path, names: Vec<String>) -> Result<(Vec<File>, u64), Error> {
        let objects = &self.snapshots.objects;
        let there = objects.list(&description::pieces_of(&self.node)).await?;
        let mut there: BTreeMap<String, u64> = there.into_iter().map(|object| (object.key, object.bytes)).collect();
        let (mut files, mut uploaded) = (Vec::with_capacity(names.len()), 0);
        for name in names {
            let path = folder.join(&name);
            let mut file = std::fs::File::open(&path).map_err(Error::disk(&path))?;
            let mut pieces = Vec::new();
            loop {
                let (again, bytes) = next_piece(file, path.clone()).await?;
                file = again;
                if bytes.is_empty() {
                    break;
                }
                let piece = Piece { blake3: blake3::hash(&bytes).to_hex().to_string(), bytes: bytes.len() as u64 };
                let key = description::piece_key(&self.node, &piece.blake3);
                // One of another size is damaged, and is mended by this.
                if there.get(&key) != Some(&piece.bytes) {
                    objects.put(&key, bytes).await?;
                    there.insert(key, piece.bytes);
                    uploaded += piece.bytes;
                }
                pieces.push(piece);
            }
            files.push(File { name, pieces });
        }
        Ok((files, uploaded))
    }
}

/// The next bytes of a file, at most a piece; none at its end.
async fn next_piece(file: std::fs::File, path: PathBuf) -> Result<(std::fs::File, Bytes), Error> {
    blocking(move || {
        let mut bytes = Vec::new();
        let limit = PIECE_BYTES_MAX as u64;
        (&file).take(limit).read_to_end(&mut bytes).map_err(Error::disk(path))?;
        Ok((file, Bytes::from(bytes)))
    })
    .await
}

fn files_of(folder: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::disk(folder))? {
        let entry = entry.map_err(Error::disk(folder))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// What the tables of a copy say, by the partition that their facts are in. Reads them through.
fn describe(copy: &Rocks, parts: &[super::Part]) -> Result<Vec<(TopicPartition, Partition)>, Error> {
    let mut partitions = Vec::new();
    for part in parts {
        for partition in 0..part.partitions {
            let held = copy.partition(part.store_id, partition).hold()?;
            let view = held.view();
            let Some(row) = view.row()?.filter(|row| row.processor == part.processor) else { continue };
            let state = Partition {
                processor: row.processor,
                partition: partition.into(),
                state_version: row.state_version,
                applied: row.applied,
                fingerprint: fingerprint(&view, part.tables)?.to_string(),
                last_fact: None,
            };
            partitions.push((TopicPartition::new(part.facts, partition.into()), state));
        }
    }
    Ok(partitions)
}

async fn remove_folder(folder: &Path) -> Result<(), Error> {
    let folder = folder.to_owned();
    blocking(move || match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::disk(folder)(error)),
        _ => Ok(()),
    })
    .await
}

/// A name that this folder keeps. A folder that is made anew, from a snapshot or from nothing, has another one.
fn folder_name(folder: &Path) -> Result<String, Error> {
    let path = folder.join(NODE);
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.is_empty() && plain(&name) == name => return Ok(name),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::disk(path)(error)),
        _ => {}
    }
    // What no other folder on any machine hashes: this moment in this process, and where it is.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&now.as_nanos().to_le_bytes()).update(&std::process::id().to_le_bytes());
    hasher.update(folder.as_os_str().as_encoded_bytes());
    // A random address and the keys of a hash map, from the system.
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
    hasher.update(&random.to_le_bytes());
    let name = hasher.finalize().to_hex()[..12].to_owned();
    std::fs::write(&path, &name).map_err(Error::disk(path))?;
    Ok(name)
}

/// What may stand in a key.
fn plain(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '_' };
    text.chars().take(100).map(plain).collect()
}
