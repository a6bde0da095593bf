//! One pack from the bucket, by a presigned GET.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use longshore_artifact::PackRef;
use longshore_schemas::PackId;

/// For one pack of up to 8 MiB.
const GET_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the bucket does not give the pack: {0}")]
    Http(String),
    #[error("pack {pack} is longer than {bytes} bytes")]
    TooLong { pack: PackId, bytes: u64 },
    #[error("what came is not pack {0}: its bytes hash to another name")]
    Wrong(PackId),
}

impl From<reqwest::Error> for Error {
    /// Without the URL, whose signature is a secret for a while.
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error.without_url().to_string())
    }
}

/// Takes no more than the pack should have, and nothing but the pack.
pub async fn get(http: &reqwest::Client, url: &str, pack: &PackRef) -> Result<Bytes, Error> {
    let mut response = http.get(url).timeout(GET_TIMEOUT).send().await?.error_for_status()?;
    let mut bytes = BytesMut::new();
    while let Some(piece) = response.chunk().await? {
        if (bytes.len() + piece.len()) as u64 > pack.bytes {
            return Err(Error::TooLong { pack: pack.pack, bytes: pack.bytes });
        }
        bytes.extend_from_slice(&piece);
    }
    if PackId::of(&bytes) == pack.pack { Ok(bytes.freeze()) } else { Err(Error::Wrong(pack.pack)) }
}
