//! A control replica: its clock, its disk, and the machine of every partition of the four processors.

use std::{rc::Rc, sync::Arc};

use longshore_fleet::Fleet;
use longshore_goals::Goals;
use longshore_log::{TopicPartition, simulated::Claim};
use longshore_partition::{
    Answer, Applied, Around, Effect, Gate, Listener, Machine, Replica, Role, Status, Wire, step::Place,
};
use longshore_processor::{Fingerprint, fingerprint};
use longshore_queue::Queue;
use longshore_replication::Replication;
use longshore_schemas::{
    Timestamp,
    events::{Event, Fact},
};

use crate::{
    forger::gate,
    setting::{KINDS, Kind, Setting},
    store::{Disk, SimStore},
};

/// When the world begins, as the log's clock shows it.
pub(crate) const START_MILLIS: i64 = 1_700_000_000_000;

/// A machine of any processor.
pub(crate) trait Part {
    fn start(&mut self, around: Around) -> Effect;
    fn handle(&mut self, answer: Answer, around: Around) -> Effect;
    fn status(&self) -> &Status;
    fn applied(&self) -> Applied;
    fn store(&self) -> &SimStore;
    fn fingerprint(&self) -> Fingerprint;
}

impl<P: Wire> Part for Machine<P, SimStore> {
    fn start(&mut self, around: Around) -> Effect {
        Self::start(self, around)
    }

    fn handle(&mut self, answer: Answer, around: Around) -> Effect {
        Self::handle(self, answer, around)
    }

    fn status(&self) -> &Status {
        Self::status(self)
    }

    fn applied(&self) -> Applied {
        self.replica().applied()
    }

    fn store(&self) -> &SimStore {
        self.replica().store()
    }

    fn fingerprint(&self) -> Fingerprint {
        fingerprint(self.store(), P::TABLES).expect("a state in memory")
    }
}

/// Nobody listens: whoever wants to know looks at the state.
struct Deaf;

impl<F: Event> Listener<F> for Deaf {
    fn applied(&mut self, _: Applied, _: &[Fact<F>]) {}
}

fn machine<P: Wire>(processor: P, gate: Arc<dyn Gate>, signals: bool, place: Place, store: SimStore) -> Box<dyn Part> {
    let facts = TopicPartition::new(P::Fact::TOPIC.name, place.partition);
    let replica = Replica::<P, _>::open(store, facts, |_| Box::new(Deaf)).expect("a state in memory");
    Box::new(Machine::new(Arc::new(processor), gate, place, signals, replica))
}

fn part(setting: &Setting, kind: Kind, place: Place, store: SimStore) -> Box<dyn Part> {
    let (regions, shards_per_region) = (setting.regions.clone(), setting.shards);
    let gate = gate(&regions);
    match kind {
        Kind::Queue => machine(Queue::new(setting.queue.clone()), gate, true, place, store),
        Kind::Replication => {
            let config = longshore_replication::Config { regions, retention: setting.artifacts.clone() };
            machine(Replication::new(config), gate, false, place, store)
        }
        Kind::Goals => {
            machine(Goals::new(longshore_goals::Config::new(regions, shards_per_region)), gate, false, place, store)
        }
        Kind::Fleet => {
            machine(Fleet::new(longshore_fleet::Config { regions, shards_per_region }), gate, false, place, store)
        }
    }
}

/// What a part waits for in its log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) assigned: bool,
    /// It was told already that there is something.
    pub(crate) told: bool,
}

/// One partition on one replica.
pub(crate) struct Slot {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    pub(crate) part: Box<dyn Part>,
    pub(crate) assigned: bool,
    /// The number of the effect under way. Answers to earlier ones are of no use.
    pub(crate) ticket: u64,
    pub(crate) sources: Vec<(TopicPartition, u64)>,
    pub(crate) waiting: Option<Waiting>,
    pub(crate) claim: Option<Claim>,
    /// When it last asked for ends: what was in the log then must count before any deadline.
    pub(crate) asked_at: u64,
}

impl Slot {
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.kind.name(), self.place.partition)
    }

    pub(crate) fn leads(&self) -> bool {
        self.part.status().role == Role::Leading
    }
}

/// See the module.
pub(crate) struct Control {
    pub(crate) up: bool,
    /// Counts the processes that ran here; what was meant for an earlier one is lost.
    pub(crate) life: u64,
    /// Until then nothing moves in it, though it is there.
    pub(crate) paused: bool,
    /// Until then nothing passes between it and the log.
    pub(crate) cut_until: u64,
    pub(crate) clock_offset: i64,
    pub(crate) clock_drift_ppm: i64,
    pub(crate) disk: Rc<Disk>,
    pub(crate) slots: Vec<Slot>,
}

impl Control {
    pub(crate) fn new(setting: &Setting, clock_offset: i64, clock_drift_ppm: i64) -> Self {
        let disk = Rc::<Disk>::default();
        let mut slots = Vec::new();
        for kind in KINDS {
            let partitions = setting.partitions(kind);
            for partition in 0..partitions {
                let place = Place { partition, partitions };
                slots.push(slot(setting, kind, place, SimStore::new(disk.clone())));
            }
        }
        let (up, life, paused, cut_until) = (true, 0, false, 0);
        Self { up, life, paused, cut_until, clock_offset, clock_drift_ppm, disk, slots }
    }

    /// A new process takes up what the old one left on its disk.
    pub(crate) fn restart(&mut self, setting: &Setting, rng: &mut crate::rng::Rng) {
        let disk = Rc::<Disk>::default();
        let restarted = self.slots.iter().map(|old| {
            // Now and then a disk is lost as a whole.
            let lost = rng.chance(30);
            let store =
                if lost { SimStore::new(disk.clone()) } else { old.part.store().after_crash(rng, disk.clone()) };
            slot(setting, old.kind, old.place, store)
        });
        let slots = restarted.collect();
        (self.slots, self.disk) = (slots, disk);
        (self.up, self.paused, self.life) = (true, false, self.life + 1);
    }

    /// A partition begins again, with what a snapshot of it holds.
    pub(crate) fn restore(&mut self, number: usize, setting: &Setting, snapshot: &SimStore) {
        let Slot { kind, place, assigned, ticket, .. } = self.slots[number];
        // Answers to what was under way are of no use any more.
        let again = slot(setting, kind, place, snapshot.restored(self.disk.clone()));
        self.slots[number] = Slot { assigned, ticket: ticket + 1, ..again };
    }

    /// What its clock shows.
    pub(crate) fn clock(&self, now: u64) -> Timestamp {
        let drift = now as i64 * self.clock_drift_ppm / 1_000_000;
        Timestamp::from_millis(START_MILLIS + now as i64 + drift + self.clock_offset)
    }

    pub(crate) fn around(&self, slot: usize, now: u64) -> Around {
        let steady = std::time::Duration::from_millis(now);
        Around { now: self.clock(now), steady, assigned: self.slots[slot].assigned, stopping: false }
    }
}

fn slot(setting: &Setting, kind: Kind, place: Place, store: SimStore) -> Slot {
    Slot {
        kind,
        place,
        part: part(setting, kind, place, store),
        assigned: false,
        ticket: 0,
        sources: Vec::new(),
        waiting: None,
        claim: None,
        asked_at: 0,
    }
}
