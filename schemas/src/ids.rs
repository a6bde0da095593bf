//! Identifiers as types, so that a queue can never be passed where a service is meant.
//!
//! Every identifier is checked where it enters (JSON, Avro, a command line), by its `FromStr`. What holds one needs no
//! further check: a [`ServiceName`] is always safe as a file name, a key and a path segment.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest name that a person may choose, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is not the identifier it was given as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {rule}")]
pub struct IdError {
    kind: &'static str,
    value: String,
    rule: &'static str,
}

impl IdError {
    fn new(kind: &'static str, value: &str, rule: &'static str) -> Self {
        let value = value.chars().take(80).collect();
        Self { kind, value, rule }
    }
}

/// Reads an identifier from a text, without a copy of it where the format has one.
struct Parsed<T>(PhantomData<T>);

impl<T: FromStr<Err = IdError>> de::Visitor<'_> for Parsed<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// The traits that every textual identifier shares: it reads and writes as a string, in JSON and in Avro.
macro_rules! textual {
    ($type:ident) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($type))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Parsed(PhantomData))
            }
        }

        impl apache_avro::AvroSchemaComponent for $type {
            fn get_schema_in_ctxt(
                _: &mut std::collections::HashSet<apache_avro::schema::Name>,
                _: apache_avro::schema::NamespaceRef<'_>,
            ) -> apache_avro::Schema {
                apache_avro::Schema::String
            }
        }
    };
}

macro_rules! text_id {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $check:path, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(std::sync::Arc<str>);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if $check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(IdError::new($kind, text, $rule))
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        textual!($type);
    };
}

const NAME_RULE: &str =
    "use 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit, without '..'";
const TOKEN_RULE: &str = "use 1 to 128 printable ASCII characters without spaces";
const COMMIT_RULE: &str = "give the full commit id, 40 or 64 lowercase hexadecimal digits";

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    bytes.len() <= NAME_BYTES_MAX
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(inner)
        && !text.contains("..")
}

fn is_token(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

text_id!(
    /// A queue of jobs, served first in, first out.
    QueueName, "queue", is_name, NAME_RULE
);
text_id!(
    /// What a build is called; artifacts of one name are successive versions of one thing.
    ArtifactName, "name", is_name, NAME_RULE
);
text_id!(
    /// What a label is called.
    LabelName, "label", is_name, NAME_RULE
);
text_id!(
    /// A service: what a node runs, and the unit of goals and rollouts.
    ServiceName, "service", is_name, NAME_RULE
);
text_id!(RegionName, "region", is_name, NAME_RULE);
text_id!(ZoneName, "zone", is_name, NAME_RULE);
text_id!(RackName, "rack", is_name, NAME_RULE);
text_id!(NodeId, "node", is_name, NAME_RULE);
text_id!(WorkerId, "worker", is_name, NAME_RULE);
text_id!(
    /// The idempotency key of a request: the same id is processed once, however often it is sent.
    RequestId, "request id", is_token, TOKEN_RULE
);
text_id!(
    /// One worker's wish for one job. Repeating a claim never assigns a second job.
    ClaimId, "claim", is_token, TOKEN_RULE
);
text_id!(
    /// A full git commit id, SHA-1 or SHA-256.
    CommitSha, "commit", is_commit, COMMIT_RULE
);

macro_rules! digest_id {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type([u8; 32]);

        impl $type {
            /// The name of these bytes.
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first 12 digits: enough for people to tell two apart.
            pub fn short(&self) -> String {
                self.to_string()[..12].to_owned()
            }
        }

        impl FromStr for $type {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = || IdError::new($kind, text, "give 64 lowercase hexadecimal digits");
                if text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(error());
                }
                let hash = blake3::Hash::from_hex(text).map_err(|_| error())?;
                Ok(Self(*hash.as_bytes()))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        textual!($type);
    };
}

digest_id!(
    /// An artifact's name: the BLAKE3 of its manifest.
    ArtifactId, "artifact"
);
digest_id!(
    /// A pack's name: the BLAKE3 of its bytes. The unit of upload, replication and the swarm.
    PackId, "pack"
);
digest_id!(
    /// A chunk's name: the BLAKE3 of its bytes, uncompressed.
    ChunkId, "chunk"
);

/// A job: its queue and its number there, written `queue-17`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    pub queue: QueueName,
    pub number: u64,
}

impl FromStr for JobId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError::new("job", text, "it is written QUEUE-NUMBER, such as default-17");
        let (queue, number) = text.rsplit_once('-').ok_or_else(error)?;
        let canonical = !number.is_empty() && !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit());
        if !canonical {
            return Err(error());
        }
        Ok(Self { queue: queue.parse()?, number: number.parse().map_err(|_| error())? })
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, number } = self;
        match (f.width(), f.precision()) {
            (None, None) => write!(f, "{}-{number}", queue.as_str()),
            _ => f.pad(&format!("{queue}-{number}")),
        }
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

textual!(JobId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for bad in ["", "../etc", "a/../b", "a..b", ".a", "a.", "-a", "A", "a b", "ä", &"a".repeat(64)] {
            let error = bad.parse::<ServiceName>().expect_err(bad);
            assert!(error.to_string().starts_with("service "), "{error}");
        }
        for good in ["a", "a-b", "web.front_end-2", &"a".repeat(63)] {
            assert_eq!(good.parse::<ServiceName>().expect(good).as_str(), good);
        }
    }

    #[test]
    fn job_ids_round_trip_and_have_one_spelling() {
        let job: JobId = "my-queue-17".parse().expect("valid");
        assert_eq!((job.queue.as_str(), job.number), ("my-queue", 17));
        assert_eq!(job.to_string(), "my-queue-17");
        for bad in ["17", "q-", "q-017", "q-0", "q-+1", "q-99999999999999999999", "Q-1"] {
            bad.parse::<JobId>().expect_err(bad);
        }
    }

    #[test]
    fn digests_have_one_spelling() {
        let pack = PackId::of(b"bytes");
        assert_eq!(pack.to_string().parse::<PackId>(), Ok(pack));
        pack.to_string().to_uppercase().parse::<PackId>().expect_err("uppercase");
        "abc".parse::<PackId>().expect_err("short");
    }
}
