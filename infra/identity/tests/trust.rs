//! Who passes for whom: only those whom the region's authority certified as that, for as long as it said.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use longshore_identity::{
    Authority, Credentials, Distrust, Holder, Key, RESTORABLE_FOR, Request, SKEW, Tls, Trust,
    files::{AuthorityFiles, read_trust},
    is_refusal, refused_by,
    testing::World,
};
use longshore_schemas::{NodeId, Timestamp};
use longshore_service::now;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn node(name: &str) -> NodeId {
    name.parse().expect("valid")
}

fn ago(duration: Duration) -> Timestamp {
    Timestamp(now().millis() - i64::try_from(duration.as_millis()).expect("short"))
}

/// A node's certificate that was made then.
fn made(world: &World, name: &str, at: Timestamp) -> (Key, String) {
    let key = Key::make().expect("a key");
    let request = Request::from_pem(&key.request().expect("a request")).expect("valid");
    let certificate = world.authority.certify(&request, &node(name), at).expect("certified");
    (key, certificate)
}

fn at(world: &World, name: &str, at: Timestamp) -> Arc<Tls> {
    let (key, certificate) = made(world, name, at);
    Tls::new(Some(Credentials::new(&key, &certificate).expect("they fit")), world.trust.clone()).expect("TLS")
}

/// Both ends of one connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let client = TcpStream::connect(listener.local_addr().expect("bound"));
    let (client, server) = tokio::join!(client, listener.accept());
    (client.expect("connects"), server.expect("accepts").0)
}

/// One node connects to another: who the server says that it is, and how the client fared.
async fn meet(client: &Tls, server: &Tls, expected: &str) -> (Result<NodeId, String>, std::io::Result<()>) {
    let (outgoing, incoming) = pair().await;
    let serving = async {
        let mut accepted = server.accept_node(incoming).await.map_err(|error| error.to_string())?;
        accepted.stream.write_all(b"hi").await.map_err(|error| error.to_string())?;
        accepted.stream.flush().await.map_err(|error| error.to_string())?;
        Ok(accepted.peer.node().clone())
    };
    let asking = async {
        let mut connected = client.connect_to_node(outgoing, &node(expected)).await?;
        // What the server thinks of the client comes after its own end of the handshake.
        connected.stream.read_exact(&mut [0; 2]).await.map(drop)
    };
    tokio::join!(serving, asking)
}

#[tokio::test]
async fn nodes_of_a_region_know_each_other() {
    let world = World::new("eu");
    let (found, asked) = meet(&world.node("n1"), &world.node("n2"), "n2").await;
    assert_eq!(found, Ok(node("n1")));
    asked.expect("it was the node that was meant");
}

#[tokio::test]
async fn nobody_passes_for_a_node_who_is_none() {
    let (eu, us) = (World::new("eu"), World::new("us"));
    let server = eu.node("n2");
    let believing = |credentials| Tls::new(Some(credentials), eu.trust.clone()).expect("TLS");
    let region = eu.authority.own_credentials(now()).expect("certified");
    let strangers = [
        ("another region's node", believing(us.credentials("n1"))),
        ("a process of the region", believing(region)),
        ("a certificate of yesterday", at(&eu, "n1", ago(DAY + HOUR))),
        ("a certificate of tomorrow", at(&eu, "n1", now() + SKEW + HOUR)),
    ];
    for (who, client) in strangers {
        let (found, asked) = meet(&client, &server, "n2").await;
        assert!(found.is_err(), "{who} passed for {found:?}");
        let error = asked.expect_err(who);
        assert!(is_refusal(&error), "{who} is told: {error:?}");
    }
    let (found, asked) = meet(&eu.stranger(), &server, "n2").await;
    assert!(found.is_err() && asked.is_err());

    // Nor is anybody talked to who is another one, or of elsewhere.
    let client = eu.node("n1");
    for (who, server) in [("another node", eu.node("n3")), ("another region's", us.node("n2")), ("region", eu.region())]
    {
        let (_, asked) = meet(&client, &server, "n2").await;
        asked.expect_err(who);
    }
    let (_, asked) = meet(&client, &us.node("n2"), "n2").await;
    assert!(refused_by(&asked.expect_err("another region's")).is_some());
}

