//! The one connection to the region: says who this node is, says hello, hands on what comes, and connects again when it breaks.
//!
//! A region may have several processes. The node uses any of them, which one is chance, so that they share its nodes; when the
//! connection breaks it tries the next one, after a wait that differs from node to node.
//!
//! Nothing that goes over it needs to arrive: after each reconnect the node says again where it stands, what it has and
//! what it wants.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use longshore_artifact::ArtifactRoot;
use longshore_schemas::{
    ArtifactId, NodeId, PackId, RackName, RegionName, ServiceName, ZoneName,
    envelope::Envelope,
    events::{RegionalGoal, StringMap},
    stream::{FromNode, FromRegion, Hello},
};
use longshore_service::{metrics::Counters, retry::Backoff};
use longshore_signing::goal;
use longshore_swarm::{
    fetch::{FromTracker, Link},
    frames::{FrameCodec, FrameError},
};
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::{codec::Framed, sync::CancellationToken};

use crate::{
    Error, Folders,
    goals::{GoalKeeper, Offered, SERVICES_MAX},
    identity::{CertificateKeeper, Introduction},
    queries::Queries,
    releases,
    reports::Reports,
    takeover::Running,
};

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
const UNACKNOWLEDGED_MS_MAX: u32 = 30_000;
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Between two questions for a root that the region did not have.
const ROOT_RETRY: Duration = Duration::from_secs(2);
/// Messages that wait to be sent; they are dropped while there is no connection.
const OUTBOX: usize = 256;
/// Words of the tracker that wait for one fetch.
const TRACKER_INBOX: usize = 256;
/// Packs named in one message.
const PACKS_MAX: usize = 8_000;

static REFUSED: LazyLock<Counters<0>> = LazyLock::new(|| {
    Counters::new("longshore_node_goals_refused", "Goals that were not believed, or not for this region", [])
});

/// Who this node is, and where its region.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Of the region's processes, at least one.
    pub region_addresses: Vec<String>,
    pub node: NodeId,
    pub zone: ZoneName,
    pub rack: RackName,
    pub host: String,
    pub labels: StringMap,
    pub swarm_port: u16,
    pub boot: u64,
    /// Of this start of the agent, and no other anywhere.
    pub instance: String,
}

/// What the rest of the node asks of the region, whether there is a connection or not.
pub struct Exchange {
    to_region: mpsc::Sender<FromNode>,
    roots: Mutex<BTreeMap<ArtifactId, Vec<oneshot::Sender<Option<ArtifactRoot>>>>>,
    trackers: Mutex<BTreeMap<ArtifactId, mpsc::Sender<FromTracker>>>,
}

impl Exchange {
    /// The exchange, and what it wants sent.
    pub fn new() -> (Arc<Self>, mpsc::Receiver<FromNode>) {
        let (to_region, outbox) = mpsc::channel(OUTBOX);
        let exchange = Self { to_region, roots: Mutex::default(), trackers: Mutex::default() };
        (Arc::new(exchange), outbox)
    }

    /// An artifact's root object; waits for as long as it takes.
    pub async fn root(&self, artifact: ArtifactId) -> Result<ArtifactRoot, Error> {
        loop {
            let (answer, answered) = oneshot::channel();
            self.lock_roots().entry(artifact).or_default().push(answer);
            self.to_region.send(FromNode::RootWanted { artifact }).await.map_err(|_| Error::Stopping)?;
            match answered.await {
                Ok(Some(root)) => return Ok(root),
                Ok(None) => sleep(ROOT_RETRY).await,
                Err(_) => return Err(Error::Stopping),
            }
        }
    }

    /// A line to the tracker for one artifact. A second one for the same artifact takes the place of the first.
    pub fn link(&self, artifact: ArtifactId) -> Link {
        let (told, from_tracker) = mpsc::channel(TRACKER_INBOX);
        let mut trackers = self.lock_trackers();
        trackers.retain(|_, tracker| !tracker.is_closed());
        trackers.insert(artifact, told);
        Link { to_region: self.to_region.clone(), from_tracker }
    }

    /// Tells the tracker what this node has of an artifact, besides what it fetched through a [`Link`].
    pub async fn have(&self, artifact: ArtifactId, packs: Vec<PackId>) {
        for packs in packs.chunks(PACKS_MAX) {
            // An error means that the node is stopping.
            let _ = self.to_region.send(FromNode::HaveMore { artifact, packs: packs.to_vec() }).await;
        }
    }

