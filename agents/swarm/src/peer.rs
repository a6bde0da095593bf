//! The protocol between peers, over TLS: each knows which node the other is.
//!
//! Both sides first send [`MAGIC`]. Then the client sends requests, as many as it likes: a pack's id, 32 bytes, and the first block that it
//! lacks, 4 bytes. The server answers each in order: a status byte, the size in 8 bytes, and for [`Status::Found`] the pack's outline,
//! 32 bytes for each block if there are several, and the blocks from that one on: a byte that says how many follow, and those. A server that gets the pack
//! itself sends them as they come. While nothing is there it says [`Status::Coming`], or a count of [`COMING`], every so often; and a count of
//! [`GONE`] if no more will come, which ends the answer.

use std::{
    collections::VecDeque,
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use futures::poll;
use longshore_artifact::{PACK_BYTES_MAX, outline::Outline};
use longshore_identity::{Handshaken, Peer, PeerStream, Tls};
use longshore_schemas::{NodeId, PackId};
use longshore_swarm_policy::fetch::Failure;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::{
    Budget, PackStore, STALL,
    pace::{Pace, Stopped},
    part::Blocks,
};

pub(crate) const MAGIC: [u8; 8] = *b"LSSWARM3";
/// Of one request.
pub(crate) const REQUEST_BYTES: usize = 36;
/// In the place of a count of blocks: the next one comes, or no more do.
pub(crate) const COMING: u8 = 0;
pub(crate) const GONE: u8 = 255;
/// So often a server says that something still comes.
pub(crate) const BEAT: Duration = Duration::from_millis(500);
/// So long it is waited for; the policy asks elsewhere before, if anything else comes.
pub(crate) const COMING_MAX: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections that are kept for the next pack, of all peers; beyond that the oldest is closed.
const IDLE_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Found = 0,
    Missing = 1,
    Busy = 2,
    /// Another answer follows, once there is something of the pack.
    Coming = 3,
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

/// Connections to peers, used again for the next pack.
pub(crate) struct Peers {
    tls: Arc<Tls>,
    idle: Mutex<VecDeque<Idle>>,
}

type Connection = Handshaken<Peer, PeerStream>;

/// A pack that is to come from a peer.
pub(crate) struct Ask<'a> {
    pub(crate) store: &'a PackStore,
    pub(crate) budget: &'a Budget,
    pub(crate) pack: PackId,
    pub(crate) bytes: u64,
    /// What came from others before.
    pub(crate) begun: &'a mut Option<Blocks>,
    /// Whether an answer has begun.
    pub(crate) answered: bool,
    /// Called once the first block is there: from then on it can be passed on.
    pub(crate) passes_on: &'a mut (dyn FnMut() + Send),
}

struct Idle {
    address: String,
    connection: Connection,
}

impl Peers {
    pub(crate) fn new(tls: Arc<Tls>) -> Self {
        Self { tls, idle: Mutex::default() }
    }

    /// Fetches a pack into the store. What came of it before a failure stays in what was begun.
    pub(crate) async fn fetch(&self, peer: &NodeId, address: &str, mut ask: Ask<'_>) -> Result<u64, FetchFailure> {
        // A kept connection may have been closed by the peer meanwhile; a new one tells.
        if let Some(mut kept) = self.take(peer, address).await? {
            let result = transfer(&mut kept.stream, &mut ask).await;
            if ask.answered || !matches!(&result, Err(failure) if failure.failure == Failure::Unreachable) {
                return self.settle(address, kept, result);
            }
        }
        let connected = connect(&self.tls, address, peer).await;
        let mut connection = connected.map_err(|error| FetchFailure::unreachable(&error))?;
        let result = transfer(&mut connection.stream, &mut ask).await;
        self.settle(address, connection, result)
    }

