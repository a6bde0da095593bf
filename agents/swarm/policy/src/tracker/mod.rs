//! One region's view of who has and who wants which pack.
//!
//! ```text
//! event ─▶ bookkeeping (holders, wanters of each pack) ─▶ dirty packs ─flush, batched─▶ Sources, Ban
//!   wanted newly ─▶ [plan]: from whom it will come ─▶ Sources     ├─ somebody has it: introduce those who want it
//!                                                               └─ nobody has it: lend one ticket
//! ```
//!
//! - Whoever wants packs newly is told at once from whom each will come, which `plan` has: it waits there. The rest is for those of whom the plan has
//!   nobody, or who were not helped, and for whoever is first of all.
//! - Of those who want a pack, only a few for each that has it are introduced at once; each of them then has it too and
//!   can serve as many. So a pack that one node has spreads exponentially, and nobody is overrun. Peers of the same rack
//!   come first, and a node stays with a few peers rather than knowing all.
//! - A ticket is leave to read one pack from the bucket. For a pack that nobody has, or is known to have all of, one is lent at a time, to the one
//!   who is first by the plan, else to the least busy of those who want it: the bucket gives each pack about once, and different packs to different nodes.
//! - A node that others say lies or fails is kept away from for a while: `trust` has the rule.
//! - Nothing waits for ever: a lease that is over is lent again; a pack that does not spread is introduced to more; a pack
//!   whose holders do not help gets another ticket.
//!
//! It does not know what an artifact consists of: whoever passes events in has checked that the packs belong to it, and
//! has bounded the number of nodes.

mod flush;
mod plan;
mod state;
mod trust;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_schemas::{ArtifactId, NodeId, PackId, RackName, stream::PeerPacks};

use crate::{Time, bits::Bits, few::Few};
use state::{Artifact, Node, Number, Pack};
use trust::{Fault, Trust};

#[derive(Debug, Clone)]
pub struct Config {
    /// Tickets lent to one node.
    pub node_tickets_max: usize,
    /// Tickets lent in all.
    pub tickets_max: usize,
    /// A ticket is lent to another, if nothing came by it nor by others of that node for so long.
    pub begin: Duration,
    /// A ticket by which something came is over after this.
    pub lease: Duration,
    /// No tickets for this long after the start, or after a pack's last holder left: nodes may be about to announce it.
    pub settle: Duration,
    /// No ticket for a pack for this long after it was named first: those who come meanwhile get it from each other. If other packs of its artifact
    /// were named before that, the plan stands, and whoever is first by it need not wait.
    pub gather: Duration,
    /// A node that is not helped by the one ahead of it, and that did not say the same of the one ahead of that by now, is believed.
    pub judge: Duration,
    /// Sources are told at most this often.
    pub batch: Duration,
    /// A pack that nobody got for this long, though it is wanted, does not spread.
    pub stall: Duration,
    /// A ticket that came back unused is lent again after this.
    pub ticket_rest: Duration,
    /// How many of those who want a pack are introduced to each that has it, at first.
    pub fan_out: usize,
    /// Sources told to one node for one pack.
    pub pack_peers: usize,
    /// Peers that a node knows, as long as these suffice.
    pub node_peers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_tickets_max: 64,
            tickets_max: 256,
            begin: Duration::from_secs(10),
            lease: Duration::from_secs(30),
            settle: Duration::from_secs(2),
            gather: Duration::from_millis(200),
            judge: Duration::from_millis(500),
            batch: Duration::from_millis(50),
            stall: Duration::from_secs(5),
            ticket_rest: Duration::from_secs(1),
            fan_out: 2,
            pack_peers: 3,
            node_peers: 30,
        }
    }
}

/// What the nodes say; the first five are the messages of the same names in [`longshore_schemas::stream::FromNode`].
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Joined {
        node: NodeId,
        address: String,
        rack: RackName,
    },
    Left {
        node: NodeId,
    },
    Have {
        node: NodeId,
        artifact: ArtifactId,
        packs: Vec<PackId>,
    },
    HaveMore {
        node: NodeId,
        artifact: ArtifactId,
        packs: Vec<PackId>,
    },
    Wanted {
        node: NodeId,
        artifact: ArtifactId,
        packs: Vec<PackId>,
    },
    TicketDone {
        node: NodeId,
        artifact: ArtifactId,
        pack: PackId,
        ok: bool,
    },
    PeerLied {
        node: NodeId,
        peer: NodeId,
        pack: PackId,
    },
    PeerFailed {
        node: NodeId,
        peer: NodeId,
        pack: PackId,
    },
    Done {
        node: NodeId,
        artifact: ArtifactId,
    },
    /// The time of [`Tracker::next_wake`] has come.
    Tick,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Tell the node; `tickets` are to be signed first.
    Sources { node: NodeId, artifact: ArtifactId, peers: Vec<PeerPacks>, tickets: Vec<PackId> },
    /// Several nodes got wrong bytes from this one. Nobody is sent to it for a while.
    Ban { node: NodeId },
}

