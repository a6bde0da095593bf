//! The invariants of the design, checked as facts are committed and states change.
//!
//! The checker reads the log as anybody may: it folds every fact into a State of its own, and into small models that are
//! made for the questions and not for the work. So it is right independently of what it checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use longshore_fleet::Fleet;
use longshore_goals::Goals;
use longshore_log::{Position, TopicPartition, simulated::Core};
use longshore_node_policy::plan::Release;
use longshore_partition::{Applied, Role, Wire, apply_record};
use longshore_processor::{Fingerprint, Memory, fingerprint};
use longshore_queue::Queue;
use longshore_replication::Replication;
use longshore_schemas::{
    ArtifactId, ArtifactName, ClaimId, JobId, NodeId, RegionName, RequestId, ServiceName, WorkerId, codec,
    events::{
        ArtifactFact, ArtifactImported, BuildFact, BuildRequest, Cause, Convergence, DeadLetter, Fact, FactEvent,
        FleetFact, GoalFact, GoalVersion, Processed, ReplicationStarted, Request, RolloutPlan, Trigger, WorkerSignal,
    },
    topics,
};

use crate::{
    control::Slot,
    forger::FORGER,
    region::{Region, short},
    retention::OPERATOR,
    setting::{KINDS, Kind, Setting},
};

/// What must always hold. The numbers are the design's; 0 is the form of facts themselves.
pub const INVARIANTS: [&str; 14] = [
    "facts are gapless, in the order of time, and each decision's are together",
    "every acknowledged request is processed exactly once",
    "state equals a replay from zero",
    "the applied offset is never ahead of what is applied",
    "at most one published artifact per job",
    "nothing of a stale attempt or owner is accepted",
    "first in, first out for each queue",
    "nothing is deployed before it is in every region of its plan",
    "a node runs only bytes that it verified",
    "a goal's version never goes back",
    "a rollout never exceeds its failure budget by more than what was in flight",
    "queues, buffers and memory are bounded",
    "when the faults stop, everything converges",
    "no artifact that is kept lacks a pack, and what is needed is kept",
];

/// An invariant that does not hold, and what broke it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub invariant: usize,
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {} ({}): {}", self.invariant, INVARIANTS[self.invariant], self.what)
    }
}

pub(crate) type Checked = Result<(), Broken>;

pub(crate) fn broken<T>(invariant: usize, what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken { invariant, what: what.into() })
}

fn must(holds: bool, invariant: usize, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { broken(invariant, what()) }
}

/// How long before a deadline was asked about a beat must have come to keep its attempt. Time stands still while ends are
/// asked for, so what comes meanwhile counts from before; in a gentle world that is no time at all.
const BEAT_COUNTS: u64 = 20_000;
const BEAT_COUNTS_GENTLE: u64 = 58_000;
/// How long after it was last repeated a claim may get a job: as long as it says, and as long as messages may be late.
const CLAIM_COUNTS: u64 = 120_000;
const CLAIM_COUNTS_GENTLE: u64 = 16_000;
/// States are compared in one of so many steps: it is the dearest of the checks.
const COMPARED: u64 = 50;

/// The State as the facts give it.
#[derive(Default)]
struct Reference {
    state: Memory,
    applied: Applied,
    last_cause: Option<Cause>,
    /// Requests of which a decision was made.
    decided: BTreeSet<u64>,
    next_request: u64,
}

enum Standing {
    Waits,
    Runs { attempt: u32, worker: WorkerId },
    Ended,
}

struct Job {
    name: ArtifactName,
    standing: Standing,
    published: u32,
}

#[derive(Default)]
struct Service {
    version: GoalVersion,
    announced: GoalVersion,
    plan: Option<RolloutPlan>,
}

