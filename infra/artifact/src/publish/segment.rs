//! The stages and what circulates between them; and the first stage, which reads, cuts, hashes and compresses.

use std::{
    ops::Range,
    path::Path,
    sync::{
        Mutex, PoisonError, RwLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use longshore_schemas::ChunkId;
use tokio::sync::mpsc;

use super::{
    Bases, Published,
    cut::Cutter,
    place::Placer,
    plan::{Part, Planner},
    read::fill,
    stream::Pack,
};
use crate::{CHUNK_BYTES_MAX, Error, table::ChunkTable, walk::walk};

/// Bytes of files in one segment: what is read, cut and hashed by one core while it is in that core's cache.
pub(super) const SEGMENT_BYTES: usize = 1024 * 1024;
/// Room before them for what the segment before left uncut.
pub(super) const HEAD_BYTES: usize = CHUNK_BYTES_MAX;
/// Entries of the tree that may end in one segment, so that many small ones do not pile up.
pub(super) const SEGMENT_ENTRIES_MAX: usize = 512;
/// Segments beyond one per worker: being placed, waiting.
const SEGMENTS_SPARE: usize = 4;
/// More would only wait for the placer.
const WORKERS_MAX: usize = 16;
/// Fastest of the levels that still saves most of what higher ones save.
const LEVEL: i32 = 1;
/// A chunk is stored compressed if that leaves at most this share of it.
const WORTH_PERCENT: usize = 95;

/// A stretch of the tree's bytes, with everything that is found out about it.
pub(super) struct Segment {
    /// Its place in the order of the tree.
    pub(super) number: u64,
    pub(super) data: Box<[u8]>,
    /// Where the first chunk begins.
    pub(super) start: usize,
    /// Where each chunk ends.
    pub(super) cuts: Vec<usize>,
    /// How many times in a row the first chunk comes: more than once in a hole.
    pub(super) repeat: u64,
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
        Self {
            number: 0,
            data: vec![0; HEAD_BYTES + SEGMENT_BYTES].into_boxed_slice(),
            start: 0,
            cuts: Vec::new(),
            repeat: 1,
            ends: Vec::new(),
            chunks: Vec::new(),
            arena: Vec::new(),
        }
    }

    fn reset(&mut self, number: u64) {
        self.number = number;
        self.start = 0;
        self.cuts.clear();
        self.repeat = 1;
        self.ends.clear();
        self.chunks.clear();
        self.arena.clear();
    }

    pub(super) fn range(&self, chunk: usize) -> Range<usize> {
        let start = if chunk == 0 { self.start } else { self.cuts[chunk - 1] };
        start..self.cuts[chunk]
    }

    /// Where the last chunk ends.
    pub(super) fn end(&self) -> usize {
        self.cuts.last().copied().unwrap_or(self.start)
    }

    /// Cuts this range of `data`, which follows the last chunk, and says what is left uncut.
    pub(super) fn cut(&mut self, range: Range<usize>, cutter: Cutter, at_end: bool) -> Range<usize> {
        let Range { mut start, end } = range;
        while let Some(length) = cutter.next(&self.data[start..end], at_end) {
            start += length;
            self.cuts.push(start);
        }
        start..end
    }
}

/// Which chunks need no compressing because they are stored already.
pub(super) struct Known<'a> {
    pub(super) bases: &'a Bases,
    /// Chunks of this run, in the manifest's order.
    pub(super) placed: RwLock<ChunkTable>,
}

impl Known<'_> {
    fn contains(&self, chunk: &ChunkId) -> bool {
        let placed = || self.placed.read().unwrap_or_else(PoisonError::into_inner).find(chunk).is_some();
        self.bases.contains(chunk) || placed()
    }
}

/// What the workers share.
struct Work<'a> {
    known: &'a Known<'a>,
    planner: Mutex<Planner<'a>>,
    empty: Mutex<Receiver<Segment>>,
    cutter: Cutter,
}

/// Runs all stages; this thread is the placer.
pub(super) fn run(source: &Path, bases: &Bases, packs: mpsc::Sender<Pack>) -> Result<Published, Error> {
    let tree = walk(source)?;
    let known = Known { bases, placed: RwLock::default() };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let segments = workers + SEGMENTS_SPARE;
    let (free, empty) = sync_channel(segments);
    for _ in 0..segments {
        free.send(Segment::new()).expect("the receiver is in scope and there is room");
    }
    let (done, to_place) = sync_channel(segments);
    let (planner, empty) = (Mutex::new(Planner::new(&tree)), Mutex::new(empty));
    let work = Work { known: &known, planner, empty, cutter: Cutter::new() };
    let mut placer = Placer::new(&tree, &known, packs)?;
    let (placed, worked) = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| (done.clone(), &work)).collect();
        let workers: Vec<_> = workers.into_iter().map(|(done, work)| scope.spawn(move || work.run(&done))).collect();
        // Only the workers hold the other ends, so that the channel closes when the last of them has gone.
        drop(done);
        let placed = placer.run(&to_place, free);
        drop(to_place);
        let worked: Vec<_> =
            workers.into_iter().map(|worker| worker.join().unwrap_or(Err(Error::Interrupted))).collect();
        (placed, worked)
    });
    // Whoever was interrupted by another's failure says less than the other.
    let mut failures = worked.into_iter().chain([placed]).filter_map(Result::err).collect::<Vec<_>>();
    failures.sort_by_key(|error| matches!(error, Error::Interrupted));
    match failures.into_iter().next() {
        Some(error) => Err(error),
        None => placer.finish(),
    }
}

impl Work<'_> {
    /// Works on parts until there are no more, or nobody wants them.
    fn run(&self, done: &SyncSender<Segment>) -> Result<(), Error> {
        let worked = self.parts(done);
        if worked.is_err() {
            self.planner.lock().unwrap_or_else(PoisonError::into_inner).stop();
        }
        worked
    }

    fn parts(&self, done: &SyncSender<Segment>) -> Result<(), Error> {
        let compressor = zstd::bulk::Compressor::new(LEVEL);
        let mut compressor = compressor.map_err(|error| Error::malformed("compressor", error.to_string()))?;
        let mut scratch = vec![0; CHUNK_BYTES_MAX];
        loop {
            let next = self.empty.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(mut segment) = next else { return Ok(()) };
            let Some((number, part)) = self.plan()? else { return Ok(()) };
            segment.reset(number);
            fill(&part, &mut segment, self.cutter)?;
            self.hash(&mut segment, &mut compressor, &mut scratch);
            if done.send(segment).is_err() {
                return Ok(());
            }
        }
    }

    fn plan(&self) -> Result<Option<(u64, Part)>, Error> {
        self.planner.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    fn hash(&self, segment: &mut Segment, compressor: &mut zstd::bulk::Compressor<'_>, scratch: &mut [u8]) {
        for chunk in 0..segment.cuts.len() {
            let range = segment.range(chunk);
            let bytes = &segment.data[range];
            let id = ChunkId::of(bytes);
            let form = if self.known.contains(&id) {
                Form::Known
            } else {
                compress(compressor, bytes, scratch, &mut segment.arena)
            };
            segment.chunks.push(Hashed { id, form });
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
