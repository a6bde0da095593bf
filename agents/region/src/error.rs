//! What keeps a region from starting. Once it runs, it retries instead.

use std::{net::SocketAddr, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the folder {} cannot be used: check the setting data_dir and the folder's owner", path.display())]
    DataDir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("nodes cannot be listened for at {address}: choose another listen address or stop what uses it")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the region's state cannot be read or written")]
    State(#[from] longshore_service::Error),
    #[error("the region has no identity")]
    Identity(#[from] longshore_identity::Error),
    #[error("the region has no key to sign its reports with: give it its file of `longshore secrets`")]
    NoRequestKey,
    #[error("the log cannot be read")]
    Log(#[from] longshore_log::Error),
}
