//! Carries out the policy for one artifact, until all that was wanted is in the store.
//!
//! One task: an async `select` gives what happened, and a sync part tells the policy and acts on its answer. Transfers are
//! tasks of their own that decide nothing.

use std::{collections::BTreeMap, io, sync::Arc};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use longshore_artifact::{
    PACK_BYTES_MAX,
    outline::{BLOCK_BYTES, Outline},
};
use longshore_identity::Tls;
use longshore_schemas::{
    ArtifactId, PackId,
    stream::{FromNode, PeerPacks, Ticket},
};
use longshore_swarm_policy::{
    Fetch,
    fetch::{ASK_PACKS_MAX, Action, Config, Event, Failure, Source, WantedPack},
};
use reqwest::{StatusCode, header::RANGE};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};

use crate::{
    Budget, Error, PackStore, STALL,
    pace::Pace,
    part::{Blocks, Expectation},
    peer::{Ask, FetchFailure, Peers, complete},
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
    budget: Budget,
}

impl Fetcher {
    /// Other nodes are reached with `tls`, the region's bucket with `http`; all that comes is within the budget.
    pub fn new(store: PackStore, policy: Config, http: reqwest::Client, tls: Arc<Tls>, budget: Budget) -> Self {
        Self { store, policy, peers: Arc::new(Peers::new(tls)), http, budget }
    }

    /// With no more requests at once than the budget has for.
    fn policy(&self) -> Config {
        let mut policy = self.policy.clone();
        policy.requests_max = self.budget.transfers(policy.requests_max);
        policy.bucket_requests_max = self.budget.transfers(policy.bucket_requests_max);
        policy
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
        // Others may wait for them here.
        let _expected = Expectation::new(self.store.clone(), wanted.iter().map(|wanted| wanted.pack).collect());
        let mut run = Run {
            fetcher: self,
            artifact,
            fetch: Fetch::new(self.policy()),
            to_region: link.to_region.clone(),
            transfers: JoinSet::new(),
            from_peers: BTreeMap::new(),
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
        run.send().await?;
        Ok(run.received)
    }
}

struct Run<'a> {
    fetcher: &'a Fetcher,
    artifact: ArtifactId,
    fetch: Fetch,
    to_region: mpsc::Sender<FromNode>,
    transfers: JoinSet<Transfer>,
    /// What ends a transfer from a peer.
    from_peers: BTreeMap<PackId, AbortHandle>,
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

/// A fetch that is dropped tells the region that nothing more is wanted, so that no tickets wait for it, and that what it passed on is no more.
impl Drop for Run<'_> {
    fn drop(&mut self) {
        let artifact = self.artifact;
        let packs: Vec<PackId> = self.fetch.promised().take(ASK_PACKS_MAX).collect();
        let gone = (!packs.is_empty()).then_some(FromNode::SourcesWanted { artifact, packs });
        let done = (self.fetch.missing() > 0).then_some(FromNode::Done { artifact });
        for message in gone.into_iter().chain(done) {
            // With no place for it, the tickets' leases end by themselves.
            let _ = self.to_region.try_send(message);
        }
    }
}

