//! Answers that do not end by themselves: a task of their own fills a bounded buffer that the connection empties.
//!
//! ```text
//! task ──reads log, bucket──▶ Sender ──buffer──▶ body ──▶ connection
//! ```
//!
//! A client that takes nothing for a while is dropped; until then its task waits, and nobody else does. What waits for it is
//! small: one piece in the buffer, one with the task, and what the connection holds.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures::StreamExt;
use longshore_service::limits::Pass;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Shared, limits::UNREAD_SECONDS, problem::Failure, serve};

/// Largest piece that is sent at once; what is larger is cut.
pub(crate) const PIECE_BYTES_MAX: usize = 64 * 1024;
/// Pieces that wait for a slow client.
const BUFFERED_PIECES: usize = 1;
/// A client that takes nothing for so long is dropped.
const SLOW_CLIENT: Duration = serve::UNREAD_TIMEOUT;

/// The task's side.
pub(crate) struct Sender {
    pieces: mpsc::Sender<Bytes>,
    _pass: Pass,
}

/// The client is gone, or too slow.
pub(crate) struct Gone;

impl Sender {
    pub(crate) async fn send(&self, piece: impl Into<Bytes>) -> Result<(), Gone> {
        let mut rest: Bytes = piece.into();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(PIECE_BYTES_MAX));
            self.pieces.send_timeout(piece, SLOW_CLIENT).await.map_err(|error| {
                if matches!(error, mpsc::error::SendTimeoutError::Timeout(_)) {
                    UNREAD_SECONDS.refused();
                    tracing::info!(seconds = SLOW_CLIENT.as_secs(), "a streaming client took nothing and is dropped");
                }
                Gone
            })?;
        }
        Ok(())
    }

    /// A last word, if there is room for it: the stream ends whether it is heard or not.
    pub(crate) fn farewell(&self, word: &'static str) {
        let _ = self.pieces.try_send(Bytes::from_static(word.as_bytes()));
    }

    /// Waits until the client is gone.
    pub(crate) async fn closed(&self) {
        self.pieces.closed().await;
    }
}

/// An answer of this type, and where to put its pieces. It ends when the sender is dropped.
pub(crate) fn open(shared: &Arc<Shared>, content_type: &'static str) -> Result<(Sender, Response), Failure> {
    let pass = shared.gates.streams.enter().map_err(|full| Failure::full(&full))?;
    let (pieces, receiver) = mpsc::channel(BUFFERED_PIECES);
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Proxies that buffer would hold the stream back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok((Sender { pieces, _pass: pass }, response))
}
