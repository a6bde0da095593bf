//! One attempt at one job, from the assignment to the result.
//!
//! Every step ends in one of three ways: it worked, it failed for a reason that the job's owner is told, or it was stopped because the
//! attempt is over. Only the first two are reported.

mod finish;
mod output;

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use finish::{finish, finish_built};
use longshore_artifact::Published;
use longshore_schemas::{
    events::{BuildSpec, FailureReason},
    http::{Assignment, BaseArtifact, FinishBody},
};
use longshore_service::{
    chain,
    metrics::{Counters, Histograms},
};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    bases,
    beats::{self, AttemptApi},
    client::Client,
    config::WorkerConfig,
    git::{Git, Lease, Wanted},
    guard::Order,
    log,
    process::{self, Ended, Outcome, Until},
    tidy::{self, WorkDir},
    uploads::{Totals, Uploads},
};

/// Longest message of a failure, in characters.
const MESSAGE_CHARS_MAX: usize = 4_000;
/// Beats are not sent more often, whatever the server says.
const BEAT_MIN: Duration = Duration::from_secs(1);

/// Why a build failed, for programs and for people.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub(crate) reason: FailureReason,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into().chars().take(MESSAGE_CHARS_MAX).collect() }
    }

    /// The worker's own fault.
    pub(crate) fn worker(error: impl Display) -> Self {
        Self::new(
            FailureReason::WorkerFault,
            format!("the worker cannot build: {error}; build again, or look at the worker"),
        )
    }
}

/// Why an attempt went no further.
#[derive(Debug)]
pub(crate) enum Halt {
    Failed(Failure),
    /// Nobody is interested in the result any more, or the worker shuts down.
    Stopped,
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

static ATTEMPTS: LazyLock<Counters<1>> =
    LazyLock::new(|| Counters::new("longshore_worker_attempts", "Attempts that ended", ["outcome"]));
static SECONDS: LazyLock<Histograms<1>> =
    LazyLock::new(|| Histograms::seconds("longshore_worker_attempt_seconds", "From assignment to result", ["outcome"]));

fn outcome(result: &Result<(), Halt>) -> &'static str {
    match result {
        Ok(_) => "succeeded",
        Err(Halt::Failed(_)) => "failed",
        Err(Halt::Stopped) => "stopped",
    }
}

/// Where programs are looked for.
pub(crate) fn search_path() -> String {
    std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned())
}

/// What all attempts of a worker share.
pub(crate) struct Builder {
    config: Arc<WorkerConfig>,
    client: Client,
    git: Git,
    work: WorkDir,
}

impl Builder {
    pub(crate) fn new(config: Arc<WorkerConfig>, client: Client, git: Git, work: WorkDir) -> Self {
        Self { config, client, git, work }
    }

    /// Does the job and reports how it went. Leaves nothing behind.
    pub(crate) async fn attempt(&self, slot: &str, assignment: &Assignment, shutdown: &CancellationToken) {
        let (job, attempt) = (&assignment.job, assignment.attempt);
        let api = match AttemptApi::new(&self.client, assignment) {
            Ok(api) => api,
            Err(error) => return tracing::error!(%job, attempt, %error, "the attempt's credential cannot be used"),
        };
        tracing::info!(%job, attempt, name = %assignment.build.name, commit = %assignment.build.commit, "attempt started");
        let begun = Instant::now();
        let over = shutdown.child_token();
        let every = Duration::from_secs(assignment.beat_seconds.into()).max(BEAT_MIN);
        let _beats = AbortOnDrop(tokio::spawn(beats::keep(api.clone(), every, over.clone())).abort_handle());

        let folder = self.work.attempt(slot);
        let log = log::Writer::start(api.clone());
        let task = Task { assignment, api: &api, folder: &folder, log: &log, over: &over };
        let built = self.build(&task).await;
        if let Err(Halt::Failed(failure)) = &built {
            log.say(&format!("the build failed: {}", failure.message)).await;
        }
        if !matches!(built, Err(Halt::Stopped)) {
            log.finish().await;
        }
        let result = match built {
            Ok(built) => finish_built(assignment, &api, built, &over).await,
            Err(halt) => Err(halt),
        };
        self.clean(&folder).await;
        ATTEMPTS.count([outcome(&result)], 1);
        SECONDS.observe([outcome(&result)], begun.elapsed().as_secs_f64());
        match result {
            Ok(()) => {}
            Err(Halt::Failed(Failure { reason, message })) => {
                finish(assignment, &api, &FinishBody::Failed { reason, message }, &over).await;
            }
            Err(Halt::Stopped) => tracing::info!(%job, attempt, "attempt stopped"),
        }
    }

