//! One artifact's ways through the region: from whom each node that wants it will get which packs, known before anybody has them.
//!
//! ```text
//!   packs ─▶ 8 stripes, dealt in turn           one stripe: a chain through each rack, the racks in a heap
//!
//!                  bucket ─▶ a1 ─▶ a2 ─▶ a3 ─▶ a4                 (rack a; a1 reads the bucket for this stripe)
//!                                   │     └──▶ c1 ─▶ c2 …         (rack c, entered once)
//!                                   └──▶ b1 ─▶ b2 …               (rack b, entered once)
//! ```
//!
//! - A node gets each stripe from one other, and different stripes from different ones: its place in each chain is another. A pack enters a rack once.
//! - In a chain each passes a pack on once, which is the least that there is to do for all; who feeds another rack is chosen among those who have
//!   least to do, such as the ends of other chains. So all pass on about as much, in whatever order they came.
//! - Whoever comes takes a place somewhere in each chain, and whoever leaves closes the gap: the one behind is told anew.
//! - Who does not help the one behind goes to the chain's end, where nobody is behind. So nobody ever waits for one who waits for him.
//! - A rack of many nodes counts as several: a chain's length is time.
//!
//! It does not know who has what. Whoever is in the plan has each pack of the artifact, or wants it.

use std::collections::{BTreeMap, BTreeSet};

use longshore_schemas::{PackId, RackName, stream::Planned};

use super::state::Number;
use crate::{mix, name_number, pack_number};

/// Of an artifact. More would spread the work more evenly, and give each node more peers.
const STRIPES: usize = 8;
/// Racks that are fed by one rack.
const FAN_OUT: usize = 2;
/// Nodes of a rack in one chain.
const CHAIN_MAX: usize = 48;
/// Of a chain's first nodes, as many are compared before one feeds another rack.
const GATES: usize = 8;
/// After nodes came, so many rows are looked at once more, some of them several times, to spread the rest of the work evenly.
const SPREAD_MAX: usize = 4_000;

/// Longer than any way.
const WAY_MAX: usize = 1_000;

pub(super) type Stripe = usize;
/// Nodes whose source of a stripe is another one now, and whether the one before is of no more use.
pub(super) type Changed = BTreeMap<(Number, Stripe), bool>;

#[derive(Debug, Default)]
pub(super) struct Plan {
    ways: [Way; STRIPES],
    stripe_of: BTreeMap<PackId, Stripe>,
    members: BTreeMap<Number, Member>,
    /// The rows of each rack; the last one takes whoever comes.
    rows: BTreeMap<RackName, Vec<Row>>,
    /// Nodes of each row, and how many rows it feeds, over all stripes.
    row_sizes: Vec<usize>,
    row_duties: Vec<u32>,
}

/// A rack, or a part of a large one.
type Row = usize;

/// How one stripe goes.
#[derive(Debug, Default)]
struct Way {
    packs: BTreeSet<PackId>,
    /// Rows in the order of their heap.
    heap: Vec<Row>,
    chains: BTreeMap<Row, Chain>,
    /// Somebody got some of it, or is about to: who is first of a chain stays that.
    begun: bool,
    /// Somebody was found not to help: whoever is at an end for that stays there.
    has_demoted: bool,
}

#[derive(Debug, Default)]
struct Chain {
    /// In the heap.
    place: usize,
    nodes: Vec<Number>,
}

impl Way {
    /// Places cost nothing yet, and nobody is where it is for a reason.
    fn is_open(&self) -> bool {
        !self.begun && !self.has_demoted
    }
}

impl Chain {
    /// Those of whom one feeds another row.
    fn gates(&self) -> &[Number] {
        &self.nodes[..self.nodes.len().min(GATES)]
    }
}

#[derive(Debug)]
struct Member {
    row: Row,
    /// By stripe, in half the room: see [`Plan::ahead`]. None: it gets it from the bucket.
    parents: [Option<u32>; STRIPES],
    /// To how many it passes on, over all stripes.
    duty: u32,
}

