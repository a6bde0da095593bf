//! How packs move: requests, first blocks, ends, failures.

use super::{
    World,
    faults::Kind,
    rates::settle,
    reception::{Cell, NONE, Reception, State},
};
use crate::{
    network::Path,
    policy::{From, Trouble},
    queue::{Due, nanos, seconds},
    topology::Reach,
};

impl World {
    /// Puts down the end of a pack that ends within this step.
    pub(super) fn expect_end(&mut self, id: u32) {
        let reception = &self.receptions[id];
        let left = self.pack_bytes[reception.pack as usize] - reception.have;
        let (since_have, rate) = (self.since(reception.since), self.rate(id));
        if left > 0.0 && rate <= 0.0 {
            return;
        }
        let takes = if left > 0.0 { left / rate - since_have } else { 0.0 };
        if takes < seconds(self.step_end.saturating_sub(self.now)) {
            let at = (self.now + nanos(takes.max(0.0))).min(self.step_end - 1).max(self.now);
            let attempt = reception.attempt;
            self.queue.put(at, Due::Done { reception: id, attempt });
        }
    }

    /// A node asks a source for a pack.
    pub(super) fn request(&mut self, node: u32, pack: u32, from: From) {
        if self.receptions.cell(node, pack) == Cell::Stored {
            return;
        }
        let id = self.receptions.get_or_make(node, pack);
        if self.receptions[id].state != State::Resting {
            return;
        }
        self.tally.requests += 1;
        let (reach, _) = self.path(node, from);
        let overhead = match from {
            From::Peer(peer) => {
                self.knows(node, peer);
                self.scenario.peer_request_seconds
            }
            From::Bucket => self.scenario.bucket_request_seconds,
        };
        let goodput = match reach {
            Reach::Rack => self.scenario.goodput_rack,
            Reach::Region => self.scenario.goodput_region,
            Reach::Bucket => self.scenario.goodput_bucket,
        };
        let at = self.now + nanos(self.rtt(reach) + overhead);
        let (have, now) = (self.receptions[id].have, self.now);
        let reception = &mut self.receptions[id];
        (reception.state, reception.from, reception.goodput) = (State::Asked, from, goodput);
        (reception.told, reception.attempt_have) = (false, have);
        (reception.window_at, reception.window_have) = (now, have);
        reception.attempt += 1;
        let attempt = reception.attempt;
        self.queue.put(at, Due::Start { reception: id, attempt });
    }

    fn knows(&mut self, node: u32, peer: u32) {
        let peers = &mut self.node_mut(node).peers;
        if !peers.contains(&peer) {
            peers.push(peer);
        }
    }

    fn path(&self, node: u32, from: From) -> (Reach, Path) {
        match from {
            From::Peer(peer) => self.topology.path_from_peer(peer, node),
            From::Bucket => self.topology.path_from_bucket(node),
        }
    }

    fn rtt(&self, reach: Reach) -> f64 {
        match reach {
            Reach::Rack => self.scenario.rtt_rack_seconds,
            Reach::Region => self.scenario.rtt_region_seconds,
            Reach::Bucket => self.scenario.rtt_bucket_seconds,
        }
    }

    fn is_current(&self, id: u32, attempt: u32, state: State) -> bool {
        let reception = &self.receptions[id];
        reception.attempt == attempt && reception.state == state
    }

    /// The source has the request, and the first bytes of its answer would be here.
    pub(super) fn start(&mut self, id: u32, attempt: u32) {
        if !self.is_current(id, attempt, State::Asked) {
            return;
        }
        let Reception { node, pack, from, .. } = self.receptions[id];
        let From::Peer(peer) = from else {
            return if self.bucket_is_away { self.fail(id, Trouble::Unreachable) } else { self.flow(id, NONE) };
        };
        let kind = self.node(peer).kind;
        if !self.reaches(node, peer) || kind == Kind::Silent {
            self.receptions[id].state = State::Deaf;
            return;
        }
        match kind {
            Kind::FalseClaims | Kind::Floods => return self.fail(id, Trouble::Missing),
            Kind::WrongBytes | Kind::Drips => return self.flow(id, NONE),
            Kind::Honest | Kind::Silent => {}
        }
        let upstream = match self.receptions.cell(peer, pack) {
            Cell::Stored => NONE,
            Cell::Coming(upstream) => upstream,
            Cell::Lacking => self.receptions.get_or_make(peer, pack),
        };
        if upstream != NONE && !self.receptions[upstream].begun {
            self.receptions.link(id, upstream);
            self.receptions[id].state = State::Held;
        } else if self.node(peer).uploads >= self.scenario.uploads_max {
            self.fail(id, Trouble::Busy);
        } else {
            self.flow(id, upstream);
        }
    }

