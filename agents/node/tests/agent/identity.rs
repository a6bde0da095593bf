//! Who the agent is: one enrolment, and certificates that follow one another.

use std::time::Duration;

use longshore_identity::testing::World;
use longshore_schemas::stream::FromRegion;

use crate::{
    node::{Node, wait_until},
    region::{Heard, Region},
};

const HOUR: Duration = Duration::from_secs(60 * 60);

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_on_the_connection_that_there_is() {
    let region = Region::start().await;
    region.age_next_certificate(13 * HOUR);
    let mut node = Node::start("n-1", &region);
    region.wait_for("a renewal", |heard| (heard.renewed == 1).then_some(())).await;
    let counts = |heard: &Heard| (heard.enrolments, heard.restored, heard.hellos.len());
    assert_eq!(region.wait_for("counts", |heard| Some(counts(heard))).await, (1, 0, 1));

    // The new one is what it shows after a restart, and not due.
    wait_until("it is kept", async || node.log().contains("certificate is renewed")).await;
    node.kill_agent();
    node.start_agent(&[]);
    let beats = |heard: &Heard| (heard.hellos.len() == 2).then_some(heard.beats);
    let beats = region.wait_for("second hello", beats).await;
    let renewals = |heard: &Heard| (heard.beats >= beats + 3).then_some(heard.renewed);
    assert_eq!(region.wait_for("beats after it", renewals).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ran_out_is_replaced_without_a_token() {
    let region = Region::start().await;
    region.age_next_certificate(25 * HOUR);
    let node = Node::start("n-1", &region);
    region.wait_for("hello", |heard| (heard.hellos.len() == 1).then_some(())).await;
    let counts = |heard: &Heard| (heard.enrolments, heard.restored);
    assert_eq!(region.wait_for("counts", |heard| Some(counts(heard))).await, (1, 1));
    let identity = std::fs::read(node.data().join("identity.json")).expect("there");
    let identity: serde_json::Value = serde_json::from_slice(&identity).expect("JSON");
    let key = identity["key"].as_str().and_then(|key| key.lines().nth(1)).expect("a key").to_owned();
    assert!(key.len() > 40 && !node.log().contains(&key), "no secret is logged");
}

/// Whom the region says not to believe is known after a restart as well.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_region_says_of_others_is_kept() {
    let (region, stranger) = (Region::start().await, World::new("us"));
    let mut node = Node::start("n-1", &region);
    region.wait_for("hello", |heard| (heard.hellos.len() == 1).then_some(())).await;
    // Another region's authority is none of this one's.
    for (authorities, revoked) in [(region.authority(), "n-9"), (stranger.trust.pem(), "n-8")] {
        let revoked = [revoked.parse().expect("valid")].into();
        region.tell(FromRegion::Trust { authorities: authorities.to_owned(), revoked });
    }
    let kept = || std::fs::read_to_string(node.data().join("identity.json")).unwrap_or_default();
    wait_until("it is kept", async || kept().contains("n-9")).await;
    wait_until("it says so", async || node.log().contains("several regions")).await;
    assert!(!kept().contains("n-8"));
    node.kill_agent();
    node.start_agent(&[]);
    region.wait_for("second hello", |heard| (heard.hellos.len() == 2).then_some(())).await;
}

/// The token goes to nobody who is not the region.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_not_believed_hears_nothing() {
    let region = Region::start().await;
    let node = Node::start_believing("n-1", &region, World::new("eu").trust.pem());
    wait_until("it says why", async || node.log().contains("the region's certificate is not believed")).await;
    assert!(node.log().contains("--region-authority"));
    assert_eq!(region.wait_for("enrolments", |heard| Some(heard.enrolments)).await, 0);
}
