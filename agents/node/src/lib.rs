//! The node agent: runs on every machine, fetches what its region's goals want, and runs it.
//!
//! ```text
//!  region ◀─frames─▶ [link] ──goals──▶ [goals] ledger ──watch──▶ [service] one task per service
//!                      │ roots, sources                            │
//!                      ▼                                           ├─▶ [releases] fetch, verify, assemble
//!                  [releases] ◀──▶ swarm (peers, bucket by ticket) ├─▶ current ─▶ releases/<artifact>
//!                                                                  ├─▶ [shim] starts, stops, outlives the agent
//!                      ▲ reports, as levels                        └─▶ [hooks], [health], [watch]
//!                      └────────────────────────────────────────────────
//! ```
//!
//! - [`link`]: the one connection to the region; everything on it may be lost and is said again.
//! - [`identity`]: the certificate by which the region and peers know this node, and whom it believes to be theirs.
//! - [`trust`]: whose word is taken, of goals and of what artifacts are made of. Asked before anything is fetched, and before it is started.
//! - [`goals`]: the newest goal of each service, on disk before anything acts on it. Lower versions are refused, for ever.
//! - [`plan`], in a crate of its own: what a service needs next, as a pure function of its goal and what is on disk.
//! - [`service`]: carries that out, one step at a time, and reports each.
//! - [`hooks`]: the commands of a release around its start and stop; each runs under a keeper of the shim's kind, and leaves nothing.
//! - [`environment`], [`account`]: what a release is run with, of this machine: secrets, users.
//! - [`watch`]: whether a release that was proved goes on being well, as a pure function of what is seen of it.
//! - [`takeover`]: how the agent is replaced by a release of its own, and back.
//! - [`queries`]: what people ask of this node, such as what a service says.
//! - [`shim`]: a small process per service that owns the service's processes, log and exit status.
//!
//! The node runs only bytes that it verified, and goes on running what it runs whoever else is away. What it does not
//! know: other regions, rollouts, Kafka, S3's API.

pub mod account;
pub mod args;
pub mod environment;
pub mod goals;
pub mod health;
pub mod hooks;
pub mod identity;
pub mod install;
pub mod limits;
pub mod link;
pub mod node;
pub mod queries;
pub mod releases;
pub mod reports;
pub mod service;
pub mod shim;
pub mod takeover;
pub mod trust;
pub mod watch;

pub use longshore_node_policy::plan;
use std::path::{Path, PathBuf};

/// Where a node keeps what.
#[derive(Debug, Clone)]
pub struct Folders {
    pub data: PathBuf,
}

/// A file to be locked, which nobody else can open: whoever can open a file can hold its lock.
pub(crate) fn private_file(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let file = std::fs::File::options().create(true).write(true).truncate(false).mode(0o600).open(path)?;
    // It may be there from before.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

impl Folders {
    pub fn goals(&self) -> PathBuf {
        self.data.join("goals.json")
    }

    pub fn identity(&self) -> PathBuf {
        self.data.join("identity.json")
    }

    /// Which program the agent is to be.
    pub fn turn(&self) -> PathBuf {
        self.data.join("turn.json")
    }

    /// Which program it is.
    pub fn running(&self) -> PathBuf {
        self.data.join("running.json")
    }

    pub fn packs(&self) -> PathBuf {
        self.data.join("packs")
    }

    pub fn releases(&self) -> PathBuf {
        self.data.join("releases")
    }

    pub fn transfers(&self) -> PathBuf {
        self.data.join("transfers.json")
    }

    pub fn services(&self) -> PathBuf {
        self.data.join("services")
    }

    pub fn service(&self, service: &longshore_schemas::ServiceName) -> PathBuf {
        self.services().join(service.as_str())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Service(#[from] longshore_service::Error),
    #[error(transparent)]
    Artifact(#[from] longshore_artifact::Error),
    #[error(transparent)]
    Swarm(#[from] longshore_swarm::Error),
    #[error("{path}: {source}", path = path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Refused(String),
    #[error("the node's identity: {0}")]
    Identity(#[source] longshore_identity::Error),
    /// It is tried again, and what runs goes on.
    #[error("no room for {what}: {shortage}")]
    NoRoom { what: &'static str, shortage: longshore_node_policy::room::Shortage },
    #[error("no free port from {base} on: {tried} are taken; start with another --port-base")]
    NoPort { base: u16, tried: u16 },
    #[error("{program} cannot be started: {source}")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    /// The release did what a release must not: it ended, or never got healthy.
    #[error("{0}")]
    Unhealthy(String),
    #[error("the agent is stopping")]
    Stopping,
}

impl Error {
    /// With its causes, in one line: "no space left" is one.
    pub(crate) fn whole(&self) -> String {
        longshore_service::chain(self)
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
