//! Bad input: each gets a clear problem, and leaves the log as it was.

use axum::{body::Body, http::Method};
use longshore_schemas::{ArtifactId, http::Role};
use serde_json::{Value, json};

use super::world::{World, artifact, build, request};

/// A build with one field set to something else.
fn build_with(field: &str, value: Value) -> Value {
    let mut body = build();
    body["build"][field] = value;
    body
}

#[tokio::test]
async fn builds_that_cannot_be_read_or_are_not_valid() {
    let world = World::new().await;
    let mut queue = build();
    queue["queue"] = json!("../x");
    let mut missing = build();
    missing["build"].as_object_mut().expect("an object").remove("output");
    let table = [
        (queue, 422, "queue: queue \"../x\" is not valid"),
        (missing, 422, "missing field `output`"),
        (build_with("comand", json!(["x"])), 422, "build.comand: unknown field `comand`"),
        (
            build_with("commit", json!("main")),
            422,
            "build.commit: commit \"main\" is not valid: give the full commit id",
        ),
        (build_with("name", json!("A")), 422, "build.name: name \"A\""),
        (build_with("command", json!("make")), 422, "build.command"),
        (build_with("repository", json!("/etc")), 422, "build.repository: this installation takes no local files"),
        (build_with("repository", json!("ext::sh -c x")), 422, "build.repository"),
        (build_with("time_limit_seconds", json!(-1)), 422, "build.time_limit_seconds"),
        (json!([1]), 422, "body"),
    ];
    for (body, status, says) in table {
        world.post("/v1/builds", Role::Builder, &body).await.expect_problem(status, says);
    }
    let raw =
        |body: &'static str| request(Method::POST, "/v1/builds", world.token(Role::Builder)).body(Body::from(body));
    world.send(raw("{\"queue\": ").expect("valid")).await.expect_problem(400, "not valid JSON");
    world.send(raw("").expect("valid")).await.expect_problem(422, "missing field `queue`");
    let mut form = raw("queue=default").expect("valid");
    form.headers_mut().insert("content-type", "application/x-www-form-urlencoded".parse().expect("valid"));
    world.send(form).await.expect_problem(415, "application/json");
    world
        .post_with_key("/v1/builds", Role::Builder, "with space", &build())
        .await
        .expect_problem(422, "idempotency-key");
    assert_eq!(world.records().await, 0, "nothing was written");
}

#[tokio::test]
async fn bodies_that_are_too_large() {
    let world = World::new().await;
    let large = build_with("output", json!("x".repeat(2 * 1024 * 1024)));
    world.post("/v1/builds", Role::Builder, &large).await.expect_problem(413, "at most 1048576 bytes");
    let endless = Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 64 * 1024])));
    let sent = request(Method::POST, "/v1/builds", world.token(Role::Builder)).body(endless).expect("valid");
    world.send(sent).await.expect_problem(413, "at most 1048576 bytes");
    assert_eq!(world.records().await, 0, "nothing was written");
}

#[tokio::test]
async fn names_in_paths_and_queries() {
    let world = World::new().await;
    let body = json!({ "artifact": ArtifactId::of(b"a") });
    let table = [
        ("/v1/services/%2E%2E%2Fx/deploys", 422, "service \"../x\" is not valid: use 1 to 63"),
        ("/v1/services/../x/deploys", 404, "not part of the API"),
        ("/v1/services/Web/deploys", 422, "service \"Web\" is not valid"),
        ("/v1/jobs/17/cancel", 422, "job \"17\" is not valid: it is written QUEUE-NUMBER"),
        ("/v1/jobs/default-1/cancel", 404, "there is no job default-1"),
    ];
    for (path, status, says) in table {
        world.post(path, Role::Admin, &body).await.expect_problem(status, says);
    }
    let table = [
        ("/v1/jobs/default-9", 404, "there is no job default-9"),
        ("/v1/jobs?quue=x", 422, "quue"),
        ("/v1/jobs?queue=X", 422, "queue \"X\" is not valid"),
        ("/v1/jobs?limit=0", 422, "limit"),
        ("/v1/jobs?limit=1001", 422, "limit"),
        ("/v1/jobs?after=x", 422, "after"),
        ("/v1/artifacts/abc", 422, "artifact \"abc\" is not valid"),
        ("/v1/facts/builds?from=now", 422, "from"),
        ("/v1/facts/builds?at=yesterday", 422, "at"),
        ("/v1/facts/builds?from=p0:99", 409, "the id says 99"),
        ("/v1/facts/builds?from=p9:0", 422, "4 partitions"),
        ("/v1/facts/build-requests", 404, "there are builds, artifacts, goals, fleet"),
        ("/v1/requests/builds/0/0", 404, "no request topic"),
        ("/v1/requests/build-requests/0/0", 404, "no request at offset 0"),
        ("/v2/jobs", 404, "under /v1"),
        ("/v1/builds", 405, "does not take GET"),
    ];
    for (path, status, says) in table {
        world.get(path).await.expect_problem(status, says);
    }
    assert_eq!(world.records().await, 1, "nothing but the cancel of a job that could have been there");
}

#[tokio::test]
async fn deploys_of_what_is_not_everywhere_write_nothing() {
    let world = World::new().await;
    let (partial, unknown) = (ArtifactId::of(b"partial"), ArtifactId::of(b"unknown"));
    world.toy.state().artifacts.push(artifact(partial, false));
    let deploys = "/v1/services/web/deploys";
    let answer = world.post(deploys, Role::Deployer, &json!({ "artifact": unknown })).await;
    answer.expect_problem(404, "there is no artifact");
    let answer = world.post(deploys, Role::Deployer, &json!({ "artifact": partial })).await;
    let problem = answer.expect_problem(409, "not yet deployable: region us has 3 of 12 packs");
    assert_eq!(problem.kind, "/problems/artifact-not-deployable");
    let answer = world.post(deploys, Role::Deployer, &json!({ "artifact": partial, "plan": { "wave": [] } })).await;
    answer.expect_problem(422, "plan.wave: unknown field");
    assert_eq!(world.records().await, 0, "nothing was written");

    // Where the plan goes, it is.
    let body = json!({ "artifact": partial, "plan": { "waves": [{ "regions": ["eu"] }] } });
    world.post(deploys, Role::Deployer, &body).await.expect_status(200);
}
