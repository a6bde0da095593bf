//! `longshore log tail`: server-sent events, resumed where they broke off.

use std::{collections::BTreeMap, time::Duration};

use longshore_schemas::{Timestamp, topics};
use longshore_service::retry::Backoff;
use serde_json::{Value, json};

use super::Context;
use crate::{
    args::{From, TailArgs},
    error::Error,
    output::{self, Format},
};

/// Longest event, in bytes.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// So many failures in a row, and the server counts as gone.
const FAILURES_MAX: u32 = 10;

/// The name of the event after the last one of a stream that ends.
const END: &str = "End";

/// Topics of facts, which every role may read; the others are for admins.
fn path(topic: &str) -> [&str; 2] {
    let facts = topics::FACTS.iter().any(|facts| facts.name == topic);
    [if facts { "facts" } else { "log" }, topic]
}

/// What is asked for, but for where a stream goes on.
fn filters(args: &TailArgs) -> Vec<(&'static str, String)> {
    let mut query = Vec::new();
    if !args.kinds.is_empty() {
        query.push(("type", args.kinds.join(",")));
    }
    if !args.conditions.is_empty() {
        let conditions: BTreeMap<_, _> = args.conditions.iter().cloned().collect();
        query.push(("where", json!(conditions).to_string()));
    }
    if args.until_end {
        query.push(("until_end", "true".to_owned()));
    }
    query
}

fn beginning(from: &From) -> (&'static str, String) {
    match from {
        From::Place(place) => ("from", place.clone()),
        From::At(at) => ("at", at.to_string()),
        From::Ago(ago) => {
            let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
            ("at", Timestamp(output::now().millis().saturating_sub(ago).max(0)).to_string())
        }
    }
}

/// Until Ctrl-C, when it says where to go on; or to the end, if that was asked for.
pub(super) async fn run(context: &Context, args: &TailArgs) -> Result<(), Error> {
    let mut last_id: Option<String> = None;
    let ended = tokio::select! {
        ended = follow(context, args, &mut last_id) => ended,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(|error| Error::Other(error.into())),
    };
    if let Some(id) = last_id {
        output::message(&format!("`longshore log tail {} --from {id}` goes on from here", args.topic));
    }
    ended
}

async fn follow(context: &Context, args: &TailArgs, last_id: &mut Option<String>) -> Result<(), Error> {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        let mut query = filters(args);
        let mut call = context.client.get(&path(&args.topic));
        match &*last_id {
            Some(id) => call = call.header("last-event-id", id),
            None => query.push(beginning(&args.from)),
        }
        call = call.query(&query);
        match call.stream().await {
            Ok(response) => {
                backoff.reset();
                if read(context, response, last_id).await? {
                    return Ok(());
                }
            }
            Err(error) if error.is_transient() && last_id.is_some() && backoff.failures() < FAILURES_MAX => {}
            Err(error) => return Err(error.into()),
        }
        let wait = backoff.next_wait(&mut rand::rng());
        tokio::time::sleep(wait).await;
    }
}

/// Until the connection ends, however it does; says whether all has come that was to come.
async fn read(context: &Context, mut response: reqwest::Response, last_id: &mut Option<String>) -> Result<bool, Error> {
    let mut parser = Parser::default();
    while let Ok(Some(piece)) = response.chunk().await {
        for event in parser.push(&piece) {
            if event.kind == END {
                return Ok(true);
            }
            show(context, &event)?;
        }
        if parser.last_id.is_some() {
            last_id.clone_from(&parser.last_id);
        }
        if parser.buffer.len() > EVENT_BYTES_MAX {
            return Err(Error::Other(anyhow::anyhow!("an event has more than {EVENT_BYTES_MAX} bytes")));
        }
    }
    Ok(false)
}

fn show(context: &Context, event: &Event) -> Result<(), Error> {
    match context.format {
        Format::Json => output::data(&event.data),
        Format::Table => output::data(&line(event)),
    }
}

