//! Connections: TLS 1.3, both sides by the region's authority.
//!
//! A connection lives longer than what was believed when it began: [`Peer::check`] asks again.

use std::{
    fmt, io,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use longshore_schemas::{NodeId, Timestamp};
use rustls::{
    AlertDescription, ClientConfig, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    server::{Acceptor, NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader},
    net::TcpStream,
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, TlsStream, client, server};

use crate::{Credentials, Distrust, Error, Holder, Trust, holder};

/// What TLS calls the two kinds of holders. Which region it is, is the authority's to say, and which node, its URI's.
pub(crate) const REGION: &str = "region.longshore.internal";
pub(crate) const NODE: &str = "node.longshore.internal";
/// A client says its first word within this.
const CLIENT_HELLO: Duration = Duration::from_secs(2);
/// Both sides have shown who they are within this.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes that a server makes at a time: they cost the processor more than all that follows.
pub const HANDSHAKES_MAX: usize = 256;

/// Read from a peer's connection at a time: rustls asks for 4 KiB, which for gigabytes are too many calls.
const PEER_READ_BYTES: usize = 64 * 1024;

pub type Stream = TlsStream<TcpStream>;
/// Between nodes, who send each other much.
pub type PeerStream = TlsStream<BufReader<TcpStream>>;

/// A connection, and who is at its other end.
pub struct Handshaken<P, S = Stream> {
    pub stream: S,
    pub peer: P,
}

/// Ring's, for every certificate and connection.
pub(crate) fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// Who a process is and whom it believes, for all of its connections.
pub struct Tls {
    state: RwLock<Arc<State>>,
    /// Of whom is believed.
    generation: watch::Sender<u64>,
    handshakes: Semaphore,
}

struct State {
    credentials: Option<Credentials>,
    trust: Trust,
    /// Without credentials one serves nobody.
    servers: Option<Servers>,
    client: Arc<ClientConfig>,
    /// Shows nothing of oneself.
    stranger: Arc<ClientConfig>,
}

struct Servers {
    /// Takes those without a certificate too.
    open: Arc<ServerConfig>,
    closed: Arc<ServerConfig>,
}

impl Tls {
    /// Without credentials it can connect to the region, as a stranger.
    pub fn new(credentials: Option<Credentials>, trust: Trust) -> Result<Arc<Self>, Error> {
        let state = RwLock::new(Arc::new(State::new(credentials, trust)?));
        Ok(Arc::new(Self { state, generation: watch::Sender::new(1), handshakes: Semaphore::new(HANDSHAKES_MAX) }))
    }

    /// Of whom one is and whom one believes, this is so from now on, for connections that there are too.
    pub fn set(&self, credentials: Option<Credentials>, trust: Trust) -> Result<(), Error> {
        let is_new = trust != self.trust();
        let state = Arc::new(State::new(credentials, trust)?);
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        if is_new {
            self.generation.send_modify(|generation| *generation += 1);
        }
        Ok(())
    }

    pub fn trust(&self) -> Trust {
        self.state().trust.clone()
    }

    pub fn credentials(&self) -> Option<Credentials> {
        self.state().credentials.clone()
    }

    /// Changes whenever others are believed than before.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a node's connection, that of somebody who wants to become one (`None`), or of one who is told why not.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<Handshaken<Result<Option<Peer>, Distrust>>> {
        let config = self.state().servers.as_ref().map(|servers| servers.open.clone()).ok_or_else(nobody)?;
        let stream = self.handshaken(tcp, config).await?;
        let peer = match certificate(stream.get_ref().1.peer_certificates()) {
            Ok(certificate) => self.peer(certificate).map(Some),
            Err(_) => Ok(None),
        };
        Ok(Handshaken { stream: stream.into(), peer })
    }

    /// Takes a peer's connection, which must be a node's.
    pub async fn accept_node(&self, tcp: TcpStream) -> io::Result<Handshaken<Peer, PeerStream>> {
        let config = self.state().servers.as_ref().map(|servers| servers.closed.clone()).ok_or_else(nobody)?;
        let stream = self.handshaken(BufReader::with_capacity(PEER_READ_BYTES, tcp), config).await?;
        let certificate = certificate(stream.get_ref().1.peer_certificates())?;
        let peer = self.peer(certificate).map_err(io::Error::other)?;
        Ok(Handshaken { stream: stream.into(), peer })
    }

    /// Who says nothing takes nobody's turn; who says no more than hello takes it for seconds.
    async fn handshaken<S>(&self, tcp: S, config: Arc<ServerConfig>) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp);
        let hello = timeout(CLIENT_HELLO, hello).await.map_err(|_| slow())??;
        let _turn = self.handshakes.acquire().await.map_err(io::Error::other)?;
        within(hello.into_stream(config)).await
    }

    /// Connects to a process of the region, whoever that is; as a stranger, if one has no certificate or one that is no longer taken.
    pub async fn connect_to_region(&self, tcp: TcpStream, as_stranger: bool) -> io::Result<Stream> {
        let state = self.state();
        let config = if as_stranger { &state.stranger } else { &state.client };
        Ok(connect(config, REGION, tcp).await?.into())
    }

    /// Connects to this node, and no other.
    pub async fn connect_to_node(&self, tcp: TcpStream, node: &NodeId) -> io::Result<Handshaken<Peer, PeerStream>> {
        let state = self.state();
        if state.credentials.is_none() {
            return Err(nobody());
        }
        let stream = connect(&state.client, NODE, BufReader::with_capacity(PEER_READ_BYTES, tcp)).await?;
        let certificate = certificate(stream.get_ref().1.peer_certificates())?;
        let peer = self.peer(certificate).map_err(io::Error::other)?;
        if peer.node != *node {
            let (found, expected) = (format!("node {}", peer.node), format!("node {node}"));
            return Err(io::Error::other(Distrust::Other { found, expected }));
        }
        Ok(Handshaken { stream: stream.into(), peer })
    }

    /// Whom a certificate in PEM names, which this process gave or was given.
    pub fn known(&self, pem: &str) -> Result<Peer, Distrust> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
        self.peer(certificate.map_err(|error| Distrust::Unverified(error.to_string()))?)
    }

    fn peer(&self, certificate: CertificateDer<'static>) -> Result<Peer, Distrust> {
        let generation = *self.generation.borrow();
        let now = longshore_service::now();
        let node = self.trust().node(&certificate, now)?;
        // It was read to find the node.
        let until = holder::read(&certificate).map_or(now, |read| read.until);
        Ok(Peer { node, certificate, until, generation })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "Tls({:?}, region {})", state.credentials, state.trust.region())
    }
}

