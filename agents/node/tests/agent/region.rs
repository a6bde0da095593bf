//! A region in the test's own process: a listener for the node, a tiny HTTP server as bucket, and what the test wants said.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use longshore_artifact::{
    ArtifactRoot, Bases, Index, PackRead, PackRef, PackSink, ReadError, SinkError,
    outline::{BLOCK_BYTES, Outline},
    publish,
};
use longshore_identity::{Handshaken, Request as CertificateRequest, Tls, testing::World};
use longshore_provenance::imported;
use longshore_schemas::{
    ArtifactId, NodeId, PackId, RequestId, ServiceName, Timestamp, codec,
    envelope::Envelope,
    events::{ArtifactOrigin, GoalState, LogWanted, NodeQuery, NodeStatus, RegionalGoal, Request},
    stream::{Answer, FromNode, FromRegion, Hello, NodeReport, PeerPacks, Ticket},
};
use longshore_signing::{SigningKey, goal::GOAL, query::QUERY, record};
use longshore_swarm::frames::FrameCodec;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{broadcast, watch},
    time::timeout,
};
use tokio_util::codec::Framed;

const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const TOKEN: &str = "ls_node_test";

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Region(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    bucket: SocketAddr,
    world: World,
    tls: Arc<Tls>,
    /// So long ago the next certificate was made, by its own word.
    certificate_age: Mutex<Duration>,
    packs: Packs,
    roots: Mutex<BTreeMap<ArtifactId, ArtifactRoot>>,
    /// Told to each node that connects, and as they come.
    goals: Mutex<BTreeMap<ServiceName, Envelope>>,
    pushed: broadcast::Sender<FromRegion>,
    /// In place of tickets, if the test wants so.
    peers: Mutex<Vec<PeerPacks>>,
    hold: watch::Sender<Hold>,
    served: watch::Sender<Served>,
    heard: watch::Sender<Heard>,
    /// Whether it takes no connection.
    away: watch::Sender<bool>,
}

/// What the bucket gives only the first half of, in whole blocks, until it holds nothing any more.
#[derive(Default)]
pub(crate) enum Hold {
    #[default]
    Nothing,
    These(BTreeSet<PackId>),
    /// All that is asked for after so many others.
    AllAfter(usize),
}

/// What the bucket was asked for, and what it gave.
#[derive(Default, Clone)]
pub(crate) struct Served {
    /// How often each pack was asked for.
    pub(crate) asked: BTreeMap<PackId, usize>,
    pub(crate) bytes: u64,
    /// Answers that wait with their second half.
    pub(crate) held: usize,
}

/// All that nodes said, in order.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) enrolments: usize,
    /// Certificates for those whose last one ran out, and for those whose last one will.
    pub(crate) restored: usize,
    pub(crate) renewed: usize,
    pub(crate) beats: usize,
    pub(crate) hellos: Vec<Hello>,
    pub(crate) reports: Vec<NodeReport>,
    pub(crate) answers: BTreeMap<RequestId, Answer>,
    /// What there is of each artifact, by the last word.
    pub(crate) have: BTreeMap<ArtifactId, BTreeSet<PackId>>,
}

#[derive(Clone, Default)]
struct Packs(Arc<Mutex<HashMap<PackId, Bytes>>>);

#[async_trait::async_trait]
impl PackSink for Packs {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        self.0.lock().expect("sound").insert(pack, bytes);
        Ok(())
    }
}

