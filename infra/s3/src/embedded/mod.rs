//! An S3 server in this process, on a directory.
//!
//! ```text
//! accept loop ──connection──▶ hyper (HTTP/1) ──▶ s3s (signatures, protocol) ──▶ Store ──▶ files, synced
//! ```
//!
//! One accept loop and one task per connection, of which there are at most [`CONNECTIONS_MAX`]; the others wait in the
//! kernel. A failing request never ends a connection's neighbours, a failing connection never the server.
//! Requests must be signed (V4) with the one key pair, in a header or in a presigned URL. Plain HTTP only: beyond loopback, put TLS
//! in front.

mod counters;
mod files;
mod multipart;
mod receive;
mod store;

use std::{
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use hyper::{
    Request,
    body::Incoming,
    header::{DATE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::{
    Body, HttpError,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

pub use self::counters::{Counters, Traffic};
use crate::Error;

/// Connections served at once.
pub const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests may still run after [`Server::shutdown`].
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, such as when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What to serve, where, and to whom.
#[derive(Clone)]
pub struct Config {
    /// Holds all buckets; made if it is not there.
    pub root: PathBuf,
    /// Port 0 picks a free one.
    pub listen: SocketAddr,
    pub access_key: String,
    pub secret_key: String,
}

/// A running server. Dropping it stops it without waiting for requests.
pub struct Server {
    endpoint: String,
    counters: Counters,
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Server {
    pub async fn start(config: Config) -> Result<Self, Error> {
        let failed = |action: String| move |source| Error::Embedded { action, source };
        let Config { root, listen, access_key, secret_key } = config;
        let counters = Counters::default();
        std::fs::create_dir_all(&root).map_err(failed(format!("create {root:?}")))?;
        let store = store::Store::open(&root, counters.clone()).map_err(failed(format!("open {root:?}")))?;
        let mut service = S3ServiceBuilder::new(store);
        service.set_auth(SimpleAuth::from_single(access_key, secret_key));
        let listener = TcpListener::bind(listen).await.map_err(failed(format!("listen on {listen}")))?;
        let address = listener.local_addr().map_err(failed(format!("listen on {listen}")))?;
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, service.build(), stop.clone()));
        tracing::info!(%address, root = %root.display(), "embedded S3 server is listening");
        Ok(Self { endpoint: format!("http://{address}"), counters, stop, accepting })
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes no more requests, and returns when the running ones are done or took too long.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut self.accepting).await.is_err() {
            tracing::warn!("embedded S3 server stops with requests unfinished");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, service: S3Service, stop: CancellationToken) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            let permit = free.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((socket, _)) => {
                let (service, stop) = (service.clone(), stop.clone());
                connections.spawn(async move {
                    serve(socket, service, stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "embedded S3 server cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(socket: TcpStream, service: S3Service, stop: CancellationToken) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "cannot disable Nagle's algorithm");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let dated = service_fn(move |request: Request<Incoming>| {
        let service = service.clone();
        async move {
            let mut response = service.call(request.map(Body::from)).await?;
            if let Some(date) = date() {
                response.headers_mut().insert(DATE, date);
            }
            Ok::<_, HttpError>(response)
        }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(socket), dated));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the embedded S3 server ended early");
    }
}

/// The wall clock, by which clients correct their own. Hyper keeps its text until a later second comes, which after the clock
/// was set back by an hour takes an hour: all that time clients would sign for the wrong hour, and be refused.
fn date() -> Option<HeaderValue> {
    let date = DateTime::from(SystemTime::now()).fmt(DateTimeFormat::HttpDate).ok()?;
    HeaderValue::from_str(&date).ok()
}