impl Plan {
    pub(super) fn contains(&self, node: Number) -> bool {
        self.members.contains_key(&node)
    }

    /// Deals these packs to the stripes, those that are not dealt yet.
    pub(super) fn deal(&mut self, packs: &[PackId]) {
        let fresh = packs.iter().filter(|pack| !self.stripe_of.contains_key(pack));
        let in_order: BTreeSet<_> = fresh.map(|pack| (pack_number(pack), *pack)).collect();
        for (_, pack) in in_order {
            let stripe = self.stripe_of.len() % STRIPES;
            self.stripe_of.insert(pack, stripe);
            self.ways[stripe].packs.insert(pack);
        }
    }

    pub(super) fn forget(&mut self, pack: &PackId) {
        if let Some(stripe) = self.stripe_of.remove(pack) {
            self.ways[stripe].packs.remove(pack);
        }
    }

    pub(super) fn packs(&self, stripe: Stripe) -> impl Iterator<Item = &PackId> {
        self.ways[stripe].packs.iter()
    }

    /// Somebody got some of this pack, or is about to read it from the bucket.
    pub(super) fn begin(&mut self, pack: &PackId) {
        if let Some(stripe) = self.stripe_of.get(pack) {
            self.ways[*stripe].begun = true;
        }
    }

    /// From whom this node gets this pack.
    pub(super) fn parent(&self, node: Number, pack: &PackId) -> Option<Number> {
        self.ahead(node, self.stripe(pack)?)
    }

    /// Who reads this pack from the bucket for all others.
    pub(super) fn root(&self, pack: &PackId) -> Option<Number> {
        self.reader(self.stripe(pack)?)
    }

    /// Who is first of all in a stripe.
    fn reader(&self, stripe: Stripe) -> Option<Number> {
        self.first_of(stripe).first().copied()
    }

    /// That one, and those who are next.
    pub(super) fn first_of(&self, stripe: Stripe) -> &[Number] {
        let way = &self.ways[stripe];
        let mut rows = way.heap.iter().filter_map(|row| Some(&way.chains.get(row)?.nodes[..]));
        rows.find(|nodes| !nodes.is_empty()).unwrap_or_default()
    }

    /// As a node is told of it.
    pub(super) fn planned(&self, pack: &PackId, at_once: bool) -> Option<Planned> {
        Some(Planned { stripe: u8::try_from(self.stripe(pack)?).ok()?, at_once })
    }

    pub(super) fn stripe(&self, pack: &PackId) -> Option<Stripe> {
        self.stripe_of.get(pack).copied()
    }

    /// The one ahead of this node in a stripe does not help it: that one goes to the end of its chain, where nobody is behind it. Answers who that is.
    pub(super) fn demote_ahead(&mut self, node: Number, stripe: Stripe, changed: &mut Changed) -> Option<Number> {
        let ahead = self.ahead(node, stripe)?;
        self.demote(ahead, stripe, changed);
        Some(ahead)
    }

    pub(super) fn demote(&mut self, node: Number, stripe: Stripe, changed: &mut Changed) {
        let Some(row) = self.members.get(&node).map(|member| member.row) else { return };
        self.ways[stripe].has_demoted = true;
        self.close_gap(stripe, row, node, changed);
        let Some(chain) = self.ways[stripe].chains.get_mut(&row) else { return };
        let last = chain.nodes.last().copied();
        chain.nodes.push(node);
        let ahead = last.or_else(|| self.gate_above(stripe, row));
        self.give(stripe, node, ahead, changed);
        // At once: who still got it from one that is demoted later would wait for that one, which waits for it.
        changed.insert((node, stripe), true);
    }

    /// From whom a node gets a stripe.
    pub(super) fn ahead(&self, node: Number, stripe: Stripe) -> Option<Number> {
        self.members.get(&node)?.parents[stripe].map(|parent| parent as Number)
    }

