//! `GET /v1/facts/{topic}`: facts as server-sent events, from an offset on, resumable.
//!
//! An event's name is the fact's kind, its data the fact as JSON with its partition and offset, its id the next offset of
//! each partition: `p0:17,p1:4`. A client that comes back with the last id misses nothing and sees nothing twice.

use std::{collections::BTreeMap, fmt::Write, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, header},
};
use longshore_log::{ReadLimit, Reader, StoredRecord, TopicPartition};
use longshore_schemas::{
    Timestamp,
    codec::{self, CodecError, Message},
    events::{ArtifactFact, BuildFact, Fact, FactEvent, FleetFact, GoalFact},
    http::rfc3339,
    topics,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Shared,
    extract::{App, Params, Query},
    problem::{Answer, Failure},
    streams::{self, Gone, Sender},
};

/// After so long without an event, a comment shows that the connection lives.
const BEAT: Duration = Duration::from_secs(15);
/// What one piece of the stream is made of.
const READ: ReadLimit = ReadLimit { records: 64, bytes: 16 * 1024 };
/// Longest `Last-Event-ID` that is read, in bytes.
const ID_BYTES_MAX: usize = 4_096;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FactsQuery {
    /// `beginning`, `end` (which is the default), or an event's id.
    from: Option<String>,
    /// The first fact of this time or later.
    #[serde(default, with = "rfc3339::option")]
    at: Option<Timestamp>,
    /// Whether to show each transaction's `Processed` too.
    #[serde(default)]
    all: bool,
    /// Read by the access check.
    #[serde(rename = "access_token")]
    _access_token: Option<String>,
}

/// The next offset of each partition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place(BTreeMap<u32, u64>);

/// Kind and JSON of a fact; `None` if it is a `Processed`.
type Decode = fn(&[u8]) -> Result<Option<(&'static str, Value)>, CodecError>;

/// `GET /v1/facts/{topic}`
pub(crate) async fn follow(
    State(shared): App,
    Params((topic,)): Params<(String,)>,
    Query(query): Query<FactsQuery>,
    headers: HeaderMap,
) -> Answer {
    let Some((topic, decode)) = decoder(&topic) else {
        let names: Vec<&str> = topics::FACTS.iter().map(|topic| topic.name).collect();
        return Err(Failure::not_found(format!("there is no fact topic {topic:?}; there are {}", names.join(", "))));
    };
    let place = start(&shared, topic, &query, headers.get("last-event-id").and_then(|id| id.to_str().ok())).await?;
    let from = place.0.iter().map(|(partition, offset)| (TopicPartition::new(topic.name, *partition), *offset));
    let reader = shared.log.reader(from.collect())?;
    let (sender, mut response) = streams::open(&shared, "text/event-stream")?;
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
    let stream = Stream { reader, place, decode, all: query.all };
    let stop = shared.stop.clone();
    tokio::spawn(async move {
        // Whatever ends the stream, the client comes back with the last id it has.
        if stop.run_until_cancelled(stream.run(&sender)).await.is_none() {
            sender.farewell(": the server stops; come back with the last id\n\n");
        }
    });
    Ok(response)
}

/// Where to begin: the last id, the query, or the end.
async fn start(shared: &Arc<Shared>, topic: topics::Topic, query: &FactsQuery, last: Option<&str>) -> Answer<Place> {
    let id = last.filter(|id| !id.is_empty()).map(|id| ("last-event-id", id));
    let from = query.from.as_deref().filter(|from| !matches!(*from, "beginning" | "end")).map(|from| ("from", from));
    let mut place = match id.or(from) {
        Some((field, text)) => Some(Place::parse(text).ok_or_else(|| {
            Failure::invalid(format!("{field}: give beginning, end, or the id of an event, such as p0:17,p1:4"))
        })?),
        None => None,
    };
    let named = place.take().map(|place| place.0).unwrap_or_default();
    if let Some(partition) = named.keys().find(|partition| **partition >= topic.partitions) {
        return Err(Failure::invalid(format!(
            "{} has {} partitions, so no p{partition}",
            topic.name, topic.partitions
        )));
    }
    let mut offsets = BTreeMap::new();
    for partition in 0..topic.partitions {
        let of = TopicPartition::new(topic.name, partition);
        let end = shared.log.end_offset(&of).await?;
        let offset = match (named.get(&partition), query.at, query.from.as_deref()) {
            (Some(offset), ..) if *offset > end => {
                return Err(Failure::conflict(format!(
                    "{of} ends at {end}, and the id says {offset}: it is of another log"
                )));
            }
            (Some(offset), ..) => *offset,
            (None, Some(at), _) => shared.log.offset_at(&of, at).await?,
            (None, None, Some("beginning")) => shared.log.start_offset(&of).await?,
            (None, None, _) => end,
        };
        offsets.insert(partition, offset);
    }
    Ok(Place(offsets))
}

struct Stream {
    reader: Box<dyn Reader>,
    place: Place,
    decode: Decode,
    all: bool,
}

impl Stream {
    async fn run(mut self, sender: &Sender) -> Result<(), Gone> {
        // An id without data sets where the client resumes, before anything has happened.
        sender.send(format!("retry: 1000\nid: {}\n\n", self.place)).await?;
        loop {
            let read = tokio::select! {
                read = tokio::time::timeout(BEAT, self.reader.read(READ)) => read,
                () = sender.closed() => return Err(Gone),
            };
            let piece = match read {
                Err(_) => format!(": beat\nid: {}\n\n", self.place),
                Ok(Ok(records)) => self.render(&records),
                Ok(Err(error)) => {
                    tracing::error!(%error, "a stream of facts cannot go on");
                    return Err(Gone);
                }
            };
            if !piece.is_empty() {
                sender.send(piece).await?;
            }
        }
    }

    fn render(&mut self, records: &[StoredRecord]) -> String {
        let mut text = String::new();
        for record in records {
            let StoredRecord { source, offset, record, .. } = record;
            self.place.0.insert(source.partition, offset + 1);
            let bytes = record.value.as_deref().unwrap_or_default();
            let (kind, mut data) = match (self.decode)(bytes) {
                Ok(Some(("Processed", _))) if !self.all => continue,
                Ok(Some(fact)) => fact,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(partition = %source, offset, %error, "a fact cannot be decoded");
                    ("Undecodable", json!({ "error": error.to_string() }))
                }
            };
            if let Value::Object(fields) = &mut data {
                fields.insert("partition".to_owned(), json!(source.partition));
                fields.insert("offset".to_owned(), json!(offset));
            }
            write!(text, "event: {kind}\nid: {}\ndata: {data}\n\n", self.place).expect("a String takes any text");
        }
        text
    }
}

