//! The roles of the server side, as `longshore up` wires them into one process and `longshore control` and `longshore region`
//! run them as processes of their own, on Kafka.
//!
//! ```text
//! up ──────▶ local log, embedded S3 ─┐                ┌─▶ control: processors, API, console ─▶ stopped in order
//! control ─▶ settings ─▶ Kafka, S3 ──┼─▶ the same ────┤
//! region ──▶ settings ─▶ Kafka, S3 ──┘   starting     └─▶ region: copies, goals, nodes
//! ```
//!
//! What both ways have in common is here once: [`control`], [`region`], what they look at when asked ([`checks`], [`metrics`]),
//! and what an installation shares ([`secrets`], [`identity`]).

pub(crate) mod checks;
pub(crate) mod config_check;
pub(crate) mod control;
pub(crate) mod folder;
pub(crate) mod identity;
pub(crate) mod leases;
pub(crate) mod metrics;
pub(crate) mod region;
pub(crate) mod retention;
pub(crate) mod s3;
pub(crate) mod secrets;
pub(crate) mod settings;
pub(crate) mod signing;
pub(crate) mod snapshots;
mod stores;

/// That each partition has its leader is news where there are several control nodes.
pub(crate) const LOG_FILTER: &str = "info,longshore_runtime::partition=warn";