    /// The answer begins.
    fn flow(&mut self, id: u32, upstream: u32) {
        let Reception { node, from, pack, attempt, goodput, .. } = self.receptions[id];
        let (_, path) = self.path(node, from);
        let mut limit = f64::INFINITY;
        if let From::Peer(peer) = from {
            self.node_mut(peer).uploads += 1;
            if self.node(peer).kind == Kind::Drips {
                limit = self.scenario.hostile.drip_bytes_per_second;
            }
        }
        let (mut cap, mut expected) = (limit, limit);
        if upstream != NONE {
            self.receptions.link(id, upstream);
            let (_, may_come) = self.progress(id);
            let catches_up = may_come / seconds(self.step_end.saturating_sub(self.now)).max(1e-9);
            cap = cap.min(self.rate(upstream) + catches_up);
            expected = expected.min(self.expected_rate(upstream) + catches_up);
        }
        let rate = self.network.admit(&path, cap / goodput);
        let expected = rate.max(self.network.fair(&path).min(expected / goodput)) * goodput;
        let flow = self.running.push(id, path, rate, (goodput, limit));
        let (now, steps) = (self.now, self.tally.steps);
        let reception = &mut self.receptions[id];
        (reception.state, reception.flow) = (State::Running, flow);
        (reception.since, reception.began_step) = (now, steps);
        (reception.was, reception.expected) = (rate * goodput, expected);
        // A little is not worth waiting for the next step: a hop's lag is a block, not a step.
        let takes = self.first_block_bytes(pack) / expected;
        let streams = from != From::Bucket || self.scenario.bucket_streams;
        if streams && takes < self.scenario.run_seconds_max {
            self.queue.put(now + nanos(takes), Due::FirstBlock { reception: id, attempt });
        }
        self.expect_end(id);
    }

    /// The first block of an answer is there and was looked at.
    pub(super) fn first_block(&mut self, id: u32, attempt: u32) {
        if !self.is_current(id, attempt, State::Running) || self.receptions[id].told {
            return;
        }
        let Reception { node, pack, from, upstream, attempt_have, .. } = self.receptions[id];
        if upstream != NONE && attempt_have > 0.0 {
            // A source that has no more than this node gives no block: those who wait for each other must not seem to have it.
            let (have, may_come) = self.progress(id);
            if have + may_come < attempt_have + self.first_block_bytes(pack) {
                return;
            }
        }
        if let From::Peer(peer) = from
            && self.node(peer).kind == Kind::WrongBytes
        {
            return self.fail(id, Trouble::Lied);
        }
        let reception = &mut self.receptions[id];
        (reception.begun, reception.told) = (true, true);
        self.answer_held(id);
        self.policy.begun(node, pack, self.now, &mut self.wishes);
        self.act(node);
    }

    /// Those who wait for it get their answer; it is on its way half a round trip.
    fn answer_held(&mut self, id: u32) {
        let mut child = self.receptions[id].first_child;
        while child != NONE {
            let next = self.receptions.next_child(child);
            if self.receptions[child].state == State::Held {
                self.receptions.unlink(child);
                self.answer(child);
            }
            child = next;
        }
    }

    fn answer(&mut self, child: u32) {
        let Reception { node, from, attempt, .. } = self.receptions[child];
        let (reach, _) = self.path(node, from);
        self.receptions[child].state = State::Asked;
        let at = self.now + nanos(self.rtt(reach) / 2.0);
        self.queue.put(at, Due::Start { reception: child, attempt });
    }

    /// A pack's last byte would be there.
    pub(super) fn done(&mut self, id: u32, attempt: u32) {
        if !self.is_current(id, attempt, State::Running) {
            return;
        }
        if self.receptions[id].upstream != NONE {
            // It was thought to be faster than its source is.
            self.receptions[id].late_step = self.tally.steps;
            return;
        }
        self.first_block(id, attempt);
        if !self.is_current(id, attempt, State::Running) {
            return;
        }
        let Reception { node, pack, from, .. } = self.receptions[id];
        let size = self.pack_bytes[pack as usize];
        self.stop(id, size);
        if let From::Peer(peer) = from
            && self.node(peer).kind == Kind::WrongBytes
        {
            self.tally.wrong_bytes_persisted += size;
        }
        self.feed_from_store(id);
        self.receptions.store(id);
        self.stored(node, pack);
    }

    fn stored(&mut self, node: u32, pack: u32) {
        self.node_mut(node).lacks -= 1;
        self.policy.stored(node, pack, self.now, &mut self.wishes);
        self.act(node);
        if self.node(node).lacks == 0 {
            self.complete(node);
        }
    }

    /// Those who feed on a pack that is complete now are held back by it no more.
    fn feed_from_store(&mut self, id: u32) {
        let mut child = self.receptions[id].first_child;
        while child != NONE {
            let next = self.receptions.next_child(child);
            let (have, _) = self.progress(child);
            let now = self.now;
            self.receptions.unlink(child);
            match self.receptions[child].state {
                State::Held => self.answer(child),
                State::Running => {
                    settle(&mut self.receptions[child], have, now);
                    if self.receptions[child].late_step == self.tally.steps {
                        self.expect_end(child);
                    }
                }
                _ => {}
            }
            child = next;
        }
    }

