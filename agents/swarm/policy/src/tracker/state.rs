//! The bookkeeping: what each event changes.

use std::collections::{BTreeMap, BTreeSet};

use longshore_schemas::{ArtifactId, NodeId, PackId, RackName};

use super::{
    Action, Tracker,
    plan::{Changed, Plan, Stripe},
    trust::Fault,
};
use crate::{Time, bits::Bits, few::Few};

/// Peers that one node may shun. Whoever says of still more that they lie or fail is sent to them all the same: a node that finds fault with
/// everybody must not get everything from the bucket.
const SHUNNED_MAX: usize = 16;

/// A node's place in the bit sets; given to another once it left.
pub(super) type Number = usize;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) address: String,
    pub(super) rack: RackName,
    pub(super) leases: usize,
    /// When something came by one of its tickets.
    pub(super) ticket_used_at: Time,
    /// Those it was told of.
    pub(super) peers: Few,
    /// Those that it says lied or failed, and until when it is not sent to them.
    shunned: BTreeMap<Number, Time>,
    /// How many were sent to it lately, for a pack each.
    pub(super) load: u64,
}

impl Node {
    fn shun(&mut self, peer: Number, until: Time) {
        let known = self.shunned.entry(peer).or_insert(until);
        *known = until.max(*known);
    }

    pub(super) fn shuns(&self, peer: Number) -> bool {
        self.shunned.contains_key(&peer)
    }

    /// Gives those another chance that it shunned long enough.
    pub(super) fn forgive(&mut self, now: Time) {
        self.shunned.retain(|_, until| *until > now);
    }
}

#[derive(Debug)]
pub(super) struct Pack {
    pub(super) holders: Bits,
    /// Those of them who are known to have all of it, and not only the first of it.
    pub(super) whole: Bits,
    /// Those who said at any time that they have it: it spreads no further when they say so again.
    said: Bits,
    /// Those who want it and do not have it.
    pub(super) wanters: Bits,
    /// Those of the wanters who wait for the one above them in the plan.
    pub(super) placed: Bits,
    /// Those of the others who were told of a holder.
    pub(super) introduced: Bits,
    /// Those of them who were told of more than one, or of those near them.
    pub(super) settled: Bits,
    /// Those of the wanters whom a holder of whom they were told did not help.
    pub(super) unhelped: Bits,
    /// Those whose ticket came back unused since anybody got it.
    pub(super) failed: Bits,
    /// Those of the wanters who could be sent to nobody who has it.
    pub(super) stranded: Bits,
    pub(super) artifacts: BTreeSet<ArtifactId>,
    pub(super) lease: Option<Lease>,
    /// No ticket before.
    pub(super) ticket_after: Time,
    /// But for the one who reads it for all, as the plan stood before the pack was named.
    pub(super) root_may: bool,
    /// When it last spread, or was given a chance to.
    pub(super) moved_at: Time,
    /// Introductions that did not help since it last spread.
    pub(super) complaints: u64,
    /// How often it was found not to spread since it last did.
    pub(super) stalls: u32,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) node: Number,
    pub(super) lent_at: Time,
    /// When the first of it came.
    pub(super) begun_at: Option<Time>,
}

#[derive(Debug, Default)]
pub(super) struct Artifact {
    /// Every pack that was named together with it and that somebody has or wants.
    packs: BTreeSet<PackId>,
    /// Since when it has any.
    since: Option<Time>,
    pub(super) wanters: Bits,
    pub(super) plan: Plan,
    /// What nodes want since the last flush.
    pub(super) unplanned: BTreeMap<Number, Vec<PackId>>,
    /// Whose place in the plan is another one since then.
    pub(super) changed: Changed,
    /// Who was to get packs from a node, by that node, before it had named them.
    pub(super) early: BTreeMap<Number, BTreeSet<(Number, Stripe)>>,
    /// Who was not helped by the one ahead in the plan, and when that is looked into.
    pub(super) complaints: BTreeMap<(Number, Stripe), Time>,
    /// When it was.
    pub(super) judged: BTreeMap<(Number, Stripe), Time>,
    /// Until then nobody is relied on who says that it has packs and never wanted any: one of these gave nothing to the one who was to read for all.
    pub(super) doubted_until: Time,
}

