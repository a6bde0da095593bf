//! What an operator may set for `longshore control` and `longshore region`: defaults → file → environment → `--set`.
//!
//! ```text
//! data = "/var/lib/longshore"            # a folder of this process alone
//! secrets = "/etc/longshore/secrets"     # what `longshore secrets` made: the same for all of an installation
//! regions = ["eu", "us", "ap"]           # every region; the same for all, as is
//! shards_per_region = 4
//!
//! [kafka]                                # brokers, prefix, replication, client_id, manage_topics, properties = { … }
//! [schema_registry]                      # url, username, password: where schemas are registered, too
//! [s3]                                   # endpoint, region, path_style, main_bucket, regional_bucket, encryption, kms_key, keys
//! [api]                                  # listen, allow_file_repositories
//! [region]                               # name, listen, metrics_listen, bucket, copies_by_service; [region.s3] where it differs from [s3]
//! [worker]                               # silence, beat, confirm
//! [snapshots]                            # interval, facts, keep
//! [provenance]                           # key_file, or key: what control nodes sign provenance with
//! [goals]                                # key_file, or key: what control nodes sign goals with
//! [retention]                            # keep_last, keep_for, rules, grace, announced_for, interval, deletes_per_second
//! [limits]                               # queue.jobs = 5000, as --limit
//! ```
//!
//! Each key is a variable too: `s3.endpoint` is `LONGSHORE_S3_ENDPOINT`. One file serves all roles. Everything is checked before
//! anything starts, and every mistake is told, not only the first: see [`Settings::check`].

mod buckets;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use longshore_log::kafka;
use longshore_s3::BucketConfig;
use longshore_schemas::{RegionName, topics};
use longshore_service::{
    config::{self, Sources},
    limits::{self, Limit},
};
use serde::{Deserialize, Deserializer};

use super::{
    identity,
    leases::Leases,
    retention::{self, RetentionSettings},
    secrets::{self, Secrets},
    signing::{self, GOALS, KeySource, PROVENANCE},
    snapshots::{self, Snapshots},
};
use crate::{args::RoleArgs, error::Error};
use buckets::{REGION_MARK, RegionalS3, check_bucket};
pub(super) use buckets::{S3, read_key};

const KEYS: &[&str] = &[
    "data",
    "secrets",
    "regions",
    "shards_per_region",
    "kafka.brokers",
    "kafka.prefix",
    "kafka.replication",
    "kafka.client_id",
    "kafka.manage_topics",
    "kafka.properties",
    "schema_registry.url",
    "schema_registry.username",
    "schema_registry.password",
    "s3.endpoint",
    "s3.region",
    "s3.path_style",
    "s3.main_bucket",
    "s3.regional_bucket",
    "s3.prefix",
    "s3.create_buckets",
    "s3.encryption",
    "s3.kms_key",
    "s3.access_key",
    "s3.secret_key",
    "s3.secret_key_file",
    "api.listen",
    "api.allow_file_repositories",
    "region.name",
    "region.listen",
    "region.metrics_listen",
    "region.bucket",
    "region.copies_by_service",
    "region.s3.endpoint",
    "region.s3.region",
    "region.s3.path_style",
    "region.s3.access_key",
    "region.s3.secret_key",
    "region.s3.secret_key_file",
    "worker.silence",
    "worker.beat",
    "worker.confirm",
    "limits",
];

/// The keys of sections that `longshore up` has as well.
pub(crate) fn shared_keys() -> impl Iterator<Item = &'static str> {
    snapshots::KEYS.into_iter().chain(signing::KEYS).chain(retention::KEYS)
}

const SHARDS_MAX: u32 = 1_024;

/// The roles that this program's settings are for, and those that `longshore config check` knows besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Control,
    Region,
    Worker,
    Node,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(crate) data: PathBuf,
    /// By default, in the data folder.
    secrets: Option<PathBuf>,
    #[serde(deserialize_with = "names")]
    pub(crate) regions: Vec<RegionName>,
    pub(crate) shards_per_region: u32,
    pub(crate) kafka: Kafka,
    schema_registry: SchemaRegistry,
    pub(crate) s3: S3,
    pub(crate) api: ApiSettings,
    pub(crate) region: RegionSettings,
    pub(crate) worker: Leases,
    pub(crate) snapshots: Snapshots,
    pub(crate) provenance: KeySource,
    pub(crate) goals: KeySource,
    pub(crate) retention: RetentionSettings,
    limits: BTreeMap<String, LimitValue>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data: ".longshore".into(),
            secrets: None,
            regions: Vec::new(),
            shards_per_region: 4,
            kafka: Kafka::default(),
            schema_registry: SchemaRegistry::default(),
            s3: S3::default(),
            api: ApiSettings::default(),
            region: RegionSettings::default(),
            worker: Leases::default(),
            snapshots: Snapshots::default(),
            provenance: KeySource::default(),
            goals: KeySource::default(),
            retention: RetentionSettings::default(),
            limits: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Kafka {
    brokers: String,
    prefix: String,
    replication: u16,
    /// By default, the role and, of a region, its name.
    client_id: Option<String>,
    /// By default, control nodes create topics and check their settings, and regions wait for them.
    manage_topics: Option<bool>,
    properties: BTreeMap<String, Scalar>,
}

