//! What is due when, in the order of time, and of being put in where times are equal.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap},
};

/// Nanoseconds since the run began.
pub(crate) type Nanos = u64;

pub(crate) fn nanos(seconds: f64) -> Nanos {
    (seconds * 1e9).ceil().min(1e18) as Nanos
}

pub(crate) fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

/// Numbers are of nodes, of receptions with their attempt, of racks, or of a place in the post.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Due {
    Arrive(u32),
    Mail(u32),
    Start {
        reception: u32,
        attempt: u32,
    },
    FirstBlock {
        reception: u32,
        attempt: u32,
    },
    Done {
        reception: u32,
        attempt: u32,
    },
    NodeWake(u32),
    TrackerWake,
    /// Sources that give too little are looked for.
    LookOver,
    Die(u32),
    Revive(u32),
    /// The region notices that a node's connection, the one of this number, is gone.
    Notice {
        node: u32,
        connection: u32,
    },
    Reconnect {
        node: u32,
        connection: u32,
    },
    TrackerRestart,
    BucketAway,
    BucketBack,
    Cut(u32),
    Mend(u32),
    Flood(u32),
}

#[derive(Debug)]
struct Entry {
    /// The time, and the order below it: one comparison.
    turn: u128,
    due: Due,
}

impl Ord for Entry {
    /// The heap's greatest is the first.
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        other.turn.cmp(&self.turn)
    }
}

impl PartialOrd for Entry {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.turn == other.turn
    }
}

impl Eq for Entry {}

/// What is due soon is in order; the rest lies in heaps of a millisecond each until its time comes near.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    soon: BinaryHeap<Entry>,
    soon_until: Nanos,
    later: BTreeMap<Nanos, Vec<Entry>>,
    order: u64,
}

/// Of what is put in order together.
const SOON: Nanos = 1_000_000;

impl Queue {
    pub(crate) fn put(&mut self, at: Nanos, due: Due) {
        self.order += 1;
        let entry = Entry { turn: u128::from(at) << 64 | u128::from(self.order), due };
        if at < self.soon_until {
            self.soon.push(entry);
        } else {
            self.later.entry(at / SOON).or_default().push(entry);
        }
    }

    pub(crate) fn next_at(&mut self) -> Option<Nanos> {
        if self.soon.is_empty()
            && let Some((number, entries)) = self.later.pop_first()
        {
            self.soon = entries.into();
            self.soon_until = (number + 1) * SOON;
        }
        self.soon.peek().map(Entry::at)
    }

    pub(crate) fn take_before(&mut self, end: Nanos) -> Option<(Nanos, Due)> {
        if self.next_at()? >= end {
            return None;
        }
        self.soon.pop().map(|entry| (entry.at(), entry.due))
    }
}

impl Entry {
    fn at(&self) -> Nanos {
        (self.turn >> 64) as Nanos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_the_order_of_time_and_then_of_being_put_in() {
        let mut queue = Queue::default();
        for (at, node) in [(5, 0), (3, 1), (5, 2), (3, 3), (4, 4)] {
            queue.put(at, Due::Arrive(node));
        }
        let mut taken = Vec::new();
        while let Some((at, Due::Arrive(node))) = queue.take_before(5) {
            taken.push((at, node));
        }
        assert_eq!(taken, [(3, 1), (3, 3), (4, 4)]);
        assert_eq!(queue.next_at(), Some(5));
        // Much later, and before what waits for its time.
        for (at, node) in [(5 * SOON, 5), (5 * SOON + 1, 6), (7, 7)] {
            queue.put(at, Due::Arrive(node));
        }
        let rest = std::iter::from_fn(|| queue.take_before(Nanos::MAX).map(|(at, _)| at));
        assert_eq!(rest.collect::<Vec<_>>(), [5, 5, 7, 5 * SOON, 5 * SOON + 1]);
    }
}
