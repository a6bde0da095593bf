//! `longshore config check`: everything that is wrong with a role's settings, found as the role itself would find it.
//!
//! Control and region read a file, variables and `--set`; workers and nodes have flags, each of which is a variable too, and
//! this reads the variables. Connects nowhere. Exit code 0: the role would start; 2: it would not.

use clap::{Parser, error::ErrorKind};
use serde::Serialize;

use super::settings::{Mistake, Role, Settings};
use crate::{
    args::{CheckArgs, Cli, Command, Connection},
    defaults::{Speaker, Target},
    error::Error,
    output::{self, Format},
};

#[derive(Serialize)]
struct Report {
    role: String,
    mistakes: Vec<Mistake>,
}

pub(crate) fn run(connection: &Connection, args: &CheckArgs, format: Format) -> Result<(), Error> {
    let mistakes = match args.role {
        Role::Control | Role::Region => {
            let examined = Settings::examine(&args.settings, &connection.data, args.role, &crate::up::all_limits());
            examined.err().unwrap_or_default()
        }
        Role::Worker => worker(connection),
        Role::Node => node(),
    };
    let role = output::word(&format!("{:?}", args.role)).to_lowercase();
    let count = mistakes.len();
    if format == Format::Json {
        output::json(&Report { role: role.clone(), mistakes })?;
    } else {
        for mistake in &mistakes {
            output::message(&format!("{mistake}"));
        }
        if count == 0 {
            output::data(&format!("the settings of this {role} are right"))?;
        }
    }
    match count {
        0 => Ok(()),
        1 => Err(Error::Usage(format!("the settings of this {role} have 1 mistake"))),
        _ => Err(Error::Usage(format!("the settings of this {role} have {count} mistakes"))),
    }
}

fn worker(connection: &Connection) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    match Cli::try_parse_from(["longshore", "worker"]) {
        Ok(Cli { command: Command::Worker(_), .. }) => {}
        Ok(_) => unreachable_command(&mut mistakes),
        Err(error) => mistakes.extend(of_clap(&error)),
    }
    match Target::find(connection, Speaker::Worker) {
        Ok(Target { token: None, .. }) => mistakes.push(Mistake {
            field: "token-file".to_owned(),
            what: "a worker needs a token: give the file in LONGSHORE_TOKEN_FILE".to_owned(),
        }),
        Ok(_) => {}
        Err(error) => mistakes.push(Mistake { field: "connection".to_owned(), what: error.to_string() }),
    }
    mistakes
}

fn node() -> Vec<Mistake> {
    match longshore_node::args::Run::from_environment() {
        Ok(run) => run.check().into_iter().map(|(field, what)| Mistake { field: field.to_owned(), what }).collect(),
        Err(error) => of_clap(&error),
    }
}

fn unreachable_command(mistakes: &mut Vec<Mistake>) {
    mistakes.push(Mistake { field: String::new(), what: "the command line of workers has changed".to_owned() });
}

/// Clap names all that is missing at once, but of what is wrong only the first.
fn of_clap(error: &clap::Error) -> Vec<Mistake> {
    use clap::error::{ContextKind, ContextValue};
    if error.kind() == ErrorKind::MissingRequiredArgument
        && let Some(ContextValue::Strings(names)) = error.get(ContextKind::InvalidArg)
    {
        let missing = |name: &String| {
            let flag = name.split_whitespace().next().unwrap_or(name).trim_start_matches('-').to_owned();
            Mistake { what: format!("missing; set its variable, or give {name}"), field: flag }
        };
        return names.iter().map(missing).collect();
    }
    let text = error.to_string();
    let what = text.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned();
    vec![Mistake { field: String::new(), what }]
}
