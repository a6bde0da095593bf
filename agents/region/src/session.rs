//! One node's connection: who it is, then goals and sources out, reports and wishes in.
//!
//! ```text
//! Enrol? ─▶ Hello, verified ─▶ ┬─ reader: beats, reports, have, wanted ─▶ reports, tracker, roots
//!                              └─ writer: goals (newest only), roots, sources ◀─ board, bounded queue
//! ```
//!
//! Reader and writer are apart, so that two sides that both write cannot block each other. The session ends when either
//! does, when the node is silent for three beats, or when the node connects anew.

use std::{collections::BTreeMap, time::Duration};

use futures::{Sink, SinkExt, Stream, StreamExt};
use longshore_artifact::PackRef;
use longshore_schemas::{
    ArtifactId, NodeId, RegionName, ServiceName,
    events::{GoalVersion, NodeDescription},
    http::Role,
    stream::{FRAME_BYTES_MAX, FromNode, FromRegion, Hello},
};
use longshore_swarm::frames::{FrameCodec, FrameError};
use longshore_swarm_policy::tracker::Event;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::timeout,
};
use tokio_util::{
    codec::{FramedRead, FramedWrite},
    sync::CancellationToken,
};

use crate::{
    MISSED_BEATS_MAX,
    mender::{What, Word},
    nodes::Sessions,
};

/// A node must say who it is within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A node that does not read for this long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages that wait for a slow node; goals are not among them.
pub(crate) const OUTBOUND_MAX: usize = 64;
/// Longest host name or address, and agent version, in bytes.
const TEXT_BYTES_MAX: usize = 255;
/// A node of a name that is connected may try to enrol again after this.
const ENROL_RETRY_SECONDS: u32 = 60;
/// Room for the envelope of a frame with a root.
const ROOT_FRAME_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Refused(String),
    #[error("node {node} was silent for {seconds} s")]
    Silent { node: NodeId, seconds: u64 },
    #[error("it did not say who it is within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
    #[error("node {0} does not read")]
    Stuck(NodeId),
    #[error("the region is shutting down")]
    Stopping,
}

/// What a node's credential says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeCredential {
    pub(crate) region: RegionName,
    pub(crate) node: NodeId,
}

pub(crate) async fn run<S>(stream: S, sessions: &Sessions, end: CancellationToken) -> Result<(), SessionError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (read, write) = tokio::io::split(stream);
    let mut incoming = FramedRead::new(read, FrameCodec::<FromNode, FromRegion>::default());
    let mut outgoing = FramedWrite::new(write, FrameCodec::<FromNode, FromRegion>::default());
    let hello = timeout(HELLO_TIMEOUT, introduce(&mut incoming, &mut outgoing, sessions));
    let hello = tokio::select! {
        hello = hello => hello.map_err(|_| SessionError::NoHello)??,
        () = end.cancelled() => return Ok(()),
    };
    let Some(hello) = hello else { return Ok(()) };
    let node = hello.node.clone();
    let (outbound, queue) = mpsc::channel(OUTBOUND_MAX);
    let session = sessions.enter(&node, outbound.clone(), end.clone());
    tracing::info!(%node, session, host = hello.host, boot = hello.boot, "node connected");
    let result = tokio::select! {
        result = read_all(&mut incoming, &hello, sessions, &outbound) => result,
        result = write_all(&mut outgoing, &hello, sessions, queue) => result,
        () = end.cancelled() => Ok(()),
    };
    if sessions.leave(&node, session) {
        // The tracker's queue may be gone when the region shuts down.
        let _ = sessions.tracker.send(Event::Left { node: node.clone() }).await;
    }
    result
}

