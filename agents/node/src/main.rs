//! `longshore-node`: the agent on every machine.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use longshore_node::{
    Error, Folders,
    args::{Data, Run},
    hooks,
    install::{Install, install},
    limits::LIMITS,
    node,
    plan::ServiceState,
    shim, takeover,
};
use longshore_service::{durable, limits, metrics, shutdown, telemetry};
use tokio::signal::unix::signal;
use tokio_util::sync::CancellationToken;

/// Runs the services that this machine's region wants here
#[derive(Parser)]
#[command(name = "longshore-node", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent
    Run(Box<Run>),
    /// Show which services run here
    Status(Data),
    /// Stop the services of this folder; for when the agent is not to come back
    StopServices(Data),
    /// Have systemd keep the agent running: write the unit, its settings and the folders
    Install(Box<Install>),
    /// Make this release's program the agent, and stay for as long as it is to be that: the command of a service
    TakeOver(Program),
    /// Fail unless this release's program is the agent, and connected: the health check of that service
    CameUp(Program),
    /// Own one service's processes (started by the agent)
    #[command(hide = true)]
    Shim {
        #[arg(long)]
        folder: PathBuf,
    },
    /// Take on limits and become the program (started by a shim)
    #[command(hide = true)]
    Limited {
        plan: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run a hook or a check, and end all that it started (started by the agent)
    #[command(hide = true)]
    Once {
        #[arg(long)]
        folder: PathBuf,
    },
}

#[derive(Args)]
struct Program {
    /// What is to be the agent [default: this program]
    #[arg(long)]
    program: Option<PathBuf>,
    /// So long it may take until it is connected to its region; then the one before it has its turn again
    #[arg(long, default_value_t = 120)]
    within_seconds: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(run) => agent(*run).await,
        Command::Status(data) => status(&Folders { data: data.data }),
        Command::StopServices(data) => hooks::stop_all(&Folders { data: data.data }.services()).await,
        Command::Install(install) => installed(&install),
        Command::TakeOver(program) => {
            takeover::take_over(program.program, Duration::from_secs(program.within_seconds)).await
        }
        Command::CameUp(program) => takeover::came_up(program.program),
        Command::Shim { folder } => shim::main(&folder).await,
        Command::Limited { plan, command } => shim::limited(&plan, &command),
        Command::Once { folder } => shim::once::main(&folder).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a command line program")]
fn complain(error: &Error) {
    eprintln!("longshore-node: {error}");
}

async fn agent(run: Run) -> Result<(), Error> {
    telemetry::init(run.log_format, "info")?;
    let folders = Folders { data: run.data.data.clone() };
    // Only the folder's agent may say what runs there; one that finds another fails further on.
    if let Ok(lock) = node::lock(&folders) {
        takeover::begin(&folders);
        drop(lock);
    }
    let (metrics_listen, stops_services) = (run.metrics_listen, run.stop_services_on_exit);
    let config = run.config();
    let shutdown = shutdown::signal()?;
    let begins_anew = when_asked(&folders, shutdown.clone())?;
    limits::announce(LIMITS, &limits::Settings::default());
    if let Some(listen) = metrics_listen {
        metrics::serve(listen, shutdown.clone()).await?;
    }
    node::run(config, shutdown).await?;
    if begins_anew.load(Ordering::SeqCst) {
        return Err(takeover::begin_anew(&folders));
    }
    match stops_services {
        true => hooks::stop_all(&folders.services()).await,
        false => Ok(()),
    }
}

/// Ends as by SIGTERM, to begin anew; unless it is ending already.
fn when_asked(folders: &Folders, shutdown: CancellationToken) -> Result<Arc<AtomicBool>, Error> {
    let begins_anew = Arc::new(AtomicBool::new(false));
    let asked = signal(takeover::ASKS).map_err(|source| Error::Io { path: folders.data.clone(), source });
    let mut asked = asked?;
    let told = begins_anew.clone();
    tokio::spawn(async move {
        if shutdown.run_until_cancelled(asked.recv()).await.is_some() {
            told.store(true, Ordering::SeqCst);
            shutdown.cancel();
        }
    });
    Ok(begins_anew)
}

#[expect(clippy::print_stdout, reason = "it is what the command is for")]
fn installed(arguments: &Install) -> Result<(), Error> {
    print!("{}", install(arguments)?);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "it is what the command is for")]
fn status(folders: &Folders) -> Result<(), Error> {
    let services = folders.services();
    let Ok(entries) = std::fs::read_dir(&services) else {
        println!("no service has run in {}", folders.data.display());
        return Ok(());
    };
    #[derive(serde::Deserialize)]
    struct Stored {
        content: ServiceState,
    }
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let state = durable::read(&path.join("state.json"))?;
        let state = state.and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok()).map(|stored| stored.content);
        let shim = shim::Shim::of(&path);
        let limits = shim.status().filter(|_| shim.is_running()).map(|status| status.limits).unwrap_or_default();
        let process = match shim.status().filter(|_| shim.is_running()) {
            Some(shim::ShimStatus { pid: Some(pid), exits, .. }) => format!("pid {pid}, restarted {exits} times"),
            Some(status) => format!("not running: {}", status.last_exit.unwrap_or_default()),
            None => "not supervised".to_owned(),
        };
        let state = state.unwrap_or_default();
        let release = state.current.map_or("nothing".to_owned(), |release| {
            format!("{} of revision {}", release.artifact.short(), release.revision)
        });
        let port = state.port.map_or(String::new(), |port| format!(", port {port}"));
        println!("{}: {release}, {process}{port}", name.to_string_lossy());
        if !limits.is_empty() {
            println!("  limits: {}", limits.join("; "));
        }
        if let Some(failed) = state.failed {
            println!("  {} of revision {} failed: {}", failed.artifact.short(), failed.revision, failed.message);
        }
    }
    Ok(())
}
