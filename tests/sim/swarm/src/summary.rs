//! An outcome for people.

use std::fmt;

use crate::Outcome;

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, nodes, packs, seed, complete, incomplete, died, .. } = self;
        let mebibytes = self.pack_bytes as f64 / f64::from(1 << 20);
        writeln!(f, "{scenario}: {nodes} nodes, {packs} packs of {mebibytes:.1} MiB, seed {seed}")?;
        writeln!(f, "  complete         {complete} nodes; {incomplete} not, {died} died")?;
        let times = [
            ("p50", self.p50_seconds),
            ("p90", self.p90_seconds),
            ("p99", self.p99_seconds),
            ("p99.9", self.p999_seconds),
            ("last", self.max_seconds),
        ];
        let times =
            times.map(|(name, time)| time.map_or(format!("{name} never"), |time| format!("{name} {time:.3} s")));
        writeln!(f, "  took             {}", times.join(", "))?;
        let bound = &self.bound;
        writeln!(
            f,
            "  at least         {:.3} s (bucket {:.3}, node {:.3}, rack {:.3}, uploads {:.3})",
            self.bound_seconds, bound.bucket_seconds, bound.node_seconds, bound.rack_seconds, bound.upload_seconds
        )?;
        writeln!(
            f,
            "  copies           {:.3} from the bucket; into a rack {:.3}, at most {:.3}; given by a node {:.3}, at most {:.3}",
            self.bucket_copies,
            self.rack_copies_mean,
            self.rack_copies_max,
            self.node_uploads_mean,
            self.node_uploads_max
        )?;
        let failures = &self.failures;
        writeln!(
            f,
            "  requests         {}; failed: {} missing, {} busy, {} unreachable, {} waiting, {} lied",
            self.requests, failures.missing, failures.busy, failures.unreachable, failures.waiting, failures.lied
        )?;
        writeln!(
            f,
            "  wrong bytes      {:.0} kept, {:.0} thrown away; {} nodes banned",
            self.wrong_bytes_persisted, self.wasted_bytes, self.banned
        )?;
        writeln!(
            f,
            "  tracker          {} messages in, {} out; peers of a node {:.1}, at most {}",
            self.tracker_messages, self.told_messages, self.peers_mean, self.peers_max
        )?;
        let cost = &self.policy_cost;
        write!(
            f,
            "  computed in      {:.1} s, of which tracker {:.1}, fetches {:.1}, timers {:.1}; {} steps, {:.1} rounds each",
            self.wall_seconds,
            cost.tracker_seconds,
            cost.fetch_seconds,
            cost.next_wake_seconds,
            self.steps,
            self.rounds_per_step
        )
    }
}
