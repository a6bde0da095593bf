//! One node's choice of what to fetch next, and from whom.
//!
//! ```text
//! Wanted ─▶ Missing ──FromPeer / FromBucket──▶ InFlight ──Stored──▶ gone
//!              ▲                                  │
//!              └───────────── Failed ─────────────┘   (back-off, another source, or AskSources)
//! ```
//!
//! A pack is in flight from one source at a time. The rarest of the missing packs come first, ties in an order that
//! each node's seed makes its own, so that nodes that start together end up with different packs to give. Peers that
//! fail rest for a while, those that lie are never asked again. What nobody known has is asked of the region.
//!
//! It does not know how bytes move or how long that may take: whoever carries out the actions reports every
//! [`Action::FromPeer`] and [`Action::FromBucket`] back, exactly once, as [`Event::Stored`] or [`Event::Failed`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_schemas::{
    NodeId, PackId, RackName,
    stream::{PeerPacks, Ticket},
};

use crate::{Time, mix, name_number, pack_number};

/// Rest of a peer that was busy.
const BUSY_REST: Duration = Duration::from_millis(250);
/// Rest of a peer that failed; doubles with each failure in a row.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(60);
/// The region is asked again for the same pack after this.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// The region is not asked more often than this.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// Most packs in one question; 70 bytes each in a frame of 1 MiB.
pub const ASK_PACKS_MAX: usize = 8_000;
/// Most peers that are remembered.
const PEERS_MAX: usize = 1_000;
/// Most peers that are remembered for one pack.
const PACK_PEERS_MAX: usize = 16;

#[derive(Debug, Clone)]
pub struct Config {
    pub node: NodeId,
    pub rack: RackName,
    /// Makes this node's order its own.
    pub seed: u64,
    /// Requests under way at one peer.
    pub peer_requests_max: usize,
    /// Requests under way in all, tickets included.
    pub requests_max: usize,
}

