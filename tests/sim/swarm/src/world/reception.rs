//! The table of who has which pack, and the packs on their way.
//!
//! ```text
//!   cell (node, pack):   lacking ──▶ reception ──▶ stored
//!
//!   reception:   Resting ──request──▶ Asked ──▶ Running ──▶ (stored)
//!                   ▲                   ├─────▶ Held       at a peer that wants the pack itself and has nothing of it yet
//!                   └──── failed ───────┴─────▶ Deaf       nobody will answer
//! ```
//!
//! A pack is on its way to a node from one source at a time, so a cell has one reception at most. Those that feed on it, or wait
//! for its first block, are its children: a list that runs through them.

use crate::{policy::From, queue::Nanos};

pub(super) const NONE: u32 = u32::MAX;
const STORED: u32 = u32::MAX - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Resting,
    Asked,
    Running,
    Held,
    Deaf,
}

/// What a node has of a pack, or will have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell {
    Lacking,
    Coming(u32),
    Stored,
}

/// What every step looks at comes first: it is one line of the processor's cache.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(super) struct Reception {
    /// Bytes at `since`, and how many a second came before.
    pub(super) have: f64,
    pub(super) since: Nanos,
    pub(super) was: f64,
    /// What the rate will be once rates are shared out for the first time.
    pub(super) expected: f64,
    /// Its place among the flows.
    pub(super) flow: u32,
    /// The reception that it feeds on or waits for; `NONE` if the source has the whole pack.
    pub(super) upstream: u32,
    pub(super) node: u32,
    pub(super) pack: u32,
    pub(super) began_step: u32,
    /// Counts its requests: what is due for an earlier one is void.
    pub(super) attempt: u32,
    pub(super) first_child: u32,
    pub(super) state: State,
    /// The first block is there and is passed on.
    pub(super) begun: bool,
    /// The policy was told so of this attempt.
    pub(super) told: bool,
    pub(super) from: From,
    next: u32,
    previous: u32,
    /// It would have ended in this one, had its source had all.
    pub(super) late_step: u32,
    pub(super) attempt_have: f64,
    pub(super) window_at: Nanos,
    pub(super) window_have: f64,
    pub(super) goodput: f64,
}

#[derive(Debug)]
pub(super) struct Receptions {
    all: Vec<Reception>,
    free: Vec<u32>,
    cells: Vec<u32>,
    packs: u32,
}

impl std::ops::Index<u32> for Receptions {
    type Output = Reception;

    fn index(&self, id: u32) -> &Reception {
        &self.all[id as usize]
    }
}

impl std::ops::IndexMut<u32> for Receptions {
    fn index_mut(&mut self, id: u32) -> &mut Reception {
        &mut self.all[id as usize]
    }
}

impl Receptions {
    pub(super) fn new(nodes: u32, packs: u32) -> Self {
        let cells = vec![NONE; nodes as usize * packs as usize];
        Self { all: Vec::new(), free: Vec::new(), cells, packs }
    }

    pub(super) fn len(&self) -> u32 {
        self.all.len() as u32
    }

    pub(super) fn cell(&self, node: u32, pack: u32) -> Cell {
        match self.cells[self.place(node, pack)] {
            NONE => Cell::Lacking,
            STORED => Cell::Stored,
            id => Cell::Coming(id),
        }
    }

    pub(super) fn set_stored(&mut self, node: u32, pack: u32) {
        let place = self.place(node, pack);
        self.cells[place] = STORED;
    }

    pub(super) fn stored(&self, node: u32) -> impl Iterator<Item = u32> {
        (0..self.packs).filter(move |pack| self.cell(node, *pack) == Cell::Stored)
    }

    pub(super) fn lacking(&self, node: u32) -> impl Iterator<Item = u32> {
        (0..self.packs).filter(move |pack| self.cell(node, *pack) != Cell::Stored)
    }

    /// Those of one node.
    pub(super) fn of(&self, node: u32) -> impl Iterator<Item = u32> {
        (0..self.packs).filter_map(move |pack| match self.cell(node, pack) {
            Cell::Coming(id) => Some(id),
            _ => None,
        })
    }

    /// That of a node that lacks the pack, made if there is none.
    pub(super) fn get_or_make(&mut self, node: u32, pack: u32) -> u32 {
        if let Cell::Coming(id) = self.cell(node, pack) {
            return id;
        }
        let fresh = |attempt| Reception {
            node,
            pack,
            from: From::Bucket,
            state: State::Resting,
            begun: false,
            told: false,
            late_step: 0,
            attempt,
            upstream: NONE,
            first_child: NONE,
            next: NONE,
            previous: NONE,
            flow: NONE,
            began_step: 0,
            have: 0.0,
            since: 0,
            was: 0.0,
            expected: 0.0,
            attempt_have: 0.0,
            window_at: 0,
            window_have: 0.0,
            goodput: 1.0,
        };
        let id = match self.free.pop() {
            Some(id) => {
                // What is due for its predecessor must not hit it.
                self[id] = fresh(self[id].attempt + 1);
                id
            }
            None => {
                self.all.push(fresh(0));
                self.all.len() as u32 - 1
            }
        };
        let place = self.place(node, pack);
        self.cells[place] = id;
        id
    }

    /// The pack is complete: its place is free for another.
    pub(super) fn store(&mut self, id: u32) {
        let (node, pack) = (self[id].node, self[id].pack);
        self.set_stored(node, pack);
        self.set_free(id);
    }

    /// Forgets a reception of which nothing came, which nobody asked for and nobody waits for.
    pub(super) fn tidy(&mut self, id: u32) {
        let reception = &self[id];
        if reception.state == State::Resting && reception.have == 0.0 && reception.first_child == NONE {
            let place = self.place(reception.node, reception.pack);
            self.cells[place] = NONE;
            self.set_free(id);
        }
    }

    /// `child` feeds on it or waits for it from now on.
    pub(super) fn link(&mut self, child: u32, upstream: u32) {
        let first = self[upstream].first_child;
        let reception = &mut self[child];
        (reception.upstream, reception.previous, reception.next) = (upstream, NONE, first);
        if first != NONE {
            self[first].previous = child;
        }
        self[upstream].first_child = child;
    }

    pub(super) fn unlink(&mut self, child: u32) {
        let Reception { upstream, previous, next, .. } = self[child];
        if upstream == NONE {
            return;
        }
        match previous {
            NONE => self[upstream].first_child = next,
            previous => self[previous].next = next,
        }
        if next != NONE {
            self[next].previous = previous;
        }
        let reception = &mut self[child];
        (reception.upstream, reception.previous, reception.next) = (NONE, NONE, NONE);
        self.tidy(upstream);
    }

    /// The next of the children that `upstream` has.
    pub(super) fn next_child(&self, child: u32) -> u32 {
        self[child].next
    }

    fn set_free(&mut self, id: u32) {
        self[id].state = State::Free;
        self.free.push(id);
    }

    fn place(&self, node: u32, pack: u32) -> usize {
        node as usize * self.packs as usize + pack as usize
    }
}
