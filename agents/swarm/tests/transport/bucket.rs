//! The bucket, which is not trusted either.

use std::{net::SocketAddr, time::Duration};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use longshore_schemas::{
    PackId,
    stream::{FromNode, Ticket},
};
use longshore_swarm::{
    fetch::{FromTracker, Received},
    hooks,
};
use longshore_swarm_policy::fetch::WantedPack;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::support::{BLOCK_BYTES, Fetching, PATIENCE, artifact, content};

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
