//! Records of any topic as JSON, and the filters on them.

use std::collections::BTreeMap;

use longshore_log::StoredRecord;
use longshore_schemas::{
    codec::{self, CodecError, Message},
    events::{
        ArtifactFact, ArtifactRequest, BuildFact, BuildLog, BuildRequest, DeadLetter, Event, Fact, FleetFact,
        FleetReport, GoalFact, GoalRequest, GoalState, NodeAnswer, NodeQuery, PackHint, Request, WorkerSignal,
    },
    topics::{self, Topic},
};
use serde_json::{Map, Value, json};

/// Conditions of one stream.
const CONDITIONS_MAX: usize = 16;
/// Of what cannot be decoded, this much is shown.
pub(crate) const HEX_BYTES_MAX: usize = 1_024;

/// A message's type and JSON.
pub(crate) type Decoded = Result<(&'static str, Value), CodecError>;
type Decode = fn(&[u8]) -> Decoded;

/// What decodes the records of a topic.
fn decoder(topic: &str) -> Option<Decode> {
    let table: [(Topic, Decode); 15] = [
        (topics::BUILD_REQUESTS, request::<BuildRequest>),
        (topics::BUILDS, fact::<BuildFact>),
        (topics::ARTIFACT_REQUESTS, request::<ArtifactRequest>),
        (topics::ARTIFACTS, fact::<ArtifactFact>),
        (topics::GOAL_REQUESTS, request::<GoalRequest>),
        (topics::GOALS, fact::<GoalFact>),
        (topics::FLEET_REPORTS, request::<FleetReport>),
        (topics::FLEET, fact::<FleetFact>),
        (topics::GOAL_STATE, request::<GoalState>),
        (topics::WORKER_SIGNALS, request::<WorkerSignal>),
        (topics::BUILD_LOGS, request::<BuildLog>),
        (topics::PACK_HINTS, request::<PackHint>),
        (topics::NODE_QUERIES, request::<NodeQuery>),
        (topics::NODE_ANSWERS, request::<NodeAnswer>),
        (topics::DEAD_LETTERS, letter),
    ];
    table.into_iter().find(|(known, _)| known.name == topic).map(|(_, decode)| decode)
}

fn fact<E: Event>(bytes: &[u8]) -> Decoded
where
    Fact<E>: Message,
{
    let fact: Fact<E> = codec::decode(bytes)?;
    Ok((fact.event.kind(), json(&fact)))
}

fn request<E: Event>(bytes: &[u8]) -> Decoded
where
    Request<E>: Message,
{
    let request: Request<E> = codec::decode(bytes)?;
    Ok((request.event.kind(), json(&request)))
}

/// Without what it holds, which may be large and is in `dead-letters show`.
fn letter(bytes: &[u8]) -> Decoded {
    let DeadLetter { topic, partition, offset, error, key, value } = codec::decode(bytes)?;
    let key = String::from_utf8_lossy(&key);
    let of = json!({ "topic": topic, "partition": partition, "offset": offset, "key": key, "bytes": value.len() });
    Ok(("DeadLetter", json!({ "error": error, "event": of })))
}

fn json(message: &impl serde::Serialize) -> Value {
    serde_json::to_value(message).unwrap_or_else(|error| json!({ "unprintable": error.to_string() }))
}

/// The bytes of a topic's record. `None` if there is no such topic.
pub(crate) fn value(topic: &str, bytes: &[u8]) -> Option<Decoded> {
    decoder(topic).map(|decode| decode(bytes))
}

/// A record's type and what it says, with where it stands, when the log took it, its key and its headers.
pub(crate) fn record(stored: &StoredRecord) -> (&'static str, Value) {
    let StoredRecord { source, offset, at, record } = stored;
    let (kind, data) = match record.value.as_deref().map(|bytes| (bytes, value(&source.topic, bytes))) {
        Some((_, Some(Ok(decoded)))) => decoded,
        Some((bytes, Some(Err(error)))) => {
            tracing::debug!(partition = %source, offset, %error, "a record cannot be decoded");
            ("Undecodable", json!({ "error": error.to_string(), "hex": hex(bytes) }))
        }
        Some((bytes, None)) => ("Undecodable", json!({ "error": "no topic of this name", "hex": hex(bytes) })),
        None => ("Tombstone", json!({})),
    };
    let mut fields = match data {
        Value::Object(fields) => fields,
        other => Map::from_iter([("event".to_owned(), other)]),
    };
    fields.insert("topic".to_owned(), json!(&*source.topic));
    fields.insert("partition".to_owned(), json!(source.partition));
    fields.insert("offset".to_owned(), json!(offset));
    fields.insert("time".to_owned(), json!(at.to_string()));
    fields.insert("key".to_owned(), json!(String::from_utf8_lossy(&record.key)));
    if !record.headers.is_empty() {
        fields.insert("headers".to_owned(), json!(headers(&record.headers, "")));
    }
    (kind, Value::Object(fields))
}

/// Headers as text, those whose names begin so, without that beginning.
pub(crate) fn headers(headers: &[(String, bytes::Bytes)], prefix: &str) -> BTreeMap<String, String> {
    let text = |(name, value): &(String, bytes::Bytes)| {
        Some((name.strip_prefix(prefix)?.to_owned(), String::from_utf8_lossy(value).into_owned()))
    };
    headers.iter().filter_map(text).collect()
}

/// The first bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for byte in bytes.iter().take(HEX_BYTES_MAX) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What a record must be to be shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    kinds: Vec<String>,
    /// Path and value.
    conditions: Vec<(String, String)>,
    /// Whether each transaction's `Processed` is shown though nobody asked for it.
    pub(crate) all: bool,
}

