//! Patches: the second stage, where chunks do badly.
//!
//! A relinked program has an address changed every few bytes, so nearly all of its chunks are new, though nearly all of its bytes
//! are not. A patch makes the chunks that an artifact has and its base lacks (*missing*) out of those that the base has and the
//! artifact lacks (*gone*). Both lists follow from the two manifests, so a patch names no files: a file that was moved or
//! renamed is found by what it holds.
//!
//! ```text
//! make:   missing chunks ─2 MiB a section─▶ window of gone chunks that look alike ─▶ commands, differences, new bytes ─▶ frame
//! apply:  frame ─▶ sections ─▶ read what is gone from the installed base, add differences ─▶ chunks, each compared with its name
//! ```
//!
//! A *group* is a run of missing chunks that lie in the same pack, and is either in the patch, as a zstd frame of its own, or not, because
//! the pack is about as small. A section in a frame is
//!
//! ```text
//! number of chunks · lengths of the four parts · the parts:
//!   commands      (copied, new, signed distance of the copy from the end of the last one) each
//!   gaps          for each difference, how many copied bytes before it are right
//!   differences   a byte each, to be added to the copied one
//!   new           bytes that are copied from nowhere
//! ```
//!
//! with variable-length integers as in a manifest. Differences are kept apart from the gaps between them because both are then
//! small numbers that repeat; as bytes that are mostly zeros, as bsdiff has them, they take more room.
//!
//! Before the groups comes the manifest, compressed by the base's. So a machine that has the base needs neither the packs of the manifest nor,
//! if the patch makes all that is missing, those of the layout.
//!
//! A patch is not trusted. Whatever is in it, memory is bounded by a section, and what comes out is compared with the names in the
//! manifest: a lie is an error, and the chunks can still be had from their packs.

mod apply;
mod delta;
mod make;
mod manifest;
mod near;
mod root;
mod section;
mod sides;

pub use apply::{Patched, apply, patched_manifest};
pub use make::{MadePatch, make_patch};
pub use root::{PatchGroup, PatchRoot, patch_key};

use crate::MIB;

/// A section holds whole chunks: it ends with the first that makes it so large.
const SECTION_BYTES: usize = 2 * MIB;
/// What is looked at to make a section of.
const WINDOW_BYTES: usize = 8 * MIB;
/// Largest window that a frame may ask of its reader, as a power of two: 8 MiB.
const FRAME_WINDOW_LOG: u32 = 23;
