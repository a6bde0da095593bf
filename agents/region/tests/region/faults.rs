//! Buckets that cut, delay, refuse, truncate and flip bits, or are gone for a while; and what nobody looked at that rotted.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use longshore_artifact::pack_key;
use longshore_proxy::{Call, Fault, Link, Proxy};
use longshore_region::RegionConfig;
use longshore_schemas::{
    PackId,
    events::{ReplicaFailed, ReplicaStatus},
};

use crate::support::{MAIN, OWN, World, bucket, is_right, until};

/// Each thing that is done to each object goes wrong once, in all ways in turn.
fn once_each() -> impl Fn(&Call) -> Fault + Send + Sync {
    let seen = Mutex::new(BTreeMap::<(String, String), ()>::new());
    move |call| {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first = seen.insert((call.method.clone(), call.path.clone()), ()).is_none();
        if first { Fault::ALL[seen.len() % Fault::ALL.len()] } else { Fault::None }
    }
}

/// Whatever lies in the region's bucket as a pack is that pack.
async fn assert_nothing_wrong(world: &World) {
    for object in world.own.list("packs/").collect(1_000).await.expect("listed") {
        let content = world.own.get(&object.key, object.bytes).await.expect("there");
        assert_eq!(pack_key(&PackId::of(&content)), object.key);
    }
    let moved = world.main.list("quarantine/").collect(10).await.expect("listed");
    assert_eq!(moved, [], "what is right was not moved away");
}

async fn copied_in_spite_of_faults(by_service: bool) {
    let world = World::new().await;
    let root = world.publish(24).await;
    let proxy = async || Proxy::start(world.s3.endpoint(), Link::default(), once_each()).await.expect("a proxy");
    // A service that has both buckets has one address.
    let to_main = proxy().await;
    let to_own = if by_service { None } else { Some(proxy().await) };
    let main = bucket(to_main.endpoint(), MAIN).await;
    let own = bucket(to_own.as_ref().unwrap_or(&to_main).endpoint(), OWN).await;
    world.hint("q-1", &root.all_packs()[..12]).await;
    world.start_replication(&root).await;
    let (region, shutdown) = world
        .region_with(|config: &mut RegionConfig| {
            (config.main_bucket, config.bucket) = (main, own);
            config.limits.copies_by_service = by_service;
        })
        .await;
    let stored = world.report(ReplicaStatus::Stored, 0).await;
    assert_eq!((stored.packs_done, stored.error), (24, None));
    assert_nothing_wrong(&world).await;
    for pack in root.all_packs() {
        assert!(is_right(&world.own, pack).await, "{}", pack.pack);
    }
    let happened: Vec<_> = [Some(&to_main), to_own.as_ref()].into_iter().flatten().map(Proxy::happened).collect();
    for fault in Fault::ALL {
        assert!(happened.iter().any(|happened| happened.contains_key(&fault)), "{fault:?} never happened");
    }
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_wrong_with_the_buckets_the_copy_is_right() {
    copied_in_spite_of_faults(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_wrong_with_a_service_that_copies_the_copy_is_right() {
    copied_in_spite_of_faults(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_has_both_buckets_copies_and_what_it_copied_is_looked_at() {
    let world = World::new().await;
    let root = world.publish(8).await;
    let bad = root.all_packs()[3];
    let right = world.main.get(&pack_key(&bad.pack), bad.bytes).await.expect("published");
    world.main.put(&pack_key(&bad.pack), vec![b'x'; right.len()].into()).await.expect("put");
    let before = world.s3.counters().of(OWN, "incoming/");
    world.start_replication(&root).await;
    let (region, shutdown) = world.region_with(|config| config.limits.copies_by_service = true).await;
    let failed = world.report(ReplicaStatus::Failed, 0).await.error.expect("it says why");
    assert!(failed.contains(&bad.pack.to_string()) && failed.contains("wrong bytes"), "{failed}");
    assert_eq!(world.own.head(&pack_key(&bad.pack)).await.expect("asked"), None, "wrong bytes have no place");
    world.main.put(&pack_key(&bad.pack), right).await.expect("put");
    world.report(ReplicaStatus::Stored, 0).await;
    assert!(world.s3.counters().of(OWN, "incoming/").puts > before.puts, "the service copied");
    until("nothing is left over", async || world.own.list("incoming/").collect(10).await.expect("listed").is_empty())
        .await;
    assert_eq!(world.own.list("packs/").collect(10).await.expect("listed").len(), 8);
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_whose_bucket_was_away_catches_up() {
    let world = World::new().await;
    let proxy = Proxy::start(world.s3.endpoint(), Link::default(), |_| Fault::None).await.expect("a proxy");
    let own = bucket(proxy.endpoint(), OWN).await;
    proxy.set_away(true);
    let (region, shutdown) = world.region_with(|config| config.bucket = own).await;
    let mut roots = Vec::new();
    for packs in [5, 9, 12] {
        let root = world.publish(packs).await;
        world.hint(&format!("q-{packs}"), &root.all_packs()).await;
        world.start_replication(&root).await;
        roots.push(root);
    }
    let error = world.report(ReplicaStatus::Failed, 2).await.error.expect("it says why");
    assert!(error.contains("cannot be reached"), "{error}");
    proxy.set_away(false);
    world.report(ReplicaStatus::Stored, 2).await;
    for pack in roots.iter().flat_map(|root| root.all_packs()) {
        assert!(is_right(&world.own, pack).await);
    }
    assert_nothing_wrong(&world).await;
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrubber_finds_what_rotted_and_what_is_gone_and_every_artifact_that_has_it() {
    let world = World::new().await;
    // The first packs are the same.
    let (small, large) = (world.publish(4).await, world.publish(12).await);
    for root in [&small, &large] {
        world.start_replication(root).await;
    }
    let shared = small.all_packs()[0];
    let gone = *large.all_packs().iter().find(|pack| !small.all_packs().contains(pack)).expect("it has more");
    let (region, shutdown) = world
        .region_with(|config| {
            config.limits.scrub_interval = Duration::from_millis(50);
            config.limits.scrub_bytes_per_second = 1 << 30;
        })
        .await;
    world.report(ReplicaStatus::Stored, 1).await;
    world.own.put(&pack_key(&shared.pack), vec![0; shared.bytes as usize].into()).await.expect("put");
    world.own.delete(&pack_key(&gone.pack)).await.expect("deleted");

    let mut failed = BTreeMap::new();
    for skip in 0.. {
        let reported = world.report(ReplicaStatus::Failed, skip).await;
        let error = reported.error.expect("it says why");
        failed.entry((reported.artifact, error.contains(&gone.pack.to_string()))).or_insert(error);
        let needed = [(small.artifact, false), (large.artifact, false), (large.artifact, true)];
        if needed.iter().all(|needed| failed.contains_key(needed)) {
            break;
        }
    }
    for ((artifact, _), error) in failed {
        let region = "eu".parse().expect("valid");
        world.fact(ReplicaFailed { artifact, region, error }).await;
    }
    until("both are there again", async || is_right(&world.own, shared).await && is_right(&world.own, gone).await)
        .await;
    shutdown.cancel();
    region.stopped().await;
}
