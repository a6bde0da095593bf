//! A machine: it takes goals, fetches, verifies, switches and runs. What it decides is the real policy; its disk, its
//! processes and its connection are made up.
//!
//! A crash comes between any two looks: what was written and synced before it is there afterwards, nothing else is.

use std::collections::BTreeMap;

use longshore_node_policy::{
    Wanted, is_news,
    plan::{self, Release, ServiceState, Step},
};
use longshore_planted::{Bug, planted};
use longshore_schemas::{
    ArtifactId, NodeId, ServiceName, ZoneName,
    events::{GoalVersion, NodeDescription, NodeStatus, RegionalGoal},
    stream::NodeReport,
};

use crate::{
    check::Broken,
    region::short,
    setting::Setting,
    world::{Event, World},
};

const LOOK: u64 = 1_000;

/// The bytes of an artifact, as a number that stands for them.
pub(crate) fn content_of(artifact: &ArtifactId) -> u64 {
    u64::from_le_bytes(*artifact.as_bytes().first_chunk().expect("a hash is longer"))
}

/// Some artifacts never get healthy, wherever they run.
fn is_bad(artifact: &ArtifactId) -> bool {
    content_of(artifact).is_multiple_of(5)
}

/// What goes on with one service.
#[derive(Debug, Clone)]
enum Doing {
    Fetching {
        release: Box<Release>,
        ends: u64,
    },
    /// The current release was started.
    Proving {
        ends: u64,
    },
    /// The one before was started again, because the new one failed.
    GoingBack {
        ends: u64,
    },
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    region: usize,
    zone: ZoneName,
    up: bool,
    life: u64,
    // On disk.
    pub(crate) goals: BTreeMap<ServiceName, RegionalGoal>,
    pub(crate) states: BTreeMap<ServiceName, ServiceState>,
    releases: BTreeMap<ArtifactId, u64>,
    // In memory.
    doing: BTreeMap<ServiceName, Doing>,
    reports: BTreeMap<ServiceName, (NodeReport, bool)>,
    /// The life of the region's process that it is connected to, and how far it has read the board.
    session: Option<(u64, u64)>,
}

impl Node {
    pub(crate) fn new(number: usize, setting: &Setting) -> Self {
        Self {
            id: format!("n{number}").parse().expect("a name"),
            region: number % setting.regions.len(),
            zone: "a".parse().expect("a name"),
            up: true,
            life: 0,
            goals: BTreeMap::new(),
            states: BTreeMap::new(),
            releases: BTreeMap::new(),
            doing: BTreeMap::new(),
            reports: BTreeMap::new(),
            session: None,
        }
    }

    fn wanted(&self, service: &ServiceName) -> Option<Wanted> {
        self.goals.get(service).map(|goal| Wanted::of(goal, &self.id, &self.zone))
    }

    fn state(&mut self, service: &ServiceName) -> &mut ServiceState {
        self.states.entry(service.clone()).or_default()
    }

    fn say(&mut self, service: &ServiceName, wanted: &Wanted, status: NodeStatus, message: Option<String>) {
        let runs = self.states.get(service).is_some_and(|state| state.current.is_some());
        let report = NodeReport {
            service: service.clone(),
            version: wanted.version,
            artifact: wanted.target.as_ref().map(|target| target.artifact),
            status,
            port: runs.then_some(80),
            message,
        };
        if self.reports.get(service).is_none_or(|(said, _)| *said != report) {
            self.reports.insert(service.clone(), (report, false));
        }
    }

    /// Why it is not where its newest goals want it.
    pub(crate) fn unsettled(&self, newest: &BTreeMap<(usize, ServiceName), GoalVersion>) -> Option<String> {
        if !self.up {
            return Some(format!("{} is down", self.id));
        }
        for ((_, service), version) in newest.iter().filter(|((region, _), _)| *region == self.region) {
            let Some(goal) = self.goals.get(service).filter(|goal| goal.version >= *version) else {
                return Some(format!("{} has no goal {version} of {service}", self.id));
            };
            let wanted = Wanted::of(goal, &self.id, &self.zone);
            let state = self.states.get(service).cloned().unwrap_or_default();
            if !matches!(plan::next(&wanted, &state), Step::Settled(_)) || self.doing.contains_key(service) {
                return Some(format!("{} is not settled with {service} {version}", self.id));
            }
        }
        None
    }
}

