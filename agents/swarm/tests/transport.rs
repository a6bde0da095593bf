//! Packs come whole and true, or not at all, whatever the other side does.

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use longshore_identity::{PeerStream, Tls, Trust, testing::World};
use longshore_schemas::{
    ArtifactId, NodeId, PackId,
    stream::{FromNode, PeerPacks, Ticket},
};
use longshore_swarm::{
    Budget, PackStore,
    fetch::{Fetcher, FromTracker, Link, Received},
    hooks, server,
};
use longshore_swarm_policy::fetch::{Config, WantedPack};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

const MAGIC: [u8; 8] = *b"LSSWARM3";
const PATIENCE: Duration = Duration::from_secs(30);
const BLOCK_BYTES: usize = 64 * 1024;

/// Everybody here is of one region, but for [`ABROAD`].
static EU: LazyLock<World> = LazyLock::new(|| World::new("eu"));
static ABROAD: LazyLock<World> = LazyLock::new(|| World::new("us"));

fn node(name: &str) -> NodeId {
    name.parse().expect("valid")
}

fn artifact() -> ArtifactId {
    ArtifactId::of(b"an artifact")
}

fn content() -> Vec<u8> {
    (0..300_000u32).flat_map(|number| number.to_le_bytes()).collect()
}

/// A node that fetches, and the test in the place of its region.
struct Fetching {
    folder: TempDir,
    store: PackStore,
    fetcher: Fetcher,
    link: Link,
    tracker: mpsc::Sender<FromTracker>,
    told: mpsc::Receiver<FromNode>,
}

impl Fetching {
    fn new() -> Self {
        Self::with(tempfile::tempdir().expect("a folder"), Budget::default())
    }