/// A registry of the installation's own, where there is one.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SchemaRegistry {
    url: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Default for Kafka {
    fn default() -> Self {
        let (brokers, client_id, manage_topics, properties) = Default::default();
        Self { brokers, prefix: "longshore.".to_owned(), replication: 3, client_id, manage_topics, properties }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ApiSettings {
    pub(crate) listen: SocketAddr,
    /// Whether builds may come from folders of the machines: only where API and workers share them.
    pub(crate) allow_file_repositories: bool,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 7070).into(), allow_file_repositories: false }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RegionSettings {
    name: Option<RegionName>,
    pub(crate) listen: SocketAddr,
    pub(crate) metrics_listen: Option<SocketAddr>,
    bucket: Option<String>,
    /// Whether an S3 service that has both buckets is asked to copy by itself, where it can.
    pub(crate) copies_by_service: bool,
    s3: RegionalS3,
}

impl Default for RegionSettings {
    fn default() -> Self {
        let (name, metrics_listen, bucket, s3) = Default::default();
        let listen = ([127, 0, 0, 1], 7171).into();
        Self { name, listen, metrics_listen, bucket, copies_by_service: true, s3 }
    }
}

/// `true`, `7` and `"text"`: librdkafka takes all of them as text.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a text, a number or true or false")]
enum Scalar {
    Bool(bool),
    Number(i64),
    Text(String),
}

impl Scalar {
    fn text(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Text(value) => value.clone(),
        }
    }
}

/// TOML reads `queue.jobs = 5` as a table within a table.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a whole number")]
enum LimitValue {
    Number(i64),
    Within(BTreeMap<String, LimitValue>),
}

/// `["eu", "us"]`, or `eu,us` as flags and variables have it.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RegionName>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "names of regions, such as [\"eu\", \"us\"]")]
    enum Names {
        List(Vec<String>),
        Text(String),
    }
    let names = match Names::deserialize(deserializer)? {
        Names::List(names) => names,
        Names::Text(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
    };
    names.iter().map(|name| name.parse().map_err(serde::de::Error::custom)).collect()
}

/// Something that is wrong with the settings, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Mistake {
    /// Such as `kafka.brokers`; empty if the text names where it is.
    pub(crate) field: String,
    pub(crate) what: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.field.is_empty() { f.write_str(&self.what) } else { write!(f, "{}: {}", self.field, self.what) }
    }
}

/// Settings that were checked for a role, and what they refer to.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) settings: Settings,
    pub(crate) limits: limits::Settings,
}

/// One error of all of them.
fn all(mistakes: &[Mistake]) -> Error {
    let lines: Vec<_> = mistakes.iter().map(Mistake::to_string).collect();
    Error::Usage(lines.join("\nerror: "))
}

