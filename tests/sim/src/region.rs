//! A region's process: it copies artifacts, pushes goals, and reports in order. What it decides is the real policy; buckets
//! and connections are made up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use longshore_log::{ReadLimit, Record, TopicPartition};
use longshore_planted::{Bug, planted};
use longshore_region_policy::{
    board::{Board, Posted},
    levels::{Known, Levels},
    order,
    pending::Pending,
};
use longshore_schemas::{
    ArtifactId, NodeId, RegionName,
    auth::Sender,
    codec::{self, Message},
    events::{
        ArtifactFact, ArtifactRequest, Fact, FleetReport, GoalState, RegionalGoal, ReplicaReported, ReplicaStatus,
        Request,
    },
    topics,
};

use crate::{
    check::Broken,
    forger::signed,
    node::content_of,
    setting::Setting,
    world::{Event, World},
};

/// Beats that stop for so long mean that a node is lost.
const LOST_AFTER: Duration = Duration::from_secs(30);
const LOOK: u64 = 1_000;
/// Records of one append.
const BATCH: usize = 8;

/// Reports to one topic, which are appended in order, one append after the other.
#[derive(Debug, Default)]
struct Outbox {
    sequence: u64,
    waiting: Vec<Told>,
    under_way: Option<Append>,
    appends: u64,
}

/// A report, and the artifact that is copied once the log has it.
#[derive(Debug, Clone)]
struct Told {
    record: Record,
    stored: Option<ArtifactId>,
}

#[derive(Debug, Clone)]
struct Append {
    number: u64,
    reports: Vec<Told>,
    again_at: u64,
}

pub(crate) struct Region {
    pub(crate) name: RegionName,
    pub(crate) up: bool,
    pub(crate) life: u64,
    started: u64,
    // On disk.
    boot: u64,
    known: BTreeMap<NodeId, Known>,
    pending: Pending,
    /// What the bucket holds of each artifact, and so what nodes get.
    pub(crate) bucket: BTreeMap<ArtifactId, u64>,
    /// What was ever verified here, for the checker.
    pub(crate) verified: BTreeSet<ArtifactId>,
    // In memory.
    pub(crate) levels: Levels,
    pub(crate) board: Board<()>,
    goals_at: BTreeMap<u32, u64>,
    pub(crate) caught_up: bool,
    copies: BTreeMap<ArtifactId, u64>,
    /// Copied, and not yet reported.
    copied: BTreeSet<ArtifactId>,
    outboxes: BTreeMap<&'static str, Outbox>,
    /// Every goal that was ever here, for those who bring an old one.
    pub(crate) history: Vec<RegionalGoal>,
}

