//! The roles apart, on a Kafka cluster: control nodes, region processes and an S3 server, each a process of its own that can
//! be killed and started again, with workers and nodes around them.
//!
//! ```text
//! Kafka (the caller's) ◀── control × n ◀── workers          longshore s3: the buckets
//!                      ◀── region × m of each region ◀── nodes, which know all m
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::net::TcpStream;

use crate::{
    Client, Joins, Keys, Node, Process, Tokens, nodes_joined, path_text,
    process::{binary_path, free_ports, wait_for},
    read_token, start_node, start_worker,
};

/// How long a process may take until it is ready, with a Kafka cluster that has just started.
const READY: Duration = Duration::from_secs(90);
const STOP: Duration = Duration::from_secs(45);

/// What to start.
#[derive(Debug, Clone)]
pub struct Layout {
    pub regions: Vec<String>,
    pub controls: usize,
    pub processes_per_region: usize,
    /// Replicas of each topic: no more than there are brokers.
    pub replication: u16,
    /// Further settings of control and region, as `--set KEY=VALUE`.
    pub set: Vec<String>,
    /// Variables of workers and nodes.
    pub environment: Vec<(String, String)>,
}

impl Layout {
    /// Three control nodes and two processes of each region.
    pub fn new(regions: &[&str], replication: u16) -> Self {
        let regions = regions.iter().map(|region| (*region).to_owned()).collect();
        let (set, environment) = (Vec::new(), Vec::new());
        Self { regions, controls: 3, processes_per_region: 2, replication, set, environment }
    }
}

/// A process that can be killed and comes back as it was.
pub struct Member {
    pub name: String,
    /// Where it listens, as `host:port`.
    pub address: String,
    pub process: Process,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Member {
    fn start(name: &str, address: String, arguments: Vec<String>, log: PathBuf) -> Result<Self> {
        let process = spawn(&arguments, &log)?;
        Ok(Self { name: name.to_owned(), address, process, arguments, log })
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same data and address. Waits for nothing.
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.arguments, &self.log)?;
        Ok(())
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.terminate()?;
        self.process.wait_ended(STOP)
    }

    /// Waits until it listens.
    pub async fn listens(&mut self) -> Result<()> {
        wait_for(&format!("{} to listen", self.name), READY, async || {
            self.process.check_running()?;
            Ok(TcpStream::connect(&self.address).await.is_ok().then_some(()))
        })
        .await
    }
}

fn spawn(arguments: &[String], log: &Path) -> Result<Process> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Process::start("longshore", &arguments, log)
}

/// Everything but Kafka. Ends what it started when it is dropped: first what depends on others.
pub struct Apart {
    pub folder: PathBuf,
    pub tokens: Tokens,
    pub keys: Keys,
    /// Of the first control node.
    pub client: Client,
    pub nodes: Vec<Node>,
    pub workers: Vec<Process>,
    /// In the order of the regions, those of one region together.
    pub regions: Vec<Member>,
    pub controls: Vec<Member>,
    pub s3: Member,
    /// Where the S3 server counts what went through it.
    s3_metrics: String,
    layout: Layout,
}

