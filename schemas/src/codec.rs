//! How messages are written to topics: Avro in Confluent's wire format (a zero byte, the schema's id, the datum), so that
//! the usual tools decode them.
//!
//! The datum is written from and read into the Rust types directly ([`write`], [`read`]): several times as fast as through
//! apache-avro, and no length is believed. apache-avro stays what says how it must be ([`reference`]): tests hold every
//! message against it, byte for byte and in both directions.
//!
//! A record of an older version is first written as the newest would have it ([`resolve`]); one of the newest costs nothing more.
//!
//! The schemas are the files under `schemas/avro/`, one per topic and version. A test holds the newest of each against
//! the Rust types. A released file is never edited: `RELEASED` pins its hash, and the golden bytes of every version are
//! read with today's code.

mod read;
pub mod reference;
mod resolve;
mod write;

use std::{
    fmt,
    sync::{LazyLock, OnceLock},
};

use apache_avro::{AvroSchema, Schema};
use serde::{Serialize, de, de::DeserializeOwned, ser};

use self::resolve::Resolution;
use crate::{
    events::{
        ArtifactFact, ArtifactRequest, BuildFact, BuildLog, BuildRequest, DeadLetter, Fact, FleetFact, FleetReport,
        GoalFact, GoalRequest, GoalState, NodeAnswer, NodeQuery, PackHint, Request, WorkerSignal,
    },
    topics,
};

const MAGIC: u8 = 0;
const HEADER_BYTES: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("the record is not in Confluent's wire format: it needs a zero byte and a 4-byte schema id first")]
    NotWireFormat,
    #[error("schema id {id} is not one of topic {topic}")]
    UnknownSchema { id: u32, topic: &'static str },
    #[error("the record does not follow schema {id} of topic {topic}: {source}")]
    Malformed {
        id: u32,
        topic: &'static str,
        #[source]
        source: DatumError,
    },
    #[error("{bytes} bytes follow the record of topic {topic}")]
    Trailing { bytes: usize, topic: &'static str },
    #[error("the event cannot be written: {0}")]
    Unwritable(#[source] DatumError),
}

/// Why bytes are not a value of the type, or a value cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DatumError(Box<str>);

impl DatumError {
    fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string().into())
    }
}

impl ser::Error for DatumError {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::new(reason)
    }
}

impl de::Error for DatumError {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::new(reason)
    }
}

/// One version of a topic's schema.
pub struct SchemaVersion {
    /// The id on the wire.
    pub id: u32,
    pub topic: &'static str,
    pub version: u32,
    pub json: &'static str,
}

