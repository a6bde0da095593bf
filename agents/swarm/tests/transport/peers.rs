//! Peers that do not keep to the rules, and what the region is told of them.

use std::{net::SocketAddr, time::Duration};

use longshore_identity::Tls;
use longshore_schemas::{PackId, stream::FromNode};
use longshore_swarm::{
    PackStore,
    fetch::{FromTracker, Received},
    hooks,
};
use longshore_swarm_policy::fetch::WantedPack;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

use crate::support::{
    ABROAD, BLOCK_BYTES, EU, Fetching, MAGIC, PATIENCE, artifact, content, honest, node, serve, source,
};

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