impl Artifact {
    /// A node has named packs: those who asked for them before get them from it now, if that is its place.
    fn comes(&mut self, node: Number) {
        for key in self.early.remove(&node).unwrap_or_default() {
            self.changed.entry(key).or_insert(false);
        }
    }

    pub(super) fn leave_plan(&mut self, node: Number) {
        self.plan.leave(node, &mut self.changed);
        self.early.remove(&node);
        self.complaints.retain(|(known, _), _| *known != node);
        self.judged.retain(|(known, _), _| *known != node);
    }
}

impl Pack {
    fn new(now: Time) -> Self {
        Self {
            holders: Bits::default(),
            whole: Bits::default(),
            said: Bits::default(),
            wanters: Bits::default(),
            placed: Bits::default(),
            introduced: Bits::default(),
            settled: Bits::default(),
            unhelped: Bits::default(),
            failed: Bits::default(),
            stranded: Bits::default(),
            artifacts: BTreeSet::new(),
            lease: None,
            ticket_after: Time::ZERO,
            root_may: false,
            moved_at: now,
            complaints: 0,
            stalls: 0,
        }
    }

    /// Without anybody who has it, nobody is introduced: those who were will ask again, which is no complaint.
    fn begin_anew_unless_held(&mut self, banned: &Bits) {
        let held = (0..self.holders.words()).any(|word| self.holders.word(word) & !banned.word(word) != 0);
        if !held {
            self.introduced.clear();
            self.settled.clear();
            self.complaints = 0;
        }
    }

    /// Wanters who are to be told of somebody who has it.
    pub(super) fn waiting(&self) -> usize {
        self.wanters.len() - self.placed.len() - self.introduced.len()
    }

    /// It has the first of it, and is not known to have the rest.
    pub(super) fn has_some(&self, number: Number) -> bool {
        self.holders.contains(number) && !self.whole.contains(number)
    }

    fn is_leased_by(&self, number: Number) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.node == number)
    }
}

impl Tracker {
    pub(super) fn node(&self, number: Number) -> Option<&Node> {
        self.nodes.get(number)?.as_ref()
    }

    pub(super) fn node_mut(&mut self, number: Number) -> Option<&mut Node> {
        self.nodes.get_mut(number)?.as_mut()
    }