impl Region {
    pub(crate) fn new(name: &RegionName, setting: &Setting) -> Self {
        Self {
            name: name.clone(),
            up: true,
            life: 0,
            started: 0,
            boot: 1,
            known: BTreeMap::new(),
            pending: Pending::default(),
            bucket: BTreeMap::new(),
            verified: BTreeSet::new(),
            levels: Levels::new(name.clone(), setting.shards, LOST_AFTER, BTreeMap::new()),
            board: Board::default(),
            goals_at: BTreeMap::new(),
            caught_up: false,
            copies: BTreeMap::new(),
            copied: BTreeSet::new(),
            outboxes: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    pub(crate) fn moment(&self, now: u64) -> Duration {
        Duration::from_millis(now - self.started)
    }

    fn report<E>(&mut self, at: longshore_schemas::Timestamp, event: E, stored: Option<ArtifactId>)
    where
        E: longshore_schemas::events::Event,
        Request<E>: Message,
    {
        let sender = format!("region/{}", self.name);
        let outbox = self.outboxes.entry(E::TOPIC.name).or_default();
        outbox.sequence += 1;
        let request = order::report(&sender, self.boot, outbox.sequence, at, event);
        let record = signed(Sender::Region(self.name.clone()), &request);
        outbox.waiting.push(Told { record, stored });
    }

    /// Nothing is left to be told or copied.
    pub(crate) fn is_at_rest(&self) -> bool {
        let told = |outbox: &Outbox| outbox.waiting.is_empty() && outbox.under_way.is_none();
        self.up
            && self.pending.artifacts.is_empty()
            && self.levels.untold().is_empty()
            && self.outboxes.values().all(told)
    }
}

impl World {
    /// A region looks around.
    pub(crate) fn region(&mut self, number: usize, life: u64) -> Result<(), Broken> {
        if self.regions[number].life != life || !self.regions[number].up {
            return Ok(());
        }
        if self.rng.chance(self.faults.agents / 20) {
            self.region_trouble(number);
            if !self.regions[number].up {
                return Ok(());
            }
        }
        self.read_goals(number);
        self.read_artifacts(number);
        self.copy(number);
        let at = self.log_time();
        let now = self.now;
        let region = &mut self.regions[number];
        region.levels.sweep(region.moment(now));
        let untold = region.levels.untold();
        for shard in untold {
            if let Some(report) = region.levels.take(shard) {
                region.report(at, FleetReport::from(report), None);
            }
        }
        if self.rng.chance(200) {
            self.regions[number].known = self.regions[number].levels.known();
        }
        self.send_reports(number);
        self.at(LOOK, Event::Region(number, life));
        Ok(())
    }

    fn region_trouble(&mut self, number: usize) {
        let name = format!("region-{}", self.regions[number].name);
        if self.rng.chance(600) {
            let down = self.rng.range(500..60_000);
            self.note(&name, &format!("crashes, and is back in {down} ms"));
            self.regions[number].up = false;
            self.at(down, Event::RegionBack(number));
            return;
        }
        // Bytes rot in the bucket; the region finds them and copies the artifact again.
        let stored: Vec<ArtifactId> = self.regions[number].bucket.keys().copied().collect();
        if let Some(artifact) = self.rng.pick(&stored).copied() {
            self.note(&name, &format!("finds wrong bytes of {}", short(&artifact)));
            let at = self.log_time();
            let region = &mut self.regions[number];
            region.bucket.remove(&artifact);
            region.copied.remove(&artifact);
            // What is retired nobody wants back.
            if !region.pending.retired.contains_key(&artifact) {
                region.pending.artifacts.push(artifact);
            }
            region.report(
                at,
                reported(&region.name.clone(), artifact, ReplicaStatus::Failed, Some("wrong bytes")),
                None,
            );
        }
    }

    pub(crate) fn region_back(&mut self, number: usize) -> Result<(), Broken> {
        let at = self.log_time();
        let (now, shards) = (self.now, self.setting.shards);
        // Its clock may be far behind what it was.
        let jump = self.rng.range(0..200_000) as i64 - 100_000;
        let region = &mut self.regions[number];
        region.boot =
            order::next_boot(region.boot, longshore_schemas::Timestamp::from_millis(at.millis() / 1_000 + jump));
        region.life += 1;
        region.started = now;
        region.up = true;
        region.levels = Levels::new(region.name.clone(), shards, LOST_AFTER, region.known.clone());
        (region.board, region.goals_at, region.caught_up) = (Board::default(), BTreeMap::new(), false);
        (region.copies, region.copied, region.outboxes) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let (name, life, boot) = (format!("region-{}", region.name), region.life, region.boot);
        self.note(&name, &format!("starts, boot {boot}"));
        self.at(1, Event::Region(number, life));
        Ok(())
    }

    fn read_goals(&mut self, number: usize) {
        for partition in 0..self.log.partitions(topics::GOAL_STATE.name).unwrap_or(0) {
            let of = TopicPartition::new(topics::GOAL_STATE.name, partition);
            let from = self.regions[number].goals_at.get(&partition).copied().unwrap_or(0);
            let Ok((records, next)) = self.log.read(&of, from, ReadLimit::default()) else { continue };
            let region = &mut self.regions[number];
            region.goals_at.insert(partition, next);
            for stored in records {
                let value = stored.record.value.as_deref().unwrap_or_default();
                let Ok(Request { event: GoalState::RegionalGoal(goal), .. }) =
                    codec::decode::<Request<GoalState>>(value)
                else {
                    continue;
                };
                if goal.region == region.name && region.board.offer(unsigned(&goal)).is_some() {
                    region.history.push(goal);
                }
            }
        }
        self.regions[number].caught_up = true;
    }

    fn read_artifacts(&mut self, number: usize) {
        for partition in 0..self.log.partitions(topics::ARTIFACTS.name).unwrap_or(0) {
            let of = TopicPartition::new(topics::ARTIFACTS.name, partition);
            let from = self.regions[number].pending.offsets.get(&partition).copied().unwrap_or(0);
            let Ok((records, next)) = self.log.read(&of, from, ReadLimit::default()) else { continue };
            let region = &mut self.regions[number];
            region.pending.offsets.insert(partition, next);
            for stored in records {
                let value = stored.record.value.as_deref().unwrap_or_default();
                if let Ok(fact) = codec::decode::<Fact<ArtifactFact>>(value) {
                    region.pending.apply(&region.name.clone(), fact.event, fact.at);
                }
            }
        }
    }

    /// Copies what is pending: each takes its time, and comes out wrong at times.
    fn copy(&mut self, number: usize) {
        let at = self.log_time();
        let region = &self.regions[number];
        let pending = region.pending.artifacts.iter().filter(|artifact| !region.copied.contains(artifact));
        let pending: Vec<ArtifactId> = pending.copied().collect();
        for artifact in pending.into_iter().take(4) {
            let time = self.rng.range(500..20_000);
            let ready = *self.regions[number].copies.entry(artifact).or_insert(self.now + time);
            if self.now < ready {
                continue;
            }
            let right = content_of(&artifact);
            let copied = if self.rng.chance(self.faults.agents) { right ^ 1 } else { right };
            if self.collecting.as_ref().is_some_and(|collecting| !collecting.has(&artifact)) {
                // Its retirement is on its way here.
                continue;
            }
            let region = &mut self.regions[number];
            let name = region.name.clone();
            region.copies.remove(&artifact);
            if copied != right && !planted(Bug::ReportUnverifiedReplica) {
                region.report(
                    at,
                    reported(&name, artifact, ReplicaStatus::Failed, Some("a pack has wrong bytes")),
                    None,
                );
                self.note(&format!("region-{name}"), &format!("copied {} wrongly", short(&artifact)));
                continue;
            }
            if copied == right {
                region.verified.insert(artifact);
            }
            region.bucket.insert(artifact, copied);
            // It stays pending until the log has the word.
            region.copied.insert(artifact);
            region.report(at, reported(&name, artifact, ReplicaStatus::Stored, None), Some(artifact));
            self.note(&format!("region-{name}"), &format!("has {}", short(&artifact)));
        }
    }

    fn send_reports(&mut self, number: usize) {
        let topics: Vec<&'static str> = self.regions[number].outboxes.keys().copied().collect();
        for topic in topics {
            let Some(outbox) = self.regions[number].outboxes.get_mut(topic) else { continue };
            match &mut outbox.under_way {
                Some(append) if self.now >= append.again_at => append.again_at = self.now + 3_000,
                Some(_) => continue,
                None if outbox.waiting.is_empty() => continue,
                None => {
                    let count = outbox.waiting.len().min(BATCH);
                    let reports = outbox.waiting.drain(..count).collect();
                    outbox.appends += 1;
                    outbox.under_way = Some(Append { number: outbox.appends, reports, again_at: self.now + 3_000 });
                }
            }
            let Some(Append { number: append, reports, .. }) = outbox.under_way.clone() else { continue };
            let records = reports.into_iter().map(|told| told.record).collect();
            if !self.lost() {
                let leg = self.leg();
                let life = self.regions[number].life;
                self.at(leg, Event::Outbox { region: number, life, topic, number: append, records });
            }
        }
    }

    /// An append of a region reaches the log, whatever has become of the region.
    pub(crate) fn outbox_arrives(
        &mut self,
        (region, life): (usize, u64),
        topic: &'static str,
        number: u64,
        mut records: Vec<Record>,
    ) -> Result<(), Broken> {
        // Not atomic: after an error some may be there.
        let torn = self.rng.chance(self.faults.lost);
        if torn {
            records.truncate(self.rng.index(records.len() + 1));
        }
        self.append(topic, records);
        if !torn && !self.lost() {
            let leg = self.leg();
            self.at(leg, Event::OutboxDone { region, life, topic, number });
        }
        Ok(())
    }

    pub(crate) fn outbox_done(
        &mut self,
        region: usize,
        life: u64,
        topic: &'static str,
        number: u64,
    ) -> Result<(), Broken> {
        let region = &mut self.regions[region];
        if region.life != life {
            return Ok(());
        }
        let under_way = region.outboxes.get_mut(topic).map(|outbox| &mut outbox.under_way);
        let Some(append) = under_way.and_then(|append| append.take_if(|append| append.number == number)) else {
            return Ok(());
        };
        for artifact in append.reports.iter().filter_map(|told| told.stored) {
            // Unless wrong bytes were found in it meanwhile.
            if region.copied.remove(&artifact) && region.bucket.contains_key(&artifact) {
                region.pending.remove(&artifact);
            }
        }
        Ok(())
    }
}

fn reported(region: &RegionName, artifact: ArtifactId, status: ReplicaStatus, error: Option<&str>) -> ArtifactRequest {
    let error = error.map(str::to_owned);
    ReplicaReported { artifact, region: region.clone(), status, packs_done: 2, bytes_copied: 90, error }.into()
}

/// The beginning of an artifact's name, for people.
pub(crate) fn short(artifact: &ArtifactId) -> String {
    artifact.to_string()[..8].to_owned()
}

/// What passes on a goal in these worlds forges none: who is believed is tested with real keys.
fn unsigned(goal: &RegionalGoal) -> Posted<()> {
    Posted { goal: goal.clone(), message: () }
}
