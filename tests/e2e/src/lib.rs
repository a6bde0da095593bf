//! Real processes for end-to-end tests, benchmarks and the demo: `longshore up`, workers and nodes on free ports of the
//! loopback interface, and a small client of the API.
//!
//! A [`Cluster`] owns what it started and ends it, by pid, when it is dropped; so does [`apart::Apart`], which has each role in
//! processes of its own, on Kafka. Both know the commands' flags and the API's paths, and nothing of how they work.

pub mod apart;
pub mod client;
pub mod greeter;
pub mod machine;
pub mod process;
pub mod quick;
pub mod random;
pub mod traffic;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

pub use client::Client;
pub use process::Process;

/// How long a process may take until it is ready.
const READY: Duration = Duration::from_secs(60);

/// What `longshore up` writes to `up.json` once it is ready.
#[derive(Debug, Clone, Deserialize)]
pub struct UpFile {
    pub api: String,
    pub regions: Vec<RegionAddress>,
    pub tokens: Tokens,
    pub keys: Keys,
}

#[derive(Debug, Clone, Deserialize)]
pub struct RegionAddress {
    pub region: String,
    pub address: String,
    /// The file of the region's authority, which nodes know it by.
    pub authority: PathBuf,
}

/// Files that hold a token each.
#[derive(Debug, Clone, Deserialize)]
pub struct Tokens {
    pub admin: PathBuf,
    pub worker: PathBuf,
    pub node: PathBuf,
}

/// Files of public keys, which nodes need.
#[derive(Debug, Clone, Deserialize)]
pub struct Keys {
    pub goals: PathBuf,
    pub provenance: PathBuf,
}

/// One `longshore up` and the workers and nodes around it.
pub struct Cluster {
    pub folder: PathBuf,
    pub up: UpFile,
    pub client: Client,
    // Nodes and workers end before what they talk to.
    pub nodes: Vec<Node>,
    pub workers: Vec<Process>,
    pub control: Process,
    regions: String,
    ports: Ports,
    options: Options,
}

/// What a test may want otherwise.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Further flags of `longshore up`.
    pub up: Vec<String>,
    /// Variables of `longshore up`.
    pub up_environment: Vec<(String, String)>,
    /// Variables of workers and nodes.
    pub environment: Vec<(String, String)>,
}

pub struct Node {
    pub name: String,
    pub region: String,
    pub folder: PathBuf,
    pub process: Process,
}

impl Cluster {
    /// Starts `longshore up` with these regions, all its data under `folder`.
    pub async fn start(folder: &Path, regions: &[&str]) -> Result<Self> {
        Self::start_with(folder, regions, Options::default()).await
    }

    pub async fn start_with(folder: &Path, regions: &[&str], options: Options) -> Result<Self> {
        let ports = Ports::find(regions.len())?;
        let regions = regions.join(",");
        let mut control = spawn_up(folder, &regions, ports, &options)?;
        let up = up_ready(folder, &mut control).await?;
        let client = Client::new(&up.api, &read_token(&up.tokens.admin)?)?;
        let (nodes, workers) = (Vec::new(), Vec::new());
        Ok(Self { folder: folder.to_owned(), up, client, nodes, workers, control, regions, ports, options })
    }

    pub fn start_workers(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let name = format!("worker-{}", self.workers.len() + 1);
            self.workers.push(self.worker(&name, "default")?);
        }
        Ok(())
    }

    /// Starts a worker of one queue, whose end is the caller's business.
    pub fn worker(&self, name: &str, queue: &str) -> Result<Process> {
        let Self { folder, up, options, .. } = self;
        start_worker(folder, &up.api, &up.tokens.worker, (name, queue), &options.environment)
    }

    /// Starts nodes spread evenly over the regions, two to a rack.
    pub async fn start_nodes(&mut self, per_region: usize) -> Result<()> {
        for region in self.up.regions.clone() {
            for _ in 0..per_region {
                self.start_node(&region)?;
            }
        }
        nodes_joined(&self.client, self.nodes.len()).await
    }

    /// Starts one more node in a region, the last of its nodes. Waits for nothing.
    pub fn start_node(&mut self, region: &RegionAddress) -> Result<()> {
        let index = self.nodes.iter().filter(|node| node.region == region.region).count();
        let Self { folder, up, options, .. } = self;
        let place = (&*region.region, index);
        let joins = Joins { token_file: &up.tokens.node, authority: &region.authority, keys: &up.keys };
        self.nodes.push(start_node(folder, place, &region.address, &joins, &options.environment)?);
        Ok(())
    }

    /// Ends `longshore up` as a crash does and starts it again on the same data.
    pub async fn restart_control(&mut self) -> Result<()> {
        self.kill_control()?;
        self.control_ready().await
    }

    /// SIGKILL for `longshore up`, and at once another one on the same data and ports. Waits for nothing.
    pub fn kill_control(&mut self) -> Result<()> {
        self.control.kill()?;
        self.control = spawn_up(&self.folder, &self.regions, self.ports, &self.options)?;
        Ok(())
    }

    pub async fn control_ready(&mut self) -> Result<()> {
        self.up = up_ready(&self.folder, &mut self.control).await?;
        Ok(())
    }

    /// Ends everything in order.
    pub fn stop(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.process.terminate()?;
        }
        for process in &mut self.workers {
            process.terminate()?;
        }
        for node in &mut self.nodes {
            node.process.wait_ended(Duration::from_secs(30))?;
        }
        for process in &mut self.workers {
            process.wait_ended(Duration::from_secs(30))?;
        }
        self.control.terminate()?;
        self.control.wait_ended(Duration::from_secs(30))
    }
}

