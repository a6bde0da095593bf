//! The events: what is written to the topics.
//!
//! A *request* asks for something or reports something seen; a *fact* is a state change that was decided. Each topic has
//! one Avro schema: an envelope, [`Request`] or [`Fact`], around the union of the topic's event types.
//!
//! Every event names the key it belongs to, and so its partition. An enum's variants are Avro's union branches, in this
//! order: new ones go to the end, released ones never change.

mod artifacts;
mod builds;
mod fleet;
mod goals;
mod nodes;
mod queries;
mod run;

use std::collections::BTreeMap;

use apache_avro::{AvroSchema, AvroSchemaComponent};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{RequestId, Timestamp, auth::Speaker, topics::Topic};

pub use artifacts::*;
pub use builds::*;
pub use fleet::*;
pub use goals::*;
pub use nodes::*;
pub use queries::*;
pub use run::*;

/// Key and value pairs that people choose: environments and labels.
pub type StringMap = BTreeMap<String, String>;

/// Defines an enum without data: an Avro `enum` of the variants' names, documented in Rust alone.
macro_rules! symbols {
    (
        $(#[$doc:meta])*
        pub enum $type:ident { $($(#[$variant_doc:meta])* $variant:ident $(= $text:literal)?),+ $(,)? }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $type {
            $($(#[$variant_doc])*
            $(#[serde(rename = $text)])?
            $variant),+
        }

        impl apache_avro::AvroSchemaComponent for $type {
            fn get_schema_in_ctxt(
                named: &mut std::collections::HashSet<apache_avro::schema::Name>,
                _: apache_avro::schema::NamespaceRef<'_>,
            ) -> apache_avro::Schema {
                let name = concat!("longshore.", stringify!($type));
                let name = apache_avro::schema::Name::new(name).expect("an identifier is a valid name");
                if !named.insert(name.clone()) {
                    return apache_avro::Schema::Ref { name };
                }
                let symbols = vec![$($crate::events::symbols!(@text $variant $($text)?).to_owned()),+];
                apache_avro::Schema::Enum(
                    apache_avro::schema::EnumSchema::builder().name(name).symbols(symbols).build(),
                )
            }
        }
    };
    (@text $variant:ident) => { stringify!($variant) };
    (@text $variant:ident $text:literal) => { $text };
}
use symbols;

/// What every union of events can say of its current value.
pub trait Event:
    Serialize + DeserializeOwned + AvroSchemaComponent + Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static
{
    /// The topic that these events are written to.
    const TOPIC: Topic;

    /// The record's key, which decides its partition.
    fn key(&self) -> String;

    /// The event's type, such as `JobQueued`.
    fn kind(&self) -> &'static str;

    /// Who may send it as a request.
    fn speaker(&self) -> Speaker<'_>;
}

/// The envelope of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct Request<E: AvroSchemaComponent> {
    /// Chosen by the client for the requests of people and services: the idempotency key.
    pub id: RequestId,
    /// When the sender wrote it, by the sender's clock.
    pub at: Timestamp,
    /// Who asks: a token's subject, a worker, a region, or the processor that caused it.
    pub actor: String,
    /// W3C `traceparent`, if the request is part of a trace.
    pub trace: Option<String>,
    /// Set on reports, which are ordered and deduplicated by their sender's sequence.
    pub report: Option<ReportOrder>,
    pub event: E,
}

/// A report's place in its sender's order: later boots first, then later sequences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct ReportOrder {
    pub sender: String,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub boot: u64,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub sequence: u64,
}

/// The envelope of a fact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct Fact<E: AvroSchemaComponent> {
    /// Gapless within the partition, from 1.
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub sequence: u64,
    /// When it was decided; never decreases within the partition.
    pub at: Timestamp,
    /// The actor of the request that caused it, or `timer`.
    pub actor: String,
    pub trace: Option<String>,
    pub cause: Cause,
    pub event: E,
}

/// What made a processor write a fact: one request or one timer, and which of how many facts of it this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct Cause {
    /// Counts from 0.
    pub index: u32,
    pub count: u32,
    pub trigger: Trigger,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(repr = "bare_union")]
pub enum Trigger {
    Consumed(Consumed),
    TimerFired(TimerFired),
}

/// The record that caused a fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct Consumed {
    pub topic: String,
    pub partition: u32,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub offset: u64,
    /// The request's id: a later request of the same id is not processed again.
    pub request: RequestId,
    /// If it was a report, its place in its sender's order: earlier ones are not processed again.
    pub report: Option<ReportOrder>,
}

