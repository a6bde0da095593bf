//! The world: one agenda in virtual time, and what is done when something on it comes up.
//!
//! Every event is taken up alone. Between any two of them any process may have crashed: what an event was meant for is
//! named with the life of its process, and is lost if another one runs there now. Only what is on its way to the log
//! arrives all the same, as it would.

use std::collections::BTreeMap;

use longshore_log::Batch;
use longshore_log::{
    CommitError, Error as LogError, Position, ReadLimit, Record, TopicPartition,
    simulated::{Claim, Core},
};
use longshore_partition::{Answer, Effect, Error, Question};

use crate::{
    check::{Broken, Checker},
    collecting::{Collecting, Object},
    control::{Control, START_MILLIS, Waiting},
    node::Node,
    people::{People, Send},
    region::Region,
    retention::Retention,
    rng::Rng,
    setting::{Faults, Setting},
    trace::Trace,
    worker::Worker,
};

/// Where a part of a control replica is, and for which of its effects something is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) control: usize,
    pub(crate) life: u64,
    pub(crate) slot: usize,
    pub(crate) ticket: u64,
}

/// What is on the agenda.
#[derive(Debug)]
pub(crate) enum Event {
    /// There is something to read for a part that waits.
    Wake(Place),
    Due(Place),
    Take(Place, String),
    Taken(Place, Claim),
    Ask(Place, Vec<Question>),
    /// A commit reaches the log, whatever has become of its sender.
    Commit(Commit, Reply),
    Answer(Place, Answer),
    Assign {
        control: usize,
        slot: usize,
        assigned: bool,
    },
    Restart(usize),
    Resume(usize),
    DiskFree(usize),
    /// Once a second.
    Chaos,
    Retention,
    Operator,
    /// Rounds over the main bucket begin.
    Collect,
    Collector(u64),
    Publish(u64),
    Delete(Object),
    People,
    Deliver(u64),
    Acknowledged(u64, Position),
    Retry(u64),
    /// A record that nobody waits for.
    Append(&'static str, Record),
    Worker(usize, u64),
    Region(usize, u64),
    RegionBack(usize),
    Outbox {
        region: usize,
        life: u64,
        topic: &'static str,
        number: u64,
        records: Vec<Record>,
    },
    OutboxDone {
        region: usize,
        life: u64,
        topic: &'static str,
        number: u64,
    },
    Node(usize, u64),
    NodeBack(usize),
}

/// A commit on its way.
#[derive(Debug)]
pub(crate) struct Commit {
    place: Place,
    claim: Option<Claim>,
    batch: Batch,
    /// When its sender last asked for the ends that deadlines wait for.
    asked_at: u64,
}

/// What the sender of a commit is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Truth,
    /// The answer is lost: it will think that it does not know.
    Nothing,
}

/// How far a wild clock is set, and then back.
const HOUR_MILLIS: i64 = 60 * 60 * 1_000;

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) setting: Setting,
    pub(crate) faults: Faults,
    agenda: BTreeMap<(u64, u64), Event>,
    order: u64,
    pub(crate) log: Core,
    pub(crate) retention: Option<Retention>,
    pub(crate) collecting: Option<Collecting>,
    pub(crate) controls: Vec<Control>,
    pub(crate) people: People,
    pub(crate) sends: BTreeMap<u64, Send>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) regions: Vec<Region>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) checker: Checker,
    pub(crate) trace: Trace,
    pub(crate) steps: u64,
}

