//! How messages are written to topics: Avro in Confluent's wire format (a zero byte, the schema's id, the datum), so that
//! the usual tools decode them.
//!
//! The datum is written from and read into the Rust types directly ([`write`], [`read`]): several times as fast as through
//! apache-avro, and no length is believed. apache-avro stays what says how it must be ([`reference`]): tests hold every
//! message against it, byte for byte and in both directions.
//!
//! The schemas are the files under `schemas/avro/`, one per topic and version. A test holds the newest of each against
//! the Rust types. A released file is never edited: `RELEASED` pins its hash, and the golden bytes of every version are
//! read with today's code.

mod read;
pub mod reference;
mod write;

use std::{
    fmt,
    sync::{LazyLock, OnceLock},
};

use apache_avro::{AvroSchema, Schema};
use serde::{Serialize, de, de::DeserializeOwned, ser};

use crate::{
    events::{
        ArtifactFact, ArtifactRequest, BuildFact, BuildLog, BuildRequest, DeadLetter, Fact, FleetFact, FleetReport,
        GoalFact, GoalRequest, GoalState, Request, WorkerSignal,
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
pub static SCHEMAS: [SchemaVersion; 12] = [
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
];

/// The newest schema of one topic.
pub struct Codec {
    id: u32,
    topic: &'static str,
    json: &'static str,
    reference: OnceLock<reference::Reference>,
}

impl Codec {
    fn of(topic: &'static str) -> Self {
        let version = SCHEMAS.iter().rfind(|s| s.topic == topic).expect("every message's topic has a schema");
        let SchemaVersion { id, topic, json, .. } = *version;
        Self { id, topic, json, reference: OnceLock::new() }
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
                static CODEC: LazyLock<Codec> = LazyLock::new(|| Codec::of(topics::$topic.name));
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
    DeadLetter => DEAD_LETTERS,
}

/// The bytes of a message, as they stand on its topic.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let mut bytes = header(M::codec());
    write::to_bytes(message, &mut bytes).map_err(CodecError::Unwritable)?;
    Ok(bytes)
}

/// Reads a message; its schema id must be one of the message's topic.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, CodecError> {
    decode_with(bytes, |_, datum| read::from_bytes(datum))
}

fn header(codec: &Codec) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    bytes.push(MAGIC);
    bytes.extend_from_slice(&codec.id.to_be_bytes());
    bytes
}

fn decode_with<M: Message>(
    bytes: &[u8],
    read: impl FnOnce(&'static Codec, &mut &[u8]) -> Result<M, DatumError>,
) -> Result<M, CodecError> {
    let codec = M::codec();
    let (header, mut datum) = bytes.split_at_checked(HEADER_BYTES).ok_or(CodecError::NotWireFormat)?;
    let [MAGIC, id @ ..] = header else { return Err(CodecError::NotWireFormat) };
    let id = u32::from_be_bytes(id.try_into().expect("a header has four bytes after the first"));
    let topic = codec.topic;
    if id != codec.id {
        return Err(CodecError::UnknownSchema { id, topic });
    }
    let message = read(codec, &mut datum).map_err(|source| CodecError::Malformed { id, topic, source })?;
    if datum.is_empty() { Ok(message) } else { Err(CodecError::Trailing { bytes: datum.len(), topic }) }
}
