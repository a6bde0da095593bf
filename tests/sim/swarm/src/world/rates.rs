//! The rates of a step: what each flow gets of its links, and of what its source gets itself.
//!
//! ```text
//!   what came ─▶ a first guess: fair shares, none much faster than its source was
//!                   └─▶ along each chain, nobody is faster than its source ─▶ caps ─▶ fair shares again: nothing lies idle
//! ```
//!
//! Flows lie in the order in which they began. A source has begun before those that feed on it, so that one pass in this order
//! sees every source first, however long the chain. (After a failure it may be otherwise: then the rate before counts.)

use super::{
    World,
    reception::{NONE, Reception},
};
use crate::{
    network::{Flows, Path},
    policy::From,
    queue::{Due, Nanos, seconds},
};

/// A source may be so much faster than it was in the step before.
const GROWTH: f64 = 1.25;
/// Flows that are looked at together.
const TOGETHER: usize = 256;

/// Flows that there are, and what holds them back beside their links.
#[derive(Debug, Default)]
pub(super) struct Running {
    pub(super) flows: Flows,
    /// The reception of each flow; `NONE` if it ended within this step.
    pub(super) receptions: Vec<u32>,
    /// How many did not.
    pub(super) live: usize,
    /// The flow that it feeds on, or `NONE`.
    feeder: Vec<u32>,
    /// Beside what its source gets, a flow could get so much: what lies there already.
    ahead: Vec<f64>,
    /// What the pack lacks.
    left: Vec<f64>,
    /// Of use, of a byte of the wire.
    goodput: Vec<f64>,
    /// Of what the source gives to one, in bytes of use a second.
    limit: Vec<f64>,
}

impl Running {
    pub(super) fn push(&mut self, reception: u32, path: Path, rate: f64, (goodput, limit): (f64, f64)) -> u32 {
        self.receptions.push(reception);
        self.flows.push(path, f64::INFINITY, rate);
        self.feeder.push(NONE);
        self.ahead.push(f64::INFINITY);
        self.left.push(f64::INFINITY);
        self.goodput.push(goodput);
        self.limit.push(limit);
        self.live += 1;
        self.receptions.len() as u32 - 1
    }

    /// Bytes of use a second.
    pub(super) fn rate(&self, flow: usize) -> f64 {
        self.flows.rate[flow] * self.goodput[flow]
    }

    pub(super) fn end(&mut self, flow: usize) {
        self.receptions[flow] = NONE;
        self.live -= 1;
    }

    /// Moves a flow to the place of one that ended.
    fn relocate(&mut self, from: usize, to: usize) {
        self.receptions[to] = self.receptions[from];
        self.flows.path[to] = self.flows.path[from];
        self.flows.rate[to] = self.flows.rate[from];
        self.goodput[to] = self.goodput[from];
        self.limit[to] = self.limit[from];
    }

    fn truncate(&mut self, len: usize) {
        self.receptions.truncate(len);
        self.flows.truncate(len);
        self.feeder.truncate(len);
        self.ahead.truncate(len);
        self.left.truncate(len);
        self.goodput.truncate(len);
        self.limit.truncate(len);
    }

    /// Nobody is faster than its source.
    fn follow_sources(&mut self) {
        for flow in 0..self.receptions.len() {
            let feeder = self.feeder[flow];
            if feeder == NONE {
                continue;
            }
            let fed = self.rate(feeder as usize) + self.ahead[flow];
            let cap = fed / self.goodput[flow];
            self.flows.cap[flow] = self.flows.cap[flow].min(cap);
            self.flows.rate[flow] = self.flows.rate[flow].min(cap);
        }
    }
}

impl World {
    /// What came until now, and the rates from now until the step ends.
    pub(super) fn share_out(&mut self) {
        self.tally.steps += 1;
        if self.running.receptions.is_empty() {
            return;
        }
        self.tally.flows_max = self.tally.flows_max.max(self.running.live);
        self.advance_all();
        self.network.share_out(&mut self.running.flows, self.tolerance);
        self.running.follow_sources();
        self.network.share_out(&mut self.running.flows, self.tolerance);
        self.running.follow_sources();
        let step = seconds(self.step);
        for flow in 0..self.running.receptions.len() {
            if self.running.left[flow] < self.running.rate(flow) * step {
                self.expect_end(self.running.receptions[flow]);
            }
        }
    }

