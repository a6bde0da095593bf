//! The artifact format: a tree of files as a manifest, chunks, packs and a layout.
//!
//! ```text
//! publish:  tree ─walk─▶ read, cut, hash, look up, compress ─▶ place in packs ─▶ PackSink
//!                        (one thread per core)                (1 thread)        (bounded puts)
//! fetch:    root ─▶ manifest packs, layout packs ─▶ Index ─▶ Need ─▶ packs on disk ─▶ assemble ─▶ release
//! ```
//!
//! - The **manifest** lists files and their chunks, sorted by path. Its BLAKE3 is the artifact's name, so equal trees
//!   are one artifact, whoever built them.
//! - A **chunk** is a run of 16–256 KiB of one file, cut by content (FastCDC) and named by its BLAKE3.
//! - A **pack** holds a few MiB of chunks, each compressed alone where that helps; its name is the BLAKE3 of its bytes.
//! - An **outline** ([`outline`]) verifies a pack block by block, before all of it is there.
//! - The **layout** says in which pack and range each chunk of the manifest lies. It may point into packs of earlier
//!   artifacts: that is how unchanged data is not uploaded again.
//! - The **root** is the small JSON object that names the packs of all three. A large manifest travels compressed by an earlier
//!   one, its *key*, whose packs the root names too.
//! - A **patch** makes the chunks that one artifact lacks of those that only it has: for programs that were linked again.
//!
//! Only the artifact's name is trusted. Root and layout may be wrong: then a hash does not match and there is an error,
//! never wrong bytes. Every size and count that is read is checked against a limit before memory is taken for it.
//!
//! This crate knows neither S3 nor the network: packs leave through [`PackSink`] and come back through [`PackRead`].
//! Everything but [`publish`] is synchronous and belongs on a blocking thread.

mod assemble;
pub mod collect;
mod diff;
mod error;
mod index;
mod installed;
mod keyed;
mod layout;
mod manifest;
mod need;
pub mod outline;
mod packed;
mod part;
mod patch;
mod path;
mod publish;
mod root;
mod share;
mod source;
mod stretch;
mod table;
mod unpack;
mod verify;
mod walk;
mod wire;

pub use assemble::{Assembled, assemble, assemble_patched, written_bytes};
pub use diff::{Change, Changes};
pub use error::Error;
pub use index::{INDEX_BYTES_MAX, Index};
pub use installed::{Installed, load_installed, manifest_path, remove_installed, save_manifest};
pub use layout::{Codec, Layout, Place};
pub use manifest::{Chunk, Entry, FileRef, Manifest};
pub use need::{Need, Origin};
pub use patch::{MadePatch, PatchGroup, PatchRoot, Patched, apply, make_patch, patch_key, patched_manifest};
pub use publish::{Bases, PackSink, Published, SinkError, publish};
pub use root::{ArtifactRoot, PACK_PREFIX, PackRef, ROOT_BYTES_MAX, ROOT_PREFIX, pack_key, root_key};
pub use source::{DirPacks, PackRead, ReadError, save_pack};
pub use stretch::{Stretch, Stretches};
pub use verify::{verify, verify_entry, verify_paced};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// No chunk is smaller, except a file's last.
pub const CHUNK_BYTES_MIN: usize = 16 * KIB;
/// What the cutting aims at.
pub const CHUNK_BYTES_AVERAGE: usize = 64 * KIB;
/// No chunk is larger; a manifest that says otherwise is refused.
pub const CHUNK_BYTES_MAX: usize = 256 * KIB;
/// A pack is closed as soon as it holds this much, so packs of chunks are between 4 and 4.25 MiB, and the last is smaller.
pub const PACK_BYTES_TARGET: usize = 4 * MIB;
/// No pack is larger; a root or layout that says otherwise is refused.
pub const PACK_BYTES_MAX: usize = 8 * MIB;
