//! Whole regions in memory: the real tracker, a real `Fetch` for each node, links with a rate, time that jumps.
//!
//! What is asserted is the promise: whoever lives gets everything, and the bucket gives each pack about once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_schemas::{
    ArtifactId, NodeId, PackId,
    stream::{PeerPacks, Ticket},
};
use longshore_swarm_policy::{
    Fetch, Time, Tracker,
    fetch::{self, Failure, Source, WantedPack},
    tracker,
};

const PACK_BYTES: u64 = 4 * 1024 * 1024;
/// Of each node's uplink and of the bucket's link to one node, in bytes a second: 100 Mbit/s.
const RATE: f64 = 12_500_000.0;
const LATENCY: Duration = Duration::from_millis(2);
const TIMEOUT: Duration = Duration::from_secs(3);
/// A run that takes longer does not converge.
const RUN_MAX: Duration = Duration::from_secs(900);

#[derive(Debug, Clone)]
struct Scenario {
    nodes: usize,
    racks: usize,
    packs: usize,
    /// They say that they have everything, and serve wrong bytes.
    liars: usize,
    /// They say that they have everything, and never answer.
    mute: usize,
    /// They are good peers, and say of every other that he lies.
    slanderers: usize,
    /// When each of the first nodes dies.
    deaths: Vec<Duration>,
    /// How long the region takes to notice a death.
    notice: Duration,
    /// When the region's process is replaced by one that knows nothing.
    tracker_restart: Option<Duration>,
    /// Of 100 tickets, how many fail at the bucket.
    bucket_failures_percent: u64,
    /// Nodes that have everything when the run begins.
    seeds: usize,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            nodes: 10,
            racks: 2,
            packs: 64,
            liars: 0,
            mute: 0,
            slanderers: 0,
            deaths: Vec::new(),
            notice: Duration::ZERO,
            tracker_restart: None,
            bucket_failures_percent: 0,
            seeds: 0,
        }
    }
}

#[derive(Debug)]
enum Due {
    ToTracker(tracker::Event),
    ToNode(usize, fetch::Event),
    /// The sender's last byte is on its way; the receiver's link may still be busy.
    Sent {
        node: usize,
        pack: PackId,
        source: Source,
    },
    /// What a request came to depends on the source at this moment.
    Arrived {
        node: usize,
        pack: PackId,
        source: Source,
    },
    Die(usize),
    RestartTracker,
}

struct Node {
    id: NodeId,
    fetch: Fetch,
    has: BTreeSet<PackId>,
    peers_used: BTreeSet<NodeId>,
    uplink_free: Time,
    downlink_free: Time,
    alive: bool,
    liar: bool,
    mute: bool,
    slanders: bool,
}

struct World {
    scenario: Scenario,
    artifact: ArtifactId,
    packs: Vec<WantedPack>,
    tracker: Tracker,
    nodes: Vec<Node>,
    numbers: BTreeMap<NodeId, usize>,
    due: BTreeMap<(Time, u64), Due>,
    order: u64,
    now: Time,
    copies: BTreeMap<PackId, usize>,
    banned: BTreeSet<NodeId>,
    /// Packs that were lost with their only holder.
    lost: usize,
}

struct Outcome {
    took: Time,
    /// From the bucket.
    copies: usize,
    lost: usize,
    banned: usize,
    peers_used_max: usize,
}

fn transfer_time() -> Duration {
    Duration::from_secs_f64(PACK_BYTES as f64 / RATE)
}

