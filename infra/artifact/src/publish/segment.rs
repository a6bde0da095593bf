//! The stages and what circulates between them; and the middle stage, which hashes and compresses.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use longshore_schemas::ChunkId;
use tokio::sync::mpsc;

use super::{Base, Published, place::Placer, read::Reader, stream::Pack};
use crate::{CHUNK_BYTES_MAX, Error, walk::walk};

/// Bytes of files in one segment: large enough that handing it over costs nothing.
pub(super) const SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// Entries of the tree that may end in one segment, so that many small ones do not pile up.
pub(super) const SEGMENT_ENTRIES_MAX: usize = 4096;
/// Segments beyond one per worker: being read, being placed, waiting.
const SEGMENTS_SPARE: usize = 3;
/// More cores than this would only wait for the reader.
const WORKERS_MAX: usize = 8;
/// Fastest of the levels that still saves most of what higher ones save.
const LEVEL: i32 = 1;
/// A chunk is stored compressed if that leaves at most this share of it.
const WORTH_PERCENT: usize = 95;

/// A stretch of the tree's bytes, with everything the stages find out about it.
pub(super) struct Segment {
    /// Its place in the order of reading.
    pub(super) number: u64,
    pub(super) data: Box<[u8]>,
    /// How much of `data` is used.
    pub(super) filled: usize,
    /// Where each chunk ends; the first begins at zero.
    pub(super) cuts: Vec<usize>,
    /// Entries that end here.
    pub(super) ends: Vec<EntryEnd>,
    /// One for each cut.
    pub(super) chunks: Vec<Hashed>,
    /// The compressed chunks.
    pub(super) arena: Vec<u8>,
}

/// An entry of the tree ends after this many chunks of the segment.
pub(super) struct EntryEnd {
    pub(super) after: usize,
    pub(super) entry: usize,
    pub(super) mode: u16,
}

pub(super) struct Hashed {
    pub(super) id: ChunkId,
    pub(super) form: Form,
}

pub(super) enum Form {
    /// A base or an earlier segment has it.
    Known,
    /// As it is in `data`.
    Raw,
    /// Compressed, in this range of the arena.
    Zstd(Range<usize>),
}

impl Segment {
    fn new() -> Self {
        let data = vec![0; SEGMENT_BYTES].into_boxed_slice();
        Self { number: 0, data, filled: 0, cuts: Vec::new(), ends: Vec::new(), chunks: Vec::new(), arena: Vec::new() }
    }

    pub(super) fn reset(&mut self, number: u64) {
        self.number = number;
        self.filled = 0;
        self.cuts.clear();
        self.ends.clear();
        self.chunks.clear();
        self.arena.clear();
    }

    pub(super) fn range(&self, chunk: usize) -> Range<usize> {
        let start = if chunk == 0 { 0 } else { self.cuts[chunk - 1] };
        start..self.cuts[chunk]
    }
}

/// Which chunks need no compressing because they are stored already.
pub(super) struct Known<'a> {
    pub(super) bases: &'a [Base],
    /// Chunks of this run, by their index in the manifest.
    pub(super) placed: RwLock<HashMap<ChunkId, u32>>,
}

impl Known<'_> {
    fn contains(&self, chunk: &ChunkId) -> bool {
        let placed = || self.placed.read().unwrap_or_else(PoisonError::into_inner).contains_key(chunk);
        self.bases.iter().any(|base| base.contains(chunk)) || placed()
    }
}

/// Runs all stages; this thread is the placer.
pub(super) fn run(source: &Path, bases: &[Base], packs: mpsc::Sender<Pack>) -> Result<Published, Error> {
    let tree = walk(source)?;
    let known = Known { bases, placed: RwLock::default() };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let segments = workers + SEGMENTS_SPARE;
    let (free, empty) = sync_channel(segments);
    for _ in 0..segments {
        free.send(Segment::new()).expect("the receiver is in scope and there is room");
    }
    let (to_hash, to_hash_queue) = sync_channel(segments);
    let (to_place, to_place_queue) = sync_channel(segments);
    let to_hash_queue = Arc::new(Mutex::new(to_hash_queue));
    thread::scope(|scope| {
        let reader = Reader::new(&tree, empty, to_hash)?;
        let reader = scope.spawn(move || reader.run());
        for _ in 0..workers {
            let (queue, to_place, known) = (to_hash_queue.clone(), to_place.clone(), &known);
            scope.spawn(move || work(&queue, &to_place, known));
        }
        // Only the workers hold these ends, so that a channel closes when the last of them has gone.
        drop((to_hash_queue, to_place));
        let mut placer = Placer::new(&tree, &known, packs)?;
        let placed = placer.run(&to_place_queue, free);
        drop(to_place_queue);
        let read = reader.join().unwrap_or(Err(Error::Interrupted));
        match (read, placed) {
            (Err(error), Ok(())) => Err(error),
            (_, Err(error)) => Err(error),
            (Ok(()), Ok(())) => placer.finish(),
        }
    })
}

/// Hashes and compresses segments until there are no more, or nobody wants them.
fn work(queue: &Mutex<Receiver<Segment>>, done: &SyncSender<Segment>, known: &Known<'_>) -> io::Result<()> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    let mut scratch = vec![0; CHUNK_BYTES_MAX];
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut segment) = next else { return Ok(()) };
        for chunk in 0..segment.cuts.len() {
            let range = segment.range(chunk);
            let bytes = &segment.data[range];
            let id = ChunkId::of(bytes);
            let form = if known.contains(&id) {
                Form::Known
            } else {
                compress(&mut compressor, bytes, &mut scratch, &mut segment.arena)
            };
            segment.chunks.push(Hashed { id, form });
        }
        if done.send(segment).is_err() {
            return Ok(());
        }
    }
}

fn compress(
    compressor: &mut zstd::bulk::Compressor<'_>,
    bytes: &[u8],
    scratch: &mut [u8],
    arena: &mut Vec<u8>,
) -> Form {
    let worth = bytes.len() * WORTH_PERCENT / 100;
    // An error means that the result does not fit in what would be worth it; raw is always right.
    match compressor.compress_to_buffer(bytes, &mut scratch[..worth]) {
        Ok(stored) if stored > 0 => {
            let start = arena.len();
            arena.extend_from_slice(&scratch[..stored]);
            Form::Zstd(start..arena.len())
        }
        _ => Form::Raw,
    }
}
