//! Who is served, and what.

use longshore_identity::{Tls, Trust};
use longshore_schemas::PackId;
use longshore_swarm::PackStore;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{ABROAD, EU, MAGIC, PATIENCE, as_peer, ask, content, honest, node, request, serve, wish};

#[tokio::test]
async fn clients_without_manners_keep_nobody_from_being_served() {
    let bytes = content();
    let (_folder, address) = honest(&bytes).await;
    let (mut rude, mut mute) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let mut noise = TcpStream::connect(address).await.expect("connects");
        // It may be closed in the middle of it.
        let _ = noise.write_all(&[0xA5; 64 * 1024]).await;
        mute.push(noise);
        let mut half = as_peer(address).await;
        half.write_all(&[&MAGIC[..], &[1; 35]].concat()).await.expect("written");
        half.flush().await.expect("written");
        rude.push(half);
    }
    // Asks for far more than it reads.
    let mut greedy = as_peer(address).await;
    let asked = [&MAGIC[..], &wish(PackId::of(&bytes), 0).repeat(1_000)].concat();
    greedy.write_all(&asked).await.expect("written");
    greedy.flush().await.expect("written");
    let (status, served) = timeout(PATIENCE, ask(address, PackId::of(&bytes))).await.expect("in time");
    assert!(status == 0 && served == bytes);
}

/// Whoever is no node of this region, or is one no more, gets nothing.
#[tokio::test]
async fn only_nodes_of_the_region_are_served() {
    let bytes = content();
    let (folder, tls) = (tempfile::tempdir().expect("a folder"), EU.node("good"));
    std::fs::write(folder.path().join(PackId::of(&bytes).to_string()), &bytes).expect("written");
    let address = serve(PackStore::open(folder.path()).expect("opens"), tls.clone()).await;
    let served = async |client: &Tls| {
        let tcp = TcpStream::connect(address).await.expect("connects");
        let mut stream = client.connect_to_node(tcp, &node("good")).await?.stream;
        request(&mut stream, PackId::of(&bytes)).await
    };
    assert!(served(&EU.node("me")).await.expect("served").1 == bytes);
    served(&EU.stranger()).await.expect_err("it has no certificate");
    // It believes the server, and shows what another region certified.
    let foreign = Tls::new(Some(ABROAD.credentials("me")), EU.trust.clone()).expect("TLS");
    served(&foreign).await.expect_err("it is of another region");

    let mut kept = as_peer(address).await;
    assert!(request(&mut kept, PackId::of(&bytes)).await.expect("served").1 == bytes);
    let revoked = Trust::new(EU.trust.pem(), [node("me")].into()).expect("valid");
    tls.set(tls.credentials(), revoked).expect("valid");
    served(&EU.node("me")).await.expect_err("it is revoked");
    // A connection that there was ends as well.
    kept.write_all(&wish(PackId::of(&bytes), 0)).await.expect("written");
    kept.flush().await.expect("written");
    assert!(kept.read_u8().await.is_err(), "it is revoked");
    assert!(served(&EU.node("other")).await.expect("served").1 == bytes);
}

#[tokio::test]
async fn a_pack_that_was_damaged_on_disk_is_noticed_when_it_is_served() {
    let bytes = content();
    let (folder, address) = honest(&bytes).await;
    let (pack, mut damaged) = (PackId::of(&bytes), bytes.clone());
    damaged[600_000] ^= 1;
    // Served before or not: nobody gets a wrong byte.
    for was_served in [false, true] {
        if was_served {
            std::fs::write(folder.path().join(pack.to_string()), &bytes).expect("written");
            let address = serve(PackStore::open(folder.path()).expect("opens"), EU.node("good")).await;
            assert!(ask(address, pack).await == (0, bytes.clone()));
            std::fs::write(folder.path().join(pack.to_string()), &damaged).expect("written");
            request(&mut as_peer(address).await, pack).await.expect_err("it ends before the wrong block");
            assert_eq!(ask(address, pack).await, (1, vec![]), "it is forgotten");
        } else {
            std::fs::write(folder.path().join(pack.to_string()), &damaged).expect("written");
            assert_eq!(ask(address, pack).await, (1, vec![]));
        }
        assert!(!folder.path().join(pack.to_string()).exists(), "it is removed");
    }
}

#[tokio::test]
async fn nothing_is_served_before_it_is_whole_and_true() {
    let (bytes, folder) = (content(), tempfile::tempdir().expect("a folder"));
    let store = PackStore::open(folder.path()).expect("opens");
    let address = serve(store.clone(), EU.node("good")).await;
    let pack = PackId::of(&bytes);
    let missing = (1, vec![]);
    let mut incoming = store.incoming(pack).expect("space");
    incoming.write(&bytes[..500_000]).await.expect("space");
    assert_eq!(ask(address, pack).await, missing, "half of it");
    let mut lie = store.incoming(pack).expect("space");
    lie.write(&vec![7; bytes.len()]).await.expect("space");
    assert!(!lie.admit().await.expect("space"));
    assert_eq!(ask(address, pack).await, missing, "a lie");
    incoming.write(&bytes[500_000..]).await.expect("space");
    assert!(incoming.admit().await.expect("space"));
    assert!(ask(address, pack).await == (0, bytes));
    store.forget(&pack).expect("removed");
    assert_eq!(ask(address, pack).await, missing, "forgotten");
}
