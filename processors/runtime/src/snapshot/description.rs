//! What a snapshot says of itself, and where its parts are.
//!
//! ```text
//!   snapshots/descriptions/<time>-<node>      written last: what has none is no snapshot
//!   snapshots/pieces/<node>/<blake3>          at most 8 MiB of a file; shared by the snapshots of one node
//! ```
//!
//! A node is one state folder, by a name that no other has. It reuses and removes only pieces of its own, so two nodes
//! cannot take from each other what the other is about to refer to.

use longshore_schemas::Timestamp;
use serde::{Deserialize, Serialize};

use super::Wrong;
use crate::Applied;

/// Of descriptions. A release that writes another one can read this one.
pub(super) const FORMAT: u32 = 1;
/// Largest piece of a file: what is held in memory of each file that is under way.
pub(super) const PIECE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest description: with a line for each piece, enough for a state of a terabyte.
pub(super) const DESCRIPTION_BYTES_MAX: u64 = 32 * 1024 * 1024;
const DESCRIPTIONS: &str = "snapshots/descriptions/";
const PIECES: &str = "snapshots/pieces/";
const HEAD: &str = "longshore snapshot ";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub format: u32,
    /// Whose log it belongs to, by the name that people gave.
    pub installation: String,
    pub node: String,
    pub at: Timestamp,
    pub partitions: Vec<Partition>,
    pub files: Vec<File>,
}

/// A partition's state in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    pub processor: String,
    pub partition: u32,
    pub state_version: u32,
    pub applied: Applied,
    pub fingerprint: String,
    /// The last fact that it includes, by which the log is recognised. None without facts, or if the log has lost it.
    pub last_fact: Option<LastFact>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFact {
    pub offset: u64,
    pub blake3: String,
}

/// A file of RocksDB's folder: its pieces in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub name: String,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub blake3: String,
    pub bytes: u64,
}

impl Description {
    /// Facts in it, of all partitions together.
    pub fn facts(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.applied.sequence).sum()
    }

    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.files.iter().flat_map(|file| &file.pieces)
    }

    /// A line with the hash of what follows, and that as JSON.
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let json = serde_json::to_vec_pretty(self)?;
        let mut bytes = format!("{HEAD}{}\n", blake3::hash(&json).to_hex()).into_bytes();
        bytes.extend_from_slice(&json);
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Wrong> {
        let damaged = |reason: &str| Wrong::Description(reason.to_owned());
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("it has no first line"))?;
        let (head, json) = (&bytes[..end], &bytes[end + 1..]);
        let hash = std::str::from_utf8(head).ok().and_then(|head| head.strip_prefix(HEAD));
        let hash = hash.ok_or_else(|| damaged("its first line is not that of a snapshot"))?;
        if blake3::hash(json).to_hex().as_str() != hash {
            return Err(damaged("its content is not what its first line says"));
        }
        // Only what is whole and of another format is of another release.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(json).map_err(|e| damaged(&e.to_string()))?;
        if format != FORMAT {
            return Err(Wrong::Format { found: format });
        }
        serde_json::from_slice(json).map_err(|e| damaged(&e.to_string()))
    }
}

/// Where a description is, which says when it was written and by whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) at: Timestamp,
    pub(super) node: String,
}

impl Name {
    /// None if the key is none of a description.
    pub(super) fn of_key(key: &str) -> Option<Self> {
        let (at, node) = key.strip_prefix(DESCRIPTIONS)?.split_once('-')?;
        Some(Self { at: Timestamp::from_millis(at.parse().ok()?), node: node.to_owned() })
    }

    /// Sorted by time as texts.
    pub(super) fn key(&self) -> String {
        format!("{DESCRIPTIONS}{:015}-{}", self.at.millis().max(0), self.node)
    }
}

pub(super) fn descriptions() -> &'static str {
    DESCRIPTIONS
}

pub(super) fn pieces_of(node: &str) -> String {
    format!("{PIECES}{node}/")
}

pub(super) fn piece_key(node: &str, piece: &str) -> String {
    format!("{PIECES}{node}/{piece}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        let piece = Piece { blake3: blake3::hash(b"a").to_hex().to_string(), bytes: 1 };
        Description {
            format: FORMAT,
            installation: "i".to_owned(),
            node: "n".to_owned(),
            at: Timestamp(5),
            partitions: Vec::new(),
            files: vec![File { name: "CURRENT".to_owned(), pieces: vec![piece] }],
        }
    }

    #[test]
    fn a_description_is_read_whole_or_not_at_all() {
        let bytes = description().encode().expect("JSON");
        assert_eq!(Description::decode(&bytes).expect("whole"), description());
        for end in 0..bytes.len() {
            assert!(matches!(Description::decode(&bytes[..end]), Err(Wrong::Description(_))), "cut at {end}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(matches!(Description::decode(&damaged), Err(Wrong::Description(_))), "flipped at {at}");
        }
        let later = Description { format: FORMAT + 1, ..description() }.encode().expect("JSON");
        assert!(matches!(Description::decode(&later), Err(Wrong::Format { found }) if found == FORMAT + 1));
    }

    #[test]
    fn names_sort_by_time_and_come_back() {
        let names = [(5, "z"), (900, "b-2"), (1_700_000_000_000, "a")];
        let names = names.map(|(at, node)| Name { at: Timestamp(at), node: node.to_owned() });
        let keys: Vec<_> = names.iter().map(Name::key).collect();
        assert!(keys.is_sorted(), "{keys:?}");
        assert_eq!(keys.iter().filter_map(|key| Name::of_key(key)).collect::<Vec<_>>(), names);
        for key in ["snapshots/descriptions/later-n", "snapshots/descriptions/5", "snapshots/pieces/5-n", ""] {
            assert_eq!(Name::of_key(key), None, "{key}");
        }
    }
}