#[derive(Default)]
pub(crate) struct Checker {
    shards: u32,
    queued_max: u32,
    claim_counts: u64,
    beat_counts: u64,
    references: BTreeMap<(Kind, u32), Reference>,
    dead_letters: usize,
    acknowledged: Vec<Position>,
    /// Requests of the queue that the log had removed before a fact dealt with them.
    lost: BTreeSet<(u32, u64)>,
    /// Facts that the log has removed.
    trimmed: BTreeMap<(Kind, u32), u64>,
    // Of the queue.
    build_requests: BTreeMap<(u32, u64), Request<BuildRequest>>,
    refused: BTreeSet<RequestId>,
    jobs: BTreeMap<JobId, Job>,
    of_request: BTreeMap<RequestId, JobId>,
    spent_claims: BTreeSet<ClaimId>,
    /// When each claim was last repeated.
    claims: BTreeMap<ClaimId, u64>,
    beats: BTreeMap<(JobId, u32, WorkerId), Vec<u64>>,
    // Of replication.
    pub(crate) artifacts: Vec<ArtifactId>,
    regions_of: BTreeMap<ArtifactId, Vec<RegionName>>,
    stored: BTreeSet<(ArtifactId, RegionName)>,
    ever_stored: BTreeSet<(ArtifactId, RegionName)>,
    /// Started, and not retired.
    pub(crate) live: BTreeSet<ArtifactId>,
    pins: BTreeSet<(ArtifactId, ServiceName)>,
    // Of goals.
    services: BTreeMap<ServiceName, Service>,
    levels: BTreeMap<(ServiceName, RegionName, u32), (GoalVersion, Convergence)>,
    // Of nodes.
    /// What failed last on a node, of each service: its revision and artifact.
    failed: BTreeMap<(NodeId, ServiceName), (u64, ArtifactId)>,
    pub(crate) facts: u64,
}

impl Checker {
    pub(crate) fn new(setting: &Setting) -> Self {
        let mut references = BTreeMap::new();
        for kind in KINDS {
            for partition in 0..setting.partitions(kind) {
                references.insert((kind, partition), Reference::default());
            }
        }
        let (claim_counts, beat_counts) = match setting.faults.is_gentle() {
            true => (CLAIM_COUNTS_GENTLE, BEAT_COUNTS_GENTLE),
            false => (CLAIM_COUNTS, BEAT_COUNTS),
        };
        let (shards, queued_max) = (setting.shards, setting.queue.queued_max);
        Self { shards, queued_max, claim_counts, beat_counts, references, ..Self::default() }
    }

    // What the others ask.

    /// Jobs that have not ended.
    pub(crate) fn jobs(&self) -> Vec<JobId> {
        let open = self.jobs.iter().filter(|(_, job)| !matches!(job.standing, Standing::Ended));
        open.map(|(id, _)| id.clone()).collect()
    }

    pub(crate) fn running(&self) -> Vec<(JobId, u32)> {
        let running = self.jobs.iter().filter_map(|(id, job)| match job.standing {
            Standing::Runs { attempt, .. } => Some((id.clone(), attempt)),
            _ => None,
        });
        running.collect()
    }

    pub(crate) fn worker_of(&self, job: &JobId) -> Option<WorkerId> {
        match &self.jobs.get(job)?.standing {
            Standing::Runs { worker, .. } => Some(worker.clone()),
            _ => None,
        }
    }

    pub(crate) fn name_of(&self, job: &JobId) -> Option<ArtifactName> {
        self.jobs.get(job).map(|job| job.name.clone())
    }

    // What comes to the log.

