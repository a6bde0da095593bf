//! The flags of `longshore-node run`. Each is a variable too, for machines that are set up by their environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser};
use longshore_identity::files;
use longshore_schemas::{NodeId, RackName, ZoneName, events::StringMap, labels};
use longshore_service::telemetry;
use longshore_swarm_policy::Caps;

use crate::{
    Folders,
    identity::CertificateKeeper,
    node::Config,
    trust::{self, Trust},
};

#[derive(Debug, Args)]
pub struct Data {
    /// The node's folder
    #[arg(long, env = "LONGSHORE_NODE_DATA")]
    pub data: PathBuf,
}

#[derive(Debug, Args)]
pub struct Run {
    /// HOST:PORT of a process of the region; several with commas between, of which the node uses any that answers
    #[arg(long, env = "LONGSHORE_REGION_ADDRESS", value_delimiter = ',', required = true)]
    pub region_address: Vec<String>,
    #[command(flatten)]
    pub data: Data,
    /// This node's name, unique in its region
    #[arg(long, env = "LONGSHORE_NODE_NAME")]
    pub node: NodeId,
    #[arg(long, env = "LONGSHORE_NODE_ZONE", default_value = "default")]
    pub zone: ZoneName,
    #[arg(long, env = "LONGSHORE_NODE_RACK", default_value = "default")]
    pub rack: RackName,
    /// What people call this machine, as gpu=a100, to find it by: again for more, or several with commas between
    #[arg(long = "label", env = "LONGSHORE_NODE_LABELS", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = labels::parse)]
    pub labels: Vec<(String, String)>,
    /// File with an enrolment token, for the first start
    #[arg(long, env = "LONGSHORE_NODE_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the certificates of the region's authority, in PEM: secrets/authorities/REGION.pem of the installation
    #[arg(long, env = "LONGSHORE_NODE_REGION_AUTHORITY")]
    pub region_authority: PathBuf,
    /// File with the public keys that goals are signed with, in PEM: secrets/goals.pub of the installation
    #[arg(long, env = "LONGSHORE_NODE_GOAL_KEYS")]
    pub goal_keys: PathBuf,
    /// File with the public keys that artifacts' provenance is signed with, in PEM: secrets/provenance.pub of the installation
    #[arg(long, env = "LONGSHORE_NODE_PROVENANCE_KEYS")]
    pub provenance_keys: PathBuf,
    /// Host name or address at which peers and users reach this machine
    #[arg(long, env = "LONGSHORE_NODE_HOST")]
    pub host: String,
    /// Where to serve packs to peers; port 0 takes any
    #[arg(long, env = "LONGSHORE_NODE_SWARM_LISTEN", default_value = "0.0.0.0:0")]
    pub swarm_listen: SocketAddr,
    /// Services get the first free port from here on
    #[arg(long, env = "LONGSHORE_NODE_PORT_BASE", default_value_t = 28_000)]
    pub port_base: u16,
    /// Where Prometheus reads /metrics, such as 127.0.0.1:9101 [default: nowhere]
    #[arg(long, env = "LONGSHORE_NODE_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// How the log on stderr is written: text for people, json for programs
    #[arg(long, env = "LONGSHORE_LOG_FORMAT", default_value = "text")]
    pub log_format: telemetry::Format,
    /// Seconds between two looks whether a running release's files are still what they were
    #[arg(long, env = "LONGSHORE_NODE_DRIFT_INTERVAL", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..))]
    pub drift_interval: u64,
    /// MiB a second that this machine gives its peers; for some hours of the day (UTC), HH:MM-HH:MM=MIB: 50,08:00-20:00=10 [default: no cap]
    #[arg(long, env = "LONGSHORE_NODE_UPLOAD_MIB_PER_SECOND", value_name = "CAPS")]
    pub upload_mib_per_second: Option<Caps>,
    /// MiB a second that it fetches, from peers and the bucket together; hours as above [default: no cap]
    #[arg(long, env = "LONGSHORE_NODE_DOWNLOAD_MIB_PER_SECOND", value_name = "CAPS")]
    pub download_mib_per_second: Option<Caps>,
    /// What packs and releases may take on this disk together, in bytes [default: all but a reserve of the file system]
    #[arg(long, env = "LONGSHORE_NODE_DISK_BUDGET", value_name = "BYTES", value_parser = disk_budget)]
    pub disk_budget: Option<u64>,
    /// Stop the services when the agent is told to stop; otherwise they go on running
    #[arg(long)]
    pub stop_services_on_exit: bool,
}

