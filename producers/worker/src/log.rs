//! A build's output on its way to the bucket.
//!
//! ```text
//! Writer ──pieces, bounded──▶ uploader: segments of 256 KiB or 1 s ──▶ POST …/log (where?) ──▶ PUT ──▶ POST …/log (stored)
//! ```
//!
//! The log never fails a build, and never holds it up for long: if segments cannot be stored, output is left out, and a line says how
//! much. A segment that was begun is repeated until it is stored, so that indices have no gaps.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use longshore_schemas::http::{LOG_SEGMENT_BYTES_MAX, LogBody, LogSegment};
use longshore_service::retry::Backoff;
use tokio::{
    sync::mpsc::{self, error::SendTimeoutError},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::{beats::AttemptApi, limits::LOG_BYTES, uploads::with_headers, wait_after};

/// Output kept of one attempt, in bytes.
pub(crate) const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Pieces that wait to be put into segments, each at most 64 KiB.
pub(crate) const PIECES_MAX: usize = 64;
/// A segment is closed this long after its first byte, full or not.
const SEGMENT_AGE: Duration = Duration::from_secs(1);
/// How long a build's output may wait for room, before it is left out instead.
const STALL: Duration = Duration::from_secs(10);
/// How long the rest may take after the build.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);
/// For one PUT of a segment.
const PUT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where output goes.
pub(crate) struct Writer {
    pieces: mpsc::Sender<Bytes>,
    counts: Mutex<Counts>,
    uploader: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    written: u64,
    /// Left out since the last piece that had room.
    dropped: u64,
}

impl Writer {
    pub(crate) fn start(api: AttemptApi) -> Self {
        let (pieces, queue) = mpsc::channel(PIECES_MAX);
        let uploader =
            tokio::spawn(Uploader { api, stored: Vec::new() }.run(Segments { queue, buffer: BytesMut::new() }));
        Self { pieces, counts: Mutex::default(), uploader }
    }

    /// A build's output.
    pub(crate) async fn write(&self, mut piece: Bytes) {
        let ends = {
            let mut counts = self.counts();
            let room = LOG_BYTES_MAX - counts.written;
            if room == 0 {
                return;
            }
            piece.truncate(usize::try_from(room).unwrap_or(usize::MAX));
            counts.written += piece.len() as u64;
            counts.written == LOG_BYTES_MAX
        };
        self.pass(piece).await;
        if ends {
            LOG_BYTES.refused();
            let mib = LOG_BYTES_MAX / (1024 * 1024);
            self.say(&format!("the log reached its limit of {mib} MiB; the rest of the output is not kept")).await;
        }
    }

    /// The worker's own word, on a line of its own.
    pub(crate) async fn say(&self, line: &str) {
        self.pass(Bytes::from(format!("longshore: {line}\n"))).await;
    }

    async fn pass(&self, piece: Bytes) {
        let dropped = self.counts().dropped;
        let bytes = piece.len() as u64;
        let passed = if dropped == 0 {
            self.pieces.send_timeout(piece, STALL).await
        } else {
            let note =
                format!("longshore: {dropped} bytes of output are missing here, they could not be stored in time\n");
            match self.pieces.try_reserve_many(2) {
                Ok(mut room) => {
                    for piece in [Bytes::from(note), piece] {
                        if let Some(permit) = room.next() {
                            permit.send(piece);
                        }
                    }
                    self.counts().dropped = 0;
                    Ok(())
                }
                Err(_) => Err(SendTimeoutError::Timeout(piece)),
            }
        };
        if passed.is_err() {
            self.counts().dropped += bytes;
        }
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores what is left, as far as that is possible soon.
    pub(crate) async fn finish(self) {
        let Self { pieces, mut uploader, .. } = self;
        drop(pieces);
        if timeout(FLUSH_PATIENCE, &mut uploader).await.is_err() {
            uploader.abort();
            tracing::warn!("the end of a build's log could not be stored in time");
        }
    }
}

/// Cuts pieces into segments.
struct Segments {
    queue: mpsc::Receiver<Bytes>,
    buffer: BytesMut,
}

impl Segments {
    async fn next(&mut self) -> Option<Bytes> {
        if self.buffer.is_empty() {
            self.buffer.extend_from_slice(&self.queue.recv().await?);
        }
        let bytes_max = LOG_SEGMENT_BYTES_MAX as usize;
        let deadline = Instant::now() + SEGMENT_AGE;
        while self.buffer.len() < bytes_max {
            match timeout_at(deadline, self.queue.recv()).await {
                Ok(Some(piece)) => self.buffer.extend_from_slice(&piece),
                Ok(None) | Err(_) => break,
            }
        }
        let bytes = self.buffer.len().min(bytes_max);
        Some(self.buffer.split_to(bytes).freeze())
    }

    /// Whether the next segment would have to be waited for.
    fn is_idle(&self) -> bool {
        self.buffer.is_empty() && self.queue.is_empty()
    }
}

/// The server takes no more of this log.
struct Closed;

struct Uploader {
    api: AttemptApi,
    /// Segments in the bucket that the server was not told about.
    stored: Vec<LogSegment>,
}

impl Uploader {
    async fn run(mut self, mut segments: Segments) {
        let mut index = 0;
        while let Some(bytes) = segments.next().await {
            let segment = LogSegment { index, bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX) };
            if self.store(segment, bytes).await.is_err() {
                return;
            }
            self.stored.push(segment);
            index += 1;
            // While there is more, the next segment's call registers this one.
            if segments.is_idle() && self.ask(None).await.is_err() {
                return;
            }
        }
        if !self.stored.is_empty() {
            let _ = self.ask(None).await;
        }
    }

    async fn store(&mut self, segment: LogSegment, bytes: Bytes) -> Result<(), Closed> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let (url, headers) = self.ask(Some(segment)).await?;
            let put = self.api.plain().put(url).timeout(PUT_TIMEOUT).body(bytes.clone());
            match with_headers(put, &headers).send().await {
                // 412: an earlier try got through.
                Ok(response) if response.status().is_success() || response.status() == 412 => return Ok(()),
                Ok(response) => tracing::warn!(status = %response.status(), "a log segment was not stored"),
                Err(error) => tracing::warn!(%error, "a log segment was not stored"),
            }
            tokio::time::sleep(wait_after(&mut backoff)).await;
        }
    }

    /// Registers what is stored and asks where the next segment goes.
    async fn ask(&mut self, next: Option<LogSegment>) -> Result<(String, Vec<(String, String)>), Closed> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            match self.api.log(&LogBody { stored: self.stored.clone(), next }).await {
                Ok(answer) => {
                    self.stored.clear();
                    return match (next, answer.url) {
                        (Some(_), None) => Err(Closed),
                        (_, url) => Ok((url.unwrap_or_default(), answer.headers)),
                    };
                }
                Err(error) if error.is_transient() => tracing::warn!(%error, "the log could not be registered"),
                Err(error) => {
                    tracing::warn!(%error, "the server takes no more of this log");
                    return Err(Closed);
                }
            }
            tokio::time::sleep(wait_after(&mut backoff)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(pieces: &[usize]) -> Segments {
        let (sender, queue) = mpsc::channel(PIECES_MAX);
        for bytes in pieces {
            sender.try_send(Bytes::from(vec![0; *bytes])).expect("room");
        }
        Segments { queue, buffer: BytesMut::new() }
    }

    #[tokio::test]
    async fn pieces_become_segments_of_bounded_size() {
        let max = LOG_SEGMENT_BYTES_MAX as usize;
        let table: [(&[usize], &[usize]); 4] =
            [(&[], &[]), (&[1, 2, 3], &[6]), (&[max], &[max]), (&[max - 1, 2, max], &[max, max, 1])];
        for (pieces, expected) in table {
            let mut segments = segments(pieces);
            let mut lengths = Vec::new();
            while let Some(segment) = segments.next().await {
                lengths.push(segment.len());
            }
            assert_eq!(lengths, expected, "{pieces:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_segment_is_closed_when_it_is_old() {
        let (sender, queue) = mpsc::channel(PIECES_MAX);
        let mut segments = Segments { queue, buffer: BytesMut::new() };
        sender.try_send(Bytes::from_static(b"slow")).expect("room");
        let begun = Instant::now();
        assert_eq!(segments.next().await.as_deref(), Some(&b"slow"[..]));
        assert_eq!(begun.elapsed().as_secs(), SEGMENT_AGE.as_secs());
    }
}
