//! Serves the store's packs to nodes of the region: bounded connections, bounded uploads, and nothing that is not verified.
//!
//! Who has not shown yet that it is a node takes none of the places of those who have.
//!
//! Each block is hashed before it is sent. A pack that was damaged on the disk since it was verified fools nobody, and is forgotten. Of a pack
//! that is on its way here, what has come is sent, and what comes as it comes. Who asks for one that this node is about to get waits for it, and is
//! told so every now and then.

use std::{fs::File, net::SocketAddr, os::unix::fs::FileExt, pin::pin, sync::Arc, time::Duration};

use longshore_artifact::outline::{BLOCK_BYTES, Outline, blocks};
use longshore_identity::{Handshaken, Tls};
use longshore_schemas::PackId;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Budget, Error, PackStore,
    pace::deadline,
    peer::{BEAT, COMING, COMING_MAX, GONE, MAGIC, REQUEST_BYTES, Status},
    store::Found,
};

/// Connections at once; further ones are closed.
const CONNECTIONS_MAX: usize = 256;
/// Connections of those who have not shown who they are; further ones are closed.
const STRANGERS_MAX: usize = 256;
/// Packs sent at once; further requests wait for a while, and are answered `Busy` then.
const UPLOADS_MAX: usize = 64;
const PLACE_MAX: Duration = Duration::from_secs(5);
/// Blocks that are read from the disk at a time.
const BLOCKS_AT_ONCE: usize = 4;
/// A connection without a request for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
const GREETING: Duration = Duration::from_secs(5);

/// Listens, and serves within the budget until the shutdown; answers the address that it listens on. While this node has no certificate it serves nobody.
pub async fn start(
    store: PackStore,
    listen: SocketAddr,
    tls: Arc<Tls>,
    budget: Budget,
    shutdown: CancellationToken,
) -> Result<SocketAddr, Error> {
    let failed = |source| Error::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let places = Places {
        strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
        connections: Semaphore::new(CONNECTIONS_MAX),
        uploads: Uploads::new(budget),
    };
    tokio::spawn(accept(listener, Arc::new(Shared { store, tls, places }), shutdown));
    Ok(address)
}

/// What all connections have in common.
struct Shared {
    store: PackStore,
    tls: Arc<Tls>,
    places: Places,
}

struct Places {
    strangers: Arc<Semaphore>,
    connections: Semaphore,
    uploads: Uploads,
}

/// What is sent of packs, by all connections.
pub(crate) struct Uploads {
    places: Semaphore,
    budget: Budget,
}

impl Uploads {
    pub(crate) fn new(budget: Budget) -> Self {
        Self { places: Semaphore::new(UPLOADS_MAX), budget }
    }

    /// A place for one pack; one of fewer while the budget is small. None: there will be none.
    async fn place(&self) -> Option<SemaphorePermit<'_>> {
        let share = UPLOADS_MAX / self.budget.transfers(UPLOADS_MAX);
        self.places.acquire_many(u32::try_from(share).unwrap_or(1)).await.ok()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, shutdown: CancellationToken) {
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors: those in use must come free first.
                tracing::warn!(%error, "cannot accept a peer");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(stranger) = shared.places.strangers.clone().try_acquire_owned() else {
            tracing::debug!(%peer, "too many peers that say nothing");
            continue;
        };
        let (shared, shutdown) = (shared.clone(), shutdown.clone());
        tokio::spawn(async move {
            let serving = async {
                stream.set_nodelay(true)?;
                let Handshaken { mut stream, peer: mut node } = shared.tls.accept_node(stream).await?;
                let place = shared.places.connections.try_acquire();
                drop(stranger);
                let _place = place.map_err(|_| std::io::Error::other("too many peers"))?;
                let believed = || node.check(&shared.tls, longshore_service::now()).map_err(std::io::Error::other);
                serve(&mut stream, &shared.store, &shared.places.uploads, believed).await
            };
            let served = shutdown.run_until_cancelled(serving).await;
            if let Some(Err(error)) = served {
                tracing::debug!(%peer, %error, "a peer's connection ended");
            }
        });
    }
}

/// One connection, until the peer hangs up or is believed no more. What it reads is whatever a stranger sends.
pub(crate) async fn serve<S>(
    stream: &mut S,
    store: &PackStore,
    uploads: &Uploads,
    mut believed: impl FnMut() -> std::io::Result<()>,
) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut theirs = [0; MAGIC.len()];
    timeout(GREETING, stream.read_exact(&mut theirs)).await??;
    if theirs != MAGIC {
        return Ok(());
    }
    stream.write_all(&MAGIC).await?;
    stream.flush().await?;
    loop {
        let mut request = [0; REQUEST_BYTES];
        match timeout(IDLE, stream.read_exact(&mut request)).await {
            Ok(Ok(_)) => {}
            // The peer hung up, or has nothing to ask.
            Ok(Err(_)) | Err(_) => return Ok(()),
        }
        believed()?;
        let (id, first) = request.split_at(32);
        let (id, first) = (id.try_into().expect("32 bytes"), first.try_into().expect("the rest of a request"));
        answer(stream, store, uploads, PackId::from_bytes(id), u32::from_be_bytes(first) as usize).await?;
    }
}