    fn with(folder: TempDir, budget: Budget) -> Self {
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

    async fn tell(&self, peers: Vec<PeerPacks>, tickets: Vec<Ticket>) {
        self.tracker.send(FromTracker::Sources { peers, tickets }).await.expect("there is room");
    }

    /// Fetches one pack; answers what came and what the region was told.
    async fn fetch(&mut self, bytes: &[u8]) -> (Received, Vec<FromNode>) {
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
async fn honest(bytes: &[u8]) -> (TempDir, SocketAddr) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(PackId::of(bytes).to_string()), bytes).expect("written");
    let store = PackStore::open(folder.path()).expect("opens");
    (folder, serve(store, EU.node("good")).await)
}

async fn serve(store: PackStore, tls: Arc<Tls>) -> SocketAddr {
    let listen = ([127, 0, 0, 1], 0).into();
    server::start(store, listen, tls, Budget::default(), CancellationToken::new()).await.expect("listens")
}

fn source(name: &str, rack: &str, address: SocketAddr, bytes: &[u8]) -> PeerPacks {
    let packs = vec![PackId::of(bytes)];
    PeerPacks {
        node: node(name),
        address: address.to_string(),
        rack: rack.parse().expect("valid"),
        packs,
        planned: None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    WrongBytes,
    /// Wrong from the first byte after the head on.
    WrongOutline,
    /// Right but for the last byte.
    WrongLater,
    TooLong,
    TooShort,
    UnknownStatus,
    OtherProtocol,
    Dies,
    /// Takes the connection and never says a word.
    Mute,
    /// Greets, and answers nothing.
    NoAnswer,
    /// Says that it has the pack, and sends none of it.
    Silent,
    /// A byte every 100 ms.
    Trickles,
    /// What was asked, and then bytes without end.
    Endless,
    /// Noise without end, from the first byte.
    Noise,
    BusyTwice,
    Missing,
    /// Has the pack, and is a node of another region.
    Foreign,
    /// Has the pack, and is another node than it is said to be.
    Other,
}

/// The node `bad`, with a fault.
async fn faulty(fault: Fault, bytes: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("bound");
    let tls = match fault {
        Fault::Foreign => ABROAD.node("bad"),
        Fault::Other => EU.node("worse"),
        _ => EU.node("bad"),
    };
    tokio::spawn(async move {
        let mut requests = 0;
        while let Ok((stream, _)) = listener.accept().await {
            // It ends with the connection.
            let _ = misbehave(stream, &tls, fault, &bytes, &mut requests).await;
        }
    });
    address
}

async fn misbehave(
    mut stream: TcpStream,
    tls: &Tls,
    fault: Fault,
    bytes: &[u8],
    requests: &mut u32,
) -> std::io::Result<()> {
    if fault == Fault::Mute {
        // Until the other side hangs up.
        return stream.read_to_end(&mut Vec::new()).await.map(drop);
    }
    if fault == Fault::Noise {
        loop {
            stream.write_all(&[0xA5; 4096]).await?;
        }
    }
    let mut stream = tls.accept_node(stream).await?.stream;
    stream.read_exact(&mut [0; 8]).await?;
    stream.write_all(if fault == Fault::OtherProtocol { b"HTTP/1.1" } else { &MAGIC }).await?;
    stream.flush().await?;
    let found = |length: u64| [&[0], &length.to_be_bytes()[..]].concat();
    let length = bytes.len() as u64;
    let blocks = u8::try_from(bytes.len().div_ceil(BLOCK_BYTES)).expect("a pack");
    let head = [found(length), hooks::outline(bytes), vec![blocks]].concat();
    loop {
        stream.read_exact(&mut [0; 36]).await?;
        *requests += 1;
        match fault {
            Fault::WrongBytes => {
                stream.write_all(&head).await?;
                stream.write_all(&vec![7; bytes.len()]).await?;
            }
            Fault::WrongOutline => {
                stream.write_all(&found(length)).await?;
                stream.write_all(&vec![7; bytes.len()]).await?;
            }
            Fault::WrongLater => {
                let mut wrong = bytes.to_vec();
                wrong[bytes.len() - 1] ^= 1;
                stream.write_all(&[&head[..], &wrong].concat()).await?;
            }
            Fault::TooLong => {
                stream.write_all(&found(length + 1)).await?;
                stream.write_all(&vec![7; bytes.len() + 1]).await?;
            }
            Fault::TooShort => stream.write_all(&[&found(3)[..], b"abc"].concat()).await?,
            Fault::UnknownStatus => stream.write_all(&[9; 9]).await?,
            Fault::Dies => {
                stream.write_all(&head).await?;
                stream.write_all(&bytes[..bytes.len() / 2]).await?;
                return stream.flush().await;
            }
            Fault::Silent => stream.write_all(&head).await?,
            Fault::Trickles => {
                stream.write_all(&head).await?;
                for byte in bytes {
                    stream.write_all(&[*byte]).await?;
                    stream.flush().await?;
                    sleep(Duration::from_millis(100)).await;
                }
            }
            Fault::BusyTwice if *requests <= 2 => stream.write_all(&[2, 0, 0, 0, 0, 0, 0, 0, 0]).await?,
            Fault::BusyTwice => stream.write_all(&[&head[..], bytes].concat()).await?,
            Fault::Missing => stream.write_all(&[1, 0, 0, 0, 0, 0, 0, 0, 0]).await?,
            Fault::NoAnswer => {}
            Fault::Endless => {
                stream.write_all(&[&head[..], bytes].concat()).await?;
                loop {
                    stream.write_all(&[0xA5; 4096]).await?;
                }
            }
            Fault::Foreign | Fault::Other => stream.write_all(&[&head[..], bytes].concat()).await?,
            Fault::OtherProtocol | Fault::Mute | Fault::Noise => return Ok(()),
        }
        stream.flush().await?;
    }
}

/// How the region must hear of a fault.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Grade {
    Lied,
    Failed,
}

/// Longest time that a bad source may cost: its patience, the region's and this machine's.
const RECOVERY: Duration = Duration::from_secs(20);

#[expect(clippy::print_stdout, reason = "figures for people, seen with --nocapture")]
async fn comes_from_another_peer(fault: Fault, grade: Grade) {
    let bytes = content();
    let (_folder, good) = honest(&bytes).await;
    let bad = faulty(fault, bytes.clone()).await;
    let mut fetching = Fetching::new();
    // The one of the same rack is asked first.
    fetching.tell(vec![source("bad", "mine", bad, &bytes), source("good", "other", good, &bytes)], vec![]).await;
    let begun = Instant::now();
    let (received, told) = fetching.fetch(&bytes).await;
    let took = begun.elapsed();
    println!("recovery from a peer that {fault:?}: {took:?}");
    assert!(took < RECOVERY, "{fault:?} cost {took:?}");
    assert_eq!(received, Received { from_peers_bytes: bytes.len() as u64, from_bucket_bytes: 0 }, "{fault:?}");
    let pack = PackId::of(&bytes);
    let said = |message: FromNode| usize::from(told.contains(&message));
    let (lied, failed) =
        (said(FromNode::PeerLied { peer: node("bad"), pack }), said(FromNode::PeerFailed { peer: node("bad"), pack }));
    let expected = if grade == Grade::Lied { (1, 0) } else { (0, 1) };
    assert_eq!((lied, failed), expected, "{fault:?}: {told:?}");
    let of_good = |message: &FromNode| matches!(message, FromNode::PeerLied { peer, .. } | FromNode::PeerFailed { peer, .. } if *peer == node("good"));
    assert!(!told.iter().any(of_good), "{fault:?}: {told:?}");
    assert!(told.contains(&FromNode::HaveMore { artifact: artifact(), packs: vec![pack] }), "{fault:?}: {told:?}");
    assert_eq!(told.last(), Some(&FromNode::Done { artifact: artifact() }), "{fault:?}");
}

#[tokio::test]
async fn a_peer_that_lies_is_reported_and_the_pack_comes_from_another() {
    for fault in [
        Fault::WrongBytes,
        Fault::WrongOutline,
        Fault::WrongLater,
        Fault::TooLong,
        Fault::TooShort,
        Fault::UnknownStatus,
    ] {
        comes_from_another_peer(fault, Grade::Lied).await;
    }
}

#[tokio::test]
async fn a_peer_that_fails_is_no_liar_and_the_pack_comes_from_another() {
    for fault in [Fault::Dies, Fault::Missing, Fault::OtherProtocol, Fault::Noise, Fault::Foreign, Fault::Other] {
        comes_from_another_peer(fault, Grade::Failed).await;
    }
}

#[tokio::test]
async fn a_peer_that_is_silent_or_crawls_is_given_up() {
    // At the same time: each takes seconds of waiting and nothing else.
    tokio::join!(
        comes_from_another_peer(Fault::Mute, Grade::Failed),
        comes_from_another_peer(Fault::NoAnswer, Grade::Failed),
        comes_from_another_peer(Fault::Silent, Grade::Failed),
        comes_from_another_peer(Fault::Trickles, Grade::Failed),
    );
}

#[tokio::test]
async fn what_was_not_asked_for_is_not_taken() {
    let (first, second) = (content(), vec![7; 100_000]);
    let bad = faulty(Fault::Endless, first.clone()).await;
    let (_folder, good) = honest(&second).await;
    let mut fetching = Fetching::new();
    fetching.tell(vec![source("bad", "mine", bad, &first)], vec![]).await;
    let (_, told) = fetching.fetch(&first).await;
    assert!(!told.iter().any(|told| matches!(told, FromNode::PeerLied { .. })), "the pack itself was right: {told:?}");
    std::fs::remove_file(fetching.folder.path().join(PackId::of(&first).to_string())).expect("there");
    fetching.tell(vec![source("bad", "mine", bad, &second), source("good", "other", good, &second)], vec![]).await;
    let (received, told) = fetching.fetch(&second).await;
    assert_eq!(received.from_peers_bytes, 100_000);
    assert!(told.contains(&FromNode::PeerLied { peer: node("bad"), pack: PackId::of(&second) }), "{told:?}");
}

#[tokio::test]
async fn clients_without_manners_keep_nobody_from_being_served() {
    let bytes = content();
    let (_folder, address) = honest(&bytes).await;
    let (mut rude, mut mute) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let mut noise = TcpStream::connect(address).await.expect("connects");
        // It may be closed in the middle of it.
        let _ = noise.write_all(&[0xA5; 64 * 1024]).await;
        mute.push(noise);
        let mut half = as_peer(address).await;
        half.write_all(&[&MAGIC[..], &[1; 35]].concat()).await.expect("written");
        half.flush().await.expect("written");
        rude.push(half);
    }
    // Asks for far more than it reads.
    let mut greedy = as_peer(address).await;
    let asked = [&MAGIC[..], &wish(PackId::of(&bytes), 0).repeat(1_000)].concat();
    greedy.write_all(&asked).await.expect("written");
    greedy.flush().await.expect("written");
    let (status, served) = timeout(PATIENCE, ask(address, PackId::of(&bytes))).await.expect("in time");
    assert!(status == 0 && served == bytes);
}

