//! One node's choice of what to fetch next, and from whom.
//!
//! ```text
//! Wanted ─▶ Missing ──FromPeer / FromBucket──▶ InFlight ──Stored──▶ gone
//!              ▲                                  │
//!              └───────────── Failed ─────────────┘   (back-off, another source, or AskSources)
//! ```
//!
//! A pack is in flight from one source at a time. All nodes take the packs in the same order, which is random: each gets them from
//! one that is a little ahead, and those that are on their way somewhere are the ones that are asked for. Peers that
//! fail rest for a while, those that lie are never asked again. What nobody known has is asked of the region.
//!
//! It does not know how bytes move or how long that may take: whoever carries out the actions reports every
//! [`Action::FromPeer`] and [`Action::FromBucket`] back, exactly once, as [`Event::Stored`] or [`Event::Failed`], unless [`Action::Drop`] ended it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_schemas::{
    NodeId, PackId, RackName,
    stream::{PeerPacks, Planned, Ticket},
};

use crate::{Time, mix, name_number, pack_number};

/// Rest of a peer that was busy.
const BUSY_REST: Duration = Duration::from_millis(250);
/// A peer that is busy so often, one time after the other, helps nobody.
const BUSY_MAX: u32 = 8;
/// Rest of a peer that failed; doubles with each failure in a row.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(60);
/// A node that waits for packs, and got nothing of any for so long, asks elsewhere.
const STUCK: Duration = Duration::from_secs(5);
/// As many packs may come while one is waited for.
const OVERTAKEN_MAX: u64 = 40;
/// And fewer, if it is waited for so long.
const LATE_OVERTAKEN_MAX: u64 = 12;
const LATE: Duration = Duration::from_secs(8);
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
    /// Makes this node's choice among equal peers its own.
    pub seed: u64,
    /// Requests under way at one peer.
    pub peer_requests_max: usize,
    /// Requests under way at peers.
    pub requests_max: usize,
    /// Requests under way at the bucket.
    pub bucket_requests_max: usize,
    /// Of these, requests of which nothing came yet: for packs of one stripe of the region's plan, and for packs of none.
    pub stripe_waiting_max: usize,
    pub waiting_max: usize,
}

