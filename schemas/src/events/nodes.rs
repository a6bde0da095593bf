//! What travels from a build to the nodes that run it, and what nodes are.

use apache_avro::AvroSchema;
use serde::{Deserialize, Serialize};

use super::{StringMap, symbols};

/// How a node runs an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[serde(deny_unknown_fields)]
#[avro(namespace = "longshore")]
pub struct RunSpec {
    /// Program and arguments, run in the release's folder. A program with a `/` is looked up there.
    pub command: Vec<String>,
    /// Added to PORT, SERVICE, ARTIFACT and PATH.
    #[serde(with = "crate::avro::string_map", default)]
    #[avro(with)]
    pub environment: StringMap,
    #[serde(default)]
    pub health: HealthCheck,
    /// Sent to the service's processes to stop them.
    #[serde(default)]
    pub stop_signal: StopSignal,
    /// After this they are killed.
    #[serde(default = "default_stop_seconds")]
    pub stop_seconds: u32,
}

fn default_stop_seconds() -> u32 {
    10
}

symbols! {
    #[derive(Default)]
    pub enum StopSignal {
        #[default]
        Term = "SIGTERM",
        Int = "SIGINT",
        Quit = "SIGQUIT",
        Hup = "SIGHUP",
    }
}

/// When a release counts as healthy after its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[serde(deny_unknown_fields, default)]
#[avro(namespace = "longshore")]
pub struct HealthCheck {
    /// GET this path on the service's port and expect a 2xx status. Empty: the process must stay up instead.
    pub http_path: String,
    /// Consecutive successes needed.
    pub successes: u32,
    /// Time between checks.
    pub interval_ms: u32,
    /// A release not healthy after this has failed.
    pub deadline_seconds: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { http_path: String::new(), successes: 2, interval_ms: 500, deadline_seconds: 30 }
    }
}

symbols! {
    /// Where a node stands with a goal.
    pub enum NodeStatus {
        /// The goal is known; packs are on their way.
        Fetching,
        /// All bytes are verified and in place; the switch is next.
        Staged,
        /// The new release was started and is not healthy yet.
        Starting,
        /// The release that the goal wants runs and is healthy.
        Healthy,
        /// The release failed, and there is no earlier one to run.
        Failed,
        /// The release failed; the earlier one runs again.
        RolledBack,
        /// The goal wants nothing of this service here, and nothing runs.
        Stopped,
    }
}

impl NodeStatus {
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::RolledBack)
    }
}
