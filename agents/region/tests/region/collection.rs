//! What no artifact needs any more leaves the region's bucket, and comes back when it is needed again.

use std::time::Duration;

use longshore_artifact::{ArtifactRoot, pack_key, root_key};
use longshore_region::{CollectionSettings, RegionConfig};
use longshore_schemas::events::{ArtifactRetired, ReplicaStatus};

use crate::support::{World, until};

fn at_once(config: &mut RegionConfig) {
    config.limits.collect_interval = Duration::from_millis(50);
    config.limits.collection = CollectionSettings {
        grace: Duration::from_millis(1),
        announced_lasts: Duration::from_secs(1),
        deletes_per_second: 10_000,
    };
}

/// The packs that are there of those of the artifact.
async fn there(world: &World, root: &ArtifactRoot) -> usize {
    let mut there = 0;
    for pack in root.all_packs() {
        there += usize::from(world.own.head(&pack_key(&pack.pack)).await.expect("asked").is_some());
    }
    there
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_retired_goes_but_for_what_others_need_and_comes_back_when_it_is_built_again() {
    let world = World::new().await;
    // The second has all that the first has.
    let (small, large) = (world.publish(4).await, world.publish(9).await);
    world.own.put("incoming/dead/pack", bytes::Bytes::from_static(b"half")).await.expect("put");
    let (region, shutdown) = world.region_with(at_once).await;
    for (count, root) in [&small, &large].into_iter().enumerate() {
        world.start_replication(root).await;
        world.report(ReplicaStatus::Stored, count).await;
    }
    world.fact(ArtifactRetired { artifact: large.artifact }).await;
    until("the larger is collected", async || there(&world, &large).await == 4).await;
    assert_eq!(world.own.head(&root_key(&large.artifact)).await.expect("asked"), None);
    assert_eq!(there(&world, &small).await, 4, "what others need stays");
    assert!(world.own.head(&root_key(&small.artifact)).await.expect("asked").is_some());

    world.start_replication(&large).await;
    world.report(ReplicaStatus::Stored, 2).await;
    assert_eq!(there(&world, &large).await, 9);
    world.fact(ArtifactRetired { artifact: small.artifact }).await;
    until("the smaller has no root", async || {
        world.own.head(&root_key(&small.artifact)).await.expect("asked").is_none()
    })
    .await;
    world.fact(ArtifactRetired { artifact: large.artifact }).await;
    until("nothing is left", async || world.own.list("packs/").collect(100).await.expect("listed").is_empty()).await;
    until("nor what belongs to packs", async || {
        world.own.list("outlines/").collect(100).await.expect("listed").is_empty()
    })
    .await;
    until("what a dead process left is gone", async || {
        world.own.list("incoming/").collect(100).await.expect("listed").is_empty()
    })
    .await;
    assert!(world.own.list("condemned/").collect(100).await.expect("listed").len() <= 1);
    shutdown.cancel();
    region.stopped().await;
}
