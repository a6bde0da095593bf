//! Calls that change state: what becomes of them, and that repeating them changes nothing.

use axum::http::Method;
use longshore_schemas::{
    ArtifactId,
    http::{JobStatus, JobView, Role, RolloutStatus, ServiceView},
};
use serde_json::{Value, json};

use super::world::{World, artifact, build};

#[tokio::test]
async fn a_build_is_answered_by_its_job() {
    let world = World::new().await;
    let answer = world.post("/v1/builds", Role::Builder, &build()).await.expect_status(201);
    let view: JobView = answer.json();
    assert_eq!((view.job.to_string().as_str(), view.status), ("default-1", JobStatus::Queued));
    assert_eq!(answer.header("location"), "/v1/jobs/default-1");
    assert_eq!(answer.header("idempotency-key").len(), 32, "an id of its own");
    assert_eq!(world.get("/v1/jobs/default-1").await.json::<JobView>(), view);

    let answer = world.post("/v1/jobs/default-1/cancel", Role::Builder, &Value::Null).await.expect_status(200);
    assert_eq!(answer.json::<JobView>().status, JobStatus::Canceled);
    world.post("/v1/jobs/default-1/cancel", Role::Builder, &Value::Null).await.expect_problem(409, "has ended");
}

#[tokio::test]
async fn a_view_can_wait_for_what_became_of_a_request() {
    let world = World::new().await;
    let answer = world.post("/v1/builds", Role::Builder, &build()).await.expect_status(201);
    let place = answer.header("longshore-request").to_owned();
    assert!(place.starts_with("build-requests,"), "{place}");
    let path = format!("/v1/jobs/default-1?after_request={place}");
    assert_eq!(world.get(&path).await.json::<JobView>(), answer.json::<JobView>());
    world.get(&format!("/v1/jobs?limit=5&after_request={place}")).await.expect_status(200);
    world.toy.state().stuck = true;
    let accepted = world.post("/v1/builds", Role::Builder, &build()).await.expect_status(202);
    let later = accepted.header("longshore-request").to_owned();
    world.get(&format!("/v1/queues?after_request={later}")).await.expect_problem(503, "not processed here yet");
    world.toy.state().stuck = false;
    for bad in ["builds,0,0", "x", "build-requests,9,0"] {
        world.get(&format!("/v1/queues?after_request={bad}")).await.expect_problem(422, "after_request: give topic");
    }
}

#[tokio::test]
async fn a_repeated_build_is_the_same_job() {
    let world = World::new().await;
    let first: JobView = world.post_with_key("/v1/builds", Role::Builder, "key", &build()).await.json();
    let answer = world.post_with_key("/v1/builds", Role::Builder, "key", &build()).await.expect_status(201);
    assert_eq!(answer.json::<JobView>(), first);
    assert_eq!(answer.header("idempotency-key"), "key");
    let mut other = build();
    other["build"]["output"] = json!("elsewhere");
    let problem = world.post_with_key("/v1/builds", Role::Builder, "key", &other).await;
    let problem = problem.expect_problem(422, "default-1");
    assert_eq!(problem.kind, "/problems/idempotency-key-reused");
    assert_eq!(problem.request.expect("named").as_str(), "key");
}

#[tokio::test]
async fn a_refusal_is_a_problem_that_names_the_request() {
    let world = World::new().await;
    let mut body = build();
    body["build"]["command"] = json!([]);
    let answer = world.post_with_key("/v1/builds", Role::Builder, "key", &body).await;
    assert_eq!(answer.expect_problem(422, "build.command").request.expect("named").as_str(), "key");
    assert_eq!(answer.header("idempotency-key"), "key");
}

#[tokio::test]
async fn what_takes_too_long_is_accepted_and_can_be_asked_for() {
    let world = World::new().await;
    world.toy.state().stuck = true;
    let answer = world.post("/v1/builds", Role::Builder, &build()).await.expect_status(202);
    let location = answer.header("location").to_owned();
    assert!(location.starts_with("/v1/requests/build-requests/"), "{location}");
    world.get(&location).await.expect_status(202);
    world.toy.state().stuck = false;
    assert_eq!(world.get(&location).await.expect_status(200).json::<Value>()["status"], "processed");
}

#[tokio::test]
async fn a_deploy_is_answered_by_its_revision() {
    let world = World::new().await;
    let id = ArtifactId::of(b"artifact");
    world.toy.state().artifacts.push(artifact(id, true));
    let body = json!({ "artifact": id });
    let deploys = "/v1/services/web/deploys";
    let answer = world.post_with_key(deploys, Role::Deployer, "d1", &body).await.expect_status(200);
    let view: ServiceView = answer.json();
    let revision = &view.revisions[0];
    assert_eq!((revision.deploy.as_str(), revision.status), ("d1", RolloutStatus::Rolling));
    assert_eq!(revision.actor, "some-deployer");
    let regions: Vec<_> = revision.plan.waves.iter().map(|wave| wave.regions.len()).collect();
    assert_eq!(regions, [2], "one wave of all regions");

    // The same again, even if the artifact could not be deployed any more.
    world.toy.state().artifacts[0] = artifact(id, false);
    let again = world.post_with_key(deploys, Role::Deployer, "d1", &body).await.expect_status(200);
    assert_eq!(again.json::<ServiceView>(), view);
    let other = json!({ "artifact": ArtifactId::of(b"other") });
    world.post_with_key(deploys, Role::Deployer, "d1", &other).await.expect_problem(422, "use a new key");

    for path in ["pause", "resume", "rollbacks"] {
        world.post(&format!("/v1/services/web/{path}"), Role::Deployer, &json!({})).await;
    }
    let holds = format!("/v1/services/web/holds/{id}");
    let token = world.token(Role::Deployer).to_owned();
    world.call(Method::DELETE, &holds, &token, &Value::Null).await.expect_status(200);
    world.post("/v1/services/nothing/pause", Role::Deployer, &json!({})).await.expect_problem(404, "has no goal");
}

#[tokio::test]
async fn a_deploy_whose_pin_is_refused_is_a_conflict() {
    let world = World::new().await;
    let id = ArtifactId::of(b"artifact");
    world.toy.state().artifacts.push(artifact(id, true));
    world.toy.state().pin_refusal = Some("artifact is being retired".to_owned());
    let answer = world.post("/v1/services/web/deploys", Role::Deployer, &json!({ "artifact": id })).await;
    answer.expect_problem(409, "being retired");
}

#[tokio::test]
async fn lists_are_pages() {
    let world = World::new().await;
    for path in ["queues", "jobs", "artifacts", "services", "nodes", "regions"] {
        let page: Value = world.get(&format!("/v1/{path}")).await.expect_status(200).json();
        assert!(page["items"].is_array(), "{path}: {page}");
    }
    assert_eq!(world.get("/v1/whoami").await.json::<Value>(), json!({ "subject": "some-viewer", "role": "viewer" }));
}
