//! The embedded server against objects that come in parts, as the SDK's own client and other tools send them.

use std::{net::SocketAddr, path::Path};

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation},
    error::ProvideErrorMetadata,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use base64::{Engine, engine::general_purpose::STANDARD};
use longshore_s3::embedded::{Config, Server};
use md5::{Digest, Md5};

const BUCKET: &str = "main";
const PART_BYTES: usize = 1_000_000;

async fn start(root: &Path) -> (Server, Client) {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { root: root.to_owned(), listen, access_key: "access".into(), secret_key: "secret".into() };
    let server = Server::start(config).await.expect("started");
    let http =
        aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
    let config = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(Credentials::new("access", "secret", None, None, "test"))
        .endpoint_url(server.endpoint())
        .http_client(http)
        .region(Region::new("us-east-1"))
        .force_path_style(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .build();
    let client = Client::from_conf(config);
    client.create_bucket().bucket(BUCKET).send().await.expect("created");
    (server, client)
}

fn part(number: i32, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at as i32).wrapping_mul(number * 7 + 1).to_le_bytes()[1]).collect()
}

fn md5(bytes: &[u8]) -> String {
    STANDARD.encode(Md5::digest(bytes))
}

async fn begin(client: &Client, key: &str) -> String {
    let begun = client.create_multipart_upload().bucket(BUCKET).key(key).send().await.expect("begun");
    begun.upload_id().expect("an id").to_owned()
}

/// The part as completing wants it, or the error's code.
async fn send(
    client: &Client,
    (key, id): (&str, &str),
    number: i32,
    bytes: &[u8],
    sum: &str,
) -> Result<CompletedPart, String> {
    let upload = client.upload_part().bucket(BUCKET).key(key).upload_id(id).part_number(number).content_md5(sum);
    match upload.body(ByteStream::from(bytes.to_vec())).send().await {
        Ok(sent) => Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build()),
        Err(error) => Err(error.code().unwrap_or("no code").to_owned()),
    }
}

async fn complete(client: &Client, (key, id): (&str, &str), parts: Vec<CompletedPart>) -> Result<(), String> {
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let upload = client.complete_multipart_upload().bucket(BUCKET).key(key).upload_id(id).multipart_upload(parts);
    upload.send().await.map(drop).map_err(|error| error.code().unwrap_or("no code").to_owned())
}

async fn get(client: &Client, key: &str) -> Option<Vec<u8>> {
    let found = client.get_object().bucket(BUCKET).key(key).send().await.ok()?;
    Some(found.body.collect().await.expect("whole").to_vec())
}

#[tokio::test]
async fn parts_that_come_in_any_order_are_one_object_once_it_is_complete() {
    let dir = tempfile::tempdir().expect("a folder");
    let (server, client) = start(dir.path()).await;
    let id = begin(&client, "large/object").await;
    let of = ("large/object", &*id);
    let parts = [part(1, PART_BYTES), part(2, PART_BYTES), part(3, 1234)];
    let sent = |number: i32| {
        let bytes = &parts[number as usize - 1];
        let sum = md5(bytes);
        let client = &client;
        async move { send(client, of, number, bytes, &sum).await.expect("stored") }
    };
    let second = sent(2).await;
    // One that came broken does not count, and takes no other's place.
    let broken = part(9, PART_BYTES);
    assert_eq!(send(&client, of, 1, &broken, &md5(b"other")).await.expect_err("broken"), "BadDigest");
    let (third, first) = tokio::join!(sent(3), sent(1));
    assert_eq!(get(&client, "large/object").await, None, "it is not complete");

    assert_eq!(complete(&client, of, Vec::new()).await.expect_err("no part"), "InvalidRequest");
    let gap = vec![first.clone(), third.clone()];
    assert_eq!(complete(&client, of, gap).await.expect_err("a gap"), "InvalidPart");
    complete(&client, of, vec![first, second, third]).await.expect("completed");
    assert!(get(&client, "large/object").await == Some(parts.concat()));
    assert_eq!(complete(&client, of, Vec::new()).await.expect_err("it is complete"), "NoSuchUpload");
    assert_eq!(server.counters().of(BUCKET, "large/").put_bytes, parts.concat().len() as u64);
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_given_up_or_does_not_fit_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let (server, client) = start(dir.path()).await;
    let id = begin(&client, "object").await;
    let bytes = part(1, PART_BYTES);
    send(&client, ("object", &id), 1, &bytes, &md5(&bytes)).await.expect("stored");
    let longer = part(2, PART_BYTES + 1);
    assert_eq!(send(&client, ("object", &id), 2, &longer, &md5(&longer)).await.expect_err("longer"), "InvalidRequest");
    assert_eq!(send(&client, ("other", &id), 2, &bytes, &md5(&bytes)).await.expect_err("another key"), "NoSuchUpload");
    client.abort_multipart_upload().bucket(BUCKET).key("object").upload_id(&id).send().await.expect("given up");
    assert_eq!(send(&client, ("object", &id), 2, &bytes, &md5(&bytes)).await.expect_err("given up"), "NoSuchUpload");
    assert_eq!(get(&client, "object").await, None);
    assert_eq!(std::fs::read_dir(dir.path().join("staging")).expect("readable").count(), 0);
    server.shutdown().await;
}
