//! Those who ask: people and services that request builds, cancel them, deploy, roll back, pause; and how a request reaches
//! the log. A client repeats a request, with the same id, until the log says that it has it, and sometimes after that.

use std::collections::BTreeSet;

use longshore_log::{Position, Record};
use longshore_processor::{Order, Range};
use longshore_schemas::{
    QueueName, ServiceName,
    auth::Sender,
    codec::Message,
    events::{
        BuildRequest, BuildRequested, BuildSpec, CancelRequested, DeployRequested, GoalRequest, LiftHoldRequested,
        PauseRequested, Request, ResumeRequested, RollbackRequested, RolloutPlan, RunSpec, Wave,
    },
    http::RolloutStatus,
    topics,
};

use crate::{
    check::Broken,
    forger::signed,
    setting::{Kind, Setting},
    world::{Event, World},
};

/// Services that are deployed.
const SERVICES: [&str; 2] = ["web", "api"];

#[derive(Debug, Default)]
pub(crate) struct People {
    pub(crate) queues: Vec<QueueName>,
    /// Builds that were asked for.
    asked: u64,
    deploys: u64,
    sends: u64,
}

impl People {
    pub(crate) fn new(setting: &Setting) -> Self {
        let queues = (0..setting.queues).map(|number| format!("q{number}").parse().expect("a name")).collect();
        Self { queues, ..Self::default() }
    }
}

/// A request on its way to the log.
#[derive(Debug, Clone)]
pub(crate) struct Send {
    pub(crate) who: String,
    pub(crate) topic: &'static str,
    pub(crate) record: Record,
    pub(crate) acknowledged: bool,
}

pub(crate) fn run() -> RunSpec {
    RunSpec {
        command: vec!["serve".to_owned()],
        environment: Default::default(),
        health: Default::default(),
        stop_signal: Default::default(),
        stop_seconds: 1,
        ..RunSpec::default()
    }
}

fn build(number: u64) -> BuildSpec {
    BuildSpec {
        name: format!("app-{}", number % 3).parse().expect("a name"),
        repository: "https://git.example/app".to_owned(),
        commit: format!("{number:040x}").parse().expect("a commit"),
        command: vec!["make".to_owned()],
        output: "out".to_owned(),
        environment: Default::default(),
        time_limit_seconds: 600,
        labels: Default::default(),
        run: run(),
    }
}

impl World {
    /// Sends a request with this id until the log has it.
    pub(crate) fn ask<E>(&mut self, who: &str, id: &str, event: E)
    where
        E: longshore_schemas::events::Event,
        Request<E>: Message,
    {
        let control = self.any_control().unwrap_or(0);
        let at = self.controls[control].clock(self.now);
        let (key, kind) = (event.key(), event.kind());
        let id = id.parse().expect("an id");
        let request = Request { id, at, actor: who.to_owned(), trace: None, report: None, event };
        self.note(who, &format!("asks {kind} {key} as {}", request.id));
        let record = signed(Sender::Control, &request);
        self.people.sends += 1;
        let send = self.people.sends;
        self.sends.insert(send, Send { who: who.to_owned(), topic: E::TOPIC.name, record, acknowledged: false });
        self.retry(send).expect("sending breaks nothing");
    }

    /// Sends it once more, and looks again later.
    pub(crate) fn retry(&mut self, send: u64) -> Result<(), Broken> {
        if self.sends.get(&send).is_none_or(|sent| sent.acknowledged) {
            return Ok(());
        }
        if !self.lost() {
            let leg = self.leg();
            self.at(leg, Event::Deliver(send));
            if self.rng.chance(self.faults.twice) {
                let late = self.rng.range(1..30_000);
                self.at(late, Event::Deliver(send));
            }
        }
        let patience = self.rng.range(1_000..5_000);
        self.at(patience, Event::Retry(send));
        Ok(())
    }

    pub(crate) fn deliver(&mut self, send: u64) -> Result<(), Broken> {
        let Some(Send { topic, record, .. }) = self.sends.get(&send).cloned() else { return Ok(()) };
        let positions = self.append(topic, vec![record]);
        if let Some(position) = positions.into_iter().next()
            && !self.lost()
        {
            let leg = self.leg();
            self.at(leg, Event::Acknowledged(send, position));
        }
        Ok(())
    }

    pub(crate) fn acknowledged(&mut self, send: u64, position: &Position) -> Result<(), Broken> {
        if let Some(sent) = self.sends.get_mut(&send).filter(|sent| !sent.acknowledged) {
            sent.acknowledged = true;
            let who = sent.who.clone();
            self.checker.acknowledged(position.clone());
            self.note(&who, &format!("its request is at {}/{}", position.source, position.offset));
            if self.rng.chance(self.faults.twice) {
                self.at(10_000, Event::Deliver(send));
            }
        }
        Ok(())
    }

