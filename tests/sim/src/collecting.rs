//! The main bucket of some worlds: artifacts with packs in common are published there, retired, and collected.
//!
//! ```text
//! a worker finishes ─▶ publisher: upload ─ announce ─ condemned? ─ all there? ─ root ─▶ AttemptFinished
//! a leader of replication ─▶ collector: rounds of the real policy, one effect at a time
//! ```
//!
//! Either may die between any two steps, and what a dead collector has sent arrives all the same. It has chances of its own, so that
//! worlds without it are what they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_artifact::collect::{
    Announced, Answer, CONDEMNED_LASTS, Condemned, Effect, Listed, Publisher, Round, Settings, Standing,
};
use longshore_log::{TopicPartition, simulated::Core};
use longshore_queue::tables::JOBS;
use longshore_replication::{Keep, Retention, tables};
use longshore_schemas::{ArtifactId, JobId, PackId, Timestamp, events::BuildRequest};

use crate::{
    check::{Broken, broken},
    control::{Control, START_MILLIS, Slot},
    region::short,
    rng::Rng,
    setting::Kind,
    world::{Event, World, partition_of},
};

/// Worlds that have it, in thousandths.
const WORLDS: u64 = 400;
/// Different contents that are built, and packs that they are made of.
const CONTENTS: u64 = 5;
const PACKS: u64 = 7;
const ROUND_EVERY: u64 = 4_000;
/// How long an announcement holds, and how long publishing may take.
const ANNOUNCED_LASTS: u64 = 16_000;
const PUBLISHED_WITHIN: u64 = 8_000;
/// Objects of one page.
const PAGE: usize = 4;

/// What is deleted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Object {
    Root(ArtifactId),
    Pack(PackId),
}

/// Who publishes what.
#[derive(Debug, Clone)]
pub(crate) struct Publishing {
    pub(crate) artifact: ArtifactId,
    packs: Vec<PackId>,
    by: String,
    begun: u64,
    step: usize,
    /// What is asked at the end.
    who: String,
    id: String,
    event: BuildRequest,
}

/// A collector of a control replica's process.
#[derive(Debug)]
struct Collector {
    control: usize,
    life: u64,
    round: Round,
    /// Ends of request logs, by slot, that its projections must reach before it goes on.
    waits: Vec<(usize, u64)>,
    doing: Doing,
}

#[derive(Debug)]
enum Doing {
    /// Looks which announcements are settled.
    Settling,
    /// They are removed.
    Forgetting(Vec<String>),
    /// This effect is next.
    Round(Effect),
    /// The announcements were listed, and what is known by then is waited for.
    Listed(Answer),
}

pub(crate) struct Collecting {
    rng: Rng,
    keep: Keep,
    grace: Duration,
    roots: BTreeMap<ArtifactId, (Vec<PackId>, u64)>,
    packs: BTreeMap<PackId, u64>,
    announced: BTreeMap<String, (Vec<PackId>, u64)>,
    /// What each collector condemned, and when.
    condemned: BTreeMap<u64, (Condemned, u64)>,
    collectors: BTreeMap<u64, Collector>,
    /// Of rounds that are under way.
    marks: BTreeSet<u64>,
    publishing: BTreeMap<u64, Publishing>,
    count: u64,
}

impl Collecting {
    /// Of some seeds.
    pub(crate) fn of(seed: u64) -> Option<Self> {
        let mut rng = Rng::new(seed.rotate_left(17) ^ 0xc011_ec70);
        let keep = Keep { last: rng.range(0..2) as u32, lately: Duration::from_secs(5 + rng.range(0..60)) };
        let grace = Duration::from_secs(2 + rng.range(0..30));
        rng.chance(WORLDS).then(|| Self {
            rng,
            keep,
            grace,
            roots: BTreeMap::new(),
            packs: BTreeMap::new(),
            announced: BTreeMap::new(),
            condemned: BTreeMap::new(),
            collectors: BTreeMap::new(),
            marks: BTreeSet::new(),
            publishing: BTreeMap::new(),
            count: 0,
        })
    }

    pub(crate) fn retention(&self) -> Retention {
        Retention { rules: Vec::new(), otherwise: self.keep, look_every: Duration::from_secs(5) }
    }

    fn some_packs(&mut self, artifact: &ArtifactId) -> Vec<PackId> {
        let first = u64::from(artifact.as_bytes()[0]) + self.rng.range(0..2);
        let pack = |n: u64| PackId::of(format!("pack-{}", (first + n * n) % PACKS).as_bytes());
        let mut packs: Vec<PackId> = (0..1 + self.rng.range(0..4)).map(pack).collect();
        packs.dedup();
        packs
    }

