//! The way out: packs into the queue of uploads, and streams (manifest, layout) compressed and cut into packs.

use std::io::{self, Write};

use bytes::Bytes;
use longshore_schemas::PackId;
use tokio::sync::mpsc;

use crate::{Error, INDEX_BYTES_MAX, PACK_BYTES_MAX, PackRef, keyed};

/// Chunk ids do not compress, and paths compress well at any level.
const LEVEL: i32 = 1;
/// With a key, of which a level 1 remembers too little.
const KEYED_LEVEL: i32 = 3;

/// A finished pack.
pub(super) struct Pack {
    pub(super) name: PackId,
    pub(super) bytes: Bytes,
}

/// The queue of uploads, with a record of what went in.
#[derive(Clone)]
pub(super) struct Outbox {
    queue: mpsc::Sender<Pack>,
    pub(super) sent: Vec<PackRef>,
}

impl Outbox {
    pub(super) fn new(queue: mpsc::Sender<Pack>) -> Self {
        Self { queue, sent: Vec::new() }
    }

    /// An empty record on the same queue.
    pub(super) fn fork(&self) -> Self {
        Self::new(self.queue.clone())
    }

    /// Names the pack and waits until there is room for it.
    pub(super) fn send(&mut self, bytes: Vec<u8>) -> Result<PackRef, Error> {
        let name = PackId::of(&bytes);
        let sent = PackRef { pack: name, bytes: bytes.len() as u64 };
        let pack = Pack { name, bytes: Bytes::from(bytes) };
        self.queue.blocking_send(pack).map_err(|_| Error::Interrupted)?;
        self.sent.push(sent);
        Ok(sent)
    }
}

/// Compresses what is written and sends it in packs. More than may be read again is refused.
pub(super) struct PackStream<'a> {
    encoder: zstd::Encoder<'a, Cutter>,
    room: u64,
}

impl<'a> PackStream<'a> {
    /// `key` is what it is compressed by, or empty.
    pub(super) fn new(outbox: Outbox, key: &'a [u8]) -> io::Result<Self> {
        let cutter = Cutter { buffer: Vec::new(), outbox };
        let encoder = match key {
            [] => zstd::Encoder::new(cutter, LEVEL)?,
            key => keyed::encoder(cutter, KEYED_LEVEL, key)?,
        };
        Ok(Self { encoder, room: INDEX_BYTES_MAX })
    }

    /// Sends what is left and says what was sent, in order.
    pub(super) fn finish(self) -> Result<Vec<PackRef>, Error> {
        let Cutter { buffer, mut outbox } = self.encoder.finish().map_err(|_| Error::Interrupted)?;
        if !buffer.is_empty() {
            outbox.send(buffer)?;
        }
        Ok(outbox.sent)
    }
}

impl Write for PackStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.encoder.write(bytes)?;
        self.room = self.room.checked_sub(written as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Cutter {
    buffer: Vec<u8>,
    outbox: Outbox,
}

impl Write for Cutter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PACK_BYTES_MAX - self.buffer.len();
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PACK_BYTES_MAX {
            self.outbox.send(std::mem::take(&mut self.buffer)).map_err(io::Error::other)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