    /// Whether one node is on the way of a pack to another.
    pub(super) fn is_ahead(&self, node: Number, of: Number, pack: &PackId) -> bool {
        let Some(stripe) = self.stripe(pack) else { return false };
        std::iter::successors(Some(of), |node| self.ahead(*node, stripe))
            .skip(1)
            .take(WAY_MAX)
            .any(|ahead| ahead == node)
    }

    /// Takes nodes in.
    pub(super) fn admit(&mut self, newcomers: &[(Number, RackName)], changed: &mut Changed) {
        for (number, rack) in newcomers {
            let row = self.row_of(rack);
            self.members.insert(*number, Member { row, parents: [None; STRIPES], duty: 0 });
        }
        let rows: BTreeSet<Row> =
            newcomers.iter().filter_map(|(number, _)| Some(self.members.get(number)?.row)).collect();
        for stripe in 0..STRIPES {
            for row in &rows {
                self.add_row(stripe, *row, changed);
            }
            let mut in_turn: Vec<Number> = newcomers.iter().map(|(number, _)| *number).collect();
            in_turn.sort_by_key(|number| mix(*number as u64, stripe as u64));
            for number in in_turn {
                self.insert(stripe, number, changed);
            }
        }
        for stripe in (0..STRIPES).filter(|_| !rows.is_empty()) {
            self.share_bucket(stripe, changed);
        }
        for stripe in (0..STRIPES).chain(0..STRIPES) {
            for row in &rows {
                self.even_out(stripe, *row, changed);
                self.relieve(stripe, *row, changed);
            }
        }
        self.spread_rest(rows, changed);
    }

    /// A new row comes to the end of the heap, or takes the place of one that feeds many, which goes there instead.
    fn add_row(&mut self, stripe: Stripe, row: Row, changed: &mut Changed) {
        let way = &mut self.ways[stripe];
        if way.chains.contains_key(&row) {
            return;
        }
        let end = way.heap.len();
        way.heap.push(row);
        way.chains.insert(row, Chain { place: end, nodes: Vec::new() });
        let Some(above) = end.checked_sub(1).map(|below| below / FAN_OUT) else { return };
        self.row_duties[way.heap[above]] += 1;
        // Whoever is at the root stays there once something came.
        let first = usize::from(way.begun);
        let busiest = (first..=above).max_by_key(|place| (self.row_duties[way.heap[*place]], usize::MAX - place));
        let Some(busiest) = busiest else { return };
        let fed = (1..=FAN_OUT).filter(|child| busiest * FAN_OUT + child <= end).count() as u32;
        if self.row_duties[way.heap[busiest]] <= self.row_duties[row] + fed {
            return;
        }
        let other = way.heap[busiest];
        way.heap.swap(busiest, end);
        self.row_duties[other] -= fed;
        self.row_duties[row] += fed;
        for (row, place) in [(row, busiest), (other, end)] {
            if let Some(chain) = way.chains.get_mut(&row) {
                chain.place = place;
            }
        }
        self.feed_below(stripe, row, changed);
        self.feed(stripe, other, changed);
    }

    /// Sets from whom the first of a row gets a stripe, after something changed above.
    fn feed(&mut self, stripe: Stripe, row: Row, changed: &mut Changed) {
        if let Some(head) = self.head(stripe, row) {
            let gate = self.gate_above(stripe, row);
            self.give(stripe, head, gate, changed);
        }
    }

    /// A part of the rack with room for one more.
    fn row_of(&mut self, rack: &RackName) -> Row {
        let rows = self.rows.entry(rack.clone()).or_default();
        let row = rows.last().copied().filter(|row| self.row_sizes[*row] < CHAIN_MAX);
        let row = row.unwrap_or_else(|| {
            rows.push(self.row_sizes.len());
            self.row_sizes.push(0);
            self.row_duties.push(0);
            self.row_sizes.len() - 1
        });
        self.row_sizes[row] += 1;
        row
    }