/// Whoever is no node of this region, or is one no more, gets nothing.
#[tokio::test]
async fn only_nodes_of_the_region_are_served() {
    let bytes = content();
    let (folder, tls) = (tempfile::tempdir().expect("a folder"), EU.node("good"));
    std::fs::write(folder.path().join(PackId::of(&bytes).to_string()), &bytes).expect("written");
    let address = serve(PackStore::open(folder.path()).expect("opens"), tls.clone()).await;
    let served = async |client: &Tls| {
        let tcp = TcpStream::connect(address).await.expect("connects");
        let mut stream = client.connect_to_node(tcp, &node("good")).await?.stream;
        request(&mut stream, PackId::of(&bytes)).await
    };
    assert!(served(&EU.node("me")).await.expect("served").1 == bytes);
    served(&EU.stranger()).await.expect_err("it has no certificate");
    // It believes the server, and shows what another region certified.
    let foreign = Tls::new(Some(ABROAD.credentials("me")), EU.trust.clone()).expect("TLS");
    served(&foreign).await.expect_err("it is of another region");

    let mut kept = as_peer(address).await;
    assert!(request(&mut kept, PackId::of(&bytes)).await.expect("served").1 == bytes);
    let revoked = Trust::new(EU.trust.pem(), [node("me")].into()).expect("valid");
    tls.set(tls.credentials(), revoked).expect("valid");
    served(&EU.node("me")).await.expect_err("it is revoked");
    // A connection that there was ends as well.
    kept.write_all(&wish(PackId::of(&bytes), 0)).await.expect("written");
    kept.flush().await.expect("written");
    assert!(kept.read_u8().await.is_err(), "it is revoked");
    assert!(served(&EU.node("other")).await.expect("served").1 == bytes);
}