    /// Whether all of the artifact is there.
    pub(crate) fn has(&self, artifact: &ArtifactId) -> bool {
        self.roots.get(artifact).is_some_and(|(packs, _)| packs.iter().all(|pack| self.packs.contains_key(pack)))
    }

    fn step(&mut self) -> u64 {
        if self.rng.chance(100) { self.rng.range(500..4_000) } else { self.rng.range(5..400) }
    }
}

/// What an attempt leaves: another may leave the same, in other packs.
pub(crate) fn content(job: &JobId) -> ArtifactId {
    let number = job.to_string().bytes().map(u64::from).sum::<u64>() % CONTENTS;
    ArtifactId::of(format!("content-{number}").as_bytes())
}

fn listed<T: Copy + Ord>(all: impl Iterator<Item = (T, u64)>, after: Option<&T>) -> Vec<Listed<T>> {
    let rest = all.filter(|(name, _)| after.is_none_or(|after| name > after)).take(PAGE);
    rest.map(|(name, at)| Listed { name, bytes: 1, modified: time(at) }).collect()
}

fn time(now: u64) -> Timestamp {
    Timestamp::from_millis(START_MILLIS + now as i64)
}

impl World {
    pub(crate) fn begin_collecting(&mut self) {
        if self.collecting.is_some() {
            self.note("world", "what nothing needs is collected");
            self.at(ROUND_EVERY, Event::Collect);
        }
    }

    /// Nothing that is not retired lacks anything.
    pub(crate) fn check_kept(&self) -> Result<(), Broken> {
        let Some(collecting) = &self.collecting else { return Ok(()) };
        match self.checker.live.iter().find(|artifact| !collecting.has(artifact)) {
            Some(artifact) => broken(13, format!("{} lacks its root or a pack in the main bucket", short(artifact))),
            None => Ok(()),
        }
    }

    /// Publishes, and asks this once that is done.
    pub(crate) fn publish(&mut self, artifact: ArtifactId, by: &Publisher, who: &str, id: &str, event: &BuildRequest) {
        let begun = self.now;
        let Some(collecting) = &mut self.collecting else { return };
        let packs = collecting.some_packs(&artifact);
        collecting.count += 1;
        let number = collecting.count;
        let (who, id, by, event) = (who.to_owned(), id.to_owned(), by.to_string(), event.clone());
        let publishing = Publishing { artifact, packs, by, begun, step: 0, who, id, event };
        collecting.publishing.insert(number, publishing);
        self.at(1, Event::Publish(number));
    }

    /// The next step of a publisher, as the API does it.
    pub(crate) fn publish_on(&mut self, number: u64) -> Result<(), Broken> {
        let now = self.now;
        let dies = self.rng.chance(self.faults.agents / 10);
        let Some(collecting) = &mut self.collecting else { return Ok(()) };
        let Some(mut publishing) = collecting.publishing.remove(&number) else { return Ok(()) };
        if dies {
            return Ok(());
        }
        let mut wait = collecting.step();
        let Publishing { artifact, packs, step, .. } = publishing.clone();
        publishing.step += 1;
        match step {
            0 => {
                for pack in packs {
                    collecting.packs.entry(pack).or_insert(now);
                }
            }
            1 => {
                let content: Vec<u8> = packs.iter().flat_map(|pack| pack.as_bytes().to_vec()).collect();
                let key = Announced::new(artifact, &publishing.by, &content).key;
                collecting.announced.insert(key, (packs, now));
                publishing.begun = now;
            }
            2 => {
                let hit = |(condemned, _): &(Condemned, u64)| {
                    condemned.artifacts.contains(&artifact) || packs.iter().any(|pack| condemned.packs.contains(pack))
                };
                if collecting.condemned.values().any(hit) {
                    // It finishes again soon.
                    (publishing.step, wait) = (1, 2_000);
                }
            }
            step if step - 3 < packs.len() => {
                if !collecting.packs.contains_key(&packs[step - 3]) {
                    publishing.step = 0;
                }
            }
            step if step - 3 == packs.len() => {
                if now > publishing.begun + PUBLISHED_WITHIN {
                    publishing.step = 1;
                } else {
                    collecting.roots.insert(artifact, (packs, now));
                }
            }
            _ => {
                let Publishing { who, id, event, .. } = publishing;
                self.note(&who, &format!("published {}", short(&artifact)));
                self.ask(&who, &id, event);
                return Ok(());
            }
        }
        collecting.publishing.insert(number, publishing);
        self.at(wait, Event::Publish(number));
        Ok(())
    }

