//! Who is let in, who becomes a node, and who is one no more.

use std::{collections::BTreeSet, time::Duration};

use longshore_identity::{Credentials, Key, Request, Tls, Trust};
use longshore_region::Region;
use longshore_schemas::{
    NodeId, Timestamp,
    http::Role,
    stream::{FromNode, FromRegion, Hello},
};
use longshore_service::tokens::{self, Enrols, TokenRecord, Tokens};

use crate::support::{Node, World, enrol, hello, until};

const BEAT: Duration = Duration::from_secs(10);

fn name(name: &str) -> NodeId {
    name.parse().expect("valid")
}

/// Why the region refuses this.
async fn refused(region: &Region, tls: &Tls, as_stranger: bool, message: FromNode) -> String {
    let mut node = if as_stranger { Node::stranger(region, tls).await } else { Node::known(region, tls).await };
    node.say(message).await;
    let Some(FromRegion::Refused { reason, .. }) = node.hear().await else { panic!("it was let in") };
    assert!(node.hear().await.is_none(), "the connection ends");
    reason
}

#[tokio::test(flavor = "multi_thread")]
async fn only_enrolled_nodes_are_let_in() {
    let world = World::new().await;
    let (region, shutdown) = world.region(BEAT).await;
    let (stranger, key) = (world.stranger(), Key::make().expect("a key"));
    let wrong = enrol("ls_node_x", "n1", &key);
    assert!(refused(&region, &stranger, true, wrong).await.contains("enrolment token"));
    assert!(refused(&region, &stranger, true, FromNode::Hello(hello("n1", &[]))).await.contains("no certificate"));
    assert!(refused(&region, &stranger, true, FromNode::Beat).await.contains("hello"));
    let no_request = FromNode::Enrol { token: world.token.clone(), node: name("n1"), request: "x".to_owned() };
    assert!(refused(&region, &stranger, true, no_request).await.contains("request for a certificate"));

    let tls = Node::enrol(&world, &region, "n1").await;
    assert!(refused(&region, &tls, false, FromNode::Hello(hello("n2", &[]))).await.contains("n1"));
    let mut node = Node::known(&region, &tls).await;
    node.say(FromNode::Hello(hello("n1", &[]))).await;
    assert!(matches!(node.hear_all().await, Some(FromRegion::Welcome { beat_seconds: 10, .. })));
    let Some(FromRegion::Trust { authorities, revoked }) = node.hear_all().await else { panic!("whom to believe") };
    assert_eq!((authorities.as_str(), revoked), (tls.trust().pem(), BTreeSet::new()));
    let taken = enrol(&world.token, "n1", &key);
    assert!(refused(&region, &stranger, true, taken).await.contains("n1 is connected"));

    // The next certificate comes on the connection that there is, and serves as the first one did.
    let next = Key::make().expect("a key");
    node.say(FromNode::Renew { request: next.request().expect("a request") }).await;
    let Some(FromRegion::Certified { certificate }) = node.hear().await else { panic!("no certificate") };
    let credentials = Credentials::new(&next, &certificate).expect("they fit");
    tls.set(Some(credentials), tls.trust()).expect("valid");
    let mut again = Node::known(&region, &tls).await;
    again.say(FromNode::Hello(hello("n1", &[]))).await;
    assert!(matches!(again.hear().await, Some(FromRegion::Welcome { .. })));
    node.closed().await;
    shutdown.cancel();
    region.stopped().await;
}

