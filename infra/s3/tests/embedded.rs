//! The bucket against the embedded server: every operation, and every way in which one must fail.

use std::{net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use longshore_s3::{
    Bucket, BucketConfig, Error, Presigned,
    embedded::{Config, Server},
};

const BYTES_MAX: u64 = 64 * 1024 * 1024;
const TTL: Duration = Duration::from_secs(300);

async fn start(root: &Path) -> Server {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { root: root.to_owned(), listen, access_key: "access".into(), secret_key: "secret".into() };
    Server::start(config).await.expect("started")
}

fn settings(server: &Server) -> BucketConfig {
    BucketConfig {
        endpoint: Some(server.endpoint().to_owned()),
        region: "us-east-1".into(),
        bucket: "main".into(),
        access_key: Some("access".into()),
        secret_key: Some("secret".into()),
        path_style: true,
        ..BucketConfig::default()
    }
}

async fn bucket(server: &Server) -> Bucket {
    let bucket = Bucket::connect(&settings(server)).await.expect("connected");
    bucket.ensure_exists().await.expect("created");
    bucket
}

fn noise(length: usize) -> Bytes {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[tokio::test]
async fn objects_come_and_go() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let bucket = bucket(&server).await;
    bucket.ensure_exists().await.expect("there already");
    let bytes = noise(5_000_000);
    assert_eq!(bucket.head("packs/a").await.expect("asked"), None);
    bucket.put("packs/a", bytes.clone()).await.expect("stored");
    bucket.put("packs/empty", Bytes::new()).await.expect("stored");
    assert_eq!(bucket.head("packs/a").await.expect("asked"), Some(5_000_000));
    assert_eq!(bucket.get("packs/a", BYTES_MAX).await.expect("there"), bytes);
    assert_eq!(bucket.get("packs/empty", 0).await.expect("there"), Bytes::new());
    let mut stream = bucket.get_stream("packs/a").await.expect("there");
    let mut whole = Vec::new();
    while let Some(piece) = stream.next().await.expect("sent") {
        whole.extend_from_slice(&piece);
    }
    assert_eq!((stream.bytes, whole), (5_000_000, bytes.to_vec()));
    let error = bucket.get("packs/a", 4_999_999).await.expect_err("too large");
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    bucket.put("packs/a", Bytes::from_static(b"new")).await.expect("replaced");
    assert_eq!(bucket.get("packs/a", 10).await.expect("there"), "new");
    bucket.delete("packs/a").await.expect("removed");
    bucket.delete("packs/a").await.expect("removed already");
    let error = bucket.get("packs/a", 10).await.expect_err("gone");
    assert!(matches!(&error, Error::NotFound { key, .. } if key == "packs/a"), "{error}");
    let counted = server.counters().of("main", "packs/");
    assert_eq!((counted.puts, counted.put_bytes, counted.gets), (3, 5_000_003, 5));
    server.shutdown().await;
}

#[tokio::test]
async fn a_taken_key_is_not_replaced_and_one_of_many_wins() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let bucket = bucket(&server).await;
    assert!(bucket.put_if_absent("k", Bytes::from_static(b"first")).await.expect("stored"));
    assert!(!bucket.put_if_absent("k", noise(3_000_000)).await.expect("answered"));
    assert_eq!(bucket.get("k", BYTES_MAX).await.expect("there"), "first");
    let writers: Vec<_> = (0..16_u8)
        .map(|number| {
            let bucket = bucket.clone();
            tokio::spawn(async move {
                bucket.put_if_absent("race/k", vec![number; 300_000].into()).await.expect("answered")
            })
        })
        .collect();
    let mut winners = Vec::new();
    for (number, writer) in (0..).zip(writers) {
        if writer.await.expect("ended") {
            winners.push(number);
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(bucket.get("race/k", BYTES_MAX).await.expect("there"), vec![winners[0]; 300_000]);
    server.shutdown().await;
}

#[tokio::test]
async fn odd_keys_and_listings() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let whole = bucket(&server).await;
    let config = BucketConfig { prefix: "team a/".into(), ..settings(&server) };
    let part = Bucket::connect(&config).await.expect("connected");
    let keys =
        ["a b", "a%20b", "a+b", "q?x=1&y", "ä/ö", "tilde~", "p/[1]", "p/(2)", "p/'3'", "p/#4", "p/=5", "p/a:b@c"];
    for key in keys {
        part.put(key, Bytes::copy_from_slice(key.as_bytes())).await.expect(key);
        assert_eq!(part.get(key, 100).await.expect(key), key);
    }
    let mut listed: Vec<_> = part.list("").collect(100).await.expect("listed").into_iter().map(|o| o.key).collect();
    listed.sort_unstable();
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    assert_eq!(listed, sorted);
    assert_eq!(part.list("p/").collect(100).await.expect("listed").len(), 6);
    assert!(whole.list("").collect(100).await.expect("listed").iter().all(|object| object.key.starts_with("team a/")));
    for bad in ["a/../../b", "//", "x/", &"x".repeat(300)] {
        part.put(bad, Bytes::new()).await.expect_err(bad);
    }
    part.put("a b/c", Bytes::new()).await.expect_err("below an object");
    server.shutdown().await;
}

#[tokio::test]
async fn listings_have_pages() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let bucket = bucket(&server).await;
    let packs = dir.path().join("buckets/main/packs");
    std::fs::create_dir_all(&packs).expect("made");
    for number in 0..2345 {
        std::fs::write(packs.join(format!("{number:04}")), b"x").expect("written");
    }
    let mut pages = bucket.list("packs/");
    let mut sizes = Vec::new();
    let mut keys = Vec::new();
    while let Some(page) = pages.next().await.expect("listed") {
        sizes.push(page.len());
        keys.extend(page.into_iter().map(|object| object.key));
    }
    assert_eq!(sizes, [1000, 1000, 345]);
    assert!(keys.is_sorted() && keys.len() == 2345);
    server.shutdown().await;
}

