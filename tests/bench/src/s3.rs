//! The embedded S3 server and a bucket of it.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Result;
use longshore_s3::{Bucket, BucketConfig, embedded};

/// Both halves of the key, and the bucket's name.
pub const KEY: &str = "benchmark";

pub async fn serve(root: PathBuf) -> Result<embedded::Server> {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = embedded::Config { root, listen, access_key: KEY.into(), secret_key: KEY.into() };
    Ok(embedded::Server::start(config).await?)
}

/// The bucket that most need of a server, which is made if it is not there.
pub async fn bucket(endpoint: &str) -> Result<Bucket> {
    bucket_named(endpoint, KEY).await
}

/// Another one, likewise.
pub async fn bucket_named(endpoint: &str, name: &str) -> Result<Bucket> {
    let config = BucketConfig {
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".into(),
        bucket: name.into(),
        access_key: Some(KEY.into()),
        secret_key: Some(KEY.into()),
        path_style: true,
        ..BucketConfig::default()
    };
    let bucket = Bucket::connect(&config).await?;
    bucket.ensure_exists().await?;
    Ok(bucket)
}