    /// A connection that was kept. A peer that sent something on it since, unasked, does not keep to the protocol.
    async fn take(&self, peer: &NodeId, address: &str) -> Result<Option<Connection>, FetchFailure> {
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

    fn kept(&self, peer: &NodeId, address: &str) -> Option<Connection> {
        let mut idle = self.lock();
        let at = idle.iter().rposition(|idle| idle.connection.peer.node() == peer && idle.address == address)?;
        Some(idle.remove(at)?.connection)
    }

    /// Keeps the connection if the answer on it was read to its end.
    fn settle(
        &self,
        address: &str,
        connection: Connection,
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

async fn connect(tls: &Tls, address: &str, peer: &NodeId) -> io::Result<Connection> {
    let connecting = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let mut connection = tls.connect_to_node(tcp, peer).await?;
        let stream = &mut connection.stream;
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
pub(crate) async fn transfer<S>(stream: &mut S, ask: &mut Ask<'_>) -> Result<u64, FetchFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let first = ask.begun.as_ref().map_or(0, Blocks::next);
    let mut request = [0; REQUEST_BYTES];
    request[..32].copy_from_slice(ask.pack.as_bytes());
    request[32..].copy_from_slice(&u32::try_from(first).unwrap_or(u32::MAX).to_be_bytes());
    stalled(stream.write_all(&request)).await?;
    stalled(stream.flush()).await?;
    let mut waits = Waits::default();
    let mut head = [0; 9];
    loop {
        stalled(stream.read_exact(&mut head)).await?;
        ask.answered = true;
        if head[0] != Status::Coming as u8 {
            break;
        }
        waits.still()?;
    }
    let length = u64::from_be_bytes(*head.last_chunk().expect("nine bytes end in eight"));
    match head[0] {
        status if status == Status::Found as u8 => {}
        status if status == Status::Missing as u8 => return Err(FetchFailure::new(Failure::Missing, "not there")),
        status if status == Status::Busy as u8 => return Err(FetchFailure::new(Failure::Busy, "busy")),
        status => return Err(FetchFailure::new(Failure::Lied, format!("it answered status {status}"))),
    }
    if length > PACK_BYTES_MAX as u64 || length != ask.bytes {
        let offered = format!("it offered {length} bytes, the pack has {}", ask.bytes);
        return Err(FetchFailure::new(Failure::Lied, offered));
    }
    read_blocks(stream, ask, waits).await
}

/// What follows the head of a pack that was found.
async fn read_blocks<S>(stream: &mut S, ask: &mut Ask<'_>, mut waits: Waits) -> Result<u64, FetchFailure>
where
    S: AsyncRead + Unpin,
{
    let mut pace = Pace::start(ask.bytes);
    let outline = read_outline(stream, (ask.pack, ask.bytes), &mut pace).await?;
    // It stays there, whatever ends this: the next source goes on with it.
    if ask.begun.is_none() {
        *ask.begun = Some(Blocks::create(ask.store, outline).map_err(FetchFailure::own)?);
    }
    read_into(stream, ask, &mut waits, &mut pace).await?;
    complete(ask.begun)
}

/// Puts a pack into the store of which all blocks came.
pub(crate) fn complete(begun: &mut Option<Blocks>) -> Result<u64, FetchFailure> {
    let blocks = begun.take().ok_or_else(|| io::ErrorKind::NotFound.into());
    blocks.and_then(Blocks::complete).map_err(FetchFailure::own)
}

async fn read_into<S>(stream: &mut S, ask: &mut Ask<'_>, waits: &mut Waits, pace: &mut Pace) -> Result<(), FetchFailure>
where
    S: AsyncRead + Unpin,
{
    let Ask { begun: Some(blocks), budget, passes_on, .. } = ask else {
        return Err(FetchFailure::own(io::ErrorKind::NotFound.into()));
    };
    let (mut block, mut is_told) = (Vec::new(), false);
    while blocks.next() < blocks.outline().blocks() {
        let mut count = [0];
        read_whole(stream, &mut count, pace).await?;
        let left = blocks.outline().blocks() - blocks.next();
        match count[0] {
            COMING => {
                waits.still()?;
                pace.rest();
            }
            GONE => return Err(FetchFailure::new(Failure::Waiting, "it gets no more of it itself")),
            count if usize::from(count) > left => {
                return Err(FetchFailure::new(Failure::Lied, format!("it has {count} blocks where {left} are left")));
            }
            count => {
                for _ in 0..count {
                    block.resize(blocks.outline().length(blocks.next()), 0);
                    read_whole(stream, &mut block, pace).await?;
                    let length = block.len() as u64;
                    let taken = blocks.take(block).await.map_err(FetchFailure::own)?;
                    let lied = || FetchFailure::new(Failure::Lied, "the bytes are not the pack's");
                    block = taken.ok_or_else(lied)?;
                    waits.over();
                    if !is_told {
                        passes_on();
                        is_told = true;
                    }
                    pace.paused(budget.spend(length).await);
                }
            }
        }
    }
    Ok(())
}

/// How long a peer has had nothing to give.
#[derive(Default)]
struct Waits {
    since: Option<Instant>,
}

impl Waits {
    fn still(&mut self) -> Result<(), FetchFailure> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < COMING_MAX {
            return Ok(());
        }
        let reason = format!("it has got nothing itself for {} s", COMING_MAX.as_secs());
        Err(FetchFailure::new(Failure::Waiting, reason))
    }

    fn over(&mut self) {
        self.since = None;
    }
}

async fn read_outline<S>(stream: &mut S, (pack, bytes): (PackId, u64), pace: &mut Pace) -> Result<Outline, FetchFailure>
where
    S: AsyncRead + Unpin,
{
    let mut values = vec![0; 32 * Outline::len_of(bytes)];
    read_whole(stream, &mut values, pace).await?;
    let outline = Outline::from_bytes(pack, bytes, &values);
    outline.ok_or_else(|| FetchFailure::new(Failure::Lied, "the outline is not the pack's"))
}

async fn read_whole<S>(stream: &mut S, mut buffer: &mut [u8], pace: &mut Pace) -> Result<(), FetchFailure>
where
    S: AsyncRead + Unpin,
{
    while !buffer.is_empty() {
        let count = pace.next(stream.read(buffer), |count| *count).await?;
        if count == 0 {
            return Err(FetchFailure::new(Failure::Unreachable, "the connection ended within the pack"));
        }
        buffer = &mut buffer[count..];
    }
    Ok(())
}

impl From<Stopped> for FetchFailure {
    fn from(stopped: Stopped) -> Self {
        Self::unreachable(&stopped)
    }
}

async fn stalled<T>(read: impl Future<Output = io::Result<T>>) -> Result<T, FetchFailure> {
    match timeout(STALL, read).await {
        Ok(result) => result.map_err(|error| FetchFailure::unreachable(&error)),
        Err(_) => Err(FetchFailure::new(Failure::Unreachable, "nothing came for 3 s")),
    }
}