impl PackRead for Packs {
    fn read_at(&self, pack: &PackRef, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let packs = self.0.lock().expect("sound");
        let bytes = packs.get(&pack.pack).ok_or(ReadError::Missing)?;
        buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

impl Region {
    pub(crate) async fn start() -> Self {
        let listen = || async { TcpListener::bind("127.0.0.1:0").await.expect("listens") };
        let (nodes, bucket) = (listen().await, listen().await);
        let world = World::new("eu");
        let region = Self(Arc::new(Inner {
            tls: world.region(),
            world,
            certificate_age: Mutex::default(),
            address: nodes.local_addr().expect("bound"),
            bucket: bucket.local_addr().expect("bound"),
            packs: Packs::default(),
            roots: Mutex::default(),
            goals: Mutex::default(),
            pushed: broadcast::Sender::new(100),
            peers: Mutex::default(),
            hold: watch::Sender::default(),
            served: watch::Sender::default(),
            heard: watch::Sender::default(),
            away: watch::Sender::default(),
        }));
        tokio::spawn(serve_bucket(bucket, region.clone()));
        let accepting = region.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = nodes.accept().await {
                let region = accepting.clone();
                // It ends when the node goes away, or the region does.
                tokio::spawn(async move {
                    let mut away = region.0.away.subscribe();
                    tokio::select! {
                        ended = region.talk(stream) => ended,
                        _ = away.wait_for(|away| *away) => None,
                    }
                });
            }
        });
        region
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// It is not there, or again.
    pub(crate) fn go_away(&self, away: bool) {
        self.0.away.send_replace(away);
    }

    /// What nodes know it by.
    pub(crate) fn authority(&self) -> &str {
        self.0.world.trust.pem()
    }

    /// The next certificate says that it was made so long ago.
    pub(crate) fn age_next_certificate(&self, age: Duration) {
        *self.0.certificate_age.lock().expect("sound") = age;
    }

    fn certificate(&self, node: &NodeId, request: &str) -> FromRegion {
        let age = std::mem::take(&mut *self.0.certificate_age.lock().expect("sound"));
        let now = longshore_service::now();
        let made = Timestamp(now.millis() - i64::try_from(age.as_millis()).expect("short"));
        let request = CertificateRequest::from_pem(request).expect("a request");
        let certificate = self.0.world.authority.certify(&request, node, made).expect("certified");
        FromRegion::Certified { certificate }
    }

    /// Publishes a folder, on top of an earlier artifact.
    pub(crate) async fn publish(&self, folder: &Path, base: Option<ArtifactId>) -> ArtifactId {
        let bases = base.map_or_else(Bases::default, |base| Bases::from(&self.index(&base)));
        let published = publish(folder, bases, Arc::new(self.0.packs.clone())).await.expect("published");
        let mut root = published.root;
        let artifact = root.artifact;
        let origin = ArtifactOrigin { url: "https://ci.example/1".to_owned(), imported_by: "somebody".to_owned() };
        root.provenance = Some(imported(&artifact, "web", &origin, Timestamp(0)).sign(&provenance_key()));
        self.0.roots.lock().expect("sound").insert(artifact, root);
        artifact
    }

    pub(crate) fn origin(&self, artifact: &ArtifactId) -> Option<Envelope> {
        self.0.roots.lock().expect("sound")[artifact].provenance.clone()
    }

    /// What is said of where the artifact comes from.
    pub(crate) fn change_origin(&self, artifact: &ArtifactId, provenance: Option<Envelope>) {
        self.0.roots.lock().expect("sound").get_mut(artifact).expect("published").provenance = provenance;
    }

    pub(crate) fn root(&self, artifact: &ArtifactId) -> ArtifactRoot {
        self.0.roots.lock().expect("sound")[artifact].clone()
    }

    fn index(&self, artifact: &ArtifactId) -> Index {
        Index::load(&self.root(artifact), &self.0.packs).expect("readable")
    }

    /// What the bucket gives from now on.
    pub(crate) fn hold(&self, hold: Hold) {
        self.0.hold.send_replace(hold);
    }

    /// What the bucket gave so far.
    pub(crate) fn served(&self) -> Served {
        self.0.served.borrow().clone()
    }

    /// Sends a goal to all nodes, now and when they connect.
    pub(crate) fn push(&self, goal: RegionalGoal) {
        self.push_by(goal, &goal_key());
    }

    /// A goal that this key signed.
    pub(crate) fn push_by(&self, goal: RegionalGoal, key: &SigningKey) {
        let (service, envelope) = (goal.service.clone(), signed(goal, key));
        self.0.goals.lock().expect("sound").insert(service, envelope.clone());
        // Nobody may be connected.
        let _ = self.0.pushed.send(FromRegion::Goal(envelope));
    }

    /// Asks a node for the end of a service's log.
    pub(crate) fn ask(&self, id: &str, wanted: LogWanted, key: &SigningKey) {
        self.ask_at(longshore_service::now(), id, wanted, key);
    }

    pub(crate) fn ask_at(&self, at: Timestamp, id: &str, wanted: LogWanted, key: &SigningKey) {
        let (id, actor) = (id.parse().expect("valid"), "ada".to_owned());
        let request = Request { id, at, actor, trace: None, report: None, event: NodeQuery::from(wanted) };
        let value = codec::encode(&request).expect("encodes");
        let header = record::sign(&QUERY, &value, key);
        self.tell(FromRegion::Query(record::envelope(&QUERY, &value, Some(&header)).expect("it is signed")));
    }

    /// Says this to all nodes that are connected.
    pub(crate) fn tell(&self, message: FromRegion) {
        self.0.pushed.send(message).expect("a node is connected");
    }

    /// From now on nodes are sent to this peer, which has all packs, and get no tickets.
    pub(crate) fn only_peer(&self, peer: &Hello) {
        let packs = self.0.packs.0.lock().expect("sound").keys().copied().collect();
        let address = format!("{}:{}", peer.host, peer.swarm_port);
        let peer = PeerPacks { node: peer.node.clone(), address, rack: peer.rack.clone(), packs, planned: None };
        *self.0.peers.lock().expect("sound") = vec![peer];
    }

    /// Waits until something in what was heard is as wanted.
    pub(crate) async fn wait_for<T>(&self, what: &str, find: impl Fn(&Heard) -> Option<T>) -> T {
        let mut heard = self.0.heard.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = find(&heard.borrow_and_update()) {
                    return found;
                }
                heard.changed().await.expect("the region lives");
            }
        };
        match timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("no {what}; the reports were {:#?}", self.0.heard.borrow().reports),
        }
    }

    /// Waits for a report of this status on this revision.
    pub(crate) async fn wait_status(&self, service: &str, revision: u64, status: NodeStatus) -> NodeReport {
        let is = |report: &&NodeReport| {
            report.service.as_str() == service && report.version.revision == revision && report.status == status
        };
        let find = |heard: &Heard| heard.reports.iter().find(is).cloned();
        self.wait_for(&format!("{status:?} of {service} at {revision}"), find).await
    }

    async fn talk(&self, stream: TcpStream) -> Option<()> {
        let Handshaken { stream, peer } = self.0.tls.accept(stream).await.ok()?;
        let peer = peer.ok()?.map(|peer| peer.node().clone());
        let mut stream = Framed::new(stream, FrameCodec::<FromNode, FromRegion>::new());
        let mut pushed = self.0.pushed.subscribe();
        loop {
            tokio::select! {
                message = stream.next() => {
                    for answer in self.answers(message?.ok()?, peer.as_ref()) {
                        stream.send(answer).await.ok()?;
                    }
                }
                message = pushed.recv() => stream.send(message.ok()?).await.ok()?,
            }
        }
    }

    fn answers(&self, message: FromNode, peer: Option<&NodeId>) -> Vec<FromRegion> {
        let region = "eu".parse().expect("valid");
        match message {
            FromNode::Enrol { token, node, request } => {
                assert_eq!(token, TOKEN);
                self.0.heard.send_modify(|heard| heard.enrolments += 1);
                vec![self.certificate(&node, &request)]
            }
            FromNode::Restore { certificate, request } => {
                let key = CertificateRequest::from_pem(&request).expect("a request");
                let node = self.0.world.trust.former_node(&certificate, key.public_key(), longshore_service::now());
                self.0.heard.send_modify(|heard| heard.restored += 1);
                vec![self.certificate(&node.expect("its own"), &request)]
            }
            FromNode::Renew { request } => {
                self.0.heard.send_modify(|heard| heard.renewed += 1);
                vec![self.certificate(peer.expect("a node"), &request)]
            }
            FromNode::Hello(hello) => {
                assert_eq!(Some(&hello.node), peer);
                let goals = self.0.goals.lock().expect("sound").clone();
                self.0.heard.send_modify(|heard| heard.hellos.push(hello));
                let welcome = FromRegion::Welcome { region, beat_seconds: 1 };
                std::iter::once(welcome).chain(goals.into_values().map(FromRegion::Goal)).collect()
            }
            FromNode::Beat => {
                self.0.heard.send_modify(|heard| heard.beats += 1);
                vec![]
            }
            FromNode::Report(report) => {
                self.0.heard.send_modify(|heard| heard.reports.push(report));
                vec![]
            }
            FromNode::RootWanted { artifact } => {
                let root = self.0.roots.lock().expect("sound").get(&artifact).map(ArtifactRoot::to_json);
                let root = root.map(|json| serde_json::from_slice(&json).expect("it is JSON"));
                vec![FromRegion::Root { artifact, root }]
            }
            FromNode::Answer { query, answer } => {
                self.0.heard.send_modify(|heard| {
                    assert!(heard.answers.insert(query, answer).is_none(), "it answers once");
                });
                vec![]
            }
            FromNode::SourcesWanted { artifact, packs } => vec![self.sources(artifact, packs)],
            FromNode::Have { artifact, packs } => {
                let packs = packs.into_iter().collect();
                self.0.heard.send_modify(|heard| drop(heard.have.insert(artifact, packs)));
                vec![]
            }
            FromNode::HaveMore { artifact, packs } => {
                self.0.heard.send_modify(|heard| heard.have.entry(artifact).or_default().extend(packs));
                vec![]
            }
            _ => vec![],
        }
    }

    fn sources(&self, artifact: ArtifactId, packs: Vec<PackId>) -> FromRegion {
        let peers = self.0.peers.lock().expect("sound").clone();
        let all = self.0.packs.0.lock().expect("sound");
        let ticket = |pack: PackId| {
            let content = all.get(&pack)?;
            let bytes = content.len() as u64;
            let outline = Outline::read(pack, bytes, &content[..]).expect("read").expect("it is the pack");
            let outline = Some(BASE64_STANDARD.encode(outline.to_bytes()));
            Some(Ticket { pack, bytes, url: format!("http://{}/{pack}", self.0.bucket), outline })
        };
        let tickets = if peers.is_empty() { packs.into_iter().filter_map(ticket).collect() } else { vec![] };
        FromRegion::Sources { artifact, peers, tickets }
    }
}

