//! Retention, and the operator who is called when it took too much.
//!
//! ```text
//! retention ─▶ requests that are processed: nobody misses them
//!           ─▶ requests of the queue that are not: its leader halts ─▶ operator reads what it says, accepts exactly that
//!           ─▶ facts that a snapshot has: who has not applied them halts ─▶ operator starts it from the snapshot
//! ```
//!
//! Only of the queue requests are lost that nobody has processed: people, and workers by their silence, ask again. What regions and
//! processors tell each other is told once, so who loses that has to deploy anew, which is no matter of a partition.
//!
//! It has chances of its own, so that worlds without it are what they were.

use std::collections::BTreeMap;

use longshore_log::TopicPartition;
use longshore_partition::{
    Role, Wire,
    loss::{Found, Lost, Refused, accept},
    owner,
};
use longshore_queue::Queue;

use crate::{
    check::{Broken, broken},
    control::Slot,
    rng::Rng,
    setting::Kind,
    store::SimStore,
    world::{Event, World},
};

/// Who accepts losses, in facts.
pub(crate) const OPERATOR: &str = "operator";
const EVERY_MILLIS: u64 = 1_000;
/// An operator takes a while to look.
const LOOKS_EVERY_MILLIS: u64 = 7_000;
/// Worlds that have it, in thousandths.
const WORLDS: u64 = 200;

pub(crate) struct Retention {
    rng: Rng,
    /// In thousandths, each second, for a loss.
    losses: u64,
    snapshots: BTreeMap<(Kind, u32), SimStore>,
}

impl Retention {
    /// Of some seeds.
    pub(crate) fn of(seed: u64) -> Option<Self> {
        let mut rng = Rng::new(!seed);
        let losses = 2 + rng.range(0..40);
        rng.chance(WORLDS).then_some(Self { rng, losses, snapshots: BTreeMap::new() })
    }

    /// It takes nothing more that is needed.
    pub(crate) fn calm(&mut self) {
        self.losses = 0;
    }
}

impl World {
    pub(crate) fn begin_retention(&mut self) {
        if self.retention.is_some() {
            self.note("world", "its log forgets");
            self.at(EVERY_MILLIS, Event::Retention);
            self.at(LOOKS_EVERY_MILLIS, Event::Operator);
        }
    }

    /// Throws the dice for what the log forgets this second.
    pub(crate) fn retain(&mut self) {
        self.at(EVERY_MILLIS, Event::Retention);
        let Some(retention) = &mut self.retention else { return };
        let slot = retention.rng.index(self.controls[0].slots.len());
        let (lossy, of_facts) = (retention.rng.chance(retention.losses), retention.rng.chance(300));
        let (kind, partition) = (self.controls[0].slots[slot].kind, self.controls[0].slots[slot].place.partition);
        if lossy && of_facts {
            self.lose_facts(kind, partition);
        } else if lossy {
            let partition = partition % self.setting.partitions(Kind::Queue);
            self.lose_requests(partition);
        } else {
            self.forget_requests(kind, partition);
        }
    }

    /// What is processed is removed, up to somewhere.
    fn forget_requests(&mut self, kind: Kind, partition: u32) {
        let of = TopicPartition::new(kind.requests(), partition);
        let processed = self.checker.applied(kind, partition).request_offset;
        let start = self.log.start(&of).unwrap_or(0);
        let Some(retention) = self.retention.as_mut().filter(|_| processed > start) else { return };
        let start = start + retention.rng.range(0..processed - start + 1);
        self.log.trim(&of, start);
    }

    /// Up to three requests are removed that are not processed, and all before them.
    fn lose_requests(&mut self, partition: u32) {
        let of = TopicPartition::new(Kind::Queue.requests(), partition);
        let processed = self.checker.applied(Kind::Queue, partition).request_offset;
        let waiting = self.log.end(&of).unwrap_or(0).saturating_sub(processed);
        let Some(retention) = self.retention.as_mut().filter(|_| waiting > 0) else { return };
        let start = processed + 1 + retention.rng.range(0..waiting.min(3));
        self.log.trim(&of, start);
        self.checker.lost(partition, processed..start);
        self.note("log", &format!("has lost what was not processed of {of} before {start}"));
    }

