//! The last stage: gives each new chunk a place in a pack, and writes manifest and layout, all in the order of reading.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        PoisonError,
        mpsc::{Receiver, SyncSender},
    },
};

use longshore_schemas::PackId;
use tokio::sync::mpsc;

use super::{
    Published,
    segment::{EntryEnd, Form, Hashed, Known, Segment},
    stream::{Outbox, Pack, PackStream},
};
use crate::{
    ArtifactRoot, CHUNK_BYTES_MAX, Chunk, Codec, Error, INDEX_BYTES_MAX, Layout, PACK_BYTES_TARGET, PackRef, Place,
    manifest::{Hashing, REFERENCES_MAX, Writer},
    walk::{Cursor, Kind, Tree},
    wire::WireError,
};

pub(super) struct Placer<'a> {
    files: u64,
    /// At the entry that is being placed.
    entries: Cursor<'a>,
    known: &'a Known<'a>,
    outbox: Outbox,
    manifest: Writer<Hashing<PackStream<'a>>>,
    /// The chunks of the file that is being placed, by their index.
    file: Vec<u32>,
    references: usize,
    layout: Layout,
    /// Packs of bases that the layout uses, by their index there.
    base_packs: HashMap<PackId, u32>,
    open: Option<OpenPack>,
    size_bytes: u64,
    reused_chunks: u64,
    reused_bytes: u64,
}

/// The pack that is being filled; its name is known only when it is full.
struct OpenPack {
    index: u32,
    bytes: Vec<u8>,
}

impl<'a> Placer<'a> {
    pub(super) fn new(tree: &'a Tree, known: &'a Known<'a>, packs: mpsc::Sender<Pack>) -> Result<Self, Error> {
        let outbox = Outbox::new(packs);
        let stream = PackStream::new(outbox.fork(), known.bases.key().1).map_err(|error| write_error(error.into()))?;
        Ok(Self {
            files: tree.len() as u64,
            entries: tree.cursor(),
            known,
            outbox,
            manifest: Writer::new(Hashing::new(stream)).map_err(|error| write_error(error.into()))?,
            file: Vec::new(),
            references: 0,
            layout: Layout::default(),
            base_packs: HashMap::new(),
            open: None,
            size_bytes: 0,
            reused_chunks: 0,
            reused_bytes: 0,
        })
    }

    /// Places segments until there are no more. Workers finish in any order; those that came too early wait.
    pub(super) fn run(&mut self, queue: &Receiver<Segment>, free: SyncSender<Segment>) -> Result<(), Error> {
        let mut early = BTreeMap::new();
        let mut next = 0;
        for segment in queue {
            early.insert(segment.number, segment);
            while let Some(segment) = early.remove(&next) {
                self.segment(&segment)?;
                next += 1;
                // The reader may have read everything and be gone.
                let _ = free.send(segment);
            }
        }
        drop(free);
        Ok(())
    }

    fn segment(&mut self, segment: &Segment) -> Result<(), Error> {
        let mut ends = segment.ends.iter().peekable();
        for chunk in 0..=segment.chunks.len() {
            while let Some(end) = ends.next_if(|end| end.after == chunk) {
                self.end_entry(end)?;
            }
            if let Some(hashed) = segment.chunks.get(chunk) {
                self.chunk(segment, chunk, hashed)?;
            }
        }
        Ok(())
    }

    fn end_entry(&mut self, end: &EntryEnd) -> Result<(), Error> {
        let found = self.entries.next().expect("each entry ends once");
        let written = match found.kind {
            Kind::File => {
                let placed = self.known.placed.read().unwrap_or_else(PoisonError::into_inner);
                self.manifest.file(found.path, end.mode, placed.chunks(), &self.file)
            }
            Kind::Link(target) => self.manifest.link(found.path, target),
            Kind::Directory => self.manifest.directory(found.path),
        };
        self.file.clear();
        written.map_err(write_error)
    }