fn decoder(name: &str) -> Option<(topics::Topic, Decode)> {
    let table: [(topics::Topic, Decode); 4] = [
        (topics::BUILDS, decode::<BuildFact>),
        (topics::ARTIFACTS, decode::<ArtifactFact>),
        (topics::GOALS, decode::<GoalFact>),
        (topics::FLEET, decode::<FleetFact>),
    ];
    table.into_iter().find(|(topic, _)| topic.name == name)
}

fn decode<E: FactEvent>(bytes: &[u8]) -> Result<Option<(&'static str, Value)>, CodecError>
where
    Fact<E>: Message,
{
    let fact: Fact<E> = codec::decode(bytes)?;
    Ok(serde_json::to_value(&fact).ok().map(|json| (fact.event.kind(), json)))
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        if text.len() > ID_BYTES_MAX {
            return None;
        }
        let entry = |entry: &str| {
            let (partition, offset) = entry.strip_prefix('p')?.split_once(':')?;
            Some((partition.parse().ok()?, offset.parse().ok()?))
        };
        text.split(',').map(entry).collect::<Option<_>>().map(Self)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (partition, offset)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}p{partition}:{offset}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_others_are_refused() {
        for text in ["p0:0", "p0:17,p1:4,p15:18446744073709551615"] {
            assert_eq!(Place::parse(text).expect(text).to_string(), text);
        }
        for bad in ["", "p", "p0", "0:1", "p0:-1", "p0:1,", "p0:1;p1:1", &"p0:1,".repeat(2000)] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_fact_topic_has_a_decoder() {
        for topic in topics::FACTS {
            assert!(decoder(topic.name).is_some(), "{}", topic.name);
        }
    }
}