impl Run {
    /// What the agent would do with no flag at all.
    pub fn from_environment() -> Result<Self, clap::Error> {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            run: Run,
        }
        Alone::try_parse_from(["longshore-node run"]).map(|alone| alone.run)
    }

    /// The same as variables, for whoever starts the agent without flags. Of what was left out there is none.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let path = |path: &std::path::Path| path.display().to_string();
        let log_format = match self.log_format {
            telemetry::Format::Text => "text",
            telemetry::Format::Json => "json",
        };
        let variables = [
            ("LONGSHORE_REGION_ADDRESS", Some(self.region_address.join(","))),
            ("LONGSHORE_NODE_DATA", Some(path(&self.data.data))),
            ("LONGSHORE_NODE_NAME", Some(self.node.to_string())),
            ("LONGSHORE_NODE_ZONE", Some(self.zone.to_string())),
            ("LONGSHORE_NODE_RACK", Some(self.rack.to_string())),
            ("LONGSHORE_NODE_LABELS", (!self.labels.is_empty()).then(|| self.labels_text())),
            ("LONGSHORE_NODE_TOKEN_FILE", self.token_file.as_deref().map(path)),
            ("LONGSHORE_NODE_REGION_AUTHORITY", Some(path(&self.region_authority))),
            ("LONGSHORE_NODE_GOAL_KEYS", Some(path(&self.goal_keys))),
            ("LONGSHORE_NODE_PROVENANCE_KEYS", Some(path(&self.provenance_keys))),
            ("LONGSHORE_NODE_HOST", Some(self.host.clone())),
            ("LONGSHORE_NODE_SWARM_LISTEN", Some(self.swarm_listen.to_string())),
            ("LONGSHORE_NODE_PORT_BASE", Some(self.port_base.to_string())),
            ("LONGSHORE_NODE_DRIFT_INTERVAL", Some(self.drift_interval.to_string())),
            ("LONGSHORE_NODE_UPLOAD_MIB_PER_SECOND", self.upload_mib_per_second.as_ref().map(Caps::to_string)),
            ("LONGSHORE_NODE_DOWNLOAD_MIB_PER_SECOND", self.download_mib_per_second.as_ref().map(Caps::to_string)),
            ("LONGSHORE_NODE_DISK_BUDGET", self.disk_budget.map(|bytes| bytes.to_string())),
            ("LONGSHORE_NODE_METRICS_LISTEN", self.metrics_listen.map(|listen| listen.to_string())),
            ("LONGSHORE_LOG_FORMAT", Some(log_format.to_owned())),
        ];
        variables.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    fn labels_text(&self) -> String {
        let texts: Vec<String> = self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        texts.join(",")
    }

    /// What is wrong, by flag, though each value is one; connects nowhere.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let is_address = |text: &str| {
            let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
        };
        for address in self.region_address.iter().filter(|address| !is_address(address)) {
            found.push(("region-address", format!("{address:?} is no address: write HOST:PORT")));
        }
        let labels: StringMap = self.labels.iter().cloned().collect();
        if let Err(error) = labels::check(&labels) {
            found.push(("label", error));
        } else if labels.len() < self.labels.len() {
            found.push(("label", "a label is there twice".to_owned()));
        }
        let has_identity = CertificateKeeper::has_certificate(&Folders { data: self.data.data.clone() }.identity());
        match &self.token_file {
            Some(file) if !has_identity => {
                if let Err(error) = std::fs::read_to_string(file) {
                    found.push(("token-file", format!("{} cannot be read: {error}", file.display())));
                }
            }
            None if !has_identity => {
                found
                    .push(("token-file", "the node has no identity yet: name the file with an enrolment token".into()));
            }
            _ => {}
        }
        if let Err(error) = files::read_trust(&self.region_authority) {
            found.push(("region-authority", longshore_service::chain(&error)));
        }
        for (flag, file) in [("goal-keys", &self.goal_keys), ("provenance-keys", &self.provenance_keys)] {
            if let Err(error) = trust::read(file) {
                found.push((flag, error.to_string()));
            }
        }
        found
    }

    pub fn config(self) -> Config {
        Config {
            region_addresses: self.region_address,
            data: self.data.data,
            node: self.node,
            zone: self.zone,
            rack: self.rack,
            labels: self.labels.into_iter().collect(),
            token_file: self.token_file,
            region_authority: self.region_authority,
            host: self.host,
            swarm_listen: self.swarm_listen,
            port_base: self.port_base,
            trust: Trust { goal_keys: self.goal_keys, provenance_keys: self.provenance_keys },
            drift_interval: Duration::from_secs(self.drift_interval),
            upload_caps: self.upload_mib_per_second.unwrap_or_default(),
            download_caps: self.download_mib_per_second.unwrap_or_default(),
            disk_budget: self.disk_budget,
        }
    }
}

fn disk_budget(text: &str) -> Result<u64, String> {
    let bytes = text.parse().ok().filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "give a whole number of bytes, such as 21474836480 for 20 GiB".to_owned())
}