    pub(crate) fn appended(&mut self, log: &Core, positions: &[Position], now: u64) {
        for Position { source, offset } in positions {
            let is = |topic: topics::Topic| *source.topic == *topic.name;
            if !is(topics::BUILD_REQUESTS) && !is(topics::WORKER_SIGNALS) {
                continue;
            }
            let records = log.records(source);
            let Ok(index) = records.binary_search_by_key(offset, |record| record.offset) else { continue };
            let value = records[index].record.value.as_deref().unwrap_or_default();
            if is(topics::BUILD_REQUESTS) {
                if let Ok(request) = codec::decode::<Request<BuildRequest>>(value) {
                    self.build_requests.insert((source.partition, *offset), request);
                }
                continue;
            }
            match codec::decode::<Request<WorkerSignal>>(value).map(|signal| signal.event) {
                Ok(WorkerSignal::WorkerReady(ready)) => drop(self.claims.insert(ready.claim, now)),
                Ok(WorkerSignal::Heartbeat(beat)) => {
                    self.beats.entry((beat.job, beat.attempt, beat.worker)).or_default().push(now);
                }
                Err(_) => {}
            }
        }
    }

    pub(crate) fn lost(&mut self, partition: u32, offsets: std::ops::Range<u64>) {
        self.lost.extend(offsets.map(|offset| (partition, offset)));
    }

    pub(crate) fn trimmed(&mut self, kind: Kind, partition: u32, facts: u64) {
        *self.trimmed.entry((kind, partition)).or_default() += facts;
    }

    /// What a replica may halt for: the log has lost what it needs, as far as it knows the facts, and it says what to do.
    fn may_halt(&self, log: &Core, slot: &Slot, told: &str) -> bool {
        let (kind, partition) = (slot.kind, slot.place.partition);
        let start = log.start(&TopicPartition::new(kind.requests(), partition)).unwrap_or(0);
        let requests = slot.part.applied().request_offset < start;
        let accept = format!("`longshore log accept-loss {} {partition} --from ", kind.name());
        let facts = self.trimmed.contains_key(&(kind, partition));
        (requests && told.contains(&accept)) || (facts && told.contains("begins from a snapshot"))
    }

    pub(crate) fn acknowledged(&mut self, position: Position) {
        self.acknowledged.push(position);
    }

    // What a state must be.

    /// Invariants 2 and 3, of one part of a replica.
    pub(crate) fn part(&self, log: &Core, slot: &Slot, step: u64) -> Checked {
        let status = slot.part.status();
        let told = status.error.as_deref().unwrap_or("no reason");
        must(status.role != Role::Halted || self.may_halt(log, slot, told), 2, || {
            format!("{} halted: {told}", slot.name())
        })?;
        let applied = slot.part.applied();
        let facts = TopicPartition::new(slot.kind.facts(), slot.place.partition);
        let end = log.end(&facts).unwrap_or(0);
        must(applied.fact_offset <= end, 3, || {
            format!("{} has applied up to {} of {end}", slot.name(), applied.fact_offset)
        })?;
        // One that lacks what the log has removed is further behind than can be counted.
        let is_there = log.start(&facts).is_ok_and(|start| start <= applied.fact_offset);
        let trimmed = self.trimmed.get(&(slot.kind, slot.place.partition)).copied().unwrap_or_default();
        let records = log.records(&facts);
        let below = trimmed + records.partition_point(|record| record.offset < applied.fact_offset) as u64;
        must(applied.sequence == below || !is_there, 3, || {
            format!(
                "{} is at {} with sequence {}, but {below} facts are below",
                slot.name(),
                applied.fact_offset,
                applied.sequence
            )
        })?;
        if step.is_multiple_of(COMPARED) { self.compare(slot) } else { Ok(()) }
    }

    /// Invariant 2, if the part is as far as the facts are.
    pub(crate) fn compare(&self, slot: &Slot) -> Checked {
        let Some(reference) = self.references.get(&(slot.kind, slot.place.partition)) else { return Ok(()) };
        if reference.applied.sequence != slot.part.applied().sequence {
            return Ok(());
        }
        let (here, there) = (slot.part.fingerprint(), self.fingerprint(slot.kind, reference));
        must(here == there, 2, || {
            format!("{} has another state than a replay at {}", slot.name(), reference.applied.sequence)
        })
    }

