//! The decisions: whom to introduce to whom, and who gets a ticket.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_schemas::{
    ArtifactId, PackId,
    stream::{PeerPacks, Planned},
};

use super::{
    Action, Tracker,
    plan::Plan,
    state::{Artifact, Lease, Number, Pack},
};
use crate::{Time, bits::Bits, few::Few, mix, pack_number};

/// Most names in one message, of packs and of tickets together: 70 bytes each in a frame of 1 MiB.
const MESSAGE_NAMES_MAX: usize = 8_000;
/// Of those who have a pack, how many are compared in the own rack and elsewhere.
const HOLDERS_COMPARED_MAX: usize = 16;
/// A node whose complaint was looked into is not believed again for so long, nor are those behind it.
const JUDGED_LASTS: Duration = Duration::from_secs(3);
/// Half of what nodes were asked for lately is forgotten after this.
const LOAD_HALF_LIFE: Duration = Duration::from_secs(1);
/// Of those who want a pack, how many are compared before one gets the ticket.
const TICKET_CANDIDATES_MAX: usize = 64;

/// What one node will be told about one artifact.
#[derive(Default)]
struct Told {
    /// By who has the packs, or gets them by the plan.
    peers: BTreeMap<(Number, Option<Planned>), Vec<PackId>>,
    tickets: Vec<PackId>,
}

type Outbox = BTreeMap<(Number, ArtifactId), Told>;

impl Tracker {
    pub(super) fn flush(&mut self, actions: &mut Vec<Action>) {
        let now = self.now;
        self.end_leases(now);
        let mut outbox = Outbox::new();
        self.judge();
        self.plan(&mut outbox);
        let mut packs = std::mem::take(&mut self.dirty);
        let due: Vec<PackId> = self.parked.iter().filter(|(_, at)| **at <= now).map(|(pack, _)| *pack).collect();
        packs.extend(due);
        if packs.is_empty() && self.short.is_empty() && outbox.is_empty() {
            return;
        }
        self.flushed = Some(now);
        self.forget_load(now);
        for pack in packs {
            self.parked.remove(&pack);
            self.review(pack, &mut outbox);
        }
        self.lend(&mut outbox);
        self.deliver(outbox, actions);
    }

    /// Looks into the complaints that are due. Of several in a row, the first one's cause is the cause of all.
    fn judge(&mut self) {
        let now = self.now;
        let mut demoted = Vec::new();
        for (id, artifact) in &mut self.artifacts {
            artifact.judged.retain(|_, at| *at + JUDGED_LASTS > now);
            let due: Vec<_> = artifact.complaints.iter().filter(|(_, at)| **at <= now).map(|(key, _)| *key).collect();
            for (number, stripe) in &due {
                let ahead = artifact.plan.ahead(*number, *stripe);
                let says_the_same = |ahead| {
                    let key = (ahead, *stripe);
                    artifact.complaints.contains_key(&key) || artifact.judged.contains_key(&key)
                };
                if ahead.is_some_and(says_the_same) || artifact.judged.contains_key(&(*number, *stripe)) {
                    artifact.changed.entry((*number, *stripe)).or_insert(false);
                    continue;
                }
                let ahead = artifact.plan.demote_ahead(*number, *stripe, &mut artifact.changed);
                demoted.extend(ahead.map(|ahead| (ahead, (*id, *stripe))));
                artifact.changed.entry((*number, *stripe)).or_insert(true);
            }
            for key in due {
                artifact.complaints.remove(&key);
                // What it says meanwhile does not make it longer.
                artifact.judged.entry(key).or_insert(now);
            }
        }
        for (node, way) in demoted {
            self.take_tickets_back(node, &[way]);
        }
    }

