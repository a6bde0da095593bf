//! The schemas of all topics, as Confluent's schema registry would serve them: Kafka UI, ksqlDB, Flink, Connect and the clients
//! of every language decode our records with `schema.registry.url=…/registry` and nothing else.
//!
//! ```text
//! /registry/{path} ─▶ serve ─▶ answer(method, path, query, body) ─▶ JSON, or {error_code, message}
//! ```
//!
//! It is readable without a token, and whatever credentials a client sends are not looked at: schemas are part of the source
//! code and no secret. Nothing can be written: schemas come with a release, and their ids are fixed. A client that registers a
//! schema which is here already is answered with its id, as a registry that is read-only does.
//!
//! Subjects are named `<prefix><topic>-value`. Errors have the registry's codes, not ours: its clients know no others.

use std::sync::{Arc, LazyLock};

use apache_avro::Schema;
use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use longshore_schemas::{
    codec::{SCHEMAS, SchemaVersion},
    evolution::{self, Promise},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Shared, extract, problem::Failure};

/// Where the registry is; what follows is its own.
pub(crate) const PATH: &str = "/registry";
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.schemaregistry.v1+json");
/// Larger than any schema will be: reading one takes time that grows with it.
const SCHEMA_BYTES_MAX: usize = 256 * 1024;

static PARSED: LazyLock<Vec<Schema>> = LazyLock::new(|| {
    SCHEMAS.iter().map(|version| Schema::parse_str(version.json).expect("a test parses every schema")).collect()
});
/// What a schema is at its core: without names' shortenings, documentation, defaults and the order of attributes.
static CANONICAL: LazyLock<Vec<String>> = LazyLock::new(|| PARSED.iter().map(Schema::canonical_form).collect());

/// An answer in the registry's own terms.
#[derive(Debug, PartialEq)]
struct Refusal {
    status: StatusCode,
    code: u32,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: u32, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn no_address() -> Self {
        Self::new(StatusCode::NOT_FOUND, 404, "HTTP 404 Not Found")
    }

    fn no_subject(subject: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, 40401, format!("Subject '{subject}' not found."))
    }

    fn no_version(version: u32) -> Self {
        Self::new(StatusCode::NOT_FOUND, 40402, format!("Version {version} not found."))
    }

    fn no_schema(which: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, 40403, format!("Schema {which} not found"))
    }

    fn invalid_schema(reason: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, 42201, format!("Invalid schema: {reason}"))
    }

    fn invalid_version(version: &str) -> Self {
        let message = format!(
            "The specified version '{version}' is not a valid version id. Allowed values are between [1, 2^31-1] and the \
             string \"latest\""
        );
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, 42202, message)
    }

    fn read_only() -> Self {
        let message = "this registry is read-only: its schemas come with releases of Longshore";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, 405, message)
    }

    fn other_schema(subject: &str) -> Self {
        let message = format!(
            "The schema is not one of subject '{subject}', and this registry is read-only: its schemas come with releases of \
             Longshore. Write with one of its versions"
        );
        Self::new(StatusCode::CONFLICT, 409, message)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::new(failure.status(), failure.status().as_u16().into(), failure.detail())
    }
}

/// Every address of the registry, with every method.
pub(crate) async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().strip_prefix(PATH).unwrap_or_default().to_owned();
    let answer = match extract::receive(&parts.headers, body).await {
        Ok(body) => {
            let registry = Registry { prefix: &shared.topic_prefix };
            registry.answer(&parts.method, &path, parts.uri.query().unwrap_or_default(), &body)
        }
        Err(failure) => Err(failure.into()),
    };
    let (status, body) = match answer {
        Ok(value) => (StatusCode::OK, value.to_string()),
        Err(refusal) => {
            let body = json!({ "error_code": refusal.code, "message": refusal.message });
            (refusal.status, body.to_string())
        }
    };
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response()
}

/// What clients send along with a schema.
#[derive(Deserialize)]
struct Sent {
    schema: String,
    #[serde(default, rename = "schemaType")]
    schema_type: Option<String>,
}

struct Registry<'a> {
    prefix: &'a str,
}