    fn fingerprint(&self, kind: Kind, reference: &Reference) -> Fingerprint {
        let tables = match kind {
            Kind::Queue => <Queue as longshore_processor::Processor>::TABLES,
            Kind::Replication => <Replication as longshore_processor::Processor>::TABLES,
            Kind::Goals => <Goals as longshore_processor::Processor>::TABLES,
            Kind::Fleet => <Fleet as longshore_processor::Processor>::TABLES,
        };
        fingerprint(&reference.state, tables).expect("a state in memory")
    }

    /// What the facts say that is applied of a partition.
    pub(crate) fn applied(&self, kind: Kind, partition: u32) -> Applied {
        self.references.get(&(kind, partition)).map(|reference| reference.applied).unwrap_or_default()
    }

    /// The first request that was acknowledged and is not processed.
    pub(crate) fn unprocessed(&self) -> Option<&Position> {
        self.acknowledged.iter().find(|position| {
            let kind = KINDS.into_iter().find(|kind| *kind.requests() == *position.source.topic);
            kind.is_some_and(|kind| self.applied(kind, position.source.partition).request_offset <= position.offset)
        })
    }

    // What the facts say.

    /// Takes the facts that came since. Answers them as lines.
    pub(crate) fn committed(
        &mut self,
        log: &Core,
        regions: &[Region],
        asked_at: u64,
        now: u64,
    ) -> Result<Vec<String>, Broken> {
        let mut lines = Vec::new();
        let places: Vec<(Kind, u32)> = self.references.keys().copied().collect();
        for (kind, partition) in places {
            match kind {
                Kind::Queue => self.fold::<Queue>(log, kind, partition, &mut lines, |checker, fact| {
                    checker.build(partition, fact, asked_at, now)
                }),
                Kind::Replication => self.fold::<Replication>(log, kind, partition, &mut lines, |checker, fact| {
                    checker.artifact(fact, regions)
                }),
                Kind::Goals => self.fold::<Goals>(log, kind, partition, &mut lines, Self::goal),
                Kind::Fleet => self.fold::<Fleet>(log, kind, partition, &mut lines, |_, _: &Fact<FleetFact>| Ok(())),
            }?;
        }
        self.dead_letters(log)?;
        Ok(lines)
    }

    fn fold<P: Wire>(
        &mut self,
        log: &Core,
        kind: Kind,
        partition: u32,
        lines: &mut Vec<String>,
        check: impl Fn(&mut Self, &Fact<P::Fact>) -> Checked,
    ) -> Checked {
        let of = TopicPartition::new(kind.facts(), partition);
        let mut reference = self.references.remove(&(kind, partition)).unwrap_or_default();
        let records = log.records(&of);
        let first = records.partition_point(|record| record.offset < reference.applied.fact_offset);
        for record in &records[first..] {
            let before = reference.applied;
            let fact = match apply_record::<P>(&mut reference.state, &mut reference.applied, record) {
                Ok(fact) => fact,
                Err(error) => return broken(0, error.to_string()),
            };
            self.facts += 1;
            lines.push(describe(kind, partition, &fact));
            must(fact.at >= before.at, 0, || {
                format!("{of}: fact {} is of {} after {}", fact.sequence, fact.at, before.at)
            })?;
            must(fact.actor != FORGER, 5, || format!("{of}: fact {} follows from what was forged", fact.sequence))?;
            self.cause(kind, &mut reference, &fact)?;
            check(self, &fact)?;
            if let Some(processed) = fact.event.processed() {
                self.processed(kind, partition, &mut reference, processed, fact.actor == OPERATOR)?;
            }
        }
        self.references.insert((kind, partition), reference);
        Ok(())
    }

