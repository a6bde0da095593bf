//! How nodes run an artifact: what travels with it from its build to every machine.
//!
//! All but the command has a default, which is what was done before the field was there: a spec of an older release means
//! what it meant.

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
    /// Commands around the switch from one release to the next.
    #[serde(default)]
    #[avro(
        default = r#"{"before_fetch":null,"before_stop":null,"after_stop":null,"before_start":null,"after_start":null,"validate":null}"#
    )]
    pub hooks: Hooks,
    /// Files of the machine whose KEY=VALUE lines join the environment when the release starts; a later one wins.
    #[serde(default)]
    #[avro(default = "[]")]
    pub environment_files: Vec<String>,
    /// Who the service and its hooks run as, by name or number. None: the agent's user.
    #[serde(default)]
    pub user: Option<String>,
    /// None: the user's own group.
    #[serde(default)]
    pub group: Option<String>,
    #[serde(default)]
    #[avro(default = r#"{"memory_mib":null,"cpu_percent":null,"open_files":null,"processes":null}"#)]
    pub limits: RunLimits,
    /// How much of the service's output is kept.
    #[serde(default)]
    #[avro(default = r#"{"file_mib":10,"files":3}"#)]
    pub log: LogRotation,
}

fn default_stop_seconds() -> u32 {
    10
}

impl Default for RunSpec {
    /// Without a command: for the rest of a spec.
    fn default() -> Self {
        Self {
            command: Vec::new(),
            environment: StringMap::new(),
            health: HealthCheck::default(),
            stop_signal: StopSignal::default(),
            stop_seconds: default_stop_seconds(),
            hooks: Hooks::default(),
            environment_files: Vec::new(),
            user: None,
            group: None,
            limits: RunLimits::default(),
            log: LogRotation::default(),
        }
    }
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

/// When a release counts as healthy after its start, and afterwards.
///
/// At most one of `http_path`, `tcp` and `exec` is set; with none the process must stay up instead.
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
    /// The service's port must take a connection.
    #[avro(default = "false")]
    pub tcp: bool,
    /// A command, run as the service is, that must end with status 0.
    #[avro(default = "[]")]
    pub exec: Vec<String>,
    /// A check that takes longer has failed.
    #[avro(default = "5000")]
    pub timeout_ms: u32,
    /// Consecutive failures that make a service unhealthy.
    #[avro(default = "3")]
    pub failures: u32,
    /// A new release that fails `failures` times in a row when its process runs for longer than this has failed. None: until it
    /// was healthy once, only the deadline counts.
    pub grace_seconds: Option<u32>,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            http_path: String::new(),
            successes: 2,
            interval_ms: 500,
            deadline_seconds: 30,
            tcp: false,
            exec: Vec::new(),
            timeout_ms: 5_000,
            failures: 3,
            grace_seconds: None,
        }
    }
}

/// Commands that a node runs around a switch, in this order. The stop hooks are those of the release that is stopped, the
/// others those of the release that comes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[serde(deny_unknown_fields, default)]
#[avro(namespace = "longshore")]
pub struct Hooks {
    /// Before the release's bytes are there: a program of the machine, by its full path.
    pub before_fetch: Option<Hook>,
    pub before_stop: Option<Hook>,
    pub after_stop: Option<Hook>,
    pub before_start: Option<Hook>,
    /// Once the started release is healthy.
    pub after_start: Option<Hook>,
    /// The last word on whether the release is any good.
    pub validate: Option<Hook>,
}

/// A command that must end with status 0 in time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[serde(deny_unknown_fields)]
#[avro(namespace = "longshore")]
pub struct Hook {
    /// Program and arguments, run in the release's folder. A program with a `/` is looked up there.
    pub command: Vec<String>,
    /// After this the command and all that it started are killed, and the hook has failed.
    #[serde(default = "default_hook_seconds")]
    pub timeout_seconds: u32,
}

fn default_hook_seconds() -> u32 {
    60
}

/// What a service may use. None: as much as there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[serde(deny_unknown_fields, default)]
#[avro(namespace = "longshore")]
pub struct RunLimits {
    pub memory_mib: Option<u32>,
    /// 100 is one core.
    pub cpu_percent: Option<u32>,
    /// Of each process.
    pub open_files: Option<u32>,
    pub processes: Option<u32>,
}

impl RunLimits {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// How much of a service's output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[serde(deny_unknown_fields, default)]
#[avro(namespace = "longshore")]
pub struct LogRotation {
    /// A file that is larger gives way to a new one.
    pub file_mib: u32,
    /// The one that is written included.
    pub files: u32,
}

impl Default for LogRotation {
    fn default() -> Self {
        Self { file_mib: 10, files: 3 }
    }
}