#[tokio::test]
async fn objects_outlive_the_server() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    bucket(&server).await.put("artifacts/x.json", Bytes::from_static(b"{}")).await.expect("stored");
    server.shutdown().await;
    let server = start(dir.path()).await;
    assert_eq!(bucket(&server).await.get("artifacts/x.json", 10).await.expect("there"), "{}");
    server.shutdown().await;
}

async fn send(presigned: &Presigned, body: impl Into<reqwest::Body>) -> reqwest::StatusCode {
    // The workspace's reqwest brings no provider of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    let method = presigned.method.parse().expect("a method");
    let mut request = client.request(method, &presigned.url).body(body);
    for (name, value) in &presigned.headers {
        request = request.header(name, value);
    }
    request.send().await.expect("answered").status()
}

#[tokio::test]
async fn presigned_requests_allow_exactly_what_was_signed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let bucket = bucket(&server).await;
    let put = bucket.presign_put("packs/p", TTL, 5).await.expect("signed");
    assert_eq!(put.method, "PUT");

    let other_key = Presigned { url: put.url.replace("packs/p", "packs/q"), ..put.clone() };
    assert_eq!(send(&other_key, "12345").await, 403, "another key");
    let longer = put.url.replace("X-Amz-Expires=300", "X-Amz-Expires=900");
    assert_ne!(longer, put.url);
    assert_eq!(send(&Presigned { url: longer, ..put.clone() }, "12345").await, 403, "a longer life");
    let get = Presigned { method: "GET".into(), ..put.clone() };
    assert_eq!(send(&get, "12345").await, 403, "another method");
    let mut replacing = put.clone();
    replacing.headers.retain(|(name, _)| name != "if-none-match");
    assert_ne!(replacing, put, "if-none-match is among the headers to send");
    assert_eq!(send(&replacing, "12345").await, 403, "without if-none-match");
    let mut longer = put.clone();
    longer.headers.retain(|(name, _)| name != "content-length");
    assert_eq!(send(&longer, "123456").await, 403, "another length");
    assert_eq!(bucket.head("packs/p").await.expect("asked"), None);

    assert_eq!(send(&put, "12345").await, 200);
    assert_eq!(send(&put, "54321").await, 412, "taken");
    assert_eq!(bucket.get("packs/p", 5).await.expect("there"), "12345");
    let get = bucket.presign_get("packs/p", TTL).await.expect("signed");
    assert_eq!(send(&get, "").await, 200);

    let short = bucket.presign_get("packs/p", Duration::from_secs(1)).await.expect("signed");
    let expired = tokio::time::timeout(Duration::from_secs(10), async {
        while send(&short, "").await != 403 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    expired.await.expect("it expires");
    server.shutdown().await;
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let good = settings(&server);
    let connect = async |config: BucketConfig| Bucket::connect(&config).await.expect("connected");

    let missing = connect(BucketConfig { bucket: "missing".into(), ..good.clone() }).await;
    let error = missing.check_exists().await.expect_err("no such bucket");
    assert!(matches!(&error, Error::MissingBucket { bucket, .. } if bucket == "missing"), "{error}");
    let error = missing.put("k", Bytes::new()).await.expect_err("no such bucket");
    assert!(matches!(error, Error::MissingBucket { .. }), "{error}");

    bucket(&server).await;
    for bad in [
        BucketConfig { secret_key: Some("wrong".into()), ..good.clone() },
        BucketConfig { access_key: Some("who".into()), ..good.clone() },
    ] {
        let error = connect(bad).await.put("k", Bytes::new()).await.expect_err("denied");
        assert!(matches!(error, Error::AccessDenied { .. }), "{error}");
    }
    for bad in [
        BucketConfig { endpoint: Some("localhost:1".into()), ..good.clone() },
        BucketConfig { secret_key: None, ..good.clone() },
        BucketConfig { prefix: "x".into(), ..good.clone() },
        BucketConfig { region: String::new(), ..good.clone() },
    ] {
        let error = Bucket::connect(&bad).await.expect_err("unusable");
        assert!(matches!(error, Error::Config { .. }), "{error}");
    }
    server.shutdown().await;
    let error = connect(good).await.get("k", 1).await.expect_err("stopped");
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_transient(), "{error}");
}