impl Filter {
    /// `kinds` has commas between; `conditions` is an object of paths and texts, in JSON.
    pub(crate) fn parse(kinds: Option<&str>, conditions: Option<&str>, all: bool) -> Result<Self, String> {
        let kinds = kinds.into_iter().flat_map(|kinds| kinds.split(',')).map(str::to_owned).collect();
        let conditions: BTreeMap<String, String> = match conditions {
            Some(text) => serde_json::from_str(text).map_err(|error| {
                format!("where: give an object of paths and texts, such as {{\"key\":\"web\"}}: {error}")
            })?,
            None => BTreeMap::new(),
        };
        if conditions.len() > CONDITIONS_MAX {
            return Err(format!("where: give at most {CONDITIONS_MAX} conditions"));
        }
        Ok(Self { kinds, conditions: conditions.into_iter().collect(), all })
    }

    pub(crate) fn takes(&self, kind: &str, data: &Value) -> bool {
        let kinds = match self.kinds.as_slice() {
            [] => self.all || kind != "Processed",
            kinds => kinds.iter().any(|wanted| wanted == kind),
        };
        kinds && self.conditions.iter().all(|(path, wanted)| is(data, path, wanted))
    }
}

/// Whether the value at the path, from the envelope or from the event on, is this text.
fn is(data: &Value, path: &str, wanted: &str) -> bool {
    let found = |value: &Value| match value {
        Value::String(text) => text == wanted,
        Value::Null | Value::Array(_) | Value::Object(_) => false,
        number => {
            let text = number.to_string();
            text == wanted
        }
    };
    let from = |root: &Value| {
        let steps = path.split('.').try_fold(root, |value, step| value.get(step));
        steps.is_some_and(found)
    };
    let event = data.get("event");
    // A union's branch may stand under its name.
    let branch = event.and_then(Value::as_object).and_then(|event| event.values().next());
    from(data) || event.is_some_and(from) || branch.is_some_and(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_has_a_decoder() {
        for topic in topics::ALL {
            assert!(decoder(topic.name).is_some(), "{}", topic.name);
        }
    }

    #[test]
    fn filters_look_at_the_envelope_and_into_the_event() {
        let data = json!({
            "actor": "ada", "offset": 7, "key": "default",
            "event": { "job": "default-1", "attempt": 2, "build": { "name": "web" } },
        });
        let takes = |kinds: Option<&str>, conditions: &str| {
            Filter::parse(kinds, Some(conditions), false).expect("valid").takes("JobQueued", &data)
        };
        for conditions in [
            r#"{}"#,
            r#"{"actor":"ada"}"#,
            r#"{"event.job":"default-1"}"#,
            r#"{"job":"default-1","build.name":"web","offset":"7"}"#,
        ] {
            assert!(takes(None, conditions), "{conditions}");
            assert!(takes(Some("JobStarted,JobQueued"), conditions), "{conditions}");
            assert!(!takes(Some("JobStarted"), conditions), "{conditions}");
        }
        for conditions in [r#"{"actor":"a"}"#, r#"{"job":"default-2"}"#, r#"{"build":"web"}"#, r#"{"no.such":"x"}"#] {
            assert!(!takes(None, conditions), "{conditions}");
        }
        let plain = Filter::parse(None, None, false).expect("valid");
        assert!(!plain.takes("Processed", &data) && Filter { all: true, ..plain.clone() }.takes("Processed", &data));
        for bad in ["x", "[]", r#"{"a":1}"#, r#"{"a":"1""#] {
            assert!(Filter::parse(None, Some(bad), false).expect_err(bad).starts_with("where:"), "{bad}");
        }
    }
}