/// What the control nodes sign goals with.
pub(crate) fn goal_key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

pub(crate) fn provenance_key() -> SigningKey {
    SigningKey::from_seed(&[2; 32])
}

fn signed(goal: RegionalGoal, key: &SigningKey) -> Envelope {
    let id = "goal-1".parse().expect("valid");
    let event = GoalState::from(goal);
    let request = Request { id, at: Timestamp(0), actor: "goals".to_owned(), trace: None, report: None, event };
    let value = codec::encode(&request).expect("encodes");
    record::envelope(&GOAL, &value, Some(&record::sign(&GOAL, &value, key))).expect("it is signed")
}

async fn serve_bucket(listener: TcpListener, region: Region) {
    while let Ok((stream, _)) = listener.accept().await {
        let region = region.clone();
        // The client sees what became of it.
        tokio::spawn(async move { answer_get(stream, &region).await });
    }
}

async fn answer_get(mut stream: TcpStream, region: &Region) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let pack = head.split(' ').nth(1).and_then(|path| path.trim_start_matches('/').parse::<PackId>().ok());
    let found = pack.and_then(|pack| Some((pack, region.0.packs.0.lock().expect("sound").get(&pack)?.clone())));
    let Some((pack, body)) = found else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    };
    let from = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
    let mut body = body.slice(from.unwrap_or(0).min(body.len())..);
    let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    if region.holds(pack) {
        let half = body.len() / 2 / BLOCK_BYTES * BLOCK_BYTES;
        region.give(&mut stream, &body.split_to(half)).await?;
        if !region.wait_until_freed(&mut stream).await {
            return Ok(());
        }
    }
    region.give(&mut stream, &body).await
}

impl Region {
    /// Whether this question's answer is to be held.
    fn holds(&self, pack: PackId) -> bool {
        let mut asked = 0;
        self.0.served.send_modify(|served| {
            *served.asked.entry(pack).or_default() += 1;
            asked = served.asked.values().sum();
        });
        match &*self.0.hold.borrow() {
            Hold::Nothing => false,
            Hold::These(packs) => packs.contains(&pack),
            Hold::AllAfter(others) => asked > *others,
        }
    }

    async fn give(&self, stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        stream.write_all(bytes).await?;
        self.0.served.send_modify(|served| served.bytes += bytes.len() as u64);
        Ok(())
    }

    /// `false` if whoever asked has gone before.
    async fn wait_until_freed(&self, stream: &mut TcpStream) -> bool {
        self.0.served.send_modify(|served| served.held += 1);
        let mut hold = self.0.hold.subscribe();
        let freed = tokio::select! {
            _ = hold.wait_for(|hold| matches!(hold, Hold::Nothing)) => true,
            // It says nothing more, so this is its end.
            _ = stream.read_u8() => false,
        };
        self.0.served.send_modify(|served| served.held -= 1);
        freed
    }
}
