//! How a process ends: the first SIGTERM or SIGINT asks everything to finish, the second ends it at once.

use tokio::signal::unix::{Signal, SignalKind, signal as listen};
use tokio_util::sync::CancellationToken;

use crate::Error;

/// What a shell reports for a process that SIGINT ended.
const INSISTED_EXIT_STATUS: i32 = 130;

/// A token that is cancelled by the first signal. To be called once, within a tokio runtime.
pub fn signal() -> Result<CancellationToken, Error> {
    let terminate = listen(SignalKind::terminate()).map_err(Error::Signals)?;
    let interrupt = listen(SignalKind::interrupt()).map_err(Error::Signals)?;
    let token = CancellationToken::new();
    tokio::spawn(watch(terminate, interrupt, token.clone()));
    Ok(token)
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, token: CancellationToken) {
    let first = next(&mut terminate, &mut interrupt).await;
    tracing::info!(signal = first, "shutting down; once more to end at once");
    token.cancel();
    let second = next(&mut terminate, &mut interrupt).await;
    tracing::warn!(signal = second, "ending at once");
    std::process::exit(INSISTED_EXIT_STATUS);
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
