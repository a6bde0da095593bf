//! Workers: they claim, build, beat and finish, through whichever control replica answers. They die, stand still and come
//! back to finish what is no longer theirs, and some lie.

use longshore_artifact::collect::Publisher;
use longshore_processor::{Order, Range};
use longshore_queue::tables;
use longshore_schemas::{
    ArtifactId, ClaimId, JobId, QueueName, WorkerId,
    auth::Sender,
    events::{
        ArtifactSummary, AttemptFailed, AttemptFinished, AttemptOutcome, AttemptSucceeded, BuildRequest, FailureReason,
        Heartbeat, Request, WorkerReady, WorkerSignal,
    },
    topics,
};

use crate::{
    check::Broken,
    collecting::content,
    control::Slot,
    forger::signed,
    setting::{Kind, Setting},
    world::{Event, World, partition_of},
};

/// How often an open call repeats its claim, how long each counts, and how often a worker beats: as in production.
const CLAIM_REPEATED: u64 = 5_000;
const CLAIM_VALID: std::time::Duration = std::time::Duration::from_secs(15);
const BEAT: u64 = 10_000;

#[derive(Debug, Clone)]
enum Doing {
    Nothing,
    /// Asks for a job of this queue.
    Claims {
        queue: QueueName,
        claim: ClaimId,
        until: u64,
    },
    Builds {
        job: JobId,
        attempt: u32,
        ends: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    life: u64,
    doing: Doing,
    claims: u64,
    beats_at: u64,
    claims_at: u64,
    finishes: u64,
}

impl Worker {
    pub(crate) fn new(number: usize, _: &Setting) -> Self {
        let id = format!("w{number}").parse().expect("a name");
        Self { id, life: 0, doing: Doing::Nothing, claims: 0, beats_at: 0, claims_at: 0, finishes: 0 }
    }
}

/// What an attempt leaves. Another attempt of the same job may leave other bytes.
fn summary(job: &JobId, attempt: u32, name: longshore_schemas::ArtifactName) -> ArtifactSummary {
    let artifact = ArtifactId::of(format!("{job}/{attempt}").as_bytes());
    ArtifactSummary {
        artifact,
        name,
        size_bytes: 100,
        files: 1,
        chunks: 2,
        packs: 2,
        pack_bytes: 90,
        new_pack_bytes: 90,
    }
}

impl World {
    /// A worker looks around.
    pub(crate) fn worker(&mut self, number: usize, life: u64) -> Result<(), Broken> {
        if self.workers[number].life != life {
            return Ok(());
        }
        let mut next = 1_000;
        if self.rng.chance(self.faults.agents / 8) {
            next = self.trouble(number);
            let life = self.workers[number].life;
            self.at(next, Event::Worker(number, life));
            return Ok(());
        }
        match self.workers[number].doing.clone() {
            Doing::Nothing => self.claim(number),
            Doing::Claims { queue, claim, until } => self.wait_for_job(number, queue, claim, until),
            Doing::Builds { job, attempt, ends } => {
                if self.now >= ends {
                    self.finish(number, &job, attempt);
                } else {
                    self.beat(number, &job, attempt);
                    next = 1_000.min(ends - self.now);
                }
            }
        }
        self.at(next.max(1), Event::Worker(number, life));
        Ok(())
    }

    /// What a worker does that it should not. The time until it goes on.
    fn trouble(&mut self, number: usize) -> u64 {
        let name = self.workers[number].id.to_string();
        match self.rng.range(0..4) {
            0 => {
                let down = self.rng.range(1_000..90_000);
                self.note(&name, &format!("dies, and is back in {down} ms"));
                self.workers[number].life += 1;
                self.workers[number].doing = Doing::Nothing;
                down
            }
            1 => {
                let still = self.rng.range(5_000..120_000);
                self.note(&name, &format!("stands still for {still} ms"));
                still
            }
            2 => {
                self.lie(number);
                500
            }
            _ => {
                // It finishes, and its word comes twice under two ids.
                if let Doing::Builds { job, attempt, .. } = self.workers[number].doing.clone() {
                    self.finish(number, &job, attempt);
                    self.say_finished(number, &job, attempt);
                }
                500
            }
        }
    }

    /// Says that it finished what it does not have, and beats for it.
    fn lie(&mut self, number: usize) {
        let running = self.checker.running();
        let Some((job, attempt)) = self.rng.pick(&running).cloned() else { return };
        let attempt = if self.rng.chance(300) { attempt.saturating_sub(1) } else { attempt };
        let name = self.workers[number].id.to_string();
        self.note(&name, &format!("lies about {job}/{attempt}"));
        self.send_beat(number, &job, attempt);
        self.say_finished(number, &job, attempt);
    }

    fn claim(&mut self, number: usize) {
        let queues = self.people.queues.clone();
        let queue = self.rng.pick(&queues).cloned().expect("there are queues");
        let worker = &mut self.workers[number];
        worker.claims += 1;
        let claim = format!("{}-{}-{}", worker.id, worker.life, worker.claims).parse().expect("a name");
        let until = self.now + self.rng.range(10_000..60_000);
        worker.claims_at = 0;
        worker.doing = Doing::Claims { queue, claim, until };
    }