    /// Tells the tracker what is left of an artifact, after packs were removed: nobody is sent here for others.
    pub async fn have_only(&self, artifact: ArtifactId, held: &[PackId]) {
        for message in levels(artifact, held) {
            // As above.
            let _ = self.to_region.send(message).await;
        }
    }

    fn lock_roots(
        &self,
    ) -> std::sync::MutexGuard<'_, BTreeMap<ArtifactId, Vec<oneshot::Sender<Option<ArtifactRoot>>>>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_trackers(&self) -> std::sync::MutexGuard<'_, BTreeMap<ArtifactId, mpsc::Sender<FromTracker>>> {
        self.trackers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root_came(&self, artifact: ArtifactId, root: Option<&serde_json::Value>) {
        let root = root.and_then(|root| {
            let parsed = ArtifactRoot::from_json(&artifact, root.to_string().as_bytes());
            parsed.inspect_err(|error| tracing::warn!(%artifact, %error, "the region sent a bad root")).ok()
        });
        for waiting in self.lock_roots().remove(&artifact).unwrap_or_default() {
            // Who asked may have stopped asking.
            let _ = waiting.send(root.clone());
        }
    }

    /// A full inbox drops the word: the policy asks again.
    fn told(&self, artifact: &ArtifactId, word: FromTracker) {
        let mut trackers = self.lock_trackers();
        if let Some(tracker) = trackers.get(artifact)
            && let Err(mpsc::error::TrySendError::Closed(_)) = tracker.try_send(word)
        {
            trackers.remove(artifact);
        }
    }

    /// What to ask again on a new connection.
    fn reconnected(&self) -> Vec<FromNode> {
        self.lock_trackers().retain(|_, tracker| tracker.try_send(FromTracker::Reconnected).is_ok());
        self.lock_roots().keys().map(|artifact| FromNode::RootWanted { artifact: *artifact }).collect()
    }
}

/// All that this node serves of an artifact, in place of what was said of it before.
fn levels(artifact: ArtifactId, held: &[PackId]) -> impl Iterator<Item = FromNode> {
    let mut parts = held.chunks(PACKS_MAX).map(<[PackId]>::to_vec);
    let all = FromNode::Have { artifact, packs: parts.next().unwrap_or_default() };
    std::iter::once(all).chain(parts.map(move |packs| FromNode::HaveMore { artifact, packs }))
}

/// Everything the connection touches.
pub struct Connector {
    pub identity: Identity,
    pub certificates: CertificateKeeper,
    pub running: Running,
    pub folders: Folders,
    pub goals: Arc<GoalKeeper>,
    pub reports: Reports,
    pub exchange: Arc<Exchange>,
    pub queries: Queries,
    pub outbox: mpsc::Receiver<FromNode>,
    pub store: longshore_swarm::PackStore,
    /// Goals that were not believed, the last of each service.
    pub refused: BTreeMap<ServiceName, Envelope>,
}

type Stream = Framed<longshore_identity::Stream, FrameCodec<FromRegion, FromNode>>;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Frame(FrameError),
    #[error("the region closed the connection")]
    Closed,
    #[error("the region did not answer in time")]
    Silent,
    #[error("the region refuses this node: {reason}")]
    Refused { reason: String, retry: Option<Duration> },
    #[error("the region does not take this node's certificate")]
    NotBelieved,
    #[error("the region's certificate is not believed ({0}): check --region-authority, and this machine's clock")]
    Unbelievable(String),
    /// It is as it should be: the next connection shows the certificate.
    #[error("the region gave this node a certificate")]
    Certified,
    #[error("{0}")]
    Own(#[from] Error),
}

impl Ended {
    /// Before the region has shown who it is, nothing that is said counts.
    fn handshake(error: std::io::Error) -> Self {
        match longshore_identity::refused_by(&error) {
            Some(reason) => Self::Unbelievable(reason),
            None => Self::Io(error),
        }
    }
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) if longshore_identity::is_refusal(&error) => Self::NotBelieved,
            FrameError::Io(error) => Self::Io(error),
            error => Self::Frame(error),
        }
    }
}

