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

mod offers;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_schemas::{
    NodeId, PackId, RackName,
    stream::{PeerPacks, Planned, Ticket},
};

use crate::{Time, mix, name_number, pack_number};
use offers::{Offer, Offers};
use table::{Flight, Missing, Place, Table};

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
    /// Requests under way at one peer; packs of a stripe have their own limit.
    pub peer_requests_max: usize,
    /// Requests under way at peers.
    pub requests_max: usize,
    /// Requests under way at the bucket.
    pub bucket_requests_max: usize,
    /// Of those at peers, requests for packs of one stripe of the region's plan. As many for each: a node passes all of them on, and what
    /// goes one way must not take from what goes another.
    pub stripe_requests_max: usize,
    /// Of these, requests of which nothing came yet: for packs of one stripe, and for packs of none.
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
            stripe_requests_max: 3,
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
    packs: Table,
    peers: Vec<Peer>,
    numbers: BTreeMap<NodeId, PeerNumber>,
    /// Requests under way at the bucket.
    from_bucket: usize,
    offers: Offers,
    /// Packs that were asked for at a peer.
    flying: Vec<Flying>,
    /// When something of a pack came that was waited for, and how many packs came in all.
    progressed_at: Time,
    stored: u64,
    /// None of those that fly departed when fewer had come.
    stored_before_all: u64,
    /// Packs with a ticket that is not used yet.
    tickets: BTreeSet<Place>,
    /// Idle packs that no usable peer has, and when the region may be asked for them.
    unsourced: BTreeSet<(Time, Place)>,
    asked_at: Option<Time>,
    /// No peer rests longer.
    rested_at: Time,
    now: Time,
}

type PeerNumber = u32;

#[derive(Debug)]
struct Flying {
    place: Place,
    /// The way that it goes.
    stripe: Option<u8>,
    /// Nothing came yet.
    waits: bool,
    /// When it was asked for, and how many packs had come by then.
    departed: (Time, u64),
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
}

impl Peer {
    fn is_hopeful(&self) -> bool {
        !self.lied && self.failures_in_a_row == 0
    }
}

