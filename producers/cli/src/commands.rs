//! The commands. Each asks the API, shows what it answers, and decides the exit code.

mod artifacts;
mod builds;
mod dead_letters;
mod diff;
mod doctor;
mod files;
mod find;
mod fleet;
mod follow;
mod get;
mod import;
mod losses;
mod node;
mod nodes;
mod packs;
mod provenance;
mod retention;
mod rollout;
mod services;
mod simulate;
mod tail;
mod topics;
mod verify;
mod worker;

use std::path::PathBuf;

use longshore_schemas::{RequestId, http::Identity};
use longshore_worker::client::{self, Answer, Call, Client};
use serde::de::DeserializeOwned;

use crate::{
    args::{ArtifactArg, ArtifactArgs, ArtifactCommand, Cli, Command, ConfigCommand, LogCommand},
    defaults::{Speaker, Target},
    error::Error,
    output::{self, Format},
    roles, up,
};

/// What every command needs.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) format: Format,
    /// Of the `longshore up` that may be here.
    pub(crate) data: PathBuf,
}

impl Context {
    /// Data as JSON, or as the text that is made of it.
    fn show<T: serde::Serialize>(&self, data: &T, text: impl FnOnce(&T) -> String) -> Result<(), Error> {
        match self.format {
            Format::Json => output::json(data),
            Format::Table => output::data(&text(data)),
        }
    }
}

pub(crate) async fn run(cli: Cli) -> Result<(), Error> {
    let Cli { connection, output, command } = cli;
    match command {
        Command::Up(args) => return up::run(&connection.data, args).await,
        Command::Control(args) => return roles::control::run(&connection.data, args).await,
        Command::Region(args) => return roles::region::run(&connection.data, args).await,
        Command::S3(args) => return roles::s3::run(args).await,
        Command::Secrets(args) => return roles::secrets::run(&args),
        Command::Identity(args) => return roles::identity::run(&connection.data, &args),
        Command::Config(ConfigCommand::Check(args)) => return roles::config_check::run(&connection, &args, output),
        Command::Worker(args) => return worker::run(&connection, args).await,
        Command::Log(LogCommand::Verify(args)) => return verify::run(&connection, &args, output).await,
        Command::Doctor => return doctor::run(&connection, output).await,
        Command::Simulate(args) => return simulate::run(&args, output),
        // Taken by main before the flags were read.
        Command::Guard => return Err(Error::Usage("guard takes no flags".to_owned())),
        _ => {}
    }
    let target = Target::find(&connection, Speaker::Person)?;
    let guessed_without = target.guessed_without.clone();
    let context = Context { client: target.client()?, format: output, data: connection.data.clone() };
    match (ask(&context, command).await, guessed_without) {
        (Err(Error::Server(source @ client::Error::Unreachable { .. })), Some(up_file)) => {
            Err(Error::NoServer { up_file, source: Box::new(source) })
        }
        (result, _) => result,
    }
}

async fn ask(context: &Context, command: Command) -> Result<(), Error> {
    match command {
        // Done before there was a server to ask.
        Command::Up(_)
        | Command::Worker(_)
        | Command::Doctor
        | Command::Guard
        | Command::Log(LogCommand::Verify(_)) => Ok(()),
        Command::Control(_)
        | Command::Region(_)
        | Command::S3(_)
        | Command::Secrets(_)
        | Command::Identity(_)
        | Command::Simulate(_)
        | Command::Config(_) => Ok(()),
        Command::Build(args) => builds::build(context, &args).await,
        Command::Jobs(args) => builds::jobs(context, args).await,
        Command::Job(args) => builds::job(context, &args).await,
        Command::Cancel(args) => builds::cancel(context, &args).await,
        Command::Artifacts(args) => artifacts::list(context, args).await,
        Command::Artifact(args) => artifact(context, args).await,
        Command::Keep(args) => retention::keep(context, &args).await,
        Command::LetGo(args) => retention::let_go(context, &args).await,
        Command::Retention => retention::plan(context).await,
        Command::Deploy(args) => services::deploy(context, &args).await,
        Command::Status(args) => services::status(context, &args).await,
        Command::Rollback(args) => services::rollback(context, &args).await,
        Command::Pause(args) => services::pause(context, &args, "pause").await,
        Command::Resume(args) => services::pause(context, &args, "resume").await,
        Command::LiftHold(args) => services::lift_hold(context, &args).await,
        Command::Nodes(args) => nodes::list(context, args).await,
        Command::Node(args) => node::run(context, &args).await,
        Command::Fleet(args) => fleet::show(context, &args).await,
        Command::Log(LogCommand::Topics) => topics::run(context).await,
        Command::Log(LogCommand::Tail(args)) => tail::run(context, &args).await,
        Command::Log(LogCommand::AcceptLoss(args)) => losses::accept(context, &args).await,
        Command::Log(LogCommand::DeadLetters(command)) => dead_letters::run(context, command).await,
        Command::Whoami => whoami(context).await,
    }
}

async fn artifact(context: &Context, args: ArtifactArgs) -> Result<(), Error> {
    match (args.command, args.artifact) {
        (Some(ArtifactCommand::Ls(args)), _) => files::list(context, &args).await,
        (Some(ArtifactCommand::Get(args)), _) => get::run(context, &args).await,
        (Some(ArtifactCommand::Diff(args)), _) => diff::run(context, &args).await,
        (Some(ArtifactCommand::Import(args)), _) => import::run(context, &args).await,
        (Some(ArtifactCommand::Verify(args)), _) => provenance::verify(context, &args).await,
        (None, Some(artifact)) => artifacts::show(context, &ArtifactArg { artifact }).await,
        (None, None) => Err(Error::Usage("name an artifact".to_owned())),
    }
}

async fn whoami(context: &Context) -> Result<(), Error> {
    let identity: Identity = context.client.get(&["whoami"]).fetch().await?;
    context.show(&identity, |identity| {
        format!("{} with the role {} at {}", identity.subject, output::word(&identity.role), context.client.base())
    })
}

/// So often the server is given its 5 s to decide.
const PATIENCE: usize = 6;

/// A call that changes something. While it is accepted and not decided it is repeated, which its key makes harmless.
async fn change<T: DeserializeOwned>(call: Call) -> Result<T, Error> {
    let key: RequestId =
        format!("cli-{:032x}", rand::random::<u128>()).parse().expect("a word and hexadecimal digits are an id");
    let call = call.idempotency_key(&key);
    let mut place = String::new();
    for _ in 0..PATIENCE {
        match call.repeat().send().await? {
            Answer::Done(data) => return Ok(data),
            Answer::Nothing => return Err(Error::Other(anyhow::anyhow!("the server answered without data"))),
            Answer::Accepted { location } => {
                output::message("accepted, and not decided yet; waiting");
                place = location.map(|place| format!("; {place} tells what became of it")).unwrap_or_default();
            }
        }
    }
    Err(Error::Undecided { place })
}