impl Run<'_> {
    /// Waits for whatever comes first.
    async fn next(&mut self, link: &mut Link) -> Result<Event, Error> {
        self.send().await?;
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
                Err(error) if error.is_cancelled() => Ok(Event::Tick),
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

    async fn send(&mut self) -> Result<(), Error> {
        for message in self.outbox.drain(..) {
            self.to_region.send(message).await.map_err(|_| Error::Unlinked)?;
        }
        Ok(())
    }

    /// An error if this node cannot store anything: whoever wants the packs has to say so.
    fn ended(&mut self, Transfer { pack, source, result }: Transfer) -> Result<Event, Error> {
        if matches!(source, Source::Peer(_)) {
            self.from_peers.remove(&pack);
        }
        let event = match result {
            Ok(bytes) => {
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
                let passed_on = self.passed_on.0.clone();
                let before = self.from_peers.remove(&pack);
                let transfer = self.transfers.spawn(async move {
                    let mut begun = begun_after(before, &fetcher.store, &pack).await;
                    // Nobody listens any more once the fetch is over.
                    let mut passes_on = || {
                        let _ = passed_on.send(pack);
                    };
                    let ask = Ask {
                        store: &fetcher.store,
                        budget: &fetcher.budget,
                        pack,
                        bytes,
                        begun: &mut begun,
                        answered: false,
                        passes_on: &mut passes_on,
                    };
                    let result = fetcher.peers.fetch(&peer, &address, ask).await;
                    Transfer { pack, source: Source::Peer(peer), result }
                });
                self.from_peers.insert(pack, transfer);
            }
            Action::Drop { pack } => {
                // It stays there: the next one takes what this one got.
                if let Some(transfer) = self.from_peers.get(&pack) {
                    transfer.abort();
                }
            }
            Action::FromBucket { ticket } => {
                let fetcher = self.fetcher.clone();
                let passed_on = self.passed_on.0.clone();
                let before = self.from_peers.remove(&ticket.pack);
                self.transfers.spawn(async move {
                    let mut begun = begun_after(before, &fetcher.store, &ticket.pack).await;
                    let mut passes_on = || {
                        let _ = passed_on.send(ticket.pack);
                    };
                    let result = from_bucket(&fetcher, &ticket, &mut begun, &mut passes_on).await;
                    Transfer { pack: ticket.pack, source: Source::Bucket, result }
                });
            }
            Action::AskSources { packs } => {
                tracing::debug!(%artifact, packs = packs.len(), missing = self.fetch.missing(), "the region is asked for sources");
                self.outbox.push(FromNode::SourcesWanted { artifact, packs });
            }
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

/// What there is of a pack, once the transfer before, which is ending, has left it.
async fn begun_after(before: Option<AbortHandle>, store: &PackStore, pack: &PackId) -> Option<Blocks> {
    while before.as_ref().is_some_and(|before| !before.is_finished()) {
        tokio::task::yield_now().await;
    }
    Blocks::left(store, pack)
}

/// Reads a pack from the regional bucket, with leave: in blocks that are passed on as they come, if its outline is known, or as a whole.
async fn from_bucket(
    fetcher: &Fetcher,
    ticket: &Ticket,
    begun: &mut Option<Blocks>,
    passes_on: &mut (dyn FnMut() + Send),
) -> Result<u64, FetchFailure> {
    let outline = ticket.outline.as_deref().and_then(|outline| BASE64_STANDARD.decode(outline).ok());
    let outline = outline.and_then(|outline| Outline::from_bytes(ticket.pack, ticket.bytes, &outline));
    match outline.filter(|_| begun.is_none()) {
        Some(outline) => *begun = Some(Blocks::create(&fetcher.store, outline).map_err(FetchFailure::own)?),
        None if begun.is_none() => return whole_from_bucket(fetcher, ticket).await,
        None => {}
    }
    let Some(blocks) = begun.as_mut() else { return Err(FetchFailure::own(io::ErrorKind::NotFound.into())) };
    // All of it may have come before, in an answer that went on after its end.
    if blocks.next() < blocks.outline().blocks() {
        blocks_from_bucket(fetcher, ticket, blocks, passes_on).await?;
    }
    complete(begun)
}

/// A pack that comes out of the bucket, from some byte on.
struct Response<'a> {
    response: reqwest::Response,
    pace: Pace,
    budget: &'a Budget,
}

impl<'a> Response<'a> {
    async fn begin(fetcher: &'a Fetcher, ticket: &Ticket, from: u64) -> Result<Self, FetchFailure> {
        let lost = |error: &dyn std::fmt::Display| FetchFailure::unreachable(error);
        let mut request = fetcher.http.get(&ticket.url);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = timeout(STALL, request.send()).await;
        let response = response.map_err(|_| lost(&"the bucket does not answer"))?;
        let response = response.map_err(|error| lost(&error.without_url()))?;
        let status = response.status();
        let expected = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        if status != expected {
            // Anything else says nothing of the pack: the ticket may be too old, or the bucket overloaded.
            let failure = if status == StatusCode::NOT_FOUND { Failure::Missing } else { Failure::Unreachable };
            return Err(FetchFailure::new(failure, format!("the bucket answered {status}")));
        }
        Ok(Self { response, pace: Pace::start(ticket.bytes), budget: &fetcher.budget })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FetchFailure> {
        let response = &mut self.response;
        let chunk = async { response.chunk().await.map_err(|error| io::Error::other(error.without_url())) };
        let count = |block: &Option<Bytes>| block.as_ref().map_or(0, Bytes::len);
        let came = self.pace.next(chunk, count).await?;
        self.pace.paused(self.budget.spend(count(&came) as u64).await);
        Ok(came)
    }
}

async fn blocks_from_bucket(
    fetcher: &Fetcher,
    ticket: &Ticket,
    blocks: &mut Blocks,
    passes_on: &mut (dyn FnMut() + Send),
) -> Result<(), FetchFailure> {
    let lied = || FetchFailure::new(Failure::Lied, "the bucket's bytes are not the pack's");
    let mut response = Response::begin(fetcher, ticket, (blocks.next() * BLOCK_BYTES) as u64).await?;
    let (mut block, mut is_told) = (Vec::with_capacity(BLOCK_BYTES), false);
    while let Some(mut came) = response.next().await? {
        while !came.is_empty() {
            if blocks.next() == blocks.outline().blocks() {
                return Err(FetchFailure::new(Failure::Lied, "the bucket sent more bytes than the pack has"));
            }
            let length = blocks.outline().length(blocks.next());
            block.extend_from_slice(&came.split_to(came.len().min(length - block.len())));
            if block.len() < length {
                continue;
            }
            block = blocks.take(block).await.map_err(FetchFailure::own)?.ok_or_else(lied)?;
            block.clear();
            if !is_told {
                passes_on();
                is_told = true;
            }
        }
    }
    if blocks.next() < blocks.outline().blocks() {
        return Err(lied());
    }
    Ok(())
}

async fn whole_from_bucket(fetcher: &Fetcher, ticket: &Ticket) -> Result<u64, FetchFailure> {
    let mut response = Response::begin(fetcher, ticket, 0).await?;
    let mut incoming = fetcher.store.incoming(ticket.pack).map_err(FetchFailure::own)?;
    while let Some(came) = response.next().await? {
        if incoming.bytes() + came.len() as u64 > ticket.bytes.min(PACK_BYTES_MAX as u64) {
            return Err(FetchFailure::new(Failure::Lied, "the bucket sent more bytes than the pack has"));
        }
        incoming.write(&came).await.map_err(FetchFailure::own)?;
    }
    let bytes = incoming.bytes();
    match incoming.admit().await.map_err(FetchFailure::own)? {
        true => Ok(bytes),
        false => Err(FetchFailure::new(Failure::Lied, "the bucket's bytes are not the pack's")),
    }
}
