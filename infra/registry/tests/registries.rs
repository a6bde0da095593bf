//! A real Apicurio, and a stand-in for a registry that takes ids, as Confluent's does by its documentation.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use longshore_kafka::Apicurio;
use longshore_registry::{Config, Error, Registered, register};
use longshore_schemas::codec::SCHEMAS;
use serde_json::{Value, json};

fn config(url: &str, prefix: &str) -> Config {
    Config { url: url.to_owned(), login: None, topic_prefix: prefix.to_owned() }
}

async fn apicurio() -> Apicurio {
    tokio::task::spawn_blocking(Apicurio::start).await.unwrap().unwrap()
}

async fn get(url: &str, path: &str) -> Option<Value> {
    let response = client().get(format!("{url}{path}")).send().await.ok()?;
    response.status().is_success().then_some(())?;
    response.json().await.ok()
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

async fn put_schema(url: &str, subject: &str, schema: &Value) {
    let request = client().post(format!("{url}/subjects/{subject}/versions"));
    let request = request.json(&json!({ "schema": schema.to_string() }));
    assert!(request.send().await.unwrap().status().is_success());
}

/// What clients find: each schema by the id that our records carry.
async fn check_ids(url: &str, prefix: &str) {
    for version in &SCHEMAS {
        let found = get(url, &format!("/schemas/ids/{}", version.id)).await.expect("the id is known");
        let found: Value = serde_json::from_str(found["schema"].as_str().unwrap()).unwrap();
        assert_eq!(found, serde_json::from_str::<Value>(version.json).unwrap(), "{}", version.topic);
        let path = format!("/subjects/{prefix}{}-value/versions/{}", version.topic, version.version);
        assert_eq!(get(url, &path).await.expect("a version")["id"], version.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_apicurio_takes_every_schema_once() {
    let apicurio = apicurio().await;
    let all = SCHEMAS.len();
    let config_of = |prefix| config(&apicurio.url(), prefix);
    assert_eq!(register(&config_of("longshore.")).await.unwrap(), Registered { new: all, known: 0 });
    check_ids(&apicurio.url(), "longshore.").await;
    assert_eq!(register(&config_of("longshore.")).await.unwrap(), Registered { new: 0, known: all });
    // A second installation has the same schemas, and so the same ids.
    assert_eq!(register(&config_of("staging.")).await.unwrap(), Registered { new: all, known: 0 });
    check_ids(&apicurio.url(), "staging.").await;
    // It now holds others to what was promised.
    let level = get(&apicurio.url(), "/config/longshore.dead-letters-value").await.unwrap();
    assert_eq!(level["compatibilityLevel"], "FULL_TRANSITIVE");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apicurio_in_use_is_refused_and_left_as_it_was() {
    let apicurio = apicurio().await;
    let other = json!({ "type": "record", "name": "Other", "fields": [{ "name": "x", "type": "int" }] });
    put_schema(&apicurio.url(), "longshore.build-requests-value", &other).await;
    let put = client().put(format!("{}/config/longshore.build-requests-value", apicurio.url()));
    put.json(&json!({ "compatibility": "BACKWARD" })).send().await.unwrap().error_for_status().unwrap();

    // What is not ours stands where ours must be.
    match register(&config(&apicurio.url(), "longshore.")).await {
        Err(Error::Incompatible { subject, version: 1, .. }) => assert_eq!(subject, "longshore.build-requests-value"),
        other => panic!("{other:?}"),
    }
    // The first id is taken.
    match register(&config(&apicurio.url(), "mine.")).await {
        Err(error @ Error::OtherId { ours: 1, theirs: 2.., .. }) => {
            assert!(!error.is_passing() && error.to_string().contains("mine.build-requests-value"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let subjects = get(&apicurio.url(), "/subjects").await.unwrap();
    assert_eq!(subjects, json!(["longshore.build-requests-value"]), "what could not stay was taken back");
}

/// As much of Confluent's registry as is asked of it: modes, ids and versions that are given.
#[derive(Default)]
struct Stand {
    modes: BTreeMap<String, String>,
    /// By id: subject, version, schema.
    schemas: BTreeMap<u64, (String, u64, String)>,
}

type Shared = Arc<Mutex<Stand>>;

async fn stand(State(stand): State<Shared>, method: Method, path: Option<Path<String>>, body: Bytes) -> Response {
    let mut stand = stand.lock().unwrap();
    let path = path.map(|Path(path)| path).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let none = || (StatusCode::NOT_FOUND, Json(json!({ "error_code": 40401, "message": "not found" }))).into_response();
    let parts: Vec<&str> = path.split('/').collect();
    match (method.as_str(), &parts[..]) {
        ("GET", ["mode"]) => Json(json!({ "mode": "READWRITE" })).into_response(),
        ("PUT", ["mode", subject]) => {
            stand.modes.insert((*subject).to_owned(), body["mode"].as_str().unwrap().to_owned());
            Json(body).into_response()
        }
        ("PUT", ["config", _]) => Json(body).into_response(),
        ("POST", ["subjects", subject]) => {
            let text = body["schema"].as_str().unwrap();
            let mut all = stand.schemas.iter();
            match all.find(|(_, (of, _, schema))| of == subject && schema == text) {
                Some((id, (_, version, _))) => Json(json!({ "id": id, "version": version })).into_response(),
                None => none(),
            }
        }
        ("POST", ["subjects", subject, "versions"]) => {
            let importing = stand.modes.get(*subject).is_some_and(|mode| mode == "IMPORT");
            let given = body["id"].as_u64().zip(body["version"].as_u64());
            let Some((id, version)) = given.filter(|_| importing) else {
                let refusal = json!({ "error_code": 42205, "message": "not in mode IMPORT" });
                return (StatusCode::UNPROCESSABLE_ENTITY, Json(refusal)).into_response();
            };
            let schema = body["schema"].as_str().unwrap().to_owned();
            stand.schemas.insert(id, ((*subject).to_owned(), version, schema));
            Json(json!({ "id": id })).into_response()
        }
        _ => none(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_takes_ids_is_told_ours() {
    let shared = Shared::default();
    let router = Router::new().fallback(stand).route("/{*path}", axum::routing::any(stand)).with_state(shared.clone());
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let all = SCHEMAS.len();
    assert_eq!(register(&config(&url, "x.")).await.unwrap(), Registered { new: all, known: 0 });
    {
        let stand = shared.lock().unwrap();
        assert_eq!(stand.schemas.keys().copied().collect::<Vec<_>>(), (1..=all as u64).collect::<Vec<_>>());
        assert!(stand.modes.values().all(|mode| mode == "READWRITE"), "no subject stays open for imports");
        let topics: BTreeSet<_> = SCHEMAS.iter().map(|version| version.topic).collect();
        assert_eq!(stand.modes.len(), topics.len());
    }
    assert_eq!(register(&config(&url, "x.")).await.unwrap(), Registered { new: 0, known: all });

    // Somebody else has given ours another id.
    {
        let mut stand = shared.lock().unwrap();
        let first = stand.schemas.remove(&1).unwrap();
        stand.schemas.insert(77, first);
    }
    match register(&config(&url, "x.")).await {
        Err(Error::OtherId { ours: 1, theirs: 77, version: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_may_come_later() {
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let error = register(&config(&format!("http://127.0.0.1:{port}"), "longshore.")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_passing(), "{error}");
}
