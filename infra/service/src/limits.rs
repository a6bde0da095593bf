//! Limits: each has a name, a default and metrics, and says what happens above it. Nothing grows without one.
//!
//! A [`Limit`] is a constant beside the code that holds it; crates list theirs as `LIMITS`, and `infra/docs/limits.md` shows
//! them all. What can be taken up and given back again passes a [`Gate`]; what is too large once is told by
//! [`Limit::refused`]. Either way Prometheus sees it:
//!
//! - `longshore_limit{name, of}`: the most there may be;
//! - `longshore_limit_used{name, of}`: how much is taken, of what passes a gate;
//! - `longshore_limit_refused_total{name}`: how often something was above it.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    Error,
    metrics::{Counters, Gauges},
};

static MAXIMUM: LazyLock<Gauges<2>> =
    LazyLock::new(|| Gauges::new("longshore_limit", "The most there may be, by limit", ["name", "of"]));
static USED: LazyLock<Gauges<2>> =
    LazyLock::new(|| Gauges::new("longshore_limit_used", "How much of a limit is taken", ["name", "of"]));
static REFUSED: LazyLock<Counters<1>> =
    LazyLock::new(|| Counters::new("longshore_limit_refused", "What was turned away above a limit", ["name"]));

/// The flag with which `longshore up` sets limits.
pub const FLAG: &str = "--limit";

/// A bound that someone can run into.
#[derive(Debug, PartialEq, Eq)]
pub struct Limit {
    /// The part that holds it and what it bounds, such as `api.streams`.
    pub name: &'static str,
    pub default: u64,
    /// What is counted: `streams`, `bytes`, `s`.
    pub unit: &'static str,
    /// Whether `--limit NAME=VALUE` sets it.
    pub set: bool,
    /// What happens above it.
    pub above: &'static str,
}

impl Limit {
    /// A limit that cannot be set.
    pub const fn fixed(name: &'static str, default: u64, unit: &'static str, above: &'static str) -> Self {
        Self { name, default, unit, set: false, above }
    }

    /// One that `--limit` sets.
    pub const fn settable(name: &'static str, default: u64, unit: &'static str, above: &'static str) -> Self {
        Self { name, default, unit, set: true, above }
    }

    /// Something was above the limit and was turned away.
    pub fn refused(&self) {
        REFUSED.count([self.name], 1);
    }

    /// Shows the limit's value in the metrics.
    pub fn announce(&self, value: u64) {
        MAXIMUM.set([self.name, ""], value);
        REFUSED.count([self.name], 0);
    }
}

/// Shows these limits in the metrics, with the values that they were given.
pub fn announce(limits: &[&Limit], settings: &Settings) {
    for limit in limits {
        limit.announce(settings.of(limit));
    }
}

/// What was set at start; all else is as the defaults say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<&'static str, u64>);

impl Settings {
    /// Reads `NAME=VALUE`, of limits that can be set.
    pub fn read(texts: &[String], known: &[&'static Limit]) -> Result<Self, Error> {
        let mut settings = BTreeMap::new();
        for text in texts {
            let wrong = |reason: String| Error::Config { source_name: format!("{FLAG} {text}"), reason };
            let (name, value) = text.split_once('=').ok_or_else(|| wrong("write it as api.streams=100".to_owned()))?;
            let limit = known.iter().find(|limit| limit.set && limit.name == name).ok_or_else(|| {
                let names: Vec<_> = known.iter().filter(|limit| limit.set).map(|limit| limit.name).collect();
                wrong(format!("there is no such limit to set; there are {}", names.join(", ")))
            })?;
            let value = value.parse().ok().filter(|value| (1..=u64::from(u32::MAX)).contains(value));
            let value = value.ok_or_else(|| wrong(format!("give a whole number of {} from 1 on", limit.unit)))?;
            settings.insert(limit.name, value);
        }
        Ok(Self(settings))
    }

    /// The value of this limit.
    pub fn of(&self, limit: &Limit) -> u64 {
        self.0.get(limit.name).copied().unwrap_or(limit.default)
    }

    /// The same, for what is counted in memory.
    pub fn count(&self, limit: &Limit) -> usize {
        usize::try_from(self.of(limit)).unwrap_or(usize::MAX)
    }
}

/// Lets so many in at once and turns the others away, at once. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    limit: &'static Limit,
    max: usize,
    free: Arc<Semaphore>,
    used: Gauge,
}

/// A place inside; given back when dropped.
#[derive(Debug)]
pub struct Pass {
    used: Gauge,
    _place: OwnedSemaphorePermit,
}

/// All places are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the limit {} of {max} {} is reached", limit.name, limit.unit)]
pub struct Full {
    pub limit: &'static Limit,
    pub max: usize,
}

impl Gate {
    pub fn new(limit: &'static Limit, max: usize) -> Self {
        Self::of(limit, max, "")
    }

    /// One of several gates of this limit in a process, such as one for each region.
    pub fn of(limit: &'static Limit, max: usize, of: &str) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        MAXIMUM.set([limit.name, of], max as u64);
        REFUSED.count([limit.name], 0);
        Self { limit, max, free: Arc::new(Semaphore::new(max)), used: USED.of([limit.name, of]) }
    }

    pub fn enter(&self) -> Result<Pass, Full> {
        match self.free.clone().try_acquire_owned() {
            Ok(place) => {
                self.used.inc();
                Ok(Pass { used: self.used.clone(), _place: place })
            }
            Err(_) => {
                self.limit.refused();
                Err(Full { limit: self.limit, max: self.max })
            }
        }
    }

    /// How many are inside.
    pub fn used(&self) -> usize {
        self.max - self.free.available_permits()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.used.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    static SEATS: Limit = Limit::settable("test.seats", 2, "seats", "turned away");
    static HEIGHT: Limit = Limit::fixed("test.height", 9, "m", "turned away");

    #[test]
    fn a_gate_lets_in_as_many_as_it_says_and_counts() {
        let gate = Gate::new(&SEATS, 2);
        let (one, _two) = (gate.enter().expect("a place"), gate.enter().expect("a place"));
        let full = gate.enter().expect_err("no place");
        assert_eq!(full.to_string(), "the limit test.seats of 2 seats is reached");
        drop(one);
        assert_eq!(gate.used(), 1);
        let _three = gate.enter().expect("a place again");
        let text = metrics::text();
        for line in [
            "longshore_limit{name=\"test.seats\",of=\"\"} 2",
            "longshore_limit_used{name=\"test.seats\",of=\"\"} 2",
            "longshore_limit_refused_total{name=\"test.seats\"} 1",
        ] {
            assert!(text.contains(line), "{line} is in\n{text}");
        }
    }

    #[test]
    fn settings_are_checked() {
        let read = |text: &str| Settings::read(&[text.to_owned()], &[&SEATS, &HEIGHT]).map_err(|e| e.to_string());
        assert_eq!(read("test.seats=5").expect("valid").of(&SEATS), 5);
        assert_eq!(Settings::default().of(&SEATS), 2);
        for (text, names) in [
            ("test.seats", "write it as"),
            ("test.height=3", "there are test.seats"),
            ("test.seats=0", "from 1 on"),
            ("test.seats=many", "number of seats"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(names) && error.contains(text), "{error}");
        }
    }
}