impl Connector {
    /// Stays connected until the shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let addresses = self.identity.region_addresses.clone();
        if addresses.is_empty() {
            tracing::error!("no address of the region is known");
            return;
        }
        let mut turn = rand::random_range(0..addresses.len());
        while !shutdown.is_cancelled() {
            let begun = Instant::now();
            let address = &addresses[turn % addresses.len()];
            turn = turn.wrapping_add(1);
            let ended = shutdown.run_until_cancelled(self.connection(address)).await;
            if let Err(error) = self.running.disconnected(&self.folders) {
                tracing::warn!(error = error.whole(), "that this agent is not connected cannot be kept");
            }
            let Some(Err(ended)) = ended else { return };
            // Not as soon as it stands: what breaks it may come again right after the greeting.
            if begun.elapsed() > RETRY_MAX {
                backoff.reset();
            }
            let mut wait = backoff.next_wait(&mut rand::rng());
            if let Ended::Refused { retry, .. } = &ended {
                wait = wait.max(retry.unwrap_or(Duration::from_secs(30)));
            }
            match ended {
                Ended::Certified => tracing::info!(address, "the region gave this node a certificate"),
                ended => tracing::warn!(address, error = %ended, "no connection to the region"),
            }
            let waited = shutdown.run_until_cancelled(self.drain_for(wait)).await;
            if waited.is_none() {
                return;
            }
        }
    }

    /// Nobody who writes waits for a region that is away.
    async fn drain_for(&mut self, wait: Duration) {
        let drain = async { while self.outbox.recv().await.is_some() {} };
        // It ends only when the node does.
        let _ = timeout(wait, drain).await;
    }

    async fn connection(&mut self, address: &str) -> Result<(), Ended> {
        let connecting = TcpStream::connect(address);
        let tcp = timeout(CONNECT, connecting).await.map_err(|_| Ended::Silent)??;
        tcp.set_nodelay(true)?;
        // Beats that nobody acknowledges end the connection: a region that vanished says no goodbye.
        rustix::net::sockopt::set_tcp_user_timeout(&tcp, UNACKNOWLEDGED_MS_MAX).map_err(std::io::Error::from)?;
        let introduction = self.certificates.introduction()?;
        let ended = self.introduced(tcp, &introduction).await;
        match (&ended, &introduction) {
            (Err(Ended::NotBelieved), _) | (Err(Ended::Refused { .. }), Introduction::Message(_)) => {
                self.certificates.refused(&introduction);
            }
            _ => {}
        }
        let (stream, beat) = ended?;
        let region = self.certificates.tls().trust().region().clone();
        self.converse(stream, beat, &region).await
    }

    /// A connection on which everything else can be said, and how often to say something.
    async fn introduced(&self, tcp: TcpStream, introduction: &Introduction) -> Result<(Stream, Duration), Ended> {
        let tls = self.certificates.tls();
        let as_stranger = matches!(introduction, Introduction::Message(_));
        let stream = tls.connect_to_region(tcp, as_stranger).await.map_err(Ended::handshake)?;
        let mut stream = Framed::new(stream, FrameCodec::default());
        if let Introduction::Message(message) = introduction {
            stream.send(message.clone()).await?;
            return match answer(&mut stream).await? {
                FromRegion::Certified { certificate } => {
                    self.certificates.certified(certificate)?;
                    Err(Ended::Certified)
                }
                other => Err(unexpected(&other)),
            };
        }
        stream.send(FromNode::Hello(self.hello())).await?;
        let own = tls.trust().region().clone();
        let beat = match answer(&mut stream).await? {
            FromRegion::Welcome { region, .. } if region != own => {
                let says = format!("it says that it is {region}, and this node is one of {own}");
                return Err(Error::Refused(says).into());
            }
            FromRegion::Welcome { region, beat_seconds } => {
                tracing::info!(%region, "connected");
                Duration::from_secs(beat_seconds.max(1).into())
            }
            other => return Err(unexpected(&other)),
        };
        for message in self.greetings() {
            stream.feed(message).await?;
        }
        SinkExt::<FromNode>::flush(&mut stream).await?;
        Ok((stream, beat))
    }

    fn hello(&self) -> Hello {
        let identity = &self.identity;
        Hello {
            node: identity.node.clone(),
            instance: identity.instance.clone(),
            zone: identity.zone.clone(),
            rack: identity.rack.clone(),
            host: identity.host.clone(),
            swarm_port: identity.swarm_port,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: identity.boot,
            labels: identity.labels.clone(),
            answers_queries: true,
            goals: self.goals.versions(),
        }
    }

    /// What every new connection begins with: levels and wishes.
    fn greetings(&self) -> Vec<FromNode> {
        let mut messages: Vec<_> = self.reports.all().into_iter().map(FromNode::Report).collect();
        for root in releases::known_roots(&self.folders) {
            let packs: Vec<PackId> = root.all_packs().iter().map(|pack| pack.pack).collect();
            messages.extend(levels(root.artifact, &self.store.held(&packs)));
        }
        messages.extend(self.exchange.reconnected());
        messages
    }

    async fn converse(&mut self, mut stream: Stream, beat: Duration, region: &RegionName) -> Result<(), Ended> {
        let mut beats = interval(beat);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = stream.next() => self.handle(message.ok_or(Ended::Closed)??, region)?,
                message = self.outbox.recv() => match message {
                    Some(message) => stream.send(message).await?,
                    None => return Ok(()),
                },
                reports = self.reports.unsent() => for report in reports {
                    stream.send(FromNode::Report(report)).await?;
                },
                _ = beats.tick() => {
                    self.try_again(region);
                    self.certificates.follow_authorities();
                    if let Err(error) = self.running.connected(&self.folders) {
                        tracing::warn!(error = error.whole(), "that this agent is connected cannot be kept");
                    }
                    if let Some(renewal) = self.certificates.renewal()? {
                        stream.send(renewal).await?;
                    }
                    stream.send(FromNode::Beat).await?;
                }
            }
        }
    }

    /// What was not believed, in case it is now: keys are files, which people change.
    fn try_again(&mut self, region: &RegionName) {
        let goals = &self.goals;
        let reports = &self.reports;
        self.refused.retain(|_, envelope| match goals.accept(envelope, region) {
            Ok(Offered { service, version, .. }) => {
                reports.trouble(&service, version, None);
                false
            }
            Err(_) => true,
        });
    }

    fn take_goal(&mut self, envelope: Envelope, region: &RegionName) -> Result<(), Ended> {
        // Whoever says it: to tell of what service there is trouble.
        let claimed = goal::read(&envelope);
        let error = match self.goals.accept(&envelope, region) {
            Ok(Offered { service, version, is_news }) => {
                tracing::info!(%service, %version, is_news, "goal");
                self.reports.trouble(&service, version, None);
                self.refused.remove(&service);
                return Ok(());
            }
            Err(error) => error,
        };
        if let Some(RegionalGoal { service, version, .. }) = claimed {
            let what = if matches!(error, Error::Refused(_)) { "is not taken" } else { "cannot be kept" };
            self.reports.trouble(&service, version, Some(format!("goal {version} {what}: {}", error.whole())));
            // The key that it is signed with may be on its way here.
            if self.refused.len() < SERVICES_MAX || self.refused.contains_key(&service) {
                self.refused.insert(service, envelope);
            }
        }
        match error {
            // The other services go on. It is tried again with each beat.
            Error::Refused(reason) => {
                REFUSED.count([], 1);
                tracing::error!(reason, "goal refused");
                Ok(())
            }
            // It is not on disk: the region gives it again on the next connection.
            error => Err(error.into()),
        }
    }

    fn handle(&mut self, message: FromRegion, region: &RegionName) -> Result<(), Ended> {
        match message {
            FromRegion::Goal(envelope) => self.take_goal(envelope, region)?,
            FromRegion::Query(envelope) => {
                self.queries.take(envelope, region.clone(), self.exchange.to_region.clone());
            }
            FromRegion::Root { artifact, root } => self.exchange.root_came(artifact, root.as_ref()),
            FromRegion::Sources { artifact, peers, tickets } => {
                self.exchange.told(&artifact, FromTracker::Sources { peers, tickets });
            }
            FromRegion::Certified { certificate } => warn_of(self.certificates.renewed(certificate)),
            FromRegion::Trust { authorities, revoked } => warn_of(self.certificates.told(authorities, revoked)),
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }
}

/// The node goes on with the identity that it has.
fn warn_of(taken: Result<(), Error>) {
    if let Err(error) = taken {
        tracing::error!(error = error.whole(), "what the region says of the node's identity cannot be taken or kept");
    }
}

async fn answer(stream: &mut Stream) -> Result<FromRegion, Ended> {
    let next = timeout(ANSWER, stream.next()).await.map_err(|_| Ended::Silent)?;
    Ok(next.ok_or(Ended::Closed)??)
}

fn unexpected(message: &FromRegion) -> Ended {
    match message {
        FromRegion::Refused { reason, retry_seconds } => Ended::Refused {
            reason: reason.clone(),
            retry: retry_seconds.map(|seconds| Duration::from_secs(seconds.into())),
        },
        other => Error::Refused(format!("the region sent what was not expected: {other:?}")).into(),
    }
}
