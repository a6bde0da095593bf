//! Over real connections: large bodies, shutdown, the console.

use std::{net::SocketAddr, time::Duration};

use axum::{body::Body, http::Method};
use longshore_schemas::http::{Problem, Role};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use tower::ServiceExt;

use super::world::{PATIENCE, World, build, request};
use crate::{Limits, serve};

impl World {
    async fn serve(&self) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let (shutdown, shared) = (CancellationToken::new(), self.api.shared.clone());
        let (router, token) = (self.router(), shutdown.clone());
        let serving =
            tokio::spawn(async move { serve::serve(router, listener, token, &shared).await.expect("served") });
        (address, shutdown, serving)
    }
}

#[tokio::test]
async fn a_100_mb_body_gets_an_answer() {
    let world = World::new().await;
    let (address, ..) = world.serve().await;
    let (mut read, mut write) = TcpStream::connect(address).await.expect("connected").into_split();
    let bytes = 100 * 1024 * 1024;
    let token = world.token(Role::Builder);
    let head = format!(
        "POST /v1/builds HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n"
    );
    let sending = async {
        write.write_all(head.as_bytes()).await.expect("sent");
        let piece = vec![b' '; 1024 * 1024];
        for _ in 0..bytes / piece.len() {
            write.write_all(&piece).await.expect("sent");
        }
    };
    let reading = async {
        let mut answer = String::new();
        read.read_to_string(&mut answer).await.expect("read");
        answer
    };
    let both = async { tokio::join!(sending, reading) };
    let ((), answer) = tokio::time::timeout(PATIENCE, both).await.expect("in time");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    let problem: Problem = serde_json::from_str(body).expect("a problem");
    assert_eq!(problem.kind, "/problems/too-large");
    assert_eq!(world.records().await, 0, "nothing was written");
}

#[tokio::test]
async fn shutting_down_ends_open_streams_and_claims() {
    let world = World::new().await;
    let (address, shutdown, serving) = world.serve().await;
    let mut open = Vec::new();
    let requests = [
        ("GET /v1/facts/builds", Role::Viewer, String::new()),
        (
            "POST /v1/queues/default/claims",
            Role::Worker,
            "{\"worker\":\"w\",\"claim\":\"c\",\"wait_seconds\":60}".to_owned(),
        ),
    ];
    for (line, role, body) in requests {
        let token = world.token(role);
        let mut connection = TcpStream::connect(address).await.expect("connected");
        let request = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(request.as_bytes()).await.expect("sent");
        open.push(connection);
    }
    let both_taken = async {
        let gates = &world.api.shared.gates;
        while gates.streams.used() + gates.claims.used() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, both_taken).await.expect("both calls are open");
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), serving).await.expect("it ends soon").expect("without a panic");
}

async fn until(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it comes true in time");
}

#[tokio::test]
async fn a_full_gate_turns_away_its_own_kind_and_no_other() {
    let world = World::with(Limits { asks_max: 1, ..Limits::default() }).await;
    let never = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::convert::Infallible>>());
    let slow = request(Method::POST, "/v1/builds", world.token(Role::Builder)).body(never).expect("valid");
    let inside = tokio::spawn(world.router().oneshot(slow));
    let asks = &world.api.shared.gates.asks;
    until(|| asks.used() == 1).await;
    let refused = world.post("/v1/builds", Role::Builder, &build()).await;
    let problem = refused.expect_problem(503, "the limit api.asks of 1 calls is reached");
    assert_eq!((problem.kind.as_str(), refused.header("retry-after")), ("/problems/limit-reached", "2"));
    assert_eq!(world.records().await, 0, "nothing was written");
    for path in ["/v1/health", "/v1/queues", "/v1/checks"] {
        world.get(path).await.expect_status(200);
    }
    inside.abort();
    until(|| asks.used() == 0).await;
    world.post("/v1/builds", Role::Builder, &build()).await.expect_status(201);
}

#[tokio::test]
async fn one_connection_too_many_gets_an_answer_and_the_door() {
    let world = World::with(Limits { connections_max: 1, ..Limits::default() }).await;
    let (address, ..) = world.serve().await;
    let ask = async || {
        let mut connection = TcpStream::connect(address).await.expect("connected");
        connection.write_all(b"GET /v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.expect("answered");
        answer
    };
    let first = TcpStream::connect(address).await.expect("connected");
    let connections = &world.api.shared.gates.connections;
    until(|| connections.used() == 1).await;
    let answer = ask().await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 2"), "{head}");
    let problem: Problem = serde_json::from_str(body).expect("a problem");
    assert!(problem.status == 503 && problem.detail.contains("api.connections"), "{problem:?}");
    drop(first);
    until(|| connections.used() == 0).await;
    assert!(ask().await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_panic_is_a_problem_and_nothing_more() {
    let world = World::new().await;
    world.toy.state().panics = true;
    world.get("/v1/queues").await.expect_problem(500, "a defect of the API");
    world.toy.state().panics = false;
    world.get("/v1/queues").await.expect_status(200);
}

#[tokio::test]
async fn the_console_is_served() {
    let world = World::new().await;
    let page = world.get("/").await.expect_status(200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(page.header("cache-control"), "no-cache");
    assert!(page.text().contains("<title>"), "{}", page.text());
    assert_eq!(world.get("/index.html").await.text(), page.text());
    for path in ["/assets/none.js", "/console", "/../Cargo.toml", "/v1"] {
        world.get(path).await.expect_problem(404, "not part of the API");
    }
    world.post("/", Role::Admin, &serde_json::json!({})).await.expect_problem(405, "GET");
}