    async fn build(&self, task: &Task<'_>) -> Result<Built, Halt> {
        let build = &task.assignment.build;
        let folders = Folders::create(task.folder).map_err(Failure::worker)?;
        task.log.say(&format!("fetching commit {}", build.commit)).await;
        let wanted =
            Wanted { repository: &build.repository, commit: &build.commit, target: &folders.checkout, stop: task.over };
        let lease = self.git.checkout(&wanted).await?;
        self.run_command(task, &folders).await?;
        let output = output::find(&folders.checkout, &build.output)?;
        task.log.say(&format!("publishing {}", build.output)).await;
        let published = publish(task.assignment, task.api, &output, &task.assignment.bases);
        let (published, Totals { uploaded_bytes, there_bytes }) = until(task.over, published).await?;
        let artifact = published.root.artifact;
        let say =
            format!("published artifact {artifact}: {uploaded_bytes} bytes were uploaded, {there_bytes} were there");
        task.log.say(&say).await;
        Ok(Built { output, published, _lease: lease })
    }

    async fn run_command(&self, task: &Task<'_>, folders: &Folders) -> Result<(), Halt> {
        let build = &task.assignment.build;
        let Some((program, arguments)) = build.command.split_first() else {
            return Err(Failure::new(FailureReason::CommandNotFound, "the build's command is empty").into());
        };
        task.log.say(&format!("running {}", build.command.join(" "))).await;
        let order = Order {
            program: program.clone(),
            arguments: arguments.to_vec(),
            directory: folders.checkout.clone(),
            environment: self.environment(task.assignment, folders),
        };
        let limit = Duration::from_secs(build.time_limit_seconds.into());
        let until = Until { limit, stop: task.over };
        let outcome = process::run(&self.config, &order, until, Some(task.log)).await.map_err(Failure::worker)?;
        judge(build, &order, outcome)
    }

    /// PATH, fresh folders and what is listed; then the build's own variables.
    fn environment(&self, assignment: &Assignment, folders: &Folders) -> BTreeMap<String, String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut environment = BTreeMap::from([
            ("PATH".to_owned(), search_path()),
            ("HOME".to_owned(), text(&folders.home)),
            ("TMPDIR".to_owned(), text(&folders.tmp)),
        ]);
        for name in &self.config.passthrough {
            if let Some(value) = passed_through(name) {
                environment.insert(name.clone(), value);
            }
        }
        environment.extend(assignment.build.environment.clone());
        environment.extend([
            ("LONGSHORE_JOB".to_owned(), assignment.job.to_string()),
            ("LONGSHORE_ATTEMPT".to_owned(), assignment.attempt.to_string()),
            ("LONGSHORE_COMMIT".to_owned(), assignment.build.commit.to_string()),
        ]);
        environment
    }

    async fn clean(&self, folder: &Path) {
        let path = folder.to_owned();
        let removed = tokio::task::spawn_blocking(move || tidy::remove_tree(&path)).await;
        if let Err(error) = removed.map_err(std::io::Error::other).flatten() {
            tracing::error!(folder = %folder.display(), %error, "an attempt's folder could not be removed");
        }
    }
}

/// A variable of the worker's. A toolchain that the worker's own HOME holds is found there although builds get a fresh one.
fn passed_through(name: &str) -> Option<String> {
    let in_home = |folder: &str| {
        let path = std::env::home_dir()?.join(folder);
        path.is_dir().then(|| path.to_string_lossy().into_owned())
    };
    std::env::var(name).ok().or_else(|| match name {
        "RUSTUP_HOME" => in_home(".rustup"),
        "CARGO_HOME" => in_home(".cargo"),
        _ => None,
    })
}

/// What the steps of one attempt share.
struct Task<'a> {
    assignment: &'a Assignment,
    api: &'a AttemptApi,
    folder: &'a Path,
    log: &'a log::Writer,
    over: &'a CancellationToken,
}

