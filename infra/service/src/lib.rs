//! What every Longshore process needs besides its own work, and nothing of that work.
//!
//! - [`config`]: defaults → file → environment → flags, with errors that name the source.
//! - [`telemetry`]: logs to standard error, as text or JSON.
//! - [`metrics`]: what is counted, in the form that Prometheus reads; [`limits`]: bounds with a name, a default and metrics.
//! - [`shutdown`]: the first SIGTERM or SIGINT asks, the second insists.
//! - [`tokens`]: bearer tokens of people and machines, of which only hashes are kept.
//! - [`signed`]: credentials that need no list, because the one who checks them made them.
//! - [`request_keys`]: the files of the keys that requests are signed with.
//! - [`retry`]: how long to wait before trying again.
//! - [`ledger`]: one small value that survives a power cut, and the [`durable`] file under it.
//!
//! This crate deliberately knows no HTTP (but the one answer of [`metrics::serve`]), no S3 and no log: the node's small binary links it.

pub mod config;
pub mod durable;
mod error;
pub mod ledger;
pub mod limits;
pub mod metrics;
pub mod request_keys;
pub mod retry;
pub mod shutdown;
pub mod signed;
pub mod telemetry;
pub mod tokens;

pub use error::{Error, chain};

/// What the machine's clock says.
pub fn now() -> longshore_schemas::Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    longshore_schemas::Timestamp(0) + since.unwrap_or_default()
}