    /// Each decision's facts stand together, and no record is decided twice.
    fn cause<F: FactEvent>(&self, kind: Kind, reference: &mut Reference, fact: &Fact<F>) -> Checked {
        let cause = &fact.cause;
        let torn = match &reference.last_cause {
            Some(last) if last.index + 1 < last.count => cause.index != last.index + 1 || cause.trigger != last.trigger,
            _ => cause.index != 0,
        };
        must(!torn, 0, || format!("{} fact {}: the decision before it is torn", kind.name(), fact.sequence))?;
        if let Trigger::Consumed(consumed) = &cause.trigger
            && cause.index == 0
            && consumed.topic == kind.requests()
        {
            must(reference.decided.insert(consumed.offset), 1, || {
                format!("{} {} of offset {} was decided twice", kind.name(), consumed.request, consumed.offset)
            })?;
        }
        reference.last_cause = Some(cause.clone());
        Ok(())
    }

    /// What lies below the next offset was dealt with: decided, refused, or known from before.
    /// Only what is lost is passed over, and only by who accepts that.
    fn processed(
        &mut self,
        kind: Kind,
        partition: u32,
        reference: &mut Reference,
        processed: &Processed,
        by_operator: bool,
    ) -> Checked {
        let from = reference.next_request;
        must(processed.next_offset >= from, 1, || {
            format!("{}/{partition} goes back from {from} to {}", kind.name(), processed.next_offset)
        })?;
        reference.next_request = processed.next_offset;
        if kind != Kind::Queue {
            return Ok(());
        }
        self.refused.extend(processed.refusals.iter().map(|refusal| refusal.request.clone()));
        for ((_, offset), request) in self.build_requests.range((partition, from)..(partition, processed.next_offset)) {
            if by_operator {
                must(self.lost.contains(&(partition, *offset)), 1, || {
                    format!("{} at {offset} was not lost", request.id)
                })?;
                continue;
            }
            let known = self.of_request.contains_key(&request.id) || self.refused.contains(&request.id);
            let wants_job = matches!(request.event, BuildRequest::BuildRequested(_));
            must(known || !wants_job, 1, || format!("{} at {offset} was passed over", request.id))?;
        }
        Ok(())
    }

    /// Only what is no request at all may end there, and what was forged.
    fn dead_letters(&mut self, log: &Core) -> Checked {
        let letters = log.records(&TopicPartition::new(topics::DEAD_LETTERS.name, 0));
        for record in &letters[self.dead_letters.min(letters.len())..] {
            let value = record.record.value.as_deref().unwrap_or_default();
            let Ok(letter) = codec::decode::<DeadLetter>(value) else { continue };
            let forged = letter.value.windows(FORGER.len()).any(|part| part == FORGER.as_bytes());
            let rightly = if forged { "not believed" } else { "undecodable" };
            must(letter.error.starts_with(rightly), 1, || {
                format!(
                    "a request of {}/{} at {} became a dead letter: {}",
                    letter.topic, letter.partition, letter.offset, letter.error
                )
            })?;
        }
        self.dead_letters = letters.len();
        Ok(())
    }

