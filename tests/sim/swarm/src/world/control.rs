//! What nodes and the tracker say to each other, and their timers.

use super::{World, faults::Kind};
use crate::{
    policy::{From, FromTracker, ToTracker, Wish},
    queue::{Due, Nanos, nanos},
};

/// The tracker's timers are watched so much more closely than a node's.
const TRACKER_CLOSER: f64 = 20.0;
/// A timer that is due again at once would stop the time.
const TIMER_MIN: Nanos = 1_000;

#[derive(Debug)]
enum Body {
    ToTracker(ToTracker),
    ToNode(FromTracker),
}

/// A message that is under way. It is lost if the connection is no more.
#[derive(Debug)]
struct Mail {
    node: u32,
    connection: u32,
    body: Body,
}

/// Messages under way; the queue holds their places.
#[derive(Debug, Default)]
pub(super) struct Post {
    mail: Vec<Option<Mail>>,
    free: Vec<u32>,
}

impl Post {
    fn put(&mut self, mail: Mail) -> u32 {
        if let Some(place) = self.free.pop() {
            self.mail[place as usize] = Some(mail);
            return place;
        }
        self.mail.push(Some(mail));
        self.mail.len() as u32 - 1
    }

    fn take(&mut self, place: u32) -> Option<Mail> {
        self.free.push(place);
        self.mail[place as usize].take()
    }
}

impl World {
    /// A node begins, or is back: the region is told what it has, and its policy what it lacks.
    pub(super) fn arrive(&mut self, node: u32) {
        if !self.node(node).alive {
            return;
        }
        let cut = self.rack_is_cut[self.topology.rack(node) as usize];
        let known = self.node_mut(node);
        (known.started, known.connected) = (true, !cut);
        known.connection += 1;
        self.introduce(node);
        if self.node(node).kind != Kind::Honest {
            return;
        }
        if self.node(node).lacks == 0 {
            return self.complete(node);
        }
        let lacking = self.receptions.lacking(node);
        self.policy.begin(node, lacking, self.now, &mut self.wishes);
        self.act(node);
    }

    /// What a node says first on a connection.
    pub(super) fn introduce(&mut self, node: u32) {
        let joined = self.policy.joined(node);
        self.say(node, joined);
        let packs = self.pack_bytes.len() as u32;
        let claims = self.claims(node, packs);
        let has = self.receptions.stored(node);
        let have = self.policy.have(node, claims.clone().chain(has));
        self.say(node, have);
        if self.node(node).kind != Kind::Honest && claims.len() < packs as usize {
            let wanted = self.policy.wanted(node, claims.end..packs);
            self.say(node, wanted);
        }
    }

    pub(super) fn say(&mut self, node: u32, said: ToTracker) {
        self.send(node, Body::ToTracker(said));
    }

    fn send(&mut self, node: u32, body: Body) {
        if self.node(node).connected {
            let connection = self.node(node).connection;
            let place = self.post.put(Mail { node, connection, body });
            self.queue.put(self.now + nanos(self.scenario.rtt_tracker_seconds / 2.0), Due::Mail(place));
        }
    }

    pub(super) fn deliver(&mut self, place: u32) {
        let Some(Mail { node, connection, body }) = self.post.take(place) else { return };
        let known = self.node(node);
        if !known.connected || known.connection != connection {
            return;
        }
        match body {
            Body::ToTracker(said) => self.tell_tracker(said),
            Body::ToNode(said) if known.kind == Kind::Honest => {
                self.policy.hears(node, said, self.now, &mut self.wishes);
                self.act(node);
            }
            Body::ToNode(_) => {}
        }
    }

    pub(super) fn tell_tracker(&mut self, said: ToTracker) {
        self.tally.tracker_messages += 1;
        self.policy.tell_tracker(said, self.now, &mut self.answers);
        self.answer_from_tracker();
        self.watch_tracker();
    }

    fn answer_from_tracker(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        for (node, said) in answers.drain(..) {
            self.tally.told_messages += 1;
            self.send(node, Body::ToNode(said));
        }
        self.answers = answers;
    }

    /// Does what a node's policy wants.
    pub(super) fn act(&mut self, node: u32) {
        let mut wishes = std::mem::take(&mut self.wishes);
        for wish in wishes.drain(..) {
            match wish {
                Wish::FromPeer { peer, pack } => self.request(node, pack, From::Peer(peer)),
                Wish::FromBucket { pack } => self.request(node, pack, From::Bucket),
                Wish::Drop { pack } => self.take_back(node, pack),
                Wish::Say(said) => self.say(node, said),
            }
        }
        self.wishes = wishes;
        self.watch_node(node);
    }

    pub(super) fn complete(&mut self, node: u32) {
        let now = self.now;
        let known = self.node_mut(node);
        if known.done_at.is_none() {
            known.done_at = Some(now);
            self.open -= 1;
        }
        self.policy.end(node);
    }

    // Timers. To ask the policy for its next one after every event is exact and may be dear; with slack it is asked now and then.

    fn watch_node(&mut self, node: u32) {
        let (now, slack) = (self.now, nanos(self.scenario.timer_slack_seconds));
        let checked = self.node(node).wake_checked;
        let at = match checked.map(|checked| checked + slack).filter(|again| *again > now) {
            Some(again) => Some(again),
            None => {
                self.node_mut(node).wake_checked = Some(now);
                self.policy.wake(node)
            }
        };
        self.set_node_timer(node, at);
    }

    fn set_node_timer(&mut self, node: u32, at: Option<Nanos>) {
        let Some(at) = at.map(|at| at.max(self.now)) else { return };
        if at < self.node(node).wake_at {
            self.node_mut(node).wake_at = at;
            self.queue.put(at, Due::NodeWake(node));
        }
    }

    pub(super) fn wake_node(&mut self, node: u32) {
        if self.node(node).wake_at > self.now {
            return;
        }
        let now = self.now;
        let known = self.node_mut(node);
        (known.wake_at, known.wake_checked) = (Nanos::MAX, Some(now));
        if self.policy.wake(node).is_some_and(|at| at <= now) {
            self.policy.tick(node, now, &mut self.wishes);
            self.act(node);
        }
        let again = self.policy.wake(node).map(|at| at.max(now + TIMER_MIN));
        self.set_node_timer(node, again);
    }

    fn watch_tracker(&mut self) {
        let (now, slack) = (self.now, nanos(self.scenario.timer_slack_seconds / TRACKER_CLOSER));
        let at = match self.tracker_wake_checked.map(|checked| checked + slack).filter(|again| *again > now) {
            Some(again) => Some(again),
            None => {
                self.tracker_wake_checked = Some(now);
                self.policy.tracker_wake()
            }
        };
        self.set_tracker_timer(at);
    }

    fn set_tracker_timer(&mut self, at: Option<Nanos>) {
        let Some(at) = at.map(|at| at.max(self.now)) else { return };
        if at < self.tracker_wake_at {
            self.tracker_wake_at = at;
            self.queue.put(at, Due::TrackerWake);
        }
    }

    pub(super) fn wake_tracker(&mut self) {
        if self.tracker_wake_at > self.now {
            return;
        }
        let now = self.now;
        (self.tracker_wake_at, self.tracker_wake_checked) = (Nanos::MAX, Some(now));
        if self.policy.tracker_wake().is_some_and(|at| at <= now) {
            self.policy.tick_tracker(now, &mut self.answers);
            self.answer_from_tracker();
        }
        let again = self.policy.tracker_wake().map(|at| at.max(now + TIMER_MIN));
        self.set_tracker_timer(again);
    }
}
