//! What one API process takes on at once, and how large it may be. A flood is turned away here, before it costs anything.
//!
//! ```text
//! socket ─▶ connections ─▶ admit: reads │ asks │ attempt calls ─▶ access ─▶ body ─▶ handler ─▶ claims │ streams
//! ```
//!
//! Each kind of call has a gate of its own, so that people who look do not keep out workers that finish, nor the other
//! way round. Whoever finds a gate full is told so at once and when to come back: those inside stay as fast as ever.

use std::{sync::LazyLock, time::Instant};

use axum::{
    extract::{Request, State},
    http::Method,
    middleware::Next,
    response::{IntoResponse, Response},
};
use longshore_artifact::PACK_BYTES_MAX;
use longshore_schemas::http::{CheckView, LOG_SEGMENT_BYTES_MAX, PAGE_ITEMS_MAX, UPLOADS_MAX};
use longshore_service::{
    limits::{Gate, Limit},
    metrics::{self, Counters, Histograms},
};

use crate::{attempts, claims, extract, finish, indexes, problem::Failure, serve, streams};

pub static CONNECTIONS: Limit =
    Limit::settable("api.connections", 4_096, "connections", "answered 503 with Retry-After, and closed");
pub static READS: Limit = Limit::settable("api.reads", 256, "calls", "503 with Retry-After");
pub static ASKS: Limit = Limit::settable("api.asks", 256, "calls", "503 with Retry-After; nothing is written");
pub static ATTEMPT_CALLS: Limit = Limit::settable("api.attempt_calls", 512, "calls", "503 with Retry-After");
pub static CLAIMS: Limit = Limit::settable("api.claims", 2_048, "claims", "503 with Retry-After");
pub static STREAMS: Limit = Limit::settable("api.streams", 256, "streams", "503 with Retry-After");
pub static DOWNLOADS: Limit = Limit::settable("api.downloads", 32, "downloads of files", "503 with Retry-After");
pub static NODE_LOGS: Limit =
    Limit::settable("api.node_logs", 16, "calls for what a service says on a node", "503 with Retry-After");
pub static HEAD_BYTES: Limit = Limit::fixed("api.head_bytes", serve::HEAD_BYTES_MAX as u64, "bytes", "431");
pub static HEAD_SECONDS: Limit =
    Limit::fixed("api.head_seconds", serve::HEAD_TIMEOUT.as_secs(), "s", "the connection is closed");
pub static BODY_BYTES: Limit = Limit::fixed("api.body_bytes", extract::BODY_BYTES_MAX as u64, "bytes", "413");
pub static BODY_SECONDS: Limit = Limit::fixed("api.body_seconds", extract::BODY_TIMEOUT.as_secs(), "s", "408");
pub static UNREAD_SECONDS: Limit = Limit::fixed(
    "api.unread_seconds",
    serve::UNREAD_TIMEOUT.as_secs(),
    "s",
    "the connection of a client that does not read is closed",
);
pub static STREAM_BYTES: Limit = Limit::fixed(
    "api.stream_piece_bytes",
    streams::PIECE_BYTES_MAX as u64,
    "bytes",
    "a stream is sent in more pieces; at most three wait for a slow client",
);
pub static PAGE_ITEMS: Limit = Limit::fixed("api.page_items", PAGE_ITEMS_MAX as u64, "items", "422");
pub static CLAIM_SECONDS: Limit = Limit::fixed("api.claim_seconds", claims::WAIT_SECONDS_MAX as u64, "s", "422");
pub static UPLOADS: Limit = Limit::fixed("api.uploads", UPLOADS_MAX as u64, "packs a call", "422");
pub static PACK_BYTES: Limit = Limit::fixed("api.pack_bytes", PACK_BYTES_MAX as u64, "bytes", "422");
pub static LOG_SEGMENT_BYTES: Limit =
    Limit::fixed("api.log_segment_bytes", LOG_SEGMENT_BYTES_MAX as u64, "bytes", "422");
pub static LOG_SEGMENTS: Limit =
    Limit::fixed("api.log_segments", attempts::SEGMENTS_MAX as u64, "segments of an attempt", "422");
pub static MESSAGE_BYTES: Limit = Limit::fixed("api.message_bytes", finish::MESSAGE_BYTES_MAX as u64, "bytes", "422");

pub static INDEX_BYTES: Limit =
    Limit::fixed("api.index_bytes", indexes::INDEX_BYTES_MAX, "packed bytes of a manifest and its layout", "422");
pub static KEPT_INDEX_BYTES: Limit = Limit::fixed(
    "api.kept_index_bytes",
    indexes::KEPT_BYTES_MAX,
    "bytes of manifests that were read",
    "those that were used least lately are read again",
);

