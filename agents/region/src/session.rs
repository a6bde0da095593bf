//! One node's connection: who it is, then goals and sources out, reports and wishes in.
//!
//! ```text
//! TLS ─▶ ┬─ Hello of whom the certificate names ─▶ ┬─ reader: beats, reports, have, wanted ─▶ reports, tracker, roots
//!        │                                         └─ writer: trust, goals (newest only), roots, sources ◀─ board, bounded queue
//!        └─ Enrol, Restore ─▶ a certificate, with which the node connects anew
//! ```
//!
//! Reader and writer are apart, so that two sides that both write cannot block each other. The session ends when either
//! does, when the node is silent for three beats, when its certificate is believed no more, or when the node connects anew.

use std::{collections::BTreeMap, time::Duration};

use futures::{SinkExt, StreamExt};
use longshore_artifact::PackRef;
use longshore_identity::{Distrust, Peer};
use longshore_schemas::{
    ArtifactId, NodeId, ServiceName,
    events::{GoalVersion, NodeDescription},
    labels,
    stream::{FRAME_BYTES_MAX, FromNode, FromRegion, Hello},
};
use longshore_service::limits::{Full, Pass};
use longshore_swarm::frames::{FrameCodec, FrameError};
use longshore_swarm_policy::tracker::Event;
use tokio::{
    io::{ReadHalf, WriteHalf},
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::{
    codec::{Encoder, FramedRead, FramedWrite},
    sync::CancellationToken,
};

use crate::{
    MISSED_BEATS_MAX,
    identity::Refusal,
    mender::{What, Word},
    nodes::{Introduced, Outbound, Sessions},
};

/// A node must say who it is within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A node that does not read for this long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages that wait for a slow node; goals are not among them.
pub(crate) const OUTBOUND_MAX: usize = 64;
/// Longest host name or address, and agent version, in bytes.
const TEXT_BYTES_MAX: usize = 255;
/// Between two certificates for one connection.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
/// The other side hears that the connection ends, if it listens.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Of a connection's buffer before anything is in it: there are thousands that are silent.
const BUFFER_BYTES: usize = 512;
/// Room for the envelope of a frame with a root.
const ROOT_FRAME_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("it did not show who it is: {0}")]
    Handshake(#[source] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("node {node} is believed no more: {distrust}")]
    Distrusted { node: NodeId, distrust: Distrust },
    #[error("{0}")]
    Refused(String),
    #[error("node {node} was silent for {seconds} s")]
    Silent { node: NodeId, seconds: u64 },
    #[error("it did not say who it is within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
    #[error("node {0} does not read")]
    Stuck(NodeId),
    #[error(transparent)]
    Full(#[from] Full),
    #[error("the region is shutting down")]
    Stopping,
}

/// Of who has shown who it is, the longest frame is [`FRAME_BYTES_MAX`]; before, that of a hello of many services.
const INTRODUCTION_BYTES_MAX: usize = 128 * 1024;

type Codec = FrameCodec<FromNode, FromRegion>;
type Incoming = FramedRead<ReadHalf<longshore_identity::Stream>, Codec>;
type Outgoing = FramedWrite<WriteHalf<longshore_identity::Stream>, Codec>;

/// Until either side ends it. The place among strangers is kept until it is known whose connection it is.
pub(crate) async fn run(
    introduced: Introduced,
    stranger: Pass,
    sessions: &Sessions,
    end: CancellationToken,
) -> Result<(), SessionError> {
    let (read, write) = tokio::io::split(introduced.stream);
    let mut incoming = FramedRead::with_capacity(read, Codec::limited(INTRODUCTION_BYTES_MAX), BUFFER_BYTES);
    let mut outgoing = FramedWrite::with_capacity(write, Codec::default(), BUFFER_BYTES);
    // What is needed once takes no room afterwards, of which there are thousands.
    let introduction = Box::pin(introduce(&mut incoming, &mut outgoing, introduced.peer, sessions));
    let hello = timeout(HELLO_TIMEOUT, introduction);
    let result = tokio::select! {
        hello = hello => hello.unwrap_or(Err(SessionError::NoHello)),
        () = end.cancelled() => Ok(None),
    };
    let result = match result {
        Ok(Some((hello, peer))) => match sessions.place() {
            Ok(_place) => {
                drop(stranger);
                *incoming.decoder_mut() = Codec::default();
                converse(&mut incoming, &mut outgoing, &hello, peer, sessions, end).await
            }
            Err(full) => Err(SessionError::Full(full)),
        },
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    // That it ended well is of no use to anybody who is not there.
    let _ = timeout(CLOSE_TIMEOUT, SinkExt::<FromRegion>::close(&mut outgoing)).await;
    result
}

async fn converse(
    incoming: &mut Incoming,
    outgoing: &mut Outgoing,
    hello: &Hello,
    peer: Peer,
    sessions: &Sessions,
    end: CancellationToken,
) -> Result<(), SessionError> {
    let node = hello.node.clone();
    let (outbound, queue) = mpsc::channel(OUTBOUND_MAX);
    let session = sessions.enter(hello, outbound.clone(), end.clone());
    tracing::info!(%node, session, host = hello.host, boot = hello.boot, "node connected");
    let result = tokio::select! {
        result = read_all(incoming, hello, peer, sessions, &outbound) => result,
        result = write_all(outgoing, hello, sessions, queue) => result,
        () = end.cancelled() => Ok(()),
    };
    if sessions.leave(&node, session) {
        // The tracker's queue may be gone when the region shuts down.
        let _ = sessions.tracker.send(Event::Left { node: node.clone() }).await;
    }
    result
}

/// The hello of a node that showed who it is. `None` if it got a certificate, with which it connects anew, or only went away.
async fn introduce(
    incoming: &mut Incoming,
    outgoing: &mut Outgoing,
    peer: Result<Option<Peer>, Distrust>,
    sessions: &Sessions,
) -> Result<Option<(Hello, Peer)>, SessionError> {
    let Some(message) = incoming.next().await else { return Ok(None) };
    let answer = match message? {
        FromNode::Enrol { token, node, request } => enrol(&token, &node, &request, sessions).await,
        FromNode::Restore { certificate, request } => sessions.identity.restore(&certificate, &request),
        FromNode::Hello(hello) => match check(&hello, &peer, sessions) {
            Ok(peer) => {
                // Rounded up: a node that beats too often does no harm.
                let beat_seconds = u32::try_from(sessions.beat.as_secs()).unwrap_or(u32::MAX).max(1);
                let region = sessions.region.clone();
                outgoing.send(FromRegion::Welcome { region, beat_seconds }).await?;
                return Ok(Some((hello, peer)));
            }
            Err(refusal) => Err(refusal),
        },
        _ => Err(Refusal::never("say hello first")),
    };
    match answer {
        Ok(certificate) => {
            outgoing.send(FromRegion::Certified { certificate }).await?;
            Ok(None)
        }
        Err(Refusal { reason, retry_seconds }) => {
            outgoing.send(FromRegion::Refused { reason: reason.clone(), retry_seconds }).await?;
            Err(SessionError::Refused(reason))
        }
    }
}

async fn enrol(token: &str, node: &NodeId, request: &str, sessions: &Sessions) -> Result<String, Refusal> {
    if sessions.is_connected(node) || sessions.reports.is_elsewhere(node) {
        let reason = format!("a node named {node} is connected: choose another name, or stop that one");
        return Err(Refusal::later(reason));
    }
    sessions.identity.enrol(token, node, request).await
}

/// Whose hello it is.
fn check(hello: &Hello, peer: &Result<Option<Peer>, Distrust>, sessions: &Sessions) -> Result<Peer, Refusal> {
    let peer = match peer {
        Ok(Some(peer)) => peer,
        Ok(None) => return Err(Refusal::never("the node showed no certificate: enrol it first")),
        // It may be restored.
        Err(distrust) => return Err(Refusal::later(distrust.to_string())),
    };
    if *peer.node() != hello.node {
        return Err(Refusal::never(format!("the certificate is that of node {}, not of {}", peer.node(), hello.node)));
    }
    let is_text = |text: &str| (1..=TEXT_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !is_text(&hello.host) {
        return Err(Refusal::never("host must be a host name or an IP address"));
    }
    if !is_text(&hello.agent_version) {
        return Err(Refusal::never("agent_version must be a short word"));
    }
    labels::check(&hello.labels).map_err(Refusal::never)?;
    if !is_text(&hello.instance) {
        return Err(Refusal::never("instance must be a short word"));
    }
    if sessions.is_clone(&hello.node, &hello.instance) {
        let reason = format!(
            "another machine uses the identity of node {}, and is connected: enrol this one anew, under a name of its own",
            hello.node
        );
        return Err(Refusal::later(reason));
    }
    Ok(peer.clone())
}

fn swarm_address(hello: &Hello) -> String {
    let Hello { host, swarm_port, .. } = hello;
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{swarm_port}")
    } else {
        format!("{host}:{swarm_port}")
    }
}

async fn read_all(
    incoming: &mut Incoming,
    hello: &Hello,
    mut peer: Peer,
    sessions: &Sessions,
    outbound: &Outbound,
) -> Result<(), SessionError> {
    let node = &hello.node;
    let mut renewed: Option<Instant> = None;
    sessions.reports.hello(NodeDescription {
        node: node.clone(),
        zone: hello.zone.clone(),
        rack: hello.rack.clone(),
        host: hello.host.clone(),
        agent_version: hello.agent_version.clone(),
        labels: hello.labels.clone(),
    });
    let (address, rack) = (swarm_address(hello), hello.rack.clone());
    track(sessions, Event::Joined { node: node.clone(), address, rack }).await?;
    let silence_max = sessions.beat * MISSED_BEATS_MAX;
    loop {
        let message = timeout(silence_max, incoming.next()).await;
        let silent = |_| SessionError::Silent { node: node.clone(), seconds: silence_max.as_secs() };
        let Some(message) = message.map_err(silent)? else { return Ok(()) };
        let message = message?;
        let believed = peer.check(sessions.identity.tls(), longshore_service::now());
        believed.map_err(|distrust| SessionError::Distrusted { node: node.clone(), distrust })?;
        sessions.reports.heard(node);
        match message {
            FromNode::Renew { request } => {
                if renewed.is_some_and(|at| at.elapsed() < RENEWAL_INTERVAL) {
                    return Err(SessionError::Refused(format!("node {node} wants too many certificates")));
                }
                renewed = Some(Instant::now());
                if let Some(next) = renew(&request, node, sessions, outbound).await? {
                    peer = next;
                }
            }
            FromNode::Beat => {}
            message => Box::pin(take(message, node, sessions, outbound)).await?,
        }
    }
}

/// The node by its next certificate. Without one it goes on with the one that it has, and asks again later.
async fn renew(
    request: &str,
    node: &NodeId,
    sessions: &Sessions,
    outbound: &Outbound,
) -> Result<Option<Peer>, SessionError> {
    match sessions.identity.renew(node, request) {
        Ok(certificate) => {
            let next = sessions.identity.tls().known(&certificate);
            tell(FromRegion::Certified { certificate }, node, outbound).await?;
            Ok(next.ok())
        }
        Err(Refusal { reason, .. }) => {
            tracing::warn!(%node, reason, "node gets no new certificate");
            Ok(None)
        }
    }
}

async fn take(message: FromNode, node: &NodeId, sessions: &Sessions, outbound: &Outbound) -> Result<(), SessionError> {
    let node = node.clone();
    match message {
        FromNode::Report(report) => {
            let service = report.service.clone();
            if sessions.reports.report(&node, report) {
                Ok(())
            } else {
                Err(SessionError::Refused(format!("node {node} reports on too many services; the last is {service}")))
            }
        }
        FromNode::RootWanted { artifact } => send_root(artifact, &node, sessions, outbound).await,
        FromNode::Have { artifact, packs } => {
            let Some(root) = sessions.roots.get(&artifact).await else { return Ok(()) };
            track(sessions, Event::Have { node, artifact, packs: root.own(packs) }).await
        }
        FromNode::HaveMore { artifact, packs } => {
            let Some(root) = sessions.roots.get(&artifact).await else { return Ok(()) };
            track(sessions, Event::HaveMore { node, artifact, packs: root.own(packs) }).await
        }
        FromNode::SourcesWanted { artifact, packs } => {
            let Some(root) = sessions.roots.get(&artifact).await else { return Ok(()) };
            track(sessions, Event::Wanted { node, artifact, packs: root.own(packs) }).await
        }
        FromNode::TicketDone { artifact, pack, ok } => {
            let known = sessions.roots.get(&artifact).await.is_some_and(|root| root.size(&pack).is_some());
            if known { track(sessions, Event::TicketDone { node, artifact, pack, ok }).await } else { Ok(()) }
        }
        FromNode::PeerLied { peer, pack } => track(sessions, Event::PeerLied { node, peer, pack }).await,
        FromNode::PeerFailed { peer, pack } => track(sessions, Event::PeerFailed { node, peer, pack }).await,
        FromNode::PackDamaged { artifact, pack } => {
            let root = sessions.roots.get(&artifact).await;
            if let Some(bytes) = root.and_then(|root| root.size(&pack)) {
                let what = What::Pack(PackRef { pack, bytes });
                sessions.damaged.say(Word { node: Some(node), artifact, what });
            }
            Ok(())
        }
        FromNode::Answer { query, answer } => {
            sessions.answered(&node, query, answer);
            Ok(())
        }
        FromNode::Done { artifact } => track(sessions, Event::Done { node, artifact }).await,
        FromNode::Beat | FromNode::Renew { .. } => Ok(()),
        FromNode::Enrol { .. } | FromNode::Restore { .. } | FromNode::Hello(_) => {
            Err(SessionError::Refused(format!("node {node} introduced itself twice on one connection")))
        }
    }
}

async fn track(sessions: &Sessions, event: Event) -> Result<(), SessionError> {
    sessions.tracker.send(event).await.map_err(|_| SessionError::Stopping)
}

async fn send_root(
    artifact: ArtifactId,
    node: &NodeId,
    sessions: &Sessions,
    outbound: &Outbound,
) -> Result<(), SessionError> {
    let root = sessions.roots.get(&artifact).await.map(|root| root.json.clone());
    let fits = |root: &serde_json::Value| {
        let bytes = root.to_string().len();
        if bytes > ROOT_FRAME_BYTES_MAX {
            tracing::error!(%artifact, %node, bytes, limit = ROOT_FRAME_BYTES_MAX, "the artifact's root is too large to send");
        }
        bytes <= ROOT_FRAME_BYTES_MAX
    };
    tell(FromRegion::Root { artifact, root: root.filter(fits) }, node, outbound).await
}

async fn tell(message: FromRegion, node: &NodeId, outbound: &Outbound) -> Result<(), SessionError> {
    let sent = timeout(WRITE_TIMEOUT, outbound.send(Box::new(message))).await;
    sent.map_err(|_| SessionError::Stuck(node.clone()))?.map_err(|_| SessionError::Stopping)
}

async fn write_all(
    outgoing: &mut Outgoing,
    hello: &Hello,
    sessions: &Sessions,
    mut queue: mpsc::Receiver<Box<FromRegion>>,
) -> Result<(), SessionError> {
    let (mut changes, mut trust) = (sessions.goals.subscribe(), sessions.identity.tls().changes());
    trust.mark_changed();
    let mut sent: BTreeMap<ServiceName, GoalVersion> = hello.goals.clone();
    let mut read_to = 0;
    loop {
        changes.mark_unchanged();
        let (now, goals) = sessions.goals.since(read_to);
        read_to = now;
        for posted in goals {
            let goal = &posted.goal;
            if sent.get(&goal.service).is_none_or(|version| *version < goal.version) {
                sent.insert(goal.service.clone(), goal.version);
                write(outgoing, posted.message.clone(), &hello.node).await?;
            }
        }
        tokio::select! {
            message = queue.recv() => match message {
                Some(message) => write(outgoing, *message, &hello.node).await?,
                None => return Ok(()),
            },
            changed = trust.changed() => {
                changed.map_err(|_| SessionError::Stopping)?;
                write(outgoing, sessions.identity.trust(), &hello.node).await?;
            }
            changed = changes.changed() => changed.map_err(|_| SessionError::Stopping)?,
        }
    }
}

async fn write<M>(outgoing: &mut Outgoing, message: M, node: &NodeId) -> Result<(), SessionError>
where
    Codec: Encoder<M, Error = FrameError>,
{
    let sent = timeout(WRITE_TIMEOUT, outgoing.send(message)).await;
    Ok(sent.map_err(|_| SessionError::Stuck(node.clone()))??)
}