impl Settings {
    /// Reads and checks, and says all that is wrong at once.
    pub(crate) fn load(args: &RoleArgs, data: &Path, role: Role, known: &[&'static Limit]) -> Result<Checked, Error> {
        Self::examine(args, data, role, known).map_err(|mistakes| all(&mistakes))
    }

    /// The log as one uses it who only reads it; nothing else is looked at.
    pub(crate) fn load_log(config: Option<&Path>, set: &[String]) -> Result<kafka::Config, Error> {
        let settings =
            Self::read(config, set, Path::new(crate::args::DATA_DEFAULT)).map_err(|mistakes| all(&mistakes))?;
        let mut log = settings.log(Role::Control);
        let found = log.mistakes().into_iter().map(|kafka::Mistake { field, what }| Mistake { field, what });
        let found: Vec<_> = found.collect();
        log.manage_topics = false;
        if found.is_empty() { Ok(log) } else { Err(all(&found)) }
    }

    /// As [`Settings::load`], with the mistakes as a list.
    pub(crate) fn examine(
        args: &RoleArgs,
        data: &Path,
        role: Role,
        known: &[&'static Limit],
    ) -> Result<Checked, Vec<Mistake>> {
        let settings = Self::read(args.config.as_deref(), &args.set, data)?;
        let mut mistakes = settings.check(role);
        let limits = settings.limits(&args.limits, known);
        mistakes.extend(limits.as_ref().err().cloned());
        match limits {
            Ok(limits) if mistakes.is_empty() => Ok(Checked { settings, limits }),
            _ => Err(mistakes),
        }
    }

    fn read(config: Option<&Path>, given: &[String], data: &Path) -> Result<Self, Vec<Mistake>> {
        let elsewhere = |what: String| Mistake { field: String::new(), what };
        let mut set = Vec::new();
        let keys: Vec<_> = KEYS.iter().copied().chain(shared_keys()).collect();
        for text in given {
            let pair = text.split_once('=');
            match pair.and_then(|(name, value)| Some((*keys.iter().find(|key| **key == name)?, value))) {
                Some((key, value)) => set.push((key, value.to_owned())),
                None => {
                    let what = format!("--set {text}: write KEY=VALUE; the keys are {}", keys.join(", "));
                    return Err(vec![elsewhere(what)]);
                }
            }
        }
        // The global flag is for all commands, so it comes with a default of its own.
        if data != Path::new(crate::args::DATA_DEFAULT) {
            set.push(("data", data.display().to_string()));
        }
        let sources = Sources { file: config.map(Path::to_owned), keys, flags: Vec::new(), set };
        config::load_all(&sources)
            .map_err(|mistakes| mistakes.iter().map(|mistake| elsewhere(mistake.to_string())).collect())
    }

    fn limits(&self, flags: &[String], known: &[&'static Limit]) -> Result<limits::Settings, Mistake> {
        let mut texts = Vec::new();
        flatten("", &self.limits, &mut texts);
        // Flags come last and win.
        texts.extend(flags.iter().cloned());
        limits::Settings::read(&texts, known)
            .map_err(|error| Mistake { field: "limits".to_owned(), what: error.to_string() })
    }

    /// All that is wrong for this role, without connecting anywhere.
    pub(crate) fn check(&self, role: Role) -> Vec<Mistake> {
        let mut found = Found::default();
        self.check_regions(role, &mut found);
        for mistake in self.log(role).mistakes() {
            found.add(&mistake.field, mistake.what);
        }
        self.s3.check(&mut found);
        self.schema_registry.check(&mut found);
        if let Err(what) = self.retention.check() {
            found.add("retention", what);
        }
        match role {
            Role::Control => {
                if let Err(what) = self.worker.check() {
                    found.add("worker", what);
                }
                if let Err(what) = self.snapshots.check() {
                    found.add("snapshots", what);
                }
                for (source, signed) in [(&self.provenance, &PROVENANCE), (&self.goals, &GOALS)] {
                    if let Err(error) = source.key(signed, &self.secrets()) {
                        found.add(signed.section, error.to_string());
                    }
                }
            }
            Role::Region => {
                self.check_region(&mut found);
                if let Err(error) = signing::trusted(&GOALS, &self.secrets()) {
                    found.add(GOALS.section, error.to_string());
                }
            }
            Role::Worker | Role::Node => {}
        }
        if let Err(error) = self.check_secrets(role) {
            found.add(
                "secrets",
                format!(
                    "{error:#}; make the folder with `longshore secrets DIR --regions …`, and give processes copies"
                ),
            );
        }
        if self.data.exists() && !self.data.is_dir() {
            found.add("data", format!("{} is not a folder: name one of this process alone", self.data.display()));
        }
        found.0
    }

    fn check_secrets(&self, role: Role) -> anyhow::Result<()> {
        let folder = self.secrets();
        if role == Role::Region {
            secrets::tokens(&folder)?;
        }
        match (role, &self.region.name) {
            (Role::Region, Some(name)) if self.regions.contains(name) => {
                let authority = identity::authority(&folder, name);
                authority.read(&authority.content()?)?;
                secrets::region_keys(&folder, name).map(drop)
            }
            (Role::Control, _) => {
                Secrets::load(&folder)?;
                secrets::request_keys(&folder, &self.regions).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn check_regions(&self, role: Role, found: &mut Found) {
        if self.regions.is_empty() {
            let role = if role == Role::Region { ", not only this one" } else { "" };
            found.add("regions", format!("name every region of the installation{role}, such as [\"eu\", \"us\"]"));
        }
        let distinct: BTreeSet<_> = self.regions.iter().collect();
        if distinct.len() < self.regions.len() {
            found.add("regions", "a region is named twice");
        }
        if !(1..=SHARDS_MAX).contains(&self.shards_per_region) {
            found.add("shards_per_region", format!("use 1 to {SHARDS_MAX}, and never change it"));
        }
        if self.regions.len() > 1 && self.region.bucket.is_none() && !self.s3.regional_bucket.contains(REGION_MARK) {
            let what = format!("it must contain {REGION_MARK}, or the regions would share one bucket");
            found.add("s3.regional_bucket", what);
        }
    }

    fn check_region(&self, found: &mut Found) {
        match &self.region.name {
            None => found.add("region.name", "say which of the regions this process is of"),
            Some(name) if !self.regions.is_empty() && !self.regions.contains(name) => {
                let known: Vec<_> = self.regions.iter().map(RegionName::as_str).collect();
                found.add("region.name", format!("{name} is not in regions, which are {}", known.join(", ")));
            }
            Some(name) => check_bucket("s3.regional_bucket", &self.regional_bucket(name), found),
        }
        self.region.s3.check(found);
    }

    pub(crate) fn secrets(&self) -> PathBuf {
        self.secrets.clone().unwrap_or_else(|| self.data.join("secrets"))
    }

    /// Of a region's settings that were checked.
    pub(crate) fn region_name(&self) -> anyhow::Result<&RegionName> {
        self.region.name.as_ref().ok_or_else(|| anyhow::anyhow!("region.name: say which region this is"))
    }

    /// What topics begin with on the brokers.
    pub(crate) fn topic_prefix(&self) -> &str {
        &self.kafka.prefix
    }

    /// Where schemas are registered, if anywhere.
    pub(crate) fn schema_registry(&self) -> Option<longshore_registry::Config> {
        let SchemaRegistry { url, username, password } = self.schema_registry.clone();
        let topic_prefix = self.kafka.prefix.clone();
        Some(longshore_registry::Config { url: url?, login: username.zip(password), topic_prefix })
    }

    /// The log as this role uses it.
    pub(crate) fn log(&self, role: Role) -> kafka::Config {
        let Kafka { brokers, prefix, replication, client_id, manage_topics, properties } = &self.kafka;
        kafka::Config {
            prefix: prefix.clone(),
            client_id: client_id.clone().unwrap_or_else(|| {
                let region = self.region.name.as_ref().filter(|_| role == Role::Region);
                region.map_or("longshore-control".to_owned(), |region| format!("longshore-region-{region}"))
            }),
            properties: properties.iter().map(|(key, value)| (key.clone(), value.text())).collect(),
            manage_topics: manage_topics.unwrap_or(role == Role::Control),
            replication: *replication,
            ..kafka::Config::new(brokers, topics::ALL)
        }
    }

    pub(crate) fn main_bucket(&self) -> anyhow::Result<BucketConfig> {
        self.s3.main()
    }

    /// The bucket of the region that this process is of.
    pub(crate) fn own_bucket(&self) -> anyhow::Result<BucketConfig> {
        self.region.s3.within(&self.s3, self.regional_bucket(self.region_name()?))
    }

    fn regional_bucket(&self, region: &RegionName) -> String {
        let named = self.region.bucket.clone();
        named.unwrap_or_else(|| self.s3.regional_bucket.replace(REGION_MARK, region.as_str()))
    }
}

#[derive(Default)]
struct Found(Vec<Mistake>);

impl Found {
    fn add(&mut self, field: &str, what: impl Into<String>) {
        self.0.push(Mistake { field: field.to_owned(), what: what.into() });
    }
}

impl SchemaRegistry {
    fn check(&self, found: &mut Found) {
        check_endpoint("schema_registry.url", self.url.as_deref(), found);
        let Self { url, username, password } = self;
        if url.is_none() && (username.is_some() || password.is_some()) {
            found.add("schema_registry.url", "say where the registry is, or leave username and password out");
        }
        if username.is_some() != password.is_some() {
            found.add("schema_registry.username", "give username and password, or neither");
        }
    }
}

fn check_endpoint(field: &str, endpoint: Option<&str>, found: &mut Found) {
    let is_url = |url: &str| {
        let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        host.is_some_and(|host| !host.is_empty() && !host.contains(char::is_whitespace))
    };
    if let Some(endpoint) = endpoint.filter(|endpoint| !is_url(endpoint)) {
        found.add(field, format!("{endpoint:?} is no URL: write it as https://HOST or http://HOST:PORT"));
    }
}

fn flatten(prefix: &str, limits: &BTreeMap<String, LimitValue>, texts: &mut Vec<String>) {
    for (key, value) in limits {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            LimitValue::Number(number) => texts.push(format!("{name}={number}")),
            LimitValue::Within(inner) => flatten(&name, inner, texts),
        }
    }
}

#[cfg(test)]
mod tests {
    use longshore_service::telemetry::Format;

    use super::*;
    use crate::args::LogArgs;

    const GOOD: &str = r#"
        regions = "eu,us"
        [kafka]
        brokers = "one:9092,two:9092"
        properties = { "security.protocol" = "SASL_SSL", "socket.keepalive.enable" = true }
        [s3]
        endpoint = "http://s3:9000"
        path_style = true
        access_key = "a"
        secret_key = "123"
        [region]
        name = "eu"
        [limits]
        queue.jobs = 7
    "#;

    struct Given {
        folder: tempfile::TempDir,
    }

    impl Given {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let regions = ["eu", "us"].map(|name| name.parse().expect("a region"));
            Secrets::make(&folder.path().join("secrets"), &folder.path().join("tokens"), &regions).expect("made");
            Self { folder }
        }

        fn examine(&self, file: &str, set: &[&str], role: Role) -> Result<Checked, String> {
            let path = self.folder.path().join("longshore.toml");
            std::fs::write(&path, file).expect("written");
            let set = set.iter().map(|text| (*text).to_owned()).collect();
            let log = LogArgs { log_format: Format::Text };
            let args = RoleArgs { config: Some(path), set, limits: Vec::new(), log };
            let examined = Settings::examine(&args, self.folder.path(), role, &crate::up::all_limits());
            examined.map_err(|mistakes| mistakes.iter().map(|mistake| format!("{mistake}\n")).collect())
        }
    }

    #[test]
    fn one_file_serves_both_roles() {
        let given = Given::new();
        for role in [Role::Control, Role::Region] {
            let Checked { settings, limits } = given.examine(GOOD, &["kafka.replication=1"], role).expect("good");
            assert_eq!(limits.of(&longshore_control::limits::QUEUED), 7);
            let log = settings.log(role);
            assert_eq!(log.manage_topics, role == Role::Control);
            assert_eq!((log.brokers.as_str(), log.replication), ("one:9092,two:9092", 1));
            assert_eq!(log.properties["socket.keepalive.enable"], "true");
            let (main, own) = (settings.main_bucket().expect("good"), settings.own_bucket().expect("good"));
            assert_eq!((main.bucket.as_str(), own.bucket.as_str()), ("longshore-main", "longshore-eu"));
            assert_eq!(own.secret_key.as_deref(), Some("123"));
        }
    }

    #[test]
    fn every_mistake_is_told_with_its_field() {
        let given = Given::new();
        let table: [(&str, &[&str], &[&str]); 4] = [
            ("", &[], &["regions: name every", "kafka.brokers: name some", "region.name: say which"]),
            (
                GOOD,
                &[
                    "kafka.brokers=one",
                    "kafka.prefix=a b",
                    "kafka.properties={\"acks\" = 1}",
                    "s3.endpoint=s3:9000",
                    "schema_registry.username=ls",
                    "s3.main_bucket=Main",
                    "s3.secret_key_file=/nowhere/key",
                    "region.name=ap",
                    "secrets=/nowhere",
                    "limits={\"queue.jobs\" = 0}",
                ],
                &[
                    "kafka.brokers: \"one\"",
                    "kafka.prefix: \"a b\": use at most",
                    "kafka.properties.acks: Longshore sets",
                    "s3.endpoint: \"s3:9000\" is no URL",
                    "schema_registry.url: say where",
                    "schema_registry.username: give username and password",
                    "s3.main_bucket: \"Main\"",
                    "s3.secret_key: give the key or the file",
                    "s3.secret_key_file: /nowhere/key cannot be read",
                    "region.name: ap is not in regions, which are eu, us",
                    "goals: there is no /nowhere/goals.pub",
                    "secrets: ",
                    "limits: --limit queue.jobs=0",
                ],
            ),
            ("regio = 1\n[kafka]\nbroker = \"x\"\n", &[], &["regio of the file", "kafka.broker of the file"]),
            (GOOD, &["kafka.broker=x"], &["--set kafka.broker=x: write KEY=VALUE"]),
        ];
        for (file, set, expected) in table {
            let told = given.examine(file, set, Role::Region).expect_err("mistakes");
            for text in expected {
                assert!(told.contains(text), "{told} says {text}");
            }
            assert_eq!(told.lines().count(), expected.len(), "{told}");
        }
    }
}
