//! Making a patch, from the packs of both artifacts.

use std::{io, ops::Range};

use bytes::Bytes;
use longshore_schemas::PackId;
use zstd::zstd_safe::CParameter;

use super::{
    FRAME_WINDOW_LOG, SECTION_BYTES,
    delta::{Seeds, describe},
    manifest,
    near::{Near, Window},
    root::{PatchGroup, PatchRoot, named},
    section,
    sides::{Gone, missing},
};
use crate::{Error, Index, PACK_BYTES_MAX, PACK_BYTES_TARGET, PackRead, SinkError, packed::PackedChunks};

/// Most of what higher levels save, of bytes that are made once and read by a whole cohort.
const LEVEL: i32 = 19;
/// What the level would take is four times as much memory, for bytes that are few.
const TABLE_LOG: u32 = 21;
/// A group is in the patch if that takes at most this share of what its chunks take in packs.
const WORTH_PERCENT: u64 = 90;

/// A patch, and what it saves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadePatch {
    /// To be stored under its key once its packs are there.
    pub root: PatchRoot,
    /// The frames of the patch together.
    pub patch_bytes: u64,
    /// What the chunks that it makes take in packs.
    pub replaced_bytes: u64,
}

/// Makes the patch from a base to an artifact. `packs` has those of both; each pack that is made goes to `put`.
///
/// Takes seconds for a megabyte that is missing; memory is bounded.
pub fn make_patch(
    index: &Index,
    base: &Index,
    packs: &dyn PackRead,
    put: impl FnMut(PackId, Bytes) -> Result<(), SinkError>,
) -> Result<MadePatch, Error> {
    let gone = Gone::between(&index.manifest, &base.manifest);
    let missing = missing(&index.manifest, &base.manifest);
    let mut chunks = PackedChunks::new(index, packs)?;
    let mut old = PackedChunks::new(base, packs)?;
    let mut read_gone = |number: usize, bytes: &mut [u8]| old.read(gone.chunks[number].at as usize, bytes);
    let near = Near::new(&gone, &mut read_gone)?;
    let mut out = Out { put, open: Vec::new(), packs: Vec::new() };
    let root = PatchRoot {
        artifact: index.manifest.id(),
        base: base.manifest.id(),
        manifest: None,
        groups: vec![],
        packs: vec![],
    };
    let mut made = MadePatch { root, patch_bytes: 0, replaced_bytes: 0 };
    if let Some(frame) = manifest::write(&index.manifest, &base.manifest, LEVEL)? {
        made.root.manifest = Some(frame.len() as u64);
        made.patch_bytes += frame.len() as u64;
        out.add(frame)?;
    }
    let mut skipped = 0;
    let mut maker = Maker { index, near: &near, window: Window::default(), seeds: None, target: Vec::new() };
    let pack_of = |at: u32| index.layout.places()[at as usize].pack;
    for group in missing.chunk_by(|one, other| pack_of(*one) == pack_of(*other)) {
        let count = u32::try_from(group.len()).expect("chunks are counted in 32 bits");
        let frame = maker.frame(group, &mut chunks, &mut read_gone)?;
        let places = group.iter().map(|at| index.layout.places()[*at as usize]);
        let packed: u64 = places.map(|place| u64::from(place.stored)).sum();
        let bytes = frame.len() as u64;
        if bytes * 100 > packed * WORTH_PERCENT || frame.len() > PACK_BYTES_MAX {
            skipped += count;
            continue;
        }
        out.add(frame)?;
        made.root.groups.push(PatchGroup { skipped, chunks: count, bytes });
        made.patch_bytes += bytes;
        made.replaced_bytes += packed;
        skipped = 0;
    }
    out.close()?;
    made.root.packs = out.packs;
    Ok(made)
}

struct Maker<'a> {
    index: &'a Index,
    near: &'a Near<'a>,
    /// The last one; where everything fits in one it serves for all.
    window: Window,
    seeds: Option<Seeds>,
    target: Vec<u8>,
}

impl Maker<'_> {
    fn frame(
        &mut self,
        group: &[u32],
        chunks: &mut PackedChunks<'_>,
        read_gone: &mut super::near::ReadGone<'_>,
    ) -> Result<Vec<u8>, Error> {
        let failed = |error: io::Error| Error::malformed("compressor", error.to_string());
        let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL).map_err(failed)?;
        for parameter in
            [CParameter::WindowLog(FRAME_WINDOW_LOG), CParameter::ChainLog(TABLE_LOG), CParameter::HashLog(TABLE_LOG)]
        {
            encoder.set_parameter(parameter).map_err(failed)?;
        }
        for Range { start, end } in self.sections(group) {
            self.target.clear();
            for at in &group[start..end] {
                let from = self.target.len();
                self.target.resize(from + self.index.manifest.chunks()[*at as usize].bytes as usize, 0);
                chunks.read(*at as usize, &mut self.target[from..])?;
            }
            let chosen = self.near.choose(&self.target);
            if !self.window.holds(&chosen) {
                // Two of them at once would take twice the memory.
                (self.window, self.seeds) = (Window::default(), None);
                self.window = self.near.window(chosen, read_gone)?;
            }
            let seeds = self.seeds.get_or_insert_with(|| Seeds::new(&self.window.bytes));
            let commands = describe(seeds, &self.window.bytes, &self.target);
            section::write(&mut encoder, end - start, &self.window, &self.target, &commands).map_err(failed)?;
        }
        encoder.finish().map_err(failed)
    }

    /// Ranges of the group that are a section each.
    fn sections(&self, group: &[u32]) -> Vec<Range<usize>> {
        let mut sections = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (number, at) in group.iter().enumerate() {
            bytes += self.index.manifest.chunks()[*at as usize].bytes as usize;
            if bytes >= SECTION_BYTES || number + 1 == group.len() {
                sections.push(start..number + 1);
                (start, bytes) = (number + 1, 0);
            }
        }
        sections
    }
}

/// Frames on their way into packs.
struct Out<P> {
    put: P,
    open: Vec<u8>,
    packs: Vec<crate::PackRef>,
}

impl<P: FnMut(PackId, Bytes) -> Result<(), SinkError>> Out<P> {
    fn add(&mut self, frame: Vec<u8>) -> Result<(), Error> {
        if !self.open.is_empty() && self.open.len() + frame.len() > PACK_BYTES_MAX {
            self.close()?;
        }
        self.open.extend(frame);
        if self.open.len() >= PACK_BYTES_TARGET { self.close() } else { Ok(()) }
    }

    fn close(&mut self) -> Result<(), Error> {
        if self.open.is_empty() {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.open));
        let pack = named(&bytes);
        (self.put)(pack.pack, bytes).map_err(|source| Error::Sink { pack: pack.pack, source })?;
        self.packs.push(pack);
        Ok(())
    }
}