/// What a build's command left, and where that was published from.
struct Built {
    output: PathBuf,
    published: Published,
    _lease: Lease,
}

/// An attempt's own folders, empty.
struct Folders {
    checkout: PathBuf,
    home: PathBuf,
    tmp: PathBuf,
}

impl Folders {
    fn create(folder: &Path) -> std::io::Result<Self> {
        tidy::remove_tree(folder)?;
        let folders = Self { checkout: folder.join("checkout"), home: folder.join("home"), tmp: folder.join("tmp") };
        for folder in [&folders.checkout, &folders.home, &folders.tmp] {
            fs::create_dir_all(folder)?;
        }
        Ok(folders)
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the end of the build's command means for the job.
fn judge(build: &BuildSpec, order: &Order, outcome: Outcome) -> Result<(), Halt> {
    let command = &build.command[0];
    let path = order.environment.get("PATH").map_or("", String::as_str);
    let last_lines = if outcome.tail.is_empty() {
        "; it printed nothing".to_owned()
    } else {
        format!("; its last lines:\n{}", outcome.tail)
    };
    let (reason, message) = match outcome.ended {
        Ended::Exited(0) => return Ok(()),
        Ended::Stopped => return Err(Halt::Stopped),
        Ended::Exited(status) => {
            (FailureReason::CommandFailed, format!("{command:?} ended with exit status {status}{last_lines}"))
        }
        Ended::Signaled(9) => (
            FailureReason::CommandFailed,
            format!("{command:?} was killed by signal 9, as happens when the machine runs out of memory{last_lines}"),
        ),
        Ended::Signaled(signal) => {
            (FailureReason::CommandFailed, format!("{command:?} was killed by signal {signal}{last_lines}"))
        }
        Ended::TimedOut => (
            FailureReason::TimeLimitExceeded,
            format!(
                "{command:?} did not end within the time limit of {} s; raise the build's time limit or make it faster{last_lines}",
                build.time_limit_seconds
            ),
        ),
        Ended::NotFound if command.contains('/') => (
            FailureReason::CommandNotFound,
            format!("{command:?} is not in the checkout, or the interpreter that its first line names is missing"),
        ),
        Ended::NotFound => (
            FailureReason::CommandNotFound,
            format!(
                "{command:?} was not found on the worker; PATH is {path}. Install it there, or give its path in the checkout"
            ),
        ),
        Ended::CannotStart(error) => (
            FailureReason::CommandNotFound,
            format!("{command:?} cannot be started: {error}; is the file executable in the commit?"),
        ),
    };
    Err(Failure::new(reason, message).into())
}

/// Does it, unless the attempt is over before.
async fn until<T>(over: &CancellationToken, work: impl Future<Output = Result<T, Halt>>) -> Result<T, Halt> {
    tokio::select! {
        done = work => done,
        () = over.cancelled() => Err(Halt::Stopped),
    }
}

async fn publish(
    of: &Assignment,
    api: &AttemptApi,
    output: &Path,
    bases: &[BaseArtifact],
) -> Result<(Published, Totals), Halt> {
    let bases = bases::load(api.plain(), bases).await;
    let uploads = Arc::new(Uploads::start(api.clone(), api.plain().clone()));
    let published = longshore_artifact::publish(output, bases, uploads.clone()).await;
    let published = published.map_err(|error| publish_failed(&of.build.output, &error))?;
    tracing::info!(
        job = %of.job,
        artifact = %published.root.artifact,
        new_bytes = published.new_bytes,
        reused_bytes = published.reused_bytes,
        "artifact published"
    );
    Ok((published, uploads.totals()))
}

fn publish_failed(output: &str, error: &longshore_artifact::Error) -> Failure {
    use longshore_artifact::Error;
    let causes = chain(error);
    match error {
        Error::NoOutput { .. } => output::missing(output, ""),
        Error::EmptyOutput { .. }
        | Error::Refused { .. }
        | Error::Changed { .. }
        | Error::TooManyEntries { .. }
        | Error::TooManyChunks { .. }
        | Error::TooLarge { .. } => Failure::new(FailureReason::OutputInvalid, causes),
        Error::Sink { .. } => {
            Failure::new(FailureReason::UploadFailed, format!("the output could not be uploaded: {causes}"))
        }
        _ => Failure::worker(causes),
    }
}