/// Time, kind, place and what it says, on one line.
fn line(event: &Event) -> String {
    let fact: Value = serde_json::from_str(&event.data).unwrap_or_default();
    let text = |name: &str| fact.get(name).map_or_else(|| "-".to_owned(), plain);
    let at = fact.get("at").and_then(Value::as_i64).map_or_else(|| text("time"), |at| Timestamp(at).to_string());
    let inner = fact.get("event").unwrap_or(&Value::Null);
    // A union's branch stands under its name.
    let inner = inner.get(&event.kind).unwrap_or(inner);
    let error = fact.get("error").map(|error| format!("  {}", plain(error))).unwrap_or_default();
    let place = fact.get("topic").map(|topic| format!("{}/", plain(topic))).unwrap_or_default();
    let (partition, offset, kind, actor) = (text("partition"), text("offset"), &event.kind, text("actor"));
    format!("{at}  {place}p{partition}:{offset}  {kind}  {actor}  {inner}{error}")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Event {
    pub(super) kind: String,
    pub(super) data: String,
}

/// Lines become events at each empty line. Comments are beats of the connection.
#[derive(Default)]
pub(super) struct Parser {
    buffer: Vec<u8>,
    event: Event,
    /// Of the event that is still being read.
    id: Option<String>,
    /// Where to resume: that of the last whole event, or of what comes without one.
    last_id: Option<String>,
}

impl Parser {
    pub(super) fn push(&mut self, piece: &[u8]) -> Vec<Event> {
        self.buffer.extend_from_slice(piece);
        let mut events = Vec::new();
        let mut start = 0;
        while let Some(length) = self.buffer[start..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&self.buffer[start..start + length]).into_owned();
            start += length + 1;
            events.extend(self.line(line.trim_end_matches('\r')));
        }
        self.buffer.drain(..start);
        events
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            self.last_id = self.id.take().or_else(|| self.last_id.take());
            let event = std::mem::take(&mut self.event);
            return (!event.data.is_empty()).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.kind),
            "id" => self.id = Some(value.to_owned()),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text = ": beat\n\nid: p0:0\n\nid: p0:1\nevent: JobQueued\ndata: {\"at\":1}\n\nevent:X\r\ndata:a\r\ndata: b\r\n\r\n";
        let mut parser = Parser::default();
        let whole = parser.push(text.as_bytes());
        let expected = [
            Event { kind: "JobQueued".into(), data: "{\"at\":1}".into() },
            Event { kind: "X".into(), data: "a\nb".into() },
        ];
        assert_eq!(whole, expected);
        assert_eq!(parser.last_id.as_deref(), Some("p0:1"));
        assert!(parser.push(b"id: p0:2\n\nid: p0:3\ndata: ").is_empty());
        assert_eq!(parser.last_id.as_deref(), Some("p0:2"), "p0:3 has not come whole");
        let mut parser = Parser::default();
        let bytewise: Vec<_> = text.as_bytes().chunks(1).flat_map(|byte| parser.push(byte)).collect();
        assert_eq!(bytewise, expected);
    }

    #[test]
    fn what_was_asked_for_reaches_the_server() {
        let args = TailArgs {
            topic: "build-requests".to_owned(),
            from: From::At(Timestamp(1_767_225_600_000)),
            kinds: vec!["JobQueued".to_owned(), "JobStarted".to_owned()],
            conditions: vec![("key".to_owned(), "web".to_owned())],
            follow: false,
            until_end: true,
        };
        assert_eq!(path(&args.topic), ["log", "build-requests"]);
        assert_eq!(path("builds"), ["facts", "builds"]);
        let expected = [("type", "JobQueued,JobStarted"), ("where", r#"{"key":"web"}"#), ("until_end", "true")];
        assert_eq!(filters(&args), expected.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(beginning(&args.from), ("at", "2026-01-01T00:00:00.000Z".to_owned()));
        assert_eq!(beginning(&From::Place("end".to_owned())), ("from", "end".to_owned()));
    }

    #[test]
    fn a_fact_is_one_line() {
        let data = r#"{"at":1767225600000,"partition":0,"offset":7,"actor":"admin","event":{"job":"default-1"}}"#;
        let event = Event { kind: "JobStarted".into(), data: data.into() };
        assert_eq!(line(&event), r#"2026-01-01T00:00:00.000Z  p0:7  JobStarted  admin  {"job":"default-1"}"#);
    }
}