/// Every schema that was ever released or is about to be, oldest first.
pub static SCHEMAS: [SchemaVersion; 25] = [
    SchemaVersion { id: 1, topic: "build-requests", version: 1, json: include_str!("../avro/build-requests.v1.avsc") },
    SchemaVersion { id: 2, topic: "builds", version: 1, json: include_str!("../avro/builds.v1.avsc") },
    SchemaVersion {
        id: 3,
        topic: "artifact-requests",
        version: 1,
        json: include_str!("../avro/artifact-requests.v1.avsc"),
    },
    SchemaVersion { id: 4, topic: "artifacts", version: 1, json: include_str!("../avro/artifacts.v1.avsc") },
    SchemaVersion { id: 5, topic: "goal-requests", version: 1, json: include_str!("../avro/goal-requests.v1.avsc") },
    SchemaVersion { id: 6, topic: "goals", version: 1, json: include_str!("../avro/goals.v1.avsc") },
    SchemaVersion { id: 7, topic: "fleet-reports", version: 1, json: include_str!("../avro/fleet-reports.v1.avsc") },
    SchemaVersion { id: 8, topic: "fleet", version: 1, json: include_str!("../avro/fleet.v1.avsc") },
    SchemaVersion { id: 9, topic: "goal-state", version: 1, json: include_str!("../avro/goal-state.v1.avsc") },
    SchemaVersion { id: 10, topic: "worker-signals", version: 1, json: include_str!("../avro/worker-signals.v1.avsc") },
    SchemaVersion { id: 11, topic: "build-logs", version: 1, json: include_str!("../avro/build-logs.v1.avsc") },
    SchemaVersion { id: 12, topic: "dead-letters", version: 1, json: include_str!("../avro/dead-letters.v1.avsc") },
    SchemaVersion { id: 13, topic: "pack-hints", version: 1, json: include_str!("../avro/pack-hints.v1.avsc") },
    SchemaVersion { id: 14, topic: "artifacts", version: 2, json: include_str!("../avro/artifacts.v2.avsc") },
    SchemaVersion { id: 15, topic: "artifacts", version: 3, json: include_str!("../avro/artifacts.v3.avsc") },
    SchemaVersion {
        id: 16,
        topic: "artifact-requests",
        version: 2,
        json: include_str!("../avro/artifact-requests.v2.avsc"),
    },
    SchemaVersion { id: 17, topic: "build-requests", version: 2, json: include_str!("../avro/build-requests.v2.avsc") },
    SchemaVersion { id: 18, topic: "builds", version: 2, json: include_str!("../avro/builds.v2.avsc") },
    SchemaVersion { id: 19, topic: "goal-requests", version: 2, json: include_str!("../avro/goal-requests.v2.avsc") },
    SchemaVersion { id: 20, topic: "goals", version: 2, json: include_str!("../avro/goals.v2.avsc") },
    SchemaVersion { id: 21, topic: "goal-state", version: 2, json: include_str!("../avro/goal-state.v2.avsc") },
    SchemaVersion { id: 22, topic: "fleet-reports", version: 2, json: include_str!("../avro/fleet-reports.v2.avsc") },
    SchemaVersion { id: 23, topic: "fleet", version: 2, json: include_str!("../avro/fleet.v2.avsc") },
    SchemaVersion { id: 24, topic: "node-queries", version: 1, json: include_str!("../avro/node-queries.v1.avsc") },
    SchemaVersion { id: 25, topic: "node-answers", version: 1, json: include_str!("../avro/node-answers.v1.avsc") },
];

/// The newest schema of one topic, and those before it.
pub struct Codec {
    id: u32,
    topic: &'static str,
    json: &'static str,
    reference: OnceLock<reference::Reference>,
    older: Vec<Older>,
}

struct Older {
    id: u32,
    json: &'static str,
    /// Made when the first record of it is met.
    resolution: OnceLock<Result<Resolution, String>>,
}

impl Codec {
    fn of(versions: &[SchemaVersion], topic: &'static str) -> Self {
        let mut versions = versions.iter().filter(|version| version.topic == topic).rev();
        let SchemaVersion { id, topic, json, .. } = *versions.next().expect("every message's topic has a schema");
        let older = versions.map(|version| Older { id: version.id, json: version.json, resolution: OnceLock::new() });
        Self { id, topic, json, reference: OnceLock::new(), older: older.collect() }
    }

    /// What a record of an older schema would be in the newest.
    #[cold]
    fn resolve(&self, id: u32, datum: &mut &[u8]) -> Result<Vec<u8>, CodecError> {
        let topic = self.topic;
        let older = self.older.iter().find(|older| older.id == id).ok_or(CodecError::UnknownSchema { id, topic })?;
        let resolution = older.resolution.get_or_init(|| {
            let [written, newest] = [older.json, self.json].map(Schema::parse_str);
            let [written, newest] = [written, newest].map(|schema| schema.map_err(|error| error.to_string()));
            Resolution::new(&written?, &newest?).map_err(|error| error.to_string())
        });
        let resolved = match resolution {
            Ok(resolution) => resolution.apply(datum),
            Err(reason) => Err(DatumError::new(reason)),
        };
        resolved.map_err(|source| CodecError::Malformed { id, topic, source })
    }
}

/// What can stand on a topic.
pub trait Message: Serialize + DeserializeOwned + AvroSchema {
    fn codec() -> &'static Codec;
}

macro_rules! messages {
    ($($message:ty => $topic:ident),+ $(,)?) => {
        $(impl Message for $message {
            fn codec() -> &'static Codec {
                static CODEC: LazyLock<Codec> = LazyLock::new(|| Codec::of(&SCHEMAS, topics::$topic.name));
                &CODEC
            }
        })+

        /// Each topic's schema as the Rust types have it, for the test that compares it with the files.
        pub fn derived_schemas() -> Vec<(&'static str, Schema)> {
            vec![$((topics::$topic.name, <$message>::get_schema())),+]
        }
    };
}

