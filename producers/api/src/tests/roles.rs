//! Every route with every kind of caller. The table is the router's own, so no route is left out.

use axum::{body::Body, http::Method};
use longshore_schemas::http::Role;
use longshore_service::tokens::name;

use super::world::{ROLES, World, request};
use crate::{access::Need, routes};

/// The path with something valid in its places.
fn filled(path: &str) -> String {
    let artifact = "0".repeat(64);
    let places = [
        ("{job}", "default-1"),
        ("{attempt}", "1"),
        ("{queue}", "default"),
        ("{service}", "web"),
        ("{artifact}", &artifact),
        ("{node}", "n1"),
        ("{topic}", "nothing"),
        ("{partition}", "0"),
        ("{processor}", "queue"),
        ("{offset}", "0"),
        ("{*address}", "mode"),
        ("{*path}", "bin/web"),
    ];
    let filled = places.into_iter().fold(path.to_owned(), |path, (place, with)| path.replace(place, with));
    assert!(!filled.contains('{'), "{filled}: add the new place to this test");
    filled
}

/// What the design says, in words of its own.
fn allowed(need: Need, role: Role) -> bool {
    let people = [Role::Viewer, Role::Builder, Role::Deployer, Role::Admin];
    match need {
        Need::Nothing | Need::Token => true,
        Need::Attempt => false,
        Need::Role(Role::Worker) => role == Role::Worker,
        Need::Role(Role::Node) => role == Role::Node,
        Need::Role(need) => people.contains(&role) && role >= need,
    }
}

#[tokio::test]
async fn every_route_with_every_role() {
    let world = World::new().await;
    for route in routes::table() {
        let path = filled(route.path);
        for role in ROLES {
            let sent = request(route.method.clone(), &path, world.token(role)).body(Body::from("{\"x\": 1}"));
            let answer = world.send(sent.expect("valid")).await;
            let status = answer.status.as_u16();
            if allowed(route.need, role) {
                assert!(!matches!(status, 401 | 403 | 405), "{} {path} as {role:?}: {}", route.method, answer.text());
            } else {
                let detail = answer.expect_problem(403, "this needs").detail;
                assert!(detail.contains(name(role)), "{detail}");
            }
        }
    }
}

#[tokio::test]
async fn every_route_without_a_token_or_with_a_wrong_one() {
    let world = World::new().await;
    for route in routes::table().into_iter().filter(|route| route.need != Need::Nothing) {
        let path = filled(route.path);
        for wrong in ["", "nonsense", "ls_admin_0000000000000000000000000000000000000000000"] {
            let sent = request(route.method.clone(), &path, wrong).body(Body::empty()).expect("valid");
            let answer = world.send(sent).await;
            answer.expect_problem(401, "token");
            assert!(answer.header("www-authenticate").starts_with("Bearer"));
        }
        let mut sent = request(route.method.clone(), &path, "").body(Body::empty()).expect("valid");
        sent.headers_mut().remove("authorization");
        world.send(sent).await.expect_problem(401, "Authorization: Bearer");
    }
}

#[tokio::test]
async fn an_attempts_credential_is_for_its_attempt_only() {
    let world = World::new().await;
    world.running("default-1", 1);
    let credential = world.credential("default-1", 1, "w");
    let beats = |job: &str, attempt: u32| format!("/v1/jobs/{job}/attempts/{attempt}/beats");
    let empty = serde_json::json!({});
    world.call(Method::POST, &beats("default-1", 1), &credential, &empty).await.expect_status(200);
    for (job, attempt) in [("default-1", 2), ("default-2", 1), ("other-1", 1)] {
        let answer = world.call(Method::POST, &beats(job, attempt), &credential, &empty).await;
        answer.expect_problem(403, "this credential is for attempt 1 of default-1");
    }
    for route in routes::table().into_iter().filter(|route| !matches!(route.need, Need::Nothing | Need::Attempt)) {
        let answer = world.call(route.method, &filled(route.path), &credential, &empty).await;
        answer.expect_problem(403, "credential of attempt 1 of default-1");
    }
}

#[tokio::test]
async fn tokens_in_the_query_count_on_streams_only() {
    let world = World::new().await;
    world.running("default-1", 1);
    let token = world.token(Role::Viewer).to_owned();
    for (path, status) in [("/v1/jobs/default-1/log", 200), ("/v1/jobs", 401), ("/v1/whoami", 401)] {
        let mut sent =
            request(Method::GET, &format!("{path}?access_token={token}"), "").body(Body::empty()).expect("valid");
        sent.headers_mut().remove("authorization");
        world.send(sent).await.expect_status(status);
    }
}
