//! Why a worker cannot work at all. What goes wrong with one job is that job's result, not an error of the worker.

use std::{io, path::PathBuf};

use crate::client;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {path:?}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the work directory {path:?} is in use by another worker; give each worker its own")]
    WorkDirInUse { path: PathBuf },
    #[error("queues: name at least one queue and at most {max}, each once")]
    Queues { max: usize },
    #[error("the server does not accept this worker")]
    NotAccepted(#[source] client::Error),
    #[error(transparent)]
    Client(#[from] client::Error),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
