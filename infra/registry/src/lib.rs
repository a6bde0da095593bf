//! Registers Longshore's schemas with a schema registry of the installation's own, such as Confluent's or Apicurio.
//!
//! ```text
//! for each schema, in the order of the ids:
//!   look it up ─found─▶ has it our id?                     no ─▶ refused
//!       └─missing─▶ is it compatible with what is there?   no ─▶ refused
//!             └─▶ register it, with our id where the registry takes ids (mode IMPORT)
//!                   └─▶ has it our id? ─no─▶ taken back, refused
//! ```
//!
//! Records carry our ids, which are fixed and count from 1. A registry that has a mode IMPORT is told them. Others (Apicurio) take
//! none and count on their own: a registry that was empty gives the same ids, because schemas are registered in their order. Where
//! another has been registered before, ids differ, and clients would decode records with the wrong schema or with none: that
//! is an error and never a warning. Such an installation points its clients at the registry that every control node serves.
//!
//! Registering again changes nothing, so every control node does it at each start.

use std::time::Duration;

use longshore_schemas::{
    codec::{SCHEMAS, SchemaVersion},
    evolution::{self, Broken, Promise},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(20);
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A registry that speaks as Confluent's does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Such as `https://registry:8081`, of Apicurio `http://HOST:8080/apis/ccompat/v7`.
    pub url: String,
    /// For basic authentication.
    pub login: Option<(String, String)>,
    /// What the installation's topics begin with on the brokers; subjects are named after them.
    pub topic_prefix: String,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registered {
    pub new: usize,
    pub known: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("the schema registry at {url} cannot be reached: {source}")]
    Unreachable {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the schema registry answered {status} when asked for {what}: {message}")]
    Refused { what: String, status: StatusCode, message: String },
    #[error(
        "subject {subject} of the schema registry holds schemas that version {version} of ours is not compatible with \
         ({reason}): give this installation another kafka.prefix, or a registry of its own"
    )]
    Incompatible { subject: String, version: u32, reason: String },
    #[error(
        "the schema registry knows version {version} of {subject} by the id {theirs}, and our records carry {ours}: use an empty \
         registry or one with the mode IMPORT, or leave schema_registry.url out and point clients at /registry of a control node"
    )]
    OtherId { subject: String, version: u32, ours: u32, theirs: u64 },
}

impl Error {
    /// Whether it may work later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Broken(_) | Self::Incompatible { .. } | Self::OtherId { .. } => false,
        }
    }
}

/// Makes sure that the registry knows every schema by our id.
pub async fn register(config: &Config) -> Result<Registered, Error> {
    evolution::check(&SCHEMAS)?;
    let registry = Registry::new(config)?;
    let takes_ids = registry.takes_ids().await?;
    let mut registered = Registered::default();
    for version in &SCHEMAS {
        if registry.ensure(version, takes_ids).await? {
            registered.new += 1;
        } else {
            registered.known += 1;
        }
    }
    let Registered { new, known } = registered;
    tracing::info!(url = config.url, new, known, takes_ids, "the schema registry has every schema");
    Ok(registered)
}

struct Registry<'a> {
    config: &'a Config,
    http: reqwest::Client,
}

impl<'a> Registry<'a> {
    fn new(config: &'a Config) -> Result<Self, Error> {
        // Whoever was first has chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(TIMEOUT).build();
        let http = http.map_err(|source| Error::Unreachable { url: config.url.clone(), source })?;
        Ok(Self { config, http })
    }

    /// Whether a new schema can be given its id.
    async fn takes_ids(&self) -> Result<bool, Error> {
        // Apicurio answers with nothing at all.
        let (status, mode) = self.call(Method::GET, "/mode", None).await?;
        Ok(status.is_success() && mode["mode"].is_string())
    }

    /// Whether it was new.
    async fn ensure(&self, version: &SchemaVersion, takes_ids: bool) -> Result<bool, Error> {
        let subject = format!("{}{}-value", self.config.topic_prefix, version.topic);
        let schema = json!({ "schema": version.json, "schemaType": "AVRO" });
        let path = format!("/subjects/{subject}");
        let known = self.call(Method::POST, &path, Some(&schema)).await?;
        if let Some(id) = found(&path, known)? {
            check_id(&subject, version, id)?;
            return Ok(false);
        }
        self.check_compatible(&subject, version, &schema).await?;
        let id = if takes_ids { self.import(&subject, version).await? } else { self.add(&subject, &schema).await? };
        if let Err(error) = check_id(&subject, version, id) {
            self.take_back(&subject, version).await;
            return Err(error);
        }
        // From now on it holds others to it, too.
        let level = json!({ "compatibility": Promise::of(version.topic).level() });
        self.expect(Method::PUT, &format!("/config/{subject}"), Some(&level)).await?;
        Ok(true)
    }

