//! The region: machines, packs on their way, and time.
//!
//! ```text
//!   ┌▶ step: what came since ─▶ rates ─▶ which packs end within it              (`rates`)
//!   │    │
//!   │    ▼
//!   │  what is due before the step ends, in order:
//!   │    words between nodes and the tracker, timers           (`control`)
//!   │    requests, first blocks, ends of packs                 (`transfer`, `reception`)
//!   │    deaths, cuts, restarts, floods; sources too slow      (`faults`)
//!   └────┘
//! ```

mod control;
mod faults;
mod rates;
mod reception;
mod report;
#[cfg(test)]
mod tests;
mod transfer;

use crate::{
    Clock,
    network::Network,
    outcome::Failures,
    policy::{FromTracker, Policy, Wish},
    queue::{Due, Nanos, Queue, nanos, seconds},
    random::Random,
    scenario::Scenario,
    topology::Topology,
};
use control::Post;
use faults::Kind;
use rates::Running;
use reception::Receptions;

/// Shares that differ by less count as equal in regions of more nodes than this.
const SMALL_NODES: u32 = 1_000;
const TOLERANCE_SMALL: f64 = 1e-9;
const TOLERANCE_LARGE: f64 = 0.01;

/// One machine.
#[derive(Debug)]
struct Node {
    kind: Kind,
    alive: bool,
    /// It has begun; before, nobody knows it.
    started: bool,
    connected: bool,
    /// Counts the connections to the region: what belongs to an earlier one is void.
    connection: u32,
    lacks: u32,
    /// It died and will not be back.
    gone: bool,
    done_at: Option<Nanos>,
    uploads: u32,
    wake_at: Nanos,
    wake_checked: Option<Nanos>,
    /// Those it asked for packs.
    peers: Vec<u32>,
}

/// What is counted.
#[derive(Debug, Default)]
struct Tally {
    requests: u64,
    failures: Failures,
    tracker_messages: u64,
    told_messages: u64,
    bucket_bytes: f64,
    received_bytes: f64,
    wasted_bytes: f64,
    wrong_bytes_persisted: f64,
    into_rack_bytes: Vec<f64>,
    sent_bytes: Vec<f64>,
    steps: u32,
    flows_max: usize,
}

/// See the module.
pub(crate) struct World {
    scenario: Scenario,
    topology: Topology,
    network: Network,
    running: Running,
    receptions: Receptions,
    nodes: Vec<Node>,
    pack_bytes: Vec<f64>,
    policy: Policy,
    post: Post,
    queue: Queue,
    tally: Tally,
    random: Random,
    now: Nanos,
    step: Nanos,
    step_end: Nanos,
    tolerance: f64,
    /// Honest nodes that are not complete and may become so.
    open: u32,
    tracker_wake_at: Nanos,
    tracker_wake_checked: Option<Nanos>,
    rack_is_cut: Vec<bool>,
    bucket_is_away: bool,
    lacked_bytes: f64,
    // Kept to save allocations.
    wishes: Vec<Wish>,
    answers: Vec<(u32, FromTracker)>,
}

impl World {
    pub(crate) fn new(scenario: &Scenario, clock: Clock) -> Self {
        let topology = Topology::new(scenario);
        let packs = scenario.packs();
        let last = scenario.artifact_bytes - u64::from(packs - 1) * scenario.pack_bytes;
        let pack_bytes: Vec<u64> =
            (0..packs).map(|pack| if pack + 1 == packs { last } else { scenario.pack_bytes }).collect();
        let mut world = Self {
            network: topology.network(),
            running: Running::default(),
            receptions: Receptions::new(scenario.nodes, packs),
            nodes: Vec::with_capacity(scenario.nodes as usize),
            pack_bytes: pack_bytes.iter().map(|bytes| *bytes as f64).collect(),
            policy: Policy::new(scenario, pack_bytes, clock),
            post: Post::default(),
            queue: Queue::default(),
            tally: Tally {
                into_rack_bytes: vec![0.0; scenario.racks() as usize],
                sent_bytes: vec![0.0; scenario.nodes as usize],
                ..Tally::default()
            },
            random: Random::new(scenario.seed, "world"),
            now: 0,
            step: nanos(scenario.step()).max(1),
            step_end: 0,
            tolerance: if scenario.nodes <= SMALL_NODES { TOLERANCE_SMALL } else { TOLERANCE_LARGE },
            open: 0,
            tracker_wake_at: Nanos::MAX,
            tracker_wake_checked: None,
            rack_is_cut: vec![false; scenario.racks() as usize],
            bucket_is_away: false,
            lacked_bytes: 0.0,
            wishes: Vec::new(),
            answers: Vec::new(),
            topology,
            scenario: scenario.clone(),
        };
        world.populate();
        world.plan_faults();
        world
    }

