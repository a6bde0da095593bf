//! What is simulated: the machines, the network, the artifact, and what goes wrong. One JSON object, all fields optional.

use serde::{Deserialize, Serialize};

/// The largest region that a run is meant for: 32-bit numbers and 16 GiB.
const NODES_MAX: u32 = 2_000_000;
/// Of the table of who has which pack.
const CELLS_MAX: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the scenario is not what was expected: {0}; see the names and units of its fields in `Scenario`")]
    Json(#[from] serde_json::Error),
    #[error("the scenario's field `{field}` {problem}; {remedy}")]
    Field { field: &'static str, problem: String, remedy: &'static str },
    #[error("the scenario has no field `{field}`; take one of {names}")]
    Unknown { field: String, names: String },
    #[error(
        "the scenario's field `{field}` cannot be `{value}`: {reason}; give its value as JSON, such as 25e9 or null"
    )]
    Value {
        field: String,
        value: String,
        #[source]
        reason: serde_json::Error,
    },
    #[error("there is no scenario `{name}`; take one of {}", crate::presets::NAMES.join(", "))]
    Preset { name: String },
}

/// See the module. Rates are of the wire, each direction of its own; absent limits are none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    /// Decides every choice that is left to chance.
    pub seed: u64,
    pub nodes: u32,
    pub nodes_per_rack: u32,

    pub artifact_bytes: u64,
    /// Of each pack but the last. Larger ones make a large region affordable: see the crate's documentation.
    pub pack_bytes: u64,
    /// What a node must have of a pack before it passes it on; the lag of each hop.
    pub block_bytes: u64,

    pub node_up_bits_per_second: f64,
    pub node_down_bits_per_second: f64,
    pub node_disk_bytes_per_second: Option<f64>,
    pub rack_up_bits_per_second: Option<f64>,
    pub rack_down_bits_per_second: Option<f64>,
    /// Of all that goes between racks.
    pub spine_bits_per_second: Option<f64>,
    pub bucket_bits_per_second: f64,

    /// Whether a pack is passed on while it comes from the bucket, or only once it is there as a whole.
    pub bucket_streams: bool,

    pub rtt_rack_seconds: f64,
    pub rtt_region_seconds: f64,
    pub rtt_bucket_seconds: f64,
    pub rtt_tracker_seconds: f64,
    /// Of each request, beside the round trip: what the server does before its first byte.
    pub peer_request_seconds: f64,
    pub bucket_request_seconds: f64,
    /// What of the wire's bytes are of use: less than 1 with loss and headers.
    pub goodput_rack: f64,
    pub goodput_region: f64,
    pub goodput_bucket: f64,

    /// Nodes begin within this, evenly.
    pub arrival_spread_seconds: f64,
    /// Of the artifact's packs, how many every node has already: those of the version before, the same everywhere.
    pub reuse_fraction: f64,
    /// Nodes that skipped versions, and what they have.
    pub skipped_nodes_fraction: f64,
    pub skipped_reuse_fraction: f64,

    pub straggler_fraction: f64,
    /// Of the usual rates, what a straggler has.
    pub straggler_rate_factor: f64,
    pub churn: Churn,
    pub hostile: Hostile,
    /// A new tracker that knows nothing takes over.
    pub tracker_restart_at_seconds: Option<f64>,
    /// Nodes whose connection to the region broke are back within this, evenly.
    pub reconnect_seconds: f64,
    pub bucket_away: Option<Span>,
    pub rack_cuts: Vec<RackCut>,
    /// How long the region takes to notice that a node is gone.
    pub notice_seconds: f64,

    /// A source that gives less than `window_bytes_min` in this is given up.
    pub stall_seconds: f64,
    pub window_bytes_min: u64,
    /// A request at a node that waits for the pack itself, or for more of it, is given up after this without a byte. More than
    /// `stall_seconds`: otherwise all behind a node that died give up together with the one next to it.
    pub patience_seconds: f64,
    /// Packs that a node sends at once; further requests are answered `Busy`. Nodes let 64 at a time go ahead and the others wait, which is not
    /// modelled: all of these share the link.
    pub uploads_max: u32,
    pub policy: Policy,

    /// Rates are shared out anew so often; absent: a fraction of a pack's time at a node's rate.
    pub step_seconds: Option<f64>,
    /// How late a node's or the tracker's timer may be noticed; 0 is exact, and slow for a large region.
    pub timer_slack_seconds: f64,
    /// The run ends then, complete or not.
    pub run_seconds_max: f64,
}

