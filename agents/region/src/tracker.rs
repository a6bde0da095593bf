//! Runs the swarm's policy: sessions put events in, sources and signed tickets go out to the sessions.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::future::join_all;
use longshore_artifact::{
    outline::{OUTLINE_BYTES_MAX, Outline, outline_key},
    pack_key,
};
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
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Limits, nodes::Sessions, roots::Roots};

/// Events that wait for the tracker; sessions wait when it is full.
pub(crate) const QUEUE_MAX: usize = 1_024;
/// So long a ticket waits for the bucket to give the pack's outline.
const OUTLINE_MAX: Duration = Duration::from_secs(2);

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
    signer: Arc<Signer>,
    started: Instant,
}

/// Tells nodes what the tracker says, with tickets that the bucket takes.
struct Signer {
    sessions: Arc<Sessions>,
    roots: Arc<Roots>,
    bucket: Bucket,
    ticket_lifetime: Duration,
}

impl Actor {
    pub(crate) fn new(
        queue: mpsc::Receiver<Event>,
        sessions: Arc<Sessions>,
        roots: Arc<Roots>,
        bucket: Bucket,
        limits: &Limits,
    ) -> Self {
        let signer = Signer { sessions, roots, bucket, ticket_lifetime: limits.ticket_lifetime };
        Self { tracker: Tracker::new(Config::default()), queue, signer: Arc::new(signer), started: Instant::now() }
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
                self.perform(action);
            }
        }
    }

    fn perform(&self, action: Action) {
        match action {
            Action::Sources { node, artifact, peers, tickets } => {
                tracing::debug!(%node, %artifact, peers = peers.len(), tickets = tickets.len(), "sources told");
                if !peers.is_empty() {
                    self.signer.sessions.tell(&node, FromRegion::Sources { artifact, peers, tickets: Vec::new() });
                }
                if !tickets.is_empty() {
                    // The bucket is asked meanwhile: nobody else waits for that. There are no more of these than tickets.
                    let signer = self.signer.clone();
                    tokio::spawn(async move {
                        let tickets = signer.sign(&artifact, &tickets).await;
                        TICKETS.count([], tickets.len() as u64);
                        signer.sessions.tell(&node, FromRegion::Sources { artifact, peers: Vec::new(), tickets });
                    });
                }
            }
            Action::Ban { node } => {
                BANS.count([], 1);
                tracing::error!(%node, "several nodes got wrong bytes from this node: no node is sent to it for a while");
            }
        }
    }
}

impl Signer {
    /// A ticket that cannot be signed is lent again once its lease is over.
    async fn sign(&self, artifact: &ArtifactId, packs: &[PackId]) -> Vec<Ticket> {
        let Some(root) = self.roots.get(artifact).await else {
            tracing::warn!(%artifact, "the artifact's root is gone; no tickets");
            return Vec::new();
        };
        let sized = packs.iter().filter_map(|pack| Some((*pack, root.size(pack)?)));
        let signed = join_all(sized.map(|(pack, bytes)| self.ticket(pack, bytes))).await;
        signed.into_iter().flatten().collect()
    }

    async fn ticket(&self, pack: PackId, bytes: u64) -> Option<Ticket> {
        let signed = self.bucket.presign_get(&pack_key(&pack), self.ticket_lifetime).await;
        let signed = signed.inspect_err(|error| tracing::warn!(%pack, %error, "a ticket cannot be signed")).ok()?;
        Some(Ticket { pack, bytes, url: signed.url, outline: self.outline(pack, bytes).await })
    }

    /// Without it the pack is verified as a whole, and passed on once all of it is there.
    async fn outline(&self, pack: PackId, bytes: u64) -> Option<String> {
        let key = outline_key(&pack);
        let stored = match Outline::len_of(bytes) {
            0 => Vec::new().into(),
            _ => match timeout(OUTLINE_MAX, self.bucket.get(&key, OUTLINE_BYTES_MAX as u64)).await.ok()? {
                Ok(stored) => stored,
                Err(error) => {
                    tracing::info!(%pack, %error, "no outline of a pack");
                    return None;
                }
            },
        };
        let right = Outline::from_bytes(pack, bytes, &stored);
        if right.is_none() {
            tracing::warn!(%key, "what the bucket has there is not the pack's outline");
        }
        right.map(|_| BASE64_STANDARD.encode(&stored))
    }
}
