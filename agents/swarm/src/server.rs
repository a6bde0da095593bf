//! Serves the store's packs to nodes of the region: bounded connections, bounded uploads, and nothing that is not verified.
//!
//! Who has not shown yet that it is a node takes none of the places of those who have.
//!
//! A pack is hashed while it is sent. One that was damaged on the disk since it was verified fools one peer at most, which
//! does not keep it, and is forgotten.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use longshore_identity::{Handshaken, Tls};
use longshore_schemas::PackId;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    BLOCK_BYTES, Error, PackStore,
    peer::{MAGIC, Status, deadline},
};

/// Connections at once; further ones are closed.
const CONNECTIONS_MAX: usize = 256;
/// Connections of those who have not shown who they are; further ones are closed.
const STRANGERS_MAX: usize = 256;
/// Packs sent at once; further requests are answered `Busy`.
const UPLOADS_MAX: usize = 16;
/// A connection without a request for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
const GREETING: Duration = Duration::from_secs(5);

/// Listens, and serves until the shutdown; answers the address that it listens on. While this node has no certificate it serves nobody.
pub async fn start(
    store: PackStore,
    listen: SocketAddr,
    tls: Arc<Tls>,
    shutdown: CancellationToken,
) -> Result<SocketAddr, Error> {
    let failed = |source| Error::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let places = Places {
        strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
        connections: Semaphore::new(CONNECTIONS_MAX),
        uploads: Semaphore::new(UPLOADS_MAX),
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
    uploads: Semaphore,
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
    uploads: &Semaphore,
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
        let mut id = [0; 32];
        match timeout(IDLE, stream.read_exact(&mut id)).await {
            Ok(Ok(_)) => {}
            // The peer hung up, or has nothing to ask.
            Ok(Err(_)) | Err(_) => return Ok(()),
        }
        believed()?;
        answer(stream, store, uploads, &PackId::from_bytes(id)).await?;
    }
}

async fn answer<S>(stream: &mut S, store: &PackStore, uploads: &Semaphore, pack: &PackId) -> std::io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    let Some((path, bytes)) = store.path(pack) else { return head(stream, Status::Missing, 0).await };
    let Ok(_upload) = uploads.try_acquire() else { return head(stream, Status::Busy, 0).await };
    // It may have been removed since.
    let Ok(file) = tokio::fs::File::open(&path).await else { return head(stream, Status::Missing, 0).await };
    head(stream, Status::Found, bytes).await?;
    let sent = tokio::time::timeout_at(deadline(bytes), send(file.take(bytes), stream)).await??;
    if sent == *pack {
        return Ok(());
    }
    tracing::error!(%pack, "a pack is damaged on this disk: it is forgotten, and fetched again when it is needed");
    store.forget(pack)?;
    Err(std::io::ErrorKind::InvalidData.into())
}

/// Sends a file; answers what the bytes were.
async fn send(
    mut file: tokio::io::Take<tokio::fs::File>,
    stream: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<PackId> {
    let (mut hasher, mut block) = (blake3::Hasher::new(), vec![0; BLOCK_BYTES]);
    loop {
        let count = file.read(&mut block).await?;
        if count == 0 {
            stream.flush().await?;
            return Ok(PackId::from_bytes(*hasher.finalize().as_bytes()));
        }
        hasher.update(&block[..count]);
        stream.write_all(&block[..count]).await?;
    }
}

async fn head(stream: &mut (impl AsyncWrite + Unpin), status: Status, bytes: u64) -> std::io::Result<()> {
    let mut head = [0; 9];
    head[0] = status as u8;
    head[1..].copy_from_slice(&bytes.to_be_bytes());
    stream.write_all(&head).await?;
    stream.flush().await
}
