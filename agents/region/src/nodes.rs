//! The listener, and which node is connected by which session.
//!
//! After a region's restart all of its nodes come back within seconds. What costs then is the handshakes: only so many are made at a
//! time, and only so many wait for their turn; others are closed, and come again after a wait of their own. Who has not shown yet that it is a
//! node takes none of the places of those who have.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use longshore_identity::{Distrust, Handshaken, Peer};
use longshore_schemas::{
    NodeId, RegionName, RequestId,
    envelope::Envelope,
    stream::{Answer, FromRegion, Hello},
};
use longshore_service::{
    limits::{Full, Gate, Pass},
    metrics::Counters,
};
use longshore_swarm_policy::tracker::Event;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ANSWERS, CONNECTIONS, Error, RegionConfig, STRANGERS,
    goals::GoalBoard,
    identity::Identity,
    mender::Words,
    queries::{Answered, Awaited, QUERIES},
    reports::Reports,
    roots::Roots,
    session::{self, SessionError},
};

/// After an error of `accept`, such as too many open files.
const ACCEPT_WAIT: Duration = Duration::from_millis(200);
/// Earlier agents of a node that are remembered.
const FORMER_MAX: usize = 4;
/// Nodes whose agents are remembered, as a multiple of those that may be connected.
const REMEMBERED: usize = 4;

static CLONES: LazyLock<Counters<0>> = LazyLock::new(|| {
    Counters::new("longshore_region_clones", "Connections of a machine whose identity another one uses too", [])
});

/// A connection; who it is, somebody without a certificate, or why what it showed is not believed.
pub(crate) type Introduced = Handshaken<Result<Option<Peer>, Distrust>>;

/// To one node. Boxed: the queue has room for many from its beginning.
pub(crate) type Outbound = mpsc::Sender<Box<FromRegion>>;

/// What every session shares.
pub(crate) struct Sessions {
    pub(crate) region: RegionName,
    pub(crate) identity: Arc<Identity>,
    pub(crate) beat: Duration,
    pub(crate) goals: Arc<GoalBoard>,
    pub(crate) reports: Arc<Reports>,
    pub(crate) roots: Arc<Roots>,
    pub(crate) tracker: mpsc::Sender<Event>,
    /// Where it is said that packs are damaged.
    pub(crate) damaged: Words,
    answers: mpsc::Sender<Answered>,
    awaited: Mutex<Awaited>,
    connections: Gate,
    strangers: Gate,
    connected: DashMap<NodeId, Connected>,
    instances: DashMap<NodeId, Instances>,
    remembered_max: usize,
    last_session: AtomicU64,
}

/// Of a node, the agent that was here last, and those before it, each by what it called itself at its start. Of one machine, none comes
/// back after the next one.
#[derive(Default)]
struct Instances {
    last: String,
    former: VecDeque<String>,
}

impl Instances {
    /// `false` if this one was followed by another before.
    fn is_next(&mut self, instance: &str) -> bool {
        self.last == instance || !self.former.iter().any(|former| former == instance)
    }

    fn enter(&mut self, instance: &str) {
        if self.last == instance {
            return;
        }
        let former = std::mem::replace(&mut self.last, instance.to_owned());
        self.former.retain(|known| known != instance);
        self.former.push_back(former);
        if self.former.len() > FORMER_MAX {
            self.former.pop_front();
        }
    }
}

/// A node's present session.
struct Connected {
    session: u64,
    outbound: Outbound,
    answers_queries: bool,
    end: CancellationToken,
}

impl Sessions {
    pub(crate) fn new(
        config: &RegionConfig,
        identity: Arc<Identity>,
        goals: Arc<GoalBoard>,
        reports: Arc<Reports>,
        roots: Arc<Roots>,
        tracker: mpsc::Sender<Event>,
        (damaged, answers): (Words, mpsc::Sender<Answered>),
    ) -> Self {
        Self {
            region: config.region.clone(),
            identity,
            beat: config.limits.beat,
            goals,
            reports,
            roots,
            tracker,
            damaged,
            answers,
            awaited: Mutex::default(),
            connections: Gate::of(&CONNECTIONS, config.limits.connections_max, config.region.as_str()),
            strangers: Gate::of(&STRANGERS, STRANGERS.default as usize, config.region.as_str()),
            connected: DashMap::new(),
            instances: DashMap::new(),
            remembered_max: config.limits.connections_max.saturating_mul(REMEMBERED),
            last_session: AtomicU64::new(0),
        }
    }

    pub(crate) fn connected(&self) -> usize {
        self.connected.len()
    }

    pub(crate) fn is_connected(&self, node: &NodeId) -> bool {
        self.connected.contains_key(node)
    }

    /// A place among those who showed that they are nodes.
    pub(crate) fn place(&self) -> Result<Pass, Full> {
        self.connections.enter()
    }

    /// Whether another machine uses this node's identity and is there: this agent was followed by another one, and comes back.
    pub(crate) fn is_clone(&self, node: &NodeId, instance: &str) -> bool {
        let mut instances = self.instances.entry(node.clone()).or_default();
        if instances.is_next(instance) {
            instances.enter(instance);
            return false;
        }
        CLONES.count([], 1);
        tracing::error!(%node, "two machines use the identity of this node: revoke it, and enrol both under names of their own");
        let is_there = self.is_connected(node) || self.reports.is_elsewhere(node);
        if !is_there {
            instances.enter(instance);
        }
        is_there
    }

