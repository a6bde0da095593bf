//! What a run came to.

use super::{World, faults::Kind};
use crate::{
    Bound, Outcome, PolicyCost,
    outcome::{curve, quantile},
    queue::seconds,
};

impl World {
    pub(crate) fn outcome(&self) -> Outcome {
        let honest = || self.nodes.iter().filter(|node| node.kind == Kind::Honest);
        let mut times: Vec<f64> = honest().filter_map(|node| node.done_at.map(seconds)).collect();
        times.sort_unstable_by(f64::total_cmp);
        let died = honest().filter(|node| node.gone && node.done_at.is_none()).count();
        let all = honest().count() - died;
        let bound = Bound::new(&self.scenario, &self.topology, self.lacked_bytes);
        let copies = |bytes: f64| if self.lacked_bytes > 0.0 { bytes / self.lacked_bytes } else { 0.0 };
        let peers = honest().map(|node| node.peers.len());
        let sent: f64 = self.tally.sent_bytes.iter().sum();
        Outcome {
            scenario: self.scenario.name.clone(),
            seed: self.scenario.seed,
            nodes: self.scenario.nodes,
            packs: self.pack_bytes.len() as u32,
            pack_bytes: self.scenario.pack_bytes,
            complete: times.len() as u32,
            incomplete: (all - times.len()) as u32,
            died: died as u32,
            p50_seconds: quantile(&times, all, 0.5),
            p90_seconds: quantile(&times, all, 0.9),
            p99_seconds: quantile(&times, all, 0.99),
            p999_seconds: quantile(&times, all, 0.999),
            max_seconds: times.last().copied(),
            bound_seconds: bound.seconds(),
            bound,
            curve: curve(&times, all),
            lacked_bytes: self.lacked_bytes,
            bucket_copies: copies(self.tally.bucket_bytes),
            rack_copies_mean: copies(mean(&self.tally.into_rack_bytes)),
            rack_copies_max: copies(max(&self.tally.into_rack_bytes)),
            node_uploads_mean: copies(mean(&self.tally.sent_bytes)),
            node_uploads_max: copies(max(&self.tally.sent_bytes)),
            received_bytes: self.tally.received_bytes,
            sent_bytes: sent + self.tally.bucket_bytes,
            wasted_bytes: self.tally.wasted_bytes,
            wrong_bytes_persisted: self.tally.wrong_bytes_persisted,
            requests: self.tally.requests,
            failures: self.tally.failures,
            tracker_messages: self.tally.tracker_messages,
            told_messages: self.tally.told_messages,
            peers_max: peers.clone().max().unwrap_or(0) as u32,
            peers_mean: peers.sum::<usize>() as f64 / honest().count().max(1) as f64,
            banned: self.policy.banned() as u32,
            steps: self.tally.steps.into(),
            rounds_per_step: self.network.rounds as f64 / f64::from(self.tally.steps.max(1)),
            flows_max: self.tally.flows_max as u32,
            receptions_max: self.receptions.len(),
            policy_cost: self.policy_cost(),
            wall_seconds: 0.0,
        }
    }

    fn policy_cost(&self) -> PolicyCost {
        let cost = self.policy.cost;
        PolicyCost {
            tracker_events: cost.tracker_events,
            fetch_events: cost.fetch_events,
            tracker_seconds: cost.tracker.as_secs_f64(),
            fetch_seconds: cost.fetch.as_secs_f64(),
            next_wake_seconds: cost.wakes.as_secs_f64(),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
