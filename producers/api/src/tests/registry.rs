//! The registry as its clients see it: addresses, answers and error codes side by side.

use axum::{body::Body, http::Request};
use longshore_schemas::{codec::SCHEMAS, topics};
use serde_json::{Value, json};

use super::world::{Answered, World};

const SIGNALS: &str = "longshore.worker-signals-value";

async fn call(world: &World, method: &str, path: &str, body: &Value) -> Answered {
    let request = Request::builder().method(method).uri(format!("/registry{path}"));
    // As Confluent's clients do it, with credentials that mean nothing here.
    let request = request
        .header("content-type", "application/vnd.schemaregistry.v1+json")
        .header("authorization", "Basic dXNlcjpwYXNzd29yZA==");
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let answer = world.send(request.body(body).expect("valid")).await;
    assert_eq!(answer.header("content-type"), "application/vnd.schemaregistry.v1+json", "{method} {path}");
    answer
}

fn schema_of(topic: &str) -> &'static str {
    SCHEMAS.iter().find(|version| version.topic == topic).expect("a schema").json
}

#[tokio::test]
async fn what_can_be_read() {
    let world = World::new().await;
    let text = schema_of("worker-signals");
    let tree: Value = serde_json::from_str(text).expect("JSON");
    let described = json!({ "subject": SIGNALS, "version": 1, "id": 10, "schema": text });
    let table = [
        ("", json!({})),
        ("/schemas/types", json!(["AVRO"])),
        ("/schemas/ids/10", json!({ "schema": text })),
        ("/schemas/ids/10?subject=longshore.worker-signals-value&fetchMaxId=false", json!({ "schema": text })),
        ("/schemas/ids/10/schema", tree.clone()),
        ("/schemas/ids/10/versions", json!([{ "subject": SIGNALS, "version": 1 }])),
        ("/schemas/ids/10/subjects", json!([SIGNALS])),
        ("/subjects?subjectPrefix=longshore.worker-s", json!([SIGNALS])),
        ("/subjects/longshore.worker-signals-value/versions", json!([1])),
        ("/subjects/longshore.worker-signals-value/versions/1", described.clone()),
        ("/subjects/longshore.worker-signals-value/versions/latest", described.clone()),
        ("/subjects/longshore.worker-signals-value/versions/-1", described),
        ("/subjects/longshore.worker-signals-value/versions/latest/schema", tree),
        ("/subjects/longshore.worker-signals-value/versions/1/referencedby", json!([])),
        ("/config", json!({ "compatibilityLevel": "BACKWARD_TRANSITIVE" })),
        ("/config/longshore.worker-signals-value", json!({ "compatibilityLevel": "BACKWARD_TRANSITIVE" })),
        ("/config/longshore.dead-letters-value", json!({ "compatibilityLevel": "FULL_TRANSITIVE" })),
        ("/mode", json!({ "mode": "READONLY" })),
        ("/mode/longshore.worker-signals-value", json!({ "mode": "READONLY" })),
    ];
    for (path, expected) in table {
        let answer = call(&world, "GET", path, &Value::Null).await.expect_status(200);
        assert_eq!(answer.json::<Value>(), expected, "{path}");
    }
    let subjects: Vec<String> = call(&world, "GET", "/subjects", &Value::Null).await.json();
    let mut expected: Vec<_> = topics::ALL.iter().map(|topic| format!("longshore.{}-value", topic.name)).collect();
    expected.sort();
    assert_eq!(subjects, expected);
}

#[tokio::test]
async fn a_schema_is_found_however_it_is_written() {
    let world = World::new().await;
    let text = schema_of("builds");
    let compact = serde_json::from_str::<Value>(text).expect("JSON").to_string();
    let parsed = apache_avro::Schema::parse_str(text).expect("Avro");
    for schema in [text.to_owned(), compact, parsed.canonical_form()] {
        let body = json!({ "schema": schema, "schemaType": "AVRO" });
        let found: Value =
            call(&world, "POST", "/subjects/longshore.builds-value", &body).await.expect_status(200).json();
        assert_eq!((&found["id"], &found["version"]), (&json!(2), &json!(1)));
        // What serializers do that register for themselves.
        let path = "/subjects/longshore.builds-value/versions?normalize=false";
        let registered: Value = call(&world, "POST", path, &body).await.expect_status(200).json();
        assert_eq!(registered, json!({ "id": 2 }));
    }
}