/// Whatever a token says, it is not for more than that.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_enrols_whom_it_is_for() {
    let world = World::new().await;
    let mut known = Tokens::load(&world.tokens_file()).expect("there");
    let mut token = |enrols: Enrols| {
        let (token, record) = tokens::generate("fleet", Role::Node);
        known.push(TokenRecord { enrols: Some(enrols), ..record });
        token
    };
    let once = token(Enrols { once: true, ..Enrols::default() });
    let web = token(Enrols { nodes: Some("web-*".parse().expect("valid")), ..Enrols::default() });
    let us = token(Enrols { regions: Some(["us".parse().expect("valid")].into()), ..Enrols::default() });
    let over = token(Enrols { until: Some(Timestamp(1)), ..Enrols::default() });
    known.save(&world.tokens_file()).expect("saved");
    let (region, shutdown) = world.region(BEAT).await;
    let (stranger, key) = (world.stranger(), Key::make().expect("a key"));
    for (token, name, why) in [(&web, "db-1", "web-*"), (&us, "n1", "us"), (&over, "n1", "until")] {
        let reason = refused(&region, &stranger, true, enrol(token, name, &key)).await;
        assert!(reason.contains(why), "{reason}");
    }
    let enrolled = async |token: &str, name: &str, key: &Key| {
        let mut node = Node::stranger(&region, &stranger).await;
        node.say(enrol(token, name, key)).await;
        assert!(matches!(node.hear().await, Some(FromRegion::Certified { .. })), "{name}");
    };
    enrolled(&web, "web-1", &key).await;
    // The answer may be lost: the same machine asks again.
    enrolled(&once, "n1", &key).await;
    enrolled(&once, "n1", &key).await;
    let other = Key::make().expect("a key");
    for (name, key) in [("n2", &key), ("n1", &other)] {
        let reason = refused(&region, &stranger, true, enrol(&once, name, key)).await;
        assert!(reason.contains("good for one node"), "{reason}");
    }
    // Another process of the region knows as well.
    let (second, stop) = world.region_with(|config| config.data_dir = world.folder.path().join("second")).await;
    let reason = refused(&second, &stranger, true, enrol(&once, "n2", &key)).await;
    assert!(reason.contains("n1 has used it"), "{reason}");
    for (region, stop) in [(second, stop), (region, shutdown)] {
        stop.cancel();
        region.stopped().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_put_out_and_stays_out() {
    let world = World::new().await;
    let (region, shutdown) = world.region(BEAT).await;
    let tls = Node::enrol(&world, &region, "n1").await;
    let mut node = Node::known(&region, &tls).await;
    node.say(FromNode::Hello(hello("n1", &[]))).await;
    let mut other = Node::join(&world, &region, "n2", &[]).await;
    assert!(matches!(other.hear_all().await, Some(FromRegion::Trust { revoked, .. }) if revoked.is_empty()));

    assert!(world.authority.revoke(&name("n1")).expect("written"));
    node.closed().await;
    let Some(FromRegion::Trust { revoked, .. }) = other.hear_all().await else { panic!("the others are told") };
    assert_eq!(revoked, BTreeSet::from([name("n1")]));
    assert!(refused(&region, &tls, false, FromNode::Hello(hello("n1", &[]))).await.contains("revoked"));
    let key = Key::make().expect("a key");
    let again = enrol(&world.token, "n1", &key);
    assert!(refused(&region, &world.stranger(), true, again).await.contains("revoked"));

    // A file of nonsense changes nothing, nor does one that is gone, nor another that is of no use.
    std::fs::write(world.tokens_file(), "[").expect("written");
    for spoil in
        [|file: &std::path::Path| std::fs::write(file, "["), |file: &std::path::Path| std::fs::remove_file(file)]
    {
        spoil(&world.authority.revoked()).expect("spoilt");
        let before = file_errors();
        until("it has been looked at", async || file_errors() >= before + 2).await;
        assert!(refused(&region, &tls, false, FromNode::Hello(hello("n1", &[]))).await.contains("revoked"));
    }
    std::fs::write(world.authority.revoked(), "[\"n1\"]").expect("written");
    assert!(world.authority.restore(&name("n1")).expect("written"));
    until("it is let in", async || {
        let mut node = Node::known(&region, &tls).await;
        node.say(FromNode::Hello(hello("n1", &[]))).await;
        matches!(node.hear().await, Some(FromRegion::Welcome { .. }))
    })
    .await;
    shutdown.cancel();
    region.stopped().await;
}

/// How often the region found a file of no use.
fn file_errors() -> u64 {
    counted("longshore_region_file_errors")
}

fn counted(name: &str) -> u64 {
    let text = longshore_service::metrics::text();
    let name = format!("{name}_total");
    let count = text.lines().find(|line| line.starts_with(&name)).and_then(|line| line.split(' ').next_back());
    count.map_or(0, |count| count.parse().expect("a number"))
}

/// One authority follows another, and no node has to do anything.
#[tokio::test(flavor = "multi_thread")]
async fn authorities_follow_one_another_without_a_gap() {
    let world = World::new().await;
    let (region, shutdown) = world.region(BEAT).await;
    let tls = Node::enrol(&world, &region, "n1").await;
    let mut node = Node::known(&region, &tls).await;
    node.say(FromNode::Hello(hello("n1", &[]))).await;
    let told = async |node: &mut Node| loop {
        if let FromRegion::Trust { authorities, .. } = node.hear_all().await.expect("it stays connected") {
            return authorities.matches("BEGIN CERTIFICATE").count();
        }
    };
    assert_eq!(told(&mut node).await, 1);
    world.authority.add_next(longshore_service::now()).expect("added");
    assert_eq!(told(&mut node).await, 2);
    // As a node does with what it is told.
    let trust = longshore_identity::files::read_trust(&world.authority.authorities()).expect("valid");
    tls.set(tls.credentials(), trust).expect("valid");
    let both = tls.trust().pem().to_owned();
    let (_, second) = both.split_at(both.rfind("-----BEGIN").expect("two"));
    let second = Trust::new(second, BTreeSet::new()).expect("valid");
    world.authority.switch().expect("switched");
    until("it certifies by the next one", async || {
        let key = Key::make().expect("a key");
        let mut other = Node::stranger(&region, &world.stranger()).await;
        other.say(enrol(&world.token, "n2", &key)).await;
        let Some(FromRegion::Certified { certificate }) = other.hear().await else { panic!("not enrolled") };
        let request = Request::from_pem(&key.request().expect("a request")).expect("valid");
        second.former_node(&certificate, request.public_key(), longshore_service::now()).is_ok()
    })
    .await;
    let next = Key::make().expect("a key");
    node.say(FromNode::Renew { request: next.request().expect("a request") }).await;
    let Some(FromRegion::Certified { certificate }) = node.hear().await else { panic!("no certificate") };
    let old = Tls::new(tls.credentials(), tls.trust()).expect("TLS");
    tls.set(Some(Credentials::new(&next, &certificate).expect("they fit")), tls.trust()).expect("valid");
    let mut node = Node::known(&region, &tls).await;
    node.say(FromNode::Hello(hello("n1", &[]))).await;
    assert_eq!(told(&mut node).await, 2);

    assert_eq!(world.authority.drop_old().expect("dropped"), 1);
    assert_eq!(told(&mut node).await, 1);
    let mut node = Node::known(&region, &tls).await;
    node.say(FromNode::Hello(hello("n1", &[]))).await;
    assert!(matches!(node.hear().await, Some(FromRegion::Welcome { .. })), "the new one is believed");
    let mut node = Node::known(&region, &old).await;
    let told = node.try_hear().await.expect_err("the old one is not");
    assert!(told.contains("UnknownCA") || told.contains("DecryptError"), "{told}");
    shutdown.cancel();
    region.stopped().await;
}

/// Two machines with one identity: the second is noticed when the first comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_noticed() {
    let world = World::new().await;
    let (region, shutdown) = world.region(BEAT).await;
    let tls = Node::enrol(&world, &region, "n1").await;
    let agent = |instance: &str| FromNode::Hello(Hello { instance: instance.to_owned(), ..hello("n1", &[]) });
    let mut one = Node::known(&region, &tls).await;
    one.say(agent("one")).await;
    assert!(matches!(one.hear().await, Some(FromRegion::Welcome { .. })));
    let mut two = Node::known(&region, &tls).await;
    two.say(agent("two")).await;
    assert!(matches!(two.hear().await, Some(FromRegion::Welcome { .. })), "it may have been started anew");
    one.closed().await;
    assert!(refused(&region, &tls, false, agent("one")).await.contains("another machine"));
    assert_eq!(counted("longshore_region_clones"), 1);
    // When it is alone, it is let in.
    drop(two);
    until("it is alone", async || region.connected() == 0).await;
    let mut one = Node::known(&region, &tls).await;
    one.say(agent("one")).await;
    assert!(matches!(one.hear().await, Some(FromRegion::Welcome { .. })));
    shutdown.cancel();
    region.stopped().await;
}
