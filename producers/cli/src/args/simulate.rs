//! What is asked of the simulator.

use std::path::PathBuf;

use clap::Args;

use super::values::pair;

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  longshore simulate region-100k-25g --set nodes=20000 --set node_disk_bytes_per_second=2e9 --svg region.svg\n\nThe fields and their units are those of tests/sim/swarm/src/scenario.rs; a wrong name is answered with all of them."
)]
pub(crate) struct SimulateArgs {
    /// A scenario by its name, one of --list
    #[arg(value_name = "PRESET", required_unless_present_any = ["scenario", "list"])]
    pub(crate) preset: Option<String>,
    /// A JSON file with the scenario: {"nodes": …, "node_down_bits_per_second": …}; what it leaves out has its default
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    pub(crate) scenario: Option<PathBuf>,
    /// Another value for a field, such as nodes=5000, churn.fraction=0.01 or packs=64; may be repeated
    #[arg(long, value_parser = pair, value_name = "FIELD=VALUE")]
    pub(crate) set: Vec<(String, String)>,
    /// Draws when how many nodes were complete
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Lists the presets; with --output json all that is in them
    #[arg(long, conflicts_with_all = ["preset", "scenario", "set", "svg"])]
    pub(crate) list: bool,
}
