//! Carries out the policy for one artifact, until all that was wanted is in the store.
//!
//! One task: an async `select` gives what happened, and a sync part tells the policy and acts on its answer. Transfers are
//! tasks of their own that decide nothing.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use longshore_artifact::PACK_BYTES_MAX;
use longshore_identity::Tls;
use longshore_schemas::{
    ArtifactId, PackId,
    stream::{FromNode, PeerPacks, Ticket},
};
use longshore_swarm_policy::{
    Fetch,
    fetch::{Action, Config, Event, Failure, Source, WantedPack},
};
use reqwest::StatusCode;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    Error, PackStore, STALL,
    pace::Pace,
    peer::{Ask, FetchFailure, Peers, deadline},
    store::Blocks,
};

/// What the region says about one artifact.
#[derive(Debug)]
pub enum FromTracker {
    Sources {
        peers: Vec<PeerPacks>,
        tickets: Vec<Ticket>,
    },
    /// The stream to the region is new: it must be told again what is wanted.
    Reconnected,
}

/// How a fetch talks with the tracker.
pub struct Link {
    pub to_region: mpsc::Sender<FromNode>,
    pub from_tracker: mpsc::Receiver<FromTracker>,
}

/// What came from where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    pub from_peers_bytes: u64,
    pub from_bucket_bytes: u64,
}

impl std::ops::AddAssign for Received {
    fn add_assign(&mut self, other: Self) {
        self.from_peers_bytes += other.from_peers_bytes;
        self.from_bucket_bytes += other.from_bucket_bytes;
    }
}

/// Fetches packs into a store. One for a node; cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    store: PackStore,
    policy: Config,
    peers: Arc<Peers>,
    http: reqwest::Client,
    /// Whether packs are passed on while they come.
    streaming: Arc<AtomicBool>,
}

/// Packs of one fetch of which some came, and whose source failed: the next one goes on with them. Meanwhile they are passed on.
type Begun = Arc<Mutex<BTreeMap<PackId, Blocks>>>;

impl Fetcher {
    /// Other nodes are reached with `tls`, the region's bucket with `http`.
    pub fn new(
        store: PackStore,
        policy: Config,
        http: reqwest::Client,
        tls: Arc<Tls>,
        streaming: Arc<AtomicBool>,
    ) -> Self {
        Self { store, policy, peers: Arc::new(Peers::new(tls)), http, streaming }
    }

    pub fn store(&self) -> &PackStore {
        &self.store
    }

    /// Fetches those of these packs that the store lacks. Goes on trying for as long as it takes, unless the store takes
    /// nothing: drop it to stop.
    pub async fn fetch(
        &self,
        artifact: ArtifactId,
        wanted: Vec<WantedPack>,
        link: &mut Link,
    ) -> Result<Received, Error> {
        let wanted: Vec<_> = wanted.into_iter().filter(|wanted| !self.store.contains(&wanted.pack)).collect();
        if wanted.is_empty() {
            return Ok(Received::default());
        }
        let mut farewell = Farewell { to_region: link.to_region.clone(), artifact, due: true };
        let mut run = Run {
            fetcher: self,
            artifact,
            fetch: Fetch::new(self.policy.clone()),
            transfers: JoinSet::new(),
            begun_packs: Begun::default(),
            passed_on: mpsc::unbounded_channel(),
            begun: Instant::now(),
            received: Received::default(),
            outbox: Vec::new(),
            complete: false,
        };
        run.happened(Event::Wanted(wanted));
        while !run.complete {
            let event = run.next(link).await?;
            run.happened(event);
        }
        run.outbox.push(FromNode::Done { artifact });
        run.send(link).await?;
        farewell.due = false;
        Ok(run.received)
    }
}

/// Tells the region that nothing more is wanted when a fetch is dropped, so that no tickets wait for it.
struct Farewell {
    to_region: mpsc::Sender<FromNode>,
    artifact: ArtifactId,
    due: bool,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if self.due {
            // With no place for it, the tickets' leases end by themselves.
            let _ = self.to_region.try_send(FromNode::Done { artifact: self.artifact });
        }
    }
}