    async fn check_compatible(&self, subject: &str, version: &SchemaVersion, schema: &Value) -> Result<(), Error> {
        let path = format!("/compatibility/subjects/{subject}/versions/latest?verbose=true");
        let (status, answer) = self.call(Method::POST, &path, Some(schema)).await?;
        // Nothing is there yet.
        if status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        let answer = success(&path, status, answer)?;
        if answer["is_compatible"] == json!(true) {
            return Ok(());
        }
        let reason = match answer["messages"].as_array() {
            Some(messages) if !messages.is_empty() => {
                messages.iter().map(Value::to_string).collect::<Vec<_>>().join("; ")
            }
            _ => "the registry says no more".to_owned(),
        };
        Err(Error::Incompatible { subject: subject.to_owned(), version: version.version, reason })
    }

    async fn add(&self, subject: &str, schema: &Value) -> Result<u64, Error> {
        let path = format!("/subjects/{subject}/versions");
        let answer = self.expect(Method::POST, &path, Some(schema)).await?;
        read_id(&path, &answer)
    }

    async fn import(&self, subject: &str, version: &SchemaVersion) -> Result<u64, Error> {
        let path = format!("/mode/{subject}");
        let importing = format!("{path}?force=true");
        self.expect(Method::PUT, &importing, Some(&json!({ "mode": "IMPORT" }))).await?;
        let schema = json!({
            "schema": version.json,
            "schemaType": "AVRO",
            "id": version.id,
            "version": version.version,
        });
        let added = self.add(subject, &schema).await;
        // Also after a failure: the subject is to be used as any.
        let back = self.expect(Method::PUT, &path, Some(&json!({ "mode": "READWRITE" }))).await;
        let id = added?;
        back?;
        Ok(id)
    }

    /// What cannot stay is not left behind for others to find.
    async fn take_back(&self, subject: &str, version: &SchemaVersion) {
        let path = format!("/subjects/{subject}/versions/{}", version.version);
        for path in [path.clone(), format!("{path}?permanent=true")] {
            if let Err(error) = self.expect(Method::DELETE, &path, None).await {
                tracing::warn!(subject, %error, "a schema with another id than ours is left in the registry");
                return;
            }
        }
    }

    async fn expect(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Error> {
        let what = format!("{method} {path}");
        let (status, answer) = self.call(method, path, body).await?;
        success(&what, status, answer)
    }

    /// The answer's status and what it holds, if that is JSON.
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), Error> {
        let unreachable = |source| Error::Unreachable { url: self.config.url.clone(), source };
        let mut request = self.http.request(method, format!("{}{path}", self.config.url.trim_end_matches('/')));
        if let Some((user, password)) = &self.config.login {
            request = request.basic_auth(user, Some(password));
        }
        if let Some(body) = body {
            request = request.header("content-type", CONTENT_TYPE).body(body.to_string());
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }
}

fn check_id(subject: &str, version: &SchemaVersion, theirs: u64) -> Result<(), Error> {
    let (subject, ours, version) = (subject.to_owned(), version.id, version.version);
    if theirs == u64::from(ours) { Ok(()) } else { Err(Error::OtherId { subject, version, ours, theirs }) }
}

/// The id of what was looked up, if it is there.
fn found(path: &str, (status, answer): (StatusCode, Value)) -> Result<Option<u64>, Error> {
    if status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    read_id(path, &success(path, status, answer)?).map(Some)
}

fn success(what: &str, status: StatusCode, answer: Value) -> Result<Value, Error> {
    if status.is_success() {
        return Ok(answer);
    }
    let message = answer["message"].as_str().map_or_else(|| answer.to_string(), str::to_owned);
    Err(Error::Refused { what: what.to_owned(), status, message })
}

fn read_id(path: &str, answer: &Value) -> Result<u64, Error> {
    answer["id"].as_u64().ok_or_else(|| Error::Refused {
        what: path.to_owned(),
        status: StatusCode::OK,
        message: format!("there is no id in {answer}"),
    })
}