    /// Those who want something newly are told at once from whom they will get it, and those whose source is another one now.
    fn plan(&mut self, outbox: &mut Outbox) {
        let due = |(id, artifact): (&ArtifactId, &Artifact)| {
            (!artifact.unplanned.is_empty() || !artifact.changed.is_empty()).then_some(*id)
        };
        let artifacts: Vec<ArtifactId> = self.artifacts.iter().filter_map(due).collect();
        for id in artifacts {
            let Some(artifact) = self.artifacts.get_mut(&id) else { continue };
            let (mut wanted, mut changed) =
                (std::mem::take(&mut artifact.unplanned), std::mem::take(&mut artifact.changed));
            // Taken out while the nodes are told.
            let mut plan = std::mem::take(&mut artifact.plan);
            let new = wanted.keys().filter(|number| !plan.contains(**number) && !self.banned.contains(**number));
            let newcomers: Vec<_> =
                new.filter_map(|number| Some((*number, self.node(*number)?.rack.clone()))).collect();
            plan.admit(&newcomers, &mut changed);
            for (number, packs) in &wanted {
                plan.deal(packs);
                for pack in packs {
                    self.place(id, (&plan, false), *number, *pack, outbox);
                }
            }
            // A newcomer wants nothing else.
            let is_new = |number: &Number| newcomers.binary_search_by_key(number, |(number, _)| *number).is_ok();
            for ((number, stripe), at_once) in changed.into_iter().filter(|((number, _), _)| !is_new(number)) {
                let placed = wanted.get_mut(&number).map_or(&[][..], |packs| {
                    packs.sort_unstable();
                    packs
                });
                for pack in plan.packs(stripe).filter(|pack| placed.binary_search(pack).is_err()) {
                    self.place(id, (&plan, at_once), number, *pack, outbox);
                }
            }
            if let Some(artifact) = self.artifacts.get_mut(&id) {
                artifact.plan = plan;
            }
        }
    }

    fn place(
        &mut self,
        artifact: ArtifactId,
        (plan, at_once): (&Plan, bool),
        number: Number,
        id: PackId,
        outbox: &mut Outbox,
    ) {
        let Some(node) = self.nodes.get_mut(number).and_then(Option::as_mut) else { return };
        let Some(pack) = self.packs.get_mut(&id) else { return };
        // One that has the first of it waits for the rest of it, from the one before unless it is told.
        let has_some = at_once && pack.has_some(number);
        if !has_some && !pack.wanters.contains(number) {
            return;
        }
        let comes_there = |parent: &Number| pack.holders.contains(*parent) || pack.wanters.contains(*parent);
        let may = |parent: &Number| !self.banned.contains(*parent) && !node.shuns(*parent);
        let ahead = plan.parent(number, &id);
        let is_early = ahead.is_some_and(|ahead| !comes_there(&ahead));
        let Some(parent) = ahead.filter(|parent| !is_early && may(parent)) else {
            // Somebody else may have it.
            pack.placed.remove(number);
            self.dirty.insert(id);
            if let Some((ahead, stripe)) = ahead.zip(plan.stripe(&id)).filter(|_| is_early)
                && let Some(artifact) = self.artifacts.get_mut(&artifact)
            {
                artifact.early.entry(ahead).or_default().insert((number, stripe));
            }
            return;
        };
        let planned = plan.planned(&id, at_once);
        if !has_some {
            pack.placed.insert(number);
            pack.introduced.remove(number);
            pack.settled.remove(number);
        }
        node.peers.insert(parent);
        outbox.entry((number, artifact)).or_default().peers.entry((parent, planned)).or_default().push(id);
    }

    /// The earliest time at which a pack that is short of a ticket may get one.
    pub(super) fn short_due(&self) -> Option<Time> {
        let settled = self.started.unwrap_or_default() + self.config.settle;
        let last = self.flushed.unwrap_or_default();
        let due = self.short.iter().filter_map(|id| Some(self.packs.get(id)?.ticket_after.max(settled)));
        // What was due and was not lent waits for a node to become free, which is an event.
        due.filter(|due| *due > last).min()
    }

    fn forget_load(&mut self, now: Time) {
        if self.load_halved_at + LOAD_HALF_LIFE <= now {
            self.load_halved_at = now;
            for node in self.nodes.iter_mut().flatten() {
                node.load /= 2;
            }
        }
    }

    /// When it is lent to another, if nothing happens until then.
    pub(super) fn lease_end(&self, lease: &Lease) -> Time {
        let used_at = self.node(lease.node).map_or(Time::ZERO, |node| node.ticket_used_at);
        match lease.begun_at {
            Some(begun_at) => begun_at + self.config.lease,
            None => lease.lent_at.max(used_at) + self.config.begin,
        }
    }

    fn end_leases(&mut self, now: Time) {
        let over = |pack: &&PackId| {
            let lease = self.packs.get(*pack).and_then(|pack| pack.lease.as_ref());
            lease.is_some_and(|lease| self.lease_end(lease) <= now)
        };
        let over: Vec<PackId> = self.leased.iter().filter(over).copied().collect();
        for pack in over {
            let lease = self.packs.get(&pack).and_then(|known| known.lease.as_ref());
            let Some(node) = lease.map(|lease| lease.node) else { continue };
            self.demote_reader(node, &pack);
            self.release_failed(pack);
        }
    }

