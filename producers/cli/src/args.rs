//! The command line. Everything that can be checked without the server is checked here.

mod identity;
mod nodes;
mod simulate;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use longshore_schemas::{ArtifactName, QueueName, RegionName, ServiceName, WorkerId, http::JobStatus};

use crate::output::Format;

pub(crate) use self::identity::{AuthorityStep, IdentityArgs, IdentityCommand, NodesOfRegion, TokenArgs};
pub(crate) use self::nodes::{FleetArgs, NodeArgs, NodesArgs};
pub(crate) use self::simulate::SimulateArgs;
pub(crate) use self::values::{From, seconds, split_command, waves};
use self::values::{basis_points, from, pair, status};

/// Builds code and puts it on every machine.
#[derive(Debug, Parser)]
#[command(name = "longshore", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// Tables for people, JSON for programs
    #[arg(long, global = true, value_enum, default_value = "table", help_heading = "Everywhere")]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Connection {
    /// The API's address [default: that of the `longshore up` in the data folder]
    #[arg(long, global = true, env = "LONGSHORE_API", value_name = "URL")]
    pub(crate) api: Option<String>,
    /// The token to speak with
    #[arg(long, global = true, env = "LONGSHORE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// A file that holds the token
    #[arg(long, global = true, env = "LONGSHORE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The data folder of `longshore up`
    #[arg(long, global = true, env = "LONGSHORE_DATA", default_value = DATA_DEFAULT, value_name = "DIR")]
    pub(crate) data: PathBuf,
}