    fn wait_for_job(&mut self, number: usize, queue: QueueName, claim: ClaimId, until: u64) {
        match self.claimed(&queue, &claim) {
            Claimed::Job(job, attempt) => {
                let ends = self.now + self.rng.range(1_000..70_000);
                let name = self.workers[number].id.to_string();
                self.note(&name, &format!("builds {job}/{attempt}"));
                self.workers[number].beats_at = 0;
                self.beat(number, &job, attempt);
                self.workers[number].doing = Doing::Builds { job, attempt, ends };
                return;
            }
            Claimed::Spent => return self.workers[number].doing = Doing::Nothing,
            Claimed::Waits => {}
        }
        if self.now >= until {
            self.workers[number].doing = Doing::Nothing;
        } else if self.now >= self.workers[number].claims_at {
            self.workers[number].claims_at = self.now + CLAIM_REPEATED;
            self.send_claim(number, queue, claim);
        }
    }

    fn send_claim(&mut self, number: usize, queue: QueueName, claim: ClaimId) {
        let Some(control) = self.any_control() else { return };
        let worker = self.workers[number].id.clone();
        let expires_at = self.controls[control].clock(self.now) + CLAIM_VALID;
        self.signal(control, &worker, WorkerReady { queue, worker: worker.clone(), claim, expires_at }.into());
    }

    fn beat(&mut self, number: usize, job: &JobId, attempt: u32) {
        if self.now >= self.workers[number].beats_at {
            self.workers[number].beats_at = self.now + BEAT;
            self.send_beat(number, job, attempt);
        }
    }

    fn send_beat(&mut self, number: usize, job: &JobId, attempt: u32) {
        let Some(control) = self.any_control() else { return };
        let worker = self.workers[number].id.clone();
        self.signal(control, &worker, Heartbeat { job: job.clone(), attempt, worker: worker.clone() }.into());
    }

    fn signal(&mut self, control: usize, worker: &WorkerId, event: WorkerSignal) {
        if self.lost() {
            return;
        }
        let id = format!("signal-{}-{}", self.steps, worker).parse().expect("an id");
        let at = self.controls[control].clock(self.now);
        let request = Request { id, at, actor: worker.to_string(), trace: None, report: None, event };
        let record = signed(Sender::Control, &request);
        let leg = self.leg();
        self.at(leg, Event::Append(topics::WORKER_SIGNALS.name, record));
    }

    fn finish(&mut self, number: usize, job: &JobId, attempt: u32) {
        self.say_finished(number, job, attempt);
        self.workers[number].doing = Doing::Nothing;
    }

    fn say_finished(&mut self, number: usize, job: &JobId, attempt: u32) {
        let Some(name) = self.checker.name_of(job) else { return };
        let worker = &mut self.workers[number];
        worker.finishes += 1;
        let id = format!("finish-{}-{}-{}", worker.id, worker.life, worker.finishes);
        let worker = worker.id.clone();
        let fails = self.rng.chance(100);
        let content = self.collecting.is_some().then(|| content(job));
        let outcome = if fails {
            let reason = FailureReason::CommandFailed;
            AttemptOutcome::AttemptFailed(AttemptFailed { reason, message: "it did not build".to_owned() })
        } else {
            let mut artifact = summary(job, attempt, name);
            artifact.artifact = content.unwrap_or(artifact.artifact);
            AttemptOutcome::AttemptSucceeded(AttemptSucceeded { artifact })
        };
        let event = AttemptFinished { job: job.clone(), attempt, worker: worker.clone(), outcome };
        let event = BuildRequest::from(event);
        match content.filter(|_| !fails) {
            Some(artifact) => {
                let publisher = Publisher::Attempt { job: job.clone(), attempt };
                self.publish(artifact, &publisher, worker.as_str(), &id, &event);
            }
            None => self.ask(worker.as_str(), &id, event),
        }
    }

    /// What a control replica says of a claim.
    fn claimed(&mut self, queue: &QueueName, claim: &ClaimId) -> Claimed {
        let Some(control) = self.any_control() else { return Claimed::Waits };
        let partition = partition_of(&self.log, topics::BUILD_REQUESTS.name, queue.as_str()).partition;
        let of = |slot: &&Slot| slot.kind == Kind::Queue && slot.place.partition == partition;
        let Some(slot) = self.controls[control].slots.iter().find(of) else { return Claimed::Waits };
        let store = slot.part.store();
        let Some(id) = tables::CLAIMS.get(store, claim).expect("a state in memory") else { return Claimed::Waits };
        match tables::JOBS.get(store, &id).expect("a state in memory") {
            Some(job) if job.is_running() && job.claim.as_ref() == Some(claim) => Claimed::Job(id, job.attempt),
            _ => Claimed::Spent,
        }
    }

    /// Jobs that have not ended, as a replica sees them.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        let mut unfinished = Vec::new();
        for slot in self.controls[0].slots.iter().filter(|slot| slot.kind == Kind::Queue) {
            for table in [tables::QUEUED, tables::RUNNING] {
                let jobs = table.list(slot.part.store(), &Range::all(), Order::Ascending, usize::MAX);
                unfinished.extend(jobs.expect("a state in memory").into_iter().map(|(job, ())| job.to_string()));
            }
        }
        unfinished
    }
}

enum Claimed {
    Job(JobId, u32),
    Spent,
    Waits,
}