    /// Whoever leads the first partition of replication begins a round, as it thinks.
    pub(crate) fn collect(&mut self) {
        self.at(ROUND_EVERY, Event::Collect);
        for control in 0..self.controls.len() {
            let place = &self.controls[control];
            let is_first = |slot: &&Slot| slot.kind == Kind::Replication && slot.place.partition == 0;
            let leads = place.slots.iter().filter(is_first).any(Slot::leads);
            let (life, is_there) = (place.life, place.up && !place.paused && leads);
            let waits = self.ends();
            let Some(collecting) = &mut self.collecting else { return };
            if !is_there || collecting.collectors.values().any(|other| (other.control, other.life) == (control, life)) {
                continue;
            }
            let begin_at = if collecting.rng.chance(500) { 0 } else { collecting.rng.next() };
            let named_max = 2 + collecting.rng.range(0..8) as usize;
            let settings = Settings { grace: collecting.grace, named_max, dry_run: false, begin_at };
            collecting.count += 1;
            let number = collecting.count;
            let round = Round::new(settings);
            collecting.marks.insert(number);
            collecting.collectors.insert(number, Collector { control, life, round, waits, doing: Doing::Settling });
            self.at(1, Event::Collector(number));
        }
    }

    /// Where requests to the queue and to replication end.
    fn ends(&self) -> Vec<(usize, u64)> {
        let slots = self.controls[0].slots.iter().enumerate();
        let slots = slots.filter(|(_, slot)| matches!(slot.kind, Kind::Queue | Kind::Replication));
        let end = |(index, slot): (usize, &Slot)| {
            let of = TopicPartition::new(slot.kind.requests(), slot.place.partition);
            (index, self.log.records(&of).last().map_or(0, |record| record.offset + 1))
        };
        slots.map(end).collect()
    }

    /// The next step of a collector.
    pub(crate) fn collect_on(&mut self, number: u64) -> Result<(), Broken> {
        let Some(collecting) = &mut self.collecting else { return Ok(()) };
        let Some(mut collector) = collecting.collectors.remove(&number) else { return Ok(()) };
        let mut wait = collecting.step();
        let control = &self.controls[collector.control];
        if !control.up || control.life != collector.life {
            return Ok(());
        }
        let has = |(slot, end): &(usize, u64)| control.slots[*slot].part.applied().request_offset >= *end;
        if control.paused || !collector.waits.iter().all(has) {
            wait = 500;
        } else if !self.answer_effect(number, &mut collector, &mut wait) {
            return Ok(());
        }
        if let Some(collecting) = &mut self.collecting {
            collecting.collectors.insert(number, collector);
            self.at(wait, Event::Collector(number));
        }
        Ok(())
    }

    /// False at the end of the round.
    fn answer_effect(&mut self, number: u64, collector: &mut Collector, wait: &mut u64) -> bool {
        let (now, ends) = (self.now, self.ends());
        let Some(collecting) = &mut self.collecting else { return false };
        match &mut collector.doing {
            Doing::Settling => {
                let is_old = |at: u64| now >= at + ANNOUNCED_LASTS;
                let old = collecting.announced.iter().filter(|(_, (_, at))| is_old(*at)).map(|(key, _)| key.clone());
                let control = &self.controls[collector.control];
                let settled = old.filter(|key| is_settled(control, &self.log, key)).collect();
                (collector.doing, collector.waits) = (Doing::Forgetting(settled), ends);
            }
            Doing::Forgetting(settled) => {
                if !settled.is_empty() {
                    collecting.marks.retain(|mark| *mark == number);
                }
                settled.iter().for_each(|key| drop(collecting.announced.remove(key)));
                let lasts = CONDEMNED_LASTS.as_millis() as u64;
                collecting.condemned.retain(|_, (_, at)| now < *at + lasts);
                collector.doing = Doing::Round(collector.round.start());
            }
            Doing::Round(Effect::ListAnnounced) => {
                let answer = self.carry_out(number, &Effect::ListAnnounced, wait);
                (collector.doing, collector.waits) = (Doing::Listed(answer), ends);
            }
            Doing::Round(effect) => {
                let effect = effect.clone();
                let answer = self.carry_out(number, &effect, wait);
                return self.handle(collector, answer);
            }
            Doing::Listed(answer) => {
                let answer = answer.clone();
                return self.handle(collector, answer);
            }
        }
        true
    }