messages! {
    Request<BuildRequest> => BUILD_REQUESTS,
    Fact<BuildFact> => BUILDS,
    Request<ArtifactRequest> => ARTIFACT_REQUESTS,
    Fact<ArtifactFact> => ARTIFACTS,
    Request<GoalRequest> => GOAL_REQUESTS,
    Fact<GoalFact> => GOALS,
    Request<FleetReport> => FLEET_REPORTS,
    Fact<FleetFact> => FLEET,
    Request<GoalState> => GOAL_STATE,
    Request<WorkerSignal> => WORKER_SIGNALS,
    Request<BuildLog> => BUILD_LOGS,
    Request<PackHint> => PACK_HINTS,
    Request<NodeQuery> => NODE_QUERIES,
    Request<NodeAnswer> => NODE_ANSWERS,
    DeadLetter => DEAD_LETTERS,
}

/// The bytes of a message, as they stand on its topic.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let mut bytes = header(M::codec());
    write::to_bytes(message, &mut bytes).map_err(CodecError::Unwritable)?;
    Ok(bytes)
}

/// Reads a message of any version; its schema id must be one of the message's topic.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, CodecError> {
    decode_with(M::codec(), bytes, |datum| read::from_bytes(datum))
}

fn header(codec: &Codec) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    bytes.push(MAGIC);
    bytes.extend_from_slice(&codec.id.to_be_bytes());
    bytes
}

/// `read` gets what the newest schema has written, or would have.
fn decode_with<M: Message>(
    codec: &Codec,
    bytes: &[u8],
    read: impl FnOnce(&mut &[u8]) -> Result<M, DatumError>,
) -> Result<M, CodecError> {
    let (header, mut datum) = bytes.split_at_checked(HEADER_BYTES).ok_or(CodecError::NotWireFormat)?;
    let [MAGIC, id @ ..] = header else { return Err(CodecError::NotWireFormat) };
    let id = u32::from_be_bytes(id.try_into().expect("a header has four bytes after the first"));
    let topic = codec.topic;
    let malformed = |source| CodecError::Malformed { id, topic, source };
    let message = if id == codec.id {
        read(&mut datum).map_err(malformed)?
    } else {
        let resolved = codec.resolve(id, &mut datum)?;
        read(&mut resolved.as_slice()).map_err(malformed)?
    };
    if datum.is_empty() { Ok(message) } else { Err(CodecError::Trailing { bytes: datum.len(), topic }) }
}

#[cfg(test)]
mod tests {
    use apache_avro::{types::Value, writer::datum::GenericDatumWriter};
    use serde_json::json;

    use super::*;
    use crate::events::{Cause, Consumed, JobCanceled, Trigger};

    const NEWEST: u32 = 1_000;

    /// Today's schema of the facts of builds as the second version. The first had no `trace`, no `report` and one event less,
    /// and a text that nobody needs any more.
    fn versions() -> [SchemaVersion; 2] {
        let today = SCHEMAS.iter().find(|version| version.topic == topics::BUILDS.name).expect("a schema");
        let mut first: serde_json::Value = serde_json::from_str(today.json).expect("JSON");
        let fields = first["fields"].as_array_mut().expect("fields");
        fields.retain(|field| field["name"] != "trace");
        fields.insert(0, json!({ "name": "note", "type": "string" }));
        for field in fields {
            match field["name"].as_str() {
                Some("cause") => {
                    let consumed = &mut field["type"]["fields"][2]["type"][0];
                    assert_eq!(consumed["name"], "Consumed");
                    consumed["fields"].as_array_mut().expect("fields").retain(|field| field["name"] != "report");
                }
                Some("event") => {
                    let events = field["type"].as_array_mut().expect("events");
                    events.retain(|event| event["name"] != "JobRequeued");
                }
                _ => {}
            }
        }
        let json = first.to_string().leak();
        [
            SchemaVersion { id: today.id, topic: today.topic, version: 1, json },
            SchemaVersion { id: NEWEST, topic: today.topic, version: 2, json: today.json },
        ]
    }

