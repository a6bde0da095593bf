//! The protocol between peers, over TLS: each knows which node the other is.
//!
//! Both sides first send [`MAGIC`]. Then the client sends pack ids, 32 bytes each, as many as it likes; the server
//! answers each in order: a status byte, the size in 8 bytes, and for [`Status::Found`] that many bytes.

use std::{
    collections::VecDeque,
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use futures::poll;
use longshore_artifact::PACK_BYTES_MAX;
use longshore_identity::{Handshaken, Peer, Stream, Tls};
use longshore_schemas::{NodeId, PackId};
use longshore_swarm_policy::fetch::Failure;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    BLOCK_BYTES, PATIENCE, PackStore, RATE_MIN, STALL,
    pace::{Pace, Stopped},
};

pub(crate) const MAGIC: [u8; 8] = *b"LSSWARM1";
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections that are kept for the next pack, of all peers; beyond that the oldest is closed.
const IDLE_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Found = 0,
    Missing = 1,
    Busy = 2,
}

/// Why a pack did not come: what the policy is told, and what a person reads.
#[derive(Debug)]
pub(crate) struct FetchFailure {
    pub(crate) failure: Failure,
    pub(crate) reason: String,
    /// It is not the source's fault: this node's own disk takes nothing.
    pub(crate) own: Option<io::Error>,
}

impl FetchFailure {
    pub(crate) fn new(failure: Failure, reason: impl Into<String>) -> Self {
        Self { failure, reason: reason.into(), own: None }
    }

    pub(crate) fn own(error: io::Error) -> Self {
        Self { own: Some(error), ..Self::new(Failure::Busy, "this node's own disk takes nothing") }
    }

    pub(crate) fn unreachable(error: &dyn std::fmt::Display) -> Self {
        Self::new(Failure::Unreachable, error.to_string())
    }
}

/// When a transfer of so many bytes must be over.
pub(crate) fn deadline(bytes: u64) -> Instant {
    Instant::now() + PATIENCE + Duration::from_secs(bytes / RATE_MIN)
}

/// Connections to peers, used again for the next pack.
pub(crate) struct Peers {
    tls: Arc<Tls>,
    idle: Mutex<VecDeque<Idle>>,
}

struct Idle {
    address: String,
    connection: Handshaken<Peer>,
}

impl Peers {
    pub(crate) fn new(tls: Arc<Tls>) -> Self {
        Self { tls, idle: Mutex::default() }
    }

    /// Fetches a pack into the store.
    pub(crate) async fn fetch(
        &self,
        store: &PackStore,
        peer: &NodeId,
        address: &str,
        pack: PackId,
        bytes: u64,
    ) -> Result<u64, FetchFailure> {
        let until = deadline(bytes);
        // A kept connection may have been closed by the peer meanwhile; a new one tells.
        if let Some(mut kept) = self.take(peer, address).await?
            && let Ok(result) = timeout_at(until, transfer(&mut kept.stream, store, pack, bytes)).await
            && !matches!(&result, Err(failure) if failure.failure == Failure::Unreachable)
        {
            return self.settle(address, kept, result);
        }
        let fresh = async {
            let connected = connect(&self.tls, address, peer).await;
            let mut connection = connected.map_err(|error| FetchFailure::unreachable(&error))?;
            let result = transfer(&mut connection.stream, store, pack, bytes).await;
            self.settle(address, connection, result)
        };
        let too_slow = |_| FetchFailure::new(Failure::Unreachable, "slower than 128 KiB/s");
        timeout_at(until, fresh).await.map_err(too_slow)?
    }

    /// A connection that was kept. A peer that sent something on it since, unasked, does not keep to the protocol.
    async fn take(&self, peer: &NodeId, address: &str) -> Result<Option<Handshaken<Peer>>, FetchFailure> {
        let Some(mut kept) = self.kept(peer, address) else { return Ok(None) };
        if kept.peer.check(&self.tls, longshore_service::now()).is_err() {
            return Ok(None);
        }
        let mut unasked = [0];
        let read = poll!(pin!(kept.stream.read(&mut unasked)));
        match read {
            Poll::Pending => Ok(Some(kept)),
            Poll::Ready(Ok(1..)) => Err(FetchFailure::new(Failure::Lied, "it sent more than it was asked for")),
            Poll::Ready(Ok(0) | Err(_)) => Ok(None),
        }
    }

