//! `longshore identity`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use longshore_schemas::{NodeId, RegionName};
use longshore_service::tokens::NodePattern;

use super::values::seconds;

#[derive(Debug, Args)]
pub(crate) struct IdentityArgs {
    /// The folder that `longshore secrets` made [default: that of the `longshore up` in the data folder]
    #[arg(long, global = true, env = "LONGSHORE_SECRETS", value_name = "DIR")]
    pub(crate) secrets: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: IdentityCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IdentityCommand {
    /// Makes an enrolment token, for the nodes that it says, and prints it
    Token(TokenArgs),
    /// Lists the tokens that enrol nodes
    Tokens,
    /// Takes enrolment tokens back: nobody can enrol with them any more
    Withdraw(WithdrawArgs),
    /// Ends the connections of nodes and lets them in no more, under that name
    Revoke(NodesOfRegion),
    /// Takes back that nodes were revoked
    Restore(NodesOfRegion),
    /// Lists the nodes that are revoked
    Revoked(OneRegion),
    /// Replaces the authority of a region, step by step: next, then switch, then drop
    Authority(AuthorityArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// Whose it is, for the log
    #[arg(long, default_value = "fleet", value_name = "WHO")]
    pub(crate) name: String,
    /// Good in these regions alone [default: in all]
    #[arg(long = "region", value_delimiter = ',', value_name = "REGIONS")]
    pub(crate) regions: Vec<RegionName>,
    /// Good for nodes of this name, or of names that begin so, such as web-* [default: of any]
    #[arg(long, value_name = "NAME")]
    pub(crate) nodes: Option<NodePattern>,
    /// Good for one node of each region
    #[arg(long)]
    pub(crate) once: bool,
    /// Good for so long, such as 2h [default: for ever]
    #[arg(long = "for", value_parser = seconds, value_name = "TIME")]
    pub(crate) lasts_seconds: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct WithdrawArgs {
    /// As `longshore identity tokens` shows them
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NodesOfRegion {
    #[arg(long, value_name = "REGION")]
    pub(crate) region: RegionName,
    #[arg(required = true, value_name = "NODE")]
    pub(crate) nodes: Vec<NodeId>,
}

#[derive(Debug, Args)]
pub(crate) struct OneRegion {
    #[arg(long, value_name = "REGION")]
    pub(crate) region: RegionName,
}

#[derive(Debug, Args)]
pub(crate) struct AuthorityArgs {
    #[arg(long, value_name = "REGION")]
    pub(crate) region: RegionName,
    #[arg(value_enum)]
    pub(crate) step: AuthorityStep,
}

#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
pub(crate) enum AuthorityStep {
    /// A second authority is believed, and does not certify yet
    Next,
    /// It certifies from now on
    Switch,
    /// The old one is believed no more
    Drop,
}