impl World {
    pub(crate) fn new(seed: u64, whole_trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut setting = Setting::of(&mut rng);
        let collecting = Collecting::of(seed);
        if let Some(collecting) = &collecting {
            setting.artifacts = collecting.retention();
        }
        let mut log = Core::new(setting.topics());
        log.gaps = rng.chance(500);
        let controls = (0..setting.controls).map(|_| {
            let (offset, drift) = (rng.range(0..2_000) as i64 - 1_000, rng.range(0..400) as i64 - 200);
            Control::new(&setting, offset, drift)
        });
        let controls = controls.collect();
        let mut world = Self {
            now: 0,
            faults: setting.faults.clone(),
            agenda: BTreeMap::new(),
            order: 0,
            log,
            retention: Retention::of(seed),
            collecting,
            controls,
            people: People::new(&setting),
            sends: BTreeMap::new(),
            workers: (0..setting.workers).map(|number| Worker::new(number, &setting)).collect(),
            regions: setting.regions.iter().map(|region| Region::new(region, &setting)).collect(),
            nodes: (0..setting.nodes).map(|number| Node::new(number, &setting)).collect(),
            checker: Checker::new(&setting),
            trace: Trace::new(whole_trace),
            steps: 0,
            setting,
            rng,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.note("world", &format!("{:?}", self.setting));
        for control in 0..self.controls.len() {
            self.start_control(control);
        }
        for slot in 0..self.controls[0].slots.len() {
            let control = self.rng.index(self.controls.len());
            self.at(1, Event::Assign { control, slot, assigned: true });
        }
        self.at(5, Event::People);
        self.at(1_000, Event::Chaos);
        self.begin_retention();
        self.begin_collecting();
        for worker in 0..self.workers.len() {
            self.at(10, Event::Worker(worker, 0));
        }
        for region in 0..self.regions.len() {
            self.at(10, Event::Region(region, 0));
        }
        for node in 0..self.nodes.len() {
            self.at(20, Event::Node(node, 0));
        }
    }

    pub(crate) fn note(&mut self, actor: &str, what: &str) {
        self.trace.line(self.now, actor, what);
    }

    /// Puts something on the agenda, in so many milliseconds.
    pub(crate) fn at(&mut self, after: u64, event: Event) {
        self.order += 1;
        self.agenda.insert((self.now + after, self.order), event);
    }

    /// How long a message takes.
    pub(crate) fn leg(&mut self) -> u64 {
        if self.rng.chance(self.faults.slow) {
            return self.rng.range(100..if self.rng.clone().chance(200) { 20_000 } else { 2_000 });
        }
        self.rng.range(1..12)
    }

    fn leg_of(&mut self, control: usize) -> u64 {
        self.controls[control].cut_until.saturating_sub(self.now) + self.leg()
    }

    pub(crate) fn lost(&mut self) -> bool {
        self.rng.chance(self.faults.lost)
    }

    /// The log's clock.
    pub(crate) fn log_time(&self) -> longshore_schemas::Timestamp {
        longshore_schemas::Timestamp::from_millis(START_MILLIS + self.now as i64)
    }

    /// Takes up the next event. False if there is none.
    pub(crate) fn step(&mut self) -> Result<bool, Broken> {
        let Some(((time, _), event)) = self.agenda.pop_first() else { return Ok(false) };
        self.now = time;
        self.steps += 1;
        self.take_up(event)?;
        Ok(true)
    }

    fn take_up(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Wake(place) => self.wake(place),
            Event::Due(place) => self.due(place),
            Event::Take(place, owner) => {
                let claim = self.log.take(&owner);
                self.note("log", &format!("writer {owner} is taken, epoch {}", claim.epoch));
                let leg = self.leg_of(place.control);
                self.at(leg, Event::Taken(place, claim));
                Ok(())
            }
            Event::Taken(place, claim) => {
                if self.is_there(place) {
                    self.controls[place.control].slots[place.slot].claim = Some(claim);
                }
                self.answer(place, Answer::Done)
            }
            Event::Ask(place, questions) => {
                let answer = self.offsets(&questions);
                let leg = self.leg_of(place.control);
                self.at(leg, Event::Answer(place, answer));
                Ok(())
            }
            Event::Commit(commit, reply) => self.commit(commit, reply),
            Event::Answer(place, answer) => self.answer(place, answer),
            Event::Assign { control, slot, assigned } => self.assign(control, slot, assigned),
            Event::Restart(control) => self.restart(control),
            Event::Resume(control) => {
                self.controls[control].paused = false;
                self.note(&format!("control-{control}"), "goes on");
                Ok(())
            }
            Event::DiskFree(control) => {
                self.controls[control].disk.full.set(false);
                Ok(())
            }
            Event::Chaos => self.chaos(),
            Event::Retention => {
                self.retain();
                Ok(())
            }
            Event::Operator => self.operate(),
            Event::Collect => {
                self.collect();
                Ok(())
            }
            Event::Collector(collector) => self.collect_on(collector),
            Event::Publish(publisher) => self.publish_on(publisher),
            Event::Delete(object) => self.deleted(object),
            Event::People => self.people(),
            Event::Deliver(send) => self.deliver(send),
            Event::Acknowledged(send, position) => self.acknowledged(send, &position),
            Event::Retry(send) => self.retry(send),
            Event::Append(topic, record) => {
                self.append(topic, vec![record]);
                Ok(())
            }
            Event::Worker(worker, life) => self.worker(worker, life),
            Event::Region(region, life) => self.region(region, life),
            Event::RegionBack(region) => self.region_back(region),
            Event::Outbox { region, life, topic, number, records } => {
                self.outbox_arrives((region, life), topic, number, records)
            }
            Event::OutboxDone { region, life, topic, number } => self.outbox_done(region, life, topic, number),
            Event::Node(node, life) => self.node(node, life),
            Event::NodeBack(node) => self.node_back(node),
        }
    }

