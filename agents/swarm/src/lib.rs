//! The swarm's transport: nodes of a region exchange packs over TCP and TLS.
//!
//! ```text
//!                 Fetch (policy: what next, from whom)
//!                        ▲ events   │ actions
//!   region ◀─link─▶ [fetch::run] ───┴──▶ peer client ──TLS──▶ other nodes' [server]
//!                        │          └──▶ bucket, by ticket
//!                        ▼ verified
//!                   [PackStore] ◀── [server] serves what is verified
//! ```
//!
//! - [`frames`]: JSON frames, for the stream between a node and its region; both sides use them.
//! - [`PackStore`]: verified packs in a folder, and those on their way, of which a restart loses no block.
//! - [`server`]: serves them to peers.
//! - [`fetch`]: carries out what the policy decides, for one artifact.
//! - `pace`: how slow a source may be.
//! - [`Budget`]: how fast this node may be.
//!
//! Nobody is trusted. A block of 64 KiB is verified before it is in the store, and served only then; so a pack streams through a node, which is the
//! source of others before it has all of it. What was damaged
//! on this disk since then is noticed when it is served, and forgotten. Sources that lie, send nothing, a byte a second, or more than was
//! asked for are given up within seconds, the region is told, and the pack comes from elsewhere. Which pack comes next and from
//! whom is not decided here.

mod budget;
pub mod fetch;
pub mod frames;
#[doc(hidden)]
pub mod hooks;
mod pace;
mod part;
mod peer;
pub mod server;
mod store;

pub use budget::Budget;
pub use store::{Incoming, PackStore};

use std::time::Duration;

/// An answer must begin within this.
const STALL: Duration = Duration::from_secs(3);
/// A transfer may take this and a second for each [`RATE_MIN`] bytes; a peer that is slower is given up.
const PATIENCE: Duration = Duration::from_secs(5);
const RATE_MIN: u64 = 128 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("pack store {path}: {source}", path = path.display())]
    Store {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the connection to the region's tracker is closed for good")]
    Unlinked,
}