    fn insert(&mut self, stripe: Stripe, number: Number, changed: &mut Changed) {
        let Some(row) = self.members.get(&number).map(|member| member.row) else { return };
        let way = &mut self.ways[stripe];
        let Some(chain) = way.chains.get_mut(&row) else { return };
        let first = usize::from(way.begun && !chain.nodes.is_empty());
        let salt = mix(number as u64, name_number("place") ^ stripe as u64);
        let at = first + (salt % (chain.nodes.len() + 1 - first) as u64) as usize;
        let ahead = at.checked_sub(1).map(|ahead| chain.nodes[ahead]);
        let behind = chain.nodes.get(at).copied();
        chain.nodes.insert(at, number);
        let parent = match (ahead, behind) {
            (Some(ahead), _) => Some(ahead),
            // It feeds the row from now on.
            (None, Some(behind)) => self.ahead(behind, stripe),
            (None, None) => self.gate_above(stripe, row),
        };
        if let Some(behind) = behind {
            self.give(stripe, behind, Some(number), changed);
        }
        self.give(stripe, number, parent, changed);
        if let (None, None) = (ahead, behind) {
            // Rows below were fed by one above this one, as long as it was empty.
            self.feed_below(stripe, row, changed);
        }
    }

    fn feed_below(&mut self, stripe: Stripe, row: Row, changed: &mut Changed) {
        for row in self.below(stripe, row) {
            self.feed(stripe, row, changed);
        }
    }

    /// The first node of a row.
    fn head(&self, stripe: Stripe, row: Row) -> Option<Number> {
        self.ways[stripe].chains.get(&row)?.nodes.first().copied()
    }

    fn duty(&self, node: Number) -> u32 {
        self.members.get(&node).map_or(0, |member| member.duty)
    }

    fn below(&self, stripe: Stripe, row: Row) -> Vec<Row> {
        let way = &self.ways[stripe];
        let Some(chain) = way.chains.get(&row) else { return Vec::new() };
        (1..=FAN_OUT).filter_map(|child| way.heap.get(chain.place * FAN_OUT + child)).copied().collect()
    }

    /// The rows below a row that got newcomers are fed by others, if who feeds them is far from the row's beginning now, or has more to do
    /// than another.
    fn even_out(&mut self, stripe: Stripe, row: Row, changed: &mut Changed) {
        for below in self.below(stripe, row) {
            let Some(gate) = self.gate_above(stripe, below) else { continue };
            let Some(head) = self.head(stripe, below) else { continue };
            let gates = self.ways[stripe].chains.get(&row).map_or(&[][..], Chain::gates);
            let is_well = |present| gates.contains(&present) && self.duty(present) <= self.duty(gate) + 1;
            let is_well = self.feeder(stripe, below).is_some_and(is_well);
            if !is_well {
                self.give(stripe, head, Some(gate), changed);
            }
        }
    }

    /// Looks for rows that are left in which one has more to do than others though all could have the same, and tries by chance.
    fn spread_rest(&mut self, mut rows: BTreeSet<Row>, changed: &mut Changed) {
        let mut left = SPREAD_MAX;
        for turn in 0.. {
            rows.retain(|row| self.is_uneven(*row));
            if rows.is_empty() || left < rows.len() {
                return;
            }
            left -= rows.len();
            for stripe in 0..STRIPES {
                for row in &rows {
                    self.hand_over(stripe, *row, turn, changed);
                    self.relieve(stripe, *row, changed);
                }
            }
        }
    }

    fn is_uneven(&self, row: Row) -> bool {
        let Some(chain) = self.ways.iter().find(|way| way.is_open()).and_then(|way| way.chains.get(&row)) else {
            return false;
        };
        let duties = || chain.nodes.iter().map(|node| self.duty(*node));
        let fair = STRIPES as u32;
        duties().any(|duty| duty > fair) && duties().sum::<u32>() <= fair * chain.nodes.len() as u32
    }