#[tokio::test]
async fn a_region_is_known_to_its_nodes_and_takes_strangers() {
    let (eu, us) = (World::new("eu"), World::new("us"));
    let meet = async |client: Arc<Tls>, server: Arc<Tls>, as_stranger: bool| {
        let (outgoing, incoming) = pair().await;
        let asking = client.connect_to_region(outgoing, as_stranger);
        let (asked, found) = tokio::join!(asking, server.accept(incoming));
        asked.map(drop).map_err(|error| error.to_string())?;
        let peer = found.map_err(|error| error.to_string())?.peer.map_err(|distrust| distrust.to_string())?;
        Ok::<_, String>(peer.map(|peer| peer.node().clone()))
    };
    assert_eq!(meet(eu.node("n1"), eu.region(), false).await, Ok(Some(node("n1"))));
    assert_eq!(meet(eu.node("n1"), eu.region(), true).await, Ok(None), "it does not say who it is");
    assert_eq!(meet(eu.stranger(), eu.region(), true).await, Ok(None));
    for (who, server) in [("another region", us.region()), ("a node", eu.node("n2"))] {
        meet(eu.stranger(), server, true).await.expect_err(who);
    }
    let revoking = Trust::new(eu.trust.pem(), [node("n1")].into()).expect("valid");
    let server = eu.region();
    server.set(server.credentials(), revoking).expect("valid");
    let told = meet(eu.node("n1"), server.clone(), false).await.expect_err("revoked");
    assert!(told.contains("n1 is revoked"), "{told}");
    assert_eq!(meet(eu.node("n2"), server, false).await, Ok(Some(node("n2"))));
}

/// What was believed when a connection began may be believed no more.
#[tokio::test]
async fn a_connection_is_asked_about_again() {
    let world = World::new("eu");
    let (client, server) = (world.node("n1"), world.node("n2"));
    let ((outgoing, incoming), expected) = (pair().await, node("n2"));
    let (connected, accepted) = tokio::join!(client.connect_to_node(outgoing, &expected), server.accept_node(incoming));
    let (_open, mut peer) = (connected.expect("connects"), accepted.expect("accepts").peer);
    assert_eq!(peer.check(&server, now()), Ok(()));
    assert!(matches!(peer.check(&server, now() + DAY), Err(Distrust::Over(_))));
    let with = |revoked: BTreeSet<NodeId>| Trust::new(world.trust.pem(), revoked).expect("valid");
    server.set(server.credentials(), with([node("n3")].into())).expect("valid");
    assert_eq!(peer.check(&server, now()), Ok(()));
    server.set(server.credentials(), with([node("n1")].into())).expect("valid");
    assert_eq!(peer.check(&server, now()), Err(Distrust::Revoked(node("n1"))));
    server.set(server.credentials(), World::new("eu").trust).expect("valid");
    assert!(matches!(peer.check(&server, now()), Err(Distrust::Unverified(_))));
}

#[test]
fn a_certificate_that_ran_out_is_good_for_the_next_one_with_its_key_and_for_a_while() {
    let world = World::new("eu");
    let public_key =
        |key: &Key| Request::from_pem(&key.request().expect("a request")).expect("valid").public_key().to_vec();
    let (key, certificate) = made(&world, "n1", ago(3 * DAY));
    let former =
        |world: &World, certificate: &str, key: &Key, now| world.trust.former_node(certificate, &public_key(key), now);
    assert_eq!(former(&world, &certificate, &key, now()), Ok(node("n1")));
    let other = Key::make().expect("a key");
    assert!(matches!(former(&world, &certificate, &other, now()), Err(Distrust::Unverified(_))));
    assert!(matches!(former(&World::new("eu"), &certificate, &key, now()), Err(Distrust::Unverified(_))));
    assert!(matches!(former(&world, &certificate, &key, now() + RESTORABLE_FOR), Err(Distrust::Over(_))));
    assert!(matches!(former(&world, "x", &key, now()), Err(Distrust::Unverified(_))));
    let revoked = Trust::new(world.trust.pem(), [node("n1")].into()).expect("valid");
    let gone = revoked.former_node(&certificate, &public_key(&key), now());
    assert_eq!(gone, Err(Distrust::Revoked(node("n1"))));
}

