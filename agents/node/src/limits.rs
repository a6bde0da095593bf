//! What one node takes on and keeps.

use longshore_service::limits::Limit;

use crate::{environment, goals, plan, service, shim};

pub static SERVICES: Limit =
    Limit::fixed("node.services", goals::SERVICES_MAX as u64, "services of one node", "the goal is refused");
pub static PORTS: Limit = Limit::fixed(
    "node.ports",
    service::PORTS as u64,
    "ports from --port-base on",
    "the service does not start, and reports it",
);
pub static RELEASES: Limit =
    Limit::fixed("node.releases", plan::RELEASES_KEPT as u64, "releases kept of one service", "the oldest is removed");
pub static LOG_BYTES: Limit = Limit::fixed(
    "node.log_bytes",
    shim::LOG_BYTES_USUAL,
    "bytes of one service's output, unless its run says otherwise",
    "the oldest third is removed",
);
pub static HOOK_LOG_BYTES: Limit = Limit::fixed(
    "node.hook_log_bytes",
    shim::once::LOG_BYTES_MAX,
    "bytes of output of one service's hooks, and of its checks",
    "the older half is removed",
);
pub static ENVIRONMENT_FILE_BYTES: Limit = Limit::fixed(
    "node.environment_file_bytes",
    environment::FILE_BYTES_MAX,
    "bytes of one environment file",
    "the release is not taken, and says so",
);

/// All of them.
pub static LIMITS: &[&Limit] = &[&SERVICES, &PORTS, &RELEASES, &LOG_BYTES, &HOOK_LOG_BYTES, &ENVIRONMENT_FILE_BYTES];