    /// One round of what people do.
    pub(crate) fn people(&mut self) -> Result<(), Broken> {
        let pause = if self.rng.chance(30) { self.rng.range(30_000..120_000) } else { self.rng.range(500..8_000) };
        self.at(pause, Event::People);
        if self.faults.is_calm() {
            self.resume_what_is_paused();
            return Ok(());
        }
        if self.people.asked < self.setting.builds && self.rng.chance(600) {
            let burst = 1 + self.rng.range(0..3);
            for _ in 0..burst {
                self.people.asked += 1;
                let number = self.people.asked;
                let queues = self.people.queues.clone();
                let queue = self.rng.pick(&queues).cloned().expect("there are queues");
                let mut spec = build(number);
                if self.rng.chance(30) {
                    // Refused.
                    spec.output = "/etc".to_owned();
                }
                self.ask(
                    "people",
                    &format!("build-{number}"),
                    BuildRequest::from(BuildRequested { queue, build: spec }),
                );
            }
        }
        if self.rng.chance(20) {
            self.at(1, Event::Append(topics::BUILD_REQUESTS.name, Record::new("q0", "not a request")));
        }
        if self.rng.chance(60) {
            self.forge();
        }
        if self.rng.chance(40) {
            self.cancel();
        }
        if self.rng.chance(250) {
            self.deploy();
        }
        Ok(())
    }

    fn cancel(&mut self) {
        let jobs = self.checker.jobs();
        let Some(job) = self.rng.pick(&jobs).cloned() else { return };
        let id = format!("cancel-{}", self.steps);
        self.ask("people", &id, BuildRequest::from(CancelRequested { job }));
    }

    fn deploy(&mut self) {
        self.people.deploys += 1;
        let id = format!("deploy-{}", self.people.deploys);
        let service: ServiceName = SERVICES[self.rng.index(SERVICES.len())].parse().expect("a name");
        let artifacts = self.checker.artifacts.clone();
        let artifact = match self.rng.chance(500) {
            true => artifacts.last().copied(),
            false => self.rng.pick(&artifacts).copied(),
        };
        let request = match (self.rng.range(0..12), artifact) {
            (0, _) => GoalRequest::from(RollbackRequested { service, to: None }),
            (1, _) => GoalRequest::from(PauseRequested { service }),
            (2, _) => GoalRequest::from(ResumeRequested { service }),
            (3, Some(artifact)) => GoalRequest::from(LiftHoldRequested { service, artifact }),
            (_, Some(artifact)) => {
                let plan = self.plan();
                GoalRequest::from(DeployRequested { service, artifact, plan })
            }
            (_, None) => return,
        };
        self.ask("people", &id, request);
    }

    fn plan(&mut self) -> RolloutPlan {
        let regions = self.setting.regions.clone();
        let budget = [0, 0, 1_000, 5_000][self.rng.index(4)];
        let wave = |regions: &[longshore_schemas::RegionName], fraction_bp, bake_seconds| Wave {
            regions: regions.to_vec(),
            zones: Vec::new(),
            fraction_bp,
            bake_seconds,
        };
        let bake = self.rng.range(0..10) as u32;
        let waves = match self.rng.range(0..3) {
            0 => vec![wave(&regions, 10_000, 0)],
            1 => vec![wave(&regions, 4_000, bake), wave(&regions, 10_000, 0)],
            _ => vec![wave(&regions[..1], 10_000, bake), wave(&regions, 10_000, 0)],
        };
        RolloutPlan { waves, failure_budget_bp: budget }
    }

    /// What was paused for a while goes on, so that the world can come to rest.
    fn resume_what_is_paused(&mut self) {
        let mut paused = Vec::new();
        for slot in self.controls[0].slots.iter().filter(|slot| slot.kind == Kind::Goals) {
            let store = slot.part.store();
            let services = longshore_goals::tables::SERVICES.list(store, &Range::all(), Order::Ascending, usize::MAX);
            for (service, row) in services.expect("a state in memory") {
                let present = longshore_goals::tables::present(store, &service, &row).expect("a state in memory");
                if present.is_some_and(|(_, revision)| revision.status == RolloutStatus::Paused) {
                    paused.push(service);
                }
            }
        }
        for service in paused {
            let id = format!("resume-{}", self.steps);
            self.ask("people", &id, GoalRequest::from(ResumeRequested { service }));
        }
    }

    /// Requests that the log is not known to have.
    pub(crate) fn unacknowledged(&self) -> BTreeSet<u64> {
        self.sends.iter().filter(|(_, send)| !send.acknowledged).map(|(number, _)| *number).collect()
    }
}