/// All of them.
pub static LIMITS: &[&Limit] = &[
    &CONNECTIONS,
    &READS,
    &ASKS,
    &ATTEMPT_CALLS,
    &CLAIMS,
    &STREAMS,
    &DOWNLOADS,
    &NODE_LOGS,
    &HEAD_BYTES,
    &HEAD_SECONDS,
    &BODY_BYTES,
    &BODY_SECONDS,
    &UNREAD_SECONDS,
    &STREAM_BYTES,
    &PAGE_ITEMS,
    &CLAIM_SECONDS,
    &UPLOADS,
    &PACK_BYTES,
    &INDEX_BYTES,
    &KEPT_INDEX_BYTES,
    &LOG_SEGMENT_BYTES,
    &LOG_SEGMENTS,
    &MESSAGE_BYTES,
];

/// Of a gate, so much taken is worth a word.
const TAKEN_PERCENT: usize = 90;

/// The kinds of calls. Each has its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Cheap, and wanted most when all else is full: whether the process lives, and who the caller is.
    Check,
    /// Reads a view.
    Read,
    /// Writes a request to the log and waits for its outcome.
    Ask,
    /// A worker at its attempt.
    Attempt,
    /// Stays open; its handler has the gate, for claims, streams, downloads or logs of nodes.
    Open,
}

/// The gates of one API process.
pub(crate) struct Gates {
    pub(crate) connections: Gate,
    pub(crate) claims: Gate,
    pub(crate) streams: Gate,
    pub(crate) downloads: Gate,
    pub(crate) node_logs: Gate,
    reads: Gate,
    pub(crate) asks: Gate,
    attempt_calls: Gate,
}

impl Gates {
    pub(crate) fn new(limits: &crate::Limits) -> Self {
        for limit in LIMITS.iter().filter(|limit| !limit.set) {
            limit.announce(limit.default);
        }
        Self {
            connections: Gate::new(&CONNECTIONS, limits.connections_max),
            claims: Gate::new(&CLAIMS, limits.claims_max),
            streams: Gate::new(&STREAMS, limits.streams_max),
            downloads: Gate::new(&DOWNLOADS, limits.downloads_max),
            node_logs: Gate::new(&NODE_LOGS, limits.node_logs_max),
            reads: Gate::new(&READS, limits.reads_max),
            asks: Gate::new(&ASKS, limits.asks_max),
            attempt_calls: Gate::new(&ATTEMPT_CALLS, limits.attempt_calls_max),
        }
    }

    /// Whether there is room, for the list of checks.
    pub(crate) fn check(&self) -> CheckView {
        let Self { connections, claims, streams, downloads, node_logs, reads, asks, attempt_calls } = self;
        let gates = [connections, reads, asks, attempt_calls, claims, streams, downloads, node_logs];
        let taken = |gate: &&&Gate| gate.used() * 100 >= gate.max() * TAKEN_PERCENT;
        let full: Vec<_> = gates
            .iter()
            .filter(taken)
            .map(|gate| format!("{} {} of {}", gate.limit().name, gate.used(), gate.max()))
            .collect();
        if full.is_empty() {
            return CheckView::ok("limits", "there is room for calls of every kind");
        }
        let advice = "callers are or will be turned away: find who calls so much, or raise it with --limit";
        CheckView::warn("limits", format!("nearly or wholly taken: {}", full.join(", ")), advice)
    }

    pub(crate) fn of(&self, class: Class) -> Option<Gate> {
        match class {
            Class::Check | Class::Open => None,
            Class::Read => Some(self.reads.clone()),
            Class::Ask => Some(self.asks.clone()),
            Class::Attempt => Some(self.attempt_calls.clone()),
        }
    }
}

static CALLS: LazyLock<Counters<3>> =
    LazyLock::new(|| Counters::new("longshore_api_calls", "Calls answered", ["method", "route", "status"]));
static SECONDS: LazyLock<Histograms<1>> = LazyLock::new(|| {
    Histograms::seconds("longshore_api_seconds", "From a call's head to its answer's head, if it was let in", ["route"])
});

/// A route's door: what is counted there, and who is let in.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) method: &'static str,
    pub(crate) route: &'static str,
    pub(crate) gate: Option<Gate>,
}

/// What is larger than it may be: counted, and answered with the name of the limit.
pub(crate) fn above(limit: &Limit, says: impl std::fmt::Display) -> Failure {
    limit.refused();
    Failure::invalid(format!("{says} (the limit {})", limit.name))
}

/// A method as a label.
pub(crate) fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => metrics::OTHER,
    }
}

/// Lets the call in, or turns it away before anything of it is read.
pub(crate) async fn admit(State(door): State<Door>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let response = match door.gate.as_ref().map(Gate::enter).transpose() {
        Ok(pass) => {
            let response = next.run(request).await;
            drop(pass);
            SECONDS.observe([door.route], begun.elapsed().as_secs_f64());
            response
        }
        Err(full) => Failure::full(&full).into_response(),
    };
    CALLS.count([door.method, door.route, response.status().as_str()], 1);
    response
}