fn node_id(number: usize) -> NodeId {
    format!("node-{number}").parse().expect("valid")
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let pack = |n: usize| WantedPack { pack: PackId::of(&n.to_le_bytes()), bytes: PACK_BYTES };
        let mut world = Self {
            artifact: ArtifactId::of(b"artifact"),
            packs: (0..scenario.packs).map(pack).collect(),
            tracker: Tracker::new(tracker::Config::default()),
            nodes: (0..scenario.nodes).map(|n| Self::node(n, &scenario)).collect(),
            numbers: (0..scenario.nodes).map(|n| (node_id(n), n)).collect(),
            due: BTreeMap::new(),
            order: 0,
            now: Time::ZERO,
            copies: BTreeMap::new(),
            banned: BTreeSet::new(),
            lost: 0,
            scenario,
        };
        world.start();
        world
    }

    fn node(number: usize, scenario: &Scenario) -> Node {
        let rack = format!("rack-{}", number % scenario.racks).parse().expect("valid");
        // The last ones are bad, kind by kind.
        let mut first_good = scenario.nodes;
        let bad = [scenario.liars, scenario.mute, scenario.slanderers].into_iter().position(|count| {
            first_good -= count;
            number >= first_good
        });
        Node {
            id: node_id(number),
            fetch: Fetch::new(fetch::Config::new(node_id(number), rack)),
            has: BTreeSet::new(),
            peers_used: BTreeSet::new(),
            uplink_free: Time::ZERO,
            downlink_free: Time::ZERO,
            alive: true,
            liar: bad == Some(0),
            mute: bad == Some(1),
            slanders: bad == Some(2),
        }
    }

    fn start(&mut self) {
        let all: Vec<PackId> = self.packs.iter().map(|wanted| wanted.pack).collect();
        for number in 0..self.nodes.len() {
            let claims_all = self.nodes[number].liar || self.nodes[number].mute;
            if claims_all || number < self.scenario.seeds {
                self.nodes[number].has = all.iter().copied().collect();
            }
            // They begin within a second of each other.
            let at = Duration::from_millis(1_000 * number as u64 / self.nodes.len() as u64);
            self.announce(number, at);
            if !claims_all {
                self.after(at, Due::ToNode(number, fetch::Event::Wanted(self.missing_of(number))));
            }
        }
        for (number, at) in self.scenario.deaths.clone().into_iter().enumerate() {
            self.after(at, Due::Die(number));
        }
        if let Some(at) = self.scenario.tracker_restart {
            self.after(at, Due::RestartTracker);
        }
    }

    fn missing_of(&self, number: usize) -> Vec<WantedPack> {
        self.packs.iter().filter(|wanted| !self.nodes[number].has.contains(&wanted.pack)).copied().collect()
    }

    fn announce(&mut self, number: usize, delay: Duration) {
        let node = self.nodes[number].id.clone();
        let rack = format!("rack-{}", number % self.scenario.racks).parse().expect("valid");
        let address = format!("{node}:1");
        let packs = self.nodes[number].has.iter().copied().collect();
        self.after(delay, Due::ToTracker(tracker::Event::Joined { node: node.clone(), address, rack }));
        self.after(delay, Due::ToTracker(tracker::Event::Have { node, artifact: self.artifact, packs }));
    }

    fn after(&mut self, delay: Duration, due: Due) {
        self.order += 1;
        self.due.insert((self.now + delay, self.order), due);
    }

    fn run(mut self) -> Outcome {
        let mut finished = Time::ZERO;
        while !self.is_complete() {
            let wakes = self.nodes.iter().enumerate().filter(|(_, node)| node.alive);
            let wakes = wakes.filter_map(|(number, node)| Some((node.fetch.next_wake()?, number)));
            let (node_wake, tracker_wake) = (wakes.min(), self.tracker.next_wake());
            let next = self.due.keys().next().map(|(at, _)| *at);
            let times = [next, node_wake.map(|(at, _)| at), tracker_wake];
            let now =
                times.into_iter().flatten().min().expect("something is always due until all is done").max(self.now);
            assert!(now < RUN_MAX, "not done after {now:?}: {:?}", self.scenario);
            self.now = now;
            if next.is_some_and(|at| at <= now) {
                let (_, due) = self.due.pop_first().expect("it was just seen");
                self.happen(due);
            } else if tracker_wake.is_some_and(|at| at <= now) {
                self.tell_tracker(tracker::Event::Tick);
                let again = self.tracker.next_wake();
                assert!(again.is_none_or(|at| at > now), "the tracker would spin at {now:?}: {again:?}");
            } else if let Some((_, number)) = node_wake {
                self.tell_node(number, fetch::Event::Tick);
                let again = self.nodes[number].fetch.next_wake();
                assert!(again.is_none_or(|at| at > now), "node {number} would spin at {now:?}: {again:?}");
            }
            finished = self.now;
        }
        self.check();
        let peers_used = self.nodes.iter().map(|node| node.peers_used.len());
        Outcome {
            took: finished,
            copies: self.copies.values().sum(),
            lost: self.lost,
            banned: self.banned.len(),
            peers_used_max: peers_used.max().unwrap_or(0),
        }
    }

    fn is_complete(&self) -> bool {
        self.nodes.iter().all(|node| !node.alive || node.has.len() == self.packs.len())
    }

    fn check(&self) {
        for node in self.nodes.iter().filter(|node| node.alive && !node.liar && !node.mute) {
            assert_eq!((node.fetch.missing(), node.fetch.in_flight()), (0, 0), "{}", node.id);
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::ToTracker(event) => self.tell_tracker(event),
            Due::ToNode(number, event) => self.tell_node(number, event),
            Due::Sent { node, pack, source } => self.sent(node, pack, source),
            Due::Arrived { node, pack, source } => self.arrive(node, pack, source),
            Due::Die(number) => self.die(number),
            Due::RestartTracker => {
                self.tracker = Tracker::new(tracker::Config::default());
                for number in 0..self.nodes.len() {
                    if self.nodes[number].alive {
                        self.announce(number, LATENCY);
                        self.after(LATENCY, Due::ToNode(number, fetch::Event::Reconnected));
                    }
                }
            }
        }
    }

    fn die(&mut self, number: usize) {
        self.nodes[number].alive = false;
        for pack in &self.nodes[number].has {
            let others = self.nodes.iter().filter(|node| node.alive && !node.liar && node.has.contains(pack));
            self.lost += usize::from(others.count() == 0);
        }
        let left = tracker::Event::Left { node: self.nodes[number].id.clone() };
        self.after(self.scenario.notice, Due::ToTracker(left));
    }

    fn tell_tracker(&mut self, event: tracker::Event) {
        for action in self.tracker.on(event, self.now) {
            match action {
                tracker::Action::Sources { node, artifact, peers, tickets } => {
                    assert_eq!(artifact, self.artifact);
                    if self.nodes[self.numbers[&node]].slanders {
                        self.slander(&node, &peers);
                    }
                    let ticket = |pack| Ticket { pack, bytes: PACK_BYTES, url: String::new() };
                    let tickets = tickets.into_iter().map(ticket).collect();
                    self.after(LATENCY, Due::ToNode(self.numbers[&node], fetch::Event::Sources { peers, tickets }));
                }
                tracker::Action::Ban { node } => drop(self.banned.insert(node)),
            }
        }
    }

    fn slander(&mut self, node: &NodeId, peers: &[PeerPacks]) {
        for PeerPacks { node: peer, packs, .. } in peers {
            for pack in packs {
                let lie = tracker::Event::PeerLied { node: node.clone(), peer: peer.clone(), pack: *pack };
                self.after(LATENCY, Due::ToTracker(lie));
            }
        }
    }

    fn tell_node(&mut self, number: usize, event: fetch::Event) {
        if !self.nodes[number].alive {
            return;
        }
        let (node, artifact) = (self.nodes[number].id.clone(), self.artifact);
        for action in self.nodes[number].fetch.on(event, self.now) {
            let said = match action {
                fetch::Action::FromPeer { peer, pack, .. } => {
                    self.nodes[number].peers_used.insert(peer.clone());
                    self.transfer(number, pack, Source::Peer(peer));
                    continue;
                }
                fetch::Action::FromBucket { ticket } => {
                    *self.copies.entry(ticket.pack).or_default() += 1;
                    self.transfer(number, ticket.pack, Source::Bucket);
                    continue;
                }
                fetch::Action::AskSources { packs } => tracker::Event::Wanted { node: node.clone(), artifact, packs },
                fetch::Action::Announce { pack } => {
                    tracker::Event::HaveMore { node: node.clone(), artifact, packs: vec![pack] }
                }
                fetch::Action::TicketDone { pack, ok } => {
                    tracker::Event::TicketDone { node: node.clone(), artifact, pack, ok }
                }
                fetch::Action::ReportLie { peer, pack } => tracker::Event::PeerLied { node: node.clone(), peer, pack },
                fetch::Action::Complete => tracker::Event::Done { node: node.clone(), artifact },
            };
            self.after(LATENCY, Due::ToTracker(said));
        }
    }

    /// Links serve one after the other: a queue at the sender and one at the receiver.
    fn transfer(&mut self, number: usize, pack: PackId, source: Source) {
        let duration = transfer_time();
        let sent = match &source {
            Source::Bucket => self.now + duration,
            Source::Peer(peer) => {
                let peer = &mut self.nodes[self.numbers[peer]];
                peer.uplink_free = peer.uplink_free.max(self.now) + duration;
                peer.uplink_free
            }
        };
        self.after(sent - self.now, Due::Sent { node: number, pack, source });
    }

    fn sent(&mut self, number: usize, pack: PackId, source: Source) {
        let node = &mut self.nodes[number];
        node.downlink_free = (node.downlink_free + transfer_time()).max(self.now);
        let at = node.downlink_free;
        self.after(at - self.now, Due::Arrived { node: number, pack, source });
    }

    fn arrive(&mut self, number: usize, pack: PackId, source: Source) {
        if !self.nodes[number].alive {
            return;
        }
        let failure = match &source {
            Source::Bucket => {
                let turn = self.order % 100;
                (turn < self.scenario.bucket_failures_percent).then_some((Failure::Unreachable, Duration::ZERO))
            }
            Source::Peer(peer) => match &self.nodes[self.numbers[peer]] {
                peer if !peer.alive || peer.mute => Some((Failure::Unreachable, TIMEOUT)),
                peer if peer.liar => Some((Failure::Lied, Duration::ZERO)),
                peer if !peer.has.contains(&pack) => Some((Failure::Missing, Duration::ZERO)),
                _ => None,
            },
        };
        match failure {
            Some((failure, delay)) => {
                // As the transport does.
                if let (Source::Peer(peer), Failure::Unreachable | Failure::Missing) = (&source, failure) {
                    let (node, peer) = (self.nodes[number].id.clone(), peer.clone());
                    self.after(delay + LATENCY, Due::ToTracker(tracker::Event::PeerFailed { node, peer, pack }));
                }
                self.after(delay, Due::ToNode(number, fetch::Event::Failed { pack, source, failure }));
            }
            None => {
                self.nodes[number].has.insert(pack);
                self.tell_node(number, fetch::Event::Stored { pack });
            }
        }
    }
}