    /// Makes this the node's session and ends an earlier one. Its number names it.
    pub(crate) fn enter(&self, hello: &Hello, outbound: Outbound, end: CancellationToken) -> u64 {
        let (node, answers_queries) = (&hello.node, hello.answers_queries);
        let session = self.last_session.fetch_add(1, Ordering::Relaxed) + 1;
        // Of nodes that are long gone nothing needs to be known.
        if self.instances.len() > self.remembered_max {
            self.instances.retain(|node, _| self.connected.contains_key(node));
        }
        if let Some(earlier) =
            self.connected.insert(node.clone(), Connected { session, outbound, answers_queries, end })
        {
            earlier.end.cancel();
        }
        session
    }

    /// `false` if a later session has taken its place.
    pub(crate) fn leave(&self, node: &NodeId, session: u64) -> bool {
        self.connected.remove_if(node, |_, connected| connected.session == session).is_some()
    }

    /// Ends the node's session, if it has one.
    pub(crate) fn end(&self, node: &NodeId) -> bool {
        let connected = self.connected.get(node);
        connected.inspect(|connected| connected.end.cancel()).is_some()
    }

    /// Whether the node can be asked; None if it is not here.
    pub(crate) fn answers_queries(&self, node: &NodeId) -> Option<bool> {
        self.connected.get(node).map(|connected| connected.answers_queries)
    }

    pub(crate) fn ask(&self, query: RequestId, node: &NodeId, envelope: Envelope) {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).ask(query, node.clone(), Instant::now());
        self.tell(node, FromRegion::Query(envelope));
    }

    /// Only what was asked of this node counts. Never waits: while the log takes no answers, they are dropped.
    pub(crate) fn answered(&self, node: &NodeId, query: RequestId, answer: Answer) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        if !awaited.is_answered(&query, node, Instant::now()) {
            QUERIES.count(["not asked"], 1);
        } else if self.answers.try_send((query, answer)).is_err() {
            ANSWERS.refused();
        }
    }

    /// Never waits: a node that does not read what it asked for is disconnected, and asks again when it is back.
    pub(crate) fn tell(&self, node: &NodeId, message: FromRegion) {
        let Some(connected) = self.connected.get(node) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = connected.outbound.try_send(Box::new(message)) {
            tracing::warn!(%node, "node does not read its messages; disconnecting it");
            connected.end.cancel();
        }
    }
}

/// Ends the sessions of nodes as they are revoked.
pub(crate) async fn put_out(sessions: Arc<Sessions>, shutdown: CancellationToken) {
    let mut changes = sessions.identity.tls().changes();
    while let Some(Ok(())) = shutdown.run_until_cancelled(changes.changed()).await {
        for node in sessions.identity.tls().trust().revoked() {
            if sessions.end(node) {
                tracing::warn!(%node, "node is revoked, and disconnected");
            }
        }
    }
}

pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// Accepts nodes until `shutdown`, then waits for their sessions to end.
pub(crate) async fn accept(listener: TcpListener, sessions: Arc<Sessions>, shutdown: CancellationToken) {
    let running = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, from)) => serve(stream, from, &sessions, &running, &shutdown),
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted; check the limit of open files");
                tokio::time::sleep(ACCEPT_WAIT).await;
            }
        }
    }
    running.close();
    running.wait().await;
}

fn serve(
    stream: TcpStream,
    from: SocketAddr,
    sessions: &Arc<Sessions>,
    running: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let stranger = match sessions.strangers.enter() {
        Ok(pass) => pass,
        Err(full) => {
            tracing::debug!(%from, %full, "a connection was turned away");
            return;
        }
    };
    // Small messages should not wait for more.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%from, %error, "a connection ended at once");
        return;
    }
    let (sessions, end) = (sessions.clone(), shutdown.child_token());
    running.spawn(async move {
        let connection = async {
            let accepted = end.run_until_cancelled(Box::pin(sessions.identity.tls().accept(stream))).await;
            let Some(accepted) = accepted else { return Ok(()) };
            session::run(accepted.map_err(SessionError::Handshake)?, stranger, &sessions, end).await
        };
        if let Err(error) = connection.await {
            tracing::info!(%from, %error, "a node's connection ended");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_comes_back_after_the_next_one_is_another_machine() {
        let mut instances = Instances::default();
        let mut is_next = |instance: &str| {
            let is_next = instances.is_next(instance);
            if is_next {
                instances.enter(instance);
            }
            is_next
        };
        // It connects, connects again, and is started anew.
        assert!(["a", "a", "b", "b"].iter().all(|instance| is_next(instance)));
        assert!(!is_next("a") && is_next("b"));
        assert!(["c", "d", "e", "f", "g"].iter().all(|instance| is_next(instance)));
        assert!(is_next("a"), "it is forgotten in the end");
        assert!(!is_next("e"));
    }
}
