//! Both ends of the peers' protocol over any stream, for tests that play the other end with bytes of their choice.

use longshore_artifact::outline::Outline;
use longshore_schemas::PackId;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    Budget, PackStore,
    peer::{self, Ask},
    server::{self, Uploads},
};

/// Serves one connection until its peer hangs up.
pub async fn serve<S>(stream: &mut S, store: &PackStore) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    server::serve(stream, store, &Uploads::new(Budget::default()), || Ok(())).await
}

/// What a server sends of a pack before its blocks.
pub fn outline(bytes: &[u8]) -> Vec<u8> {
    let outline = Outline::read(PackId::of(bytes), bytes.len() as u64, bytes).ok().flatten();
    outline.map(|outline| outline.to_bytes()).unwrap_or_default()
}

/// Asks for one pack, after the greeting, and puts it into the store; or says why it did not come.
pub async fn transfer<S>(stream: &mut S, store: &PackStore, pack: PackId, bytes: u64) -> Result<u64, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (budget, mut begun) = (Budget::default(), None);
    let mut ask =
        Ask { store, budget: &budget, pack, bytes, begun: &mut begun, answered: false, passes_on: &mut || {} };
    let transferred = peer::transfer(stream, &mut ask).await;
    transferred.map_err(|failure| format!("{:?}: {}", failure.failure, failure.reason))
}