    pub(super) fn join(&mut self, id: NodeId, address: String, rack: RackName) {
        self.leave(&id);
        let number = self.free.pop_first().unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() - 1
        });
        self.racks.entry(rack.clone()).or_default().insert(number);
        self.numbers.insert(id.clone(), number);
        if self.trust.keeps_away_from(&id) {
            self.banned.insert(number);
        }
        self.nodes[number] = Some(Node {
            id,
            address,
            rack,
            leases: 0,
            ticket_used_at: Time::ZERO,
            load: 0,
            peers: Few::default(),
            shunned: BTreeMap::new(),
        });
    }

    pub(super) fn leave(&mut self, id: &NodeId) {
        let Some(number) = self.numbers.remove(id) else { return };
        let settled = self.now + self.config.settle;
        let packs: Vec<PackId> = self.packs.keys().copied().collect();
        for pack in packs {
            let held = self.lose(pack, number);
            self.unwant(pack, number);
            self.give_back(pack, number);
            if let Some(known) = self.packs.get_mut(&pack).filter(|known| held && known.holders.is_empty()) {
                // It may be about to come back.
                known.ticket_after = known.ticket_after.max(settled);
                known.root_may = false;
            }
            if let Some(known) = self.packs.get_mut(&pack) {
                known.said.remove(number);
            }
        }
        for artifact in self.artifacts.values_mut() {
            artifact.wanters.remove(number);
            artifact.unplanned.remove(&number);
            artifact.leave_plan(number);
        }
        for node in self.nodes.iter_mut().flatten() {
            node.peers.remove(number);
            node.shunned.remove(&number);
        }
        if let Some(node) = self.nodes[number].take()
            && let Some(rack) = self.racks.get_mut(&node.rack)
        {
            rack.remove(number);
            if rack.is_empty() {
                self.racks.remove(&node.rack);
            }
        }
        self.banned.remove(number);
        self.free.insert(number);
    }

    pub(super) fn have(&mut self, node: &NodeId, artifact: ArtifactId, packs: Vec<PackId>) {
        let Some(&number) = self.numbers.get(node) else { return };
        self.have_more(node, artifact, &packs);
        for pack in &packs {
            self.has_all_of(*pack, number);
        }
        let listed: BTreeSet<PackId> = packs.into_iter().collect();
        let Some(known) = self.artifacts.get_mut(&artifact) else { return };
        let gone = &known.packs - &listed;
        if !gone.is_empty() && !known.wanters.contains(number) {
            // Whoever removed some of them is no source of whatever comes.
            known.leave_plan(number);
        }
        for pack in gone {
            self.lose(pack, number);
        }
    }

    pub(super) fn have_more(&mut self, node: &NodeId, artifact: ArtifactId, packs: &[PackId]) {
        let Some(&number) = self.numbers.get(node) else { return };
        for pack in packs {
            self.touch(*pack, artifact);
            self.gain(*pack, number);
        }
        if let Some(known) = self.artifacts.get_mut(&artifact) {
            known.comes(number);
        }
    }

    pub(super) fn want(&mut self, node: &NodeId, artifact: ArtifactId, packs: &[PackId]) {
        let Some(&number) = self.numbers.get(node) else { return };
        let mut complained = false;
        let (mut fresh, mut unhelped) = (Vec::new(), Vec::new());
        let due = self.now + self.config.judge;
        for pack in packs {
            let held = self.lose(*pack, number);
            let known = self.touch(*pack, artifact);
            let again = !known.wanters.insert(number);
            known.settled.remove(number);
            let was_introduced = known.introduced.remove(number);
            if was_introduced {
                known.unhelped.insert(number);
            }
            let was_placed = known.placed.remove(number);
            // Whoever waits in the plan says nothing of those who have it.
            known.complaints += u64::from(was_introduced);
            complained |= was_introduced || was_placed;
            if was_placed || held {
                unhelped.push(*pack);
            }
            if !again && !held {
                fresh.push(*pack);
            }
        }
        if let Some(wanted) = self.artifacts.get_mut(&artifact) {
            wanted.wanters.insert(number);
            for pack in unhelped {
                let Some(stripe) = wanted.plan.stripe(&pack) else { continue };
                if wanted.plan.ahead(number, stripe).is_none() {
                    continue;
                }
                // Those behind this node will say the same: the first of them is right. Until then it waits.
                wanted.complaints.entry((number, stripe)).or_insert(due);
                if let Some(known) = self.packs.get_mut(&pack) {
                    known.placed.insert(number);
                }
            }
            if !fresh.is_empty() {
                wanted.comes(number);
                wanted.unplanned.entry(number).or_default().extend(fresh);
            }
        }
        if complained && let Some(node) = self.node_mut(number) {
            node.peers.clear();
        }
    }

    pub(super) fn ticket_done(&mut self, node: &NodeId, artifact: ArtifactId, pack: PackId, ok: bool) {
        let Some(&number) = self.numbers.get(node) else { return };
        if ok {
            self.touch(pack, artifact);
            self.gain(pack, number);
            self.has_all_of(pack, number);
            self.give_back(pack, number);
            return;
        }
        let retry_at = self.now + self.config.ticket_rest;
        let Some(known) = self.packs.get_mut(&pack).filter(|known| known.is_leased_by(number)) else { return };
        known.ticket_after = known.ticket_after.max(retry_at);
        known.root_may = false;
        self.release_failed(pack);
    }

    pub(super) fn accuse(
        &mut self,
        (node, peer): (&NodeId, &NodeId),
        pack: PackId,
        fault: Fault,
        actions: &mut Vec<Action>,
    ) {
        let (Some(&accuser), Some(&accused)) = (self.numbers.get(node), self.numbers.get(peer)) else { return };
        // Whoever passes on what comes has announced it, and wants it still.
        let wants_for = |artifact| self.artifacts.get(artifact).is_some_and(|known| known.wanters.contains(accuser));
        let wants = self.packs.get(&pack).is_some_and(|pack| pack.artifacts.iter().any(wants_for));
        let (now, until) = (self.now, self.now + fault.shunned_for());
        let Some(known) = self.node_mut(accuser) else { return };
        // Only those who were sent there, for a pack that they want, can know.
        if accuser == accused || !wants || !known.peers.contains(accused) {
            return;
        }
        known.forgive(now);
        if !known.shuns(accused) && known.shunned.len() >= SHUNNED_MAX {
            return;
        }
        known.shun(accused, until);
        self.doubt(accuser, accused, &pack, until);
        // It needs another source, or a ticket, at once.
        if let Some(pack) = self.packs.get_mut(&pack) {
            if pack.introduced.remove(accuser) {
                pack.unhelped.insert(accuser);
            }
            pack.settled.remove(accuser);
        }
        self.dirty.insert(pack);
        self.demote_ahead(accuser, accused, &pack);
        if !self.trust.accuse(node, peer, fault, self.now) {
            return;
        }
        if self.banned.insert(accused) {
            for (pack, known) in self.packs.iter_mut().filter(|(_, pack)| pack.holders.contains(accused)) {
                known.begin_anew_unless_held(&self.banned);
                self.dirty.insert(*pack);
            }
            for artifact in self.artifacts.values_mut() {
                artifact.leave_plan(accused);
            }
        }
        if fault == Fault::Lied {
            actions.push(Action::Ban { node: peer.clone() });
        }
    }

    /// One that fails or lies, and of which it is not known how it came by what it says it has. There may be many like it.
    fn doubt(&mut self, accuser: Number, accused: Number, pack: &PackId, until: Time) {
        for artifact in self.artifacts.values_mut() {
            let asked = artifact.plan.root(pack) == Some(accuser) && !artifact.plan.contains(accused);
            if asked && std::mem::replace(&mut artifact.doubted_until, until) <= self.now {
                self.dirty.extend(&artifact.packs);
            }
        }
    }

    /// One that fails or lies has nobody behind it any more on the way by which that was found. The other ways stay as they are: to change all of
    /// them for one fault costs more than it helps.
    fn demote_ahead(&mut self, node: Number, ahead: Number, pack: &PackId) {
        let Some(known) = self.packs.get(pack) else { return };
        let mut ways = Vec::new();
        for id in known.artifacts.clone() {
            let Some(artifact) = self.artifacts.get_mut(&id) else { continue };
            let Some(stripe) = artifact.plan.stripe(pack) else { continue };
            if artifact.plan.ahead(node, stripe) == Some(ahead) {
                artifact.judged.insert((node, stripe), self.now);
                artifact.plan.demote(ahead, stripe, &mut artifact.changed);
                ways.push((id, stripe));
            }
        }
        self.take_tickets_back(ahead, &ways);
    }

    /// Those by which nothing came yet, and those of the packs of ways on which it holds up others: what it has of these helps nobody.
    pub(super) fn take_tickets_back(&mut self, node: Number, ways: &[(ArtifactId, Stripe)]) {
        let goes = |pack: &PackId, (artifact, stripe): &(ArtifactId, Stripe)| {
            self.artifacts.get(artifact).is_some_and(|known| known.plan.stripe(pack) == Some(*stripe))
        };
        let is_late = |pack: &PackId| ways.iter().any(|way| goes(pack, way));
        let is_over = |pack: &&PackId| {
            let lease = self.packs.get(*pack).and_then(|known| known.lease.as_ref());
            lease.is_some_and(|lease| lease.node == node && (lease.begun_at.is_none() || is_late(pack)))
        };
        let over: Vec<PackId> = self.leased.iter().filter(is_over).copied().collect();
        for pack in over {
            self.lose(pack, node);
            self.release_failed(pack);
        }
    }

    /// Those whose ban is over are sources again.
    pub(super) fn end_bans(&mut self) {
        for node in self.trust.ended(self.now) {
            let Some(&number) = self.numbers.get(&node) else { continue };
            self.banned.remove(number);
            self.dirty.extend(self.packs.iter().filter(|(_, pack)| pack.holders.contains(number)).map(|(id, _)| *id));
        }
    }

    pub(super) fn done(&mut self, node: &NodeId, artifact: ArtifactId) {
        let Some(&number) = self.numbers.get(node) else { return };
        let Some(known) = self.artifacts.get_mut(&artifact) else { return };
        known.wanters.remove(number);
        known.unplanned.remove(&number);
        known.complaints.retain(|(node, _), _| *node != number);
        for pack in known.packs.clone() {
            if let Some(pack) = self.packs.get_mut(&pack).filter(|pack| pack.holders.contains(number)) {
                pack.whole.insert(number);
            }
            let elsewhere = |artifact| self.artifacts.get(artifact).is_some_and(|a| a.wanters.contains(number));
            if self.packs.get(&pack).is_some_and(|pack| !pack.artifacts.iter().any(elsewhere)) {
                self.unwant(pack, number);
                self.give_back(pack, number);
            }
        }
    }

    /// The pack, named together with this artifact; it will be looked at.
    fn touch(&mut self, pack: PackId, artifact: ArtifactId) -> &mut Pack {
        self.dirty.insert(pack);
        let (now, gather) = (self.now, self.config.gather);
        let named = self.artifacts.entry(artifact).or_default();
        named.packs.insert(pack);
        let root_may = *named.since.get_or_insert(now) + gather <= now;
        let ticket_after = now + gather;
        let known = self.packs.entry(pack).or_insert_with(|| Pack { ticket_after, root_may, ..Pack::new(now) });
        known.artifacts.insert(artifact);
        known
    }

    fn gain(&mut self, pack: PackId, number: Number) {
        let now = self.now;
        let Some(known) = self.packs.get_mut(&pack) else { return };
        if !known.holders.insert(number) {
            return;
        }
        for id in &known.artifacts {
            // What others say they have moves nobody.
            if let Some(artifact) = self.artifacts.get_mut(id).filter(|artifact| artifact.plan.contains(number)) {
                artifact.plan.begin(&pack);
            }
        }
        let lease = known.lease.as_mut().filter(|lease| lease.node == number);
        let by_ticket = lease.map(|lease| lease.begun_at.get_or_insert(now)).is_some();
        if known.said.insert(number) {
            known.failed.clear();
            (known.moved_at, known.complaints, known.stalls) = (now, 0, 0);
        }
        if by_ticket && let Some(node) = self.node_mut(number) {
            node.ticket_used_at = now;
        }
        self.unwant(pack, number);
    }

    fn has_all_of(&mut self, pack: PackId, number: Number) {
        if let Some(known) = self.packs.get_mut(&pack) {
            known.whole.insert(number);
        }
    }

    /// Whether it had it.
    fn lose(&mut self, pack: PackId, number: Number) -> bool {
        let Some(known) = self.packs.get_mut(&pack) else { return false };
        let held = known.holders.remove(number);
        known.whole.remove(number);
        if held {
            known.begin_anew_unless_held(&self.banned);
            self.dirty.insert(pack);
        }
        held
    }

    fn unwant(&mut self, pack: PackId, number: Number) {
        let Some(known) = self.packs.get_mut(&pack) else { return };
        let those =
            [&mut known.placed, &mut known.introduced, &mut known.settled, &mut known.unhelped, &mut known.failed];
        for bits in those.into_iter().chain([&mut known.stranded]) {
            bits.remove(number);
        }
        if known.wanters.remove(number) {
            self.dirty.insert(pack);
        }
    }

    /// A ticket that this node has is no more.
    fn give_back(&mut self, pack: PackId, number: Number) {
        if self.packs.get(&pack).is_some_and(|known| known.is_leased_by(number)) {
            self.release(pack);
        }
    }

    /// Ends the pack's lease, by which nothing came of it.
    pub(super) fn release_failed(&mut self, pack: PackId) {
        if let Some(known) = self.packs.get_mut(&pack)
            && let Some(lease) = &known.lease
        {
            known.failed.insert(lease.node);
        }
        self.release(pack);
    }

    /// Ends the pack's lease.
    pub(super) fn release(&mut self, pack: PackId) {
        let lease = self.packs.get_mut(&pack).and_then(|known| known.lease.take());
        if let Some(lease) = lease {
            self.leased.remove(&pack);
            self.dirty.insert(pack);
            if let Some(node) = self.node_mut(lease.node) {
                node.leases -= 1;
            }
        }
    }

    /// Nobody has it and nobody wants it.
    pub(super) fn forget(&mut self, pack: PackId) {
        self.short.remove(&pack);
        let Some(known) = self.packs.remove(&pack) else { return };
        for id in known.artifacts {
            if let Some(artifact) = self.artifacts.get_mut(&id) {
                artifact.packs.remove(&pack);
                artifact.plan.forget(&pack);
                if artifact.packs.is_empty() {
                    self.artifacts.remove(&id);
                }
            }
        }
    }
}
