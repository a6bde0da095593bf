//! Whose pack is copied next: fairly by bytes between those that have some, within a rate, and no pack twice at once. Pure.
//!
//! Each [`Source`] has asks that wait in their order. The source that was served fewest bytes is next (start-time fair queueing: one
//! that comes later begins where the others are, so it neither catches up nor waits). An ask whose pack is being copied
//! already waits for that, and finds the pack there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use longshore_schemas::{ArtifactId, JobId, PackId};
use longshore_swarm_policy::Rate;

use crate::levels::Moment;

/// Whom a pack is copied for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// An artifact that the region must have.
    Artifact(ArtifactId),
    /// A build's attempt that still runs.
    Attempt(JobId, u32),
}

/// An ask, and later the turn that it was given.
pub type Ticket = u64;

/// What [`Turns::next`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This one's turn is now.
    Go(Ticket),
    /// Nothing before this moment, if nothing changes.
    NotBefore(Moment),
    /// Nothing before something changes.
    Nothing,
}

#[derive(Debug)]
struct Ask {
    ticket: Ticket,
    pack: PackId,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Line {
    /// In virtual bytes.
    served: u64,
    waiting: VecDeque<Ask>,
    running: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Turns {
    at_once_max: usize,
    rate: Rate,
    lines: BTreeMap<Source, Line>,
    running: BTreeMap<Ticket, (Source, Ask)>,
    /// Packs that are being copied.
    packs: BTreeSet<PackId>,
    /// Where the source stood that was served last.
    served: u64,
    tickets: Ticket,
}

impl Turns {
    pub fn new(at_once_max: usize, rate: Rate) -> Self {
        let (lines, running, packs) = Default::default();
        Self { at_once_max: at_once_max.max(1), rate, lines, running, packs, served: 0, tickets: 0 }
    }

    pub fn set_rate(&mut self, bytes_per_second: u64) {
        self.rate.set(bytes_per_second);
    }

    pub fn ask(&mut self, source: &Source, pack: PackId, bytes: u64) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        let line = self.lines.entry(source.clone()).or_insert_with(|| Line { served: self.served, ..Line::default() });
        line.waiting.push_back(Ask { ticket, pack, bytes });
        ticket
    }

    /// To be asked until it gives no more turns.
    pub fn next(&mut self, now: Moment) -> Next {
        if self.running.len() >= self.at_once_max {
            return Next::Nothing;
        }
        let Self { lines, packs, .. } = &*self;
        let first = |line: &Line| line.waiting.iter().position(|ask| !packs.contains(&ask.pack));
        let able = lines.iter().filter_map(|(source, line)| Some((line.served, source, first(line)?)));
        let Some((served, source, at)) = able.min() else { return Next::Nothing };
        if self.rate.free_at() > now {
            return Next::NotBefore(self.rate.free_at());
        }
        let source = source.clone();
        let line = self.lines.get_mut(&source).expect("it was found there");
        let ask = line.waiting.remove(at).expect("it was found there");
        line.served = line.served.saturating_add(ask.bytes);
        line.running += 1;
        self.served = served;
        self.rate.take(ask.bytes, now);
        self.packs.insert(ask.pack);
        let ticket = ask.ticket;
        self.running.insert(ticket, (source, ask));
        Next::Go(ticket)
    }

    /// The turn is over, or whoever asked wants it no more. `moved` bytes count; of what was not moved nothing does.
    pub fn end(&mut self, ticket: Ticket, moved: u64) {
        let source = match self.running.remove(&ticket) {
            Some((source, ask)) => {
                self.packs.remove(&ask.pack);
                let unused = ask.bytes.saturating_sub(moved);
                self.rate.give_back(unused);
                if let Some(line) = self.lines.get_mut(&source) {
                    line.running -= 1;
                    line.served = line.served.saturating_sub(unused);
                }
                source
            }
            None => {
                let waits = |line: &Line| line.waiting.iter().position(|ask| ask.ticket == ticket);
                let Some((source, at)) =
                    self.lines.iter().find_map(|(source, line)| Some((source.clone(), waits(line)?)))
                else {
                    return;
                };
                if let Some(line) = self.lines.get_mut(&source) {
                    line.waiting.remove(at);
                }
                source
            }
        };
        if self.lines.get(&source).is_some_and(|line| line.running == 0 && line.waiting.is_empty()) {
            self.lines.remove(&source);
        }
    }

    /// How many are being copied.
    pub fn running(&self) -> usize {
        self.running.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const UNLIMITED: u64 = u64::MAX;

    enum Do {
        /// Source, pack, bytes.
        Ask(&'static str, u8, u64),
        /// What was asked for as the nth ends, with so many bytes moved.
        End(u64, u64),
        /// Every turn that there is in this second, by what was asked for as the nth.
        Now(u64, &'static str),
    }
    use Do::*;

    fn source(name: &str) -> Source {
        match name.parse() {
            Ok(job) => Source::Attempt(job, 1),
            Err(_) => Source::Artifact(ArtifactId::of(name.as_bytes())),
        }
    }

    fn check(at_once: usize, rate: u64, script: &[Do]) {
        let mut turns = Turns::new(at_once, Rate::new(rate));
        for (row, step) in script.iter().enumerate() {
            match step {
                Ask(of, pack, bytes) => drop(turns.ask(&source(of), PackId::of(&[*pack]), *bytes)),
                End(ticket, moved) => turns.end(*ticket, *moved),
                Now(at, expected) => {
                    let now = SECOND * u32::try_from(*at).expect("small");
                    let mut shown = Vec::new();
                    loop {
                        match turns.next(now) {
                            Next::Go(ticket) => shown.push(ticket.to_string()),
                            Next::NotBefore(moment) => {
                                break shown.push(format!("not before {:.1}", moment.as_secs_f64()));
                            }
                            Next::Nothing => break,
                        }
                    }
                    assert_eq!(shown.join(" "), *expected, "row {row}");
                }
            }
        }
    }

    #[test]
    fn sources_take_turns_by_bytes() {
        check(
            1,
            UNLIMITED,
            &[
                Ask("one", 1, 8),
                Ask("one", 2, 8),
                Ask("one", 3, 8),
                Now(0, "1"),
                Ask("two", 4, 2),
                Ask("two", 5, 2),
                Ask("two", 6, 2),
                Ask("q-1", 7, 8),
                End(1, 8),
                // The others begin where the first began: both are served what it was before it is its turn again.
                Now(0, "4"),
                End(4, 2),
                Now(0, "7"),
                End(7, 8),
                Now(0, "5"),
                End(5, 2),
                Now(0, "6"),
                End(6, 2),
                Now(0, "2"),
                End(2, 8),
                Now(0, "3"),
            ],
        );
    }

    #[test]
    fn so_many_at_once_and_what_was_not_moved_does_not_count() {
        check(
            2,
            UNLIMITED,
            &[
                Ask("one", 1, 8),
                Ask("one", 2, 8),
                Ask("two", 3, 8),
                Ask("two", 4, 8),
                Now(0, "1 3"),
                End(1, 0),
                Now(0, "2"),
                End(3, 8),
                End(2, 0),
                Ask("one", 5, 8),
                // The turns of "one" moved nothing, so it comes first.
                Now(0, "5 4"),
            ],
        );
    }

    #[test]
    fn no_pack_is_copied_twice_at_once() {
        check(
            8,
            UNLIMITED,
            &[
                Ask("one", 1, 8),
                Ask("two", 1, 8),
                Ask("two", 2, 8),
                Now(0, "1 3"),
                End(3, 8),
                Now(0, ""),
                End(1, 8),
                Now(0, "2"),
            ],
        );
    }

    #[test]
    fn who_gave_up_is_asked_no_more() {
        check(
            1,
            UNLIMITED,
            &[
                Ask("one", 1, 8),
                Ask("one", 2, 8),
                Ask("one", 3, 8),
                Now(0, "1"),
                End(2, 0),
                End(1, 8),
                Now(0, "3"),
                End(9, 0),
                End(3, 8),
                Now(0, ""),
            ],
        );
    }

    #[test]
    fn the_rate_holds_over_time_and_what_was_not_moved_is_given_back() {
        check(
            8,
            8,
            &[
                Ask("one", 1, 16),
                Ask("one", 2, 16),
                Ask("one", 3, 16),
                Ask("one", 4, 16),
                Now(10, "1 not before 11.8"),
                Now(11, "not before 11.8"),
                Now(12, "2 not before 13.8"),
                End(2, 0),
                Now(12, "3 not before 13.8"),
                // A rest is made up for by the burst alone.
                Now(100, "4"),
                Ask("one", 5, 16),
                Now(100, "not before 101.8"),
            ],
        );
    }

    /// Whoever asks whatever: bytes are shared, and all get through.
    #[test]
    fn long_runs_are_fair() {
        let mut turns = Turns::new(3, Rate::new(UNLIMITED));
        let (mut of, mut served, mut packs) = (BTreeMap::new(), [0_u64; 3], 0_u32);
        let mut seed = 7_u64;
        let mut dice = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for _ in 0..3_000 {
            for (index, name) in ["one", "two", "q-1"].into_iter().enumerate() {
                packs += 1;
                let bytes = 1 + dice(1_000) * (index as u64 + 1);
                of.insert(turns.ask(&source(name), PackId::of(&packs.to_le_bytes()), bytes), (index, bytes));
            }
        }
        let mut running = Vec::new();
        while served.iter().sum::<u64>() < 2_000_000 {
            while let Next::Go(ticket) = turns.next(Moment::ZERO) {
                running.push(ticket);
            }
            let done = running.swap_remove(usize::try_from(dice(running.len() as u64)).expect("small"));
            let (index, bytes) = of[&done];
            served[index] += bytes;
            turns.end(done, bytes);
            let (least, most) = (served.iter().min().expect("three"), served.iter().max().expect("three"));
            assert!(most - least <= 4 * 3_000, "{served:?}");
        }
        assert!(turns.running() <= 3);
    }
}
