//! What can go wrong with an artifact, told so that a person knows which file or pack it was.

use std::{io, path::PathBuf};

use longshore_schemas::{ArtifactId, ChunkId, PackId};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {path:?}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the disk is full: cannot {action} {path:?}; free some space and try again")]
    DiskFull { action: &'static str, path: PathBuf },
    #[error("the output {path:?} does not exist; check the output path of the build")]
    NoOutput { path: PathBuf },
    #[error("the output {path:?} holds no file; an artifact needs at least one entry")]
    EmptyOutput { path: PathBuf },
    #[error("{path:?} cannot be part of an artifact: {reason}")]
    Refused { path: PathBuf, reason: &'static str },
    #[error("{path:?} changed while it was read; finish writing the output before the build command ends")]
    Changed { path: PathBuf },
    #[error("the output has more than {limit} entries; pack some of them into one file")]
    TooManyEntries { limit: usize },
    #[error("the output has more than {limit} chunks of some 64 KiB; split it into several artifacts")]
    TooManyChunks { limit: usize },
    #[error("the list of the output's files and chunks is longer than {limit} bytes; split it into several artifacts")]
    TooLarge { limit: u64 },
    #[error("storing pack {pack} failed")]
    Sink {
        pack: PackId,
        #[source]
        source: crate::SinkError,
    },
    #[error("reading pack {pack} failed")]
    Read {
        pack: PackId,
        #[source]
        source: crate::ReadError,
    },
    #[error("the {what} is damaged: {reason}")]
    Malformed { what: &'static str, reason: String },
    #[error("the manifest hashes to {found}, not to {expected}: it is not this artifact's")]
    WrongManifest { expected: ArtifactId, found: ArtifactId },
    #[error("pack {pack} is damaged: its bytes hash to another name; fetch it again")]
    WrongPack { pack: PackId },
    #[error("chunk {chunk} in pack {pack} is damaged; fetch the pack again")]
    WrongChunk { chunk: ChunkId, pack: PackId },
    #[error("{path:?} of the installed release is damaged and pack {pack} is not at hand; fetch it and assemble again")]
    DamagedInstalled { path: PathBuf, pack: PackId },
    #[error("{path:?} differs from the manifest: {reason}")]
    Differs { path: PathBuf, reason: &'static str },
    #[error("{path:?} exists already")]
    TargetExists { path: PathBuf },
    #[error("publishing was interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { action, path },
            _ => Self::Io { action, path, source },
        }
    }

    pub(crate) fn malformed(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Malformed { what, reason: reason.into() }
    }

    pub(crate) fn refused(path: impl Into<PathBuf>, reason: &'static str) -> Self {
        Self::Refused { path: path.into(), reason }
    }
}