    /// Lets another one feed a row instead of one that has too much to do: one who can be relieved where that one cannot, perhaps.
    fn hand_over(&mut self, stripe: Stripe, row: Row, turn: usize, changed: &mut Changed) {
        for below in self.below(stripe, row) {
            let (Some(head), Some(feeder)) = (self.head(stripe, below), self.feeder(stripe, below)) else { continue };
            let way = Some(&self.ways[stripe]).filter(|way| way.is_open());
            let Some(nodes) = way.and_then(|way| Some(&way.chains.get(&row)?.nodes)) else { continue };
            let Some(place) = nodes.iter().position(|node| *node == feeder) else { continue };
            // Whoever is first stays that.
            let end = if place == 0 { nodes.len().min(GATES) } else { nodes.len() - 1 };
            let others = (1..end).filter(|other| self.duty(nodes[*other]) < self.duty(feeder));
            let chance = |other: usize| mix(nodes[other] as u64, turn as u64);
            let other = others.min_by_key(|other| (self.duty(nodes[*other]), chance(*other)));
            if let Some(other) = other.filter(|_| self.duty(feeder) > STRIPES as u32) {
                let number = nodes[other];
                if place > 0 {
                    self.change_places(stripe, row, (place, other), changed);
                }
                self.give(stripe, head, Some(number), changed);
            }
        }
    }

    /// Whoever has most to do of a row is last of its chain, where nobody is behind, instead of one who has less to do even so. Everybody behind a
    /// node that has more to do than others is held up by it. Once something came, a place costs more than it helps.
    fn relieve(&mut self, stripe: Stripe, row: Row, changed: &mut Changed) {
        let way = &self.ways[stripe];
        let Some(nodes) = way.chains.get(&row).map(|chain| &chain.nodes).filter(|_| way.is_open()) else { return };
        let Some(end) = nodes.len().checked_sub(1) else { return };
        let feeding: Vec<Number> = self.below(stripe, row).iter().filter_map(|row| self.feeder(stripe, *row)).collect();
        let movable = (1..end).filter(|place| !feeding.contains(&nodes[*place]));
        let Some(busiest) = movable.max_by_key(|place| self.duty(nodes[*place])) else { return };
        if self.duty(nodes[busiest]) > self.duty(nodes[end]) + 1 && !feeding.contains(&nodes[end]) {
            self.change_places(stripe, row, (busiest, end), changed);
        }
    }

    /// Who feeds a row.
    fn feeder(&self, stripe: Stripe, row: Row) -> Option<Number> {
        self.ahead(self.head(stripe, row)?, stripe)
    }

    /// Whoever reads the bucket for a stripe does so for no other one, if there is somebody else: it reads a few packs at a time, and all others
    /// wait for them.
    fn share_bucket(&mut self, stripe: Stripe, changed: &mut Changed) {
        let readers: Vec<Option<Number>> = (0..STRIPES).map(|stripe| self.reader(stripe)).collect();
        let stripes_of = |node: Number| readers.iter().filter(|reader| **reader == Some(node)).count();
        let way = &self.ways[stripe];
        let Some(reader) = readers[stripe].filter(|reader| way.is_open() && stripes_of(*reader) > 1) else { return };
        let Some(row) = self.members.get(&reader).map(|member| member.row) else { return };
        let Some(nodes) = way.chains.get(&row).map(|chain| &chain.nodes) else { return };
        let other = (1..nodes.len()).min_by_key(|place| stripes_of(nodes[*place]));
        if let Some(other) = other.filter(|place| stripes_of(nodes[*place]) + 1 < stripes_of(reader)) {
            self.change_places(stripe, row, (0, other), changed);
        }
    }

