//! Answers that do not end by themselves: a task of their own fills a bounded buffer that the connection empties.
//!
//! ```text
//! task ──reads log, bucket──▶ Sender ──buffer──▶ body ──▶ connection
//! ```
//!
//! A client that takes nothing for a while is dropped; until then its task waits, and nobody else does.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::{Shared, problem::Failure};

/// Pieces that wait for a slow client. Each is at most about a MiB, most are some KiB.
const BUFFERED_PIECES: usize = 8;
/// A client that takes nothing for so long is dropped.
const SLOW_CLIENT: Duration = Duration::from_secs(30);

/// The task's side.
pub(crate) struct Sender {
    pieces: mpsc::Sender<Bytes>,
    _permit: OwnedSemaphorePermit,
}

/// The client is gone, or too slow.
pub(crate) struct Gone;

impl Sender {
    pub(crate) async fn send(&self, piece: impl Into<Bytes>) -> Result<(), Gone> {
        self.pieces.send_timeout(piece.into(), SLOW_CLIENT).await.map_err(|error| {
            if matches!(error, mpsc::error::SendTimeoutError::Timeout(_)) {
                tracing::info!(seconds = SLOW_CLIENT.as_secs(), "a streaming client took nothing and is dropped");
            }
            Gone
        })
    }

    /// Waits until the client is gone.
    pub(crate) async fn closed(&self) {
        self.pieces.closed().await;
    }
}

/// An answer of this type, and where to put its pieces. It ends when the sender is dropped.
pub(crate) fn open(shared: &Arc<Shared>, content_type: &'static str) -> Result<(Sender, Response), Failure> {
    let permit = shared.streams.clone().try_acquire_owned().map_err(|_| {
        let streams = shared.limits.streams_max;
        Failure::unavailable(format!("all {streams} streams of this API process are taken: close some, or try another"))
    })?;
    let (pieces, receiver) = mpsc::channel(BUFFERED_PIECES);
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Proxies that buffer would hold the stream back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok((Sender { pieces, _permit: permit }, response))
}