    /// Appends, and tells who waits for it.
    pub(crate) fn append(&mut self, topic: &str, records: Vec<Record>) -> Vec<Position> {
        let at = self.log_time();
        let positions = self.log.append(topic, records, at).expect("what the simulator appends fits");
        self.checker.appended(&self.log, &positions, self.now);
        self.wake_readers(&positions);
        positions
    }

    fn wake_readers(&mut self, positions: &[Position]) {
        let mut told = Vec::new();
        for (number, control) in self.controls.iter_mut().enumerate().filter(|(_, control)| control.up) {
            for (index, slot) in control.slots.iter_mut().enumerate() {
                let Some(waiting) = slot.waiting.as_mut().filter(|waiting| !waiting.told) else { continue };
                if slot.sources.iter().any(|(of, _)| positions.iter().any(|position| position.source == *of)) {
                    waiting.told = true;
                    told.push(Place { control: number, life: control.life, slot: index, ticket: slot.ticket });
                }
            }
        }
        for place in told {
            let leg = self.leg_of(place.control);
            self.at(leg, Event::Wake(place));
        }
    }

    fn start_control(&mut self, control: usize) {
        for slot in 0..self.controls[control].slots.len() {
            self.start_part(control, slot);
        }
    }

    pub(crate) fn start_part(&mut self, control: usize, slot: usize) {
        let around = self.controls[control].around(slot, self.now);
        let effect = self.controls[control].slots[slot].part.start(around);
        self.perform(control, slot, effect);
    }

    fn is_there(&self, place: Place) -> bool {
        let control = &self.controls[place.control];
        control.up && control.life == place.life && control.slots[place.slot].ticket == place.ticket
    }

    /// Hands an answer to the part that waits for it, if it still does, and begins what it wants next.
    fn answer(&mut self, place: Place, answer: Answer) -> Result<(), Broken> {
        if !self.is_there(place) {
            return Ok(());
        }
        if self.controls[place.control].paused {
            self.at(500, Event::Answer(place, answer));
            return Ok(());
        }
        let Place { control, slot, .. } = place;
        let around = self.controls[control].around(slot, self.now);
        let before = self.controls[control].slots[slot].part.status().clone();
        let effect = self.controls[control].slots[slot].part.handle(answer, around);
        let after = self.controls[control].slots[slot].part.status().clone();
        if before != after {
            let name = self.controls[control].slots[slot].name();
            let error = after.error.as_deref().unwrap_or("");
            self.note(&format!("control-{control}"), &format!("{name} is {:?} {error}", after.role));
        }
        self.checker.part(&self.log, &self.controls[control].slots[slot], self.steps)?;
        self.perform(control, slot, effect);
        Ok(())
    }