    fn record(fields: Vec<(&str, Value)>) -> Value {
        Value::Record(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    /// As a release that knew the first version only would have written it.
    fn old_record(version: &SchemaVersion) -> Vec<u8> {
        let schema = Schema::parse_str(version.json).expect("a schema");
        let consumed = vec![
            ("topic", text("build-requests")),
            ("partition", Value::Long(2)),
            ("offset", Value::Long(17)),
            ("request", text("r-1")),
        ];
        let trigger = Value::Union(0, Box::new(record(consumed)));
        let cause = record(vec![("index", Value::Long(0)), ("count", Value::Long(2)), ("trigger", trigger)]);
        // It stood third where it stands fourth now.
        let canceled = record(vec![("job", text("web-1")), ("attempt", Value::Long(3))]);
        let fact = record(vec![
            ("note", text("forgotten")),
            ("sequence", Value::Long(5)),
            ("at", Value::TimestampMillis(1_700_000_000_123)),
            ("actor", text("ada")),
            ("cause", cause),
            ("event", Value::Union(2, Box::new(canceled))),
        ]);
        let mut bytes = [&[MAGIC][..], &version.id.to_be_bytes()].concat();
        let writer = GenericDatumWriter::builder(&schema).build().expect("a writer");
        writer.write_value(&mut bytes, fact).expect("it follows the schema");
        bytes
    }

    fn decode(codec: &Codec, bytes: &[u8]) -> Result<Fact<BuildFact>, CodecError> {
        decode_with(codec, bytes, |datum| read::from_bytes(datum))
    }

    #[test]
    fn what_an_older_schema_has_written_is_read() {
        let versions = versions();
        crate::evolution::check(&versions).expect("such a change is allowed");
        let codec = Codec::of(&versions, topics::BUILDS.name);
        let old = old_record(&versions[0]);
        let consumed = Consumed {
            topic: "build-requests".to_owned(),
            partition: 2,
            offset: 17,
            request: "r-1".parse().expect("an id"),
            report: None,
        };
        let expected = Fact {
            sequence: 5,
            at: crate::Timestamp(1_700_000_000_123),
            actor: "ada".into(),
            trace: None,
            cause: Cause { index: 0, count: 2, trigger: Trigger::Consumed(consumed) },
            event: BuildFact::from(JobCanceled { job: "web-1".parse().expect("a job"), attempt: 3 }),
        };
        assert_eq!(decode(&codec, &old).expect("an old record"), expected);
        // The newest is read as ever, and ids are not mistaken for each other.
        let mut new = header(&codec);
        write::to_bytes(&expected, &mut new).expect("can be written");
        assert_eq!(decode(&codec, &new).expect("a new record"), expected);
        new[1..HEADER_BYTES].copy_from_slice(&versions[0].id.to_be_bytes());
        decode(&codec, &new).expect_err("not what the older schema writes");
        new[1..HEADER_BYTES].copy_from_slice(&7_u32.to_be_bytes());
        assert!(matches!(decode(&codec, &new), Err(CodecError::UnknownSchema { id: 7, .. })));
    }

    #[test]
    fn old_records_that_are_damaged_are_errors() {
        let versions = versions();
        let codec = Codec::of(&versions, topics::BUILDS.name);
        let old = old_record(&versions[0]);
        for end in 0..old.len() {
            decode(&codec, &old[..end]).expect_err("cut short");
        }
        assert!(matches!(decode(&codec, &[&old[..], &[0]].concat()), Err(CodecError::Trailing { bytes: 1, .. })));
        for position in HEADER_BYTES..old.len() {
            for mask in [1, 0x80, 0xff] {
                let mut flipped = old.clone();
                flipped[position] ^= mask;
                // Some flips give another valid text; none may panic.
                let _ = decode(&codec, &flipped);
            }
        }
    }

    #[test]
    fn every_version_can_be_read_as_the_newest() {
        for (index, newest) in SCHEMAS.iter().enumerate() {
            let codec = Codec::of(&SCHEMAS[..=index], newest.topic);
            for older in &codec.older {
                let [written, newest] = [older.json, codec.json].map(|json| Schema::parse_str(json).expect("a schema"));
                Resolution::new(&written, &newest).expect("resolves");
            }
        }
    }
}
