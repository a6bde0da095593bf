//! Connections: a bounded number of them, each a task. One more gets an answer and the door.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Shared, limits, problem::RETRY_SECONDS};

/// How long a client may take to send a request's head.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest head of a request; also what a connection may hold of a body that nobody reads.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// A client that takes nothing of its answer for so long is disconnected.
pub(crate) const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests may still run after the shutdown began.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, such as when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Of the connections that are one too many, so many get an answer at once; the others are only closed.
const REFUSALS_MAX: usize = 256;
/// For such an answer.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API's listener has no address")]
    Listener(#[source] io::Error),
}

pub(crate) async fn serve(
    router: Router,
    listener: TcpListener,
    shutdown: CancellationToken,
    shared: &Arc<Shared>,
) -> Result<(), Error> {
    let address = listener.local_addr().map_err(Error::Listener)?;
    tracing::info!(%address, "the API is listening");
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((socket, _)) => match shared.gates.connections.enter() {
                Ok(pass) => {
                    let (router, shutdown) = (router.clone(), shutdown.clone());
                    connections.spawn(async move {
                        connection(socket, router, shutdown).await;
                        drop(pass);
                    });
                }
                Err(_) => {
                    if let Ok(place) = refusals.clone().try_acquire_owned() {
                        connections.spawn(async move {
                            // Who does not listen is closed all the same.
                            let _ = timeout(REFUSAL_TIME, refuse(socket)).await;
                            drop(place);
                        });
                    }
                }
            },
            Err(error) => {
                tracing::warn!(%error, "the API cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // Streams and waiting claims never end by themselves.
    shared.stop.cancel();
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(SHUTDOWN_TIMEOUT, finished).await.is_err() {
        tracing::warn!("the API stops with requests unfinished");
    }
    Ok(())
}

async fn connection(socket: TcpStream, router: Router, shutdown: CancellationToken) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "cannot disable Nagle's algorithm");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    let socket = TokioIo::new(Impatient::new(socket));
    let mut connection = pin!(http.serve_connection(socket, TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the API ended early");
    }
}

/// Answers without a look at what is asked. What was sent is read first: closing on unread bytes would take the answer away.
async fn refuse(mut socket: TcpStream) -> io::Result<()> {
    let mut asked = [0; 4096];
    let _ = socket.read(&mut asked).await?;
    let name = limits::CONNECTIONS.name;
    let body = format!(
        "{{\"type\":\"/problems/limit-reached\",\"title\":\"A limit is reached\",\"status\":503,\"detail\":\"the limit {name} \
         of this API process is reached: try again in {RETRY_SECONDS} s, or at another process\"}}"
    );
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {length}\r\n\
         retry-after: {RETRY_SECONDS}\r\nconnection: close\r\n\r\n{body}"
    );
    socket.write_all(answer.as_bytes()).await?;
    socket.shutdown().await?;
    while socket.read(&mut asked).await? > 0 {}
    Ok(())
}

/// A socket whose other side must take something now and then. Without this, an answer that nobody reads would stay in
/// memory for as long as its client likes.
struct Impatient<S> {
    socket: S,
    /// Runs while a write waits.
    patience: Pin<Box<Sleep>>,
    waits: bool,
}

impl<S> Impatient<S> {
    fn new(socket: S) -> Self {
        Self { socket, patience: Box::pin(sleep(UNREAD_TIMEOUT)), waits: false }
    }

    fn wrote<T>(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.waits = false;
            return wrote;
        }
        if !self.waits {
            self.waits = true;
            self.patience.as_mut().reset(Instant::now() + UNREAD_TIMEOUT);
        }
        ready!(self.patience.as_mut().poll(cx));
        limits::UNREAD_SECONDS.refused();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.wrote(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.socket).poll_write_vectored(cx, bytes);
        self.wrote(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up_and_who_is_slow_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut ours = Impatient::new(ours);
        let slow = async {
            for _ in 0..3 {
                sleep(UNREAD_TIMEOUT - Duration::from_secs(1)).await;
                theirs.read_u8().await.expect("a byte");
            }
        };
        let (written, ()) = tokio::join!(ours.write_all(b"123"), slow);
        written.expect("a byte now and then is enough");
        let begun = Instant::now();
        let error = ours.write_all(b"45").await.expect_err("nobody reads any more");
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, UNREAD_TIMEOUT));
    }
}