    fn handle(&self, collector: &mut Collector, answer: Answer) -> bool {
        let control = &self.controls[collector.control];
        let standing = |artifact: &ArtifactId| standing(control, &self.log, artifact);
        let effect = collector.round.handle(answer, time(self.now), &standing);
        let goes_on = effect != Effect::End;
        collector.doing = Doing::Round(effect);
        goes_on
    }

    /// What is deleted is under way for a while, whatever becomes of the collector.
    fn carry_out(&mut self, number: u64, effect: &Effect, wait: &mut u64) -> Answer {
        let now = self.now;
        let Some(collecting) = &mut self.collecting else { return Answer::Done };
        fn names<'a>(rows: impl Iterator<Item = &'a (Vec<PackId>, u64)>) -> Answer {
            let all: Vec<_> = rows.collect();
            Answer::Names { found: all.len() as u64, packs: all.iter().flat_map(|(packs, _)| packs.clone()).collect() }
        }
        match effect {
            Effect::ListRoots(after) => {
                let all = collecting.roots.iter().map(|(name, (_, at))| (*name, *at));
                Answer::Roots(listed(all, after.as_ref()))
            }
            Effect::ListPacks(after) => {
                Answer::Packs(listed(collecting.packs.iter().map(|(name, at)| (*name, *at)), after.as_ref()))
            }
            Effect::ReadRoots(artifacts) => {
                names(artifacts.iter().filter_map(|artifact| collecting.roots.get(artifact)))
            }
            Effect::ListAnnounced => {
                let all = collecting.announced.keys().filter_map(|key| Announced::parse(key)).collect();
                Answer::Announced { all, is_current: collecting.marks.contains(&number) }
            }
            Effect::ReadAnnounced(announced) => names(collecting.announced.get(&announced.key).into_iter()),
            Effect::Condemn(condemned) => {
                collecting.condemned.insert(number, (condemned.clone(), now));
                Answer::Done
            }
            Effect::Absolve => {
                collecting.condemned.remove(&number);
                Answer::Done
            }
            Effect::DeleteRoots(roots) => {
                self.delete(roots.iter().map(|root| Object::Root(*root)).collect(), wait);
                Answer::Done
            }
            Effect::DeletePacks(packs) => {
                self.delete(packs.iter().map(|pack| Object::Pack(*pack)).collect(), wait);
                Answer::Done
            }
            Effect::End => Answer::Done,
        }
    }

    fn delete(&mut self, objects: Vec<Object>, wait: &mut u64) {
        for object in objects {
            let leg = self.leg();
            *wait = (*wait).max(leg + 1);
            self.at(leg, Event::Delete(object));
        }
    }

    pub(crate) fn deleted(&mut self, object: Object) -> Result<(), Broken> {
        let Some(collecting) = &mut self.collecting else { return Ok(()) };
        let name = match object {
            Object::Root(artifact) => {
                collecting.roots.remove(&artifact);
                format!("the root of {}", short(&artifact))
            }
            Object::Pack(pack) => {
                collecting.packs.remove(&pack);
                format!("pack {}", pack.short())
            }
        };
        self.note("main bucket", &format!("{name} is deleted"));
        self.check_kept()
    }
}

fn slot_of<'a>(control: &'a Control, log: &Core, kind: Kind, key: &str) -> Option<&'a Slot> {
    let partition = partition_of(log, kind.requests(), key).partition;
    control.slots.iter().find(|slot| slot.kind == kind && slot.place.partition == partition)
}

/// Whether the attempt that announced it is over, as this replica sees it.
fn is_settled(control: &Control, log: &Core, key: &str) -> bool {
    let Some(announced) = Announced::parse(key) else { return true };
    let Some(Publisher::Attempt { job, attempt }) = Publisher::parse(announced.by()) else { return true };
    let Some(slot) = slot_of(control, log, Kind::Queue, job.queue.as_str()) else { return false };
    let row = JOBS.get(slot.part.store(), &job).expect("a state in memory");
    row.is_none_or(|row| !row.is_running() || row.attempt != attempt)
}

fn standing(control: &Control, log: &Core, artifact: &ArtifactId) -> Standing {
    let Some(slot) = slot_of(control, log, Kind::Replication, &artifact.to_string()) else { return Standing::Live };
    match tables::ARTIFACTS.get(slot.part.store(), artifact).expect("a state in memory") {
        None => Standing::Unknown,
        Some(row) if row.status == tables::Status::Retired => {
            Standing::RetiredSince(row.retired_at.unwrap_or_default())
        }
        Some(_) => Standing::Live,
    }
}