    /// Of two within a chain.
    fn change_places(&mut self, stripe: Stripe, row: Row, (one, other): (usize, usize), changed: &mut Changed) {
        let above = self.feeder(stripe, row);
        let Some(chain) = self.ways[stripe].chains.get_mut(&row) else { return };
        chain.nodes.swap(one, other);
        let behind = |place: usize| {
            let ahead = place.checked_sub(1).map_or(above, |ahead| Some(chain.nodes[ahead]));
            Some((*chain.nodes.get(place)?, ahead))
        };
        let moved: Vec<_> = [one, one + 1, other, other + 1].into_iter().filter_map(behind).collect();
        for (node, ahead) in moved {
            self.give(stripe, node, ahead, changed);
        }
    }

    /// Sets from whom a node gets a stripe.
    fn give(&mut self, stripe: Stripe, node: Number, parent: Option<Number>, changed: &mut Changed) {
        let before = self.ahead(node, stripe);
        let Some(member) = self.members.get_mut(&node) else { return };
        member.parents[stripe] = parent.map(|parent| parent as u32);
        if before == parent {
            return;
        }
        if let Some(before) = before.and_then(|before| self.members.get_mut(&before)) {
            before.duty -= 1;
        }
        if let Some(parent) = parent.and_then(|parent| self.members.get_mut(&parent)) {
            parent.duty += 1;
        }
        changed.entry((node, stripe)).or_insert(false);
    }

    /// Who feeds a row: of the row above it, or of the next one above that which is not empty.
    fn gate_above(&self, stripe: Stripe, row: Row) -> Option<Number> {
        let way = &self.ways[stripe];
        let mut place = way.chains.get(&row)?.place;
        loop {
            place = place.checked_sub(1)? / FAN_OUT;
            let gates = way.chains.get(way.heap.get(place)?)?.gates();
            if let Some(gate) = gates.iter().min_by_key(|number| self.duty(**number)) {
                return Some(*gate);
            }
        }
    }

    /// Takes a node out, whom others have to do without.
    pub(super) fn leave(&mut self, node: Number, changed: &mut Changed) {
        let Some(row) = self.members.get(&node).map(|member| member.row) else { return };
        for stripe in 0..STRIPES {
            self.close_gap(stripe, row, node, changed);
        }
        self.members.remove(&node);
        self.row_sizes[row] -= 1;
        if self.members.is_empty() {
            *self = Self::default();
        }
    }

    fn close_gap(&mut self, stripe: Stripe, row: Row, node: Number, changed: &mut Changed) {
        let parent = self.ahead(node, stripe);
        self.give(stripe, node, None, &mut Changed::new());
        let Some(chain) = self.ways[stripe].chains.get_mut(&row) else { return };
        let Some(at) = chain.nodes.iter().position(|known| *known == node) else { return };
        chain.nodes.remove(at);
        let behind = chain.nodes.get(at).copied();
        if let Some(behind) = behind {
            self.give(stripe, behind, parent, changed);
            changed.insert((behind, stripe), true);
        }
        for (head, row) in self.heads_fed_by(stripe, node) {
            let gate = self.gate_above(stripe, row);
            self.give(stripe, head, gate, changed);
            changed.insert((head, stripe), true);
        }
    }

