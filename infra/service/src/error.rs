//! What can go wrong before a process does its work.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {path:?}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("{path:?} does not hold what it should: {reason}; restore it, or remove it to begin anew")]
    Content { path: PathBuf, reason: String },

    /// `source_name` is a file, an environment variable or a flag.
    #[error("{source_name} is not valid: {reason}")]
    Config { source_name: String, reason: String },

    #[error("the log filter {filter:?} is not valid: {reason}; write it as info, or info,longshore_api=debug")]
    Filter { filter: String, reason: String },

    #[error("logging is already set up in this process")]
    TelemetryTwice,

    #[error("metrics cannot be served at {address}: choose another --metrics-listen, or stop what uses it")]
    MetricsListen {
        address: std::net::SocketAddr,
        #[source]
        source: io::Error,
    },

    #[error("cannot listen for SIGTERM and SIGINT")]
    Signals(#[source] io::Error),
}

impl Error {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn content(path: impl Into<PathBuf>, reason: &(impl ToString + ?Sized)) -> Self {
        Self::Content { path: path.into(), reason: reason.to_string() }
    }
}

/// An error with its causes, in one line: "no space left" is one.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}
