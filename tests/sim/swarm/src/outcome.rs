//! What a run came to.

use serde::Serialize;

use crate::bound::Bound;

/// Points of the completion curve.
const CURVE_POINTS: usize = 256;

/// See the module. `None` where nobody was complete.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    pub scenario: String,
    pub seed: u64,
    pub nodes: u32,
    pub packs: u32,
    pub pack_bytes: u64,

    pub complete: u32,
    /// Honest nodes that live and lack something at the end.
    pub incomplete: u32,
    pub died: u32,
    pub p50_seconds: Option<f64>,
    pub p90_seconds: Option<f64>,
    pub p99_seconds: Option<f64>,
    pub p999_seconds: Option<f64>,
    pub max_seconds: Option<f64>,
    pub bound: Bound,
    pub bound_seconds: f64,
    /// Seconds, and the share of nodes that were complete then.
    pub curve: Vec<(f64, f64)>,

    /// What a usual node lacked.
    pub lacked_bytes: f64,
    /// Read from the bucket, in multiples of that.
    pub bucket_copies: f64,
    /// Came into each rack from outside, the bucket included, in multiples of that.
    pub rack_copies_mean: f64,
    pub rack_copies_max: f64,
    /// Given by each node, in multiples of that.
    pub node_uploads_mean: f64,
    pub node_uploads_max: f64,
    pub received_bytes: f64,
    pub sent_bytes: f64,
    /// Came and were thrown away: what liars sent.
    pub wasted_bytes: f64,
    /// Must be 0.
    pub wrong_bytes_persisted: f64,

    pub requests: u64,
    /// By what they came to: see [`Failures`].
    pub failures: Failures,
    pub tracker_messages: u64,
    pub told_messages: u64,
    pub peers_max: u32,
    pub peers_mean: f64,
    pub banned: u32,

    pub steps: u64,
    pub rounds_per_step: f64,
    pub flows_max: u32,
    pub receptions_max: u32,
    pub policy_cost: PolicyCost,
    pub wall_seconds: f64,
}

/// Requests that came to nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Failures {
    pub missing: u64,
    pub busy: u64,
    pub unreachable: u64,
    pub waiting: u64,
    pub lied: u64,
}

/// How often the policy was asked, and the time it took on this machine, if a clock was given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PolicyCost {
    pub tracker_events: u64,
    pub fetch_events: u64,
    pub tracker_seconds: f64,
    pub fetch_seconds: f64,
    pub next_wake_seconds: f64,
}

impl Outcome {
    /// Equal in all that was simulated, whatever it took to compute.
    pub fn is_same_run(&self, other: &Self) -> bool {
        let bare = |outcome: &Self| {
            let cost = PolicyCost {
                tracker_events: outcome.policy_cost.tracker_events,
                fetch_events: outcome.policy_cost.fetch_events,
                ..PolicyCost::default()
            };
            Self { policy_cost: cost, wall_seconds: 0.0, ..outcome.clone() }
        };
        bare(self) == bare(other)
    }

    /// How far this run's times are from another's, as fractions: p50, p99 and max.
    pub fn error_against(&self, exact: &Self) -> [Option<f64>; 3] {
        let error = |this: Option<f64>, that: Option<f64>| Some(this? / that? - 1.0);
        [
            error(self.p50_seconds, exact.p50_seconds),
            error(self.p99_seconds, exact.p99_seconds),
            error(self.max_seconds, exact.max_seconds),
        ]
    }
}

/// The time when so much of all were complete.
pub(crate) fn quantile(sorted: &[f64], all: usize, quantile: f64) -> Option<f64> {
    let place = (all as f64 * quantile).ceil() as usize;
    sorted.get(place.max(1) - 1).copied()
}

pub(crate) fn curve(sorted: &[f64], all: usize) -> Vec<(f64, f64)> {
    let points = CURVE_POINTS.min(sorted.len());
    let point = |number: usize| {
        let place = (number + 1) * sorted.len() / points - 1;
        (sorted[place], (place + 1) as f64 / all as f64)
    };
    let first = sorted.first().map(|first| (*first, 0.0));
    first.into_iter().chain((0..points).map(point)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_count_those_who_are_not_complete() {
        let sorted: Vec<f64> = (1..=90).map(f64::from).collect();
        for (share, expected) in [(0.0, Some(1.0)), (0.5, Some(50.0)), (0.9, Some(90.0)), (0.91, None), (1.0, None)] {
            assert_eq!(quantile(&sorted, 100, share), expected, "{share}");
        }
        assert_eq!(quantile(&[], 0, 0.5), None);
    }

    #[test]
    fn a_curve_rises_from_nothing_to_all() {
        let sorted: Vec<f64> = (0..10_000).map(f64::from).collect();
        let curve = curve(&sorted, 10_000);
        assert_eq!(curve.len(), CURVE_POINTS + 1);
        assert_eq!((curve[0], *curve.last().expect("points")), ((0.0, 0.0), (9_999.0, 1.0)));
        assert!(curve.is_sorted_by(|a, b| a.0 <= b.0 && a.1 < b.1));
        assert!(super::curve(&[], 5).is_empty());
    }
}
