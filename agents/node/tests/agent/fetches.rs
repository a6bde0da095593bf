//! Packs on their way: of two artifacts at once, and to an agent that is killed.

use std::collections::BTreeSet;

use longshore_schemas::{ArtifactId, PackId, events::NodeStatus};
use longshore_swarm_policy::fetch::Config as FetchConfig;
use rustls::crypto::ring;

use crate::{
    node::{Node, ask, goal, wait_until},
    noise,
    region::{Hold, Region},
    with_assets,
};

/// So much may come twice when an agent is killed in the middle, as a part of what is needed: blocks that were on the wire.
const AGAIN_PART_MAX: f64 = 0.005;

fn packs_of(region: &Region, artifact: &ArtifactId) -> BTreeSet<PackId> {
    region.root(artifact).all_packs().iter().map(|pack| pack.pack).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_artifacts_that_share_packs_come_at_once() {
    let _ = ring::default_provider().install_default();
    let region = Region::start().await;
    let assets = [noise(1, 12_000_000), [noise(1, 12_000_000), noise(2, 4_000_000)].concat()];
    let one = with_assets(&region, "one", &assets[0], None).await;
    let two = with_assets(&region, "two", &assets[1], Some(one)).await;
    let data: BTreeSet<PackId> = region.root(&one).packs.iter().map(|pack| pack.pack).collect();
    let all = [packs_of(&region, &one), packs_of(&region, &two)];
    let shared: BTreeSet<PackId> = data.intersection(&all[1]).copied().collect();
    assert!(shared.len() >= 2, "{shared:?}");

    // With all else there, both wait for the same packs: no more of them than can be asked for at once.
    let held: BTreeSet<PackId> = shared.iter().take(2).copied().collect();
    region.hold(Hold::These(held.clone()));
    region.push(goal("web", 1, Some(one)));
    region.push(goal("mail", 1, Some(two)));
    let node = Node::start("n-1", &region);
    let rest = &(&all[0] | &all[1]) - &held;
    wait_until("all else is there", async || node.packs().is_superset(&rest)).await;
    region.hold(Hold::Nothing);

    for (service, artifact, version, assets) in [("web", one, "one", &assets[0]), ("mail", two, "two", &assets[1])] {
        let port = region.wait_status(service, 1, NodeStatus::Healthy).await.port.expect("it has one");
        assert_eq!(ask(port).await.expect("it answers").version, version);
        assert!(node.installed(&artifact, "assets") == *assets, "{service} has other assets");
    }
    for transfer in node.transfers() {
        assert!(transfer.from_bucket_bytes <= transfer.needed_bytes, "{transfer:?}");
    }
    let asked = region.served().asked;
    let times: Vec<usize> = shared.iter().map(|pack| asked[pack]).collect();
    println!("packs that two artifacts share were asked for so often: {times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_in_a_fetch_goes_on_with_what_it_has() {
    let _ = ring::default_provider().install_default();
    let region = Region::start().await;
    let assets = noise(3, 60_000_000);
    let artifact = with_assets(&region, "one", &assets, None).await;
    let root = region.root(&artifact);
    let limits = FetchConfig::new("n-1".parse().expect("valid"), "default".parse().expect("valid"));
    let whole = root.all_packs().len() - root.packs.len() + 3;
    assert!(root.packs.len() > 10, "{}", root.packs.len());

    region.hold(Hold::AllAfter(whole));
    region.push(goal("web", 1, Some(artifact)));
    let mut node = Node::start("n-1", &region);
    wait_until("some packs are there and some come", async || {
        let served = region.served();
        served.held > 0 && node.packs().len() >= whole && node.pack_bytes() >= served.bytes
    })
    .await;
    node.kill_agent();
    let kept = node.packs();
    wait_until("the bucket has noticed", async || region.served().held == 0).await;
    let before = region.served();
    region.hold(Hold::Nothing);
    node.start_agent(&[]);
    let port = region.wait_status("web", 1, NodeStatus::Healthy).await.port.expect("it has one");
    assert_eq!(ask(port).await.expect("it answers").version, "one");
    assert!(node.installed(&artifact, "assets") == assets, "it has other assets");

    let (after, needed) = (region.served(), node.transfers()[0].needed_bytes);
    let again: BTreeSet<PackId> =
        before.asked.iter().filter(|(pack, times)| after.asked[pack] > **times).map(|(pack, _)| *pack).collect();
    assert!(again.is_disjoint(&kept), "what was there is not fetched again");
    assert!(again.len() <= limits.requests_max, "{} packs were fetched again", again.len());
    let part = after.bytes as f64 / needed as f64 - 1.0;
    println!("killed with {} of {needed} bytes fetched: {:.1} % came twice", before.bytes, part * 100.0);
    assert!(part <= AGAIN_PART_MAX, "{} bytes were fetched, {needed} are needed", after.bytes);
}
