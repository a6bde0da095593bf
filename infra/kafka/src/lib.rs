//! A real Kafka cluster on this machine, for tests, benchmarks and the demo: what `kafka.sh` does, as a value.
//!
//! Nothing of Longshore is known here, and nothing of Kafka's protocol: the script starts and ends processes. Beside it is a schema
//! registry ([`Apicurio`]).

mod apicurio;

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

pub use self::apicurio::Apicurio;

/// How to start a cluster.
#[derive(Debug, Clone)]
pub struct Config {
    /// 1 or 3: with three, topics have three replicas and two must have what is acknowledged.
    pub nodes: u32,
    /// Memory of each broker, as Java writes it.
    pub heap: String,
    /// Further lines of `server.properties`.
    pub settings: Vec<String>,
    /// With it, clients must log in and may do only what ACLs allow.
    pub sasl: Option<Sasl>,
}

impl Config {
    /// So many brokers that notice a dead one soon.
    pub fn new(nodes: u32) -> Self {
        let settings =
            ["broker.session.timeout.ms=3000", "broker.heartbeat.interval.ms=500"].map(str::to_owned).to_vec();
        Self { nodes, heap: "512m".to_owned(), settings, sasl: None }
    }
}

/// Who may log in, with SCRAM-SHA-256, beside the user `admin`, who may do everything and whom [`Cluster::tool`] is.
#[derive(Debug, Clone, Default)]
pub struct Sasl {
    /// Names and passwords. They may do nothing until [`Cluster::allow`] says otherwise.
    pub users: Vec<(String, String)>,
}

impl Sasl {
    /// librdkafka's settings with which a user logs in.
    pub fn properties(name: &str, password: &str) -> Vec<(String, String)> {
        [
            ("security.protocol", "SASL_PLAINTEXT"),
            ("sasl.mechanism", "SCRAM-SHA-256"),
            ("sasl.username", name),
            ("sasl.password", password),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec()
    }
}

/// A running cluster. Dropping it ends it and removes what it stored, and so does the end of this process.
#[derive(Debug)]
pub struct Cluster {
    folder: TempDir,
    nodes: u32,
    brokers: String,
}

impl Cluster {
    /// Returns once every node serves. Fetches Kafka first, where it is not there yet.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("longshore-kafka-").tempdir()?;
        let mut arguments =
            vec!["start".to_owned(), config.nodes.to_string(), "--heap".to_owned(), config.heap.clone()];
        arguments.extend(["--owner".to_owned(), std::process::id().to_string()]);
        for setting in &config.settings {
            arguments.extend(["--set".to_owned(), setting.clone()]);
        }
        if let Some(sasl) = &config.sasl {
            arguments.push("--sasl".to_owned());
            for (name, password) in &sasl.users {
                arguments.extend(["--user".to_owned(), format!("{name}:{password}")]);
            }
        }
        let mut cluster = Self { folder, nodes: config.nodes, brokers: String::new() };
        cluster.brokers = cluster.script(&arguments)?.trim().to_owned();
        Ok(cluster)
    }

    /// `host:port` of every broker, with commas between.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Nodes are counted from 1.
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// `kill -9` of one node.
    pub fn kill(&self, node: u32) -> anyhow::Result<()> {
        self.script(&["kill", &node.to_string()]).map(drop)
    }

    /// Starts a node that was killed, and waits until it serves.
    pub fn restart(&self, node: u32) -> anyhow::Result<()> {
        self.script(&["restart", &node.to_string()]).map(drop)
    }

    /// Stops one node in order.
    pub fn stop(&self, node: u32) -> anyhow::Result<()> {
        self.script(&["stop", &node.to_string()]).map(drop)
    }

    /// Waits until every replica of every partition has caught up: with two of three brokers gone nothing could be acknowledged,
    /// so only then the next may go.
    pub fn wait_whole(&self, bound: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + bound;
        loop {
            // It takes a second, so there is no need to rest.
            let lagging = self.tool("TopicCommand", &["--describe", "--under-replicated-partitions"]);
            match lagging.as_deref().map(str::trim) {
                Ok("") => return Ok(()),
                _ if Instant::now() < deadline => {}
                Ok(partitions) => bail!("not all replicas are in sync after {bound:?}:\n{partitions}"),
                Err(_) => return lagging.map(drop),
            }
        }
    }

    /// Has every partition led by the broker that it was meant for.
    pub fn balance(&self) -> anyhow::Result<()> {
        let all = ["--election-type", "preferred", "--all-topic-partitions"];
        self.tool("LeaderElectionCommand", &all).map(drop)
    }

    /// One of Kafka's own tools against this cluster, such as `TopicCommand`; what it printed.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.script(&[&["tool", class], arguments].concat())
    }

    /// Gives a user what a role of Longshore needs: `acls.sh` against this cluster.
    pub fn allow(&self, role: &str, user: &str, prefix: &str) -> anyhow::Result<()> {
        let output = Command::new(script().with_file_name("acls.sh"))
            .args([role, user, "--prefix", prefix, "--"])
            .arg(script())
            .args(["tool", "AclCommand", "--dir"])
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .context("infra/kafka/acls.sh cannot be run")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "infra/kafka/acls.sh {role} {user}: {said}");
        Ok(())
    }

    fn script(&self, arguments: &[impl AsRef<str>]) -> anyhow::Result<String> {
        let words = arguments.iter().map(AsRef::as_ref);
        let (command, rest): (Vec<_>, Vec<_>) = words.enumerate().partition(|(index, _)| *index == 0);
        let output = Command::new(script())
            .args(command.iter().map(|(_, word)| word))
            .arg("--dir")
            .arg(self.folder.path())
            .args(rest.iter().map(|(_, word)| word))
            .stdin(Stdio::null())
            .output()
            .context("infra/kafka/kafka.sh cannot be run")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "infra/kafka/kafka.sh {}: {said}", command[0].1);
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nothing can be done about brokers that do not end, and the folder goes all the same.
        let _ = self.script(&["stop"]);
    }
}

/// The script that starts and kills brokers.
pub fn script() -> PathBuf {
    longshore_checkout::path("infra/kafka/kafka.sh")
}