#[tokio::test]
async fn a_pack_that_was_damaged_on_disk_is_noticed_when_it_is_served() {
    let bytes = content();
    let (folder, address) = honest(&bytes).await;
    let (pack, mut damaged) = (PackId::of(&bytes), bytes.clone());
    damaged[600_000] ^= 1;
    // Served before or not: nobody gets a wrong byte.
    for was_served in [false, true] {
        if was_served {
            std::fs::write(folder.path().join(pack.to_string()), &bytes).expect("written");
            let address = serve(PackStore::open(folder.path()).expect("opens"), EU.node("good")).await;
            assert!(ask(address, pack).await == (0, bytes.clone()));
            std::fs::write(folder.path().join(pack.to_string()), &damaged).expect("written");
            request(&mut as_peer(address).await, pack).await.expect_err("it ends before the wrong block");
            assert_eq!(ask(address, pack).await, (1, vec![]), "it is forgotten");
        } else {
            std::fs::write(folder.path().join(pack.to_string()), &damaged).expect("written");
            assert_eq!(ask(address, pack).await, (1, vec![]));
        }
        assert!(!folder.path().join(pack.to_string()).exists(), "it is removed");
    }
}

/// What a source sends, of which it is told how many blocks, and the first block of each request that it got.
async fn paced(bytes: Vec<u8>) -> (SocketAddr, watch::Sender<usize>, mpsc::UnboundedReceiver<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("bound");
    let (pace, asked) = (watch::Sender::new(0), mpsc::unbounded_channel());
    let (sent, tls) = (pace.clone(), EU.node("bad"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (mut pace, tls, bytes, asked) = (sent.subscribe(), tls.clone(), bytes.clone(), asked.0.clone());
            tokio::spawn(async move {
                let mut stream = tls.accept_node(stream).await?.stream;
                stream.read_exact(&mut [0; 8]).await?;
                stream.write_all(&MAGIC).await?;
                stream.flush().await?;
                let mut request = [0; 36];
                stream.read_exact(&mut request).await?;
                let first = u32::from_be_bytes(*request.last_chunk().expect("four bytes"));
                let _ = asked.send(first);
                let head = [&[0], &(bytes.len() as u64).to_be_bytes()[..], &hooks::outline(&bytes)].concat();
                stream.write_all(&head).await?;
                for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate().skip(first as usize) {
                    // It dies when it is told that there is nothing more.
                    let may = pace.wait_for(|sent| *sent > index || *sent == usize::MAX).await;
                    if may.is_ok_and(|sent| *sent == usize::MAX) {
                        return Ok(());
                    }
                    stream.write_all(&[1]).await?;
                    stream.write_all(block).await?;
                    stream.flush().await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    (address, pace, asked.1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_is_passed_on_while_it_comes_and_another_source_goes_on_with_it() {
    let bytes = content();
    let pack = PackId::of(&bytes);
    let (slow, pace, mut asked) = paced(bytes.clone()).await;
    let (other, other_pace, mut asked_of_other) = paced(bytes.clone()).await;
    let mut fetching = Fetching::new();
    let own = serve(fetching.store.clone(), EU.node("good")).await;
    fetching.tell(vec![source("bad", "mine", slow, &bytes)], vec![]).await;
    let (fetcher, tracker) = (fetching.fetcher.clone(), fetching.tracker.clone());
    let wanted = vec![WantedPack { pack, bytes: bytes.len() as u64 }];
    let (link, told) = (&mut fetching.link, &mut fetching.told);
    let passing_on = async {
        pace.send_replace(8);
        let announced = FromNode::HaveMore { artifact: artifact(), packs: vec![pack] };
        while told.recv().await.expect("open") != announced {}
        assert_eq!(asked.recv().await, Some(0));
        // Half of it is here, and somebody wants it: the rest comes by when it comes.
        let reading = tokio::spawn(async move { request(&mut as_peer(own).await, pack).await });
        let mut early = as_peer(own).await;
        early.write_all(&[&MAGIC[..], &wish(pack, 0)].concat()).await.expect("written");
        early.flush().await.expect("written");
        early.read_exact(&mut vec![0; 8 + 9 + 32 * bytes.len().div_ceil(BLOCK_BYTES)]).await.expect("the outline");
        let begun = read_blocks(&mut early, 8 * BLOCK_BYTES).await.expect("what there is");
        assert!(bytes.starts_with(&begun));
        // Its source dies, and there is another one.
        pace.send_replace(usize::MAX);
        let lost = FromNode::PeerFailed { peer: node("bad"), pack };
        while told.recv().await.expect("open") != lost {}
        other_pace.send_replace(1_000);
        let mut again = source("bad", "mine", other, &bytes);
        again.address = other.to_string();
        tracker.send(FromTracker::Sources { peers: vec![again], tickets: vec![] }).await.expect("open");
        assert_eq!(asked_of_other.recv().await, Some(8), "what came is not fetched again");
        assert!(reading.await.expect("no panic").expect("served") == (0, bytes.clone()));
        let rest = bytes.len() - 8 * BLOCK_BYTES;
        read_blocks(&mut early, rest).await.expect("the rest");
    };
    let both = async { tokio::join!(fetcher.fetch(artifact(), wanted, link), passing_on).0 };
    let received = timeout(PATIENCE, both).await.expect("in time").expect("linked");
    assert_eq!(received.from_peers_bytes, bytes.len() as u64);
    assert!(std::fs::read(fetching.folder.path().join(pack.to_string())).expect("stored") == bytes);
    assert_eq!(std::fs::read_dir(fetching.folder.path()).expect("a folder").count(), 1, "nothing else is left");
    // From there on, as a peer that has a part of it asks.
    let (status, tail) = request_from(&mut as_peer(own).await, pack, 18).await.expect("served");
    assert!(status == 0 && bytes.ends_with(&tail) && tail.len() == bytes.len() - 18 * BLOCK_BYTES);
    assert_eq!(
        request_from(&mut as_peer(own).await, pack, 19).await.expect("answered"),
        (1, vec![]),
        "it has 19 blocks"
    );
}

#[tokio::test]
async fn a_busy_peer_is_asked_again() {
    let bytes = content();
    let busy = faulty(Fault::BusyTwice, bytes.clone()).await;
    let mut fetching = Fetching::new();
    fetching.tell(vec![source("bad", "mine", busy, &bytes)], vec![]).await;
    let (received, told) = fetching.fetch(&bytes).await;
    assert_eq!(received.from_peers_bytes, bytes.len() as u64);
    assert!(!told.iter().any(|message| matches!(message, FromNode::PeerLied { .. })), "{told:?}");
}

#[tokio::test]
async fn many_packs_come_over_few_connections() {
    let contents: Vec<Vec<u8>> = (0..50u8).map(|number| vec![number; 10_000]).collect();
    let folder = tempfile::tempdir().expect("a folder");
    for bytes in &contents {
        std::fs::write(folder.path().join(PackId::of(bytes).to_string()), bytes).expect("written");
    }
    let store = PackStore::open(folder.path()).expect("opens");
    let address = serve(store, EU.node("good")).await;
    let mut fetching = Fetching::new();
    let mut peer = source("good", "mine", address, &contents[0]);
    peer.packs = contents.iter().map(|bytes| PackId::of(bytes)).collect();
    fetching.tell(vec![peer], vec![]).await;
    let wanted = contents.iter().map(|bytes| WantedPack { pack: PackId::of(bytes), bytes: 10_000 }).collect();
    let fetched = timeout(PATIENCE, fetching.fetcher.fetch(artifact(), wanted, &mut fetching.link)).await;
    assert_eq!(fetched.expect("in time").expect("linked").from_peers_bytes, 500_000);
}

/// Answers each path of its table with a status and a body; `/cut` and `/half` promise more than they send, `/slow` sends a byte at a time.
/// Tells from which byte on it was asked, if not from the first.
async fn bucket(answers: Vec<(&'static str, u16, Vec<u8>)>) -> (SocketAddr, mpsc::UnboundedReceiver<usize>) {
    let (asked, begins) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap_or(b'\n'));
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let (_, status, body) = answers.iter().find(|(known, ..)| *known == path).expect("a known path");
            let (mut status, mut body) = (*status, &body[..]);
            let from =
                head.to_lowercase().lines().find_map(|line| Some(line.strip_prefix("range: bytes=")?.to_owned()));
            if let Some(from) = from.and_then(|from| from.strip_suffix('-')?.parse::<usize>().ok()) {
                let _ = asked.send(from);
                (status, body) = (206, &body[from..]);
            }
            let length = body.len() + if matches!(path, "/cut" | "/half" | "/slow") { 1_000_000 } else { 0 };
            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            // The client may hang up early.
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(body).await;
            if path == "/slow" {
                tokio::spawn(async move {
                    while stream.write_all(b"x").await.is_ok() {
                        sleep(Duration::from_millis(100)).await;
                    }
                });
            }
        }
    });
    (address, begins)
}

#[tokio::test]
async fn the_bucket_is_read_by_ticket_and_not_trusted_either() {
    let bytes = content();
    let pack = PackId::of(&bytes);
    let longer = [&bytes[..], b"more"].concat();
    let (address, mut begins) = bucket(vec![
        ("/wrong", 200, vec![7; bytes.len()]),
        ("/long", 200, longer),
        ("/cut", 200, bytes[..1_000].to_vec()),
        ("/half", 200, bytes[..10 * BLOCK_BYTES + 1_000].to_vec()),
        ("/none", 404, vec![]),
        ("/busy", 503, vec![]),
        ("/slow", 200, vec![]),
        ("/good", 200, bytes.clone()),
    ])
    .await;
    let outline = Some(BASE64_STANDARD.encode(hooks::outline(&bytes)));
    // With an outline that is right, with a wrong one, and without any.
    let outlines = [outline, Some("AAAA".to_owned()), None];
    let cases = ["wrong", "long", "cut", "half", "none", "busy", "slow"];
    for (bad, outline) in cases.into_iter().flat_map(|bad| outlines.iter().map(move |outline| (bad, outline))) {
        let ticket = |path: &str| {
            let url = format!("http://{address}/{path}");
            Ticket { pack, bytes: bytes.len() as u64, url, outline: outline.clone() }
        };
        let in_blocks = outline.as_ref().is_some_and(|outline| outline.len() > 4);
        let mut fetching = Fetching::new();
        fetching.tell(vec![], vec![ticket(bad)]).await;
        let (tracker, wanted) = (fetching.tracker.clone(), vec![WantedPack { pack, bytes: bytes.len() as u64 }]);
        let good = FromTracker::Sources { peers: vec![], tickets: vec![ticket("good")] };
        let (fetcher, link, told) = (fetching.fetcher.clone(), &mut fetching.link, &mut fetching.told);
        let region = async {
            let mut damaged = false;
            loop {
                match told.recv().await.expect("open") {
                    FromNode::TicketDone { ok: true, .. } => panic!("{bad}: this was not the pack"),
                    FromNode::TicketDone { ok: false, .. } => break,
                    FromNode::PackDamaged { .. } => damaged = true,
                    FromNode::HaveMore { .. } => assert!(in_blocks, "{bad}: the pack cannot be there"),
                    _ => {}
                }
            }
            assert_eq!(
                damaged,
                !matches!(bad, "cut" | "half" | "busy" | "slow"),
                "{bad}: only what the bucket holds is told of"
            );
            assert!(!fetching.store.contains(&pack), "{bad}");
            tracker.send(good).await.expect("open");
        };
        let both = async { tokio::join!(fetcher.fetch(artifact(), wanted, link), region).0 };
        let received = timeout(PATIENCE, both).await.expect("in time").expect("linked");
        assert_eq!(received, Received { from_peers_bytes: 0, from_bucket_bytes: bytes.len() as u64 }, "{bad}");
        assert!(std::fs::read(fetching.folder.path().join(pack.to_string())).expect("stored") == bytes, "{bad}");
        if bad == "half" {
            assert_eq!(begins.try_recv().ok(), in_blocks.then_some(10 * BLOCK_BYTES), "what came is not read again");
        }
        let mut rest = Vec::new();
        while let Ok(message) = fetching.told.try_recv() {
            rest.push(message);
        }
        assert!(rest.contains(&FromNode::TicketDone { artifact: artifact(), pack, ok: true }), "{bad}: {rest:?}");
    }
}

/// A connection to the node `good`.
async fn as_peer(address: SocketAddr) -> PeerStream {
    let tcp = TcpStream::connect(address).await.expect("connects");
    EU.node("me").connect_to_node(tcp, &node("good")).await.expect("connects").stream
}

/// Asks it for a pack, as a peer does.
async fn ask(address: SocketAddr, pack: PackId) -> (u8, Vec<u8>) {
    request(&mut as_peer(address).await, pack).await.expect("answered")
}

/// A request: a pack from this block on.
fn wish(pack: PackId, first: u32) -> Vec<u8> {
    [&pack.as_bytes()[..], &first.to_be_bytes()].concat()
}

async fn request(stream: &mut PeerStream, pack: PackId) -> std::io::Result<(u8, Vec<u8>)> {
    request_from(stream, pack, 0).await
}

async fn request_from(stream: &mut PeerStream, pack: PackId, first: u32) -> std::io::Result<(u8, Vec<u8>)> {
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
async fn read_blocks(stream: &mut PeerStream, bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::new();
    while read.len() < bytes {
        let count = usize::from(stream.read_u8().await?);
        let begin = read.len();
        read.resize(bytes.min(begin + count * BLOCK_BYTES), 0);
        stream.read_exact(&mut read[begin..]).await?;
    }
    Ok(read)
}

#[tokio::test]
async fn nothing_is_served_before_it_is_whole_and_true() {
    let (bytes, folder) = (content(), tempfile::tempdir().expect("a folder"));
    let store = PackStore::open(folder.path()).expect("opens");
    let address = serve(store.clone(), EU.node("good")).await;
    let pack = PackId::of(&bytes);
    let missing = (1, vec![]);
    let mut incoming = store.incoming(pack).expect("space");
    incoming.write(&bytes[..500_000]).await.expect("space");
    assert_eq!(ask(address, pack).await, missing, "half of it");
    let mut lie = store.incoming(pack).expect("space");
    lie.write(&vec![7; bytes.len()]).await.expect("space");
    assert!(!lie.admit().await.expect("space"));
    assert_eq!(ask(address, pack).await, missing, "a lie");
    incoming.write(&bytes[500_000..]).await.expect("space");
    assert!(incoming.admit().await.expect("space"));
    assert!(ask(address, pack).await == (0, bytes));
    store.forget(&pack).expect("removed");
    assert_eq!(ask(address, pack).await, missing, "forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_what_a_node_is_about_to_get_waits_there() {
    let bytes = content();
    let pack = PackId::of(&bytes);
    let mut fetching = Fetching::new();
    let own = serve(fetching.store.clone(), EU.node("good")).await;
    assert_eq!(ask(own, pack).await, (1, vec![]), "nobody wants it yet");
    let (_folder, other) = honest(&bytes).await;
    let wanted = vec![WantedPack { pack, bytes: bytes.len() as u64 }];
    let (fetcher, tracker) = (fetching.fetcher.clone(), fetching.tracker.clone());
    let (link, told) = (&mut fetching.link, &mut fetching.told);
    let waiting = async {
        while !matches!(told.recv().await.expect("open"), FromNode::SourcesWanted { .. }) {}
        let mut early = as_peer(own).await;
        early.write_all(&[&MAGIC[..], &wish(pack, 0)].concat()).await.expect("written");
        early.flush().await.expect("written");
        early.read_exact(&mut [0; 8]).await.expect("greeted");
        for _ in 0..2 {
            let mut head = [9; 9];
            early.read_exact(&mut head).await.expect("told to wait");
            assert_eq!(head, [3, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        let peers = vec![source("good", "mine", other, &bytes)];
        tracker.send(FromTracker::Sources { peers, tickets: vec![] }).await.expect("open");
        let mut status = 3;
        while status == 3 {
            status = early.read_u8().await.expect("answered");
            early.read_u64().await.expect("answered");
        }
        assert_eq!(status, 0);
        early.read_exact(&mut vec![0; hooks::outline(&bytes).len()]).await.expect("the outline");
        assert!(read_blocks(&mut early, bytes.len()).await.expect("the pack") == bytes);
    };
    let both = async { tokio::join!(fetcher.fetch(artifact(), wanted, link), waiting).0 };
    timeout(PATIENCE, both).await.expect("in time").expect("linked");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_at_a_node_that_gives_up_is_let_go_and_the_region_told() {
    let bytes = content();
    let pack = PackId::of(&bytes);
    let (slow, pace, _asked) = paced(bytes.clone()).await;
    let mut fetching = Fetching::new();
    let own = serve(fetching.store.clone(), EU.node("good")).await;
    fetching.tell(vec![source("bad", "mine", slow, &bytes)], vec![]).await;
    pace.send_replace(3);
    let wanted = vec![WantedPack { pack, bytes: bytes.len() as u64 }];
    let told = &mut fetching.told;
    let begun = async {
        let announced = FromNode::HaveMore { artifact: artifact(), packs: vec![pack] };
        while told.recv().await.expect("open") != announced {}
    };
    tokio::select! {
        _ = fetching.fetcher.fetch(artifact(), wanted, &mut fetching.link) => panic!("it does not come"),
        heard = timeout(PATIENCE, begun) => heard.expect("in time"),
    }
    let told = timeout(PATIENCE, async { (fetching.told.recv().await, fetching.told.recv().await) }).await;
    let wanted_again = FromNode::SourcesWanted { artifact: artifact(), packs: vec![pack] };
    let expected = (Some(wanted_again), Some(FromNode::Done { artifact: artifact() }));
    assert_eq!(told.expect("in time"), expected, "nothing of it is here any more");
    assert_eq!(ask(own, pack).await, (1, vec![]));
}

#[tokio::test]
async fn a_later_start_goes_on_with_the_blocks_that_came() {
    let bytes = content();
    let pack = PackId::of(&bytes);
    let mut fetching = Fetching::new();
    for (there, next) in [(0, 3), (3, 9)] {
        let (slow, pace, mut asked) = paced(bytes.clone()).await;
        fetching.tell(vec![source("bad", "mine", slow, &bytes)], vec![]).await;
        pace.send_replace(next);
        let own = serve(fetching.store.clone(), EU.node("good")).await;
        let wanted = vec![WantedPack { pack, bytes: bytes.len() as u64 }];
        let announced = FromNode::HaveMore { artifact: artifact(), packs: vec![pack] };
        let told = &mut fetching.told;
        let comes = async {
            while told.recv().await.expect("open") != announced {}
            let mut waiting = as_peer(own).await;
            waiting.write_all(&[&MAGIC[..], &wish(pack, 0)].concat()).await.expect("written");
            waiting.flush().await.expect("written");
            waiting.read_exact(&mut vec![0; 8 + 9 + 32 * bytes.len().div_ceil(BLOCK_BYTES)]).await.expect("an outline");
            read_blocks(&mut waiting, next * BLOCK_BYTES).await.expect("what there is")
        };
        tokio::select! {
            _ = fetching.fetcher.fetch(artifact(), wanted, &mut fetching.link) => panic!("it does not come"),
            came = timeout(PATIENCE, comes) => assert!(bytes.starts_with(&came.expect("in time"))),
        }
        assert_eq!(asked.recv().await, Some(there), "what came before is not fetched again");
        // As if the agent had been killed: nobody tidies up.
        fetching = Fetching::with(fetching.folder, Budget::default());
    }
    let part = std::fs::read_dir(fetching.folder.path()).expect("a folder").flatten().next().expect("what came").path();
    // Bytes that rot meanwhile, and those behind them, are fetched again.
    let file = std::fs::File::options().write(true).open(&part).expect("there");
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot", 5 * BLOCK_BYTES as u64).expect("written");
    let mut fetching = Fetching::with(fetching.folder, Budget::default());
    let (good, pace, mut asked) = paced(bytes.clone()).await;
    pace.send_replace(1_000);
    fetching.tell(vec![source("bad", "mine", good, &bytes)], vec![]).await;
    fetching.fetch(&bytes).await;
    assert_eq!(asked.recv().await, Some(5));
    // What nobody wants any more goes.
    assert!(!part.exists(), "it has become the pack");
    assert_eq!(fetching.store.retain(&std::collections::BTreeSet::new()), bytes.len() as u64);
    assert_eq!(std::fs::read_dir(fetching.folder.path()).expect("a folder").count(), 0, "nothing is left");
}

#[tokio::test]
async fn a_budget_holds_for_what_comes_and_for_what_goes() {
    let cap: longshore_swarm_policy::Caps = "1".parse().expect("a cap");
    let bytes: Vec<u8> = content().repeat(3);
    for (up, down) in [(Budget::new(cap.clone()), Budget::default()), (Budget::default(), Budget::new(cap))] {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(PackId::of(&bytes).to_string()), &bytes).expect("written");
        let store = PackStore::open(folder.path()).expect("opens");
        let listen = ([0, 0, 0, 0, 0, 0, 0, 1], 0).into();
        let address =
            server::start(store, listen, EU.node("good"), up, CancellationToken::new()).await.expect("listens");
        let mut fetching = Fetching::with(tempfile::tempdir().expect("a folder"), down);
        fetching.tell(vec![source("good", "mine", address, &bytes)], vec![]).await;
        let begun = Instant::now();
        fetching.fetch(&bytes).await;
        // Of 3.4 MiB, a fifth of a second's worth may be ahead of its time.
        assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_new_connection_hears_the_wishes_again_and_a_dropped_fetch_takes_them_back() {
    let bytes = content();
    let mut fetching = Fetching::new();
    let wanted = vec![WantedPack { pack: PackId::of(&bytes), bytes: bytes.len() as u64 }];
    let asked = FromNode::SourcesWanted { artifact: artifact(), packs: vec![PackId::of(&bytes)] };
    let (tracker, told) = (fetching.tracker.clone(), &mut fetching.told);
    let region = async {
        assert_eq!(told.recv().await, Some(asked.clone()));
        tracker.send(FromTracker::Reconnected).await.expect("open");
        assert_eq!(told.recv().await, Some(asked));
    };
    tokio::select! {
        _ = fetching.fetcher.fetch(artifact(), wanted, &mut fetching.link) => panic!("nobody has it"),
        heard = timeout(PATIENCE, region) => heard.expect("in time"),
    }
    assert_eq!(fetching.told.recv().await, Some(FromNode::Done { artifact: artifact() }));
}