#[test]
fn what_is_asked_for_is_a_key_alone() {
    let world = World::new("eu");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    // It wants to be an authority, and to be called as a region is.
    let mut greedy = rcgen::CertificateParams::new(vec!["region.longshore.internal".to_owned()]).expect("valid");
    greedy.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = greedy.serialize_request(&key).and_then(|request| request.pem()).expect("a request");
    let request = Request::from_pem(&pem).expect("valid");
    let certificate = world.authority.certify(&request, &node("n1"), now()).expect("certified");
    let own = Key::from_pem(&key.serialize_pem()).expect("a key");
    let credentials = Credentials::new(&own, &certificate).expect("they fit");
    assert_eq!(credentials.named().holder, Holder::Node(node("n1")));
    let error = Trust::new(&certificate, BTreeSet::new()).map(drop).expect_err("no authority").to_string();
    assert!(error.contains("an authority"), "{error}");

    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let pem = rcgen::CertificateParams::default().serialize_request(&other).and_then(|request| request.pem());
    let error = Request::from_pem(&pem.expect("a request")).map(drop).expect_err("another kind").to_string();
    assert!(error.contains("ed25519"), "{error}");
    for text in ["", "x", &"x".repeat(100_000), &certificate] {
        assert!(Request::from_pem(text).is_err());
    }
    // A request that was altered is not its key's.
    let mut der = own.request().expect("a request");
    let middle = der.len() / 2;
    let flipped = if &der[middle..=middle] == "A" { "B" } else { "A" };
    der.replace_range(middle..=middle, flipped);
    assert!(Request::from_pem(&der).is_err());
}

#[test]
fn a_certificate_is_due_after_half_of_its_life() {
    let world = World::new("eu");
    let credentials = world.credentials("n1");
    for (later, due, over) in [(0, false, false), (11, false, false), (13, true, false), (25, true, true)] {
        let at = now() + later * HOUR;
        assert_eq!((credentials.is_due(at), credentials.is_over(at)), (due, over), "{later} h");
    }
    assert!(!format!("{credentials:?}{:?}", Key::make().expect("a key")).contains("PRIVATE"));
}

#[test]
fn an_authority_is_files_and_replaced_step_by_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = AuthorityFiles::new(folder.path(), &"eu".parse().expect("valid"));
    let missing = files.content().expect_err("not made").to_string();
    assert!(missing.contains("longshore secrets"), "{missing}");
    files.make(now()).expect("made");
    let first = files.content().expect("there");
    files.make(now()).expect("there");
    assert_eq!(files.content().expect("there"), first, "it is made once");
    let (authority, trust) = files.read(&first).expect("valid");
    assert_eq!((authority.region().as_str(), trust.revoked().len()), ("eu", 0));

    files.switch().expect_err("there is no next one");
    files.add_next(now()).expect("added");
    files.add_next(now()).expect_err("there is one already");
    files.drop_old().expect_err("it would drop the next one");
    let old = files.read(&files.content().expect("there")).expect("valid").0;
    files.switch().expect("switched");
    let (new, both) = files.read(&files.content().expect("there")).expect("valid");
    for authority in [&old, &new] {
        let key = Key::make().expect("a key");
        let request = Request::from_pem(&key.request().expect("a request")).expect("valid");
        let certificate = authority.certify(&request, &node("n1"), now()).expect("certified");
        let public = request.public_key();
        assert_eq!(both.former_node(&certificate, public, now()), Ok(node("n1")));
    }
    assert_eq!(files.drop_old().expect("dropped"), 1);
    assert_eq!(files.drop_old().expect("none is left"), 0);
    let alone = read_trust(&files.authorities()).expect("valid");
    assert_eq!(alone.pem().matches("BEGIN").count(), 1);

    assert!(files.revoke(&node("n1")).expect("written") && !files.revoke(&node("n1")).expect("it was"));
    assert!(files.read(&files.content().expect("there")).expect("valid").1.is_revoked(&node("n1")));
    assert!(files.restore(&node("n1")).expect("written") && !files.restore(&node("n1")).expect("it was"));

    // Whatever is wrong is named by its file.
    let other = AuthorityFiles::new(&folder.path().join("us"), &"us".parse().expect("valid"));
    other.make(now()).expect("made");
    let us = std::fs::read_to_string(other.authorities()).expect("there");
    let eu = std::fs::read_to_string(files.authorities()).expect("there");
    for (text, why) in [
        ("", "names no authority"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate"),
        (us.as_str(), "of region us"),
        (&format!("{eu}{us}"), "several regions"),
    ] {
        std::fs::write(files.authorities(), text).expect("written");
        let content = files.content().expect("there");
        let error = files.read(&content).map(drop).expect_err(why).to_string();
        assert!(error.contains(why) && error.contains("eu.pem"), "{error}");
    }
    let (_, stranger) = Authority::make(&"eu".parse().expect("valid"), now()).expect("made");
    std::fs::write(files.authorities(), stranger).expect("written");
    let error = files.read(&files.content().expect("there")).map(drop).expect_err("another's").to_string();
    assert!(error.contains("eu.key") && error.contains("none of the authorities"), "{error}");
}