    /// Begins an effect.
    fn perform(&mut self, control: usize, slot: usize, effect: Effect) {
        let life = self.controls[control].life;
        let now = self.now;
        let part = &mut self.controls[control].slots[slot];
        part.ticket += 1;
        part.waiting = None;
        let place = Place { control, life, slot, ticket: part.ticket };
        match effect {
            Effect::Open(from) => {
                part.sources = from;
                self.at(1, Event::Answer(place, Answer::Done));
            }
            Effect::Read { due, assigned } => {
                part.waiting = Some(Waiting { assigned, told: true });
                let ended = part.assigned != assigned;
                if ended {
                    self.at(1, Event::Answer(place, Answer::Ended));
                }
                if let Some(due) = due {
                    self.at(due.as_millis() as u64 + 1, Event::Due(place));
                }
                let leg = self.leg_of(control);
                self.at(leg, Event::Wake(place));
            }
            Effect::TakeWriter(owner) => {
                let leg = self.leg_of(control);
                self.at(leg, Event::Take(place, owner));
            }
            Effect::Ask(questions) => {
                part.asked_at = now;
                let leg = self.leg_of(control);
                self.at(leg, Event::Ask(place, questions));
            }
            Effect::Commit(batch) => self.send_commit(place, batch),
            Effect::Rest(time) => self.at(time.as_millis() as u64, Event::Answer(place, Answer::Done)),
            Effect::End => {}
        }
    }

    fn send_commit(&mut self, place: Place, batch: Batch) {
        let slot = &self.controls[place.control].slots[place.slot];
        let commit = Commit { place, claim: slot.claim.clone(), batch, asked_at: slot.asked_at };
        let leg = self.leg_of(place.control);
        if self.rng.chance(self.faults.failed) {
            let error = CommitError::Failed(storage("committing"));
            self.at(leg, Event::Answer(place, Answer::Failed(Error::Commit(error))));
            return;
        }
        if !self.rng.chance(self.faults.ambiguous) {
            self.at(leg, Event::Commit(commit, Reply::Truth));
            return;
        }
        let patience = self.rng.range(50..3_000);
        let unsure = CommitError::Ambiguous(LogError::Unconfirmed { source: std::sync::Arc::new(std::fmt::Error) });
        self.at(patience, Event::Answer(place, Answer::Failed(Error::Commit(unsure))));
        // It came before, comes after, or never comes.
        match self.rng.range(0..3) {
            0 => {}
            1 => self.at(leg.min(patience - 1), Event::Commit(commit, Reply::Nothing)),
            _ => {
                let late = patience + self.rng.range(1..4_000);
                self.at(late, Event::Commit(commit, Reply::Nothing));
            }
        }
    }

    fn commit(&mut self, commit: Commit, reply: Reply) -> Result<(), Broken> {
        let Commit { place, claim, batch, asked_at } = commit;
        let committed = match &claim {
            Some(claim) => self.log.commit(claim, batch, self.log_time()),
            None => Err(CommitError::Failed(LogError::WriterSpent)),
        };
        let owner = claim.map(|claim| format!("{} epoch {}", claim.owner, claim.epoch)).unwrap_or_default();
        let outcome = match &committed {
            Ok(positions) => format!("{} records", positions.len()),
            Err(error) => error.to_string(),
        };
        self.note("log", &format!("commit of {owner} from control-{}: {outcome}", place.control));
        if let Ok(positions) = &committed {
            self.committed(positions, asked_at)?;
        }
        if reply == Reply::Truth {
            let answer = match committed {
                Ok(positions) => Answer::Committed(positions),
                Err(error) => Answer::Failed(Error::Commit(error)),
            };
            let leg = self.leg_of(place.control);
            self.at(leg, Event::Answer(place, answer));
        }
        Ok(())
    }

    /// Tells the checker, and who waits.
    pub(crate) fn committed(&mut self, positions: &[Position], asked_at: u64) -> Result<(), Broken> {
        self.checker.appended(&self.log, positions, self.now);
        self.wake_readers(positions);
        let lines = self.checker.committed(&self.log, &self.regions, asked_at, self.now)?;
        for line in lines {
            self.note("  fact", &line);
        }
        self.check_kept()
    }

