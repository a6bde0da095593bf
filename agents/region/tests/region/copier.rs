//! What the copier brings into the region's bucket, and what it says about it.

use std::time::Duration;

use crate::support::World;
use bytes::Bytes;
use longshore_artifact::{
    outline::{Outline, outline_key},
    pack_key, root_key,
};
use longshore_schemas::events::{ArtifactRequest, ReplicaReported, ReplicaStatus, ReplicaStored, Request};

const BEAT: Duration = Duration::from_secs(10);

/// The first report of this kind.
async fn report(world: &World, status: ReplicaStatus) -> ReplicaReported {
    world
        .until(|request: Request<ArtifactRequest>| match request.event {
            ArtifactRequest::ReplicaReported(reported) if reported.status == status => {
                assert!(
                    request.report.expect("reports have an order").sender.starts_with("region/eu/"),
                    "it is a process of eu"
                );
                Some(reported)
            }
            _ => None,
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_copied_verified_and_reported() {
    let world = World::new().await;
    let root = world.publish(12).await;
    let (first, rest) = root.all_packs().split_first().map(|(first, rest)| (*first, rest.to_vec())).expect("packs");
    let there = world.main.get(&pack_key(&first.pack), first.bytes).await.expect("published");
    world.own.put(&pack_key(&first.pack), there).await.expect("put");
    world.start_replication(&root).await;
    let (region, shutdown) = world.region(BEAT).await;

    let stored = report(&world, ReplicaStatus::Stored).await;
    assert_eq!((stored.artifact, stored.packs_done, stored.error), (root.artifact, 12, None));
    let copied: u64 = rest.iter().map(|pack| pack.bytes).sum();
    assert_eq!(stored.bytes_copied, copied, "what was there is not copied");
    for pack in root.all_packs() {
        assert_eq!(world.own.head(&pack_key(&pack.pack)).await.expect("asked"), Some(pack.bytes));
    }
    let large = rest.iter().find(|pack| pack.bytes > 64 * 1024).expect("one of several blocks");
    let outline = world.own.get(&outline_key(&large.pack), 4_096).await.expect("beside the pack");
    assert!(Outline::from_bytes(large.pack, large.bytes, &outline).is_some());
    assert_eq!(world.own.list("outlines/").collect(100).await.expect("listed").len(), 1, "others need none");
    assert!(world.own.head(&root_key(&root.artifact)).await.expect("asked").is_some());
    shutdown.cancel();
    region.stopped().await;

    // A restart that has seen the fact copies nothing; one that has not finds everything there.
    let gets = world.s3.counters().of("longshore-main", "packs/");
    let (region, shutdown) = world.region(BEAT).await;
    world
        .fact(ReplicaStored { artifact: root.artifact, region: "eu".parse().expect("valid"), bytes_copied: copied })
        .await;
    let second = world.publish(14).await;
    world.start_replication(&second).await;
    let is_second = |reported: &ReplicaReported| reported.artifact == second.artifact;
    world
        .until(|request: Request<ArtifactRequest>| match request.event {
            ArtifactRequest::ReplicaReported(reported) if is_second(&reported) => Some(()),
            _ => None,
        })
        .await;
    let again = world.s3.counters().of("longshore-main", "packs/");
    assert_eq!(again.gets - gets.gets, 2, "of the second artifact only the two packs that the first has not");
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_reported_and_tried_again() {
    let world = World::new().await;
    let root = world.publish(4).await;
    let bad = root.all_packs()[2];
    let right = world.main.get(&pack_key(&bad.pack), bad.bytes).await.expect("published");
    let wrong = Bytes::from(vec![b'x'; right.len()]);
    world.main.put(&pack_key(&bad.pack), wrong).await.expect("put");
    world.start_replication(&root).await;
    let (region, shutdown) = world.region(BEAT).await;

    let failed = report(&world, ReplicaStatus::Failed).await;
    let error = failed.error.expect("a failure says why");
    assert!(error.contains(&bad.pack.to_string()) && error.contains("wrong bytes"), "{error}");
    assert_eq!(world.own.head(&pack_key(&bad.pack)).await.expect("asked"), None, "wrong bytes are not stored");
    assert_eq!(world.own.head(&root_key(&root.artifact)).await.expect("asked"), None, "nor the root");
    assert_eq!(world.main.head(&pack_key(&bad.pack)).await.expect("asked"), None, "its place is free for right ones");
    let quarantined = format!("quarantine/{}", pack_key(&bad.pack));
    assert_eq!(world.main.head(&quarantined).await.expect("asked"), Some(bad.bytes), "for people to look at");

    world.main.put(&pack_key(&bad.pack), right).await.expect("put");
    assert_eq!(report(&world, ReplicaStatus::Stored).await.packs_done, 4);
    shutdown.cancel();
    region.stopped().await;
}
