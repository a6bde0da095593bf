//! The embedded S3 server with the main bucket and one for each region.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use anyhow::Context as _;
use longshore_s3::{
    Bucket, BucketConfig,
    embedded::{Config, Counters, Server},
};
use longshore_schemas::RegionName;

use crate::roles::secrets::S3_ACCESS_KEY;

const MAIN: &str = "longshore-main";

pub(super) struct Buckets {
    server: Server,
    pub(super) main: Bucket,
    regional: BTreeMap<RegionName, Bucket>,
}

impl Buckets {
    pub(super) async fn start(
        data: &Path,
        listen: SocketAddr,
        regions: &[RegionName],
        secret_key: &str,
    ) -> anyhow::Result<Self> {
        let root = data.join("s3");
        let (access_key, secret_key) = (S3_ACCESS_KEY.to_owned(), secret_key.to_owned());
        let config = Config { root, listen, access_key: access_key.clone(), secret_key: secret_key.clone() };
        let server = Server::start(config).await?;
        let connect = async |name: String| -> anyhow::Result<Bucket> {
            let config = BucketConfig {
                endpoint: Some(server.endpoint().to_owned()),
                region: "embedded".to_owned(),
                bucket: name,
                access_key: Some(access_key.clone()),
                secret_key: Some(secret_key.clone()),
                path_style: true,
                ..BucketConfig::default()
            };
            let bucket = Bucket::connect(&config).await?;
            bucket.ensure_exists().await?;
            Ok(bucket)
        };
        let main = connect(MAIN.to_owned()).await?;
        let mut regional = BTreeMap::new();
        for region in regions {
            regional.insert(region.clone(), connect(format!("longshore-{region}")).await?);
        }
        Ok(Self { server, main, regional })
    }

    pub(super) fn of(&self, region: &RegionName) -> anyhow::Result<&Bucket> {
        self.regional.get(region).with_context(|| format!("region {region} has no bucket"))
    }

    /// Every bucket with its name.
    pub(super) fn all(&self) -> Vec<(String, Bucket)> {
        let regional = self.regional.iter().map(|(region, bucket)| (region.to_string(), bucket.clone()));
        std::iter::once(("main".to_owned(), self.main.clone())).chain(regional).collect()
    }

    pub(super) fn address(&self) -> anyhow::Result<SocketAddr> {
        let endpoint = self.server.endpoint();
        endpoint.trim_start_matches("http://").parse().with_context(|| format!("the S3 server's address {endpoint}"))
    }

    pub(super) fn endpoint(&self) -> &str {
        self.server.endpoint()
    }

    pub(super) fn counters(&self) -> Counters {
        self.server.counters().clone()
    }

    pub(super) async fn shutdown(self) {
        self.server.shutdown().await;
    }
}