struct Run<'a> {
    fetcher: &'a Fetcher,
    artifact: ArtifactId,
    fetch: Fetch,
    transfers: JoinSet<Transfer>,
    begun_packs: Begun,
    /// Packs that can be passed on from now on: no more of them than transfers.
    passed_on: (mpsc::UnboundedSender<PackId>, mpsc::UnboundedReceiver<PackId>),
    begun: Instant,
    received: Received,
    outbox: Vec<FromNode>,
    complete: bool,
}

struct Transfer {
    pack: PackId,
    source: Source,
    result: Result<u64, FetchFailure>,
}

impl Run<'_> {
    /// Waits for whatever comes first.
    async fn next(&mut self, link: &mut Link) -> Result<Event, Error> {
        self.send(link).await?;
        let wake = self.fetch.next_wake().map(|at| self.begun + at);
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = self.transfers.join_next() => match ended {
                Ok(transfer) => self.ended(transfer),
                // Transfers neither panic nor are they cancelled while this runs.
                Err(error) => { tracing::error!(%error, "a transfer died"); Ok(Event::Tick) }
            },
            Some(pack) = self.passed_on.1.recv() => {
                tracing::debug!(artifact = %self.artifact, %pack, "a pack comes");
                Ok(Event::Begun { pack })
            }
            told = link.from_tracker.recv() => match told.ok_or(Error::Unlinked)? {
                FromTracker::Sources { peers, tickets } => Ok(Event::Sources { peers, tickets }),
                FromTracker::Reconnected => Ok(Event::Reconnected),
            },
            () = sleep => Ok(Event::Tick),
        }
    }

    async fn send(&mut self, link: &Link) -> Result<(), Error> {
        for message in self.outbox.drain(..) {
            link.to_region.send(message).await.map_err(|_| Error::Unlinked)?;
        }
        Ok(())
    }

    /// An error if this node cannot store anything: whoever wants the packs has to say so.
    fn ended(&mut self, Transfer { pack, source, result }: Transfer) -> Result<Event, Error> {
        let event = match result {
            Ok(bytes) => {
                // What came of it otherwise.
                self.begun_packs.lock().unwrap_or_else(PoisonError::into_inner).remove(&pack);
                match source {
                    Source::Peer(_) => self.received.from_peers_bytes += bytes,
                    Source::Bucket => self.received.from_bucket_bytes += bytes,
                }
                tracing::debug!(artifact = %self.artifact, %pack, ?source, bytes, "a pack came");
                Event::Stored { pack }
            }
            Err(FetchFailure { own: Some(error), .. }) => {
                return Err(Error::Store { path: self.fetcher.store.folder().to_owned(), source: error });
            }
            Err(FetchFailure { failure, reason, own: None }) => {
                tracing::info!(artifact = %self.artifact, %pack, ?source, ?failure, reason, "a pack did not come");
                self.tell_of(pack, &source, failure);
                Event::Failed { pack, source, failure }
            }
        };
        Ok(event)
    }

    /// The region hears of every fault that may be the source's own. Of lies of peers, the policy tells.
    fn tell_of(&mut self, pack: PackId, source: &Source, failure: Failure) {
        let artifact = self.artifact;
        match (source, failure) {
            (Source::Peer(peer), Failure::Unreachable | Failure::Missing) => {
                self.outbox.push(FromNode::PeerFailed { peer: peer.clone(), pack });
            }
            (Source::Bucket, Failure::Lied | Failure::Missing) => {
                self.outbox.push(FromNode::PackDamaged { artifact, pack });
            }
            _ => {}
        }
    }

    /// Tells the policy, and does what it says.
    fn happened(&mut self, event: Event) {
        for action in self.fetch.on(event, self.begun.elapsed()) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        let artifact = self.artifact;
        match action {
            Action::FromPeer { peer, address, pack, bytes } => {
                let fetcher = self.fetcher.clone();
                let (begun_packs, passed_on) = (self.begun_packs.clone(), self.passed_on.0.clone());
                self.transfers.spawn(async move {
                    let lock = || begun_packs.lock().unwrap_or_else(PoisonError::into_inner);
                    let mut begun = lock().remove(&pack);
                    // Nobody listens any more once the fetch is over.
                    let mut passes_on = || {
                        if fetcher.streaming.load(Ordering::Relaxed) {
                            let _ = passed_on.send(pack);
                        }
                    };
                    let ask = Ask {
                        store: &fetcher.store,
                        pack,
                        bytes,
                        begun: &mut begun,
                        answered: false,
                        passes_on: &mut passes_on,
                    };
                    let result = fetcher.peers.fetch(&peer, &address, ask).await;
                    if let Some(begun) = begun {
                        lock().insert(pack, begun);
                    }
                    Transfer { pack, source: Source::Peer(peer), result }
                });
            }
            Action::FromBucket { ticket } => {
                let fetcher = self.fetcher.clone();
                self.transfers.spawn(async move {
                    let result = from_bucket(&fetcher, &ticket).await;
                    Transfer { pack: ticket.pack, source: Source::Bucket, result }
                });
            }
            Action::AskSources { packs } => self.outbox.push(FromNode::SourcesWanted { artifact, packs }),
            Action::Announce { pack } => match self.outbox.last_mut() {
                Some(FromNode::HaveMore { packs, .. }) => packs.push(pack),
                _ => self.outbox.push(FromNode::HaveMore { artifact, packs: vec![pack] }),
            },
            Action::TicketDone { pack, ok } => self.outbox.push(FromNode::TicketDone { artifact, pack, ok }),
            Action::ReportLie { peer, pack } => self.outbox.push(FromNode::PeerLied { peer, pack }),
            Action::Complete => self.complete = true,
        }
    }
}

