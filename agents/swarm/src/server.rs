//! Serves the store's packs to peers: bounded connections, bounded uploads, and nothing that is not verified.
//!
//! A pack is hashed while it is sent. One that was damaged on the disk since it was verified fools one peer at most, which
//! does not keep it, and is forgotten.

use std::{net::SocketAddr, sync::Arc, time::Duration};

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
/// Packs sent at once; further requests are answered `Busy`.
const UPLOADS_MAX: usize = 16;
/// A connection without a request for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
const GREETING: Duration = Duration::from_secs(5);

/// Listens, and serves until the shutdown; answers the address that it listens on.
pub async fn start(store: PackStore, listen: SocketAddr, shutdown: CancellationToken) -> Result<SocketAddr, Error> {
    let failed = |source| Error::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(accept(listener, store, shutdown));
    Ok(address)
}

async fn accept(listener: TcpListener, store: PackStore, shutdown: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let uploads = Arc::new(Semaphore::new(UPLOADS_MAX));
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
        let Ok(place) = connections.clone().try_acquire_owned() else {
            tracing::debug!(%peer, "too many peers");
            continue;
        };
        let (store, uploads, shutdown) = (store.clone(), uploads.clone(), shutdown.clone());
        tokio::spawn(async move {
            let serving = async {
                let mut stream = stream;
                stream.set_nodelay(true)?;
                serve(&mut stream, &store, &uploads).await
            };
            let served = shutdown.run_until_cancelled(serving).await;
            if let Some(Err(error)) = served {
                tracing::debug!(%peer, %error, "a peer's connection ended");
            }
            drop(place);
        });
    }
}

/// One connection, until the peer hangs up. What it reads is whatever a stranger sends.
pub(crate) async fn serve<S>(stream: &mut S, store: &PackStore, uploads: &Semaphore) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut theirs = [0; MAGIC.len()];
    timeout(GREETING, stream.read_exact(&mut theirs)).await??;
    if theirs != MAGIC {
        return Ok(());
    }
    stream.write_all(&MAGIC).await?;
    loop {
        let mut id = [0; 32];
        match timeout(IDLE, stream.read_exact(&mut id)).await {
            Ok(Ok(_)) => {}
            // The peer hung up, or has nothing to ask.
            Ok(Err(_)) | Err(_) => return Ok(()),
        }
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
    stream.write_all(&head).await
}
