//! The one place where the simulator meets the policy: numbers on this side, names on the other.
//!
//! ```text
//!              world (numbers of nodes and packs)
//!   happened to a node ─▶ Fetch::on ─▶ Wish: a request, or words for the tracker
//!   words of a node ─▶ Tracker::on ─▶ words for nodes
//! ```
//!
//! What is said between nodes and the tracker is what the policy says; the world only carries it. It translates as the node's
//! transport and the region's process do. A node's name and a pack's end in their numbers, so that nothing is looked up.

use std::time::Duration;

use longshore_schemas::{ArtifactId, NodeId, PackId, RackName, stream::Ticket};
use longshore_swarm_policy::{
    Fetch, Tracker,
    fetch::{self, Failure, Source, WantedPack},
    tracker,
};

use crate::{
    queue::{Nanos, nanos},
    random::Random,
    scenario::Scenario,
};

pub(crate) type ToTracker = tracker::Event;
pub(crate) type FromTracker = fetch::Event;

/// What a node's policy wants done.
#[derive(Debug)]
pub(crate) enum Wish {
    FromPeer {
        peer: u32,
        pack: u32,
    },
    FromBucket {
        pack: u32,
    },
    /// Take back the request for a pack, which is not to be reported.
    Drop {
        pack: u32,
    },
    Say(ToTracker),
}

/// Whence a pack was to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Peer(u32),
    Bucket,
}

/// Why it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Missing,
    Busy,
    Unreachable,
    /// The source is there and has nothing more itself.
    Waiting,
    Lied,
}

/// The time that the policy takes, for who measures; see [`crate::Clock`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Cost {
    pub(crate) tracker: Duration,
    pub(crate) fetch: Duration,
    pub(crate) wakes: Duration,
    pub(crate) tracker_events: u64,
    pub(crate) fetch_events: u64,
}

pub(crate) struct Policy {
    artifact: ArtifactId,
    nodes: Vec<NodeId>,
    racks: Vec<RackName>,
    packs: Vec<PackId>,
    pack_bytes: Vec<u64>,
    nodes_per_rack: u32,
    tracker: Tracker,
    fetches: Vec<Option<Fetch>>,
    tracker_config: tracker::Config,
    settings: crate::scenario::Policy,
    clock: crate::Clock,
    pub(crate) cost: Cost,
}

fn node_number(node: &NodeId) -> u32 {
    node.as_str()[1..].parse().expect("nodes here are named by their numbers")
}

fn pack_number(pack: &PackId) -> u32 {
    u32::from_le_bytes(*pack.as_bytes().last_chunk().expect("a pack's id has 32 bytes"))
}

/// Random as a hash is, but for its end.
fn pack_id(number: u32, random: &mut Random) -> PackId {
    let mut bytes = [0; 32];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes());
    }
    bytes[28..].copy_from_slice(&number.to_le_bytes());
    PackId::from_bytes(bytes)
}

impl Policy {
    pub(crate) fn new(scenario: &Scenario, pack_bytes: Vec<u64>, clock: crate::Clock) -> Self {
        let mut random = Random::new(scenario.seed, "packs");
        let settings = scenario.policy.clone();
        let mut tracker_config = tracker::Config::default();
        tracker_config.tickets_max = settings.tickets_max.unwrap_or(tracker_config.tickets_max);
        tracker_config.node_tickets_max = settings.node_tickets_max.unwrap_or(tracker_config.node_tickets_max);
        tracker_config.settle = settings.settle_seconds.map_or(tracker_config.settle, Duration::from_secs_f64);
        let name = |text: String| text.parse().expect("a letter and digits are a name");
        Self {
            artifact: ArtifactId::of(b"the simulated artifact"),
            nodes: (0..scenario.nodes).map(|node| name(format!("n{node}"))).collect(),
            racks: (0..scenario.racks()).map(|rack| format!("r{rack}").parse().expect("a name too")).collect(),
            packs: (0..pack_bytes.len() as u32).map(|pack| pack_id(pack, &mut random)).collect(),
            pack_bytes,
            nodes_per_rack: scenario.nodes_per_rack,
            tracker: Tracker::new(tracker_config.clone()),
            fetches: (0..scenario.nodes).map(|_| None).collect(),
            tracker_config,
            settings,
            clock,
            cost: Cost::default(),
        }
    }

    // What nodes say as their agents do, not as their policy wants.