impl Config {
    /// The usual limits; the seed comes from the node's name.
    pub fn new(node: NodeId, rack: RackName) -> Self {
        let seed = name_number(node.as_str());
        Self {
            node,
            rack,
            seed,
            peer_requests_max: 8,
            requests_max: 24,
            bucket_requests_max: 4,
            stripe_waiting_max: 2,
            waiting_max: 8,
        }
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
    /// The peer is to get the pack itself, and has got nothing for too long.
    Waiting,
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
    /// Stop the transfer of this pack from a peer; it is not to be reported. What came of it is kept.
    Drop {
        pack: PackId,
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
    peers: Vec<Peer>,
    numbers: BTreeMap<NodeId, PeerNumber>,
    /// Requests under way at the bucket.
    from_bucket: usize,
    /// Packs that were asked for at a peer.
    flying: BTreeSet<PackId>,
    /// Those of them of which nothing came yet, and the way that they go.
    waiting: BTreeMap<Turn, Option<u8>>,
    /// When something of a pack came that was waited for, and how many packs came in all.
    progressed_at: Time,
    stored: u64,
    /// Packs with a ticket that is not used yet.
    tickets: BTreeSet<Turn>,
    /// Idle packs that no usable peer has, and when the region may be asked for them.
    unsourced: BTreeSet<(Time, PackId)>,
    asked_at: Option<Time>,
    now: Time,
}

type PeerNumber = usize;

/// A pack's place in everybody's order.
type Turn = (u64, PackId);

fn turn(pack: PackId) -> Turn {
    (pack_number(&pack), pack)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    Peer(PeerNumber),
    Bucket,
}

#[derive(Debug)]
struct Missing {
    bytes: u64,
    sources: Vec<PeerNumber>,
    /// The one of them that the plan has, and which way the pack goes.
    planned: Option<PeerNumber>,
    stripe: Option<u8>,
    in_flight: Option<Flight>,
    /// When it was asked for, and how many packs had come by then.
    departed: (Time, u64),
    ticket: Option<Ticket>,
    asked_at: Option<Time>,
    /// Its place in `unsourced`.
    ask_at: Option<Time>,
    /// Some of it came.
    begun: bool,
    /// Whom it was asked for does not help: it is asked for elsewhere as soon as somebody else is known.
    complained: bool,
    /// The region knows that others can have it from here.
    announced: bool,
}

#[derive(Debug)]
struct Peer {
    id: NodeId,
    /// Of its name.
    number: u64,
    address: String,
    same_rack: bool,
    in_flight: usize,
    failures_in_a_row: u32,
    busy_in_a_row: u32,
    rests_until: Time,
    lied: bool,
    /// Idle packs that it has or gets, by the way that they go.
    offers: BTreeMap<Option<u8>, BTreeSet<Turn>>,
}

impl Peer {
    fn withdraw(&mut self, stripe: Option<u8>, pack: PackId) {
        if let Some(offers) = self.offers.get_mut(&stripe) {
            offers.remove(&turn(pack));
            if offers.is_empty() {
                self.offers.remove(&stripe);
            }
        }
    }

    fn is_hopeful(&self) -> bool {
        !self.lied && self.failures_in_a_row == 0
    }
}

impl Fetch {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            missing: BTreeMap::new(),
            peers: Vec::new(),
            numbers: BTreeMap::new(),
            from_bucket: 0,
            flying: BTreeSet::new(),
            waiting: BTreeMap::new(),
            progressed_at: Time::ZERO,
            stored: 0,
            tickets: BTreeSet::new(),
            unsourced: BTreeSet::new(),
            asked_at: None,
            now: Time::ZERO,
        }
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
            Event::Failed { pack, source, failure } => self.failed(pack, &source, failure, &mut actions),
            Event::Reconnected => self.reconnected(&mut actions),
            Event::Tick => {}
        }
        self.complain(&mut actions);
        self.request(&mut actions);
        self.ask(&mut actions);
        actions
    }

    /// When to send [`Event::Tick`] if nothing else happens before; `None` if time alone changes nothing.
    pub fn next_wake(&self) -> Option<Time> {
        let due = self.unsourced.first().map(|(due, _)| (*due).max(self.ask_paced()));
        let rests = |peer: &&Peer| !peer.lied && peer.rests_until > self.now && !peer.offers.is_empty();
        let rested = self.peers.iter().filter(rests).map(|peer| peer.rests_until).min();
        let stuck = |missing: &Missing| Some(self.stuck_at(missing)?.max(Self::complaint_due(missing)));
        let stuck = self.waiting.keys().filter_map(|(_, pack)| stuck(self.missing.get(pack)?)).min();
        due.into_iter().chain(rested).chain(stuck).min()
    }

    /// Packs that are still missing, those in flight included.
    pub fn missing(&self) -> usize {
        self.missing.len()
    }

    /// Requests that have not been reported back yet.
    pub fn in_flight(&self) -> usize {
        self.flying.len() + self.from_bucket
    }

    /// Packs of which the region was told, and that are not there as a whole.
    pub fn promised(&self) -> impl Iterator<Item = PackId> {
        self.missing.iter().filter(|(_, missing)| missing.announced).map(|(pack, _)| *pack)
    }

    fn want(&mut self, packs: Vec<WantedPack>, actions: &mut Vec<Action>) {
        for WantedPack { pack, bytes } in packs {
            let fresh = || Missing {
                bytes,
                sources: Vec::new(),
                planned: None,
                stripe: None,
                in_flight: None,
                departed: (Time::ZERO, 0),
                ticket: None,
                asked_at: None,
                ask_at: None,
                begun: false,
                complained: false,
                announced: false,
            };
            self.missing.entry(pack).or_insert_with(fresh);
            self.file(pack);
        }
        if self.missing.is_empty() {
            actions.push(Action::Complete);
        }
    }

    /// Puts a pack where those look for it who choose what is next.
    fn file(&mut self, pack: PackId) {
        let Some(missing) = self.missing.get_mut(&pack) else { return };
        if let Some(old) = missing.ask_at.take() {
            self.unsourced.remove(&(old, pack));
        }
        let idle = missing.in_flight.is_none();
        let mut hopeful = false;
        for number in &missing.sources {
            let peer = &mut self.peers[*number];
            hopeful |= peer.is_hopeful();
            if idle {
                peer.offers.entry(missing.stripe).or_default().insert(turn(pack));
            } else {
                peer.withdraw(missing.stripe, pack);
            }
        }
        if idle && missing.ticket.is_some() {
            self.tickets.insert(turn(pack));
        } else {
            self.tickets.remove(&turn(pack));
        }
        // A peer that merely rests for a moment is worth waiting for.
        if idle && missing.ticket.is_none() && !hopeful {
            let due = missing.asked_at.map_or(Time::ZERO, |at| at + ASK_AGAIN);
            missing.ask_at = Some(due);
            self.unsourced.insert((due, pack));
        }
    }

    /// After something changed about a peer.
    fn file_all_of(&mut self, peer: PeerNumber) {
        let has = |(pack, missing): (&PackId, &Missing)| missing.sources.contains(&peer).then_some(*pack);
        let packs: Vec<PackId> = self.missing.iter().filter_map(has).collect();
        for pack in packs {
            self.file(pack);
        }
    }

    fn learn(&mut self, peers: Vec<PeerPacks>, tickets: Vec<Ticket>, actions: &mut Vec<Action>) {
        for told in peers {
            self.learn_peer(told, actions);
        }
        for ticket in tickets {
            self.learn_ticket(ticket, actions);
        }
    }

    fn learn_peer(&mut self, told: PeerPacks, actions: &mut Vec<Action>) {
        let known = self.numbers.get(&told.node).copied();
        if told.node == self.config.node || (known.is_none() && self.peers.len() >= PEERS_MAX) {
            return;
        }
        let number = known.unwrap_or_else(|| {
            self.numbers.insert(told.node.clone(), self.peers.len());
            self.peers.push(Peer {
                number: name_number(told.node.as_str()),
                id: told.node,
                address: told.address.clone(),
                same_rack: told.rack == self.config.rack,
                in_flight: 0,
                failures_in_a_row: 0,
                busy_in_a_row: 0,
                rests_until: Time::ZERO,
                lied: false,
                offers: BTreeMap::new(),
            });
            self.peers.len() - 1
        });
        let peer = &mut self.peers[number];
        if peer.address != told.address {
            // The node was started anew: what was wrong with the old one says nothing of this one.
            (peer.address, peer.failures_in_a_row, peer.rests_until) = (told.address, 0, Time::ZERO);
            self.file_all_of(number);
        }
        if self.peers[number].lied {
            return;
        }
        for pack in told.packs {
            if let Some(planned) = told.planned {
                self.replan(pack, number, planned, actions);
            }
            self.leave_who_does_not_help(pack, number, actions);
            let wanted = self.missing.get_mut(&pack).filter(|missing| !missing.sources.contains(&number));
            if let Some(missing) = wanted.filter(|missing| missing.sources.len() < PACK_PEERS_MAX) {
                missing.sources.push(number);
                self.file(pack);
            }
        }
    }

    fn leave_who_does_not_help(&mut self, pack: PackId, other: PeerNumber, actions: &mut Vec<Action>) {
        let Some(missing) = self.missing.get(&pack).filter(|missing| missing.complained) else { return };
        if let Some(Flight::Peer(number)) = missing.in_flight.filter(|flight| *flight != Flight::Peer(other)) {
            self.call_back(pack, actions);
            self.drop_source(pack, number);
        }
    }

    /// The pack comes from this peer by the plan, and not from the one before, unless that one is giving it already.
    fn replan(&mut self, pack: PackId, number: PeerNumber, planned: Planned, actions: &mut Vec<Action>) {
        let Some(missing) = self.missing.get_mut(&pack) else { return };
        let stripe = missing.stripe.replace(planned.stripe);
        if stripe != missing.stripe {
            for number in &missing.sources {
                self.peers[*number].withdraw(stripe, pack);
            }
            self.file(pack);
        }
        let Some(missing) = self.missing.get_mut(&pack) else { return };
        let Some(before) = missing.planned.replace(number).filter(|before| *before != number) else { return };
        if missing.in_flight == Some(Flight::Peer(before)) {
            if missing.begun && !planned.at_once {
                return;
            }
            self.call_back(pack, actions);
        }
        self.drop_source(pack, before);
    }

    fn learn_ticket(&mut self, ticket: Ticket, actions: &mut Vec<Action>) {
        let pack = ticket.pack;
        let give_back = Action::TicketDone { pack, ok: false };
        let Some(missing) = self.missing.get(&pack) else { return actions.push(give_back) };
        match missing.in_flight {
            // It is on its way already, by an earlier ticket.
            Some(Flight::Bucket) => return,
            // A peer was faster: the region may lend it to another.
            Some(Flight::Peer(_)) if missing.begun => return actions.push(give_back),
            // That peer waits for it too.
            Some(Flight::Peer(_)) => self.call_back(pack, actions),
            None => {}
        }
        if let Some(missing) = self.missing.get_mut(&pack) {
            missing.ticket = Some(ticket);
        }
        self.file(pack);
    }

    fn begun(&mut self, pack: PackId, actions: &mut Vec<Action>) {
        if let Some(missing) = self.missing.get_mut(&pack).filter(|missing| missing.in_flight.is_some()) {
            missing.begun = true;
            // It is not behind any more, as far as its source is not.
            missing.departed.1 = self.stored;
            self.waiting.remove(&turn(pack));
            self.progressed_at = self.now;
            if !missing.announced {
                missing.announced = true;
                actions.push(Action::Announce { pack });
            }
        }
    }

    fn stored(&mut self, pack: &PackId, actions: &mut Vec<Action>) {
        let Some(missing) = self.missing.remove(pack) else { return };
        for number in &missing.sources {
            self.peers[*number].withdraw(missing.stripe, *pack);
        }
        self.tickets.remove(&turn(*pack));
        if let Some(ask_at) = missing.ask_at {
            self.unsourced.remove(&(ask_at, *pack));
        }
        if let Some(Flight::Peer(number)) = missing.in_flight {
            let peer = &mut self.peers[number];
            let recovered = peer.failures_in_a_row > 0;
            (peer.failures_in_a_row, peer.busy_in_a_row, peer.rests_until) = (0, 0, Time::ZERO);
            if recovered {
                self.file_all_of(number);
            }
        }
        self.landed(*pack, missing.in_flight);
        (self.progressed_at, self.stored) = (self.now, self.stored + 1);
        if !missing.announced {
            actions.push(Action::Announce { pack: *pack });
        }
        if missing.in_flight == Some(Flight::Bucket) || missing.ticket.is_some() {
            actions.push(Action::TicketDone { pack: *pack, ok: true });
        }
        if self.missing.is_empty() {
            actions.push(Action::Complete);
        }
    }

    fn failed(&mut self, pack: PackId, source: &Source, failure: Failure, actions: &mut Vec<Action>) {
        let flight = match source {
            Source::Peer(node) => self.numbers.get(node).map(|number| Flight::Peer(*number)),
            Source::Bucket => Some(Flight::Bucket),
        };
        let flew = self.missing.get_mut(&pack).filter(|missing| flight.is_some() && missing.in_flight == flight);
        let Some(missing) = flew else { return };
        missing.in_flight = None;
        self.landed(pack, flight);
        self.file(pack);
        match flight {
            Some(Flight::Peer(number)) => self.blame(pack, number, failure, actions),
            _ => actions.push(Action::TicketDone { pack, ok: false }),
        }
    }

    fn landed(&mut self, pack: PackId, flight: Option<Flight>) {
        self.waiting.remove(&turn(pack));
        self.flying.remove(&pack);
        match flight {
            Some(Flight::Peer(number)) => self.peers[number].in_flight -= 1,
            Some(Flight::Bucket) => self.from_bucket -= 1,
            None => {}
        }
    }

    /// Ends the request for a pack that is under way at a peer.
    fn call_back(&mut self, pack: PackId, actions: &mut Vec<Action>) {
        let flight = self.missing.get_mut(&pack).and_then(|missing| missing.in_flight.take());
        self.landed(pack, flight);
        actions.push(Action::Drop { pack });
    }

    fn blame(&mut self, pack: PackId, number: PeerNumber, failure: Failure, actions: &mut Vec<Action>) {
        let peer = &mut self.peers[number];
        peer.busy_in_a_row = if failure == Failure::Busy { peer.busy_in_a_row + 1 } else { 0 };
        match failure {
            Failure::Missing => self.drop_source(pack, number),
            Failure::Busy if peer.busy_in_a_row < BUSY_MAX => peer.rests_until = self.now + BUSY_REST,
            Failure::Busy | Failure::Unreachable | Failure::Waiting => {
                let rest = REST_MIN * 2u32.pow(peer.failures_in_a_row.min(6));
                peer.failures_in_a_row += 1;
                peer.rests_until = self.now + rest.min(REST_MAX);
                self.drop_source(pack, number);
                self.file_all_of(number);
            }
            Failure::Lied => {
                peer.lied = true;
                actions.push(Action::ReportLie { peer: peer.id.clone(), pack });
                let packs: Vec<PackId> = self.missing.keys().copied().collect();
                for pack in packs {
                    self.drop_source(pack, number);
                }
            }
        }
    }

    fn forget_sources(&mut self, pack: PackId) {
        let Some(missing) = self.missing.get_mut(&pack) else { return };
        missing.planned = None;
        for number in std::mem::take(&mut missing.sources) {
            self.peers[number].withdraw(missing.stripe, pack);
        }
    }

    fn drop_source(&mut self, pack: PackId, number: PeerNumber) {
        if let Some(missing) = self.missing.get_mut(&pack) {
            missing.sources.retain(|known| *known != number);
            self.peers[number].withdraw(missing.stripe, pack);
            self.file(pack);
        }
    }

    /// Whoever has the region's place now plans anew: it must know of everything that is wanted, and with it everybody's sources agree.
    fn reconnected(&mut self, actions: &mut Vec<Action>) {
        self.asked_at = Some(self.now);
        let packs: Vec<PackId> = self.missing.keys().copied().collect();
        for pack in &packs {
            let Some(missing) = self.missing.get_mut(pack) else { continue };
            (missing.asked_at, missing.ticket, missing.announced) = (Some(self.now), None, false);
            // Whom it waits for by the earlier plan may wait for this node by the next one.
            if matches!(missing.in_flight, Some(Flight::Peer(_))) && !missing.begun {
                self.call_back(*pack, actions);
            }
            self.forget_sources(*pack);
            self.file(*pack);
        }
        actions.extend(packs.chunks(ASK_PACKS_MAX).map(|packs| Action::AskSources { packs: packs.to_vec() }));
    }

    /// Asks the region about peers that had nothing to give while others came by, or for so long that they may never have. What they may still
    /// send is taken, until somebody else is known.
    fn complain(&mut self, actions: &mut Vec<Action>) {
        let overdue = |(pack, missing): (&PackId, &Missing)| {
            let waits = self.waiting.contains_key(&turn(*pack));
            let came_by = self.stored - missing.departed.1;
            let is_late = waits && missing.departed.0 + LATE <= self.now && came_by > LATE_OVERTAKEN_MAX;
            let overtaken = came_by > OVERTAKEN_MAX || is_late;
            let stuck = waits && self.stuck_at(missing).is_some_and(|at| at <= self.now);
            let is_due = Self::complaint_due(missing) <= self.now;
            ((overtaken || stuck) && is_due).then_some(*pack)
        };
        let flying = self.flying.iter().filter_map(|pack| Some((pack, self.missing.get(pack)?)));
        let packs: Vec<PackId> = flying.filter_map(overdue).collect();
        if packs.is_empty() {
            return;
        }
        for pack in &packs {
            if let Some(missing) = self.missing.get_mut(pack) {
                (missing.asked_at, missing.complained, missing.announced) = (Some(self.now), true, false);
            }
        }
        actions.push(Action::AskSources { packs });
    }

    /// When it may be said, or said again.
    fn complaint_due(missing: &Missing) -> Time {
        let said = missing.asked_at.filter(|at| *at > missing.departed.0);
        said.map_or(Time::ZERO, |at| at + ASK_AGAIN)
    }

    /// None: something comes, if not this.
    fn stuck_at(&self, missing: &Missing) -> Option<Time> {
        let all_wait = self.in_flight() == self.waiting.len();
        all_wait.then(|| missing.departed.0.max(self.progressed_at) + STUCK)
    }

    /// Uses tickets, for others wait for those packs, a few at a time, so that each is there sooner; then fills the free places with what comes first of what peers have.
    fn request(&mut self, actions: &mut Vec<Action>) {
        while self.from_bucket < self.config.bucket_requests_max
            && let Some((_, pack)) = self.tickets.pop_first()
        {
            let ticket = self.missing.get_mut(&pack).and_then(|missing| missing.ticket.take());
            if let Some(ticket) = ticket {
                self.depart(pack, Flight::Bucket);
                actions.push(Action::FromBucket { ticket });
            }
        }
        while self.flying.len() < self.config.requests_max
            && let Some((pack, number)) = self.next()
        {
            self.depart(pack, Flight::Peer(number));
            let (peer, bytes) = (&self.peers[number], self.missing.get(&pack).map_or(0, |missing| missing.bytes));
            let (address, peer) = (peer.address.clone(), peer.id.clone());
            actions.push(Action::FromPeer { peer, address, pack, bytes });
        }
    }

    /// The first pack that a free peer has; of several such peers one of the own rack before others, and the least busy one.
    fn next(&self) -> Option<(PackId, PeerNumber)> {
        let free = self.peers.iter().enumerate().filter(|(_, peer)| {
            !peer.lied && peer.rests_until <= self.now && peer.in_flight < self.config.peer_requests_max
        });
        let may_wait = |stripe: &Option<u8>| {
            let waiting = self.waiting.values().filter(|other| *other == stripe).count();
            waiting < if stripe.is_some() { self.config.stripe_waiting_max } else { self.config.waiting_max }
        };
        let first = free.filter_map(|(number, peer)| {
            let offers = peer.offers.iter().filter(|(stripe, _)| may_wait(stripe));
            let turn = offers.filter_map(|(_, packs)| packs.first()).min().copied()?;
            let salt = mix(self.config.seed ^ turn.0, peer.number);
            Some(((turn, !peer.same_rack, peer.in_flight, salt), number))
        });
        first.min().map(|(((_, pack), ..), number)| (pack, number))
    }

    fn depart(&mut self, pack: PackId, flight: Flight) {
        if let Some(missing) = self.missing.get_mut(&pack) {
            missing.in_flight = Some(flight);
            missing.departed = (self.now, self.stored);
            missing.complained = false;
            match flight {
                Flight::Peer(number) => {
                    self.peers[number].in_flight += 1;
                    self.waiting.insert(turn(pack), missing.stripe);
                    self.flying.insert(pack);
                }
                Flight::Bucket => self.from_bucket += 1,
            }
            self.file(pack);
        }
    }

    /// Asks for what no usable peer has.
    fn ask(&mut self, actions: &mut Vec<Action>) {
        if self.ask_paced() > self.now {
            return;
        }
        let due = self.unsourced.iter().take_while(|(due, _)| *due <= self.now);
        let packs: Vec<PackId> = due.map(|(_, pack)| *pack).take(ASK_PACKS_MAX).collect();
        if packs.is_empty() {
            return;
        }
        for pack in &packs {
            if let Some(missing) = self.missing.get_mut(pack) {
                // Whoever wants a pack is taken to have nothing of it.
                (missing.asked_at, missing.announced) = (Some(self.now), false);
            }
            self.file(*pack);
        }
        self.asked_at = Some(self.now);
        actions.push(Action::AskSources { packs });
    }

    fn ask_paced(&self) -> Time {
        self.asked_at.map_or(Time::ZERO, |at| at + ASK_INTERVAL)
    }
}
