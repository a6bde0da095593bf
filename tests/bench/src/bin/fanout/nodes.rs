//! Our side: the region process, and nodes that speak its protocol as agents do, without anything behind it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use longshore_identity::{Authority, Credentials, Key, Request, Tls, Trust};
use longshore_schemas::{
    NodeId, ServiceName,
    envelope::Envelope,
    events::GoalVersion,
    stream::{FromNode, FromRegion, Hello},
};
use longshore_service::retry::Backoff;
use longshore_signing::goal;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{Semaphore, mpsc},
    time::{MissedTickBehavior, interval},
};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::{AT_ONCE, Side, arrivals::Arrivals, log_file, region, rss_kib};

/// How a goal begins, and where its record is.
const GOAL: &str = r#"{"type":"goal""#;
const PAYLOAD: &str = r#""payload":""#;
/// As the agent's.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

pub(crate) struct Nodes {
    folder: PathBuf,
    connections: usize,
    process: Process,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// The region process, and how one talks with it.
struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Process {
    async fn start(folder: &Path, port: u16, connections: usize, first_version: u64) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--region").arg(folder).args([
            "--port",
            &port.to_string(),
            "--connections",
            &connections.to_string(),
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file(folder, "region.log")?).kill_on_drop(true);
        let mut child = command.spawn()?;
        let mut input = child.stdin.take().context("no input")?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?).lines();
        input.write_all(format!("{first_version}\n").as_bytes()).await?;
        let line = output.next_line().await?.context("the region process ended: its log is region.log")?;
        let address = line.strip_prefix(region::READY).context("it is not ready")?.parse()?;
        Ok(Self { child, input, output, address })
    }
}

impl Nodes {
    pub(crate) async fn start(folder: &Path, connections: usize) -> Result<Self> {
        let process = Process::start(folder, 0, connections, 0).await?;
        Ok(Self { folder: folder.to_owned(), connections, process, tasks: Vec::new() })
    }
}

impl Side for Nodes {
    async fn connect_all(&mut self, arrivals: &Arc<Arrivals>) -> Result<()> {
        let files = region::authority(&self.folder);
        let (authority, trust) = files.read(&files.content()?)?;
        let (connected, mut all) = mpsc::channel(self.connections);
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for index in 0..self.connections {
            let node = Node {
                index,
                name: format!("n-{index}").parse()?,
                tls: identity(&authority, &trust, index)?,
                address: self.process.address,
                held: BTreeMap::new(),
                arrivals: arrivals.clone(),
            };
            self.tasks.push(tokio::spawn(node.run(turns.clone(), connected.clone())));
        }
        for _ in 0..self.connections {
            all.recv().await.context("a node ended")?;
        }
        Ok(())
    }

    async fn publish(&mut self, version: u64) -> Result<()> {
        self.process.input.write_all(format!("{version}\n").as_bytes()).await?;
        self.process.output.next_line().await?.context("the region process ended")?;
        Ok(())
    }

    fn rss_kib(&self) -> Result<f64> {
        rss_kib(&self.process.child)
    }

    async fn restart(&mut self, version: u64) -> Result<()> {
        self.process.child.kill().await?;
        self.process = Process::start(&self.folder, self.process.address.port(), self.connections, version).await?;
        Ok(())
    }

    async fn stop(mut self) -> Result<()> {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.process.child.kill().await?;
        Ok(())
    }
}

/// The certificate that enrolment would have given.
fn identity(authority: &Authority, trust: &Trust, index: usize) -> Result<Arc<Tls>> {
    let key = Key::make()?;
    let node: NodeId = format!("n-{index}").parse()?;
    let certificate = authority.certify(&Request::from_pem(&key.request()?)?, &node, longshore_service::now())?;
    Ok(Tls::new(Some(Credentials::new(&key, &certificate)?), trust.clone())?)
}

fn frame(message: &FromNode) -> Result<Bytes> {
    Ok(serde_json::to_vec(message)?.into())
}

struct Node {
    index: usize,
    name: NodeId,
    tls: Arc<Tls>,
    address: SocketAddr,
    held: BTreeMap<ServiceName, GoalVersion>,
    arrivals: Arc<Arrivals>,
}

impl Node {
    /// Stays connected, and says when it is for the first time.
    async fn run(mut self, turns: Arc<Semaphore>, connected: mpsc::Sender<()>) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut first = Some((turns.acquire_owned().await, connected));
        loop {
            // Why it ended is the region's to say; what counts is that it comes back.
            let _ = self.connection(&mut first).await;
            let wait = backoff.next_wait(&mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }

    async fn connection<T>(&mut self, first: &mut Option<(T, mpsc::Sender<()>)>) -> Result<()> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let stream = self.tls.connect_to_region(tcp, false).await?;
        let mut stream = Framed::with_capacity(stream, LengthDelimitedCodec::new(), 1024);
        stream.send(frame(&FromNode::Hello(self.hello()?))?).await?;
        let Some(welcome) = stream.next().await.transpose()? else { bail!("it was not let in") };
        let FromRegion::Welcome { beat_seconds, .. } = serde_json::from_slice(&welcome)? else {
            bail!("it was not let in")
        };
        if let Some((_turn, connected)) = first.take() {
            connected.send(()).await?;
        }
        let mut beats = interval(Duration::from_secs(beat_seconds.into()));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = stream.next() => self.take(&message.context("closed")??)?,
                _ = beats.tick() => stream.send(frame(&FromNode::Beat)?).await?,
            }
        }
    }

    /// Costs as little as the watcher's: there are thousands of either on a machine that the server should have for itself.
    fn take(&mut self, message: &[u8]) -> Result<()> {
        let message = std::str::from_utf8(message)?;
        if message.starts_with(GOAL) {
            let (_, rest) = message.split_once(PAYLOAD).context("no payload")?;
            let (payload, _) = rest.split_once('"').context("no payload")?;
            let envelope =
                Envelope { payload_type: String::new(), payload: payload.to_owned(), signatures: Vec::new() };
            let goal = goal::read(&envelope).context("no goal")?;
            self.arrivals.arrived(self.index, goal.version.revision);
            self.held.insert(goal.service, goal.version);
        }
        Ok(())
    }

    fn hello(&self) -> Result<Hello> {
        Ok(Hello {
            node: self.name.clone(),
            instance: "one".to_owned(),
            zone: "a".parse()?,
            rack: format!("rack-{}", self.index / 40).parse()?,
            host: "127.0.0.1".to_owned(),
            swarm_port: 4_000,
            agent_version: "0.1.0".to_owned(),
            labels: Default::default(),
            answers_queries: false,
            boot: 1,
            goals: self.held.clone(),
        })
    }
}