#[tokio::test]
async fn a_change_is_compared_but_not_taken() {
    let world = World::new().await;
    let mut wider: Value = serde_json::from_str(schema_of("builds")).expect("JSON");
    let fields = wider["fields"].as_array_mut().expect("fields");
    fields.push(json!({ "name": "hint", "type": ["null", "string"], "default": null }));
    let mut needing = wider.clone();
    needing["fields"][6] = json!({ "name": "hint", "type": "string" });
    let base = "/compatibility/subjects/longshore.builds-value/versions";
    for (schema, fits) in [(&wider, true), (&needing, false)] {
        let body = json!({ "schema": schema.to_string() });
        for path in [format!("{base}/latest?verbose=true"), base.to_owned()] {
            let answer: Value = call(&world, "POST", &path, &body).await.expect_status(200).json();
            assert_eq!(answer["is_compatible"], json!(fits), "{answer}");
            let messages = answer["messages"].as_array().map(Vec::len);
            assert_eq!(messages, path.contains("verbose").then_some(usize::from(!fits)), "{answer}");
        }
        let answer = call(&world, "POST", "/subjects/longshore.builds-value/versions", &body).await;
        assert_eq!(answer.expect_status(409).json::<Value>()["error_code"], 409);
    }
}

#[tokio::test]
async fn errors_have_the_registrys_codes() {
    let world = World::new().await;
    let good = json!({ "schema": "\"string\"" });
    let (none, bad) = (Value::Null, json!({ "schema": "{\"type\": \"rekord\"}" }));
    let proto = json!({ "schema": "message A {}", "schemaType": "PROTOBUF" });
    let huge = json!({ "schema": "x".repeat(300 * 1024) });
    let subject = "/subjects/longshore.builds-value";
    let table = [
        ("GET", "/subjects/builds-value/versions", &none, 404, 40401),
        ("GET", "/subjects/longshore.builds/versions", &none, 404, 40401),
        ("GET", "/subjects/longshore.nothing-value/versions/1", &none, 404, 40401),
        ("GET", "/config/nothing", &none, 404, 40401),
        ("GET", "/mode/nothing", &none, 404, 40401),
        ("GET", "/subjects/%00%ff/versions", &none, 404, 40401),
        ("GET", "/subjects/longshore.builds-value/versions/9", &none, 404, 40402),
        ("GET", "/subjects/longshore.builds-value/versions/0", &none, 422, 42202),
        ("GET", "/subjects/longshore.builds-value/versions/newest", &none, 422, 42202),
        ("GET", "/subjects/longshore.builds-value/versions/4294967296", &none, 422, 42202),
        ("GET", "/schemas/ids/0", &none, 404, 40403),
        ("GET", "/schemas/ids/999/schema", &none, 404, 40403),
        ("GET", "/schemas/ids/two/versions", &none, 404, 40403),
        ("GET", "/schemas", &none, 404, 404),
        ("GET", "/nothing", &none, 404, 404),
        ("POST", subject, &good, 404, 40403),
        ("POST", "/subjects/nothing", &good, 404, 40401),
        ("POST", subject, &bad, 422, 42201),
        ("POST", subject, &proto, 422, 42201),
        ("POST", subject, &huge, 422, 42201),
        ("POST", subject, &none, 400, 400),
        ("POST", subject, &json!([1]), 400, 400),
        ("POST", "/subjects/nothing/versions", &good, 405, 405),
        ("DELETE", subject, &none, 405, 405),
        ("DELETE", "/subjects/longshore.builds-value/versions/1", &none, 405, 405),
        ("PUT", "/config", &json!({ "compatibility": "NONE" }), 405, 405),
        ("PUT", "/mode", &json!({ "mode": "READWRITE" }), 405, 405),
    ];
    for (method, path, body, status, code) in table {
        let answer: Value = call(&world, method, path, body).await.expect_status(status).json();
        assert_eq!(answer["error_code"], code, "{method} {path}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
    }
    let too_large = Value::String("x".repeat(2 * 1024 * 1024));
    assert_eq!(call(&world, "POST", subject, &too_large).await.expect_status(413).json::<Value>()["error_code"], 413);
}
