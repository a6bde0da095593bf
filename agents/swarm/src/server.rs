//! Serves the store's packs to nodes of the region: bounded connections, bounded uploads, and nothing that is not verified.
//!
//! Who has not shown yet that it is a node takes none of the places of those who have.
//!
//! Each block is hashed before it is sent. A pack that was damaged on the disk since it was verified fools nobody, and is forgotten. Of a pack
//! that is on its way here, what has come is sent, and what comes as it comes.

use std::{io::SeekFrom, net::SocketAddr, sync::Arc, time::Duration};

use longshore_identity::{Handshaken, Tls};
use longshore_schemas::PackId;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, PackStore,
    blocks::{BLOCK_BYTES, blocks},
    peer::{MAGIC, REQUEST_BYTES, Status, deadline},
    store::Found,
};

/// Connections at once; further ones are closed.
const CONNECTIONS_MAX: usize = 256;
/// Connections of those who have not shown who they are; further ones are closed.
const STRANGERS_MAX: usize = 256;
/// Packs sent at once; further requests are answered `Busy`.
const UPLOADS_MAX: usize = 64;
/// So long the next block of a pack that is on its way may take; less than what the peer waits for.
const COMING: Duration = Duration::from_secs(4);
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
    uploads: &Semaphore,
    pack: PackId,
    first: usize,
) -> std::io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    // Nothing is read for who asks for what the pack does not have.
    if store.size(&pack).is_none_or(|bytes| first >= blocks(bytes)) {
        return head(stream, Status::Missing, 0).await;
    }
    let Ok(_upload) = uploads.try_acquire() else { return head(stream, Status::Busy, 0).await };
    let looked = store.clone();
    let found = tokio::task::spawn_blocking(move || looked.find(&pack)).await.map_err(std::io::Error::other)??;
    let Some(found) = found else { return head(stream, Status::Missing, 0).await };
    let bytes = found.outline.bytes();
    head(stream, Status::Found, bytes).await?;
    tokio::time::timeout_at(deadline(bytes), send(stream, store, pack, found, first)).await?
}

/// The outline, and the blocks from `first` on.
async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    store: &PackStore,
    pack: PackId,
    found: Found,
    first: usize,
) -> std::io::Result<()> {
    let Found { outline, file, mut progress } = found;
    stream.write_all(outline.values().as_flattened()).await?;
    let (mut file, mut block) = (tokio::fs::File::from_std(file), vec![0; BLOCK_BYTES]);
    file.seek(SeekFrom::Start((first * BLOCK_BYTES) as u64)).await?;
    for index in first..outline.blocks() {
        if let Some(progress) = &mut progress
            && *progress.borrow() <= index
        {
            // What there is goes out meanwhile.
            stream.flush().await?;
            let coming = timeout(COMING, progress.wait_for(|there| *there > index)).await?;
            coming.map_err(|_| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        }
        let block = &mut block[..outline.length(index)];
        file.read_exact(block).await?;
        if !outline.fits(index, block) {
            store.forget_damaged(&pack)?;
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        stream.write_all(block).await?;
    }
    stream.flush().await
}

async fn head(stream: &mut (impl AsyncWrite + Unpin), status: Status, bytes: u64) -> std::io::Result<()> {
    let mut head = [0; 9];
    head[0] = status as u8;
    head[1..].copy_from_slice(&bytes.to_be_bytes());
    stream.write_all(&head).await?;
    stream.flush().await
}