#[expect(clippy::print_stdout, reason = "figures for people, seen with --nocapture")]
fn run(scenario: Scenario) -> Outcome {
    let packs = scenario.packs;
    let shown = format!("{scenario:?}");
    let outcome = World::new(scenario).run();
    let Outcome { took, copies, lost, banned, peers_used_max } = outcome;
    println!(
        "{shown}: {took:?}, {copies} copies of {packs} packs, {lost} lost, {banned} banned, {peers_used_max} peers"
    );
    outcome
}

#[test]
fn the_bucket_gives_each_pack_once() {
    for nodes in [1, 2, 4, 12, 40, 100] {
        let outcome = run(Scenario { nodes, racks: 1 + nodes / 10, packs: 64, ..Scenario::default() });
        assert_eq!(outcome.copies, 64, "{nodes} nodes");
        // 64 packs take 21.5 s on one link; peers add their rounds, not their number.
        assert!(outcome.took < Duration::from_secs(90), "{nodes} nodes took {:?}", outcome.took);
    }
}

#[test]
fn one_pack_spreads_exponentially() {
    let outcome = run(Scenario { nodes: 100, racks: 5, packs: 1, ..Scenario::default() });
    assert_eq!(outcome.copies, 1);
    assert!(outcome.took < Duration::from_secs(15), "{:?}", outcome.took);
}

