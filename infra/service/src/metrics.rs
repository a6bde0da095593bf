//! What a process counts, and how Prometheus reads it.
//!
//! ```text
//! static REQUESTS: LazyLock<Counters<2>> ──count──▶ one registry for the process ──text──▶ GET /metrics
//! ```
//!
//! A metric is a static beside the code that counts, and registers itself when it is first used; so a process shows what it
//! does and nothing else. Names carry their unit (`_seconds`, `_bytes`); counters end in `_total`, which is added here.
//! Label values come from small sets: routes, codes, partitions; never from what people name, such as jobs or nodes. Should one grow
//! all the same, what comes after [`SERIES_MAX`] is counted together as [`OTHER`].

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::Error;

/// Label values of one metric that are kept apart.
pub const SERIES_MAX: usize = 500;
/// Stands for the label values beyond that.
pub const OTHER: &str = "other";
/// What [`text`] is, for the header `content-type`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// From half a millisecond to half a minute.
const SECONDS: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From 256 bytes to 16 MiB.
const BYTES: [f64; 9] = [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

type Labels<const N: usize> = [(&'static str, String); N];

/// One metric's label names, and which values have been seen.
struct Names<const N: usize> {
    names: [&'static str; N],
    seen: Mutex<BTreeSet<[String; N]>>,
}

impl<const N: usize> Names<N> {
    fn new(names: [&'static str; N]) -> Self {
        Self { names, seen: Mutex::default() }
    }

    fn labels(&self, values: [&str; N]) -> Labels<N> {
        let mut owned = values.map(escaped);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.contains(&owned) {
            if seen.len() >= SERIES_MAX {
                owned = owned.map(|_| OTHER.to_owned());
            }
            seen.insert(owned.clone());
        }
        let mut owned = owned.into_iter();
        self.names.map(|name| (name, owned.next().unwrap_or_default()))
    }
}

/// A label's value as the text form wants it, which the library does not see to.
fn escaped(value: &str) -> String {
    if value.contains(['\\', '"', '\n']) {
        return value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    }
    value.to_owned()
}

/// Numbers that only grow, told apart by labels.
pub struct Counters<const N: usize> {
    names: Names<N>,
    family: Family<Labels<N>, Counter>,
}

impl<const N: usize> Counters<N> {
    /// `name` without `_total`, which is added when it is shown.
    pub fn new(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        let family = Family::default();
        registry().register(name, help, Family::clone(&family));
        Self { names: Names::new(labels), family }
    }

    pub fn count(&self, labels: [&str; N], by: u64) {
        self.family.get_or_create(&self.names.labels(labels)).inc_by(by);
    }

    pub fn value(&self, labels: [&str; N]) -> u64 {
        self.family.get_or_create(&self.names.labels(labels)).get()
    }
}

/// Numbers that go up and down, told apart by labels.
pub struct Gauges<const N: usize> {
    names: Names<N>,
    family: Family<Labels<N>, Gauge>,
}

impl<const N: usize> Gauges<N> {
    pub fn new(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        let family = Family::default();
        registry().register(name, help, Family::clone(&family));
        Self { names: Names::new(labels), family }
    }

    pub fn set(&self, labels: [&str; N], value: u64) {
        self.of(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// Forgets all values: what is set next is all there is.
    pub fn clear(&self) {
        self.family.clear();
    }

    /// The gauge itself, for whoever changes it often.
    pub fn of(&self, labels: [&str; N]) -> Gauge {
        self.family.get_or_create(&self.names.labels(labels)).clone()
    }
}

/// How often which values occurred, told apart by labels.
pub struct Histograms<const N: usize> {
    names: Names<N>,
    family: Family<Labels<N>, Histogram>,
}

impl<const N: usize> Histograms<N> {
    pub fn seconds(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        Self::new(name, help, labels, || Histogram::new(SECONDS))
    }

    pub fn bytes(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        Self::new(name, help, labels, || Histogram::new(BYTES))
    }

    fn new(name: &'static str, help: &'static str, labels: [&'static str; N], make: fn() -> Histogram) -> Self {
        let family = Family::new_with_constructor(make);
        registry().register(name, help, Family::clone(&family));
        Self { names: Names::new(labels), family }
    }

    pub fn observe(&self, labels: [&str; N], value: f64) {
        self.family.get_or_create(&self.names.labels(labels)).observe(value);
    }
}

/// Everything that this process has counted.
pub fn text() -> String {
    let mut text = String::new();
    // A String takes any text, and the registry's names are ours.
    if let Err(fmt::Error) = text::encode(&mut text, &registry()) {
        tracing::error!("the metrics cannot be written");
    }
    text
}

/// Scrapes answered at once; further ones are closed.
const SCRAPES_MAX: usize = 4;
/// Longest head of a request that is read.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// For one scrape, from its first byte to its last.
const SCRAPE_TIME: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Answers `GET /metrics` at this address until the shutdown: for processes that serve no HTTP otherwise. Returns where it
/// listens. Whoever reaches the address may read, so it should be one of loopback or of an inner network.
pub async fn serve(listen: SocketAddr, shutdown: CancellationToken) -> Result<SocketAddr, Error> {
    serve_text(listen, Arc::new(text), shutdown).await
}

/// What a scrape is answered with.
pub type Text = Arc<dyn Fn() -> String + Send + Sync>;

/// As [`serve`], for a process that has figures besides [`text`].
pub async fn serve_text(listen: SocketAddr, text: Text, shutdown: CancellationToken) -> Result<SocketAddr, Error> {
    let failed = |source| Error::MetricsListen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(accept(listener, text, shutdown));
    tracing::info!(%address, "metrics can be read");
    Ok(address)
}

async fn accept(listener: TcpListener, text: Text, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(SCRAPES_MAX));
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let (stream, _) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a scrape of the metrics cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let text = text.clone();
        tokio::spawn(async move {
            // A scraper that goes away or is too slow asks again.
            let _ = tokio::time::timeout(SCRAPE_TIME, answer(stream, &text)).await;
            drop(place);
        });
    }
}

/// One request, one answer, and the end: no more HTTP than a scrape needs.
async fn answer(mut stream: TcpStream, text: &Text) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let is_scrape = [&b"GET /metrics "[..], b"GET /metrics?"].iter().any(|start| head.starts_with(start));
    let (status, kind, body) = if is_scrape {
        ("200 OK", CONTENT_TYPE, text())
    } else {
        ("404 Not Found", "text/plain; charset=utf-8", "only GET /metrics is answered here\n".to_owned())
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let counters = Counters::new("longshore_test_calls", "Calls.", ["route", "status"]);
        counters.count(["/v1/\"x\"", "200"], 2);
        counters.count(["/v1/\"x\"", "200"], 1);
        let gauges = Gauges::new("longshore_test_open", "Open.", []);
        gauges.set([], 7);
        let histograms = Histograms::seconds("longshore_test_seconds", "Time.", ["route"]);
        histograms.observe(["a"], 0.02);
        let text = text();
        for line in [
            "longshore_test_calls_total{route=\"/v1/\\\"x\\\"\",status=\"200\"} 3",
            "longshore_test_open{} 7",
            "longshore_test_seconds_bucket{le=\"0.025\",route=\"a\"} 1",
            "# TYPE longshore_test_calls counter",
        ] {
            assert!(text.contains(line), "{line} is in\n{text}");
        }
    }

    #[test]
    fn labels_cannot_fill_the_memory() {
        let counters = Counters::new("longshore_test_many", "Many.", ["name"]);
        for name in 0..10 * SERIES_MAX {
            counters.count([&name.to_string()], 1);
        }
        let text = text();
        let series = text.lines().filter(|line| line.starts_with("longshore_test_many_total{")).count();
        assert_eq!(series, SERIES_MAX + 1);
        assert_eq!(counters.value([OTHER]), 9 * SERIES_MAX as u64);
    }

    #[tokio::test]
    async fn a_scrape_is_answered_and_nothing_else() {
        let stop = CancellationToken::new();
        let address = serve(SocketAddr::from(([127, 0, 0, 1], 0)), stop.clone()).await.expect("listening");
        let ask = async |request: &str| {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("answered");
            answer
        };
        let metrics = ask("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(metrics.starts_with("HTTP/1.1 200") && metrics.trim_end().ends_with("# EOF"), "{metrics}");
        assert!(ask("GET /secrets HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        assert!(ask(&"x".repeat(HEAD_BYTES_MAX)).await.starts_with("HTTP/1.1 404"), "an endless head has an end");
        stop.cancel();
    }
}