impl World {
    /// A node looks around.
    pub(crate) fn node(&mut self, number: usize, life: u64) -> Result<(), Broken> {
        if self.nodes[number].life != life || !self.nodes[number].up {
            return Ok(());
        }
        if self.rng.chance(self.faults.agents / 10) {
            let down = self.rng.range(500..80_000);
            let name = self.nodes[number].id.to_string();
            if self.rng.chance(500) {
                self.note(&name, &format!("crashes, and is back in {down} ms"));
                let node = &mut self.nodes[number];
                (node.up, node.life) = (false, node.life + 1);
                self.at(down, Event::NodeBack(number));
                return Ok(());
            }
            self.note(&name, &format!("stands still for {down} ms"));
            self.at(down, Event::Node(number, life));
            return Ok(());
        }
        self.talk(number)?;
        let services: Vec<ServiceName> = self.nodes[number].goals.keys().cloned().collect();
        for service in services {
            self.serve(number, &service)?;
        }
        let jitter = self.rng.range(0..100);
        self.at(LOOK + jitter, Event::Node(number, life));
        Ok(())
    }

    pub(crate) fn node_back(&mut self, number: usize) -> Result<(), Broken> {
        let node = &mut self.nodes[number];
        node.up = true;
        (node.doing, node.reports, node.session) = (BTreeMap::new(), BTreeMap::new(), None);
        let (name, life) = (node.id.to_string(), node.life);
        self.note(&name, "starts");
        // What it ran before is started again.
        let current: Vec<(ServiceName, Release)> = self.nodes[number]
            .states
            .iter()
            .filter_map(|(service, state)| Some((service.clone(), state.current.clone()?)))
            .collect();
        for (service, release) in current {
            self.start_release(number, &service, &release)?;
        }
        self.at(1, Event::Node(number, life));
        Ok(())
    }

    /// What passes between the node and its region, if it passes.
    fn talk(&mut self, number: usize) -> Result<(), Broken> {
        let at = self.nodes[number].region;
        let (region_life, ready) = (self.regions[at].life, self.regions[at].up && self.regions[at].caught_up);
        if !ready || self.lost() {
            self.nodes[number].session = None;
            return Ok(());
        }
        let (now, node_id) = (self.now, self.nodes[number].id.clone());
        let region = &mut self.regions[at];
        let moment = region.moment(now);
        let session = self.nodes[number].session.filter(|(life, _)| *life == region_life);
        let seen = match session {
            Some((_, seen)) => {
                region.levels.heard(&node_id, moment);
                seen
            }
            None => {
                region.levels.hello(describe(&self.nodes[number]), moment);
                // After each reconnect the node says again where it stands.
                for (report, _) in self.nodes[number].reports.values() {
                    region.levels.report(&node_id, report.clone());
                }
                0
            }
        };
        for (report, said) in self.nodes[number].reports.values_mut().filter(|(_, said)| !said) {
            region.levels.report(&node_id, report.clone());
            *said = true;
        }
        let (seen, goals) = region.board.since(seen);
        self.nodes[number].session = Some((region_life, seen));
        let mut offered: Vec<RegionalGoal> = goals.iter().map(|signed| signed.goal.clone()).collect();
        // A region that lies, or lags behind: an old goal comes once more.
        if self.rng.chance(self.faults.agents)
            && let Some(old) = self.rng.pick(&self.regions[at].history).cloned()
        {
            offered.push(old);
        }
        for goal in offered {
            self.offer(number, goal)?;
        }
        Ok(())
    }

    fn offer(&mut self, number: usize, goal: RegionalGoal) -> Result<(), Broken> {
        let node = &mut self.nodes[number];
        let held = node.goals.get(&goal.service).map(|held| held.version);
        if is_news(held, goal.version) {
            let (name, what) = (node.id.to_string(), format!("takes goal {} {}", goal.service, goal.version));
            self.checker.goal_taken(&node.id, &goal.service, held, goal.version)?;
            node.goals.insert(goal.service.clone(), goal);
            self.note(&name, &what);
        }
        Ok(())
    }

    /// Takes the next step with one service.
    fn serve(&mut self, number: usize, service: &ServiceName) -> Result<(), Broken> {
        let Some(wanted) = self.nodes[number].wanted(service) else { return Ok(()) };
        if let Some(doing) = self.nodes[number].doing.get(service).cloned() {
            return self.go_on(number, service, &wanted, doing);
        }
        let state = self.nodes[number].state(service).clone();
        match plan::next(&wanted, &state) {
            Step::Settled(status) => {
                let message = state.failed.filter(|_| status.is_failure()).map(|failed| failed.message);
                self.nodes[number].say(service, &wanted, status, message);
            }
            Step::Install(release) => {
                let ends = self.now + self.rng.range(200..8_000);
                let doing = Doing::Fetching { release: Box::new(release), ends };
                self.nodes[number].doing.insert(service.clone(), doing);
                self.nodes[number].say(service, &wanted, NodeStatus::Fetching, None);
            }
            Step::Prove(release) => self.prove(number, service, &wanted, &release)?,
            Step::Stop => self.nodes[number].state(service).stopped(),
        }
        Ok(())
    }