impl Apart {
    /// Starts the S3 server, the control nodes and the regions, all their data under `folder`, and waits until each partition
    /// is led.
    pub async fn start(folder: &Path, brokers: &str, layout: Layout) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let secrets = folder.join("secrets");
        make_secrets(&secrets, &layout)?;
        let token = |role: &str| secrets.join("tokens").join(role);
        let tokens = Tokens { admin: token("admin"), worker: token("worker"), node: token("node") };
        let keys = Keys { goals: secrets.join("goals.pub"), provenance: secrets.join("provenance.pub") };
        let first =
            free_ports(u16::try_from(2 + layout.controls + layout.regions.len() * layout.processes_per_region)?)?;
        let mut ports = (first..).map(|port| format!("127.0.0.1:{port}"));
        let mut port = || ports.next().context("there are ports");
        let (s3_address, s3_metrics) = (port()?, port()?);
        let config = folder.join("longshore.toml");
        std::fs::write(&config, settings(&layout, brokers, &s3_address, &secrets)?)?;
        let mut s3 = start_s3(folder, &secrets, &s3_address, &s3_metrics)?;
        s3.listens().await?;
        let mut controls = Vec::new();
        for number in 1..=layout.controls {
            let address = port()?;
            let set = [format!("api.listen={address}")];
            controls.push(start_role(folder, "control", &format!("control-{number}"), address, &set, &layout)?);
        }
        let mut regions = Vec::new();
        for region in &layout.regions {
            for number in 1..=layout.processes_per_region {
                let address = port()?;
                let set = [format!("region.listen={address}"), format!("region.name={region}")];
                regions.push(start_role(
                    folder,
                    "region",
                    &format!("region-{region}-{number}"),
                    address,
                    &set,
                    &layout,
                )?);
            }
        }
        let client = Client::new(&format!("http://{}", controls[0].address), &read_token(&tokens.admin)?)?;
        let (folder, nodes, workers) = (folder.to_owned(), Vec::new(), Vec::new());
        let mut apart =
            Self { folder, tokens, keys, client, nodes, workers, regions, controls, s3, s3_metrics, layout };
        for member in apart.controls.iter_mut().chain(&mut apart.regions) {
            member.listens().await?;
        }
        apart.all_led().await?;
        Ok(apart)
    }

    /// A client of the n-th control node, counted from 0.
    pub fn client_of(&self, control: usize) -> Result<Client> {
        Client::new(&format!("http://{}", self.controls[control].address), &self.client.token)
    }

    /// For reading what went through the buckets from its `/metrics`.
    pub fn s3_client(&self) -> Result<Client> {
        Client::new(&format!("http://{}", self.s3_metrics), "")
    }

    /// Which control nodes lead each partition of each processor, by what they say of themselves; those that do not answer say nothing.
    pub async fn leaders(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        let mut leaders: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for index in 0..self.controls.len() {
            let Ok(text) = self.client_of(index)?.text("/metrics").await else { continue };
            for line in text.lines() {
                let Some(labels) = line.strip_prefix("longshore_partition_role{") else { continue };
                let label = |name: &str| labels.split(&format!("{name}=\"")).nth(1)?.split('"').next();
                let (Some(processor), Some(partition)) = (label("processor"), label("partition")) else { continue };
                let of = leaders.entry(format!("{processor}/{partition}")).or_default();
                if label("role") == Some("leading") && labels.ends_with("} 1") {
                    of.push(index);
                }
            }
        }
        Ok(leaders)
    }

    /// Waits until each partition has one leader.
    pub async fn all_led(&self) -> Result<()> {
        wait_for("every partition to have its leader", READY, async || {
            let leaders = self.leaders().await?;
            let led = leaders.values().filter(|leaders| leaders.len() == 1).count();
            ensure!(led == leaders.len(), "{led} of {} partitions are led: {leaders:?}", leaders.len());
            Ok((led > 0).then_some(()))
        })
        .await
    }

    /// Starts workers, in turn at each of the control nodes.
    pub fn start_workers(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let number = self.workers.len();
            let api = format!("http://{}", self.controls[number % self.controls.len()].address);
            let name = format!("worker-{}", number + 1);
            let environment = &self.layout.environment;
            let worker = start_worker(&self.folder, &api, &self.tokens.worker, (&name, "default"), environment)?;
            self.workers.push(worker);
        }
        Ok(())
    }

    /// Starts nodes in every region, two to a rack. Each knows all processes of its region.
    pub async fn start_nodes(&mut self, per_region: usize) -> Result<()> {
        for (number, region) in self.layout.regions.iter().enumerate() {
            let addresses = self.region_addresses(number).join(",");
            let authority = self.folder.join(format!("secrets/authorities/{region}.pem"));
            for index in 0..per_region {
                let place = (&**region, index);
                let environment = &self.layout.environment;
                let joins = Joins { token_file: &self.tokens.node, authority: &authority, keys: &self.keys };
                self.nodes.push(start_node(&self.folder, place, &addresses, &joins, environment)?);
            }
        }
        nodes_joined(&self.client, self.nodes.len()).await
    }

    /// Where the processes of the n-th region take nodes.
    pub fn region_addresses(&self, region: usize) -> Vec<String> {
        let of = self.regions.chunks(self.layout.processes_per_region).nth(region).unwrap_or_default();
        of.iter().map(|member| member.address.clone()).collect()
    }

    /// The ends of the logs of all roles, for a failure's report.
    pub fn log_ends(&self) -> String {
        let members = self.controls.iter().chain(&self.regions).chain([&self.s3]);
        members.map(|member| format!("--- {}\n{}\n", member.name, member.process.log_end())).collect()
    }

    /// Ends everything in order.
    pub fn stop(&mut self) -> Result<()> {
        let mut others: Vec<_> = self.nodes.iter_mut().map(|node| &mut node.process).chain(&mut self.workers).collect();
        others.iter_mut().try_for_each(|process| process.terminate())?;
        others.iter_mut().try_for_each(|process| process.wait_ended(STOP))?;
        self.regions.iter_mut().try_for_each(Member::stop)?;
        self.controls.iter_mut().try_for_each(Member::stop)?;
        self.s3.stop()
    }
}

fn make_secrets(folder: &Path, layout: &Layout) -> Result<()> {
    let mut command = Command::new(binary_path("longshore")?);
    let output = command.arg("secrets").arg(folder).args(["--regions", &layout.regions.join(",")]).output()?;
    ensure!(output.status.success(), "longshore secrets: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What all roles have in common.
fn settings(layout: &Layout, brokers: &str, s3: &str, secrets: &Path) -> Result<String> {
    let (regions, replication, folder) = (layout.regions.join(","), layout.replication, path_text(secrets)?);
    Ok(format!(
        r#"regions = "{regions}"
secrets = "{folder}"
[kafka]
brokers = "{brokers}"
replication = {replication}
[s3]
endpoint = "http://{s3}"
region = "embedded"
path_style = true
create_buckets = true
access_key = "longshore"
secret_key_file = "{folder}/s3.key"
[api]
allow_file_repositories = true
"#
    ))
}

fn start_s3(folder: &Path, secrets: &Path, address: &str, metrics: &str) -> Result<Member> {
    let (buckets, key) = (folder.join("s3"), secrets.join("s3.key"));
    let (buckets, key) = (path_text(&buckets)?, path_text(&key)?);
    let arguments =
        ["s3", "--folder", buckets, "--listen", address, "--secret-key-file", key, "--metrics-listen", metrics];
    let arguments = arguments.map(str::to_owned).to_vec();
    Member::start("s3", address.to_owned(), arguments, folder.join("s3.log"))
}

fn start_role(
    folder: &Path,
    role: &str,
    name: &str,
    address: String,
    own: &[String],
    layout: &Layout,
) -> Result<Member> {
    let (config, data) = (folder.join("longshore.toml"), folder.join(name));
    let arguments = [role, "--config", path_text(&config)?, "--data", path_text(&data)?];
    let mut arguments = arguments.map(str::to_owned).to_vec();
    for set in own.iter().chain(&layout.set) {
        arguments.extend(["--set".to_owned(), set.clone()]);
    }
    Member::start(name, address, arguments, folder.join(format!("{name}.log")))
}