    /// Whoever did not read a pack for all others, in all the time that it had, is not first of the pack's way any more.
    fn demote_reader(&mut self, node: Number, pack: &PackId) {
        for artifact in self.artifacts.values_mut() {
            let way = artifact.plan.stripe(pack).filter(|_| artifact.plan.root(pack) == Some(node));
            if let Some(stripe) = way {
                artifact.plan.demote(node, stripe, &mut artifact.changed);
            }
        }
    }

    /// Looks at one pack: who of those who want it can be told of whom.
    fn review(&mut self, id: PackId, outbox: &mut Outbox) {
        // Taken out while it is worked on: telling changes the nodes.
        let Some(mut pack) = self.packs.remove(&id) else { return };
        let available = pack.holders.count_without(&self.banned);
        let mut short = false;
        if !pack.wanters.is_empty() {
            short = pack.lease.is_none() && available == 0;
            if available > 0 {
                let helped = self.introduce(id, &mut pack, available, outbox);
                // As many found no help as there are to give it.
                let useless = pack.complaints > available as u64 && pack.stalls > 0;
                short = pack.lease.is_none() && (useless || !helped);
            }
        }
        short |= pack.lease.is_none() && self.lacks_source(&pack) && self.root(id, &pack).is_some();
        let useless = pack.wanters.is_empty() && pack.holders.is_empty();
        self.packs.insert(id, pack);
        if short {
            self.short.insert(id);
        } else {
            self.short.remove(&id);
        }
        if useless {
            self.forget(id);
        }
    }

    /// Nobody is known to have all of it who can be relied on for it. Those who have the first of it may all wait for one who is gone.
    fn lacks_source(&self, pack: &Pack) -> bool {
        let is_doubtful = self.doubts(pack);
        let whole = |word| pack.whole.word(word) & !self.banned.word(word);
        !Bits::select(pack.whole.words(), 0, whole).any(|number| !is_doubtful(number))
    }

    /// Whether a node may only say that it has the pack: it never wanted any of the artifact here, and somebody like that was found to give nothing.
    fn doubts(&self, pack: &Pack) -> impl Fn(Number) -> bool {
        let known = pack.artifacts.iter().filter_map(|artifact| self.artifacts.get(artifact));
        let doubted: Vec<_> = known.filter(|artifact| artifact.doubted_until > self.now).collect();
        move |number| doubted.iter().any(|artifact| !artifact.plan.contains(number))
    }

    /// Tells some of those who wait of some who have it. `false` if there is nobody that one of them could be sent to.
    fn introduce(&mut self, id: PackId, pack: &mut Pack, available: usize, outbox: &mut Outbox) -> bool {
        let now = self.now;
        if pack.moved_at + self.config.stall <= now {
            pack.stalls = pack.stalls.saturating_add(1);
            pack.moved_at = now;
        }
        let words = pack.wanters.words();
        let start = self.somewhere(mix(pack_number(&id), pack.complaints));
        let mut next: Vec<Number> = Vec::new();
        if available > 1 && pack.introduced.len() > pack.settled.len() {
            // They were told of the only one there was; now they need not all queue there.
            let one_source = |word| pack.introduced.word(word) & !pack.settled.word(word);
            next.extend(Bits::select(words, start, one_source));
        }
        let fan_out = self.config.fan_out.saturating_mul(1 + pack.stalls as usize);
        let room = fan_out.saturating_mul(available).saturating_sub(pack.introduced.len());
        let waiting = |word| pack.wanters.word(word) & !pack.introduced.word(word) & !pack.placed.word(word);
        let waiting: Vec<Number> = Bits::select(words, start, waiting).take(room.min(pack.waiting())).collect();
        let mut helped = true;
        for wanter in next.into_iter().chain(waiting) {
            helped &= self.tell(id, pack, wanter, outbox);
        }
        // Whether it spreads is looked at again, for it may be that nobody tells.
        self.parked.insert(id, pack.moved_at + self.config.stall);
        helped
    }

    /// Where a search begins, so that nobody is found more often than others.
    fn somewhere(&self, seed: u64) -> usize {
        (seed % self.nodes.len().max(1) as u64) as usize
    }