impl Fetch {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            packs: Table::default(),
            peers: Vec::new(),
            numbers: BTreeMap::new(),
            from_bucket: 0,
            offers: Offers::default(),
            flying: Vec::new(),
            progressed_at: Time::ZERO,
            stored: 0,
            stored_before_all: 0,
            tickets: BTreeSet::new(),
            unsourced: BTreeSet::new(),
            asked_at: None,
            rested_at: Time::ZERO,
            now: Time::ZERO,
        }
    }

    pub fn on(&mut self, event: Event, now: Time) -> Vec<Action> {
        let now = self.now.max(now);
        self.now = now;
        let mut actions = Vec::new();
        match event {
            Event::Wanted(packs) => self.want(&packs, &mut actions),
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
        let rested = if self.rested_at > self.now { self.next_rested() } else { None };
        let waiting = if self.all_wait() { &self.flying[..] } else { &[] };
        let stuck = waiting.iter().map(|flying| self.stuck_at(flying).max(self.complaint_due(flying))).min();
        due.into_iter().chain(rested).chain(stuck).min()
    }

    /// When a peer that has something to give may be asked again.
    fn next_rested(&self) -> Option<Time> {
        let rests = |(number, peer): &(usize, &Peer)| {
            !peer.lied && peer.rests_until > self.now && self.offers.are_of(*number as PeerNumber)
        };
        self.peers.iter().enumerate().filter(rests).map(|(_, peer)| peer.rests_until).min()
    }

    /// Packs that are still missing, those in flight included.
    pub fn missing(&self) -> usize {
        self.packs.missing()
    }

    /// Requests that have not been reported back yet.
    pub fn in_flight(&self) -> usize {
        self.flying.len() + self.from_bucket
    }

    /// Packs of which the region was told, and that are not there as a whole.
    pub fn promised(&self) -> impl Iterator<Item = PackId> {
        self.packs.iter().filter(|(_, missing)| missing.announced).map(|(_, missing)| missing.pack)
    }

    fn want(&mut self, wanted: &[WantedPack], actions: &mut Vec<Action>) {
        let moved = self.packs.add(wanted);
        self.follow(&moved);
        for WantedPack { pack, .. } in wanted {
            if let Some(place) = self.packs.find(pack) {
                self.file(place);
            }
        }
        if self.packs.missing() == 0 {
            actions.push(Action::Complete);
        }
    }

    /// After packs have other places.
    fn follow(&mut self, moved: &[Place]) {
        self.offers.follow(moved);
        for flying in &mut self.flying {
            flying.place = moved[flying.place];
        }
        self.tickets = self.tickets.iter().map(|place| moved[*place]).collect();
        self.unsourced = self.unsourced.iter().map(|(due, place)| (*due, moved[*place])).collect();
    }

    /// Puts a pack where those look for it who choose what is next.
    fn file(&mut self, place: Place) {
        let missing = &mut self.packs[place];
        if let Some(old) = missing.ask_at.take() {
            self.unsourced.remove(&(old, place));
        }
        let idle = missing.in_flight.is_none();
        let mut hopeful = false;
        for number in &missing.sources {
            hopeful |= self.peers[*number as usize].is_hopeful();
            if idle {
                self.offers.insert(*number, missing.stripe, place);
            } else {
                self.offers.remove(*number, missing.stripe, place);
            }
        }
        if idle && missing.ticket.is_some() {
            self.tickets.insert(place);
        } else {
            self.tickets.remove(&place);
        }
        // A peer that merely rests for a moment is worth waiting for.
        if idle && missing.ticket.is_none() && !hopeful {
            let due = missing.asked_at.map_or(Time::ZERO, |at| at + ASK_AGAIN);
            missing.ask_at = Some(due);
            self.unsourced.insert((due, place));
        }
    }

    /// After something changed about a peer.
    fn file_all_of(&mut self, peer: PeerNumber) {
        let has = |(place, missing): (Place, &Missing)| missing.sources.contains(&peer).then_some(place);
        let places: Vec<Place> = self.packs.iter().filter_map(has).collect();
        for place in places {
            self.file(place);
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
            let number = self.peers.len() as PeerNumber;
            self.numbers.insert(told.node.clone(), number);
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
            });
            number
        });
        let peer = &mut self.peers[number as usize];
        if peer.address != told.address {
            // The node was started anew: what was wrong with the old one says nothing of this one.
            (peer.address, peer.failures_in_a_row, peer.rests_until) = (told.address, 0, Time::ZERO);
            self.file_all_of(number);
        }
        if self.peers[number as usize].lied {
            return;
        }
        for pack in told.packs {
            let Some(place) = self.packs.find(&pack) else { continue };
            if let Some(planned) = told.planned {
                self.replan(place, number, planned, actions);
            }
            self.leave_who_does_not_help(place, number, actions);
            let sources = &mut self.packs[place].sources;
            if !sources.contains(&number) && sources.len() < PACK_PEERS_MAX {
                sources.push(number);
                self.file(place);
            }
        }
    }

    fn leave_who_does_not_help(&mut self, place: Place, other: PeerNumber, actions: &mut Vec<Action>) {
        let missing = &self.packs[place];
        let flight = missing.in_flight.filter(|flight| missing.complained && *flight != Flight::Peer(other));
        if let Some(Flight::Peer(number)) = flight {
            self.call_back(place, actions);
            self.drop_source(place, number);
        }
    }

    /// The pack comes from this peer by the plan, and not from another, unless that one is giving it already.
    fn replan(&mut self, place: Place, number: PeerNumber, planned: Planned, actions: &mut Vec<Action>) {
        let missing = &mut self.packs[place];
        let stripe = missing.stripe.replace(planned.stripe);
        if stripe != missing.stripe {
            for number in &missing.sources {
                self.offers.remove(*number, stripe, place);
            }
            self.file(place);
        }
        let missing = &mut self.packs[place];
        let before = missing.planned.replace(number);
        if before == Some(number) {
            return;
        }
        if let Some(Flight::Peer(other)) = missing.in_flight
            && other != number
        {
            let is_before = before == Some(other);
            // One that it was sent to while nobody else was known, and that gave nothing yet, would carry the pack the same way a second time.
            let gives = if is_before { missing.begun && !planned.at_once } else { missing.begun || missing.complained };
            if !gives {
                self.call_back(place, actions);
            } else if is_before {
                return;
            }
        }
        if let Some(before) = before {
            self.drop_source(place, before);
        }
    }

    fn learn_ticket(&mut self, ticket: Ticket, actions: &mut Vec<Action>) {
        let pack = ticket.pack;
        let Some(place) = self.packs.find(&pack) else {
            // If it has come meanwhile, the region knows from now on.
            let ok = self.packs.has_come(&pack);
            return actions.push(Action::TicketDone { pack, ok });
        };
        match self.packs[place].in_flight {
            // It is on its way already, by an earlier ticket.
            Some(Flight::Bucket) => return,
            // Nobody has all of it, or this node would not read it: that peer waits too, now or later.
            Some(Flight::Peer(_)) => self.call_back(place, actions),
            None => {}
        }
        self.packs[place].ticket = Some(Box::new(ticket));
        self.file(place);
    }

    fn begun(&mut self, pack: PackId, actions: &mut Vec<Action>) {
        let Some(place) = self.packs.find(&pack) else { return };
        let missing = &mut self.packs[place];
        if missing.in_flight.is_none() {
            return;
        }
        missing.begun = true;
        if !std::mem::replace(&mut missing.announced, true) {
            actions.push(Action::Announce { pack });
        }
        self.progressed_at = self.now;
        for flying in self.flying.iter_mut().filter(|flying| flying.place == place) {
            flying.waits = false;
            // It is not behind any more, as far as its source is not.
            flying.departed.1 = self.stored;
        }
    }

    fn stored(&mut self, pack: &PackId, actions: &mut Vec<Action>) {
        let Some(place) = self.packs.find(pack) else { return };
        let missing = self.packs.take(place);
        for number in &missing.sources {
            self.offers.remove(*number, missing.stripe, place);
        }
        self.tickets.remove(&place);
        if let Some(ask_at) = missing.ask_at {
            self.unsourced.remove(&(ask_at, place));
        }
        if let Some(Flight::Peer(number)) = missing.in_flight {
            let peer = &mut self.peers[number as usize];
            let recovered = peer.failures_in_a_row > 0;
            (peer.failures_in_a_row, peer.busy_in_a_row, peer.rests_until) = (0, 0, Time::ZERO);
            if recovered {
                self.file_all_of(number);
            }
        }
        self.landed(place, missing.in_flight);
        (self.progressed_at, self.stored) = (self.now, self.stored + 1);
        if !missing.announced {
            actions.push(Action::Announce { pack: *pack });
        }
        if missing.in_flight == Some(Flight::Bucket) || missing.ticket.is_some() {
            actions.push(Action::TicketDone { pack: *pack, ok: true });
        }
        if self.packs.missing() == 0 {
            actions.push(Action::Complete);
        }
    }

    fn failed(&mut self, pack: PackId, source: &Source, failure: Failure, actions: &mut Vec<Action>) {
        let flight = match source {
            Source::Peer(node) => self.numbers.get(node).map(|number| Flight::Peer(*number)),
            Source::Bucket => Some(Flight::Bucket),
        };
        let flew = |place: &Place| flight.is_some() && self.packs[*place].in_flight == flight;
        let Some(place) = self.packs.find(&pack).filter(flew) else { return };
        self.packs[place].in_flight = None;
        self.landed(place, flight);
        self.file(place);
        match flight {
            Some(Flight::Peer(number)) => self.blame(place, number, failure, actions),
            _ => actions.push(Action::TicketDone { pack, ok: false }),
        }
    }

    fn landed(&mut self, place: Place, flight: Option<Flight>) {
        self.flying.retain(|flying| flying.place != place);
        match flight {
            Some(Flight::Peer(number)) => self.peers[number as usize].in_flight -= 1,
            Some(Flight::Bucket) => self.from_bucket -= 1,
            None => {}
        }
    }

    /// Ends the request for a pack that is under way at a peer.
    fn call_back(&mut self, place: Place, actions: &mut Vec<Action>) {
        let flight = self.packs[place].in_flight.take();
        self.landed(place, flight);
        actions.push(Action::Drop { pack: self.packs[place].pack });
    }

    fn blame(&mut self, place: Place, number: PeerNumber, failure: Failure, actions: &mut Vec<Action>) {
        let peer = &mut self.peers[number as usize];
        peer.busy_in_a_row = if failure == Failure::Busy { peer.busy_in_a_row + 1 } else { 0 };
        match failure {
            Failure::Missing => self.drop_source(place, number),
            Failure::Busy if peer.busy_in_a_row < BUSY_MAX => {
                peer.rests_until = self.now + BUSY_REST;
                self.rested_at = self.rested_at.max(peer.rests_until);
            }
            Failure::Busy | Failure::Unreachable | Failure::Waiting => {
                let rest = REST_MIN * 2u32.pow(peer.failures_in_a_row.min(6));
                peer.failures_in_a_row += 1;
                peer.rests_until = self.now + rest.min(REST_MAX);
                self.rested_at = self.rested_at.max(peer.rests_until);
                self.drop_source(place, number);
                self.file_all_of(number);
            }
            Failure::Lied => {
                peer.lied = true;
                let (peer, pack) = (peer.id.clone(), self.packs[place].pack);
                actions.push(Action::ReportLie { peer, pack });
                for place in self.packs.by_name() {
                    self.drop_source(place, number);
                }
            }
        }
    }

    fn forget_sources(&mut self, place: Place) {
        let missing = &mut self.packs[place];
        missing.planned = None;
        for number in std::mem::take(&mut missing.sources) {
            self.offers.remove(number, missing.stripe, place);
        }
    }

    fn drop_source(&mut self, place: Place, number: PeerNumber) {
        let missing = &mut self.packs[place];
        missing.sources.retain(|known| *known != number);
        self.offers.remove(number, missing.stripe, place);
        self.file(place);
    }

    /// Whoever has the region's place now plans anew: it must know of everything that is wanted, and with it everybody's sources agree.
    fn reconnected(&mut self, actions: &mut Vec<Action>) {
        self.asked_at = Some(self.now);
        let places = self.packs.by_name();
        for place in &places {
            let missing = &mut self.packs[*place];
            (missing.asked_at, missing.ticket, missing.announced) = (Some(self.now), None, false);
            // Whom it waits for by the earlier plan may wait for this node by the next one.
            if matches!(missing.in_flight, Some(Flight::Peer(_))) && !missing.begun {
                self.call_back(*place, actions);
            }
            self.forget_sources(*place);
            self.file(*place);
        }
        let packs: Vec<PackId> = places.into_iter().map(|place| self.packs[place].pack).collect();
        actions.extend(packs.chunks(ASK_PACKS_MAX).map(|packs| Action::AskSources { packs: packs.to_vec() }));
    }

    /// Asks the region about peers that had nothing to give while others came by, or for so long that they may never have. What they may still
    /// send is taken, until somebody else is known.
    fn complain(&mut self, actions: &mut Vec<Action>) {
        let all_wait = self.all_wait();
        let may_be_stuck = all_wait && self.progressed_at + STUCK <= self.now;
        if self.stored - self.stored_before_all <= LATE_OVERTAKEN_MAX && !may_be_stuck {
            return;
        }
        let overdue = |flying: &&Flying| {
            let came_by = self.stored - flying.departed.1;
            let is_late = flying.waits && flying.departed.0 + LATE <= self.now && came_by > LATE_OVERTAKEN_MAX;
            let overtaken = came_by > OVERTAKEN_MAX || is_late;
            let stuck = flying.waits && all_wait && self.stuck_at(flying) <= self.now;
            (overtaken || stuck) && self.complaint_due(flying) <= self.now
        };
        let overdue = self.flying.iter().filter(overdue);
        let mut packs: Vec<PackId> = overdue.map(|flying| self.packs[flying.place].pack).collect();
        self.stored_before_all = self.flying.iter().map(|flying| flying.departed.1).min().unwrap_or(self.stored);
        if packs.is_empty() {
            return;
        }
        packs.sort_unstable();
        for place in packs.iter().filter_map(|pack| self.packs.find(pack)).collect::<Vec<_>>() {
            let missing = &mut self.packs[place];
            (missing.asked_at, missing.complained, missing.announced) = (Some(self.now), true, false);
        }
        actions.push(Action::AskSources { packs });
    }

    /// When it may be said, or said again.
    fn complaint_due(&self, flying: &Flying) -> Time {
        let said = self.packs[flying.place].asked_at.filter(|at| *at > flying.departed.0);
        said.map_or(Time::ZERO, |at| at + ASK_AGAIN)
    }

    /// If not, something comes.
    fn all_wait(&self) -> bool {
        self.from_bucket == 0 && self.flying.iter().all(|flying| flying.waits)
    }

    /// When a pack has been waited for too long, if all wait.
    fn stuck_at(&self, flying: &Flying) -> Time {
        flying.departed.0.max(self.progressed_at) + STUCK
    }

    /// Uses tickets, for others wait for those packs, a few at a time, so that each is there sooner; then fills the free places with what comes first of what peers have.
    fn request(&mut self, actions: &mut Vec<Action>) {
        while self.from_bucket < self.config.bucket_requests_max
            && let Some(place) = self.tickets.pop_first()
        {
            if let Some(ticket) = self.packs[place].ticket.take() {
                self.depart(place, Flight::Bucket);
                actions.push(Action::FromBucket { ticket: *ticket });
            }
        }
        while self.flying.len() < self.config.requests_max
            && let Some((place, number)) = self.next()
        {
            self.depart(place, Flight::Peer(number));
            let (peer, missing) = (&self.peers[number as usize], &self.packs[place]);
            let (address, peer) = (peer.address.clone(), peer.id.clone());
            actions.push(Action::FromPeer { peer, address, pack: missing.pack, bytes: missing.bytes });
        }
    }

    /// The first pack that a free peer has; of several such peers one of the own rack before others, and the least busy one.
    fn next(&self) -> Option<(Place, PeerNumber)> {
        let may_wait = |stripe: Option<u8>| {
            let same = || self.flying.iter().filter(|flying| flying.stripe == stripe);
            let waiting = same().filter(|flying| flying.waits).count();
            // What others came by holds nothing up but itself.
            let on_time = same().filter(|flying| self.stored - flying.departed.1 <= LATE_OVERTAKEN_MAX).count();
            match stripe {
                Some(_) => waiting < self.config.stripe_waiting_max && on_time < self.config.stripe_requests_max,
                None => waiting < self.config.waiting_max,
            }
        };
        // In a small rack several stripes come from one peer: the region has seen to it that nobody has too much to do.
        let has_room =
            |offer: &Offer, peer: &Peer| offer.stripe.is_some() || peer.in_flight < self.config.peer_requests_max;
        let is_free = |peer: &Peer| !peer.lied && peer.rests_until <= self.now;
        let offers = self.offers.iter().filter(|offer| may_wait(offer.stripe));
        let first = offers.filter_map(|offer| {
            let peer = &self.peers[offer.peer as usize];
            let place = offer.first().filter(|_| is_free(peer) && has_room(offer, peer))?;
            Some((place, !peer.same_rack, peer.in_flight, self.salt(place, peer), offer.peer))
        });
        first.min().map(|(place, .., number)| (place, number))
    }

    /// Makes the choice among equal peers this node's own.
    fn salt(&self, place: Place, peer: &Peer) -> u64 {
        mix(self.config.seed ^ pack_number(&self.packs[place].pack), peer.number)
    }

    fn depart(&mut self, place: Place, flight: Flight) {
        let missing = &mut self.packs[place];
        missing.in_flight = Some(flight);
        missing.complained = false;
        match flight {
            Flight::Peer(number) => {
                self.peers[number as usize].in_flight += 1;
                let departed = (self.now, self.stored);
                self.flying.push(Flying { place, stripe: missing.stripe, waits: true, departed });
            }
            Flight::Bucket => self.from_bucket += 1,
        }
        self.file(place);
    }

    /// Asks for what no usable peer has.
    fn ask(&mut self, actions: &mut Vec<Action>) {
        if self.ask_paced() > self.now {
            return;
        }
        let due = self.unsourced.iter().take_while(|(due, _)| *due <= self.now);
        let due = due.take(ASK_PACKS_MAX).map(|(due, place)| (*due, self.packs[*place].pack, *place));
        let mut due: Vec<(Time, PackId, Place)> = due.collect();
        if due.is_empty() {
            return;
        }
        due.sort_unstable();
        for (.., place) in &due {
            let missing = &mut self.packs[*place];
            // Whoever wants a pack is taken to have nothing of it.
            (missing.asked_at, missing.announced) = (Some(self.now), false);
            self.file(*place);
        }
        self.asked_at = Some(self.now);
        actions.push(Action::AskSources { packs: due.into_iter().map(|(_, pack, _)| pack).collect() });
    }

    fn ask_paced(&self) -> Time {
        self.asked_at.map_or(Time::ZERO, |at| at + ASK_INTERVAL)
    }
}
