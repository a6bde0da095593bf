//! What goes wrong: nodes that die, lie or flood, a tracker that begins anew, a bucket that is away, a rack that is cut off.

use super::{World, reception::State, transfer::LOOK_OVER_SECONDS};
use crate::{
    queue::{Due, Nanos, nanos},
    random::Random,
    scenario::Scenario,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Honest,
    /// What it serves is a lie.
    WrongBytes,
    /// It never answers.
    Silent,
    /// It serves a few bytes a second.
    Drips,
    /// It says that it has what it has not.
    FalseClaims,
    /// It tells the tracker untrue things about others, many of them.
    Floods,
}

/// Of each node, by chance.
pub(super) fn kinds(scenario: &Scenario) -> Vec<Kind> {
    let hostile = &scenario.hostile;
    let counts = [
        (Kind::WrongBytes, hostile.wrong_bytes_nodes),
        (Kind::Silent, hostile.silent_nodes),
        (Kind::Drips, hostile.drip_nodes),
        (Kind::FalseClaims, hostile.false_claim_nodes),
        (Kind::Floods, hostile.flood_nodes),
    ];
    let mut kinds = vec![Kind::Honest; scenario.nodes as usize];
    let all = counts.into_iter().flat_map(|(kind, count)| std::iter::repeat_n(kind, count as usize));
    let chosen = Random::new(scenario.seed, "hostile").some_of(scenario.nodes, hostile.nodes() as u32);
    for (node, kind) in chosen.into_iter().zip(all) {
        kinds[node as usize] = kind;
    }
    kinds
}

impl World {
    /// Puts down all that will go wrong.
    pub(super) fn plan_faults(&mut self) {
        let scenario = self.scenario.clone();
        self.queue.put(nanos(LOOK_OVER_SECONDS), Due::LookOver);
        let dying = (f64::from(scenario.nodes) * scenario.churn.fraction).round() as u32;
        let mut random = Random::new(scenario.seed, "churn");
        for node in random.some_of(scenario.nodes, dying) {
            let (from, until) = (scenario.churn.from_seconds, scenario.churn.until_seconds);
            let at = from + (until - from).max(0.0) * random.unit();
            if self.node(node).kind == super::Kind::Honest {
                self.queue.put(nanos(at), Due::Die(node));
            }
        }
        if let Some(at) = scenario.tracker_restart_at_seconds {
            self.queue.put(nanos(at), Due::TrackerRestart);
        }
        if let Some(away) = scenario.bucket_away {
            self.queue.put(nanos(away.from_seconds), Due::BucketAway);
            if let Some(until) = away.until_seconds {
                self.queue.put(nanos(until), Due::BucketBack);
            }
        }
        for cut in &scenario.rack_cuts {
            self.queue.put(nanos(cut.from_seconds), Due::Cut(cut.rack));
            self.queue.put(nanos(cut.until_seconds), Due::Mend(cut.rack));
        }
        for node in 0..scenario.nodes {
            if self.node(node).kind == Kind::Floods {
                self.queue.put(nanos(scenario.arrival_spread_seconds), Due::Flood(node));
            }
        }
    }

    /// Whether a request gets from one node to the other.
    pub(super) fn reaches(&self, node: u32, peer: u32) -> bool {
        let (here, there) = (self.topology.rack(node), self.topology.rack(peer));
        let is_cut = here != there && (self.rack_is_cut[here as usize] || self.rack_is_cut[there as usize]);
        !is_cut && self.node(peer).alive && self.node(peer).started
    }

    /// The packs that a hostile node says it has.
    pub(super) fn claims(&self, node: u32, packs: u32) -> std::ops::Range<u32> {
        match self.node(node).kind {
            Kind::Honest | Kind::Floods => 0..0,
            _ => 0..(f64::from(packs) * self.scenario.hostile.claims_fraction).round() as u32,
        }
    }

    fn set_rates(&mut self, links: [u32; 2], rates: [f64; 2]) {
        for (link, rate) in links.into_iter().zip(rates) {
            self.network.set_capacity(link, rate);
        }
    }

    fn disconnect(&mut self, node: u32) {
        let known = self.node_mut(node);
        known.connected = false;
        known.connection += 1;
    }