    pub(crate) fn joined(&self, node: u32) -> ToTracker {
        ToTracker::Joined { node: self.name(node), address: format!("{node}:1"), rack: self.rack(node) }
    }

    pub(crate) fn left(&self, node: u32) -> ToTracker {
        ToTracker::Left { node: self.name(node) }
    }

    pub(crate) fn have(&self, node: u32, packs: impl Iterator<Item = u32>) -> ToTracker {
        ToTracker::Have { node: self.name(node), artifact: self.artifact, packs: self.ids(packs) }
    }

    pub(crate) fn have_more(&self, node: u32, packs: impl Iterator<Item = u32>) -> ToTracker {
        ToTracker::HaveMore { node: self.name(node), artifact: self.artifact, packs: self.ids(packs) }
    }

    pub(crate) fn wanted(&self, node: u32, packs: impl Iterator<Item = u32>) -> ToTracker {
        ToTracker::Wanted { node: self.name(node), artifact: self.artifact, packs: self.ids(packs) }
    }

    pub(crate) fn peer_lied(&self, node: u32, peer: u32, pack: u32) -> ToTracker {
        ToTracker::PeerLied { node: self.name(node), peer: self.name(peer), pack: self.packs[pack as usize] }
    }

    /// The region hears of every fault that may be the peer's own; of lies, the policy tells. To have nothing yet is none.
    pub(crate) fn complaint(&self, node: u32, pack: u32, from: From, trouble: Trouble) -> Option<ToTracker> {
        let From::Peer(peer) = from else { return None };
        let (node, peer, pack) = (self.name(node), self.name(peer), self.packs[pack as usize]);
        let complains = matches!(trouble, Trouble::Unreachable | Trouble::Missing);
        complains.then_some(ToTracker::PeerFailed { node, peer, pack })
    }

    // What happens to a node.

    /// It wants these from now on, and knows of nobody.
    pub(crate) fn begin(&mut self, node: u32, wanted: impl Iterator<Item = u32>, now: Nanos, wishes: &mut Vec<Wish>) {
        let mut config = fetch::Config::new(self.name(node), self.rack(node));
        config.requests_max = self.settings.requests_max.unwrap_or(config.requests_max);
        config.peer_requests_max = self.settings.peer_requests_max.unwrap_or(config.peer_requests_max);
        self.fetches[node as usize] = Some(Fetch::new(config));
        let wanted =
            wanted.map(|pack| WantedPack { pack: self.packs[pack as usize], bytes: self.pack_bytes[pack as usize] });
        let wanted = wanted.collect();
        self.tell_fetch(node, fetch::Event::Wanted(wanted), now, wishes);
    }

    /// Its process is gone.
    pub(crate) fn end(&mut self, node: u32) {
        self.fetches[node as usize] = None;
    }

    pub(crate) fn hears(&mut self, node: u32, said: FromTracker, now: Nanos, wishes: &mut Vec<Wish>) {
        self.tell_fetch(node, said, now, wishes);
    }

    pub(crate) fn begun(&mut self, node: u32, pack: u32, now: Nanos, wishes: &mut Vec<Wish>) {
        self.tell_fetch(node, fetch::Event::Begun { pack: self.packs[pack as usize] }, now, wishes);
    }

    pub(crate) fn stored(&mut self, node: u32, pack: u32, now: Nanos, wishes: &mut Vec<Wish>) {
        self.tell_fetch(node, fetch::Event::Stored { pack: self.packs[pack as usize] }, now, wishes);
    }

    pub(crate) fn failed(
        &mut self,
        node: u32,
        (pack, from, trouble): (u32, From, Trouble),
        now: Nanos,
        wishes: &mut Vec<Wish>,
    ) {
        let source = match from {
            From::Peer(peer) => Source::Peer(self.name(peer)),
            From::Bucket => Source::Bucket,
        };
        let failure = match trouble {
            Trouble::Missing => Failure::Missing,
            Trouble::Busy => Failure::Busy,
            Trouble::Unreachable => Failure::Unreachable,
            Trouble::Waiting => Failure::Waiting,
            Trouble::Lied => Failure::Lied,
        };
        let pack = self.packs[pack as usize];
        self.tell_fetch(node, fetch::Event::Failed { pack, source, failure }, now, wishes);
    }

    pub(crate) fn reconnected(&mut self, node: u32, now: Nanos, wishes: &mut Vec<Wish>) {
        self.tell_fetch(node, fetch::Event::Reconnected, now, wishes);
    }