async fn answer<S>(
    stream: &mut S,
    store: &PackStore,
    uploads: &Uploads,
    pack: PackId,
    first: usize,
) -> std::io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    let coming = head_of(Status::Coming, 0);
    if tell_while(stream, &coming, COMING_MAX, store.comes(&pack)).await? != Some(true) {
        return head(stream, Status::Missing, 0).await;
    }
    // Nothing is read for who asks for what the pack does not have.
    if store.size(&pack).is_none_or(|bytes| first >= blocks(bytes)) {
        return head(stream, Status::Missing, 0).await;
    }
    let Some(Some(_place)) = tell_while(stream, &coming, PLACE_MAX, uploads.place()).await? else {
        return head(stream, Status::Busy, 0).await;
    };
    let looked = store.clone();
    let found = tokio::task::spawn_blocking(move || looked.find(&pack)).await.map_err(std::io::Error::other)??;
    let Some(found) = found else { return head(stream, Status::Missing, 0).await };
    let bytes = found.outline.bytes();
    head(stream, Status::Found, bytes).await?;
    timeout_at(deadline(bytes), send(stream, store, &uploads.budget, found, first)).await?
}

/// Waits for something, and tells the peer every so often that it still comes. None: it takes too long.
async fn tell_while<T>(
    stream: &mut (impl AsyncWrite + Unpin),
    still: &[u8],
    max: Duration,
    happens: impl Future<Output = T>,
) -> std::io::Result<Option<T>> {
    let (mut happens, until) = (pin!(happens), Instant::now() + max);
    loop {
        match timeout(BEAT, happens.as_mut()).await {
            Ok(happened) => return Ok(Some(happened)),
            Err(_) if Instant::now() >= until => return Ok(None),
            Err(_) => {
                stream.write_all(still).await?;
                stream.flush().await?;
            }
        }
    }
}

/// The outline, and the blocks from `first` on.
async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    store: &PackStore,
    budget: &Budget,
    found: Found,
    first: usize,
) -> std::io::Result<()> {
    let Found { outline, file, mut progress } = found;
    stream.write_all(&outline.to_bytes()).await?;
    let (file, mut next, mut read) = (Arc::new(file), first, Vec::new());
    while next < outline.blocks() {
        let there = match &mut progress {
            None => outline.blocks(),
            Some(progress) => match next_block(stream, progress, next).await? {
                Some(there) => there,
                None => return gone(stream).await,
            },
        };
        let count = (there - next).min(BLOCKS_AT_ONCE);
        read = match read_verified(&file, &outline, next, count, read).await? {
            Some(read) => read,
            None => {
                store.forget_damaged(&outline.pack())?;
                return Err(std::io::ErrorKind::InvalidData.into());
            }
        };
        if tell_while(stream, &[COMING], COMING_MAX, budget.spend(read.len() as u64)).await?.is_none() {
            return gone(stream).await;
        }
        stream.write_all(&[u8::try_from(count).unwrap_or(COMING)]).await?;
        stream.write_all(&read).await?;
        next += count;
    }
    stream.flush().await
}

async fn gone(stream: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    stream.write_all(&[GONE]).await?;
    stream.flush().await
}

/// Waits until there are more blocks than so many; how many there are. None if no more will come.
async fn next_block(
    stream: &mut (impl AsyncWrite + Unpin),
    progress: &mut watch::Receiver<usize>,
    next: usize,
) -> std::io::Result<Option<usize>> {
    if *progress.borrow() <= next {
        // What there is goes out meanwhile.
        stream.flush().await?;
    }
    let comes = async { progress.wait_for(|there| *there > next).await.map(|there| *there).ok() };
    Ok(tell_while(stream, &[COMING], COMING_MAX, comes).await?.flatten())
}

/// So many blocks from one on, into memory that was used before; None if the disk has other bytes there.
async fn read_verified(
    file: &Arc<File>,
    outline: &Arc<Outline>,
    first: usize,
    count: usize,
    mut into: Vec<u8>,
) -> std::io::Result<Option<Vec<u8>>> {
    let (file, outline) = (file.clone(), outline.clone());
    let reading = move || -> std::io::Result<_> {
        into.resize((first..first + count).map(|index| outline.length(index)).sum(), 0);
        file.read_exact_at(&mut into, (first * BLOCK_BYTES) as u64)?;
        let right = into.chunks(BLOCK_BYTES).zip(first..).all(|(block, index)| outline.fits(index, block));
        Ok(right.then_some(into))
    };
    tokio::task::spawn_blocking(reading).await.map_err(std::io::Error::other)?
}

async fn head(stream: &mut (impl AsyncWrite + Unpin), status: Status, bytes: u64) -> std::io::Result<()> {
    stream.write_all(&head_of(status, bytes)).await?;
    stream.flush().await
}

fn head_of(status: Status, bytes: u64) -> [u8; 9] {
    let mut head = [0; 9];
    head[0] = status as u8;
    head[1..].copy_from_slice(&bytes.to_be_bytes());
    head
}
