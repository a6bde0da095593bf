//! A node in a world of its own: when that ends, everything in it does, as when the power fails, and the next one counts its processes
//! from 1 again.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{Joins, Process, node_arguments, process::binary_path};

pub struct Machine {
    arguments: Vec<String>,
    log: PathBuf,
    pub process: Process,
}

impl Machine {
    /// The n-th node of a region, on this folder.
    pub fn start(data: &Path, place: (&str, usize), addresses: &str, joins: &Joins<'_>, log: PathBuf) -> Result<Self> {
        let arguments = node_arguments(data, place, addresses, joins)?;
        let process = boot(&arguments, &log)?;
        Ok(Self { arguments, log, process })
    }

    /// SIGKILL for everything that runs there: agent, shims and services.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    pub fn restart(&mut self) -> Result<()> {
        self.process = boot(&self.arguments, &self.log)?;
        Ok(())
    }
}

fn boot(arguments: &[String], log: &Path) -> Result<Process> {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
    command.arg(binary_path("longshore-node")?).args(arguments);
    Process::run(command, "longshore-node run", log)
}
