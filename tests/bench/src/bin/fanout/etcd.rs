//! The other side: an etcd of its own, and watchers that speak its gRPC over HTTP/2 and the same TLS.
//!
//! Its messages are few and small, so they are written and read here: a client of full size would cost the watchers more than etcd.

use std::{
    ffi::OsString,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::SendRequest};
use longshore_identity::{Key, Request, files::AuthorityFiles};
use longshore_service::retry::Backoff;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::TlsConnector;

use crate::{AT_ONCE, BOUND, Side, arrivals::Arrivals, log_file, rss_kib};

const KEY: &[u8] = b"goals/web";
/// Of a goal, as a region passes it on.
const VALUE_BYTES: usize = 1_400;
/// The name in the server's certificate.
const SERVER: &str = "region.longshore.internal";
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

pub(crate) struct Etcd {
    folder: PathBuf,
    address: SocketAddr,
    peer_address: SocketAddr,
    child: Child,
    client: Arc<ClientConfig>,
    connections: usize,
    writer: Connection,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Etcd {
    /// An etcd that its clients know by this authority.
    pub(crate) async fn start(folder: &Path, authority: &AuthorityFiles, connections: usize) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let client = certificates(folder, authority)?;
        let (address, peer_address) = (free_address()?, free_address()?);
        let child = spawn(folder, address, peer_address)?;
        let writer = ready(&client, address).await?;
        let (folder, tasks) = (folder.to_owned(), Vec::new());
        Ok(Self { folder, address, peer_address, child, client, connections, writer, tasks })
    }
}

impl Side for Etcd {
    async fn connect_all(&mut self, arrivals: &Arc<Arrivals>) -> Result<()> {
        let (connected, mut all) = mpsc::channel(self.connections);
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for index in 0..self.connections {
            let watcher = Watcher {
                index,
                client: self.client.clone(),
                address: self.address,
                revision: 0,
                arrivals: arrivals.clone(),
            };
            self.tasks.push(tokio::spawn(watcher.run(turns.clone(), connected.clone())));
        }
        for _ in 0..self.connections {
            all.recv().await.context("a watcher ended")?;
        }
        Ok(())
    }

    async fn publish(&mut self, version: u64) -> Result<()> {
        self.writer.put(version).await
    }

    fn rss_kib(&self) -> Result<f64> {
        rss_kib(&self.child)
    }

    /// The version is written as soon as it answers: etcd takes watchers from its first moment on.
    async fn restart(&mut self, version: u64) -> Result<()> {
        self.child.kill().await?;
        self.child = spawn(&self.folder, self.address, self.peer_address)?;
        self.writer = ready(&self.client, self.address).await?;
        self.writer.put(version).await
    }

    async fn stop(mut self) -> Result<()> {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.child.kill().await?;
        Ok(())
    }
}

/// The server's files, and what clients connect with. All clients have one certificate, which is all the same to etcd.
fn certificates(folder: &Path, authority: &AuthorityFiles) -> Result<Arc<ClientConfig>> {
    let (certifier, trust) = authority.read(&authority.content()?)?;
    let now = longshore_service::now();
    let server_key = Key::make()?;
    let server = certifier.certify_region(&Request::from_pem(&server_key.request()?)?, now)?;
    std::fs::write(folder.join("server.pem"), server)?;
    std::fs::write(folder.join("server.key"), server_key.pem())?;
    std::fs::write(folder.join("authority.pem"), trust.pem())?;
    let key = Key::make()?;
    let certificate = certifier.certify(&Request::from_pem(&key.request()?)?, &"watcher".parse()?, now)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trust.pem().as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.pem().as_bytes())?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Another one than that of the PATH can be named.
fn program() -> OsString {
    std::env::var_os("ETCD").unwrap_or_else(|| "etcd".into())
}

/// What it says of itself.
pub(crate) fn version() -> Result<String> {
    let output = std::process::Command::new(program()).arg("--version").output();
    let text = output.context("etcd cannot be started: infra/setup.sh etcd installs it")?.stdout;
    Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
}

fn spawn(folder: &Path, address: SocketAddr, peer_address: SocketAddr) -> Result<Child> {
    let mut command = Command::new(program());
    let (client_url, peer_url) = (format!("https://{address}"), format!("http://{peer_address}"));
    command.args(["--name", "one", "--initial-cluster", &format!("one={peer_url}")]);
    command.args(["--initial-advertise-peer-urls", &peer_url, "--listen-peer-urls", &peer_url]);
    command.args(["--advertise-client-urls", &client_url, "--listen-client-urls", &client_url]);
    command.arg("--data-dir").arg(folder.join("data")).arg("--client-cert-auth");
    command.arg("--cert-file").arg(folder.join("server.pem")).arg("--key-file").arg(folder.join("server.key"));
    command.arg("--trusted-ca-file").arg(folder.join("authority.pem")).args(["--log-level", "error"]);
    // It would ask etcd itself, over TLS, and nobody asks it.
    command.arg("--enable-grpc-gateway=false");
    command.stdin(Stdio::null()).stdout(log_file(folder, "etcd.log")?).stderr(log_file(folder, "etcd.log")?);
    command.kill_on_drop(true).spawn().context("etcd cannot be started: infra/setup.sh etcd installs it")
}