    fn offsets(&self, questions: &[Question]) -> Answer {
        let offset = |question: &Question| match question {
            Question::Start(of) => self.log.start(of),
            Question::End(of) => self.log.end(of),
            Question::At(of, at) => self.log.offset_at(of, *at),
        };
        match questions.iter().map(offset).collect::<Result<Vec<_>, _>>() {
            Ok(offsets) => Answer::Offsets(offsets),
            Err(error) => Answer::Failed(Error::Log(error)),
        }
    }

    fn wake(&mut self, place: Place) -> Result<(), Broken> {
        if !self.is_there(place) {
            return Ok(());
        }
        if self.controls[place.control].paused {
            self.at(500, Event::Wake(place));
            return Ok(());
        }
        if self.rng.chance(self.faults.failed / 4) {
            return self.answer(place, Answer::Failed(Error::Log(storage("reading"))));
        }
        let limit = ReadLimit { records: 1 + self.rng.index(40), ..ReadLimit::default() };
        let slot = &mut self.controls[place.control].slots[place.slot];
        let Some(waiting) = &mut slot.waiting else { return Ok(()) };
        waiting.told = false;
        let (mut records, mut moved) = (Vec::new(), false);
        for (of, position) in &mut slot.sources {
            match self.log.read(of, *position, limit) {
                Ok((read, next)) => {
                    moved |= next != *position;
                    *position = next;
                    records.extend(read);
                }
                Err(error) => return self.answer(place, Answer::Failed(Error::Log(error))),
            }
        }
        if !moved {
            return Ok(());
        }
        let positions = slot.sources.iter().map(|(_, position)| *position).collect();
        self.answer(place, Answer::Read { records, positions })
    }

    fn due(&mut self, place: Place) -> Result<(), Broken> {
        let waits = self.is_there(place) && self.controls[place.control].slots[place.slot].waiting.is_some();
        if waits { self.answer(place, Answer::Due) } else { Ok(()) }
    }

    fn assign(&mut self, control: usize, slot: usize, assigned: bool) -> Result<(), Broken> {
        if !self.controls[control].up {
            return Ok(());
        }
        let part = &mut self.controls[control].slots[slot];
        if part.assigned == assigned {
            return Ok(());
        }
        part.assigned = assigned;
        let ended = part.waiting.is_some_and(|waiting| waiting.assigned != assigned);
        let (name, ticket) = (part.name(), part.ticket);
        let word = if assigned { "is assigned" } else { "is revoked" };
        self.note(&format!("control-{control}"), &format!("{name} {word}"));
        let place = Place { control, life: self.controls[control].life, slot, ticket };
        if ended { self.answer(place, Answer::Ended) } else { Ok(()) }
    }

    fn restart(&mut self, control: usize) -> Result<(), Broken> {
        let setting = self.setting.clone();
        self.controls[control].restart(&setting, &mut self.rng);
        self.note(&format!("control-{control}"), "starts");
        for slot in 0..self.controls[control].slots.len() {
            self.checker.part(&self.log, &self.controls[control].slots[slot], 0)?;
        }
        self.start_control(control);
        Ok(())
    }