/// Nodes that die.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Churn {
    pub fraction: f64,
    /// They die within these, evenly.
    pub from_seconds: f64,
    pub until_seconds: f64,
    /// And are back after this, with what they had; absent: never.
    pub restart_after_seconds: Option<f64>,
}

/// Nodes that want to do harm, how many of each kind. They take no part otherwise and are not waited for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hostile {
    pub wrong_bytes_nodes: u32,
    pub silent_nodes: u32,
    pub drip_nodes: u32,
    pub false_claim_nodes: u32,
    pub flood_nodes: u32,
    /// What of the packs they say they have; the others they want, and never use a ticket for them.
    pub claims_fraction: f64,
    pub drip_bytes_per_second: f64,
    pub flood_messages_per_second: f64,
}

impl Default for Hostile {
    fn default() -> Self {
        Self {
            wrong_bytes_nodes: 0,
            silent_nodes: 0,
            drip_nodes: 0,
            false_claim_nodes: 0,
            flood_nodes: 0,
            claims_fraction: 1.0,
            drip_bytes_per_second: 4_096.0,
            flood_messages_per_second: 100.0,
        }
    }
}

impl Hostile {
    pub(crate) fn nodes(&self) -> u64 {
        let kinds =
            [self.wrong_bytes_nodes, self.silent_nodes, self.drip_nodes, self.false_claim_nodes, self.flood_nodes];
        kinds.into_iter().map(u64::from).sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    pub from_seconds: f64,
    /// Absent: for good.
    #[serde(default)]
    pub until_seconds: Option<f64>,
}

/// A rack whose uplink is cut for a while, the region's connections with it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RackCut {
    pub rack: u32,
    pub from_seconds: f64,
    pub until_seconds: f64,
}

/// Settings of the policy that differ from its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    pub requests_max: Option<usize>,
    pub peer_requests_max: Option<usize>,
    pub tickets_max: Option<usize>,
    pub node_tickets_max: Option<usize>,
    pub settle_seconds: Option<f64>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            name: "unnamed".into(),
            seed: 1,
            nodes: 100,
            nodes_per_rack: 40,
            artifact_bytes: 1 << 30,
            pack_bytes: 8 << 20,
            block_bytes: 64 << 10,
            node_up_bits_per_second: 25e9,
            node_down_bits_per_second: 25e9,
            node_disk_bytes_per_second: None,
            rack_up_bits_per_second: None,
            rack_down_bits_per_second: None,
            spine_bits_per_second: None,
            bucket_bits_per_second: 400e9,
            bucket_streams: true,
            rtt_rack_seconds: 0.000_1,
            rtt_region_seconds: 0.000_5,
            rtt_bucket_seconds: 0.005,
            rtt_tracker_seconds: 0.001,
            peer_request_seconds: 0.0,
            bucket_request_seconds: 0.0,
            goodput_rack: 1.0,
            goodput_region: 1.0,
            goodput_bucket: 1.0,
            arrival_spread_seconds: 0.2,
            reuse_fraction: 0.0,
            skipped_nodes_fraction: 0.0,
            skipped_reuse_fraction: 0.0,
            straggler_fraction: 0.0,
            straggler_rate_factor: 0.1,
            churn: Churn::default(),
            hostile: Hostile::default(),
            tracker_restart_at_seconds: None,
            reconnect_seconds: 1.0,
            bucket_away: None,
            rack_cuts: Vec::new(),
            notice_seconds: 3.0,
            stall_seconds: 3.0,
            window_bytes_min: 128 << 10,
            patience_seconds: 10.0,
            uploads_max: 1_000,
            policy: Policy::default(),
            step_seconds: None,
            timer_slack_seconds: 0.0,
            run_seconds_max: 600.0,
        }
    }
}

impl Scenario {
    /// Parses and checks.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        let scenario: Self = serde_json::from_str(json)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// One of [`crate::presets::NAMES`].
    pub fn preset(name: &str) -> Result<Self, Error> {
        crate::presets::find(name).ok_or_else(|| Error::Preset { name: name.to_owned() })
    }