    /// In the order in which they began, and close up where some ended.
    fn advance_all(&mut self) {
        let (mut next, mut end) = (0, 0);
        while next < self.running.receptions.len() {
            let first = end;
            (next, end) = self.close_up(next, first);
            // Receptions lie anywhere in memory: whoever asks for many at once waits once.
            for flow in first..end {
                let upstream = self.receptions[self.running.receptions[flow]].upstream;
                self.running.feeder[flow] = if upstream == NONE { NONE } else { self.receptions[upstream].flow };
            }
            for flow in first..end {
                self.advance(flow);
            }
        }
        self.running.truncate(end);
    }

    /// Gives some flows, from `next` on, the places from `place` on. Answers where the others are, and the first place that is free.
    fn close_up(&mut self, mut next: usize, mut place: usize) -> (usize, usize) {
        let end = place + TOGETHER;
        while next < self.running.receptions.len() && place < end {
            let id = self.running.receptions[next];
            if id != NONE {
                if place < next {
                    self.running.relocate(next, place);
                }
                self.receptions[id].flow = place as u32;
                place += 1;
            }
            next += 1;
        }
        (next, place)
    }

    /// What came of a flow's pack, and what may come in the next step.
    fn advance(&mut self, flow: usize) {
        let id = self.running.receptions[flow];
        let (have, may_come) = self.progress(id);
        let now = self.now;
        let reception = &mut self.receptions[id];
        settle(reception, have, now);
        let Reception { upstream, pack, told, .. } = *reception;
        let (goodput, limit) = (self.running.goodput[flow], self.running.limit[flow]);
        self.running.left[flow] = self.pack_bytes[pack as usize] - have;
        if !told {
            self.notice_first_block(id, have);
        }
        if upstream == NONE {
            self.running.feeder[flow] = NONE;
            self.running.flows.cap[flow] = limit / goodput;
            return;
        }
        let (source, feeder) = (&self.receptions[upstream], self.running.feeder[flow]);
        let is_before = (feeder as usize) < flow && self.running.receptions[feeder as usize] == upstream;
        let ahead = may_come / seconds(self.step);
        let was = if source.began_step + 1 >= self.tally.steps { source.expected } else { source.was };
        let growth = if is_before { GROWTH } else { 1.0 };
        self.running.feeder[flow] = if is_before { feeder } else { NONE };
        self.running.ahead[flow] = ahead;
        self.running.flows.cap[flow] = (was * growth + ahead).min(limit) / goodput;
    }

    /// It may have come sooner than was thought.
    fn notice_first_block(&mut self, id: u32, have: f64) {
        let Reception { pack, attempt, attempt_have, from, .. } = self.receptions[id];
        let streams = from != From::Bucket || self.scenario.bucket_streams;
        if streams && have >= attempt_have + self.first_block_bytes(pack) {
            self.queue.put(self.now, Due::FirstBlock { reception: id, attempt });
        }
    }

    /// Bytes of use a second that come now.
    pub(super) fn rate(&self, id: u32) -> f64 {
        match self.receptions[id].flow {
            NONE => 0.0,
            flow => self.running.rate(flow as usize),
        }
    }

    /// What a reception will get once rates are shared out, as far as is known.
    pub(super) fn expected_rate(&self, id: u32) -> f64 {
        let reception = &self.receptions[id];
        if reception.began_step == self.tally.steps { reception.expected } else { self.rate(id) }
    }

    /// What came of a reception until now if nothing held it back.
    fn reached(&self, id: u32) -> f64 {
        let reception = &self.receptions[id];
        if reception.since == self.now {
            reception.have
        } else {
            reception.have + self.rate(id) * self.since(reception.since)
        }
    }

    /// What a reception has by now, and how much more its source could give at once.
    pub(super) fn progress(&self, id: u32) -> (f64, f64) {
        let reception = &self.receptions[id];
        let size = self.pack_bytes[reception.pack as usize];
        let reached = self.reached(id).min(size);
        if reception.upstream == NONE {
            return (reached, size - reached);
        }
        let served = self.reached(reception.upstream).min(size) - self.first_block_bytes(reception.pack);
        let have = reached.min(served.max(reception.have));
        (have, (served - have).max(0.0))
    }

    pub(super) fn first_block_bytes(&self, pack: u32) -> f64 {
        self.pack_bytes[pack as usize].min(self.scenario.block_bytes as f64)
    }
}

/// Takes down what came, and the rate at which it came.
pub(super) fn settle(reception: &mut Reception, have: f64, now: Nanos) {
    if now > reception.since {
        reception.was = (have - reception.have) / seconds(now - reception.since);
        (reception.have, reception.since) = (have, now);
    }
}