    fn build(&mut self, partition: u32, fact: &Fact<BuildFact>, asked_at: u64, now: u64) -> Checked {
        match &fact.event {
            BuildFact::JobQueued(event) => {
                let earlier = self.of_request.insert(event.request.clone(), event.job.clone());
                must(earlier.is_none(), 1, || format!("{} became {} and {earlier:?}", event.request, event.job))?;
                let name = event.build.name.clone();
                self.jobs.insert(event.job.clone(), Job { name, standing: Standing::Waits, published: 0 });
                let waits =
                    |(id, job): &(&JobId, &Job)| id.queue == event.job.queue && matches!(job.standing, Standing::Waits);
                let waiting = self.jobs.iter().filter(waits).count() as u32;
                // One that is given up comes back to a full queue.
                let running = self.running().len() as u32;
                must(waiting <= self.queued_max + running + 1, 11, || {
                    format!("{waiting} jobs wait in {}", event.job.queue)
                })
            }
            BuildFact::JobStarted(event) => {
                let oldest = self
                    .jobs
                    .iter()
                    .find(|(id, job)| id.queue == event.job.queue && matches!(job.standing, Standing::Waits));
                let oldest = oldest.map(|(id, _)| id.clone());
                must(oldest.as_ref() == Some(&event.job), 6, || format!("{} started before {oldest:?}", event.job))?;
                let repeated = self.claims.get(&event.claim).copied().unwrap_or_default();
                must(repeated + self.claim_counts >= now, 5, || {
                    format!("{} was given to {}, last heard of at {repeated} ms", event.job, event.claim)
                })?;
                must(self.spent_claims.insert(event.claim.clone()), 5, || {
                    format!("{} was given to {}, which had a job before", event.job, event.claim)
                })?;
                let (attempt, worker) = (event.attempt, event.worker.clone());
                self.stand(&event.job, Standing::Runs { attempt, worker });
                Ok(())
            }
            BuildFact::JobRequeued(event) => {
                self.was_silent(&event.job, asked_at)?;
                self.stand(&event.job, Standing::Waits);
                Ok(())
            }
            BuildFact::JobCanceled(event) => {
                self.stand(&event.job, Standing::Ended);
                Ok(())
            }
            BuildFact::BuildSucceeded(event) => {
                self.is_current(partition, fact, &event.job)?;
                let job = self.jobs.get_mut(&event.job);
                let published = job.map_or(0, |job| {
                    job.published += 1;
                    job.published
                });
                must(published == 1, 4, || format!("{} published {published} artifacts", event.job))?;
                self.stand(&event.job, Standing::Ended);
                Ok(())
            }
            BuildFact::BuildFailed(event) => {
                match &fact.cause.trigger {
                    Trigger::Consumed(_) => self.is_current(partition, fact, &event.job)?,
                    Trigger::TimerFired(_) => self.was_silent(&event.job, asked_at)?,
                }
                self.stand(&event.job, Standing::Ended);
                Ok(())
            }
            BuildFact::WorkerLost(_) | BuildFact::Processed(_) => Ok(()),
        }
    }

    fn stand(&mut self, job: &JobId, standing: Standing) {
        if let Some(job) = self.jobs.get_mut(job) {
            job.standing = standing;
        }
    }

    /// The request that ended the job came from the worker that has it.
    fn is_current(&self, partition: u32, fact: &Fact<BuildFact>, job: &JobId) -> Checked {
        let Trigger::Consumed(consumed) = &fact.cause.trigger else {
            return broken(5, format!("{job} ended without a word of its worker"));
        };
        let request = self.build_requests.get(&(partition, consumed.offset));
        let Some(BuildRequest::AttemptFinished(said)) = request.map(|request| &request.event) else {
            return broken(5, format!("{job} ended by {}, which is no word of a worker", consumed.request));
        };
        let current = self.jobs.get(job).map(|job| &job.standing);
        let is_current = match current {
            Some(Standing::Runs { attempt, worker }) => (*attempt, worker) == (said.attempt, &said.worker),
            _ => false,
        };
        // A second success is the matter of another invariant.
        let has_ended = matches!(current, Some(Standing::Ended));
        must(is_current || has_ended, 5, || {
            format!("{} said that attempt {} of {job} ended, and was believed", said.worker, said.attempt)
        })
    }

    /// Whoever was given up had not beaten before its deadline was looked at.
    fn was_silent(&self, job: &JobId, asked_at: u64) -> Checked {
        let Some(Standing::Runs { attempt, worker }) = self.jobs.get(job).map(|job| &job.standing) else {
            return Ok(());
        };
        let beats = self.beats.get(&(job.clone(), *attempt, worker.clone()));
        let counts = |at: &&u64| **at <= asked_at && **at + self.beat_counts > asked_at;
        let beat = beats.and_then(|beats| beats.iter().find(counts));
        must(beat.is_none(), 5, || {
            format!(
                "attempt {attempt} of {job} was given up at {asked_at} ms, though {worker} had beaten at {beat:?} ms"
            )
        })
    }

