//! What kind of world a seed makes: how large it is, and how hostile.

use std::time::Duration;

use longshore_log::TopicConfig;
use longshore_replication::Retention;
use longshore_schemas::{RegionName, topics};

use crate::rng::Rng;

/// No world lasts that long.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The four processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Queue,
    Replication,
    Goals,
    Fleet,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Queue, Kind::Replication, Kind::Goals, Kind::Fleet];

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Replication => "replication",
            Self::Goals => "goals",
            Self::Fleet => "fleet",
        }
    }

    pub(crate) fn requests(self) -> &'static str {
        match self {
            Self::Queue => topics::BUILD_REQUESTS.name,
            Self::Replication => topics::ARTIFACT_REQUESTS.name,
            Self::Goals => topics::GOAL_REQUESTS.name,
            Self::Fleet => topics::FLEET_REPORTS.name,
        }
    }

    pub(crate) fn facts(self) -> &'static str {
        match self {
            Self::Queue => topics::BUILDS.name,
            Self::Replication => topics::ARTIFACTS.name,
            Self::Goals => topics::GOALS.name,
            Self::Fleet => topics::FLEET.name,
        }
    }
}

/// How often things go wrong, in thousandths.
#[derive(Debug, Clone)]
pub(crate) struct Faults {
    /// A message is late by seconds.
    pub(crate) slow: u64,
    /// A message or its answer is lost.
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    /// A commit's answer is not known, whatever became of it.
    pub(crate) ambiguous: u64,
    pub(crate) failed: u64,
    /// Each second, somewhere: a crash, a pause, a cut, another owner, a full disk, a jump of a clock.
    pub(crate) chaos: u64,
    /// Workers, nodes and regions that die, pause or lie.
    pub(crate) agents: u64,
}

impl Faults {
    fn of(rng: &mut Rng) -> Self {
        // In some worlds only those outside do what they should not, so that what needs many steps in a row happens too,
        // and what can be told exactly is.
        if rng.chance(150) {
            return Self { agents: 20 + rng.range(0..100), ..Self::none() };
        }
        let [few, some, many] = [(0..6), (0..40), (0..400)].map(|range| rng.range(range));
        Self {
            slow: some,
            lost: some,
            twice: some,
            ambiguous: some,
            failed: few * 2,
            chaos: many,
            agents: 20 + some * 3,
        }
    }

    pub(crate) fn none() -> Self {
        Self { slow: 0, lost: 0, twice: 0, ambiguous: 0, failed: 0, chaos: 0, agents: 0 }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) controls: usize,
    pub(crate) workers: usize,
    pub(crate) nodes: usize,
    pub(crate) queues: usize,
    pub(crate) regions: Vec<RegionName>,
    pub(crate) shards: u32,
    pub(crate) partitions: [u32; 4],
    pub(crate) queue: longshore_queue::Config,
    /// What is kept of artifacts.
    pub(crate) artifacts: Retention,
    pub(crate) faults: Faults,
    /// How long things go wrong, in milliseconds.
    pub(crate) hostile_for: u64,
    /// Builds that are asked for.
    pub(crate) builds: u64,
    /// Whether clocks are set by an hour, and not only by seconds.
    pub(crate) wild_clocks: bool,
}

impl Setting {
    pub(crate) fn of(rng: &mut Rng) -> Self {
        let names = ["eu", "us", "ap"];
        let regions = names[..1 + rng.index(3)].iter().map(|name| name.parse().expect("a name")).collect();
        let queue = longshore_queue::Config { queued_max: 4 + rng.range(0..30) as u32, ..Default::default() };
        Self {
            controls: 2 + rng.index(2),
            workers: 1 + rng.index(4),
            nodes: 2 + rng.index(5),
            queues: 1 + rng.index(3),
            regions,
            shards: 1 + rng.range(0..2) as u32,
            partitions: [1 + rng.range(0..2) as u32, 1 + rng.range(0..2) as u32, 1, 1 + rng.range(0..2) as u32],
            queue,
            artifacts: Retention { look_every: NEVER, ..Retention::default() },
            faults: Faults::of(rng),
            hostile_for: 1_000 * rng.range(100..500),
            builds: if rng.chance(300) { rng.range(3..12) } else { rng.range(10..60) },
            wild_clocks: rng.chance(250),
        }
    }

    pub(crate) fn partitions(&self, kind: Kind) -> u32 {
        self.partitions[kind as usize]
    }

    pub(crate) fn topics(&self) -> Vec<TopicConfig> {
        topics::ALL
            .into_iter()
            .map(|topic| {
                let like = KINDS.into_iter().find(|kind| [kind.requests(), kind.facts()].contains(&topic.name));
                let queue = topic.name == topics::WORKER_SIGNALS.name;
                let partitions = match (like, queue) {
                    (Some(kind), _) => self.partitions(kind),
                    (None, true) => self.partitions(Kind::Queue),
                    (None, false) => 1,
                };
                TopicConfig { partitions, ..TopicConfig::from(topic) }
            })
            .collect()
    }
}

impl Faults {
    /// Nothing between the processes goes wrong.
    pub(crate) fn is_gentle(&self) -> bool {
        [self.slow, self.lost, self.twice, self.ambiguous, self.failed, self.chaos].iter().all(|faults| *faults == 0)
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.chaos == 0 && self.agents == 0
    }
}
