//! Runs the swarm's policy: sessions put events in, sources and signed tickets go out to the sessions.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use longshore_artifact::pack_key;
use longshore_s3::Bucket;
use longshore_schemas::{
    ArtifactId, PackId,
    stream::{FromRegion, Ticket},
};
use longshore_service::metrics::Counters;
use longshore_swarm_policy::{
    Tracker,
    tracker::{Action, Config, Event},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{Limits, nodes::Sessions, roots::Roots};

/// Events that wait for the tracker; sessions wait when it is full.
pub(crate) const QUEUE_MAX: usize = 1_024;

static TICKETS: LazyLock<Counters<0>> = LazyLock::new(|| {
    Counters::new("longshore_region_tickets", "Leave given to nodes to read a pack from the bucket", [])
});
static BANS: LazyLock<Counters<0>> = LazyLock::new(|| {
    Counters::new("longshore_region_bans", "Nodes that no node is sent to any more, for wrong bytes", [])
});

pub(crate) fn channel() -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
    mpsc::channel(QUEUE_MAX)
}

pub(crate) struct Actor {
    tracker: Tracker,
    queue: mpsc::Receiver<Event>,
    sessions: Arc<Sessions>,
    roots: Arc<Roots>,
    bucket: Bucket,
    ticket_lifetime: Duration,
    started: Instant,
}

impl Actor {
    pub(crate) fn new(
        queue: mpsc::Receiver<Event>,
        sessions: Arc<Sessions>,
        roots: Arc<Roots>,
        bucket: Bucket,
        limits: &Limits,
    ) -> Self {
        let config = if limits.streaming { Config::streaming() } else { Config::default() };
        let (tracker, ticket_lifetime) = (Tracker::new(config), limits.ticket_lifetime);
        Self { tracker, queue, sessions, roots, bucket, ticket_lifetime, started: Instant::now() }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let wake = self.tracker.next_wake().map(|at| self.started + at);
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = self.queue.recv() => match event {
                    Some(event) => event,
                    None => return,
                },
                () = sleep => Event::Tick,
                () = shutdown.cancelled() => return,
            };
            for action in self.tracker.on(event, self.started.elapsed()) {
                self.perform(action).await;
            }
        }
    }

    async fn perform(&self, action: Action) {
        match action {
            Action::Sources { node, artifact, peers, tickets } => {
                let tickets = self.sign(&artifact, &tickets).await;
                TICKETS.count([], tickets.len() as u64);
                tracing::debug!(%node, %artifact, peers = peers.len(), tickets = tickets.len(), "sources told");
                self.sessions.tell(&node, FromRegion::Sources { artifact, peers, tickets });
            }
            Action::Ban { node } => {
                BANS.count([], 1);
                tracing::error!(%node, "several nodes got wrong bytes from this node: no node is sent to it for a while");
            }
        }
    }

    /// A ticket that cannot be signed is lent again once its lease is over.
    async fn sign(&self, artifact: &ArtifactId, packs: &[PackId]) -> Vec<Ticket> {
        if packs.is_empty() {
            return Vec::new();
        }
        let Some(root) = self.roots.get(artifact).await else {
            tracing::warn!(%artifact, "the artifact's root is gone; no tickets");
            return Vec::new();
        };
        let mut tickets = Vec::with_capacity(packs.len());
        for pack in packs {
            let Some(bytes) = root.size(pack) else { continue };
            match self.bucket.presign_get(&pack_key(pack), self.ticket_lifetime).await {
                Ok(signed) => tickets.push(Ticket { pack: *pack, bytes, url: signed.url }),
                Err(error) => tracing::warn!(%artifact, %pack, %error, "a ticket cannot be signed"),
            }
        }
        tickets
    }
}