#[test]
fn what_a_node_has_is_not_taken_from_the_bucket() {
    let outcome = run(Scenario { nodes: 20, seeds: 1, ..Scenario::default() });
    assert_eq!(outcome.copies, 0);
}

#[test]
fn nodes_that_die_cost_only_what_they_alone_had() {
    for notice in [Duration::ZERO, Duration::from_secs(30)] {
        let deaths = (0..10).map(|n| Duration::from_millis(4_000 + 900 * n)).collect();
        let outcome = run(Scenario { nodes: 60, racks: 6, packs: 100, deaths, notice, ..Scenario::default() });
        // A ticket that dies with its node is a copy begun and not had.
        let begun = 10 * tracker::Config::default().node_tickets_max;
        assert!(outcome.copies <= 105 + outcome.lost + begun, "{} copies, {} lost", outcome.copies, outcome.lost);
    }
}

#[test]
fn liars_are_found_and_banned() {
    for liars in [1, 4] {
        let outcome = run(Scenario { nodes: 40, racks: 4, packs: 100, liars, ..Scenario::default() });
        assert_eq!(outcome.banned, liars);
        assert!(outcome.copies <= 105, "{} copies", outcome.copies);
    }
}

#[test]
fn mute_nodes_cost_time_and_few_copies() {
    for mute in [4, 10] {
        let outcome = run(Scenario { nodes: 40, racks: 4, packs: 100, mute, ..Scenario::default() });
        assert_eq!(outcome.banned, 0, "to be silent is no lie");
        assert!(outcome.copies <= 105 + 10 * mute, "{} copies with {mute} mute nodes", outcome.copies);
        assert!(outcome.took < Duration::from_secs(180), "{:?}", outcome.took);
    }
}