    /// The same with so many packs, for a region that is too large for true ones.
    pub fn with_packs(mut self, packs: u64) -> Self {
        self.pack_bytes = self.artifact_bytes.div_ceil(packs.max(1));
        self
    }

    pub fn packs(&self) -> u32 {
        u32::try_from(self.artifact_bytes.div_ceil(self.pack_bytes.max(1))).unwrap_or(u32::MAX)
    }

    pub fn racks(&self) -> u32 {
        self.nodes.div_ceil(self.nodes_per_rack.max(1))
    }

    /// How long a step is.
    pub(crate) fn step(&self) -> f64 {
        let line = self.node_down_bits_per_second.min(self.node_up_bits_per_second) / 8.0;
        let fraction = self.pack_bytes as f64 / line / 2.0;
        self.step_seconds.unwrap_or_else(|| fraction.clamp(0.002, 0.05))
    }

    /// Every field, before any work begins.
    pub fn check(&self) -> Result<(), Error> {
        self.check_sizes()?;
        self.check_rates()?;
        self.check_times()?;
        self.check_fractions()?;
        let hostile = self.hostile.nodes();
        let problem = || format!("has {hostile} nodes of {} in all", self.nodes);
        must(hostile < u64::from(self.nodes), "hostile", problem, "leave at least one honest node")?;
        for cut in &self.rack_cuts {
            let problem = || format!("names rack {} of {}", cut.rack, self.racks());
            must(cut.rack < self.racks(), "rack_cuts", problem, "racks are counted from 0")?;
            let problem = || format!("ends at {} s, before it begins", cut.until_seconds);
            must(cut.until_seconds >= cut.from_seconds, "rack_cuts", problem, "let `until_seconds` be later")?;
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), Error> {
        let is = |value: u64| move || format!("is {value}");
        let nodes = (1..=NODES_MAX).contains(&self.nodes);
        must(nodes, "nodes", is(self.nodes.into()), "give 1 to 2,000,000")?;
        must(self.nodes_per_rack > 0, "nodes_per_rack", is(0), "give at least 1")?;
        must(self.artifact_bytes > 0, "artifact_bytes", is(0), "give the artifact's size in bytes")?;
        must(self.block_bytes > 0, "block_bytes", is(0), "give the size of a verified block, 65536 by default")?;
        let sound = self.pack_bytes >= self.block_bytes;
        must(sound, "pack_bytes", is(self.pack_bytes), "give at least `block_bytes`")?;
        must(self.uploads_max > 0, "uploads_max", is(0), "give at least 1")?;
        let cells = u64::from(self.packs()) * u64::from(self.nodes);
        let problem = || format!("makes {} packs for each of {} nodes", self.packs(), self.nodes);
        must(cells <= CELLS_MAX, "pack_bytes", problem, "give larger packs: nodes times packs may be 2^30")
    }

    fn check_rates(&self) -> Result<(), Error> {
        let rates = [
            ("node_up_bits_per_second", Some(self.node_up_bits_per_second)),
            ("node_down_bits_per_second", Some(self.node_down_bits_per_second)),
            ("node_disk_bytes_per_second", self.node_disk_bytes_per_second),
            ("rack_up_bits_per_second", self.rack_up_bits_per_second),
            ("rack_down_bits_per_second", self.rack_down_bits_per_second),
            ("spine_bits_per_second", self.spine_bits_per_second),
            ("bucket_bits_per_second", Some(self.bucket_bits_per_second)),
            ("step_seconds", self.step_seconds),
            ("run_seconds_max", Some(self.run_seconds_max)),
            ("stall_seconds", Some(self.stall_seconds)),
            ("patience_seconds", Some(self.patience_seconds)),
        ];
        for (field, rate) in rates.into_iter().filter_map(|(field, rate)| Some((field, rate?))) {
            must(rate > 0.0 && rate.is_finite(), field, || format!("is {rate}"), "give a number above 0")?;
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), Error> {
        let times = [
            ("rtt_rack_seconds", Some(self.rtt_rack_seconds)),
            ("rtt_region_seconds", Some(self.rtt_region_seconds)),
            ("rtt_bucket_seconds", Some(self.rtt_bucket_seconds)),
            ("rtt_tracker_seconds", Some(self.rtt_tracker_seconds)),
            ("peer_request_seconds", Some(self.peer_request_seconds)),
            ("bucket_request_seconds", Some(self.bucket_request_seconds)),
            ("arrival_spread_seconds", Some(self.arrival_spread_seconds)),
            ("churn.from_seconds", Some(self.churn.from_seconds)),
            ("churn.until_seconds", Some(self.churn.until_seconds)),
            ("churn.restart_after_seconds", self.churn.restart_after_seconds),
            ("tracker_restart_at_seconds", self.tracker_restart_at_seconds),
            ("reconnect_seconds", Some(self.reconnect_seconds)),
            ("notice_seconds", Some(self.notice_seconds)),
            ("bucket_away.from_seconds", self.bucket_away.map(|span| span.from_seconds)),
            ("bucket_away.until_seconds", self.bucket_away.and_then(|span| span.until_seconds)),
            ("hostile.drip_bytes_per_second", Some(self.hostile.drip_bytes_per_second)),
            ("hostile.flood_messages_per_second", Some(self.hostile.flood_messages_per_second)),
            ("policy.settle_seconds", self.policy.settle_seconds),
            ("timer_slack_seconds", Some(self.timer_slack_seconds)),
        ];
        let cuts = self.rack_cuts.iter().map(|cut| ("rack_cuts", Some(cut.from_seconds)));
        for (field, time) in times.into_iter().chain(cuts).filter_map(|(field, time)| Some((field, time?))) {
            must(time >= 0.0 && time.is_finite(), field, || format!("is {time}"), "give 0 or more")?;
        }
        Ok(())
    }

    fn check_fractions(&self) -> Result<(), Error> {
        let fractions = [
            ("reuse_fraction", self.reuse_fraction),
            ("skipped_nodes_fraction", self.skipped_nodes_fraction),
            ("skipped_reuse_fraction", self.skipped_reuse_fraction),
            ("straggler_fraction", self.straggler_fraction),
            ("churn.fraction", self.churn.fraction),
            ("hostile.claims_fraction", self.hostile.claims_fraction),
        ];
        for (field, fraction) in fractions {
            must((0.0..=1.0).contains(&fraction), field, || format!("is {fraction}"), "give 0 to 1")?;
        }
        let factors = [
            ("straggler_rate_factor", self.straggler_rate_factor),
            ("goodput_rack", self.goodput_rack),
            ("goodput_region", self.goodput_region),
            ("goodput_bucket", self.goodput_bucket),
        ];
        for (field, factor) in factors {
            must(factor > 0.0 && factor <= 1.0, field, || format!("is {factor}"), "give more than 0 and at most 1")?;
        }
        Ok(())
    }
}

fn must(holds: bool, field: &'static str, problem: impl FnOnce() -> String, remedy: &'static str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Field { field, problem: problem(), remedy }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_together_with_what_to_do() {
        let table = [
            (r#"{"nodes": 0}"#, "`nodes` is 0; give 1 to 2,000,000"),
            (r#"{"node_up_bits_per_second": 0}"#, "`node_up_bits_per_second` is 0; give a number above 0"),
            (r#"{"reuse_fraction": 95}"#, "`reuse_fraction` is 95; give 0 to 1"),
            (r#"{"pack_bytes": 1}"#, "`pack_bytes` is 1; give at least `block_bytes`"),
            (r#"{"rtt_rack_seconds": -1}"#, "`rtt_rack_seconds` is -1; give 0 or more"),
            (r#"{"hostile": {"silent_nodes": 100}}"#, "`hostile` has 100 nodes of 100 in all"),
            (r#"{"rack_cuts": [{"rack": 3, "from_seconds": 1, "until_seconds": 2}]}"#, "names rack 3 of 3"),
            (r#"{"goodput_rack": 0}"#, "`goodput_rack` is 0; give more than 0"),
            (r#"{"node_gbits": 25}"#, "unknown field `node_gbits`"),
        ];
        for (json, expected) in table {
            let error = Scenario::from_json(json).expect_err(json).to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
        assert_eq!(Scenario::from_json("{}").expect("all has defaults"), Scenario::default());
    }

    #[test]
    fn a_scenario_survives_its_file() {
        for name in crate::presets::NAMES {
            let scenario = Scenario::preset(name).expect("named");
            let json = serde_json::to_string(&scenario).expect("plain data");
            assert_eq!(Scenario::from_json(&json).expect("checked"), scenario);
        }
        assert!(Scenario::preset("moon").is_err());
    }
}