    fn heads_fed_by(&self, stripe: Stripe, node: Number) -> Vec<(Number, Row)> {
        let fed = |row: &Row| {
            let head = self.head(stripe, *row)?;
            (self.ahead(head, stripe) == Some(node)).then_some((head, *row))
        };
        self.ways[stripe].heap.iter().filter_map(fed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rack(number: usize) -> RackName {
        format!("rack-{number}").parse().expect("valid")
    }

    fn packs(count: usize) -> Vec<PackId> {
        (0..count).map(|n| PackId::of(&n.to_le_bytes())).collect()
    }

    /// Nodes 0, 1, 2 … of some racks in turn, so many at a time.
    fn plan(nodes: usize, racks: usize, at_a_time: usize) -> Plan {
        let mut plan = Plan::default();
        plan.deal(&packs(64));
        let all: Vec<_> = (0..nodes).map(|number| (number, rack(number % racks))).collect();
        for some in all.chunks(at_a_time) {
            plan.admit(some, &mut Changed::new());
        }
        plan
    }

    /// How many hops each node is from the bucket in one stripe; a circle is an error.
    fn depths(plan: &Plan, stripe: Stripe) -> Vec<usize> {
        let depth_of = |mut node: Number| {
            let mut depth = 0;
            while let Some(parent) = plan.ahead(node, stripe) {
                assert!(plan.members.contains_key(&parent), "{node} has a parent that left");
                (node, depth) = (parent, depth + 1);
                assert!(depth <= plan.members.len(), "a circle");
            }
            depth
        };
        plan.members.keys().map(|node| depth_of(*node)).collect()
    }

    /// By rack, how often a stripe comes in from another rack or from the bucket.
    fn entries(plan: &Plan, stripe: Stripe) -> BTreeMap<Row, usize> {
        let mut entries = BTreeMap::new();
        for member in plan.members.values() {
            let parent = member.parents[stripe].map(|parent| plan.members[&(parent as Number)].row);
            *entries.entry(member.row).or_default() += usize::from(parent != Some(member.row));
        }
        entries
    }

    fn check(plan: &Plan) {
        let mut duties: BTreeMap<Number, u32> = BTreeMap::new();
        for stripe in 0..STRIPES {
            let depths = depths(plan, stripe);
            assert_eq!(depths.iter().filter(|depth| **depth == 0).count(), 1, "one reads the bucket");
            assert!(entries(plan, stripe).values().all(|entries| *entries == 1), "a stripe enters a row once");
            for parent in plan.members.keys().filter_map(|node| plan.ahead(*node, stripe)) {
                *duties.entry(parent).or_default() += 1;
            }
        }
        for (node, member) in &plan.members {
            assert_eq!(member.duty, duties.get(node).copied().unwrap_or(0), "of {node}");
        }
    }

    #[test]
    fn all_are_fed_once_by_those_who_have_least_to_do() {
        for (nodes, racks) in [(1, 1), (2, 1), (5, 1), (20, 4), (200, 5), (2_000, 50), (300, 1)] {
            for at_a_time in [1, 7, nodes] {
                let plan = plan(nodes, racks, at_a_time);
                check(&plan);
                let duty_max = plan.members.values().map(|member| member.duty).max().expect("nodes");
                // On average it is a little less than one in each stripe.
                assert!(duty_max <= STRIPES as u32 + 8, "{nodes} in {racks}, {at_a_time} at a time: {duty_max}");
                let depth_max = (0..STRIPES).flat_map(|stripe| depths(&plan, stripe)).max().expect("nodes");
                let rows = plan.row_sizes.len();
                let bound = CHAIN_MAX + GATES * (rows.ilog2() as usize + 1);
                assert!(depth_max <= bound, "{nodes} in {racks}: {depth_max} hops");
            }
        }
    }

    /// One that passes on nine stripes while others pass on eight holds up everybody behind it, in all of them.
    #[test]
    fn nobody_has_more_to_do_than_one_stripe_after_the_other() {
        for (nodes, racks) in [(20, 4), (60, 3), (1_000, 25), (4_000, 100)] {
            for at_a_time in [nodes / 4, nodes] {
                let plan = plan(nodes, racks, at_a_time);
                check(&plan);
                let duty_max = plan.members.values().map(|member| member.duty).max().expect("nodes");
                assert!(duty_max <= STRIPES as u32, "{nodes} in {racks}, {at_a_time} at a time: {duty_max}");
                let readers: BTreeSet<_> = (0..STRIPES).filter_map(|stripe| plan.reader(stripe)).collect();
                assert!(readers.len() >= 5, "{nodes} in {racks}: {} read the bucket", readers.len());
            }
        }
    }

    #[test]
    fn once_something_came_those_who_have_it_keep_their_places() {
        let mut plan = plan(60, 3, 60);
        for pack in packs(64) {
            plan.begin(&pack);
        }
        let order = |plan: &Plan, stripe: Stripe| {
            plan.ways[stripe].chains.values().map(|chain| chain.nodes.clone()).collect::<Vec<_>>()
        };
        let before: Vec<_> = (0..STRIPES).map(|stripe| order(&plan, stripe)).collect();
        let late: Vec<_> = (60..90).map(|number| (number, rack(number % 3))).collect();
        plan.admit(&late, &mut Changed::new());
        check(&plan);
        for (stripe, before) in before.into_iter().enumerate() {
            for (before, mut now) in before.into_iter().zip(order(&plan, stripe)) {
                now.retain(|number| *number < 60);
                assert_eq!(now, before, "stripe {stripe}");
            }
        }
    }

    #[test]
    fn who_leaves_is_closed_up_and_those_behind_are_told() {
        let mut plan = plan(60, 3, 60);
        for leaver in [0, 1, 2, 30, 59, 17, 3, 6, 9] {
            let before: BTreeMap<Number, _> =
                plan.members.iter().map(|(node, member)| (*node, member.parents)).collect();
            let mut changed = Changed::new();
            plan.leave(leaver, &mut changed);
            check(&plan);
            for (node, member) in &plan.members {
                for (stripe, parent) in member.parents.iter().enumerate() {
                    let differs = before[node][stripe] != *parent;
                    assert_eq!(changed.contains_key(&(*node, stripe)), differs, "{node} in {stripe}");
                }
            }
        }
        for leaver in 0..60 {
            plan.leave(leaver, &mut Changed::new());
        }
        assert!(plan.members.is_empty() && plan.rows.is_empty());
    }

    #[test]
    fn who_does_not_help_goes_to_the_end() {
        let mut plan = plan(60, 3, 60);
        let pack = packs(64)[0];
        let stripe = plan.stripe(&pack).expect("dealt");
        let farthest = (0..60).max_by_key(|node| depths(&plan, stripe)[*node]).expect("nodes");
        let way: Vec<Number> = std::iter::successors(Some(farthest), |node| plan.parent(*node, &pack)).collect();
        assert!(way[1..].iter().all(|ahead| plan.is_ahead(*ahead, farthest, &pack)) && way.len() > 10);
        // Up to the one that reads the bucket.
        for ahead in way[1..].iter().rev() {
            let behind = plan.members.keys().find(|node| plan.parent(**node, &pack) == Some(*ahead)).copied();
            let Some(behind) = behind else { continue };
            let mut changed = Changed::new();
            assert_eq!(plan.demote_ahead(behind, stripe, &mut changed), Some(*ahead));
            assert_eq!(changed.get(&(behind, stripe)), Some(&true));
            check(&plan);
            let is_behind = |node: &Number| plan.parent(*node, &pack) == Some(*ahead);
            assert!(plan.members.keys().filter(|node| is_behind(node)).count() <= 1, "at most a row below");
        }
        let mut alone = self::plan(1, 1, 1);
        alone.demote(0, stripe, &mut Changed::new());
        assert_eq!((alone.parent(0, &pack), alone.root(&pack)), (None, Some(0)));
    }

    #[test]
    fn packs_that_follow_each_other_go_different_ways() {
        let plan = plan(20, 4, 20);
        let mut in_order = packs(64);
        in_order.sort_by_key(pack_number);
        for window in in_order.windows(STRIPES) {
            let stripes: BTreeSet<_> = window.iter().map(|pack| plan.stripe_of[pack]).collect();
            assert_eq!(stripes.len(), STRIPES);
        }
        let roots: BTreeSet<_> = in_order.iter().filter_map(|pack| plan.root(pack)).collect();
        assert!(roots.len() > 4, "{} read the bucket", roots.len());
    }
}