/// The data folder that nobody named.
pub(crate) const DATA_DEFAULT: &str = ".longshore";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs everything in one process, on the local log and an embedded S3 server
    Up(UpArgs),
    /// Runs a control node on Kafka: the API, the console and a share of all processors; run three
    Control(RoleArgs),
    /// Runs a region on Kafka: copies artifacts into its bucket, and tells its nodes what to run; run two for each region
    Region(RoleArgs),
    /// Serves buckets from a folder over S3's protocol, for tests and for trying things out
    S3(S3Args),
    /// Makes the keys and tokens of an installation, or what of them is missing
    Secrets(SecretsArgs),
    /// Lets machines become nodes of a region, and bars them from it
    Identity(IdentityArgs),
    /// Looks at the settings of a role
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Runs a worker, which builds jobs
    Worker(WorkerArgs),
    /// Kills what a build leaves behind; started by workers only
    #[command(hide = true)]
    Guard,
    /// Asks for a build
    Build(Box<BuildArgs>),
    /// Lists jobs, newest first
    Jobs(JobsArgs),
    /// Shows a job; with --follow its log, until it has ended
    Job(JobArgs),
    /// Ends a job without a result
    Cancel(JobName),
    /// Lists artifacts, newest first
    Artifacts(ArtifactsArgs),
    /// Shows an artifact and which regions have it; or lists, fetches and compares what artifacts hold
    Artifact(ArtifactArgs),
    /// Keeps an artifact, whatever its age, until it is let go
    Keep(KeepArgs),
    /// Lets an artifact be retired that was kept
    LetGo(ArtifactArg),
    /// Says what would be retired and deleted now, how much that is, and why all else is kept; changes nothing
    Retention,
    /// Makes a service run an artifact
    Deploy(DeployArgs),
    /// Shows what a service should run, and how far that is
    Status(StatusArgs),
    /// Makes a service run what it ran before, at once and everywhere
    Rollback(RollbackArgs),
    /// Starts no further wave of a service's rollout
    Pause(ServiceArg),
    /// Goes on with a rollout that is paused or halted
    Resume(ServiceArg),
    /// Lets an artifact that was rolled back from be deployed again
    LiftHold(HoldArgs),
    /// Lists nodes and what they run
    Nodes(NodesArgs),
    /// Shows one node, what it runs and what happened to it; or the end of what a service says there
    Node(NodeArgs),
    /// Counts the nodes of a service by place and version, groups their failures, and names those that are behind
    Fleet(FleetArgs),
    /// Reads the log of facts, or checks it
    #[command(subcommand)]
    Log(LogCommand),
    /// Says how long a region would take to get an artifact, from its machines and its network; needs neither
    Simulate(SimulateArgs),
    /// Shows what the token may do
    Whoami,
    /// Looks at this machine, the server and what it runs, and says what to do about what is wrong
    Doctor,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    /// Where the API and the console listen
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS")]
    pub(crate) listen: std::net::SocketAddr,
    /// Names of the regions
    #[arg(long, value_delimiter = ',', default_value = "eu,us,ap", value_name = "REGIONS")]
    pub(crate) regions: Vec<RegionName>,
    /// Where the embedded S3 server listens
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub(crate) s3_listen: std::net::SocketAddr,
    /// Where the regions listen for nodes: each on a port of its own, from this one on, or any free ones
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub(crate) region_listen: std::net::SocketAddr,
    /// A TOML file with settings: [worker] silence, beat and confirm; variables and flags come before it
    #[arg(long, env = "LONGSHORE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// After so long without a word from its worker, a job is given to another [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub(crate) worker_silence: Option<String>,
    /// How often workers say that they are at work; at least three times within the silence [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) worker_beat: Option<String>,
    /// How long a worker may take until its first word [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) worker_confirm: Option<String>,
    /// Sets a limit, such as queue.jobs=5000; may be repeated. infra/docs/limits.md lists them
    #[arg(long = "limit", value_name = "NAME=VALUE")]
    pub(crate) limits: Vec<String>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// A role that runs as a process of its own, on Kafka.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Every setting is a key of the TOML file, a variable and a --set: kafka.brokers is LONGSHORE_KAFKA_BROKERS and\n--set kafka.brokers=…. `longshore config check` says what is missing or wrong."
)]
pub(crate) struct RoleArgs {
    /// A TOML file with settings; variables come before it, and --set before both
    #[arg(long, env = "LONGSHORE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// One setting, such as kafka.brokers=one:9092,two:9092; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Sets a limit, such as queue.jobs=5000; may be repeated. infra/docs/limits.md lists them
    #[arg(long = "limit", value_name = "NAME=VALUE")]
    pub(crate) limits: Vec<String>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct S3Args {
    /// The folder that holds the buckets
    #[arg(long, env = "LONGSHORE_S3_FOLDER", value_name = "DIR")]
    pub(crate) folder: PathBuf,
    #[arg(long, env = "LONGSHORE_S3_LISTEN", default_value = "127.0.0.1:9000", value_name = "ADDRESS")]
    pub(crate) listen: std::net::SocketAddr,
    /// What clients sign with, beside the secret key
    #[arg(long, env = "LONGSHORE_S3_ACCESS_KEY", default_value = "longshore", value_name = "KEY")]
    pub(crate) access_key: String,
    /// The file that holds the secret key, such as s3.key of the secrets folder
    #[arg(long, env = "LONGSHORE_S3_SECRET_KEY_FILE", value_name = "FILE")]
    pub(crate) secret_key_file: PathBuf,
    /// Where Prometheus reads /metrics, such as 127.0.0.1:9100 [default: nowhere]
    #[arg(long, env = "LONGSHORE_S3_METRICS_LISTEN", value_name = "ADDRESS")]
    pub(crate) metrics_listen: Option<std::net::SocketAddr>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct SecretsArgs {
    /// The folder: every process of the installation gets a copy of it; its tokens/ are for people, workers and nodes
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Names of all regions; each gets a key for its reports. Run it again for a region that is new
    #[arg(long, env = "LONGSHORE_REGIONS", value_delimiter = ',', required = true, value_name = "REGIONS")]
    pub(crate) regions: Vec<RegionName>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Says everything that is wrong with the settings of a role, without connecting anywhere; exit code 0 or 2
    Check(CheckArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CheckArgs {
    #[arg(long, value_enum)]
    pub(crate) role: crate::roles::settings::Role,
    #[command(flatten)]
    pub(crate) settings: RoleArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct WorkerArgs {
    /// A queue to serve; may be repeated, one job of each at a time
    #[arg(
        long = "queue",
        env = "LONGSHORE_WORKER_QUEUES",
        value_delimiter = ',',
        default_value = "default",
        value_name = "QUEUE"
    )]
    pub(crate) queues: Vec<QueueName>,
    /// The worker's name, unique among workers
    #[arg(long, env = "LONGSHORE_WORKER_NAME")]
    pub(crate) name: WorkerId,
    /// A folder of its own, for checkouts and the cache of repositories
    #[arg(long, env = "LONGSHORE_WORKER_DIR", value_name = "DIR")]
    pub(crate) work_dir: PathBuf,
    /// Variables that builds see besides PATH
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "RUSTUP_HOME,CARGO_HOME,RUSTUP_TOOLCHAIN",
        value_name = "NAMES"
    )]
    pub(crate) passthrough: Vec<String>,
    /// Lets folders of this machine be repositories
    #[arg(long)]
    pub(crate) allow_file_repositories: bool,
    /// Repositories kept in the cache
    #[arg(long, default_value_t = 16, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(crate) repositories_max: u16,
    /// Where Prometheus reads /metrics, such as 127.0.0.1:9100 [default: nowhere]
    #[arg(long, env = "LONGSHORE_WORKER_METRICS_LISTEN", value_name = "ADDRESS")]
    pub(crate) metrics_listen: Option<std::net::SocketAddr>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// How a process that runs on writes its log, which goes to stderr.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// text for people, json for programs: one object per line
    #[arg(long, env = "LONGSHORE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub(crate) log_format: longshore_service::telemetry::Format,
}

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  longshore build --name web --output-path target/release/web --run ./web --health-path /healthz \\\n    --follow -- cargo build --release"
)]
pub(crate) struct BuildArgs {
    /// The queue [default: default]
    #[arg(long)]
    pub(crate) queue: Option<QueueName>,
    /// What comes out is called this; successive builds share the name
    #[arg(long, required_unless_present = "file")]
    pub(crate) name: Option<ArtifactName>,
    /// A git URL, or a local checkout
    #[arg(long, default_value = ".", value_name = "URL|DIR")]
    pub(crate) repository: String,
    /// A commit, branch or tag of that repository
    #[arg(long, default_value = "HEAD")]
    pub(crate) commit: String,
    /// The file or folder that the command leaves, relative to the checkout
    #[arg(long, required_unless_present = "file", value_name = "PATH")]
    pub(crate) output_path: Option<String>,
    /// A variable for the command; may be repeated
    #[arg(long, value_parser = pair, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<(String, String)>,
    /// A label of the job; may be repeated
    #[arg(long, value_parser = pair, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<(String, String)>,
    /// The command is killed after this, such as 90s, 15m or 2h
    #[arg(long, default_value = "15m", value_parser = seconds, value_name = "TIME")]
    pub(crate) time_limit: u32,
    /// What nodes execute: program and arguments, in the release's folder
    #[arg(long, required_unless_present = "file", value_name = "COMMAND")]
    pub(crate) run: Option<String>,
    #[command(flatten)]
    pub(crate) running: RunningArgs,
    /// A JSON file with the whole request: {"queue": …, "build": {…}}
    #[arg(long, value_name = "FILE", conflicts_with_all = ["queue", "name", "output_path", "env", "label", "run", "run_env", "health_path", "build_command"])]
    pub(crate) file: Option<PathBuf>,
    /// Shows the log until the job has ended; the exit code says how it did. Ctrl-C ends the showing, not the job
    #[arg(long)]
    pub(crate) follow: bool,
    /// The command that builds; no shell is implied
    #[arg(last = true, id = "build_command", required_unless_present = "file", value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// How nodes run an artifact, besides the command.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunningArgs {
    /// A variable for what nodes execute; may be repeated
    #[arg(long, value_parser = pair, value_name = "KEY=VALUE")]
    pub(crate) run_env: Vec<(String, String)>,
    /// Healthy is what answers 2xx to a GET of this path on $PORT [default: what stays up]
    #[arg(long, value_name = "PATH")]
    pub(crate) health_path: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct JobsArgs {
    /// Only of this queue
    #[arg(long)]
    pub(crate) queue: Option<QueueName>,
    /// Only those that are queued, running, succeeded, failed or canceled
    #[arg(long, value_parser = status)]
    pub(crate) status: Option<JobStatus>,
    /// Only of this name
    #[arg(long)]
    pub(crate) name: Option<ArtifactName>,
    /// So many at most, 1 to 1000
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) limit: u32,
    /// Goes on where an earlier list ended, with what it said
    #[arg(long, value_name = "PLACE")]
    pub(crate) after: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct JobName {
    /// A job such as default-17, or a name: its newest job
    #[arg(value_name = "JOB|NAME")]
    pub(crate) job: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    pub(crate) job: JobName,
    /// Shows the log until the job has ended; the exit code says how it did
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ArtifactsArgs {
    /// Only of this name
    #[arg(long)]
    pub(crate) name: Option<ArtifactName>,
    /// So many at most, 1 to 1000
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) limit: u32,
    /// Goes on where an earlier list ended, with what it said
    #[arg(long, value_name = "PLACE")]
    pub(crate) after: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ArtifactArg {
    /// An artifact's id or the beginning of it, NAME or NAME@latest, or the job that built it
    #[arg(value_name = "ARTIFACT|NAME")]
    pub(crate) artifact: String,
}

/// An artifact to show, or one of the commands for what artifacts hold.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ArtifactArgs {
    /// An artifact's id or the beginning of it, NAME or NAME@latest, or the job that built it
    #[arg(value_name = "ARTIFACT|NAME", required = true)]
    pub(crate) artifact: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Option<ArtifactCommand>,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ArtifactCommand {
    /// Lists the files of an artifact
    Ls(LsArgs),
    /// Fetches an artifact, or a part of it, as plain files; goes on where an interrupted one stopped
    Get(GetArgs),
    /// Says what changed from one artifact to another, and what a machine that has the first needs for the second
    Diff(DiffArgs),
    /// Publishes a file or folder that was built elsewhere: it is replicated and can be deployed as what was built here
    Import(ImportArgs),
    /// Checks whose word it is that an artifact was built of what it says, and that it is that artifact; exit code 0 or 1
    Verify(ArtifactVerifyArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    pub(crate) artifact: ArtifactArg,
    /// Only this file or folder
    #[arg(value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// With permissions, sizes and where links point to
    #[arg(short, long)]
    pub(crate) long: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) artifact: ArtifactArg,
    /// Only this file or folder
    #[arg(value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// What to make: the folder, or the file if PATH is one. It must not exist yet
    #[arg(long, value_name = "DIR|FILE")]
    pub(crate) to: PathBuf,
}

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  longshore artifact import ./dist --name web --origin https://ci.example/web/17 --run ./web"
)]
pub(crate) struct ImportArgs {
    /// The file or folder
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// What it is called; successive imports share the name
    #[arg(long)]
    pub(crate) name: ArtifactName,
    /// Where it was built, or taken from; it becomes part of the artifact's provenance, as your word
    #[arg(long, value_name = "URL")]
    pub(crate) origin: String,
    /// What nodes execute: program and arguments, in the release's folder
    #[arg(long, value_name = "COMMAND")]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) running: RunningArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ArtifactVerifyArgs {
    /// An artifact as in other commands; or what was got of one, as a path with a slash, of which every byte is read: ./web
    #[arg(value_name = "ARTIFACT|DIR")]
    pub(crate) what: String,
    /// The public keys that are trusted, in PEM, any of them [default: secrets/provenance.pub in the data folder]
    #[arg(long, env = "LONGSHORE_PROVENANCE_PUBLIC_KEYS", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// An envelope that is at hand, instead of the one that the server has
    #[arg(long, value_name = "FILE")]
    pub(crate) envelope: Option<PathBuf>,
    /// Reads every byte of the artifact in the main bucket, too
    #[arg(long)]
    pub(crate) deep: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DiffArgs {
    /// The artifact that was there before, as its id or the beginning of it, NAME or NAME@latest, or the job that built it
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// The one that comes after it
    #[arg(value_name = "TO")]
    pub(crate) to: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct KeepArgs {
    #[command(flatten)]
    pub(crate) artifact: ArtifactArg,
    /// Why, for others who wonder
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServiceArg {
    /// The service's name
    pub(crate) service: ServiceName,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DeployArgs {
    /// The service's name
    pub(crate) service: ServiceName,
    #[command(flatten)]
    pub(crate) artifact: ArtifactArg,
    /// A JSON file with the plan: {"waves": […], "failure_budget_bp": …}
    #[arg(long, value_name = "FILE", conflicts_with_all = ["waves", "budget", "bake"])]
    pub(crate) plan: Option<PathBuf>,
    /// One wave of regions after the other: eu,us+ap is eu, then us and ap [default: all at once]
    #[arg(long, value_name = "WAVES")]
    pub(crate) waves: Option<String>,
    /// Share of a wave's nodes that may fail, in percent
    #[arg(long, value_parser = basis_points, value_name = "PERCENT")]
    pub(crate) budget: Option<u32>,
    /// How long each wave must stay converged before the next, such as 30s or 5m
    #[arg(long, value_parser = seconds, value_name = "TIME")]
    pub(crate) bake: Option<u32>,
    /// Waits until the regions have the artifact, if they do not yet
    #[arg(long)]
    pub(crate) wait: bool,
    /// Shows the rollout until it has ended; the exit code says how it did
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct StatusArgs {
    /// The service [default: all of them]
    pub(crate) service: Option<ServiceName>,
    /// Goes on until the rollout has ended; the exit code says how it did
    #[arg(long, requires = "service")]
    pub(crate) watch: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RollbackArgs {
    /// The service's name
    pub(crate) service: ServiceName,
    /// An artifact that the service ran [default: what completed before]
    #[arg(long, value_name = "ARTIFACT")]
    pub(crate) to: Option<String>,
    /// Shows the rollout until it has ended
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct HoldArgs {
    /// The service's name
    pub(crate) service: ServiceName,
    #[command(flatten)]
    pub(crate) artifact: ArtifactArg,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum LogCommand {
    /// Lists every partition: what it holds, and how far its requests are processed
    Topics,
    /// Shows records as they are written, until stopped
    Tail(TailArgs),
    /// Checks the log: nothing missing, twice or in part, and projections that say the same. Of a server that runs, of the data folder of a stopped `longshore up`, or with --config of a log on Kafka itself
    Verify(VerifyArgs),
    /// Accepts that the log has lost requests of a partition, which halts until then and says which are lost
    AcceptLoss(AcceptLossArgs),
    /// What no processor could take
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct VerifyArgs {
    /// A control node's TOML file: reads the log from Kafka, without any control node. Only kafka.* is looked at
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// One setting, such as kafka.brokers=one:9092, with or without a file; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct AcceptLossArgs {
    /// queue, replication, goals or fleet
    #[arg(value_parser = ["queue", "replication", "goals", "fleet"])]
    pub(crate) processor: String,
    /// Its partition
    pub(crate) partition: u32,
    /// The first request that is lost
    #[arg(long, value_name = "OFFSET")]
    pub(crate) from: u64,
    /// The first one after them that is still there
    #[arg(long, value_name = "OFFSET")]
    pub(crate) to: u64,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// Lists them, newest first
    List(LettersArgs),
    /// Shows one with what it holds
    Show(LetterArg),
    /// Writes its record to its topic once more, where it is processed or set aside anew
    Retry(LetterArg),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LettersArgs {
    /// So many at most, 1 to 200
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) limit: u32,
    /// Goes on where an earlier list ended, with what it said
    #[arg(long, value_name = "PLACE")]
    pub(crate) after: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LetterArg {
    /// The letter's number in the list: its offset on dead-letters
    #[arg(value_name = "LETTER")]
    pub(crate) offset: u64,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TailArgs {
    /// builds, artifacts, goals or fleet; and for admins any other topic, or all of them
    #[arg(value_parser = topics())]
    pub(crate) topic: String,
    /// beginning, end, a time such as 2026-11-25T01:00:00Z, a time ago such as 10m, or places as a tail shows them, such as p0:17,p1:4
    #[arg(long, default_value = "end", value_name = "FROM", value_parser = from)]
    pub(crate) from: From,
    /// Only records of this type, such as JobQueued; may be repeated
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kinds: Vec<String>,
    /// Only where this field has this value, such as key=web, actor=ada or event.job=web-1; may be repeated
    #[arg(long = "where", value_parser = pair, value_name = "FIELD=VALUE")]
    pub(crate) conditions: Vec<(String, String)>,
    /// Goes on as records are written, which is the default
    #[arg(long, conflicts_with = "until_end")]
    pub(crate) follow: bool,
    /// Ends with the last record that is there now
    #[arg(long)]
    pub(crate) until_end: bool,
}

/// Every topic by name, and all of them.
fn topics() -> Vec<&'static str> {
    longshore_schemas::topics::ALL.iter().map(|topic| topic.name).chain(["all"]).collect()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("longshore").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn good_lines_are_taken() {
        let lines = [
            "up --data /tmp/x --regions eu,us --listen 127.0.0.1:0",
            "up --worker-silence 10m --worker-beat 10s --worker-confirm 30s --config longshore.toml",
            "worker --api http://127.0.0.1:1 --token-file t --queue default --name w-1 --work-dir w --allow-file-repositories",
            "build --name web --output-path out --run ./web -- make web",
            "build --file build.json --follow",
            "jobs --status running --output json",
            "job web --follow",
            "cancel default-1",
            "artifacts --name web",
            "artifact web@latest",
            "artifact ls web@latest bin -l",
            "artifact get web bin/web --to /tmp/web",
            "artifact diff default-1 web",
            "artifact get@latest",
            "artifact verify web --deep",
            "artifact import ./dist --name web --origin https://ci.example/1 --run ./web --health-path /healthz",
            "artifact verify ./web --key provenance.pub --envelope web.json",
            "keep web@latest --reason audit",
            "let-go abcd",
            "retention --output json",
            "deploy web web@latest --waves eu,us+ap --budget 2.5 --watch",
            "status",
            "status web --watch",
            "rollback web --to abcd",
            "pause web",
            "resume web",
            "lift-hold web abcd",
            "nodes --region eu",
            "nodes --service web --where status=failed --where zone!=eu-a",
            "fleet web",
            "log topics --output json",
            "log tail builds --from beginning",
            "log tail all --from 10m --type JobQueued --type JobStarted --where key=default --where actor=ada --follow",
            "log tail dead-letters --from 2026-11-25T01:00:00Z --until-end --output json",
            "log tail goals --from p0:17,p1:4",
            "log dead-letters list --limit 5 --after 17",
            "log dead-letters show 3",
            "log dead-letters retry 3",
            "log verify --data /tmp/x --output json",
            "simulate lab --set nodes=40 --set churn.fraction=0.1 --svg lab.svg --output json",
            "simulate --scenario region.json",
            "simulate --list",
            "whoami",
            "doctor --output json",
            "up --limit queue.jobs=5 --limit api.streams=7 --log-format json",
            "worker --name w-1 --work-dir w --metrics-listen 127.0.0.1:0 --log-format text",
        ];
        for line in lines {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn bad_lines_are_refused_before_any_work() {
        let table = [
            ("build --name ../x --output-path out --run ./web -- make", "use 1 to 63"),
            ("build --name web --output-path out --run ./web", "COMMAND"),
            ("build --name web --output-path out -- make", "--run"),
            ("build --name web --output-path out --run ./web --env X -- make", "KEY=VALUE"),
            ("build --name web --output-path out --run ./web --time-limit 0 -- make", "1s to 24h"),
            ("build --file b.json --name web", "cannot be used with"),
            ("deploy ../x web", "service"),
            ("deploy web web --budget 101", "0 to 100"),
            ("deploy web web --plan p.json --waves eu", "cannot be used with"),
            ("jobs --status done", "queued, running"),
            ("artifact", "ARTIFACT"),
            ("artifact get web", "--to"),
            ("artifact web ls", "the subcommand 'ls' cannot be used with"),
            ("artifact diff web", "TO"),
            ("artifact import x --name web --run ./web", "--origin"),
            ("jobs --limit 0", "0 is not in"),
            ("status --watch", "SERVICE"),
            ("log tail everything", "possible values"),
            ("log tail builds --from 10", "beginning, end"),
            ("log tail builds --from 2026-13-01T00:00:00Z", "beginning, end"),
            ("log tail builds --where key", "KEY=VALUE"),
            ("log tail builds --follow --until-end", "cannot be used with"),
            ("log dead-letters show x", "LETTER"),
            ("log dead-letters list --limit 201", "201 is not in"),
            ("simulate", "PRESET"),
            ("simulate lab --scenario region.json", "cannot be used with"),
            ("simulate lab --set nodes", "FIELD=VALUE"),
            ("--output xml jobs", "possible values"),
            ("frobnicate", "unrecognized"),
        ];
        for (line, text) in table {
            let error = parse(line).expect_err(line);
            assert_ne!(error.kind(), ErrorKind::DisplayHelp, "{line}");
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(text), "{line}: {error}");
        }
    }
}
