//! `longshore-node`: the agent on every machine.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use longshore_node::{Error, Folders, limits::LIMITS, node, plan::ServiceState, service::stop_all, shim};
use longshore_schemas::{NodeId, RackName, ZoneName};
use longshore_service::{durable, limits, metrics, shutdown, telemetry};

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
    Run(Run),
    /// Show which services run here
    Status(Data),
    /// Stop the services of this folder; for when the agent is not to come back
    StopServices(Data),
    /// Own one service's processes (started by the agent)
    #[command(hide = true)]
    Shim {
        #[arg(long)]
        folder: PathBuf,
    },
}

#[derive(Args)]
struct Data {
    /// The node's folder
    #[arg(long, env = "LONGSHORE_NODE_DATA")]
    data: PathBuf,
}

#[derive(Args)]
struct Run {
    /// HOST:PORT of the region
    #[arg(long, env = "LONGSHORE_REGION_ADDRESS")]
    region_address: String,
    #[command(flatten)]
    data: Data,
    /// This node's name, unique in its region
    #[arg(long)]
    node: NodeId,
    #[arg(long, default_value = "default")]
    zone: ZoneName,
    #[arg(long, default_value = "default")]
    rack: RackName,
    /// File with an enrolment token, for the first start
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Host name or address at which peers and users reach this machine
    #[arg(long)]
    host: String,
    /// Where to serve packs to peers; port 0 takes any
    #[arg(long, default_value = "0.0.0.0:0")]
    swarm_listen: SocketAddr,
    /// Services get the first free port from here on
    #[arg(long, default_value_t = 28_000)]
    port_base: u16,
    /// Where Prometheus reads /metrics, such as 127.0.0.1:9101 [default: nowhere]
    #[arg(long)]
    metrics_listen: Option<SocketAddr>,
    /// How the log on stderr is written: text for people, json for programs
    #[arg(long, env = "LONGSHORE_LOG_FORMAT", default_value = "text")]
    log_format: telemetry::Format,
    /// Stop the services when the agent is told to stop; otherwise they go on running
    #[arg(long)]
    stop_services_on_exit: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(run) => agent(run).await,
        Command::Status(data) => status(&Folders { data: data.data }),
        Command::StopServices(data) => stop_all(&Folders { data: data.data }).await,
        Command::Shim { folder } => shim::main(&folder).await,
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
    let config = node::Config {
        region_address: run.region_address,
        data: run.data.data,
        node: run.node,
        zone: run.zone,
        rack: run.rack,
        token_file: run.token_file,
        host: run.host,
        swarm_listen: run.swarm_listen,
        port_base: run.port_base,
        stop_services_on_exit: run.stop_services_on_exit,
    };
    let shutdown = shutdown::signal()?;
    limits::announce(LIMITS, &limits::Settings::default());
    if let Some(listen) = run.metrics_listen {
        metrics::serve(listen, shutdown.clone()).await?;
    }
    node::run(config, shutdown).await
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
        if let Some(failed) = state.failed {
            println!("  {} of revision {} failed: {}", failed.artifact.short(), failed.revision, failed.message);
        }
    }
    Ok(())
}
