//! Stands before an S3 server, for tests and benchmarks: as slow as a link, and as unreliable as a network or a provider can be.
//!
//! ```text
//! client ──▶ Proxy: plan says what goes wrong with this call ─ within the link's rates ─▶ server
//! ```
//!
//! Calls are passed on as they are, with the client's own `Host`, which its signature is over. What goes wrong is the caller's plan,
//! so that a test can say what it expects.

mod pace;
mod pass;

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use pace::Pace;

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    None,
    /// The connection ends before the server hears of it.
    Cut,
    /// The server does it, and the connection ends without an answer.
    AnswerLost,
    /// The connection ends in the middle of the answer's body.
    CutBody,
    /// The answer's body lacks its second half and looks whole.
    Truncate,
    /// One bit of the answer's body is another.
    FlipAnswer,
    /// One bit of the call's body is another.
    FlipCall,
    /// It takes this much longer.
    Delay(Duration),
    /// The provider answers so, with this status and code.
    Answer(u16, &'static str),
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Cut,
        Self::AnswerLost,
        Self::CutBody,
        Self::Truncate,
        Self::FlipAnswer,
        Self::FlipCall,
        Self::Delay(Duration::from_millis(300)),
        Self::Answer(500, "InternalError"),
        Self::Answer(503, "ServiceUnavailable"),
        Self::Answer(503, "SlowDown"),
    ];
}

/// A call, as far as plans look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Counts from 0.
    pub number: u64,
    pub method: String,
    /// With the bucket; without the query.
    pub path: String,
}

/// Bytes per second of bodies, in each direction; `None`: as fast as it goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    pub to_server: Option<u64>,
    pub from_server: Option<u64>,
}

type Plan = dyn Fn(&Call) -> Fault + Send + Sync;

struct Shared {
    upstream: String,
    client: reqwest::Client,
    plan: Box<Plan>,
    calls: AtomicU64,
    happened: Mutex<BTreeMap<Fault, u64>>,
    to_server: Pace,
    from_server: Pace,
    /// While true, every connection ends.
    away: watch::Sender<bool>,
    /// When the last byte of a call's body came, by its path's first two parts.
    last_bytes: Mutex<BTreeMap<String, Instant>>,
}

/// A running proxy; it ends when dropped.
pub struct Proxy {
    endpoint: String,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl Proxy {
    /// Before the server at this URL, on a free port of loopback.
    pub async fn start(
        upstream: &str,
        link: Link,
        plan: impl Fn(&Call) -> Fault + Send + Sync + 'static,
    ) -> io::Result<Self> {
        // One provider per process: that another part of it came first is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            client: client.map_err(io::Error::other)?,
            plan: Box::new(plan),
            calls: AtomicU64::new(0),
            happened: Mutex::default(),
            to_server: Pace::new(link.to_server),
            from_server: Pace::new(link.from_server),
            away: watch::Sender::new(false),
            last_bytes: Mutex::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, shared.clone())));
        Ok(Self { endpoint, shared, _stop: stop.drop_guard() })
    }

    /// For clients.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Ends every connection, and each new one, until it is back.
    pub fn set_away(&self, away: bool) {
        self.shared.away.send_replace(away);
    }

    /// When the last byte came of the bodies that were sent to paths that begin so: a bucket and a prefix, such as `/main/packs/`.
    pub fn last_byte_of(&self, begins: &str) -> Option<Instant> {
        self.shared.last_bytes.lock().unwrap_or_else(PoisonError::into_inner).get(begins).copied()
    }

    /// How often each fault happened.
    pub fn happened(&self) -> BTreeMap<Fault, u64> {
        self.shared.happened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn note_bytes(&self, path: &str) {
        let prefix: String = path.split_inclusive('/').take(3).collect();
        self.last_bytes.lock().unwrap_or_else(PoisonError::into_inner).insert(prefix, Instant::now());
    }

    fn fault(&self, method: &str, path: &str) -> (u64, Fault) {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let fault = (self.plan)(&Call { number, method: method.to_owned(), path: path.to_owned() });
        if fault != Fault::None {
            *self.happened.lock().unwrap_or_else(PoisonError::into_inner).entry(fault).or_default() += 1;
        }
        (number, fault)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (shared, mut away) = (shared.clone(), shared.away.subscribe());
        // Ends with the client's connection, which ends with the proxy's user.
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            let service = service_fn(move |call: hyper::Request<Incoming>| pass::pass(shared.clone(), call));
            let serving = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                // A cut connection is what was planned.
                _ = serving => {}
                _ = away.wait_for(|away| *away) => {}
            }
        });
    }
}
