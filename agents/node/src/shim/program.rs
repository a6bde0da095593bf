//! How a service, a hook or a check is started.

use std::{
    io::PipeWriter,
    path::{Path, PathBuf},
    process::Stdio,
};

use longshore_schemas::events::StringMap;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use super::{
    MARK, OWN_NAME, OWN_PROGRAM,
    limited::{ENVIRONMENT, Limited},
};
use crate::Error;

/// As whom something runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub user: u32,
    pub group: u32,
}

pub(super) struct Program<'a> {
    pub(super) command: &'a [String],
    pub(super) folder: &'a Path,
    /// All of it.
    pub(super) environment: &'a StringMap,
    pub(super) account: Option<&'a Account>,
    /// With limits: the step in between that gives them, and takes on the account.
    pub(super) limited: Option<&'a Limited>,
}

impl Program<'_> {
    /// In a process group of its own, and marked as this keeper's.
    pub(super) fn start(&self, keeper: &Path, output: PipeWriter) -> Result<Child, Error> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| Error::Refused("the run has no command: give a program and its arguments".into()))?;
        let errors = output.try_clone().map_err(Error::io(keeper))?;
        let mut command = match self.limited {
            None => Command::new(program),
            Some(limited) => {
                let plan = serde_json::to_string(limited).map_err(|error| Error::Refused(error.to_string()))?;
                let mut command = Command::new(OWN_PROGRAM);
                command.arg0(OWN_NAME).args(["limited", &plan, program]);
                command
            }
        };
        command.args(arguments).current_dir(self.folder).env_clear().env(MARK, keeper);
        match self.limited {
            None => command.envs(self.environment),
            // The step in between may be root: what the environment says to a loader or a runtime is for the service alone.
            Some(_) => {
                let environment = serde_json::to_string(self.environment);
                command.env(ENVIRONMENT, environment.map_err(|error| Error::Refused(error.to_string()))?)
            }
        };
        command.process_group(0).stdin(Stdio::null()).stdout(output).stderr(errors);
        if self.limited.is_none()
            && let Some(Account { user, group }) = self.account
        {
            command.uid(*user).gid(*group);
        }
        command.spawn().map_err(|source| Error::Start { program: program.clone(), source })
    }
}

/// A program with a `/` is looked up in this folder.
pub(super) fn located(command: &[String], folder: &Path) -> Vec<String> {
    let mut command = command.to_vec();
    if let Some(program) = command.first_mut()
        && program.contains('/')
        && !PathBuf::from(&*program).is_absolute()
    {
        *program = folder.join(&program).to_string_lossy().into_owned();
    }
    command
}