impl Config {
    /// The usual limits; the seed comes from the node's name.
    pub fn new(node: NodeId, rack: RackName) -> Self {
        let seed = name_number(node.as_str());
        Self { node, rack, seed, peer_requests_max: 4, requests_max: 16 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WantedPack {
    pub pack: PackId,
    pub bytes: u64,
}

/// Where a pack was asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Peer(NodeId),
    Bucket,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Packs that the node lacks. May come in several portions: those of the manifest, then the rest.
    Wanted(Vec<WantedPack>),
    /// What the region said.
    Sources { peers: Vec<PeerPacks>, tickets: Vec<Ticket> },
    /// The first of the pack is verified and served, and what comes of it is passed on.
    Begun { pack: PackId },
    /// The pack is verified, on disk and served; from whomever.
    Stored { pack: PackId },
    /// A request of this came to nothing.
    Failed { pack: PackId, source: Source, failure: Failure },
    /// The region's connection is new: it knows nothing of this node's wishes, and earlier tickets may be void.
    Reconnected,
    /// The time of [`Fetch::next_wake`] has come.
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The peer does not have the pack (any more); the bucket does not.
    Missing,
    /// The peer serves as many as it can.
    Busy,
    /// No connection, a broken one, nothing for too long, too slow.
    Unreachable,
    /// The bytes were not those of the pack.
    Lied,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    FromPeer {
        peer: NodeId,
        address: String,
        pack: PackId,
        bytes: u64,
    },
    FromBucket {
        ticket: Ticket,
    },
    /// Send [`longshore_schemas::stream::FromNode::SourcesWanted`].
    AskSources {
        packs: Vec<PackId>,
    },
    /// Send [`longshore_schemas::stream::FromNode::HaveMore`]; several may be joined into one message.
    Announce {
        pack: PackId,
    },
    /// Send [`longshore_schemas::stream::FromNode::TicketDone`].
    TicketDone {
        pack: PackId,
        ok: bool,
    },
    /// Send [`longshore_schemas::stream::FromNode::PeerLied`].
    ReportLie {
        peer: NodeId,
        pack: PackId,
    },
    /// Nothing that was wanted is missing. Comes again if more is wanted later.
    Complete,
}

/// See the module.
#[derive(Debug)]
pub struct Fetch {
    config: Config,
    missing: BTreeMap<PackId, Missing>,
    peers: BTreeMap<NodeId, Peer>,
    in_flight: usize,
    asked_at: Option<Time>,
    now: Time,
}

#[derive(Debug)]
struct Missing {
    bytes: u64,
    sources: BTreeSet<NodeId>,
    in_flight: Option<Source>,
    ticket: Option<Ticket>,
    asked_at: Option<Time>,
    /// The region knows that others can have it from here.
    announced: bool,
}

#[derive(Debug)]
struct Peer {
    address: String,
    same_rack: bool,
    in_flight: usize,
    failures_in_a_row: u32,
    rests_until: Time,
    lied: bool,
}

impl Fetch {
    pub fn new(config: Config) -> Self {
        Self { config, missing: BTreeMap::new(), peers: BTreeMap::new(), in_flight: 0, asked_at: None, now: Time::ZERO }
    }

    pub fn on(&mut self, event: Event, now: Time) -> Vec<Action> {
        let now = self.now.max(now);
        self.now = now;
        let mut actions = Vec::new();
        match event {
            Event::Wanted(packs) => self.want(packs, &mut actions),
            Event::Sources { peers, tickets } => self.learn(peers, tickets, &mut actions),
            Event::Begun { pack } => self.begun(pack, &mut actions),
            Event::Stored { pack } => self.stored(&pack, &mut actions),
            Event::Failed { pack, source, failure } => self.failed(pack, &source, failure, now, &mut actions),
            Event::Reconnected => self.reconnected(),
            Event::Tick => {}
        }
        self.request(now, &mut actions);
        self.ask(now, &mut actions);
        actions
    }

    /// When to send [`Event::Tick`] if nothing else happens before; `None` if time alone changes nothing.
    pub fn next_wake(&self) -> Option<Time> {
        let idle = self.missing.values().filter(|missing| missing.in_flight.is_none());
        let due = idle.filter_map(|missing| self.ask_due(missing)).min();
        let rested = self.peers.values().filter(|peer| !peer.lied && peer.rests_until > self.now);
        let rested = rested.map(|peer| peer.rests_until).min();
        due.into_iter().chain(rested).min()
    }

    /// Packs that are still missing, those in flight included.
    pub fn missing(&self) -> usize {
        self.missing.len()
    }

    /// Requests that have not been reported back yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn want(&mut self, packs: Vec<WantedPack>, actions: &mut Vec<Action>) {
        for WantedPack { pack, bytes } in packs {
            let fresh = || Missing {
                bytes,
                sources: BTreeSet::new(),
                in_flight: None,
                ticket: None,
                asked_at: None,
                announced: false,
            };
            self.missing.entry(pack).or_insert_with(fresh);
        }
        if self.missing.is_empty() {
            actions.push(Action::Complete);
        }
    }

    fn learn(&mut self, peers: Vec<PeerPacks>, tickets: Vec<Ticket>, actions: &mut Vec<Action>) {
        for told in peers {
            let known = self.peers.contains_key(&told.node);
            if told.node == self.config.node || (!known && self.peers.len() >= PEERS_MAX) {
                continue;
            }
            let same_rack = told.rack == self.config.rack;
            let peer = self.peers.entry(told.node.clone()).or_insert_with(|| Peer {
                address: String::new(),
                same_rack,
                in_flight: 0,
                failures_in_a_row: 0,
                rests_until: Time::ZERO,
                lied: false,
            });
            if peer.address != told.address {
                // The node was started anew: what was wrong with the old one says nothing of this one.
                (peer.address, peer.failures_in_a_row, peer.rests_until) = (told.address, 0, Time::ZERO);
            }
            if peer.lied {
                continue;
            }
            for pack in told.packs {
                let wanted = self.missing.get_mut(&pack);
                if let Some(missing) = wanted.filter(|missing| missing.sources.len() < PACK_PEERS_MAX) {
                    missing.sources.insert(told.node.clone());
                }
            }
        }
        for ticket in tickets {
            match self.missing.get_mut(&ticket.pack) {
                Some(missing) if missing.in_flight.is_none() => missing.ticket = Some(ticket),
                // It is on its way already, by an earlier ticket.
                Some(missing) if missing.in_flight == Some(Source::Bucket) => {}
                // A peer was faster: the region may lend it to another.
                _ => actions.push(Action::TicketDone { pack: ticket.pack, ok: false }),
            }
        }
    }

    fn begun(&mut self, pack: PackId, actions: &mut Vec<Action>) {
        if let Some(missing) =
            self.missing.get_mut(&pack).filter(|missing| !missing.announced && missing.in_flight.is_some())
        {
            missing.announced = true;
            actions.push(Action::Announce { pack });
        }
    }

    fn stored(&mut self, pack: &PackId, actions: &mut Vec<Action>) {
        let Some(missing) = self.missing.remove(pack) else { return };
        let from_bucket = missing.in_flight == Some(Source::Bucket);
        if let Some(Source::Peer(peer)) = &missing.in_flight
            && let Some(peer) = self.peers.get_mut(peer)
        {
            (peer.failures_in_a_row, peer.rests_until) = (0, Time::ZERO);
        }
        self.landed(missing.in_flight.as_ref());
        if !missing.announced {
            actions.push(Action::Announce { pack: *pack });
        }
        if from_bucket || missing.ticket.is_some() {
            actions.push(Action::TicketDone { pack: *pack, ok: true });
        }
        if self.missing.is_empty() {
            actions.push(Action::Complete);
        }
    }

    fn failed(&mut self, pack: PackId, source: &Source, failure: Failure, now: Time, actions: &mut Vec<Action>) {
        let flew = self.missing.get_mut(&pack).filter(|missing| missing.in_flight.as_ref() == Some(source));
        let Some(missing) = flew else { return };
        missing.in_flight = None;
        self.landed(Some(source));
        match source {
            Source::Bucket => actions.push(Action::TicketDone { pack, ok: false }),
            Source::Peer(node) => self.blame(pack, node, failure, now, actions),
        }
    }

    fn landed(&mut self, source: Option<&Source>) {
        let Some(source) = source else { return };
        self.in_flight -= 1;
        if let Source::Peer(peer) = source
            && let Some(peer) = self.peers.get_mut(peer)
        {
            peer.in_flight -= 1;
        }
    }

    fn blame(&mut self, pack: PackId, node: &NodeId, failure: Failure, now: Time, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        let keeps_pack = match failure {
            Failure::Missing => false,
            Failure::Busy => {
                peer.rests_until = now + BUSY_REST;
                true
            }
            Failure::Unreachable => {
                let rest = REST_MIN * 2u32.pow(peer.failures_in_a_row.min(6));
                peer.failures_in_a_row += 1;
                peer.rests_until = now + rest.min(REST_MAX);
                false
            }
            Failure::Lied => {
                peer.lied = true;
                actions.push(Action::ReportLie { peer: node.clone(), pack });
                for missing in self.missing.values_mut() {
                    missing.sources.remove(node);
                }
                return;
            }
        };
        if !keeps_pack && let Some(missing) = self.missing.get_mut(&pack) {
            missing.sources.remove(node);
        }
    }

    fn reconnected(&mut self) {
        self.asked_at = None;
        for missing in self.missing.values_mut() {
            (missing.asked_at, missing.ticket, missing.announced) = (None, None, false);
        }
    }

    /// Fills the free places: tickets first, for others wait for those packs; then the rarest packs.
    fn request(&mut self, now: Time, actions: &mut Vec<Action>) {
        for (_, missing) in self.missing.iter_mut().filter(|(_, missing)| missing.ticket.is_some()) {
            if self.in_flight >= self.config.requests_max {
                return;
            }
            if let Some(ticket) = missing.ticket.take() {
                missing.in_flight = Some(Source::Bucket);
                self.in_flight += 1;
                actions.push(Action::FromBucket { ticket });
            }
        }
        if self.in_flight >= self.config.requests_max {
            return;
        }
        let idle = self.missing.iter().filter(|(_, m)| m.in_flight.is_none() && !m.sources.is_empty());
        let mut rarest: Vec<(usize, u64, PackId)> =
            idle.map(|(pack, m)| (m.sources.len(), mix(self.config.seed, pack_number(pack)), *pack)).collect();
        rarest.sort_unstable();
        for (_, _, pack) in rarest {
            if self.in_flight >= self.config.requests_max {
                return;
            }
            if let Some(peer) = self.choose_peer(&pack, now) {
                self.send(pack, peer, actions);
            }
        }
    }

    /// The least busy peer that has the pack, those of the own rack before others.
    fn choose_peer(&self, pack: &PackId, now: Time) -> Option<NodeId> {
        let salt = self.config.seed ^ pack_number(pack);
        let able = self.missing.get(pack)?.sources.iter().filter_map(|node| {
            let peer = self.peers.get(node)?;
            let free = !peer.lied && peer.rests_until <= now && peer.in_flight < self.config.peer_requests_max;
            free.then(|| ((!peer.same_rack, peer.in_flight, mix(salt, name_number(node.as_str()))), node))
        });
        able.min().map(|(_, node)| node.clone())
    }

    fn send(&mut self, pack: PackId, node: NodeId, actions: &mut Vec<Action>) {
        let (Some(missing), Some(peer)) = (self.missing.get_mut(&pack), self.peers.get_mut(&node)) else { return };
        missing.in_flight = Some(Source::Peer(node.clone()));
        peer.in_flight += 1;
        self.in_flight += 1;
        let (address, bytes) = (peer.address.clone(), missing.bytes);
        actions.push(Action::FromPeer { peer: node, address, pack, bytes });
    }

    /// Asks for what no usable peer has. A peer that merely rests for a moment is worth waiting for.
    fn ask(&mut self, now: Time, actions: &mut Vec<Action>) {
        let idle = self.missing.iter().filter(|(_, missing)| missing.in_flight.is_none());
        let due = idle.filter(|(_, missing)| self.ask_due(missing).is_some_and(|due| due <= now));
        let packs: Vec<PackId> = due.map(|(pack, _)| *pack).take(ASK_PACKS_MAX).collect();
        if packs.is_empty() {
            return;
        }
        for pack in &packs {
            if let Some(missing) = self.missing.get_mut(pack) {
                // Whoever wants a pack is taken to have nothing of it.
                (missing.asked_at, missing.announced) = (Some(now), false);
            }
        }
        self.asked_at = Some(now);
        actions.push(Action::AskSources { packs });
    }

    /// When the region should be asked for an idle pack; `None` while a peer is expected to give it.
    fn ask_due(&self, missing: &Missing) -> Option<Time> {
        let hopeful = |node| self.peers.get(node).is_some_and(|peer| !peer.lied && peer.failures_in_a_row == 0);
        if missing.ticket.is_some() || missing.sources.iter().any(hopeful) {
            return None;
        }
        let again = missing.asked_at.map_or(Time::ZERO, |at| at + ASK_AGAIN);
        let paced = self.asked_at.map_or(Time::ZERO, |at| at + ASK_INTERVAL);
        Some(again.max(paced))
    }
}
