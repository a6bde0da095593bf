//! The simulated world: one thread, one seed, virtual time.
//!
//! ```text
//!  seed ─▶ Setting (how large, how hostile) ─▶ World: agenda of events in virtual time
//!                                               │
//!     people ─ workers ─ regions ─ nodes ──requests──▶ simulated log ◀──effects── machines of all partitions
//!                                               │            │
//!                                               ▼            ▼ facts
//!                                             Trace        Checker: the twelve invariants
//! ```
//!
//! Real are: the four processors, the machine that drives each partition, the codec, the policies of regions and nodes, and
//! the model of the log. Made up are clocks, disks, buckets, processes and everything between them, and those go wrong:
//! messages are late, lost or come twice, commits are ambiguous, owners are zombies, processes crash between any two
//! effects, stand still and come back, disks forget what was not synced, clocks jump, workers and regions lie, and a stranger
//! forges what they say. Some logs lose what was still needed, and an operator helps who halted.
//!
//! After a while the faults stop, and then everything must come to rest. The same seed makes the same world, event by event.

mod check;
mod collecting;
mod control;
mod converge;
mod forger;
mod node;
mod people;
mod region;
mod retention;
mod rng;
mod setting;
mod store;
mod trace;
mod worker;
mod world;

pub use check::{Broken, INVARIANTS};

use world::World;

/// How long a world may take to come to rest, in virtual milliseconds.
const PATIENCE: u64 = 2 * 60 * 60 * 1_000;

/// What came of a world.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub broken: Option<Broken>,
    /// The last lines of the trace, or all of them.
    pub trace: Vec<String>,
    /// Of every line, so that two runs can be compared.
    pub hash: String,
    pub steps: u64,
    pub facts: u64,
    pub virtual_seconds: u64,
}

/// Makes the world of this seed, and lets it run its course.
pub fn run(seed: u64, whole_trace: bool) -> Outcome {
    let mut world = World::new(seed, whole_trace);
    let broken = live(&mut world).err();
    let (steps, facts, virtual_seconds) = (world.steps, world.checker.facts, world.now / 1_000);
    let hash = world.trace.hash();
    Outcome { seed, broken, trace: world.trace.into_lines(), hash, steps, facts, virtual_seconds }
}

fn live(world: &mut World) -> Result<(), Broken> {
    let until = world.setting.hostile_for;
    while world.now < until {
        if !world.step()? {
            break;
        }
    }
    world.converge(PATIENCE)
}

/// A world in one line, or two if it broke.
pub fn summary(outcome: &Outcome) -> String {
    let Outcome { seed, steps, facts, virtual_seconds, hash, .. } = outcome;
    let told = format!("seed {seed}: {steps} events, {facts} facts, {virtual_seconds} virtual seconds, trace {hash}");
    match &outcome.broken {
        None => told,
        Some(broken) => format!("{told}\n{broken}\nreplay it with: make sim SEED={seed}"),
    }
}
