//! Scripted rollouts: each file under `scripts/` is commands, on lines that begin with `> `, beside what they led to.
//! `UPDATE_SCRIPTS=1 cargo test` writes what they lead to now; read the difference before you keep it.
//!
//! ```text
//!   regions NAME… shards N           begins the script
//!   nodes REGION ZONE COUNT          nodes join, numbered on
//!   deploy SERVICE ARTIFACT [budget=BP] wave REGIONS [zones=…] [fraction=BP] [bake=S] [wave …]
//!   rollback SERVICE [ARTIFACT] | pause SERVICE | resume SERVICE | lift SERVICE ARTIFACT
//!   hold pins | refuse pins REASON | answer pins
//!   break ARTIFACT | repair ARTIFACT | stall NODE | release NODE | lose NODE | return NODE
//!   run | advance SECONDS | takeover | show SERVICE
//! ```

mod world;

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use longshore_goals::tables;
use longshore_schemas::{
    ArtifactId, ServiceName,
    events::{
        Convergence, DeployRequested, GoalFact, LiftHoldRequested, PauseRequested, ResumeRequested, RollbackRequested,
        RolloutPlan, Wave,
    },
};
use world::{World, id};

#[test]
fn scripts_lead_to_what_stands_beside_them() {
    let folder = Path::new("tests/scripts");
    let mut scripts: Vec<_> =
        fs::read_dir(folder).expect("the folder is there").map(|e| e.expect("an entry").path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for path in scripts {
        let expected = fs::read_to_string(&path).expect("a script");
        let actual = Script::default().play(&expected);
        if std::env::var_os("UPDATE_SCRIPTS").is_some() {
            fs::write(&path, actual).expect("the script can be written");
        } else {
            assert_eq!(actual, expected, "{} (UPDATE_SCRIPTS=1 rewrites it)", path.display());
        }
    }
}

#[derive(Default)]
struct Script {
    world: Option<World>,
    nodes: u32,
    requests: u32,
    artifacts: BTreeMap<ArtifactId, String>,
}

impl Script {
    /// Comments and commands as they are, and after each command what it leads to.
    fn play(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut in_output = false;
        for line in text.lines() {
            if let Some(command) = line.strip_prefix("> ") {
                writeln!(out, "{line}").expect("text");
                for line in self.execute(command) {
                    writeln!(out, "  {line}").expect("text");
                }
                in_output = true;
            } else if line.is_empty() || line.starts_with('#') {
                in_output = false;
                writeln!(out, "{line}").expect("text");
            } else {
                assert!(in_output, "neither a command nor a comment: {line:?}");
            }
        }
        self.world().assert_replay();
        out
    }

    fn world(&mut self) -> &mut World {
        self.world.as_mut().expect("a script begins with `regions`")
    }

    fn artifact(&mut self, name: &str) -> ArtifactId {
        let artifact = ArtifactId::of(name.as_bytes());
        self.artifacts.insert(artifact, name.to_owned());
        artifact
    }

    fn execute(&mut self, command: &str) -> Vec<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let mut out = Vec::new();
        self.requests += 1;
        let request = format!("request-of-line-{}", self.requests);
        let refusal = match words.as_slice() {
            ["regions", regions @ .., "shards", shards] => {
                self.world = Some(World::new(regions, shards.parse().expect("a number")));
                None
            }
            ["nodes", region, zone, count] => {
                self.join(region, zone, count.parse().expect("a number"));
                None
            }
            ["deploy", service, artifact, plan @ ..] => {
                let (artifact, plan) = (self.artifact(artifact), parse_plan(plan));
                self.world().ask(&request, DeployRequested { service: id(service), artifact, plan })
            }
            ["rollback", service, to @ ..] => {
                let to = to.first().map(|to| self.artifact(to));
                self.world().ask(&request, RollbackRequested { service: id(service), to })
            }
            ["pause", service] => self.world().ask(&request, PauseRequested { service: id(service) }),
            ["resume", service] => self.world().ask(&request, ResumeRequested { service: id(service) }),
            ["lift", service, artifact] => {
                let artifact = self.artifact(artifact);
                self.world().ask(&request, LiftHoldRequested { service: id(service), artifact })
            }
            ["show", service] => {
                out.extend(self.show(&id(service)));
                None
            }
            other => {
                self.steer(other);
                None
            }
        };
        if let Some(refusal) = refusal {
            out.push(format!("refused, {}", self.named(&refusal)));
        }
        self.world().deliver();
        let facts = self.world().new_facts();
        out.extend(facts.iter().filter_map(|fact| self.describe(fact)));
        for (service, artifact) in std::mem::take(&mut self.world().pinned_to_go_back) {
            out.push(format!("pin {service} {}, to go back to", self.artifacts[&artifact]));
        }
        for (service, artifact) in std::mem::take(&mut self.world().unpinned) {
            out.push(format!("unpin {service} {}", self.artifacts[&artifact]));
        }
        out
    }

    fn join(&mut self, region: &str, zone: &str, count: u32) {
        for _ in 0..count {
            self.nodes += 1;
            let name = format!("node-{}", self.nodes);
            self.world().add_node(&name, region, zone);
        }
    }

    fn steer(&mut self, words: &[&str]) {
        match words {
            ["hold", "pins"] => self.world().answers_pins = false,
            ["refuse", "pins", reason @ ..] => self.world().answer_pins(Some(&reason.join(" "))),
            ["answer", "pins"] => self.world().answer_pins(None),
            ["break", artifact] => {
                let artifact = self.artifact(artifact);
                self.world().broken.insert(artifact);
            }
            ["repair", artifact] => {
                let artifact = self.artifact(artifact);
                self.world().broken.remove(&artifact);
            }
            ["stall", node] => self.world().nodes.get_mut(&id(node)).expect("a node").stalled = true,
            ["release", node] => self.world().nodes.get_mut(&id(node)).expect("a node").stalled = false,
            ["lose", node] => self.world().lose_or_return(node, true),
            ["return", node] => self.world().lose_or_return(node, false),
            ["run"] => self.world().run(),
            ["advance", seconds] => {
                self.world().advance(Duration::from_secs(seconds.parse().expect("a number")));
            }
            ["takeover"] => {
                self.world().goals.takeover();
                self.world().fleet.takeover();
            }
            other => panic!("no such command: {other:?}"),
        }
    }

    /// Writes artifacts by the names that the script gave them.
    fn named(&self, text: &str) -> String {
        let replace =
            |text: String, (artifact, name): (&ArtifactId, &String)| text.replace(&artifact.to_string(), name);
        self.artifacts.iter().fold(text.to_owned(), replace)
    }

    fn describe(&self, fact: &GoalFact) -> Option<String> {
        let text = match fact {
            GoalFact::DeployAccepted(e) if e.rollback_of > 0 => {
                format!("DeployAccepted {} {} instead of revision {}", e.service, e.artifact, e.rollback_of)
            }
            GoalFact::DeployAccepted(e) => format!("DeployAccepted {} {}", e.service, e.artifact),
            GoalFact::DeployRefused(e) => format!("DeployRefused {} {}: {}", e.service, e.artifact, e.reason),
            GoalFact::GoalSet(e) => format!("GoalSet {} revision {}: {}", e.service, e.revision, e.artifact),
            GoalFact::WaveStarted(e) => format!("WaveStarted {} {}: wave {}", e.service, e.version, e.wave),
            GoalFact::WavePassed(e) => {
                format!("WavePassed {} {}: wave {}, {}", e.service, e.version, e.wave, counts(e.level))
            }
            GoalFact::RolloutPaused(e) => format!("RolloutPaused {} {}", e.service, e.version),
            GoalFact::RolloutResumed(e) => format!("RolloutResumed {} {}", e.service, e.version),
            GoalFact::RolloutHalted(e) => format!(
                "RolloutHalted {} {}: wave {}, {}, {} allowed; {}",
                e.service,
                e.version,
                e.wave,
                counts(e.level),
                e.allowed,
                e.failure.as_deref().unwrap_or("no reason")
            ),
            GoalFact::RolledBack(e) => {
                format!("RolledBack {} {} -> {}, holds {}", e.service, e.from_revision, e.revision, e.held)
            }
            GoalFact::RolloutCompleted(e) => format!("RolloutCompleted {} revision {}", e.service, e.revision),
            GoalFact::HoldLifted(e) => format!("HoldLifted {} {}", e.service, e.artifact),
            // One for each shard and second: `show` sums them up.
            GoalFact::ConvergenceRecorded(_) | GoalFact::Processed(_) => return None,
        };
        Some(self.named(&text))
    }

    /// The revisions, the levels, and what nodes really run.
    fn show(&mut self, service: &ServiceName) -> Vec<String> {
        let mut out = Vec::new();
        let world = self.world.as_ref().expect("a script begins with `regions`");
        let state = world.goals.state();
        for (_, revision) in tables::history(state, service, 10).expect("state") {
            let artifact = &self.artifacts[&revision.artifact];
            let reason = revision.reason.map_or(String::new(), |reason| format!(" ({reason})"));
            out.push(self.named(&format!("revision {} {artifact}: {:?}{reason}", revision.revision, revision.status)));
        }
        for (region, level) in tables::region_levels(state, service).expect("state") {
            out.push(format!("level {region}: {}", counts(level)));
        }
        let mut running: BTreeMap<(String, String), u32> = BTreeMap::new();
        for node in world.nodes.values() {
            let artifact = node.services.get(service).and_then(|runs| runs.artifact);
            let artifact = artifact.map_or("nothing".to_owned(), |artifact| self.artifacts[&artifact].clone());
            *running.entry((node.region.to_string(), artifact)).or_default() += 1;
        }
        out.extend(running.iter().map(|((region, artifact), count)| format!("nodes {region}: {count} run {artifact}")));
        out
    }
}

fn counts(level: Convergence) -> String {
    format!("{} converged + {} failed of {}", level.converged, level.failed, level.eligible)
}

fn parse_plan(words: &[&str]) -> RolloutPlan {
    let mut plan = RolloutPlan { waves: Vec::new(), failure_budget_bp: 0 };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let wave = plan.waves.last_mut();
        match (word.split_once('='), wave) {
            (None, _) => {
                let regions = words.next().expect("a wave's regions").split(',').map(id).collect();
                plan.waves.push(Wave { regions, zones: Vec::new(), fraction_bp: 10_000, bake_seconds: 0 });
            }
            (Some(("budget", budget)), _) => plan.failure_budget_bp = budget.parse().expect("a number"),
            (Some(("zones", zones)), Some(wave)) => wave.zones = zones.split(',').map(id).collect(),
            (Some(("fraction", fraction)), Some(wave)) => wave.fraction_bp = fraction.parse().expect("a number"),
            (Some(("bake", bake)), Some(wave)) => wave.bake_seconds = bake.parse().expect("a number"),
            (other, _) => panic!("no such option: {other:?}"),
        }
    }
    plan
}