    fn artifact(&mut self, fact: &Fact<ArtifactFact>, regions: &[Region]) -> Checked {
        match &fact.event {
            ArtifactFact::ReplicationStarted(ReplicationStarted { summary, regions, .. })
            | ArtifactFact::ArtifactImported(ArtifactImported { summary, regions, .. }) => {
                if !self.artifacts.contains(&summary.artifact) {
                    self.artifacts.push(summary.artifact);
                }
                self.regions_of.insert(summary.artifact, regions.clone());
                if !self.live.insert(summary.artifact) {
                    return Ok(());
                }
                // Its copies of before may be gone.
                self.stored.retain(|(stored, _)| *stored != summary.artifact);
                self.ever_stored.retain(|(stored, _)| *stored != summary.artifact);
            }
            ArtifactFact::ReplicaStored(event) => {
                let key = (event.artifact, event.region.clone());
                let verified = regions
                    .iter()
                    .any(|region| region.name == event.region && region.verified.contains(&event.artifact));
                must(verified, 8, || {
                    format!("{} says that it has {} unverified", event.region, short(&event.artifact))
                })?;
                self.ever_stored.insert(key.clone());
                self.stored.insert(key);
            }
            ArtifactFact::ReplicaFailed(event) => {
                self.stored.remove(&(event.artifact, event.region.clone()));
            }
            ArtifactFact::ReplicationCompleted(event) => {
                let regions = self.regions_of.get(&event.artifact).cloned().unwrap_or_default();
                let lacking = regions.iter().find(|region| !self.stored.contains(&(event.artifact, (*region).clone())));
                must(lacking.is_none(), 7, || {
                    format!("{} is complete, but not in {lacking:?}", short(&event.artifact))
                })?;
            }
            ArtifactFact::ArtifactPinned(event) => {
                self.pins.insert((event.artifact, event.service.clone()));
            }
            ArtifactFact::ArtifactUnpinned(event) => {
                self.pins.remove(&(event.artifact, event.service.clone()));
            }
            ArtifactFact::ArtifactRetired(event) => {
                let artifact = event.artifact;
                self.live.remove(&artifact);
                let pin = self.pins.iter().find(|(pinned, _)| *pinned == artifact);
                must(pin.is_none(), 13, || format!("{} was retired, and {pin:?} needs it", short(&artifact)))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn goal(&mut self, fact: &Fact<GoalFact>) -> Checked {
        match &fact.event {
            GoalFact::GoalSet(event) => {
                for region in event.plan.waves.iter().flat_map(|wave| &wave.regions) {
                    let stored = self.ever_stored.contains(&(event.artifact, region.clone()));
                    must(stored, 7, || {
                        format!("{} is to run {}, which {region} lacks", event.service, short(&event.artifact))
                    })?;
                }
                let service = self.services.entry(event.service.clone()).or_default();
                service.plan = Some(event.plan.clone());
                advance(service, &event.service, GoalVersion { revision: event.revision, step: 0 })
            }
            GoalFact::WaveStarted(event) => {
                let service = self.services.entry(event.service.clone()).or_default();
                service.announced = event.version;
                advance(service, &event.service, event.version)
            }
            GoalFact::RolloutResumed(event) => {
                let service = self.services.entry(event.service.clone()).or_default();
                service.announced = event.version;
                advance(service, &event.service, event.version)
            }
            GoalFact::RolloutPaused(event) => {
                advance(self.services.entry(event.service.clone()).or_default(), &event.service, event.version)
            }
            GoalFact::RolloutHalted(event) => {
                advance(self.services.entry(event.service.clone()).or_default(), &event.service, event.version)
            }
            GoalFact::ConvergenceRecorded(event) => {
                let key = (event.service.clone(), event.region.clone(), event.shard);
                self.levels.insert(key, (event.version, event.level));
                Ok(())
            }
            GoalFact::WavePassed(event) => self.wave_passed(&event.service, event.wave, event.level),
            _ => Ok(()),
        }
    }

    /// All of the wave's shards have answered, and not too many nodes failed.
    fn wave_passed(&self, name: &ServiceName, wave: u32, level: Convergence) -> Checked {
        let Some(service) = self.services.get(name) else { return broken(10, format!("{name} has no goal")) };
        let plan = service.plan.as_ref();
        let Some((plan, wave)) = plan.and_then(|plan| Some((plan, plan.waves.get(wave as usize)?))) else {
            return broken(10, format!("{name} has no wave {wave}"));
        };
        for region in &wave.regions {
            for shard in 0..self.shards {
                let answered = self.levels.get(&(name.clone(), region.clone(), shard));
                let is_new = answered.is_some_and(|(version, _)| *version == service.announced);
                must(is_new, 10, || {
                    format!("a wave of {name} passed before {region}/{shard} answered {}", service.announced)
                })?;
            }
        }
        let allowed = u64::from(level.eligible) * u64::from(plan.failure_budget_bp) / 10_000;
        must(u64::from(level.failed) <= allowed, 10, || {
            format!(
                "a wave of {name} passed with {} of {} failed, {allowed} were allowed",
                level.failed, level.eligible
            )
        })?;
        must(level.converged + level.failed >= level.eligible, 10, || {
            format!("a wave of {name} passed before it settled")
        })
    }

    // What nodes do.

    pub(crate) fn goal_taken(
        &self,
        node: &NodeId,
        service: &ServiceName,
        held: Option<GoalVersion>,
        taken: GoalVersion,
    ) -> Checked {
        must(held.is_none_or(|held| held < taken), 9, || format!("{node} goes from {held:?} to {taken} of {service}"))
    }

    pub(crate) fn started(&self, node: &NodeId, artifact: &ArtifactId, bytes: Option<u64>, right: u64) -> Checked {
        must(bytes == Some(right), 8, || format!("{node} runs bytes that are not those of {}", short(artifact)))
    }

    pub(crate) fn switched(&self, node: &NodeId, service: &ServiceName, release: &Release) -> Checked {
        let failed = self.failed.get(&(node.clone(), service.clone()));
        must(failed != Some(&(release.revision, release.artifact)), 10, || {
            let artifact = short(&release.artifact);
            format!("{node} tries {artifact} of {service} again, which failed in revision {}", release.revision)
        })
    }

    /// What failed before may be tried again after something else was healthy.
    pub(crate) fn release_proved(&mut self, node: &NodeId, service: &ServiceName) {
        self.failed.remove(&(node.clone(), service.clone()));
    }

    pub(crate) fn release_failed(&mut self, node: &NodeId, service: &ServiceName, release: &Release) {
        self.failed.insert((node.clone(), service.clone()), (release.revision, release.artifact));
    }
}

fn advance(service: &mut Service, name: &ServiceName, version: GoalVersion) -> Checked {
    let before = service.version;
    must(version > before, 9, || format!("the goal of {name} goes from {before} to {version}"))?;
    service.version = version;
    Ok(())
}

/// A fact as one short line.
fn describe<F: FactEvent>(kind: Kind, partition: u32, fact: &Fact<F>) -> String {
    let cause = match &fact.cause.trigger {
        Trigger::Consumed(consumed) => format!("{}@{}", consumed.request, consumed.offset),
        Trigger::TimerFired(timer) => format!("timer {}", timer.due.millis() - crate::control::START_MILLIS),
    };
    let mut what = match fact.event.processed() {
        Some(processed) => format!("next {}, {} refusals", processed.next_offset, processed.refusals.len()),
        None => format!("{:?}", fact.event),
    };
    what.truncate(what.floor_char_boundary(160));
    format!("{}/{partition} #{} {} {what} <- {cause}", kind.name(), fact.sequence, fact.event.kind())
}