/// The deadline that caused a fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct TimerFired {
    pub due: Timestamp,
}

/// The last fact of each transaction, and the only truth about what was consumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct Processed {
    /// The next offset to read from the request partition.
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub next_offset: u64,
    pub now: Timestamp,
    pub refusals: Vec<Refusal>,
}

/// A request that changed nothing, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct Refusal {
    pub request: RequestId,
    /// Where the request stands in the request partition.
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub offset: u64,
    pub code: RefusalCode,
    /// For people: what is wrong and what to do.
    pub reason: String,
}

symbols! {
    /// The kinds of refusal, for programs.
    pub enum RefusalCode {
        /// What the request names does not exist.
        NotFound,
        /// The present state does not allow it.
        Conflict,
        /// The sender speaks for an attempt, claim or sequence that is over.
        Stale,
        /// A limit is reached; later it may pass.
        Exhausted,
        /// The request contradicts itself.
        Invalid,
    }
}

/// A record that no processor could take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct DeadLetter {
    pub topic: String,
    pub partition: u32,
    #[serde(with = "crate::avro::long")]
    #[avro(with)]
    pub offset: u64,
    pub error: String,
    #[serde(with = "apache_avro::serde::bytes")]
    #[avro(with)]
    pub key: Vec<u8>,
    #[serde(with = "apache_avro::serde::bytes")]
    #[avro(with)]
    pub value: Vec<u8>,
}

/// What every processor's union of facts can do besides.
pub trait FactEvent: Event + From<Processed> {
    /// The end of a transaction, if this is one.
    fn processed(&self) -> Option<&Processed>;
}

macro_rules! fact_events {
    ($($union:ident),+) => {
        $(impl FactEvent for $union {
            fn processed(&self) -> Option<&Processed> {
                match self {
                    Self::Processed(processed) => Some(processed),
                    _ => None,
                }
            }
        })+
    };
}
fact_events!(BuildFact, ArtifactFact, GoalFact, FleetFact);

/// Implements [`Event`] for a union whose branches all carry the same key field. What is not listed as `spoken` is for the
/// control nodes to say.
macro_rules! events {
    (
        $(#[$doc:meta])* $union:ident on $topic:ident by |$key:ident| { $($variant:ident => $by:expr),+ $(,)? }
        $(spoken { $($spoken:ident => $speaker:expr),+ $(,)? })?
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, apache_avro::AvroSchema)]
        #[allow(clippy::large_enum_variant, reason = "events are decided, encoded and dropped; few are held at once")]
        #[avro(repr = "bare_union")]
        pub enum $union {
            $($variant($variant)),+
        }

        impl $crate::events::Event for $union {
            const TOPIC: $crate::topics::Topic = $crate::topics::$topic;

            fn key(&self) -> String {
                match self {
                    $(Self::$variant($key) => $by.to_string()),+
                }
            }

            fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($variant)),+
                }
            }

            fn speaker(&self) -> $crate::auth::Speaker<'_> {
                $($(
                    if let Self::$spoken($key) = self {
                        let _ = $key;
                        return $speaker;
                    }
                )+)?
                $crate::auth::Speaker::Control
            }
        }

        $(impl From<$variant> for $union {
            fn from(event: $variant) -> Self {
                Self::$variant(event)
            }
        })+
    };
}
use events;