    /// The oldest facts are removed, once a snapshot and everyone who is there has them; the last one stays.
    fn lose_facts(&mut self, kind: Kind, partition: u32) {
        // Regions read those of replication from the first on.
        if kind == Kind::Replication {
            return;
        }
        let of = TopicPartition::new(kind.facts(), partition);
        let is_it = |slot: &&Slot| (slot.kind, slot.place.partition) == (kind, partition);
        let up = self.controls.iter().filter(|control| control.up);
        let Some(oldest) = up
            .flat_map(|control| control.slots.iter().filter(is_it))
            .min_by_key(|slot| slot.part.applied().fact_offset)
        else {
            return;
        };
        let (has, snapshot) = (oldest.part.applied().fact_offset, oldest.part.store().clone());
        let start = self.log.start(&of).unwrap_or(0);
        let until = has.min(self.log.records(&of).last().map_or(0, |last| last.offset));
        let Some(retention) = self.retention.as_mut().filter(|_| until > start) else { return };
        let start = start + 1 + retention.rng.range(0..until - start);
        retention.snapshots.insert((kind, partition), snapshot);
        let gone = self.log.records(&of).partition_point(|record| record.offset < start) as u64;
        self.log.trim(&of, start);
        self.checker.trimmed(kind, partition, gone);
        self.note("log", &format!("has lost the facts of {of} before {start}"));
    }

    /// Looks at every partition, and helps those that are halted by what they say.
    pub(crate) fn operate(&mut self) -> Result<(), Broken> {
        self.at(LOOKS_EVERY_MILLIS, Event::Operator);
        for control in 0..self.controls.len() {
            for slot in 0..self.controls[control].slots.len() {
                let part = &self.controls[control].slots[slot];
                let status = part.part.status();
                if !self.controls[control].up || status.role != Role::Halted {
                    continue;
                }
                let (kind, partition) = (part.kind, part.place.partition);
                let told = status.error.clone().unwrap_or_default();
                match lost(&told) {
                    Some(lost) if kind == Kind::Queue => self.accept_loss::<Queue>(control, partition, lost)?,
                    // It does not know yet that another has processed them; what it does not need is never lost.
                    Some(_) => {}
                    None if told.contains("begins from a snapshot") => self.start_from_snapshot(control, slot),
                    _ => return broken(2, format!("{} does not say what to do: {told}", part.name())),
                }
            }
        }
        Ok(())
    }

    /// As `longshore log accept-loss` does it.
    fn accept_loss<P: Wire>(&mut self, control: usize, partition: u32, lost: Lost) -> Result<(), Broken> {
        let (requests, facts) = (
            TopicPartition::new(Kind::Queue.requests(), partition),
            TopicPartition::new(Kind::Queue.facts(), partition),
        );
        let found = Found {
            last_fact: self.log.records(&facts).last(),
            facts_end: self.log.end(&facts).unwrap_or(0),
            requests_start: self.log.start(&requests).unwrap_or(0),
        };
        let now = self.controls[control].clock(self.now);
        let accepted = match accept::<P>(partition, lost, &found, OPERATOR, now) {
            Err(Refused::Other { next, start, .. }) => {
                // More was lost since; the refusal says what.
                accept::<P>(partition, Lost { from: next, to: start }, &found, OPERATOR, now)
            }
            accepted => accepted,
        };
        match accepted {
            Ok(batch) => {
                let (claim, at) = (self.log.take(&owner::<P>(partition)), self.log_time());
                let positions = self.log.commit(&claim, batch, at).expect("nobody came between");
                self.note(OPERATOR, &format!("accepts that {requests} has lost {} to {}", lost.from, lost.to));
                self.committed(&positions, self.now)
            }
            // Another replica's word was older.
            Err(Refused::NothingLost { .. }) => Ok(()),
            Err(error) => broken(2, format!("a loss cannot be accepted: {error}")),
        }
    }

    fn start_from_snapshot(&mut self, control: usize, slot: usize) {
        let part = &self.controls[control].slots[slot];
        let (of, name) = ((part.kind, part.place.partition), part.name());
        let snapshot = self.retention.as_ref().and_then(|retention| retention.snapshots.get(&of)).cloned();
        let Some(snapshot) = snapshot else { return };
        self.note(OPERATOR, &format!("starts {name} of control-{control} from a snapshot"));
        let setting = self.setting.clone();
        self.controls[control].restore(slot, &setting, &snapshot);
        self.start_part(control, slot);
    }
}

/// What is to be accepted, by what is said.
fn lost(told: &str) -> Option<Lost> {
    let (_, command) = told.split_once("`longshore log accept-loss ")?;
    let after = |flag: &str| command.split_once(flag)?.1.split([' ', '`']).next()?.parse().ok();
    Some(Lost { from: after("--from ")?, to: after("--to ")? })
}