    fn tell(&mut self, id: PackId, pack: &mut Pack, wanter: Number, outbox: &mut Outbox) -> bool {
        let now = self.now;
        if let Some(node) = self.node_mut(wanter) {
            node.forgive(now);
        }
        let (holders, all_near) = self.choose_holders(id, pack, wanter);
        if holders.is_empty() {
            pack.stranded.insert(wanter);
            return false;
        }
        pack.stranded.remove(wanter);
        pack.introduced.insert(wanter);
        if holders.len() > 1 || all_near {
            pack.settled.insert(wanter);
        }
        for artifact in self.wanted_by(pack, wanter) {
            let told = outbox.entry((wanter, artifact)).or_default();
            for holder in &holders {
                told.peers.entry((*holder, None)).or_default().push(id);
            }
        }
        for holder in holders {
            if let Some(node) = self.node_mut(wanter) {
                node.peers.insert(holder);
            }
            if let Some(node) = self.node_mut(holder) {
                node.load += 1;
            }
        }
        true
    }

    /// Those of the own rack, and whether these are all that matter; others only if there are none, if it does not spread, or if those told
    /// before did not help. First those to whom fewer were sent lately; beyond
    /// the usual number of peers only if no other has it.
    fn choose_holders(&self, id: PackId, pack: &Pack, wanter: Number) -> (Vec<Number>, bool) {
        let Some(node) = self.node(wanter) else { return (Vec::new(), false) };
        let nowhere = Few::default();
        let rack = self.racks.get(&node.rack).unwrap_or(&nowhere);
        let words = pack.holders.words();
        let start = self.somewhere(mix(pack_number(&id), mix(wanter as u64, pack.complaints)));
        let able = |number: &Number| pack.holders.contains(*number) && !self.banned.contains(*number);
        let near = rack.around(Bits::start_within(words, start)).filter(able);
        let far = Bits::select(words, start, |word| pack.holders.word(word) & !self.banned.word(word));
        let far = far.filter(|number| !rack.contains(*number));
        let near = near.filter(|number| !node.shuns(*number)).take(HOLDERS_COMPARED_MAX);
        let far = far.filter(|number| !node.shuns(*number)).take(HOLDERS_COMPARED_MAX);
        let candidates = near.map(|number| (false, number)).chain(far.map(|number| (true, number)));
        // Who gets it by way of the wanter may be waiting for it.
        let is_behind = |number| {
            let plans = pack.artifacts.iter().filter_map(|artifact| self.artifacts.get(artifact));
            plans.map(|artifact| &artifact.plan).any(|plan| plan.is_ahead(wanter, number, &id))
        };
        let candidates =
            candidates.filter(|(_, number)| *number != wanter && (pack.whole.contains(*number) || !is_behind(*number)));
        let is_doubtful = self.doubts(pack);
        let load = |number| self.node(number).map_or(u64::MAX, |node| node.load);
        let mut candidates: Vec<_> = candidates
            .enumerate()
            .map(|(order, (far, number))| (far || is_doubtful(number), load(number), order, number))
            .collect();
        candidates.sort_unstable();
        let only_near = pack.stalls == 0 && !pack.unhelped.contains(wanter);
        let all_near = only_near && candidates.first().is_some_and(|(far, ..)| !far);
        if all_near {
            candidates.retain(|(far, ..)| !far);
        }
        let mut new_peers_left = self.config.node_peers.saturating_sub(node.peers.len());
        let mut chosen = Vec::with_capacity(self.config.pack_peers);
        for (.., number) in &candidates {
            let known = node.peers.contains(*number);
            if chosen.len() < self.config.pack_peers && (known || new_peers_left > 0) {
                new_peers_left -= usize::from(!known);
                chosen.push(*number);
            }
        }
        if chosen.is_empty() {
            chosen.extend(candidates.first().map(|(.., number)| *number));
        }
        (chosen, all_near)
    }

    /// The artifacts that the node wants the pack for.
    fn wanted_by(&self, pack: &Pack, wanter: Number) -> Vec<ArtifactId> {
        let wants = |artifact: &&ArtifactId| self.artifacts.get(artifact).is_some_and(|a| a.wanters.contains(wanter));
        pack.artifacts.iter().filter(wants).copied().collect()
    }

    /// Lends tickets for packs that need the bucket, the most wanted first.
    fn lend(&mut self, outbox: &mut Outbox) {
        let (now, settled) = (self.now, self.started.unwrap_or_default() + self.config.settle);
        if now < settled {
            return;
        }
        let due = self.short.iter().filter_map(|id| {
            let pack = self.packs.get(id)?;
            let is_due = pack.ticket_after <= now || pack.root_may && self.root(*id, pack).is_some();
            is_due.then(|| (Reverse(pack.wanters.len()), pack_number(id), *id))
        });
        let most_wanted: BTreeSet<_> = due.collect();
        for (_, _, id) in most_wanted {
            if self.leased.len() >= self.config.tickets_max {
                return;
            }
            self.lend_one(id, outbox);
        }
    }

