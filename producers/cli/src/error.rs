//! Errors as people and scripts see them: a message with what to do, and an exit code that says what kind it is.

use std::{path::PathBuf, process::ExitCode};

use longshore_worker::client;

use crate::output;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The job or rollout did not succeed. Its output has been shown.
    #[error("{0}")]
    Failed(String),
    /// The command line asks for what makes no sense.
    #[error("{0}")]
    Usage(String),
    /// What was named is not there, or cannot be had now.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Server(#[from] client::Error),
    /// No address was given, and the default one does not answer.
    #[error("no `longshore up` has left {up_file:?}, and {source}")]
    NoServer {
        up_file: PathBuf,
        #[source]
        source: Box<client::Error>,
    },
    /// The request is in the log, and stays there.
    #[error("the request was accepted and is not decided yet{place}")]
    Undecided { place: String },
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Error {
    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Other(_) => 1,
            Self::Usage(_) | Self::Server(client::Error::Address(_) | client::Error::Token) => 2,
            Self::Refused(_) | Self::Server(client::Error::Problem(_) | client::Error::Unexpected { .. }) => 3,
            Self::Server(client::Error::Unreachable { .. } | client::Error::Setup(_)) => 4,
            Self::NoServer { .. } | Self::Undecided { .. } => 4,
        }
    }

    /// The API's word for what is wrong, such as `artifact-not-deployable`.
    pub(crate) fn is_problem(&self, kind: &str) -> bool {
        matches!(self, Self::Server(client::Error::Problem(problem)) if problem.is(kind))
    }

    /// What to try next, where the message does not say it.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Server(client::Error::Unreachable { .. }) => {
                Some("is the server running? Start one with `longshore up`, or name yours with --api or LONGSHORE_API")
            }
            Self::NoServer { .. } => Some(
                "run this in the folder where `longshore up` was started, or give its data folder with --data, or its address and a token with --api and --token-file",
            ),
            Self::Undecided { .. } => {
                Some("the server's log says why it is slow; look again before you repeat the command")
            }
            _ if self.is_problem("artifact-not-deployable") => {
                Some("--wait waits for it; `longshore artifact` shows how far the copies are")
            }
            Self::Server(client::Error::Problem(problem)) => match problem.status {
                401 => Some("give a token with --token, LONGSHORE_TOKEN or LONGSHORE_TOKEN_FILE"),
                403 => Some("`longshore whoami` shows what your token may do"),
                409 => Some("nothing was changed"),
                429 => Some("try again in a while"),
                500.. => Some("the server has a fault; its log says more. Repeating the command does no harm"),
                _ => None,
            },
            _ => None,
        }
    }

    pub(crate) fn report(&self) -> ExitCode {
        match self {
            // The title says only what kind of error it is, as the hint and the exit code do.
            Self::Server(client::Error::Problem(problem)) => {
                let text = if problem.detail.is_empty() { &problem.title } else { &problem.detail };
                output::message(&format!("error: {text}"));
            }
            error => output::message(&format!("error: {error}")),
        }
        if let Some(hint) = self.hint() {
            output::message(&format!("hint: {hint}"));
        }
        ExitCode::from(self.code())
    }
}

#[cfg(test)]
mod tests {
    use longshore_schemas::http::Problem;

    use super::*;

    fn problem(status: u16) -> Error {
        let (kind, title, detail) = ("about:blank".to_owned(), "title".to_owned(), "detail".to_owned());
        Error::Server(client::Error::Problem(Box::new(Problem { kind, title, status, detail, request: None })))
    }

    #[test]
    fn exit_codes_say_what_kind_of_error_it_was() {
        let table = [
            (Error::Failed("x".into()), 1),
            (Error::Usage("x".into()), 2),
            (Error::Server(client::Error::Token), 2),
            (problem(404), 3),
            (Error::Refused("x".into()), 3),
            (Error::Undecided { place: String::new() }, 4),
            (problem(500), 3),
        ];
        for (error, code) in table {
            assert_eq!(error.code(), code, "{error:?}");
        }
        assert!(problem(401).hint().is_some_and(|hint| hint.contains("--token")));
    }
}