    fn go_on(&mut self, number: usize, service: &ServiceName, wanted: &Wanted, doing: Doing) -> Result<(), Broken> {
        match doing {
            Doing::Fetching { release, ends } => {
                // A goal that wants something else ends the fetch.
                let target = wanted.target.as_ref();
                let still = target
                    .is_some_and(|target| (target.artifact, target.revision) == (release.artifact, release.revision));
                if !still {
                    self.nodes[number].doing.remove(service);
                } else if self.now >= ends {
                    self.fetched(number, service, wanted, &release)?;
                }
                Ok(())
            }
            Doing::Proving { ends } if self.now >= ends => self.proved(number, service, wanted),
            Doing::GoingBack { ends } if self.now >= ends => {
                self.nodes[number].doing.remove(service);
                Ok(())
            }
            Doing::Proving { .. } | Doing::GoingBack { .. } => Ok(()),
        }
    }

    /// The bytes are there: from the bucket or from a peer, who may have sent others.
    fn fetched(
        &mut self,
        number: usize,
        service: &ServiceName,
        wanted: &Wanted,
        release: &Release,
    ) -> Result<(), Broken> {
        let artifact = release.artifact;
        self.nodes[number].doing.remove(service);
        let at = self.nodes[number].region;
        let right = content_of(&artifact);
        let held = self.nodes[number].releases.get(&artifact).copied();
        let Some(mut bytes) = held.or_else(|| self.regions[at].bucket.get(&artifact).copied()) else { return Ok(()) };
        if self.rng.chance(self.faults.agents) {
            bytes ^= 2;
        }
        if bytes != right && !planted(Bug::RunUnverified) {
            let name = self.nodes[number].id.to_string();
            self.note(&name, &format!("got wrong bytes of {}", short(&artifact)));
            return Ok(());
        }
        self.nodes[number].releases.insert(artifact, bytes);
        self.nodes[number].say(service, wanted, NodeStatus::Staged, None);
        self.checker.switched(&self.nodes[number].id, service, release)?;
        self.nodes[number].state(service).switched(release.clone());
        self.prove(number, service, wanted, release)
    }

    fn prove(
        &mut self,
        number: usize,
        service: &ServiceName,
        wanted: &Wanted,
        release: &Release,
    ) -> Result<(), Broken> {
        self.start_release(number, service, release)?;
        let ends = self.now + self.rng.range(500..4_000);
        self.nodes[number].doing.insert(service.clone(), Doing::Proving { ends });
        self.nodes[number].say(service, wanted, NodeStatus::Starting, None);
        Ok(())
    }

    /// Its bytes run now.
    fn start_release(&mut self, number: usize, service: &ServiceName, release: &Release) -> Result<(), Broken> {
        let node = &self.nodes[number];
        let name = node.id.to_string();
        let bytes = node.releases.get(&release.artifact).copied();
        self.checker.started(&node.id, &release.artifact, bytes, content_of(&release.artifact))?;
        self.note(&name, &format!("starts {service} {} of revision {}", short(&release.artifact), release.revision));
        Ok(())
    }

    fn proved(&mut self, number: usize, service: &ServiceName, wanted: &Wanted) -> Result<(), Broken> {
        self.nodes[number].doing.remove(service);
        let Some(current) = self.nodes[number].state(service).current.clone() else { return Ok(()) };
        let name = self.nodes[number].id.to_string();
        let fails = is_bad(&current.artifact) || self.rng.chance(self.faults.agents / 2);
        if !fails {
            self.nodes[number].state(service).proved();
            self.checker.release_proved(&self.nodes[number].id, service);
            self.note(&name, &format!("{service} {} is healthy", short(&current.artifact)));
            self.nodes[number].say(service, wanted, NodeStatus::Healthy, None);
            return Ok(());
        }
        self.note(&name, &format!("{service} {} failed", short(&current.artifact)));
        self.checker.release_failed(&self.nodes[number].id, service, &current);
        self.nodes[number].state(service).gave_way("it never got healthy");
        let Some(before) = self.nodes[number].state(service).current.clone() else { return Ok(()) };
        self.start_release(number, service, &before)?;
        let ends = self.now + self.rng.range(200..2_000);
        self.nodes[number].doing.insert(service.clone(), Doing::GoingBack { ends });
        Ok(())
    }
}

fn describe(node: &Node) -> NodeDescription {
    NodeDescription {
        node: node.id.clone(),
        zone: node.zone.clone(),
        rack: "r1".parse().expect("a name"),
        host: "127.0.0.1".to_owned(),
        agent_version: "1".to_owned(),
        labels: Default::default(),
    }
}
