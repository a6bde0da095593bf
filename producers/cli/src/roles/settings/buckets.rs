//! The buckets among the settings: `[s3]`, and `[region.s3]` where a region's differs.

use std::path::{Path, PathBuf};

use longshore_s3::{BucketConfig, Encryption};
use serde::Deserialize;

use super::{Found, check_endpoint};

/// Stands for the region's name in `s3.regional_bucket`.
pub(super) const REGION_MARK: &str = "{region}";
const BUCKET_CHARS: std::ops::RangeInclusive<usize> = 3..=63;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct S3 {
    /// Without one, AWS.
    endpoint: Option<String>,
    region: String,
    path_style: bool,
    main_bucket: String,
    pub(super) regional_bucket: String,
    prefix: String,
    /// Whether to make buckets that are not there, as for the embedded server.
    pub(crate) create_buckets: bool,
    /// How the services encrypt what they store; by default, as their buckets are set.
    encryption: Option<EncryptionSetting>,
    /// Without one, the service's usual key.
    kms_key: Option<String>,
    access_key: Option<String>,
    secret_key: Option<String>,
    secret_key_file: Option<PathBuf>,
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            path_style: false,
            main_bucket: "longshore-main".to_owned(),
            regional_bucket: format!("longshore-{REGION_MARK}"),
            prefix: String::new(),
            create_buckets: false,
            encryption: None,
            kms_key: None,
            access_key: None,
            secret_key: None,
            secret_key_file: None,
        }
    }
}

/// As S3 calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum EncryptionSetting {
    #[serde(rename = "AES256")]
    Aes256,
    #[serde(rename = "aws:kms")]
    Kms,
}

/// Without keys they come from where AWS's own tools find them.
#[derive(Clone, Copy)]
struct Keys<'a> {
    access_key: Option<&'a String>,
    secret_key: Option<&'a String>,
    secret_key_file: Option<&'a PathBuf>,
}

/// What is not given is as in `[s3]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RegionalS3 {
    endpoint: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    access_key: Option<String>,
    secret_key: Option<String>,
    secret_key_file: Option<PathBuf>,
}

impl S3 {
    fn keys(&self) -> Keys<'_> {
        let (access_key, secret_key) = (self.access_key.as_ref(), self.secret_key.as_ref());
        Keys { access_key, secret_key, secret_key_file: self.secret_key_file.as_ref() }
    }

    pub(super) fn check(&self, found: &mut Found) {
        check_endpoint("s3.endpoint", self.endpoint.as_deref(), found);
        if self.endpoint.is_none() && self.path_style {
            found.add("s3.path_style", "AWS wants it off: give s3.endpoint, if another service is meant");
        }
        check_bucket("s3.main_bucket", &self.main_bucket, found);
        if !self.prefix.is_empty() && !self.prefix.ends_with('/') {
            found.add("s3.prefix", "let it end in '/', or leave it out");
        }
        if self.kms_key.is_some() && self.encryption != Some(EncryptionSetting::Kms) {
            found.add("s3.kms_key", "it is used with s3.encryption = \"aws:kms\" only");
        }
        self.keys().check("s3", found);
    }

    pub(super) fn main(&self) -> anyhow::Result<BucketConfig> {
        let (access_key, secret_key) = self.keys().read()?;
        Ok(BucketConfig {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            bucket: self.main_bucket.clone(),
            access_key,
            secret_key,
            path_style: self.path_style,
            prefix: self.prefix.clone(),
            encryption: self.encryption(),
        })
    }

    fn encryption(&self) -> Encryption {
        match self.encryption {
            None => Encryption::Bucket,
            Some(EncryptionSetting::Aes256) => Encryption::Service,
            Some(EncryptionSetting::Kms) => Encryption::Key(self.kms_key.clone()),
        }
    }
}

impl RegionalS3 {
    /// The bucket of this name.
    pub(super) fn within(&self, s3: &S3, bucket: String) -> anyhow::Result<BucketConfig> {
        let mut config = s3.main()?;
        config.bucket = bucket;
        if self.keys().is_given() {
            (config.access_key, config.secret_key) = self.keys().read()?;
        }
        config.endpoint = self.endpoint.clone().or(config.endpoint);
        config.region = self.region.clone().unwrap_or(config.region);
        config.path_style = self.path_style.unwrap_or(config.path_style);
        Ok(config)
    }

    pub(super) fn check(&self, found: &mut Found) {
        check_endpoint("region.s3.endpoint", self.endpoint.as_deref(), found);
        self.keys().check("region.s3", found);
    }

    fn keys(&self) -> Keys<'_> {
        let (access_key, secret_key) = (self.access_key.as_ref(), self.secret_key.as_ref());
        Keys { access_key, secret_key, secret_key_file: self.secret_key_file.as_ref() }
    }
}

impl Keys<'_> {
    fn is_given(self) -> bool {
        self.access_key.is_some() || self.secret_key.is_some() || self.secret_key_file.is_some()
    }

    fn check(self, table: &str, found: &mut Found) {
        let Self { access_key, secret_key, secret_key_file } = self;
        let has_secret = secret_key.is_some() || secret_key_file.is_some();
        if secret_key.is_some() && secret_key_file.is_some() {
            found.add(&format!("{table}.secret_key"), "give the key or the file that holds it, not both");
        }
        if access_key.is_some() && !has_secret {
            found.add(&format!("{table}.secret_key"), "an access key needs its secret key, or secret_key_file");
        }
        if access_key.is_none() && has_secret {
            found.add(&format!("{table}.access_key"), "a secret key needs its access key");
        }
        if let Err(error) = self.read() {
            found.add(&format!("{table}.secret_key_file"), error.to_string());
        }
    }

    fn read(self) -> anyhow::Result<(Option<String>, Option<String>)> {
        let secret_key = match self.secret_key_file {
            Some(path) => Some(read_key(path)?),
            None => self.secret_key.cloned(),
        };
        Ok((self.access_key.cloned(), secret_key))
    }
}

/// The key that a file holds.
pub(in crate::roles) fn read_key(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| anyhow::anyhow!("{} cannot be read: {error}", path.display()))?;
    anyhow::ensure!(!text.trim().is_empty(), "{} is empty", path.display());
    Ok(text.trim().to_owned())
}

pub(super) fn check_bucket(field: &str, name: &str, found: &mut Found) {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    if !BUCKET_CHARS.contains(&name.len()) || !name.chars().all(is_name) {
        found.add(field, format!("{name:?} is no bucket's name: use 3 to 63 of a-z, 0-9, '.' and '-'"));
    }
}