    fn chunk(&mut self, segment: &Segment, number: usize, hashed: &Hashed) -> Result<(), Error> {
        let range = segment.range(number);
        let bytes = u32::try_from(range.len()).expect("a chunk is at most CHUNK_BYTES_MAX");
        let chunk = Chunk { id: hashed.id, bytes };
        let (at, is_new) = self.known.placed.write().unwrap_or_else(PoisonError::into_inner).insert(chunk);
        let times = if number == 0 { segment.repeat } else { 1 };
        self.refer(at, times)?;
        self.size_bytes += u64::from(bytes) * times;
        if !is_new {
            return Ok(());
        }
        let place = match self.known.bases.find(&hashed.id) {
            Some((pack, place)) => {
                self.reused_chunks += 1;
                self.reused_bytes += u64::from(bytes);
                Place { pack: self.base_pack(pack), ..place }
            }
            None => match &hashed.form {
                Form::Zstd(stored) => self.store(&segment.arena[stored.clone()], Codec::Zstd)?,
                // A chunk seen for the first time is never known, as bases were asked above.
                Form::Raw | Form::Known => self.store(&segment.data[range], Codec::Raw)?,
            },
        };
        self.layout.places.push(place);
        Ok(())
    }

    fn refer(&mut self, at: usize, times: u64) -> Result<(), Error> {
        let room = REFERENCES_MAX - self.references;
        let times = usize::try_from(times).ok().filter(|times| *times <= room);
        let times = times.ok_or(Error::TooManyChunks { limit: REFERENCES_MAX })?;
        self.references += times;
        let at = u32::try_from(at).expect("REFERENCES_MAX fits in 32 bits");
        self.file.extend(std::iter::repeat_n(at, times));
        Ok(())
    }

    fn base_pack(&mut self, pack: PackRef) -> u32 {
        let packs = &mut self.layout.packs;
        *self.base_packs.entry(pack.pack).or_insert_with(|| push(packs, pack))
    }

    fn store(&mut self, bytes: &[u8], codec: Codec) -> Result<Place, Error> {
        let packs = &mut self.layout.packs;
        let open = self.open.get_or_insert_with(|| OpenPack {
            // The name is filled in by `close`.
            index: push(packs, PackRef { pack: PackId::from_bytes([0; 32]), bytes: 0 }),
            bytes: Vec::with_capacity(PACK_BYTES_TARGET + CHUNK_BYTES_MAX),
        });
        let narrow = |length: usize| u32::try_from(length).expect("a pack is at most PACK_BYTES_MAX");
        let place = Place { pack: open.index, offset: narrow(open.bytes.len()), stored: narrow(bytes.len()), codec };
        open.bytes.extend_from_slice(bytes);
        if open.bytes.len() >= PACK_BYTES_TARGET {
            self.close()?;
        }
        Ok(place)
    }

    fn close(&mut self) -> Result<(), Error> {
        if let Some(OpenPack { index, bytes }) = self.open.take() {
            self.layout.packs[index as usize] = self.outbox.send(bytes)?;
        }
        Ok(())
    }

    /// Everything was read: sends the last pack, the manifest and the layout.
    pub(super) fn finish(mut self) -> Result<Published, Error> {
        self.close()?;
        let manifest = self.manifest.finish().map_err(|error| write_error(error.into()))?;
        let artifact = manifest.artifact();
        let manifest = manifest.inner.finish()?;
        let mut stream = PackStream::new(self.outbox.fork(), &[]).map_err(|error| write_error(error.into()))?;
        self.layout.write(&mut stream).map_err(|error| write_error(error.into()))?;
        let layout = stream.finish()?;
        let mut new_packs = self.outbox.sent;
        new_packs.extend(manifest.iter().chain(&layout));
        let chunks = self.layout.places.len() as u64;
        let (key, _) = self.known.bases.key();
        let manifest_key = u32::try_from(key.len()).expect("a manifest has few packs");
        let root = ArtifactRoot {
            artifact,
            size_bytes: self.size_bytes,
            files: self.files,
            chunks,
            manifest: [key, &manifest].concat(),
            manifest_key,
            layout,
            packs: self.layout.packs,
            provenance: None,
        };
        Ok(Published {
            root,
            new_bytes: new_packs.iter().map(|pack| pack.bytes).sum(),
            new_packs,
            new_chunks: chunks - self.reused_chunks,
            reused_chunks: self.reused_chunks,
            reused_bytes: self.reused_bytes,
        })
    }
}

fn push(packs: &mut Vec<PackRef>, pack: PackRef) -> u32 {
    packs.push(pack);
    u32::try_from(packs.len() - 1).expect("there are fewer packs than chunks, which fit in 32 bits")
}

/// Writing goes to memory and the queue of uploads, so it fails only if that was closed, or if it was too much.
fn write_error(error: WireError) -> Error {
    match error {
        WireError::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            Error::TooLarge { limit: INDEX_BYTES_MAX }
        }
        WireError::Io(error) if error.kind() != io::ErrorKind::OutOfMemory => Error::Interrupted,
        other => other.of("manifest"),
    }
}