    fn lend_one(&mut self, id: PackId, outbox: &mut Outbox) {
        let Some(pack) = self.packs.get(&id) else { return };
        let words = pack.wanters.words();
        let start = self.somewhere(mix(pack_number(&id), self.now.as_millis() as u64));
        if let Some(root) = self.root(id, pack) {
            // The others wait for that one.
            if self.node(root).is_some_and(|node| node.leases < self.config.node_tickets_max) {
                self.lend_to(id, root, outbox);
            }
            return;
        }
        let willing = |able: &dyn Fn(usize) -> u64| {
            let wanters = Bits::select(words, start, |word| pack.wanters.word(word) & able(word));
            let free = wanters.filter_map(|number| Some((self.node(number)?, number))).take(TICKET_CANDIDATES_MAX);
            free.enumerate().map(|(order, (node, number))| (node.leases, node.load, order, number)).min()
        };
        // Those first whom nobody else can help; then those who did not fail before; those who are kept away from last.
        let trusted = |word| !self.banned.word(word);
        let chosen = willing(&|word| pack.stranded.word(word) & !pack.failed.word(word) & trusted(word))
            .or_else(|| willing(&|word| !pack.failed.word(word) & trusted(word)))
            .or_else(|| willing(&trusted))
            .or_else(|| willing(&|_| !0));
        if let Some((.., number)) = chosen.filter(|(leases, ..)| *leases < self.config.node_tickets_max) {
            self.lend_to(id, number, outbox);
        }
    }

    /// Who reads a pack from the bucket by the plan: whoever is first of those who have some of it, else of all. Of one that has some of it nobody knows
    /// whether it has the rest: then the ticket is a question too.
    fn root(&self, id: PackId, pack: &Pack) -> Option<Number> {
        let able = |node: &Number| !pack.failed.contains(*node) && !self.banned.contains(*node);
        let plans = pack.artifacts.iter().filter_map(|artifact| Some(&self.artifacts.get(artifact)?.plan));
        let mut readers = plans.filter_map(|plan| {
            let first = plan.first_of(plan.stripe(&id)?);
            let has_some = first.iter().find(|node| pack.has_some(**node) && able(node));
            has_some.or_else(|| first.first().filter(|node| pack.wanters.contains(**node) && able(node))).copied()
        });
        readers.next()
    }

    fn lend_to(&mut self, id: PackId, number: Number, outbox: &mut Outbox) {
        let Some(pack) = self.packs.get(&id) else { return };
        let Some(artifact) = self.wanted_by(pack, number).first().copied() else { return };
        if let Some(node) = self.node_mut(number) {
            node.leases += 1;
        }
        if let Some(pack) = self.packs.get_mut(&id) {
            // Nothing will be said of the first of it any more.
            let begun_at = pack.holders.contains(number).then_some(self.now);
            pack.lease = Some(Lease { node: number, lent_at: self.now, begun_at });
            // What brought this ticket about is answered by it.
            (pack.complaints, pack.stalls, pack.moved_at) = (0, 0, self.now);
        }
        if let Some(artifact) = self.artifacts.get_mut(&artifact) {
            artifact.plan.begin(&id);
        }
        self.leased.insert(id);
        self.short.remove(&id);
        outbox.entry((number, artifact)).or_default().tickets.push(id);
    }

    fn deliver(&self, outbox: Outbox, actions: &mut Vec<Action>) {
        for ((number, artifact), told) in outbox {
            let Some(node) = self.node(number) else { continue };
            let message = |peers, tickets| Action::Sources { node: node.id.clone(), artifact, peers, tickets };
            let (mut peers, mut names) = (Vec::new(), told.tickets.len());
            let mut tickets = told.tickets;
            for ((holder, planned), packs) in told.peers {
                let Some(holder) = self.node(holder) else { continue };
                for part in packs.chunks(MESSAGE_NAMES_MAX) {
                    if names + part.len() > MESSAGE_NAMES_MAX {
                        actions.push(message(std::mem::take(&mut peers), std::mem::take(&mut tickets)));
                        names = 0;
                    }
                    names += part.len();
                    let (node, address, rack) = (holder.id.clone(), holder.address.clone(), holder.rack.clone());
                    peers.push(PeerPacks { node, address, rack, packs: part.to_vec(), planned });
                }
            }
            if !peers.is_empty() || !tickets.is_empty() {
                actions.push(message(peers, tickets));
            }
        }
    }
}