impl Registry<'_> {
    fn answer(&self, method: &Method, path: &str, query: &str, body: &[u8]) -> Result<Value, Refusal> {
        let path: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match *method {
            Method::GET | Method::HEAD => self.read(&path, query),
            Method::POST => self.compare(&path, query, body),
            _ => Err(Refusal::read_only()),
        }
    }

    fn read(&self, path: &[&str], query: &str) -> Result<Value, Refusal> {
        Ok(match *path {
            [] => json!({}),
            ["schemas", "types"] => json!(["AVRO"]),
            ["schemas", "ids", id] => json!({ "schema": by_id(id)?.json }),
            ["schemas", "ids", id, "schema"] => tree(by_id(id)?),
            ["schemas", "ids", id, "subjects"] => json!([self.subject(by_id(id)?)]),
            ["schemas", "ids", id, "versions"] => {
                let version = by_id(id)?;
                json!([{ "subject": self.subject(version), "version": version.version }])
            }
            ["subjects"] => {
                let starts = query.split('&').find_map(|pair| pair.strip_prefix("subjectPrefix=")).unwrap_or_default();
                let mut subjects: Vec<_> = SCHEMAS.iter().map(|version| self.subject(version)).collect();
                subjects.sort_unstable();
                subjects.dedup();
                subjects.retain(|subject| subject.starts_with(starts));
                json!(subjects)
            }
            ["subjects", subject, "versions"] => {
                let numbers: Vec<_> = self.versions(subject)?.iter().map(|version| version.version).collect();
                json!(numbers)
            }
            ["subjects", subject, "versions", version] => self.described(self.version(subject, version)?),
            ["subjects", subject, "versions", version, "schema"] => tree(self.version(subject, version)?),
            ["subjects", subject, "versions", version, "referencedby"] => {
                self.version(subject, version)?;
                json!([])
            }
            ["config"] => json!({ "compatibilityLevel": Promise::Backward.level() }),
            ["config", subject] => {
                let topic = self.versions(subject)?[0].topic;
                json!({ "compatibilityLevel": Promise::of(topic).level() })
            }
            ["mode"] => json!({ "mode": "READONLY" }),
            ["mode", subject] => {
                self.versions(subject)?;
                json!({ "mode": "READONLY" })
            }
            _ => return Err(Refusal::no_address()),
        })
    }

    /// What is asked with a schema in the body.
    fn compare(&self, path: &[&str], query: &str, body: &[u8]) -> Result<Value, Refusal> {
        match *path {
            ["subjects", subject] => {
                let versions = self.versions(subject)?;
                let sent = parse(body)?;
                let found = same(&versions, &sent).ok_or_else(|| Refusal::no_schema("of the request"))?;
                Ok(self.described(found))
            }
            ["subjects", subject, "versions"] => {
                let Ok(versions) = self.versions(subject) else { return Err(Refusal::read_only()) };
                let sent = parse(body)?;
                let found = same(&versions, &sent).ok_or_else(|| Refusal::other_schema(subject))?;
                Ok(json!({ "id": found.id }))
            }
            ["compatibility", "subjects", subject, "versions"] => {
                let versions = self.versions(subject)?;
                compatible(&versions, &parse(body)?, query)
            }
            ["compatibility", "subjects", subject, "versions", version] => {
                let version = self.version(subject, version)?;
                compatible(&[version], &parse(body)?, query)
            }
            _ => Err(Refusal::read_only()),
        }
    }

    fn subject(&self, version: &SchemaVersion) -> String {
        format!("{}{}-value", self.prefix, version.topic)
    }

    /// All of a subject's, oldest first; there is at least one.
    fn versions(&self, subject: &str) -> Result<Vec<&'static SchemaVersion>, Refusal> {
        let topic = subject.strip_prefix(self.prefix).and_then(|rest| rest.strip_suffix("-value"));
        let versions: Vec<_> = SCHEMAS.iter().filter(|version| Some(version.topic) == topic).collect();
        if versions.is_empty() { Err(Refusal::no_subject(subject)) } else { Ok(versions) }
    }

    fn version(&self, subject: &str, text: &str) -> Result<&'static SchemaVersion, Refusal> {
        let versions = self.versions(subject)?;
        if matches!(text, "latest" | "-1") {
            return versions.last().copied().ok_or_else(|| Refusal::no_subject(subject));
        }
        let number = text.parse::<u32>().ok().filter(|number| (1..=i32::MAX as u32).contains(number));
        let number = number.ok_or_else(|| Refusal::invalid_version(text))?;
        versions.into_iter().find(|version| version.version == number).ok_or_else(|| Refusal::no_version(number))
    }

    fn described(&self, version: &SchemaVersion) -> Value {
        json!({
            "subject": self.subject(version),
            "version": version.version,
            "id": version.id,
            "schema": version.json,
        })
    }
}

fn by_id(text: &str) -> Result<&'static SchemaVersion, Refusal> {
    let id = text.parse::<u32>().ok();
    SCHEMAS.iter().find(|version| Some(version.id) == id).ok_or_else(|| Refusal::no_schema(text))
}

fn tree(version: &SchemaVersion) -> Value {
    serde_json::from_str(version.json).expect("a test parses every schema")
}

fn parse(body: &[u8]) -> Result<Schema, Refusal> {
    let sent: Sent = serde_json::from_slice(body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, 400, format!("the body is not as it must be: {error}"))
    })?;
    if let Some(other) = sent.schema_type.filter(|kind| kind != "AVRO") {
        return Err(Refusal::invalid_schema(format_args!("type {other} is not supported, AVRO is")));
    }
    if sent.schema.len() > SCHEMA_BYTES_MAX {
        return Err(Refusal::invalid_schema(format_args!("it has more than {SCHEMA_BYTES_MAX} bytes")));
    }
    Schema::parse_str(&sent.schema).map_err(Refusal::invalid_schema)
}

fn same(versions: &[&'static SchemaVersion], sent: &Schema) -> Option<&'static SchemaVersion> {
    let sent = sent.canonical_form();
    let is_same = |version: &&&'static SchemaVersion| CANONICAL[index(version)] == sent;
    versions.iter().rev().find(is_same).copied()
}

fn index(version: &SchemaVersion) -> usize {
    SCHEMAS.iter().position(|other| other.id == version.id).expect("it is one of them")
}

/// Whether a schema could be the next version after these.
fn compatible(versions: &[&'static SchemaVersion], sent: &Schema, query: &str) -> Result<Value, Refusal> {
    let mut messages = Vec::new();
    for version in versions {
        let ours = &PARSED[index(version)];
        let mut told = |which: &str, result: Result<(), String>| {
            if let Err(reason) = result {
                messages.push(format!("{which} version {}: {reason}", version.version));
            }
        };
        told("it cannot read", evolution::can_read(sent, ours));
        if Promise::of(version.topic) == Promise::Full {
            told("it cannot be read by", evolution::can_read(ours, sent));
        }
    }
    let mut answer = json!({ "is_compatible": messages.is_empty() });
    if query.split('&').any(|pair| pair == "verbose=true") {
        answer["messages"] = json!(messages);
    }
    Ok(answer)
}
