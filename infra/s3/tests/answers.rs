//! What services answer when something is wrong becomes one sentence that says what, where and what to do; by a proxy that answers so.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use longshore_proxy::{Call, Fault, Link, Proxy};
use longshore_s3::{
    Bucket, BucketConfig, Encryption, Error,
    embedded::{Config, Server},
};

const TTL: Duration = Duration::from_secs(60);

fn key() -> String {
    "longshore-test".to_owned()
}

async fn server() -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = ([127, 0, 0, 1], 0).into();
    let config = Config { root: folder.path().to_owned(), listen, access_key: key(), secret_key: key() };
    (folder, Server::start(config).await.expect("starts"))
}

async fn bucket(endpoint: &str) -> Bucket {
    let config = BucketConfig {
        endpoint: Some(endpoint.to_owned()),
        region: "eu-test-1".to_owned(),
        bucket: "main".to_owned(),
        access_key: Some(key()),
        secret_key: Some(key()),
        path_style: true,
        ..BucketConfig::default()
    };
    Bucket::connect(&config).await.expect("a bucket")
}

/// Status, code, and what the sentence says: of a call that has a body, and of a look whether the bucket is there.
const TABLE: [(u16, &str, &[&str]); 14] = [
    (404, "NoSuchBucket", &["\"main\"", "does not exist at http://", "create it"]),
    (403, "AccessDenied", &["\"main\"", "denied (AccessDenied)", "bucket's policy", "s3.access_key"]),
    (403, "InvalidAccessKeyId", &["\"main\"", "InvalidAccessKeyId", "s3.access_key and s3.secret_key"]),
    (403, "SignatureDoesNotMatch", &["\"main\"", "SignatureDoesNotMatch", "s3.secret_key"]),
    (400, "ExpiredToken", &["\"main\"", "ExpiredToken", "have expired: renew them"]),
    (301, "PermanentRedirect", &["\"main\"", "not in region \"eu-test-1\"", "but in \"elsewhere-1\"", "s3.region"]),
    (400, "AuthorizationHeaderMalformed", &["\"main\"", "not in region", "correct s3.region"]),
    (403, "RequestTimeTooSkewed", &["clock is wrong", "NTP"]),
    (403, "QuotaExceeded", &["\"main\"", "QuotaExceeded", "quota is used up: raise it"]),
    (507, "InsufficientStorage", &["no space left", "enlarge"]),
    (503, "SlowDown", &["\"main\"", "SlowDown", "slow down", "raise the service's limits"]),
    (400, "KMS.DisabledException", &["\"main\"", "KMS.DisabledException", "s3.kms_key"]),
    (500, "InternalError", &["InternalError", "has a fault", "look at the service"]),
    (400, "NewAtThisService", &["NewAtThisService", "as planned"]),
];

#[tokio::test]
async fn each_answer_is_one_sentence_that_says_what_to_do() {
    let (_folder, server) = server().await;
    // At once: what passes is tried again for a while.
    join_all(TABLE.into_iter().map(|(status, code, says)| {
        let endpoint = server.endpoint().to_owned();
        async move {
            let plan = move |_: &Call| Fault::Answer(status, code);
            let proxy = Proxy::start(&endpoint, Link::default(), plan).await.expect("a proxy");
            let bucket = bucket(proxy.endpoint()).await;
            let (put, get, there) = tokio::join!(
                bucket.put("packs/one", Bytes::from_static(b"one")),
                bucket.get("packs/one", 10),
                bucket.check_exists(),
            );
            for (what, error) in [("put", put.err()), ("get", get.err()), ("at start", there.err())] {
                let error = error.unwrap_or_else(|| panic!("{what} {status} {code} was no error"));
                let sentence = error.to_string();
                for say in says {
                    assert!(sentence.contains(say), "{what} {status} {code}: {sentence:?} says {say:?}");
                }
                assert!(!sentence.contains('\n'), "{sentence:?}");
                let passes = matches!(code, "SlowDown" | "InternalError");
                assert_eq!(error.is_transient(), passes, "{what} {code}: {error:?}");
            }
        }
    }))
    .await;
    server.shutdown().await;
}

#[tokio::test]
async fn what_passes_is_tried_again_and_an_endpoint_that_is_away_is_named() {
    let (_folder, server) = server().await;
    bucket(server.endpoint()).await.ensure_exists().await.expect("made");
    let plan = |call: &Call| match call.number {
        0 => Fault::Answer(503, "SlowDown"),
        1 => Fault::Answer(500, "InternalError"),
        _ => Fault::None,
    };
    let proxy = Proxy::start(server.endpoint(), Link::default(), plan).await.expect("a proxy");
    bucket(proxy.endpoint()).await.put("packs/one", Bytes::from_static(b"one")).await.expect("at the third time");
    let endpoint =
        format!("http://{}", std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("free"));
    let error = bucket(&endpoint).await.get("packs/one", 10).await.expect_err("nobody is there");
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&endpoint) && error.is_transient(), "{error}");
    server.shutdown().await;
}

#[tokio::test]
async fn encryption_is_asked_for_where_it_is_set() {
    let config = |encryption| BucketConfig {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        region: "eu-test-1".to_owned(),
        bucket: "main".to_owned(),
        access_key: Some("key".to_owned()),
        secret_key: Some("secret".to_owned()),
        encryption,
        ..BucketConfig::default()
    };
    let table: [(Encryption, &[(&str, &str)]); 4] = [
        (Encryption::Bucket, &[]),
        (Encryption::Service, &[("x-amz-server-side-encryption", "AES256")]),
        (Encryption::Key(None), &[("x-amz-server-side-encryption", "aws:kms")]),
        (
            Encryption::Key(Some("key-1".to_owned())),
            &[("x-amz-server-side-encryption", "aws:kms"), ("x-amz-server-side-encryption-aws-kms-key-id", "key-1")],
        ),
    ];
    for (encryption, expected) in table {
        let bucket = Bucket::connect(&config(encryption.clone())).await.expect("a bucket");
        let put = bucket.presign_put("packs/one", TTL, 3).await.expect("signed");
        let asked: Vec<(&str, &str)> = put
            .headers
            .iter()
            .filter(|(name, _)| name.starts_with("x-amz-server-side"))
            .map(|(name, value)| (&**name, &**value))
            .collect();
        let mut asked = asked;
        asked.sort_unstable();
        assert_eq!(asked, expected, "{encryption:?}");
    }
}