    fn kept(&self, peer: &NodeId, address: &str) -> Option<Handshaken<Peer>> {
        let mut idle = self.lock();
        let at = idle.iter().rposition(|idle| idle.connection.peer.node() == peer && idle.address == address)?;
        Some(idle.remove(at)?.connection)
    }

    /// Keeps the connection if the answer on it was read to its end.
    fn settle(
        &self,
        address: &str,
        connection: Handshaken<Peer>,
        result: Result<u64, FetchFailure>,
    ) -> Result<u64, FetchFailure> {
        let at_end = match &result {
            Ok(_) => true,
            Err(failure) => failure.own.is_none() && matches!(failure.failure, Failure::Missing | Failure::Busy),
        };
        if at_end {
            let mut idle = self.lock();
            if idle.len() >= IDLE_MAX {
                idle.pop_front();
            }
            idle.push_back(Idle { address: address.to_owned(), connection });
        }
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn connect(tls: &Tls, address: &str, peer: &NodeId) -> io::Result<Handshaken<Peer>> {
    let connecting = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let mut connection = tls.connect_to_node(tcp, peer).await?;
        let stream: &mut Stream = &mut connection.stream;
        stream.write_all(&MAGIC).await?;
        stream.flush().await?;
        let mut theirs = [0; MAGIC.len()];
        stream.read_exact(&mut theirs).await?;
        if theirs != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak the swarm's protocol"));
        }
        Ok(connection)
    };
    timeout(CONNECT, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// One request and its answer. After an error that is not the peer's plain refusal the stream is of no more use.
pub(crate) async fn transfer<S>(
    stream: &mut S,
    store: &PackStore,
    pack: PackId,
    bytes: u64,
) -> Result<u64, FetchFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let lost = |error: io::Error| FetchFailure::unreachable(&error);
    stream.write_all(pack.as_bytes()).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut head = [0; 9];
    stalled(stream.read_exact(&mut head)).await?;
    let length = u64::from_be_bytes(*head.last_chunk().expect("nine bytes end in eight"));
    match head[0] {
        status if status == Status::Found as u8 => {}
        status if status == Status::Missing as u8 => return Err(FetchFailure::new(Failure::Missing, "not there")),
        status if status == Status::Busy as u8 => return Err(FetchFailure::new(Failure::Busy, "busy")),
        status => return Err(FetchFailure::new(Failure::Lied, format!("it answered status {status}"))),
    }
    if length > PACK_BYTES_MAX as u64 || length != bytes {
        return Err(FetchFailure::new(Failure::Lied, format!("it offered {length} bytes, the pack has {bytes}")));
    }
    let mut incoming = store.incoming(pack).map_err(FetchFailure::own)?;
    let (mut block, mut pace) = (vec![0; BLOCK_BYTES], Pace::start());
    while incoming.bytes() < length {
        let left = usize::try_from(length - incoming.bytes()).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        let count = pace.next(stream.read(&mut block[..left]), |count| *count).await?;
        if count == 0 {
            return Err(FetchFailure::new(Failure::Unreachable, "the connection ended within the pack"));
        }
        incoming.write(&block[..count]).await.map_err(FetchFailure::own)?;
    }
    match incoming.admit().await.map_err(FetchFailure::own)? {
        true => Ok(length),
        false => Err(FetchFailure::new(Failure::Lied, "the bytes are not the pack's")),
    }
}

impl From<Stopped> for FetchFailure {
    fn from(stopped: Stopped) -> Self {
        Self::unreachable(&stopped)
    }
}

async fn stalled<T>(read: impl Future<Output = io::Result<T>>) -> Result<T, FetchFailure> {
    match timeout(STALL, read).await {
        Ok(result) => result.map_err(|error| FetchFailure::unreachable(&error)),
        Err(_) => Err(FetchFailure::new(Failure::Unreachable, "nothing came for 5 s")),
    }
}
