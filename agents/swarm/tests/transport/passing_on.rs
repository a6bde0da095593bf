//! Packs that are passed on while they come, stay when their transfer ends, and take no more of the link than they may.

use std::{net::SocketAddr, time::Duration};

use longshore_schemas::{PackId, stream::FromNode};
use longshore_swarm::{Budget, PackStore, fetch::FromTracker, hooks, server};
use longshore_swarm_policy::fetch::WantedPack;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    BLOCK_BYTES, EU, Fetching, MAGIC, PATIENCE, artifact, as_peer, ask, content, honest, node, read_blocks, request,
    request_from, serve, source, wish,
};

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