    pub(crate) fn tick(&mut self, node: u32, now: Nanos, wishes: &mut Vec<Wish>) {
        self.tell_fetch(node, fetch::Event::Tick, now, wishes);
    }

    pub(crate) fn wake(&mut self, node: u32) -> Option<Nanos> {
        let begun = self.clock.now();
        let wake = self.fetches[node as usize].as_ref()?.next_wake();
        self.cost.wakes += self.clock.now() - begun;
        wake.map(nanos_of)
    }

    fn tell_fetch(&mut self, node: u32, event: fetch::Event, now: Nanos, wishes: &mut Vec<Wish>) {
        let Some(fetch) = &mut self.fetches[node as usize] else { return };
        let begun = self.clock.now();
        let actions = fetch.on(event, Duration::from_nanos(now));
        self.cost.fetch += self.clock.now() - begun;
        self.cost.fetch_events += 1;
        for action in actions {
            self.translate(node, action, wishes);
        }
    }

    fn translate(&self, number: u32, action: fetch::Action, wishes: &mut Vec<Wish>) {
        let (node, artifact) = (self.name(number), self.artifact);
        let said = match action {
            fetch::Action::FromPeer { peer, pack, .. } => {
                return wishes.push(Wish::FromPeer { peer: node_number(&peer), pack: pack_number(&pack) });
            }
            fetch::Action::FromBucket { ticket } => {
                return wishes.push(Wish::FromBucket { pack: pack_number(&ticket.pack) });
            }
            fetch::Action::Drop { pack } => return wishes.push(Wish::Drop { pack: pack_number(&pack) }),
            fetch::Action::Announce { pack } => {
                // Several in a row are one message.
                if let Some(Wish::Say(ToTracker::HaveMore { packs, .. })) = wishes.last_mut() {
                    return packs.push(pack);
                }
                ToTracker::HaveMore { node, artifact, packs: vec![pack] }
            }
            fetch::Action::AskSources { packs } => ToTracker::Wanted { node, artifact, packs },
            fetch::Action::TicketDone { pack, ok } => ToTracker::TicketDone { node, artifact, pack, ok },
            fetch::Action::ReportLie { peer, pack } => ToTracker::PeerLied { node, peer, pack },
            fetch::Action::Complete => ToTracker::Done { node, artifact },
        };
        wishes.push(Wish::Say(said));
    }

    // The region's process.

    pub(crate) fn tell_tracker(&mut self, said: ToTracker, now: Nanos, answers: &mut Vec<(u32, FromTracker)>) {
        let begun = self.clock.now();
        let actions = self.tracker.on(said, Duration::from_nanos(now));
        self.cost.tracker += self.clock.now() - begun;
        self.cost.tracker_events += 1;
        for action in actions {
            if let tracker::Action::Sources { node, peers, tickets, .. } = action {
                let ticket = |pack: PackId| Ticket {
                    pack,
                    bytes: self.pack_bytes[pack_number(&pack) as usize],
                    url: String::new(),
                    outline: None,
                };
                let tickets = tickets.into_iter().map(ticket).collect();
                answers.push((node_number(&node), FromTracker::Sources { peers, tickets }));
            }
        }
    }

    pub(crate) fn tick_tracker(&mut self, now: Nanos, answers: &mut Vec<(u32, FromTracker)>) {
        self.tell_tracker(ToTracker::Tick, now, answers);
    }

    pub(crate) fn tracker_wake(&mut self) -> Option<Nanos> {
        let begun = self.clock.now();
        let wake = self.tracker.next_wake();
        self.cost.wakes += self.clock.now() - begun;
        wake.map(nanos_of)
    }

    pub(crate) fn restart_tracker(&mut self) {
        self.tracker = Tracker::new(self.tracker_config.clone());
    }

    pub(crate) fn banned(&self) -> usize {
        self.tracker.counts().banned
    }

    fn name(&self, node: u32) -> NodeId {
        self.nodes[node as usize].clone()
    }

    fn rack(&self, node: u32) -> RackName {
        self.racks[(node / self.nodes_per_rack) as usize].clone()
    }

    fn ids(&self, packs: impl Iterator<Item = u32>) -> Vec<PackId> {
        packs.map(|pack| self.packs[pack as usize]).collect()
    }
}

fn nanos_of(at: Duration) -> Nanos {
    u64::try_from(at.as_nanos()).unwrap_or(nanos(f64::MAX))
}
