//! `GET /v1/facts/{topic}`: facts as server-sent events, from an offset on, resumable. `GET /v1/log/{topic}`: the same of any
//! topic, or of `all`, for those who look after the installation.
//!
//! An event's name is the record's type, its data what it says as JSON, with its place, time, key and headers; its id is the next
//! offset of each partition: `p0:17,p1:4`. A client that comes back with the last id misses nothing and sees nothing twice.

use std::{collections::BTreeMap, fmt::Write, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, header},
};
use longshore_log::{ReadLimit, Reader, StoredRecord, TopicPartition};
use longshore_schemas::{
    Timestamp,
    http::rfc3339,
    topics::{self, Topic},
};
use serde::Deserialize;

use crate::{
    Shared,
    decode::{self, Filter},
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
/// All topics together.
const ALL: &str = "all";
/// The name of the event after the last one, if the stream was to end.
const END: &str = "End";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FactsQuery {
    /// `beginning`, `end` (which is the default), or an event's id.
    from: Option<String>,
    /// The first record that the log took at this time or later.
    #[serde(default, with = "rfc3339::option")]
    at: Option<Timestamp>,
    /// Whether to show each transaction's `Processed` too.
    #[serde(default)]
    all: bool,
    /// Only these, with commas between.
    #[serde(rename = "type")]
    kinds: Option<String>,
    /// Only where the value at each of these paths is this text: an object, in JSON.
    #[serde(rename = "where")]
    conditions: Option<String>,
    /// Ends once everything was sent that is there now.
    #[serde(default)]
    until_end: bool,
    /// Read by the access check.
    #[serde(rename = "access_token")]
    _access_token: Option<String>,
}

/// The next offset of each partition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place(BTreeMap<TopicPartition, u64>);

/// `GET /v1/facts/{topic}`
pub(crate) async fn follow(
    State(shared): App,
    Params((topic,)): Params<(String,)>,
    Query(query): Query<FactsQuery>,
    headers: HeaderMap,
) -> Answer {
    let known = topics::FACTS.into_iter().find(|known| known.name == topic);
    let Some(topic) = known else { return Err(no_topic(&topic, &topics::FACTS)) };
    stream(&shared, &[topic], &query, &headers).await
}

/// `GET /v1/log/{topic}`
pub(crate) async fn tail(
    State(shared): App,
    Params((topic,)): Params<(String,)>,
    Query(query): Query<FactsQuery>,
    headers: HeaderMap,
) -> Answer {
    if topic == ALL {
        return stream(&shared, &topics::ALL, &query, &headers).await;
    }
    let known = topics::ALL.into_iter().find(|known| known.name == topic);
    let Some(topic) = known else { return Err(no_topic(&topic, &topics::ALL)) };
    stream(&shared, &[topic], &query, &headers).await
}

fn no_topic(topic: &str, known: &[Topic]) -> Failure {
    let names: Vec<&str> = known.iter().map(|topic| topic.name).collect();
    Failure::not_found(format!("there is no such topic {topic:?} here; there are {}", names.join(", ")))
}

async fn stream(shared: &Arc<Shared>, topics: &[Topic], query: &FactsQuery, headers: &HeaderMap) -> Answer {
    let filter = Filter::parse(query.kinds.as_deref(), query.conditions.as_deref(), query.all);
    let filter = filter.map_err(Failure::invalid)?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let mut ends = BTreeMap::new();
    for of in partitions(topics) {
        let end = shared.log.end_offset(&of).await?;
        ends.insert(of, end);
    }
    let place = start(shared, topics, &ends, query, last).await?;
    let reader = shared.log.reader(place.0.iter().map(|(of, offset)| (of.clone(), *offset)).collect())?;
    let (sender, mut response) = streams::open(shared, "text/event-stream")?;
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
    let stream = Stream { reader, place, filter, ends: query.until_end.then_some(ends) };
    let stop = shared.stop.clone();
    tokio::spawn(async move {
        // Whatever ends the stream, the client comes back with the last id it has.
        if stop.run_until_cancelled(stream.run(&sender)).await.is_none() {
            sender.farewell(": the server stops; come back with the last id\n\n");
        }
    });
    Ok(response)
}

fn partitions(topics: &[Topic]) -> impl Iterator<Item = TopicPartition> {
    topics.iter().flat_map(|topic| (0..topic.partitions).map(|partition| TopicPartition::new(topic.name, partition)))
}

/// Where to begin: the last id, the query, or the end.
async fn start(
    shared: &Arc<Shared>,
    topics: &[Topic],
    ends: &BTreeMap<TopicPartition, u64>,
    query: &FactsQuery,
    last: Option<&str>,
) -> Answer<Place> {
    let id = last.filter(|id| !id.is_empty()).map(|id| ("last-event-id", id));
    let from = query.from.as_deref().filter(|from| !matches!(*from, "beginning" | "end")).map(|from| ("from", from));
    let one = match topics {
        [topic] => Some(topic.name),
        _ => None,
    };
    let named = match id.or(from) {
        Some((field, text)) => Place::parse(text, one).map(|place| place.0).ok_or_else(|| {
            Failure::invalid(format!("{field}: give beginning, end, or the id of an event, such as p0:17,p1:4"))
        })?,
        None => BTreeMap::new(),
    };
    if let Some(of) = named.keys().find(|of| !ends.contains_key(of)) {
        let of = if one.is_some() { format!("p{}", of.partition) } else { of.to_string() };
        let names: Vec<String> =
            topics.iter().map(|topic| format!("{} has {} partitions", topic.name, topic.partitions)).collect();
        return Err(Failure::invalid(format!("{}, so no {of}", names.join(", "))));
    }
    let mut offsets = BTreeMap::new();
    for (of, end) in ends {
        let offset = match (named.get(of), query.at, query.from.as_deref()) {
            (Some(offset), ..) if offset > end => {
                return Err(Failure::conflict(format!(
                    "{of} ends at {end}, and the id says {offset}: it is of another log"
                )));
            }
            (Some(offset), ..) => *offset,
            (None, Some(at), _) => shared.log.offset_at(of, at).await?,
            (None, None, Some("beginning")) => shared.log.start_offset(of).await?,
            (None, None, _) => *end,
        };
        offsets.insert(of.clone(), offset);
    }
    Ok(Place(offsets))
}

struct Stream {
    reader: Box<dyn Reader>,
    place: Place,
    filter: Filter,
    /// Where to stop, if the stream is to end.
    ends: Option<BTreeMap<TopicPartition, u64>>,
}

impl Stream {
    async fn run(mut self, sender: &Sender) -> Result<(), Gone> {
        // An id without data sets where the client resumes, before anything has happened.
        sender.send(format!("retry: 1000\nid: {}\n\n", self.place)).await?;
        loop {
            if self.is_over() {
                return sender.send(format!("event: {END}\nid: {}\ndata: {{}}\n\n", self.place)).await;
            }
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
            self.place.0.insert(record.source.clone(), record.offset + 1);
            let (kind, data) = decode::record(record);
            if self.filter.takes(kind, &data) {
                write!(text, "event: {kind}\nid: {}\ndata: {data}\n\n", self.place).expect("a String takes any text");
            }
        }
        text
    }

    /// Everything that was there when the stream began has been read.
    fn is_over(&self) -> bool {
        let reached = |(of, end): (&TopicPartition, &u64)| self.reader.position(of).is_some_and(|place| place >= *end);
        self.ends.as_ref().is_some_and(|ends| ends.iter().all(reached))
    }
}

impl Place {
    /// `p0:17,p1:4` of one topic, `builds/0:17,goals/3:4` of several.
    fn parse(text: &str, topic: Option<&str>) -> Option<Self> {
        if text.len() > ID_BYTES_MAX {
            return None;
        }
        let entry = |entry: &str| {
            let (of, offset) = entry.split_once(':')?;
            let (topic, partition) = match topic {
                Some(topic) => (topic, of.strip_prefix('p')?),
                None => of.split_once('/')?,
            };
            Some((TopicPartition::new(topic, partition.parse().ok()?), offset.parse().ok()?))
        };
        text.split(',').map(entry).collect::<Option<_>>().map(Self)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut topics = self.0.keys().map(|of| &of.topic);
        let first = topics.next();
        let several = topics.any(|topic| Some(topic) != first);
        for (index, (of, offset)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match several {
                true => write!(f, "{comma}{of}:{offset}")?,
                false => write!(f, "{comma}p{}:{offset}", of.partition)?,
            }
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
            assert_eq!(Place::parse(text, Some("builds")).expect(text).to_string(), text);
        }
        let several = "builds/0:17,builds/1:4,dead-letters/0:2";
        assert_eq!(Place::parse(several, None).expect(several).to_string(), several);
        for bad in ["", "p", "p0", "0:1", "p0:-1", "p0:1,", "p0:1;p1:1", "builds/0:1", &"p0:1,".repeat(2000)] {
            assert_eq!(Place::parse(bad, Some("builds")), None, "{bad}");
        }
        for bad in ["", "p0:1", "builds:1", "builds/:1", "builds/0:1,p1:1"] {
            assert_eq!(Place::parse(bad, None), None, "{bad}");
        }
    }
}
