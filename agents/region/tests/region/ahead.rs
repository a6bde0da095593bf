//! Packs that are copied while their build still runs.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use longshore_artifact::{PackRef, pack_key};
use longshore_schemas::{
    PackId,
    events::{FleetReport, ReplicaStatus, Request},
};

use crate::support::{MAIN, World, is_right, until};

async fn has_all(world: &World, packs: &[PackRef]) -> bool {
    for pack in packs {
        if world.own.head(&pack_key(&pack.pack)).await.expect("asked") != Some(pack.bytes) {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_build_uploaded_is_there_before_it_ends_and_is_copied_once() {
    let world = World::new().await;
    let root = world.publish(20).await;
    let packs = root.all_packs();
    world.hint("q-1", &packs[..8]).await;
    let (region, shutdown) = world.region_with(|_| {}).await;
    until("the hint from before the start is followed", async || has_all(&world, &packs[..8]).await).await;
    world.hint("q-1", &packs[6..17]).await;
    until("the hint is followed", async || has_all(&world, &packs[..17]).await).await;
    shutdown.cancel();
    region.stopped().await;

    // It goes on where it stopped: of the hints, which are read again, nothing is copied again.
    let (region, shutdown) = world.region_with(|_| {}).await;
    world.start_replication(&root).await;
    let stored = world.report(ReplicaStatus::Stored, 0).await;
    let tail: u64 = packs[17..].iter().map(|pack| pack.bytes).sum();
    assert_eq!((stored.packs_done, stored.bytes_copied), (20, tail), "only the tail was left");
    let traffic = world.s3.counters().of(MAIN, "packs/");
    assert_eq!(traffic.gets, 20, "each pack left the main bucket once");
    for pack in packs {
        assert!(is_right(&world.own, pack).await);
    }
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_is_believed_in_nothing() {
    let world = World::new().await;
    let root = world.publish(5).await;
    let packs = root.all_packs();
    let nowhere = PackRef { pack: PackId::of(b"nowhere"), bytes: 7 };
    let wrong = PackRef { pack: PackId::of(b"wrong"), bytes: 9 };
    world.main.put(&pack_key(&wrong.pack), Bytes::from_static(b"is other.")).await.expect("put");
    let larger = PackRef { bytes: packs[0].bytes + 1, ..packs[0] };
    let smaller = PackRef { bytes: 1, ..packs[1] };
    for by_service in [false, true] {
        let (region, shutdown) = world.region_with(|config| config.limits.copies_by_service = by_service).await;
        world.hint("q-1", &[nowhere, wrong, larger, smaller]).await;
        world.hint("q-1", &packs[2..]).await;
        until("the true ones are followed", async || has_all(&world, &packs).await).await;
        for lie in [nowhere, wrong] {
            assert_eq!(world.own.head(&pack_key(&lie.pack)).await.expect("asked"), None);
        }
        let main = world.main.list("").collect(100).await.expect("listed");
        assert!(main.iter().all(|object| !object.key.starts_with("quarantine/")), "nobody can have a pack moved away");
        for pack in &packs {
            assert!(is_right(&world.own, *pack).await && is_right(&world.main, *pack).await);
            world.own.delete(&pack_key(&pack.pack)).await.expect("deleted");
        }
        shutdown.cancel();
        region.stopped().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processes_of_a_region_share_the_packs_of_a_hint() {
    const ROUND: usize = 16;
    let world = World::new().await;
    let packs = world.publish(160).await.all_packs();
    let process = |name: &'static str| {
        let folder = world.folder.path().join(name);
        world.region_with(move |config| {
            config.data_dir = folder;
            config.limits.beat = Duration::from_secs(1);
        })
    };
    let (one, stop_one) = process("one").await;
    let (two, stop_two) = process("two").await;
    let mut senders = BTreeSet::new();
    world
        .until(|report: Request<FleetReport>| {
            senders.insert(report.report.expect("reports have an order").sender);
            (senders.len() == 2).then_some(())
        })
        .await;
    // Until they have heard of each other, each does all.
    let mut gets = Vec::new();
    for (round, packs) in packs.chunks(ROUND).enumerate() {
        let before = world.s3.counters().of(MAIN, "packs/").gets;
        world.hint(&format!("q-{}", round + 1), packs).await;
        until("the hint is followed", async || has_all(&world, packs).await).await;
        gets.push(world.s3.counters().of(MAIN, "packs/").gets - before);
        if gets.last() == Some(&(ROUND as u64)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(gets.last(), Some(&(ROUND as u64)), "each pack is one process's: {gets:?}");
    for (region, stop) in [(one, stop_one), (two, stop_two)] {
        stop.cancel();
        region.stopped().await;
    }
}