#[test]
fn slander_bans_few_and_everybody_gets_everything() {
    for (slanderers, banned_max) in [(1, 0), (6, 9)] {
        let outcome = run(Scenario { nodes: 40, racks: 4, packs: 100, slanderers, ..Scenario::default() });
        assert!(outcome.banned <= banned_max, "{} banned by {slanderers}", outcome.banned);
        assert!(
            outcome.copies <= 105 + 100 * slanderers,
            "{} copies: more than one more for each of them",
            outcome.copies
        );
        assert!(outcome.took < Duration::from_secs(180), "{:?}", outcome.took);
    }
}

#[test]
fn one_honest_node_among_liars_still_gets_everything() {
    let outcome = run(Scenario { nodes: 5, liars: 4, ..Scenario::default() });
    assert_eq!(outcome.copies, 64);
}

#[test]
fn a_new_tracker_learns_what_is_there() {
    let at = Some(Duration::from_secs(8));
    let outcome = run(Scenario { nodes: 40, racks: 4, packs: 100, tracker_restart: at, ..Scenario::default() });
    assert!(outcome.copies <= 105, "{} copies", outcome.copies);
}

#[test]
fn tickets_that_fail_are_lent_again() {
    let outcome = run(Scenario { nodes: 20, bucket_failures_percent: 20, ..Scenario::default() });
    assert!(outcome.copies <= 64 * 3 / 2, "{} copies", outcome.copies);
}

#[test]
fn peers_are_few() {
    let outcome = run(Scenario { nodes: 100, racks: 5, packs: 32, ..Scenario::default() });
    assert!(outcome.peers_used_max <= 40, "{} peers", outcome.peers_used_max);
}