    /// Throws the dice for what goes wrong this second.
    fn chaos(&mut self) -> Result<(), Broken> {
        self.at(1_000, Event::Chaos);
        let control = self.rng.index(self.controls.len());
        let name = format!("control-{control}");
        if self.controls[control].up && self.rng.chance(self.faults.chaos) {
            match self.rng.range(0..10) {
                0 | 1 => self.crash(control),
                2 => {
                    let time = self.rng.range(500..40_000);
                    self.controls[control].paused = true;
                    self.note(&name, &format!("stands still for {time} ms"));
                    self.at(time, Event::Resume(control));
                }
                3 => {
                    let time = self.rng.range(500..20_000);
                    self.controls[control].cut_until = self.now + time;
                    self.note(&name, &format!("is cut off for {time} ms"));
                }
                4 => {
                    let time = self.rng.range(500..10_000);
                    self.controls[control].disk.full.set(true);
                    self.note(&name, &format!("has a full disk for {time} ms"));
                    self.at(time, Event::DiskFree(control));
                }
                5 => {
                    let jump = self.rng.range(0..8_000) as i64 - 4_000;
                    let hour = match self.rng.range(0..3) {
                        0 if self.setting.wild_clocks => HOUR_MILLIS,
                        1 if self.setting.wild_clocks => -HOUR_MILLIS,
                        _ => 0,
                    };
                    let before = self.controls[control].clock_offset % HOUR_MILLIS;
                    self.controls[control].clock_offset = (before + jump).clamp(-4_000, 4_000) + hour;
                    self.note(&name, &format!("its clock jumps by {} ms", jump + hour));
                }
                _ => self.move_partition(),
            }
        }
        self.mend_ownership();
        Ok(())
    }

    fn crash(&mut self, control: usize) {
        self.note(&format!("control-{control}"), "crashes");
        let down = self.rng.range(200..20_000);
        self.controls[control].up = false;
        self.at(down, Event::Restart(control));
    }

    /// Another replica gets a partition; the one that had it hears of it earlier, later or much later.
    fn move_partition(&mut self) {
        let slot = self.rng.index(self.controls[0].slots.len());
        let to = self.rng.index(self.controls.len());
        let leg = self.leg();
        self.at(leg, Event::Assign { control: to, slot, assigned: true });
        for control in (0..self.controls.len()).filter(|control| *control != to) {
            let late = if self.rng.chance(300) { self.rng.range(1..15_000) } else { self.leg() };
            self.at(late, Event::Assign { control, slot, assigned: false });
        }
    }

    /// A partition that nobody has, or more than one has for long, gets one owner.
    fn mend_ownership(&mut self) {
        for slot in 0..self.controls[0].slots.len() {
            let has = |control: &Control| control.up && control.slots[slot].assigned;
            let owners: Vec<usize> = (0..self.controls.len()).filter(|control| has(&self.controls[*control])).collect();
            let calm = self.faults.chaos == 0;
            if owners.is_empty() && (calm || self.rng.chance(150)) {
                let up: Vec<usize> = (0..self.controls.len()).filter(|control| self.controls[*control].up).collect();
                if let Some(control) = self.rng.pick(&up).copied() {
                    self.at(1, Event::Assign { control, slot, assigned: true });
                }
            }
            // One of them may be fenced and not know it, so all give it up and one takes it anew.
            if calm && owners.len() > 1 {
                for control in owners {
                    self.at(1, Event::Assign { control, slot, assigned: false });
                }
            }
        }
    }

    /// From now on nothing goes wrong any more.
    pub(crate) fn calm(&mut self) {
        self.note("world", "the faults stop");
        self.faults = Faults::none();
        if let Some(retention) = &mut self.retention {
            retention.calm();
        }
        for control in &mut self.controls {
            control.cut_until = 0;
            control.clock_offset = 0;
        }
        // The group gathers anew. An idle leader that was fenced meanwhile would hear of it with its next commit only.
        for control in 0..self.controls.len() {
            for slot in 0..self.controls[control].slots.len() {
                self.at(1, Event::Assign { control, slot, assigned: false });
            }
        }
    }

    /// A control replica that is up, for those who ask one.
    pub(crate) fn any_control(&mut self) -> Option<usize> {
        let up = |control: &usize| self.controls[*control].up && !self.controls[*control].paused;
        let up: Vec<usize> = (0..self.controls.len()).filter(up).collect();
        self.rng.pick(&up).copied()
    }
}

fn storage(doing: &'static str) -> LogError {
    LogError::Storage { doing, source: std::sync::Arc::new(std::fmt::Error) }
}

/// A partition of a topic, by its key.
pub(crate) fn partition_of(log: &Core, topic: &str, key: &str) -> TopicPartition {
    let partitions = log.partitions(topic).unwrap_or(1);
    TopicPartition::new(topic, longshore_schemas::topics::partition_of(key.as_bytes(), partitions))
}