/// Numbers for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub nodes: usize,
    pub packs: usize,
    pub tickets_lent: usize,
    /// Nodes that nobody is sent to because they lied.
    pub banned: usize,
    /// Nodes that nobody is sent to because they failed.
    pub resting: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Tracker {
    config: Config,
    nodes: Vec<Option<Node>>,
    /// Places among them of those who left.
    free: BTreeSet<Number>,
    numbers: BTreeMap<NodeId, Number>,
    racks: BTreeMap<RackName, Few>,
    /// Nobody is sent to these: the numbers of those that `trust` names.
    banned: Bits,
    trust: Trust,
    packs: BTreeMap<PackId, Pack>,
    artifacts: BTreeMap<ArtifactId, Artifact>,
    /// Something about these changed since the last flush.
    dirty: BTreeSet<PackId>,
    /// These are to be looked at again at a time, whatever happens.
    parked: BTreeMap<PackId, Time>,
    /// These need the bucket and have no ticket.
    short: BTreeSet<PackId>,
    leased: BTreeSet<PackId>,
    started: Option<Time>,
    flushed: Option<Time>,
    load_halved_at: Time,
    now: Time,
}

impl Tracker {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            nodes: Vec::new(),
            free: BTreeSet::new(),
            numbers: BTreeMap::new(),
            racks: BTreeMap::new(),
            banned: Bits::default(),
            trust: Trust::default(),
            packs: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            dirty: BTreeSet::new(),
            parked: BTreeMap::new(),
            short: BTreeSet::new(),
            leased: BTreeSet::new(),
            started: None,
            flushed: None,
            load_halved_at: Time::ZERO,
            now: Time::ZERO,
        }
    }

    pub fn on(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.now = self.now.max(now);
        self.started.get_or_insert(self.now);
        self.end_bans();
        let mut actions = Vec::new();
        match event {
            Event::Joined { node, address, rack } => self.join(node, address, rack),
            Event::Left { node } => self.leave(&node),
            Event::Have { node, artifact, packs } => self.have(&node, artifact, packs),
            Event::HaveMore { node, artifact, packs } => self.have_more(&node, artifact, &packs),
            Event::Wanted { node, artifact, packs } => self.want(&node, artifact, &packs),
            Event::TicketDone { node, artifact, pack, ok } => self.ticket_done(&node, artifact, pack, ok),
            Event::PeerLied { node, peer, pack } => self.accuse((&node, &peer), pack, Fault::Lied, &mut actions),
            Event::PeerFailed { node, peer, pack } => self.accuse((&node, &peer), pack, Fault::Failed, &mut actions),
            Event::Done { node, artifact } => self.done(&node, artifact),
            Event::Tick => {}
        }
        if self.flush_at() <= self.now {
            self.flush(&mut actions);
        }
        actions
    }

    /// When to send [`Event::Tick`] if nothing else happens before; `None` if time alone changes nothing.
    pub fn next_wake(&self) -> Option<Time> {
        let dirty = (!self.dirty.is_empty()).then_some(Time::ZERO);
        let parked = self.parked.values().min().copied();
        let leases = self.leased.iter().filter_map(|pack| self.packs.get(pack)?.lease.as_ref());
        let leased = leases.map(|lease| self.lease_end(lease)).min();
        let short = if self.leased.len() < self.config.tickets_max { self.short_due() } else { None };
        let ban = self.trust.next_end();
        let complaint =
            self.artifacts.values().filter_map(|artifact| artifact.complaints.values().min()).min().copied();
        let due = dirty.into_iter().chain(parked).chain(leased).chain(short).chain(ban).chain(complaint).min()?;
        Some(due.max(self.flush_at()))
    }

    pub fn counts(&self) -> Counts {
        Counts {
            nodes: self.numbers.len(),
            packs: self.packs.len(),
            tickets_lent: self.leased.len(),
            banned: self.trust.count(Fault::Lied),
            resting: self.trust.count(Fault::Failed),
        }
    }

    fn flush_at(&self) -> Time {
        self.flushed.map_or(Time::ZERO, |at| at + self.config.batch)
    }
}
