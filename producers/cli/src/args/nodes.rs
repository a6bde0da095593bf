//! What is asked of nodes.

use clap::Args;
use longshore_schemas::{NodeId, RegionName, ServiceName, events::LOG_TAIL_BYTES_MAX};

#[derive(Debug, Clone, Args)]
pub(crate) struct NodesArgs {
    /// Only of this region
    #[arg(long)]
    pub(crate) region: Option<RegionName>,
    /// Only those that run this service
    #[arg(long)]
    pub(crate) service: Option<ServiceName>,
    /// Only those of which this holds: node, zone, rack, host, agent, label.NAME, lost, status, artifact or version, with =, != or (version) <; again for more
    #[arg(long = "where", value_name = "KEY=VALUE")]
    pub(crate) conditions: Vec<String>,
    /// So many at most, 1 to 1000
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) limit: u32,
    /// Goes on where an earlier list ended, with what it said
    #[arg(long, value_name = "PLACE")]
    pub(crate) after: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct FleetArgs {
    #[arg(value_name = "SERVICE")]
    pub(crate) service: ServiceName,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct NodeArgs {
    #[arg(value_name = "NODE")]
    pub(crate) node: NodeId,
    /// Of which region, if nodes of several are called so
    #[arg(long)]
    pub(crate) region: Option<RegionName>,
    /// So much of its history at most, 1 to 1000
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) limit: u32,
    /// Shows the end of what this service says there instead, which its region fetches
    #[arg(long, value_name = "SERVICE")]
    pub(crate) log: Option<ServiceName>,
    /// So much of it at most
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=i64::from(LOG_TAIL_BYTES_MAX)), requires = "log")]
    pub(crate) bytes: u32,
}
