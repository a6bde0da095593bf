//! What a worker is told when it starts.

use std::{ffi::OsString, path::PathBuf};

use longshore_schemas::{QueueName, WorkerId};
use reqwest::Url;

/// Queues that one worker may serve; it works on one job of each at once.
pub(crate) const QUEUES_MAX: usize = 16;

#[derive(Clone)]
pub struct WorkerConfig {
    /// Where the API is, such as `http://127.0.0.1:7070`.
    pub api: Url,
    /// A bearer token of the role worker.
    pub token: String,
    pub queues: Vec<QueueName>,
    pub name: WorkerId,
    /// Belongs to this worker alone. Left-overs in it are removed at start; the cache of repositories stays.
    pub work_dir: PathBuf,
    /// Variables of the worker's own environment that builds see too, such as `CARGO_HOME`. PATH always is.
    pub passthrough: Vec<String>,
    /// Whether repositories may be folders of this machine.
    pub allow_file_repositories: bool,
    pub git: GitLimits,
    pub guard: GuardProgram,
}

#[derive(Debug, Clone)]
pub struct GitLimits {
    /// For one fetch.
    pub fetch_seconds_max: u32,
    /// For the checkout of one commit.
    pub checkout_seconds_max: u32,
    /// Repositories kept in the cache; the one not used for longest goes first.
    pub repositories_max: usize,
}

impl Default for GitLimits {
    fn default() -> Self {
        Self { fetch_seconds_max: 600, checkout_seconds_max: 300, repositories_max: 16 }
    }
}

/// How to start the guard: a program whose `main` is [`guard::main`](crate::guard::main).
#[derive(Debug, Clone)]
pub struct GuardProgram {
    pub program: OsString,
    pub arguments: Vec<OsString>,
}

impl Default for GuardProgram {
    /// This program's `guard` subcommand. The link in /proc still works after an upgrade has replaced the file.
    fn default() -> Self {
        Self { program: "/proc/self/exe".into(), arguments: vec!["guard".into()] }
    }
}
