//! A node that fetches, one that serves, and the bytes between them.

use std::{net::SocketAddr, sync::Arc, sync::LazyLock, time::Duration};

use longshore_identity::{PeerStream, Tls, testing::World};
use longshore_schemas::{
    ArtifactId, NodeId, PackId,
    stream::{FromNode, PeerPacks, Ticket},
};
use longshore_swarm::{
    Budget, PackStore,
    fetch::{Fetcher, FromTracker, Link, Received},
    server,
};
use longshore_swarm_policy::fetch::{Config, WantedPack};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub(crate) const MAGIC: [u8; 8] = *b"LSSWARM3";
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const BLOCK_BYTES: usize = 64 * 1024;

/// Everybody here is of one region, but for [`ABROAD`].
pub(crate) static EU: LazyLock<World> = LazyLock::new(|| World::new("eu"));
pub(crate) static ABROAD: LazyLock<World> = LazyLock::new(|| World::new("us"));

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().expect("valid")
}

pub(crate) fn artifact() -> ArtifactId {
    ArtifactId::of(b"an artifact")
}

pub(crate) fn content() -> Vec<u8> {
    (0..300_000u32).flat_map(|number| number.to_le_bytes()).collect()
}

/// A node that fetches, and the test in the place of its region.
pub(crate) struct Fetching {
    pub(crate) folder: TempDir,
    pub(crate) store: PackStore,
    pub(crate) fetcher: Fetcher,
    pub(crate) link: Link,
    pub(crate) tracker: mpsc::Sender<FromTracker>,
    pub(crate) told: mpsc::Receiver<FromNode>,
}

impl Fetching {
    pub(crate) fn new() -> Self {
        Self::with(tempfile::tempdir().expect("a folder"), Budget::default())
    }

    pub(crate) fn with(folder: TempDir, budget: Budget) -> Self {
        // The second test of a process finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = PackStore::open(folder.path()).expect("opens");
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let policy = Config::new(node("me"), "mine".parse().expect("valid"));
        let (to_region, told) = mpsc::channel(1_000);
        let (tracker, from_tracker) = mpsc::channel(1_000);
        let fetcher = Fetcher::new(store.clone(), policy, http, EU.node("me"), budget);
        Self { folder, store, fetcher, link: Link { to_region, from_tracker }, tracker, told }
    }

    pub(crate) async fn tell(&self, peers: Vec<PeerPacks>, tickets: Vec<Ticket>) {
        self.tracker.send(FromTracker::Sources { peers, tickets }).await.expect("there is room");
    }

    /// Fetches one pack; answers what came and what the region was told.
    pub(crate) async fn fetch(&mut self, bytes: &[u8]) -> (Received, Vec<FromNode>) {
        let wanted = vec![WantedPack { pack: PackId::of(bytes), bytes: bytes.len() as u64 }];
        let fetched = timeout(PATIENCE, self.fetcher.fetch(artifact(), wanted, &mut self.link)).await;
        let received = fetched.expect("in time").expect("linked");
        let path = self.folder.path().join(PackId::of(bytes).to_string());
        assert!(std::fs::read(path).expect("stored") == bytes, "other bytes are in the store");
        let files = std::fs::read_dir(self.folder.path()).expect("a folder").count();
        assert_eq!(files, 1, "nothing but the pack is left");
        let mut told = Vec::new();
        while let Ok(message) = self.told.try_recv() {
            told.push(message);
        }
        (received, told)
    }
}

/// The node `good`, which is honest and has this pack.
pub(crate) async fn honest(bytes: &[u8]) -> (TempDir, SocketAddr) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(PackId::of(bytes).to_string()), bytes).expect("written");
    let store = PackStore::open(folder.path()).expect("opens");
    (folder, serve(store, EU.node("good")).await)
}

pub(crate) async fn serve(store: PackStore, tls: Arc<Tls>) -> SocketAddr {
    let listen = ([127, 0, 0, 1], 0).into();
    server::start(store, listen, tls, Budget::default(), CancellationToken::new()).await.expect("listens")
}

pub(crate) fn source(name: &str, rack: &str, address: SocketAddr, bytes: &[u8]) -> PeerPacks {
    let packs = vec![PackId::of(bytes)];
    PeerPacks {
        node: node(name),
        address: address.to_string(),
        rack: rack.parse().expect("valid"),
        packs,
        planned: None,
    }
}

/// A connection to the node `good`.
pub(crate) async fn as_peer(address: SocketAddr) -> PeerStream {
    let tcp = TcpStream::connect(address).await.expect("connects");
    EU.node("me").connect_to_node(tcp, &node("good")).await.expect("connects").stream
}

/// Asks it for a pack, as a peer does.
pub(crate) async fn ask(address: SocketAddr, pack: PackId) -> (u8, Vec<u8>) {
    request(&mut as_peer(address).await, pack).await.expect("answered")
}

/// A request: a pack from this block on.
pub(crate) fn wish(pack: PackId, first: u32) -> Vec<u8> {
    [&pack.as_bytes()[..], &first.to_be_bytes()].concat()
}

pub(crate) async fn request(stream: &mut PeerStream, pack: PackId) -> std::io::Result<(u8, Vec<u8>)> {
    request_from(stream, pack, 0).await
}

pub(crate) async fn request_from(stream: &mut PeerStream, pack: PackId, first: u32) -> std::io::Result<(u8, Vec<u8>)> {
    stream.write_all(&MAGIC).await?;
    stream.write_all(&wish(pack, first)).await?;
    stream.flush().await?;
    stream.read_exact(&mut [0; 8]).await?;
    let (status, length) = (stream.read_u8().await?, stream.read_u64().await? as usize);
    let blocks = length.div_ceil(BLOCK_BYTES);
    stream.read_exact(&mut vec![0; if blocks > 1 { 32 * blocks } else { 0 }]).await?;
    let bytes = read_blocks(stream, length.saturating_sub(first as usize * BLOCK_BYTES)).await?;
    Ok((status, bytes))
}

/// So many bytes, in blocks that come as they come.
pub(crate) async fn read_blocks(stream: &mut PeerStream, bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::new();
    while read.len() < bytes {
        let count = usize::from(stream.read_u8().await?);
        let begin = read.len();
        read.resize(bytes.min(begin + count * BLOCK_BYTES), 0);
        stream.read_exact(&mut read[begin..]).await?;
    }
    Ok(read)
}