    /// Makes the nodes, with what they have already.
    fn populate(&mut self) {
        let packs = self.pack_bytes.len() as u32;
        let kinds = faults::kinds(&self.scenario);
        let reused = Random::new(self.scenario.seed, "reuse").some_of(packs, packs);
        let share = |fraction: f64| (f64::from(packs) * fraction).round() as usize;
        let (usual, skipped) =
            (&reused[..share(self.scenario.reuse_fraction)], &reused[..share(self.scenario.skipped_reuse_fraction)]);
        self.lacked_bytes =
            self.pack_bytes.iter().sum::<f64>() - usual.iter().map(|pack| self.pack_bytes[*pack as usize]).sum::<f64>();
        let mut skips = Random::new(self.scenario.seed, "skips");
        let mut arrivals = Random::new(self.scenario.seed, "arrivals");
        for (number, kind) in kinds.into_iter().enumerate() {
            let node = number as u32;
            let has = if skips.unit() < self.scenario.skipped_nodes_fraction { skipped } else { usual };
            let honest = kind == Kind::Honest;
            for pack in has.iter().filter(|_| honest) {
                self.receptions.set_stored(node, *pack);
            }
            let lacks = packs - has.len() as u32;
            self.open += u32::from(honest);
            self.nodes.push(Node {
                kind,
                alive: true,
                started: false,
                connected: false,
                connection: 0,
                lacks,
                gone: false,
                done_at: None,
                uploads: 0,
                wake_at: Nanos::MAX,
                wake_checked: None,
                peers: Vec::new(),
            });
            self.queue.put(nanos(self.scenario.arrival_spread_seconds * arrivals.unit()), Due::Arrive(node));
        }
    }

    pub(crate) fn run(&mut self) {
        let end = nanos(self.scenario.run_seconds_max);
        while self.open > 0 && self.now < end {
            if self.running.live == 0 {
                let Some(next) = self.queue.next_at() else { return };
                self.now = self.now.max(next);
            }
            self.step_end = self.now + self.step;
            self.share_out();
            while let Some((at, due)) = self.queue.take_before(self.step_end) {
                self.now = self.now.max(at);
                self.happen(due);
                if self.open == 0 {
                    return;
                }
            }
            self.now = self.step_end;
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Arrive(node) => self.arrive(node),
            Due::Mail(place) => self.deliver(place),
            Due::Start { reception, attempt } => self.start(reception, attempt),
            Due::FirstBlock { reception, attempt } => self.first_block(reception, attempt),
            Due::Done { reception, attempt } => self.done(reception, attempt),
            Due::NodeWake(node) => self.wake_node(node),
            Due::TrackerWake => self.wake_tracker(),
            Due::LookOver => self.look_over(),
            Due::Die(node) => self.die(node),
            Due::Revive(node) => self.revive(node),
            Due::Notice { node, connection } => self.notice(node, connection),
            Due::Reconnect { node, connection } => self.reconnect(node, connection),
            Due::TrackerRestart => self.restart_tracker(),
            Due::BucketAway => self.set_bucket_away(true),
            Due::BucketBack => self.set_bucket_away(false),
            Due::Cut(rack) => self.cut(rack),
            Due::Mend(rack) => self.mend(rack),
            Due::Flood(node) => self.flood(node),
        }
    }

    fn node(&self, node: u32) -> &Node {
        &self.nodes[node as usize]
    }

    fn node_mut(&mut self, node: u32) -> &mut Node {
        &mut self.nodes[node as usize]
    }

    /// Seconds since.
    fn since(&self, at: Nanos) -> f64 {
        seconds(self.now.saturating_sub(at))
    }
}
