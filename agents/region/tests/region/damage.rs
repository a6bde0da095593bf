//! Wrong bytes in buckets, and nodes that talk nonsense: what the region does about them.

use std::time::Duration;

use bytes::Bytes;
use longshore_artifact::{PackRef, pack_key, root_key};
use longshore_region::Region;
use longshore_s3::Bucket;
use longshore_schemas::{
    PackId,
    events::{ReplicaFailed, ReplicaStatus},
    stream::{FromNode, FromRegion},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::support::{Node, PATIENCE, World, is_right, until};

const BEAT: Duration = Duration::from_secs(10);

/// Flips a bit; answers the right bytes.
async fn damage(bucket: &Bucket, pack: PackRef) -> Bytes {
    let right = bucket.get(&pack_key(&pack.pack), pack.bytes).await.expect("there");
    let mut wrong = right.to_vec();
    wrong[right.len() / 2] ^= 1;
    bucket.put(&pack_key(&pack.pack), wrong.into()).await.expect("put");
    right
}

fn quarantined(pack: PackRef) -> String {
    format!("quarantine/{}", pack_key(&pack.pack))
}

/// A region that has an artifact of so many packs.
async fn stored(packs: u32) -> (World, Region, CancellationToken, longshore_artifact::ArtifactRoot) {
    let world = World::new().await;
    let root = world.publish(packs).await;
    world.start_replication(&root).await;
    let (region, shutdown) = world.region(BEAT).await;
    world.report(ReplicaStatus::Stored, 0).await;
    (world, region, shutdown, root)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_is_moved_away_reported_and_copied_anew() {
    let (world, region, shutdown, root) = stored(4).await;
    let (artifact, bad, gone) = (root.artifact, root.all_packs()[2], root.all_packs()[3]);
    damage(&world.own, bad).await;
    let begun = Instant::now();
    let mut node = Node::join(&world, &region, "n1", &[]).await;
    node.say(FromNode::PackDamaged { artifact, pack: bad.pack }).await;

    let failed = world.report(ReplicaStatus::Failed, 0).await;
    let error = failed.error.expect("it says why");
    assert!(error.contains(&bad.pack.to_string()) && error.contains("quarantine/"), "{error}");
    assert_eq!(world.own.head(&pack_key(&bad.pack)).await.expect("asked"), None, "no ticket leads to it any more");
    assert_eq!(world.own.head(&quarantined(bad)).await.expect("asked"), Some(bad.bytes), "people may look at it");

    // What replication makes of the report brings the copier back.
    world.fact(ReplicaFailed { artifact, region: "eu".parse().expect("valid"), error }).await;
    world.report(ReplicaStatus::Stored, 1).await;
    assert!(is_right(&world.own, bad).await);
    println!("recovery of a damaged pack in the regional bucket: {:?}", begun.elapsed());

    // As after a crash between moving and reporting: whoever finds nothing says so.
    world.own.delete(&pack_key(&gone.pack)).await.expect("deleted");
    node.say(FromNode::PackDamaged { artifact, pack: gone.pack }).await;
    let error = world.report(ReplicaStatus::Failed, 1).await.error.expect("it says why");
    assert!(error.contains(&gone.pack.to_string()), "{error}");
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_region_looks_itself_and_stops_listening_to_a_node_that_is_wrong() {
    let (world, region, shutdown, root) = stored(6).await;
    let (artifact, packs) = (root.artifact, root.all_packs());
    let mut wrong = Node::join(&world, &region, "wrong", &[]).await;
    for right in &packs[..3] {
        wrong.say(FromNode::PackDamaged { artifact, pack: right.pack }).await;
    }
    damage(&world.own, packs[4]).await;
    wrong.say(FromNode::PackDamaged { artifact, pack: packs[4].pack }).await;
    // Its words were taken once it has the answer to what it said after them.
    wrong.say(FromNode::RootWanted { artifact }).await;
    assert!(matches!(wrong.hear().await, Some(FromRegion::Root { root: Some(_), .. })));

    damage(&world.own, packs[5]).await;
    let mut honest = Node::join(&world, &region, "honest", &[]).await;
    honest.say(FromNode::PackDamaged { artifact, pack: packs[5].pack }).await;
    let error = world.report(ReplicaStatus::Failed, 0).await.error.expect("it says why");
    assert!(error.contains(&packs[5].pack.to_string()), "that is the first one that was believed: {error}");
    for right in &packs[..3] {
        assert!(is_right(&world.own, *right).await, "what is right stays");
    }
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_main_bucket_lost_comes_back_from_a_region_that_has_it() {
    let (world, region, shutdown, root) = stored(5).await;
    let lost = [root.all_packs()[0], root.all_packs()[3]];
    for pack in lost {
        world.main.delete(&pack_key(&pack.pack)).await.expect("deleted");
    }
    // This region's own copy of another is damaged too: it gives back nothing that is wrong.
    let nowhere = root.all_packs()[4];
    world.main.delete(&pack_key(&nowhere.pack)).await.expect("deleted");
    damage(&world.own, nowhere).await;
    let (us, error) = ("us".parse().expect("valid"), "it found wrong bytes".to_owned());
    world.fact(ReplicaFailed { artifact: root.artifact, region: us, error }).await;
    until("the main bucket has them again", async || {
        is_right(&world.main, lost[0]).await && is_right(&world.main, lost[1]).await
    })
    .await;
    let failed = world.report(ReplicaStatus::Failed, 0).await;
    assert!(failed.error.expect("it says why").contains(&nowhere.pack.to_string()), "it found its own damaged");
    assert_eq!(world.main.head(&pack_key(&nowhere.pack)).await.expect("asked"), None);
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_cannot_be_read_is_copied_anew_and_given_back() {
    let (world, region, shutdown, root) = stored(3).await;
    let (artifact, key) = (root.artifact, root_key(&root.artifact));
    world.own.put(&key, Bytes::from_static(b"{\"artifact\": ")).await.expect("put");
    let mut node = Node::join(&world, &region, "n1", &[]).await;
    node.say(FromNode::RootWanted { artifact }).await;
    assert!(matches!(node.hear().await, Some(FromRegion::Root { root: None, .. })), "nothing is better than nonsense");
    let error = world.report(ReplicaStatus::Failed, 0).await.error.expect("it says why");
    assert!(error.contains("root"), "{error}");
    world.fact(ReplicaFailed { artifact, region: "eu".parse().expect("valid"), error }).await;
    world.report(ReplicaStatus::Stored, 1).await;
    node.say(FromNode::RootWanted { artifact }).await;
    assert!(matches!(node.hear().await, Some(FromRegion::Root { root: Some(_), .. })));

    world.main.delete(&key).await.expect("deleted");
    let (us, error) = ("us".parse().expect("valid"), "the root is not usable".to_owned());
    world.fact(ReplicaFailed { artifact, region: us, error }).await;
    until("the main bucket has it again", async || world.main.head(&key).await.is_ok_and(|bytes| bytes.is_some()))
        .await;
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_talk_nonsense_are_cut_off_and_others_are_served() {
    let (world, region, shutdown, root) = stored(3).await;
    let address = region.address();
    let cut_off = async |what: &str, bytes: &[u8], again: Option<Duration>| {
        let mut stream = TcpStream::connect(address).await.expect("the region listens");
        let talk = async {
            let mut answer = [0; 4096];
            while stream.write_all(bytes).await.is_ok() {
                match again {
                    Some(pause) => sleep(pause).await,
                    None => while !matches!(stream.read(&mut answer).await, Ok(0) | Err(_)) {},
                }
            }
        };
        timeout(PATIENCE, talk).await.unwrap_or_else(|_| panic!("{what} is not cut off"));
    };
    let long_frame = [&u32::MAX.to_be_bytes()[..], &[b'x'; 64]].concat();
    let no_message = b"\x00\x00\x00\x02{}";
    let begun_frame = [&1_000u32.to_be_bytes()[..], b"{"].concat();
    let others = async {
        let mut node = Node::join(&world, &region, "n1", &[]).await;
        node.say(FromNode::RootWanted { artifact: root.artifact }).await;
        assert!(matches!(node.hear().await, Some(FromRegion::Root { root: Some(_), .. })));
        // One that was let in is no better.
        node.say(FromNode::PackDamaged { artifact: root.artifact, pack: PackId::of(b"of no artifact") }).await;
        node.say(FromNode::PeerLied { peer: "nobody".parse().expect("valid"), pack: PackId::of(b"x") }).await;
        node.say(FromNode::RootWanted { artifact: root.artifact }).await;
        assert!(matches!(node.hear().await, Some(FromRegion::Root { .. })), "it is still there");
    };
    tokio::join!(
        cut_off("a frame that is too long", &long_frame, None),
        cut_off("a frame that is no message", no_message, None),
        cut_off("noise", &[0xA5; 100_000], Some(Duration::ZERO)),
        cut_off("a frame that never ends", &begun_frame, Some(Duration::from_millis(200))),
        others,
    );
    shutdown.cancel();
    region.stopped().await;
}
