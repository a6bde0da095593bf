//! What one node takes on and keeps.

use longshore_service::limits::Limit;

use crate::{goals, plan, service, shim};

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
pub static LOG_BYTES: Limit =
    Limit::fixed("node.log_bytes", shim::LOG_BYTES_MAX, "bytes of one service's output", "the oldest third is removed");

/// All of them.
pub static LIMITS: &[&Limit] = &[&SERVICES, &PORTS, &RELEASES, &LOG_BYTES];