/// A node at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    node: NodeId,
    certificate: CertificateDer<'static>,
    until: Timestamp,
    /// Of what was believed when it was last asked.
    generation: u64,
}

impl Peer {
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Whether it is still believed. Costs nothing unless something changed.
    pub fn check(&mut self, tls: &Tls, now: Timestamp) -> Result<(), Distrust> {
        if now >= self.until {
            return Err(Distrust::Over(self.until));
        }
        let generation = *tls.generation.borrow();
        if generation != self.generation {
            tls.trust().node(&self.certificate, now)?;
            self.generation = generation;
        }
        Ok(())
    }
}

impl State {
    fn new(credentials: Option<Credentials>, trust: Trust) -> Result<Self, Error> {
        let failed = |error: &dyn fmt::Display| Error::Tls(error.to_string());
        let provider = Arc::new(provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(trust.roots(), provider.clone());
        let verifier = verifier.build().map_err(|error| failed(&error))?;
        let client = |credentials: Option<&Credentials>| {
            let config = ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&TLS13])
                .map_err(|error| failed(&error))?
                .with_webpki_verifier(verifier.clone());
            let mut config = match credentials {
                Some(credentials) => config.with_client_cert_resolver(credentials.resolver()),
                None => config.with_no_client_auth(),
            };
            // What was believed once is asked again each time.
            config.resumption = Resumption::disabled();
            Ok::<_, Error>(Arc::new(config))
        };
        let server = |credentials: &Credentials, is_open: bool| {
            let verifier = WebPkiClientVerifier::builder_with_provider(trust.roots(), provider.clone());
            let verifier = if is_open { verifier.allow_unauthenticated() } else { verifier };
            let mut config = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&TLS13])
                .map_err(|error| failed(&error))?
                .with_client_cert_verifier(verifier.build().map_err(|error| failed(&error))?)
                .with_cert_resolver(credentials.resolver());
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok::<_, Error>(Arc::new(config))
        };
        let servers = match &credentials {
            Some(own) => Some(Servers { open: server(own, true)?, closed: server(own, false)? }),
            None => None,
        };
        let (stranger, client) = (client(None)?, client(credentials.as_ref())?);
        if let Some(own) = &credentials
            && own.named().holder == Holder::Authority
        {
            return Err(Error::Holder { found: own.named().to_string(), expected: "a region or a node".to_owned() });
        }
        Ok(Self { credentials, trust, servers, client, stranger })
    }
}

async fn connect<S>(config: &Arc<ClientConfig>, name: &'static str, tcp: S) -> io::Result<client::TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    within(TlsConnector::from(config.clone()).connect(name, tcp)).await
}

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let ended = timeout(HANDSHAKE, handshake).await;
    ended.map_err(|_| slow())?
}

fn slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long")
}

fn certificate(shown: Option<&[CertificateDer<'static>]>) -> io::Result<CertificateDer<'static>> {
    shown.and_then(<[_]>::first).cloned().ok_or_else(|| io::Error::other("it shows no certificate"))
}

fn nobody() -> io::Error {
    io::Error::other("this node has no certificate yet")
}

/// The other side does not take one's certificate.
pub fn is_refusal(error: &io::Error) -> bool {
    use AlertDescription as Alert;
    matches!(
        tls_error(error),
        Some(rustls::Error::AlertReceived(
            Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::UnsupportedCertificate
                | Alert::DecryptError
        ))
    )
}

/// One's own reason not to take the other side's certificate.
pub fn refused_by(error: &io::Error) -> Option<String> {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(reason)) => Some(reason.to_string()),
        _ => None,
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