/// A worker of one queue, on files of this machine.
fn start_worker(
    folder: &Path,
    api: &str,
    token_file: &Path,
    (name, queue): (&str, &str),
    environment: &[(String, String)],
) -> Result<Process> {
    let work_dir = folder.join(name);
    let arguments = [
        "worker",
        "--api",
        api,
        "--token-file",
        path_text(token_file)?,
        "--queue",
        queue,
        "--name",
        name,
        "--work-dir",
        path_text(&work_dir)?,
        "--allow-file-repositories",
    ];
    Process::start_in(environment, "longshore", &arguments, &folder.join(format!("{name}.log")))
}

/// What a node joins its region with.
pub struct Joins<'a> {
    pub token_file: &'a Path,
    pub authority: &'a Path,
    pub keys: &'a Keys,
}

/// The n-th node of a region, two to a rack.
fn start_node(
    folder: &Path,
    (region, index): (&str, usize),
    addresses: &str,
    joins: &Joins<'_>,
    environment: &[(String, String)],
) -> Result<Node> {
    let name = node_name(region, index);
    let folder = folder.join("nodes").join(&name);
    std::fs::create_dir_all(&folder)?;
    let mut arguments = node_arguments(&folder, (region, index), addresses, joins)?;
    arguments.push("--stop-services-on-exit".to_owned());
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let process = Process::start_in(environment, "longshore-node", &words, &folder.join("node.log"))?;
    Ok(Node { name, region: region.to_owned(), folder, process })
}

fn node_name(region: &str, index: usize) -> String {
    format!("{region}-{}", index + 1)
}

/// Of the n-th node of a region, two to a rack.
fn node_arguments(
    folder: &Path,
    (region, index): (&str, usize),
    addresses: &str,
    Joins { token_file, authority, keys }: &Joins<'_>,
) -> Result<Vec<String>> {
    let name = node_name(region, index);
    let rack = format!("rack-{}", index / 2 + 1);
    let zone = format!("{region}-a");
    let port_base = process::free_ports(16)?.to_string();
    let arguments = [
        "run",
        "--region-address",
        addresses,
        "--data",
        path_text(folder)?,
        "--node",
        &name,
        "--zone",
        &zone,
        "--rack",
        &rack,
        "--token-file",
        path_text(token_file)?,
        "--region-authority",
        path_text(authority)?,
        "--goal-keys",
        path_text(&keys.goals)?,
        "--provenance-keys",
        path_text(&keys.provenance)?,
        "--host",
        "127.0.0.1",
        "--port-base",
        &port_base,
    ];
    Ok(arguments.map(str::to_owned).to_vec())
}

async fn nodes_joined(client: &Client, expected: usize) -> Result<()> {
    process::wait_for(&format!("{expected} nodes to join"), READY, async || {
        let nodes = client.nodes().await?;
        Ok((nodes.iter().filter(|n| !n.lost).count() >= expected).then_some(()))
    })
    .await
}

/// Where one `longshore up` listens: below the ephemeral range, so that no connection takes a port while it is away.
#[derive(Debug, Clone, Copy)]
struct Ports {
    api: u16,
    s3: u16,
    regions: u16,
}

impl Ports {
    fn find(regions: usize) -> Result<Self> {
        let regions = u16::try_from(regions)?;
        let first = process::free_ports(regions + 2)?;
        Ok(Self { api: first, s3: first + 1, regions: first + 2 })
    }
}

fn ready_file(folder: &Path) -> PathBuf {
    folder.join("up/up.json")
}

fn spawn_up(folder: &Path, regions: &str, ports: Ports, options: &Options) -> Result<Process> {
    let data = folder.join("up");
    std::fs::create_dir_all(&data)?;
    // A file of an earlier run says nothing of this one.
    let _ = std::fs::remove_file(ready_file(folder));
    let [api, s3, first] = [ports.api, ports.s3, ports.regions].map(|port| format!("127.0.0.1:{port}"));
    let mut arguments = vec![
        "up",
        "--data",
        path_text(&data)?,
        "--regions",
        regions,
        "--listen",
        &api,
        "--s3-listen",
        &s3,
        "--region-listen",
        &first,
    ];
    arguments.extend(options.up.iter().map(String::as_str));
    Process::start_in(&options.up_environment, "longshore", &arguments, &folder.join("up.log"))
}

async fn up_ready(folder: &Path, process: &mut Process) -> Result<UpFile> {
    process::wait_for("`longshore up` to be ready", READY, async || {
        process.check_running()?;
        Ok(read_up_file(&ready_file(folder)).ok())
    })
    .await
}

fn read_up_file(path: &Path) -> Result<UpFile> {
    let text = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

pub fn read_token(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("token file {}", path.display()))?;
    Ok(text.trim().to_owned())
}

pub fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