async fn ready(client: &Arc<ClientConfig>, address: SocketAddr) -> Result<Connection> {
    let answering = async {
        loop {
            if let Ok(mut connection) = Connection::open(client, address).await
                && connection.put(0).await.is_ok()
            {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(BOUND, answering).await.context("etcd does not answer: its log is etcd.log")
}

/// One HTTP/2 connection.
struct Connection(SendRequest<Bytes>);

impl Connection {
    async fn open(client: &Arc<ClientConfig>, address: SocketAddr) -> Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let tls = TlsConnector::from(client.clone()).connect(ServerName::try_from(SERVER)?, tcp).await?;
        let (send, connection) = h2::client::handshake(tls).await?;
        // It ends with its last stream.
        tokio::spawn(connection);
        Ok(Self(send))
    }

    /// A call's two directions, the first message sent.
    async fn call(&mut self, method: &str, message: &[u8], ends: bool) -> Result<(SendStream<Bytes>, Incoming)> {
        let request = http::Request::post(format!("https://{SERVER}/etcdserverpb.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut ready = self.0.clone().ready().await?;
        let (answer, mut sending) = ready.send_request(request, false)?;
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len())?);
        frame.put_slice(message);
        sending.send_data(frame.freeze(), ends)?;
        let answer = answer.await?;
        ensure!(answer.status().is_success(), "etcd answered {}", answer.status());
        Ok((sending, Incoming { body: answer.into_body(), buffer: BytesMut::new() }))
    }

    async fn put(&mut self, version: u64) -> Result<()> {
        let mut value = format!("{version};").into_bytes();
        value.resize(VALUE_BYTES, b'x');
        let message = [field(1, KEY), field(2, &value)].concat();
        let (_, mut incoming) = self.call("KV/Put", &message, true).await?;
        incoming.message().await?.context("no answer")?;
        Ok(())
    }
}

struct Incoming {
    body: RecvStream,
    buffer: BytesMut,
}

impl Incoming {
    /// The next message; None at the stream's end.
    async fn message(&mut self) -> Result<Option<BytesMut>> {
        loop {
            if let Some([_, length @ ..]) = self.buffer.first_chunk::<5>() {
                let length = u32::from_be_bytes(*length) as usize;
                if self.buffer.len() >= 5 + length {
                    let mut message = self.buffer.split_to(5 + length);
                    return Ok(Some(message.split_off(5)));
                }
            }
            let Some(data) = self.body.data().await else { return Ok(None) };
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
    }
}

struct Watcher {
    index: usize,
    client: Arc<ClientConfig>,
    address: SocketAddr,
    /// The store's, when what it saw last was written.
    revision: u64,
    arrivals: Arc<Arrivals>,
}

impl Watcher {
    async fn run(mut self, turns: Arc<Semaphore>, connected: mpsc::Sender<()>) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut first = Some((turns.acquire_owned().await, connected));
        loop {
            // What counts is that it comes back.
            let _ = self.watch(&mut first).await;
            let wait = backoff.next_wait(&mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }

    async fn watch<T>(&mut self, first: &mut Option<(T, mpsc::Sender<()>)>) -> Result<()> {
        let mut connection = Connection::open(&self.client, self.address).await?;
        let mut create = field(1, KEY);
        if self.revision > 0 {
            create.extend(number(3, self.revision + 1));
        }
        let (_sending, mut incoming) = connection.call("Watch/Watch", &field(1, &create), false).await?;
        while let Some(message) = incoming.message().await? {
            for (name, value) in fields(&message)? {
                match (name, value) {
                    (3, Value::Number(1)) => {
                        if let Some((_turn, connected)) = first.take() {
                            connected.send(()).await?;
                        }
                    }
                    (4, Value::Number(1)) => bail!("the watch was cancelled"),
                    (11, Value::Bytes(event)) => self.event(event)?,
                    _ => {}
                }
            }
        }
        bail!("the watch ended")
    }

    fn event(&mut self, event: &[u8]) -> Result<()> {
        for (name, value) in fields(event)? {
            let (2, Value::Bytes(pair)) = (name, value) else { continue };
            for (name, value) in fields(pair)? {
                match (name, value) {
                    (3, Value::Number(revision)) => self.revision = revision,
                    (5, Value::Bytes(value)) => {
                        let version = value.split(|byte| *byte == b';').next().unwrap_or_default();
                        self.arrivals.arrived(self.index, std::str::from_utf8(version)?.parse()?);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// A field of a message of Protocol Buffers.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn field(name: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![name << 3 | 2];
    varint(value.len() as u64, &mut bytes);
    bytes.extend_from_slice(value);
    bytes
}

fn number(name: u8, value: u64) -> Vec<u8> {
    let mut bytes = vec![name << 3];
    varint(value, &mut bytes);
    bytes
}

fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn fields(mut message: &[u8]) -> Result<Vec<(u64, Value<'_>)>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        let value = match tag & 7 {
            0 => Value::Number(take_varint(&mut message)?),
            2 => {
                let length = usize::try_from(take_varint(&mut message)?)?;
                ensure!(length <= message.len(), "a field is longer than its message");
                let (value, rest) = message.split_at(length);
                message = rest;
                Value::Bytes(value)
            }
            kind => bail!("a field of kind {kind}"),
        };
        found.push((tag >> 3, value));
    }
    Ok(found)
}

fn take_varint(message: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().context("a message ends within a number")?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number of more than 64 bits")
}
