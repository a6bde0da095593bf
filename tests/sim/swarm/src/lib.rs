//! A region's swarm, simulated at the level of flows: the policy is the very code that nodes and regions run.
//!
//! ```text
//!   Scenario ──▶ world: events in the order of time, and steps in which rates hold
//!                 │  ▲
//!    nodes' words │  │ requests                    ┌ topology: which links lie between two places
//!                 ▼  │                             │
//!              policy (Tracker, a Fetch a node)    └▶ network: max-min fair rates, anew every step
//!                 │
//!                 └──▶ Outcome: when nodes were complete, what went over which links ──▶ svg
//! ```
//!
//! - A *reception* is one pack on its way to one node. It runs as a flow from a peer or from the bucket, waits at a peer that wants
//!   the pack itself, or rests with what came of it until the next request. A reception that feeds on another one is never
//!   ahead of it, but a block behind: that is how a pack streams through a node.
//! - Rates are shared out at the start of each step, along whole chains of nodes at once. Within it whatever happens has its exact
//!   time: a request that arrives, a first block, the end of a pack. A flow that begins within a step takes what its links have
//!   left until the next one; what else changes links, a death or a cut, changes rates with the next step.
//! - A region that is too large for true packs is simulated with fewer and larger ones ([`Scenario::with_packs`]). The lag of a
//!   hop is still a block, so that what differs is only how finely work is cut.
//!
//! The same scenario gives the same [`Outcome`], bit for bit: chance comes from the seed, and no map is iterated that has no order.
//! The library reads no clock; who wants to know what the policy costs gives one, see [`Clock`].
//!
//! It does not know how long the policy computes (a tracker is infinitely fast here), nor of TCP's beginnings, nor of queues in
//! switches: what a flow loses to those is a factor, `goodput_*`.

mod bound;
mod change;
pub mod network;
mod outcome;
mod policy;
pub mod presets;
mod queue;
mod random;
mod scenario;
mod summary;
mod svg;
mod topology;
mod world;

pub use bound::Bound;
pub use outcome::{Failures, Outcome, PolicyCost};
pub use scenario::{Churn, Error, Hostile, Policy, RackCut, Scenario, Span};
pub use svg::svg;

use std::time::Duration;

/// The time of whoever measures.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Option<fn() -> Duration>);

impl Clock {
    /// Nothing is measured: the [`Outcome`] has zeros there.
    pub const NONE: Self = Self(None);

    /// `now` answers the time since any moment.
    pub const fn new(now: fn() -> Duration) -> Self {
        Self(Some(now))
    }

    pub(crate) fn now(self) -> Duration {
        self.0.map_or(Duration::ZERO, |now| now())
    }
}

/// Runs the scenario until every honest node that lives is complete, or until its time is over.
pub fn simulate(scenario: &Scenario, clock: Clock) -> Result<Outcome, Error> {
    scenario.check()?;
    let begun = clock.now();
    let mut world = world::World::new(scenario, clock);
    world.run();
    let mut outcome = world.outcome();
    outcome.wall_seconds = (clock.now() - begun).as_secs_f64();
    Ok(outcome)
}