#[tokio::test]
async fn copies_are_the_services_own_work() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let main = bucket(&server).await;
    let other = |change: fn(&mut BucketConfig)| {
        let mut config = BucketConfig { bucket: "other".into(), prefix: "odd prefix+/".into(), ..settings(&server) };
        change(&mut config);
        async move { Bucket::connect(&config).await.expect("connected") }
    };
    let own = other(|_| {}).await;
    own.ensure_exists().await.expect("created");
    let bytes = noise(1_000_000);
    main.put("packs/a b+c", bytes.clone()).await.expect("stored");
    assert!(own.may_copy_from(&main) && main.may_copy_from(&own));
    own.copy_from(&main, "packs/a b+c", "packs/d").await.expect("copied");
    own.copy_from(&own, "packs/d", "packs/e f").await.expect("copied");
    assert_eq!(own.get("packs/e f", BYTES_MAX).await.expect("there"), bytes);
    let traffic = server.counters().of("main", "packs/");
    assert_eq!((traffic.gets, traffic.get_bytes), (1, 1_000_000), "a copy leaves its bucket once");
    match own.copy_from(&main, "packs/none", "packs/x").await {
        Err(Error::NotFound { bucket, key }) => assert_eq!((bucket.as_str(), key.as_str()), ("main", "packs/none")),
        other => panic!("{other:?}"),
    }
    let elsewhere = other(|config| config.endpoint = Some("http://127.0.0.1:1".into())).await;
    let as_other = other(|config| config.access_key = Some("someone".into())).await;
    assert!(!elsewhere.may_copy_from(&main) && !as_other.may_copy_from(&main));
    assert!(as_other.copy_from(&main, "packs/a b+c", "packs/x").await.expect_err("unknown keys").is_refusal());
}