/// Reads a pack from the regional bucket, with leave.
async fn from_bucket(fetcher: &Fetcher, ticket: &Ticket) -> Result<u64, FetchFailure> {
    let reading = async {
        let lost = |error: &dyn std::fmt::Display| FetchFailure::unreachable(error);
        let response = timeout(STALL, fetcher.http.get(&ticket.url).send()).await;
        let response = response.map_err(|_| lost(&"the bucket does not answer"))?;
        let response = response.map_err(|error| lost(&error.without_url()))?;
        let status = response.status();
        if !status.is_success() {
            // Anything else says nothing of the pack: the ticket may be too old, or the bucket overloaded.
            let failure = if status == StatusCode::NOT_FOUND { Failure::Missing } else { Failure::Unreachable };
            return Err(FetchFailure::new(failure, format!("the bucket answered {status}")));
        }
        let mut response = response;
        let mut incoming = fetcher.store.incoming(ticket.pack).map_err(FetchFailure::own)?;
        let mut pace = Pace::start();
        loop {
            let chunk = async { response.chunk().await.map_err(|error| io::Error::other(error.without_url())) };
            let count = |block: &Option<Bytes>| block.as_ref().map_or(0, Bytes::len);
            let Some(block) = pace.next(chunk, count).await? else { break };
            if incoming.bytes() + block.len() as u64 > ticket.bytes.min(PACK_BYTES_MAX as u64) {
                return Err(FetchFailure::new(Failure::Lied, "the bucket sent more bytes than the pack has"));
            }
            incoming.write(&block).await.map_err(FetchFailure::own)?;
        }
        let bytes = incoming.bytes();
        match incoming.admit().await.map_err(FetchFailure::own)? {
            true => Ok(bytes),
            false => Err(FetchFailure::new(Failure::Lied, "the bucket's bytes are not the pack's")),
        }
    };
    let until = deadline(ticket.bytes) + Duration::from_secs(5);
    tokio::time::timeout_at(until, reading).await.unwrap_or_else(|_| Err(FetchFailure::unreachable(&"too slow")))
}