    /// A request came to nothing; what came of it stays.
    pub(super) fn fail(&mut self, id: u32, trouble: Trouble) {
        let Reception { node, pack, from, .. } = self.receptions[id];
        self.give_up(id, trouble == Trouble::Lied);
        let failures = &mut self.tally.failures;
        *match trouble {
            Trouble::Missing => &mut failures.missing,
            Trouble::Busy => &mut failures.busy,
            Trouble::Unreachable => &mut failures.unreachable,
            Trouble::Waiting => &mut failures.waiting,
            Trouble::Lied => &mut failures.lied,
        } += 1;
        if let Some(complaint) = self.policy.complaint(node, pack, from, trouble) {
            self.say(node, complaint);
        }
        self.policy.failed(node, (pack, from, trouble), self.now, &mut self.wishes);
        self.act(node);
    }

    pub(super) fn take_back(&mut self, node: u32, pack: u32) {
        if let Cell::Coming(id) = self.receptions.cell(node, pack) {
            self.give_up(id, false);
        }
    }

    /// Ends a request, whatever state it is in. Of a liar's answer nothing is kept.
    pub(super) fn give_up(&mut self, id: u32, lied: bool) {
        if self.receptions[id].state == State::Running {
            let (have, _) = self.progress(id);
            self.stop(id, have);
            if lied {
                let reception = &mut self.receptions[id];
                let lies = reception.have - reception.attempt_have;
                reception.have = reception.attempt_have;
                self.tally.wasted_bytes += lies;
                self.tally.received_bytes -= lies;
            }
        }
        self.receptions.unlink(id);
        self.receptions[id].state = State::Resting;
        self.receptions.tidy(id);
    }

    /// Takes a flow out of the network and counts what it carried.
    fn stop(&mut self, id: u32, have: f64) {
        let (now, flow) = (self.now, self.receptions[id].flow as usize);
        self.network.release(&self.running.flows.path[flow], self.running.flows.rate[flow]);
        self.running.end(flow);
        let reception = &mut self.receptions[id];
        (reception.have, reception.since, reception.was, reception.flow) = (have, now, 0.0, NONE);
        self.account(id);
    }

    fn account(&mut self, id: u32) {
        let Reception { node, from, have, attempt_have, .. } = self.receptions[id];
        let (bytes, rack) = (have - attempt_have, self.topology.rack(node));
        self.tally.received_bytes += bytes;
        match from {
            From::Bucket => self.tally.bucket_bytes += bytes,
            From::Peer(peer) => {
                self.node_mut(peer).uploads -= 1;
                self.tally.sent_bytes[peer as usize] += bytes;
                if self.topology.rack(peer) == rack {
                    return;
                }
            }
        }
        self.tally.into_rack_bytes[rack as usize] += bytes;
    }

    /// Looks for requests whose source gives too little, or nothing.
    pub(super) fn look_over(&mut self) {
        let (stall, patience) = (self.scenario.stall_seconds, self.scenario.patience_seconds);
        for id in 0..self.receptions.len() {
            let reception = &self.receptions[id];
            let waited = self.since(reception.window_at);
            match reception.state {
                State::Held if waited >= patience => self.fail(id, self.why_held(id)),
                State::Deaf if waited >= stall => self.fail(id, Trouble::Unreachable),
                State::Running if waited >= stall => self.check_pace(id),
                _ => {}
            }
        }
        self.queue.put(self.now + nanos(LOOK_OVER_SECONDS), Due::LookOver);
    }

    fn check_pace(&mut self, id: u32) {
        let (have, _) = self.progress(id);
        let now = self.now;
        let reception = &mut self.receptions[id];
        if have - reception.window_have >= self.scenario.window_bytes_min as f64 {
            (reception.window_at, reception.window_have) = (now, have);
            return;
        }
        let trouble = self.why_held(id);
        let waited = self.since(self.receptions[id].window_at);
        // A source that has nothing more says so, and is given the time that one has that has nothing yet.
        if trouble != Trouble::Waiting || waited >= self.scenario.patience_seconds {
            self.fail(id, trouble);
        }
    }

    /// A source that is there, and has nothing more itself, is not to blame.
    fn why_held(&self, id: u32) -> Trouble {
        let Reception { node, from, upstream, .. } = self.receptions[id];
        let is_there = matches!(from, From::Peer(peer) if self.reaches(node, peer));
        if is_there && upstream != NONE { Trouble::Waiting } else { Trouble::Unreachable }
    }
}

/// How often requests are looked over.
pub(super) const LOOK_OVER_SECONDS: f64 = 0.25;
