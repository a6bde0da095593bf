//! The listener, and which node is connected by which session.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use longshore_schemas::{NodeId, RegionName, stream::FromRegion};
use longshore_service::{limits::Gate, signed::Signer, tokens::Tokens};
use longshore_swarm_policy::tracker::Event;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    CONNECTIONS, Error, RegionConfig, goals::GoalBoard, mender::Words, reports::Reports, roots::Roots, session,
};

/// After an error of `accept`, such as too many open files.
const ACCEPT_WAIT: Duration = Duration::from_millis(200);

/// What every session shares.
pub(crate) struct Sessions {
    pub(crate) region: RegionName,
    pub(crate) tokens: Tokens,
    pub(crate) signer: Signer,
    pub(crate) beat: Duration,
    pub(crate) goals: Arc<GoalBoard>,
    pub(crate) reports: Arc<Reports>,
    pub(crate) roots: Arc<Roots>,
    pub(crate) tracker: mpsc::Sender<Event>,
    /// Where it is said that packs are damaged.
    pub(crate) damaged: Words,
    connections: Gate,
    connected: DashMap<NodeId, Connected>,
    last_session: AtomicU64,
}

/// A node's present session.
struct Connected {
    session: u64,
    outbound: mpsc::Sender<FromRegion>,
    end: CancellationToken,
}

impl Sessions {
    pub(crate) fn new(
        config: &RegionConfig,
        goals: Arc<GoalBoard>,
        reports: Arc<Reports>,
        roots: Arc<Roots>,
        tracker: mpsc::Sender<Event>,
        damaged: Words,
    ) -> Self {
        Self {
            region: config.region.clone(),
            tokens: config.tokens.clone(),
            signer: config.signer.for_purpose("node"),
            beat: config.limits.beat,
            goals,
            reports,
            roots,
            tracker,
            damaged,
            connections: Gate::of(&CONNECTIONS, config.limits.connections_max, config.region.as_str()),
            connected: DashMap::new(),
            last_session: AtomicU64::new(0),
        }
    }

    pub(crate) fn connected(&self) -> usize {
        self.connected.len()
    }

    pub(crate) fn is_connected(&self, node: &NodeId) -> bool {
        self.connected.contains_key(node)
    }

    /// Makes this the node's session and ends an earlier one. Its number names it.
    pub(crate) fn enter(&self, node: &NodeId, outbound: mpsc::Sender<FromRegion>, end: CancellationToken) -> u64 {
        let session = self.last_session.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(earlier) = self.connected.insert(node.clone(), Connected { session, outbound, end }) {
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

    /// Never waits: a node that does not read what it asked for is disconnected, and asks again when it is back.
    pub(crate) fn tell(&self, node: &NodeId, message: FromRegion) {
        let Some(connected) = self.connected.get(node) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = connected.outbound.try_send(message) {
            tracing::warn!(%node, "node does not read its messages; disconnecting it");
            connected.end.cancel();
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
    let pass = match sessions.connections.enter() {
        Ok(pass) => pass,
        Err(full) => {
            tracing::warn!(%from, %full, "a node was turned away");
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
        let _pass = pass;
        if let Err(error) = session::run(stream, &sessions, end).await {
            tracing::info!(%from, %error, "a node's connection ended");
        }
    });
}