    pub(super) fn die(&mut self, node: u32) {
        let back = self.scenario.churn.restart_after_seconds;
        self.set_rates(self.topology.node_links(node), [0.0, 0.0]);
        let lost: Vec<u32> =
            self.receptions.of(node).filter(|id| self.receptions[*id].state != State::Resting).collect();
        for id in lost {
            self.give_up(id, false);
        }
        self.policy.end(node);
        self.disconnect(node);
        let known = self.node_mut(node);
        (known.alive, known.wake_at, known.gone) = (false, Nanos::MAX, back.is_none());
        let connection = known.connection;
        if known.gone && known.done_at.is_none() {
            self.open -= 1;
        }
        self.queue.put(self.now + nanos(self.scenario.notice_seconds), Due::Notice { node, connection });
        if let Some(after) = back {
            self.queue.put(self.now + nanos(after), Due::Revive(node));
        }
    }

    /// With what it had.
    pub(super) fn revive(&mut self, node: u32) {
        self.set_rates(self.topology.node_links(node), self.topology.node_rates(node));
        self.node_mut(node).alive = true;
        self.arrive(node);
    }

    pub(super) fn notice(&mut self, node: u32, connection: u32) {
        if self.node(node).connection == connection {
            let left = self.policy.left(node);
            self.tell_tracker(left);
        }
    }

    pub(super) fn restart_tracker(&mut self) {
        self.policy.restart_tracker();
        self.tracker_wake_checked = None;
        for node in 0..self.nodes.len() as u32 {
            if self.node(node).connected {
                self.disconnect(node);
                self.reconnect_later(node);
            }
        }
    }

    fn reconnect_later(&mut self, node: u32) {
        let after = self.scenario.reconnect_seconds * self.random.unit();
        let connection = self.node(node).connection;
        self.queue.put(self.now + nanos(after), Due::Reconnect { node, connection });
    }

    pub(super) fn reconnect(&mut self, node: u32, connection: u32) {
        let cut = self.rack_is_cut[self.topology.rack(node) as usize];
        let known = self.node_mut(node);
        if known.connection != connection || !known.alive || cut {
            return;
        }
        known.connected = true;
        known.connection += 1;
        self.introduce(node);
        self.policy.reconnected(node, self.now, &mut self.wishes);
        self.act(node);
    }

    pub(super) fn set_bucket_away(&mut self, is_away: bool) {
        self.bucket_is_away = is_away;
        let rate = if is_away { 0.0 } else { self.topology.bucket };
        self.network.set_capacity(self.topology.bucket_link(), rate);
    }

    pub(super) fn cut(&mut self, rack: u32) {
        self.rack_is_cut[rack as usize] = true;
        self.set_rates(self.topology.rack_links(rack), [0.0, 0.0]);
        for node in self.topology.nodes_of(rack) {
            if self.node(node).connected {
                self.disconnect(node);
                let connection = self.node(node).connection;
                self.queue.put(self.now + nanos(self.scenario.notice_seconds), Due::Notice { node, connection });
            }
        }
    }

    pub(super) fn mend(&mut self, rack: u32) {
        self.rack_is_cut[rack as usize] = false;
        self.set_rates(self.topology.rack_links(rack), self.topology.rack_rates());
        for node in self.topology.nodes_of(rack) {
            if self.node(node).started && self.node(node).alive {
                self.reconnect_later(node);
            }
        }
    }

    /// One more untrue message.
    pub(super) fn flood(&mut self, node: u32) {
        let (nodes, packs) = (self.scenario.nodes, self.pack_bytes.len() as u32);
        let (peer, pack) = (self.random.below(nodes), self.random.below(packs));
        let said = match self.random.below(3) {
            0 => self.policy.wanted(node, 0..packs),
            1 => self.policy.have_more(node, pack..pack + 1),
            _ => self.policy.peer_lied(node, peer, pack),
        };
        self.say(node, said);
        let rate = self.scenario.hostile.flood_messages_per_second;
        if rate > 0.0 {
            self.queue.put(self.now + nanos(1.0 / rate), Due::Flood(node));
        }
    }
}