/// Enrolment, if the node has no credential yet, and its hello. `None` if it only went away.
async fn introduce(
    incoming: &mut (impl Stream<Item = Result<FromNode, FrameError>> + Unpin),
    outgoing: &mut (impl Sink<FromRegion, Error = FrameError> + Unpin),
    sessions: &Sessions,
) -> Result<Option<Hello>, SessionError> {
    while let Some(message) = incoming.next().await {
        let answer = match message? {
            FromNode::Enrol { token, node } => enrol(&token, &node, sessions),
            FromNode::Hello(hello) => match check(&hello, sessions) {
                Ok(()) => {
                    // Rounded up: a node that beats too often does no harm.
                    let beat_seconds = u32::try_from(sessions.beat.as_secs()).unwrap_or(u32::MAX).max(1);
                    outgoing.send(FromRegion::Welcome { region: sessions.region.clone(), beat_seconds }).await?;
                    return Ok(Some(hello));
                }
                Err(reason) => FromRegion::Refused { reason, retry_seconds: None },
            },
            _ => FromRegion::Refused { reason: "say hello first".to_owned(), retry_seconds: None },
        };
        let refused = match &answer {
            FromRegion::Refused { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        outgoing.send(answer).await?;
        if let Some(reason) = refused {
            return Err(SessionError::Refused(reason));
        }
    }
    Ok(None)
}

fn enrol(token: &str, node: &NodeId, sessions: &Sessions) -> FromRegion {
    let refused = |reason: String, retry_seconds| FromRegion::Refused { reason, retry_seconds };
    if sessions.tokens.verify(token).is_none_or(|identity| identity.role != Role::Node) {
        let reason =
            "the enrolment token is not known here: give the node a token of the role node of this installation";
        return refused(reason.to_owned(), None);
    }
    if sessions.is_connected(node) || sessions.reports.is_elsewhere(node) {
        let reason = format!("a node named {node} is connected: choose another name, or stop that one");
        return refused(reason, Some(ENROL_RETRY_SECONDS));
    }
    let region = sessions.region.clone();
    match sessions.signer.sign(&NodeCredential { region: region.clone(), node: node.clone() }) {
        Ok(credential) => {
            tracing::info!(%node, "node enrolled");
            FromRegion::Enrolled { credential, region }
        }
        Err(error) => refused(format!("no credential can be made: {error}"), Some(ENROL_RETRY_SECONDS)),
    }
}

fn check(hello: &Hello, sessions: &Sessions) -> Result<(), String> {
    let credential: Option<NodeCredential> = sessions.signer.verify(&hello.credential);
    let Some(NodeCredential { region, node }) = credential else {
        return Err("the node's credential is not valid here: enrol the node anew".to_owned());
    };
    if region != sessions.region {
        return Err(format!("the node is enrolled in region {region}, and this is {}: enrol it here", sessions.region));
    }
    if node != hello.node {
        return Err(format!("the credential is that of node {node}, not of {}", hello.node));
    }
    let is_text = |text: &str| (1..=TEXT_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !is_text(&hello.host) {
        return Err("host must be a host name or an IP address".to_owned());
    }
    if !is_text(&hello.agent_version) {
        return Err("agent_version must be a short word".to_owned());
    }
    Ok(())
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
    incoming: &mut (impl Stream<Item = Result<FromNode, FrameError>> + Unpin),
    hello: &Hello,
    sessions: &Sessions,
    outbound: &mpsc::Sender<FromRegion>,
) -> Result<(), SessionError> {
    let node = &hello.node;
    sessions.reports.hello(NodeDescription {
        node: node.clone(),
        zone: hello.zone.clone(),
        rack: hello.rack.clone(),
        host: hello.host.clone(),
        agent_version: hello.agent_version.clone(),
    });
    let (address, rack) = (swarm_address(hello), hello.rack.clone());
    track(sessions, Event::Joined { node: node.clone(), address, rack }).await?;
    let silence_max = sessions.beat * MISSED_BEATS_MAX;
    loop {
        let message = timeout(silence_max, incoming.next()).await;
        let silent = |_| SessionError::Silent { node: node.clone(), seconds: silence_max.as_secs() };
        let Some(message) = message.map_err(silent)? else { return Ok(()) };
        let message = message?;
        sessions.reports.heard(node);
        take(message, node, sessions, outbound).await?;
    }
}

async fn take(
    message: FromNode,
    node: &NodeId,
    sessions: &Sessions,
    outbound: &mpsc::Sender<FromRegion>,
) -> Result<(), SessionError> {
    let node = node.clone();
    match message {
        FromNode::Beat => Ok(()),
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
        FromNode::Done { artifact } => track(sessions, Event::Done { node, artifact }).await,
        FromNode::Enrol { .. } | FromNode::Hello(_) => {
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
    outbound: &mpsc::Sender<FromRegion>,
) -> Result<(), SessionError> {
    let root = sessions.roots.get(&artifact).await.map(|root| root.json.clone());
    let fits = |root: &serde_json::Value| {
        let bytes = root.to_string().len();
        if bytes > ROOT_FRAME_BYTES_MAX {
            tracing::error!(%artifact, %node, bytes, limit = ROOT_FRAME_BYTES_MAX, "the artifact's root is too large to send");
        }
        bytes <= ROOT_FRAME_BYTES_MAX
    };
    let answer = FromRegion::Root { artifact, root: root.filter(fits) };
    let sent = timeout(WRITE_TIMEOUT, outbound.send(answer)).await;
    sent.map_err(|_| SessionError::Stuck(node.clone()))?.map_err(|_| SessionError::Stopping)
}

async fn write_all(
    outgoing: &mut (impl Sink<FromRegion, Error = FrameError> + Unpin),
    hello: &Hello,
    sessions: &Sessions,
    mut queue: mpsc::Receiver<FromRegion>,
) -> Result<(), SessionError> {
    let mut changes = sessions.goals.subscribe();
    let mut sent: BTreeMap<ServiceName, GoalVersion> = hello.goals.clone();
    let mut read_to = 0;
    loop {
        changes.mark_unchanged();
        let (now, goals) = sessions.goals.since(read_to);
        read_to = now;
        for signed in goals {
            let goal = &signed.goal;
            if sent.get(&goal.service).is_none_or(|version| *version < goal.version) {
                sent.insert(goal.service.clone(), goal.version);
                write(outgoing, FromRegion::Goal(signed.envelope.clone()), &hello.node).await?;
            }
        }
        tokio::select! {
            message = queue.recv() => match message {
                Some(message) => write(outgoing, message, &hello.node).await?,
                None => return Ok(()),
            },
            changed = changes.changed() => changed.map_err(|_| SessionError::Stopping)?,
        }
    }
}

async fn write(
    outgoing: &mut (impl Sink<FromRegion, Error = FrameError> + Unpin),
    message: FromRegion,
    node: &NodeId,
) -> Result<(), SessionError> {
    let sent = timeout(WRITE_TIMEOUT, outgoing.send(message)).await;
    Ok(sent.map_err(|_| SessionError::Stuck(node.clone()))??)
}
