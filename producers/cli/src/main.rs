//! `longshore`: the command line, and every role of the server side as a subcommand.
//!
//! ```text
//! argv ─▶ args (raw flags, checked) ─▶ defaults (up.json, environment) ─▶ one command ─▶ output (table or JSON) ─▶ exit code
//! ```
//!
//! Data goes to stdout, messages to stderr. The exit code says what happened: 0 it worked, 1 the job, the rollout or the
//! program failed, 2 the command line is wrong, 3 the server refused or has nothing of that name, 4 the server could not be
//! reached or does not decide.

mod args;
mod commands;
mod defaults;
mod error;
mod output;
mod roles;
mod up;

use std::process::ExitCode;

use clap::Parser;

use self::{args::Cli, error::Error};

/// Records are allocated by one thread and freed by another, which glibc's is slow at. Not for C: programs that are preloaded, such as a
/// faked clock, are called by it before they are ready.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The guard is this program started by itself: no person's flags, and as little as possible before it.
    if std::env::args_os().nth(1).is_some_and(|command| command == "guard") {
        return longshore_worker::guard::main();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are no mistakes: clap prints them to stdout, and gives them code 0.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Error::Other(error.into()).report(),
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
