//! How a person passes over requests that the log has lost.
//!
//! ```text
//!   fence the leader, which is halted ─▶ read the last fact ─▶ [`accept`] ─▶ commit one `Processed`, by that person
//! ```
//!
//! No event of its own is needed: `Processed` says up to where requests are dealt with, in whose name, and which of them were
//! refused. So whoever knows the log can accept for any partition, and everyone who follows its facts knows of it.

use longshore_log::{Batch, Destination, Record, StoredRecord, TopicPartition};
use longshore_schemas::{
    Timestamp,
    events::{Cause, Event, Fact, FactEvent, Processed, Refusal, RefusalCode, TimerFired, Trigger},
};

use crate::{Error, Wire};

/// Lost requests that are refused one by one, so that who asks for their outcome is told. Beyond that they count as processed.
const REFUSALS_MAX: u64 = 1_000;

/// The requests that are lost, as a person names them: from this one on and before that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    pub from: u64,
    pub to: u64,
}

/// What the log holds of a partition, as it was read after the leader was fenced.
#[derive(Debug)]
pub struct Found<'a> {
    /// The last of all; None if there is none.
    pub last_fact: Option<&'a StoredRecord>,
    /// Of the fact partition.
    pub facts_end: u64,
    /// Of the request partition.
    pub requests_start: u64,
}

/// Why a loss is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(
        "nothing of {partition} is lost: requests before {next} are processed, and the log has those from {start} on"
    )]
    NothingLost { partition: String, next: u64, start: u64 },
    #[error("of {partition} requests {next} to {} are lost: accept --from {next} --to {start}", start - 1)]
    Other { partition: String, next: u64, start: u64 },
    #[error(transparent)]
    Unreadable(#[from] Error),
}

/// The transaction that passes over what is lost: exactly that, or what it is instead is said.
pub fn accept<P: Wire>(
    partition: u32,
    lost: Lost,
    found: &Found<'_>,
    by: &str,
    now: Timestamp,
) -> Result<Batch, Refused> {
    let requests = TopicPartition::new(P::Request::TOPIC.name, partition);
    let facts = TopicPartition::new(P::Fact::TOPIC.name, partition);
    let unusable = |reason: &str| {
        let (partition, offset, reason) = (facts.to_string(), found.facts_end, reason.to_owned());
        Error::Unappliable { partition, offset, reason }
    };
    let (sequence, at, next) = match found.last_fact {
        Some(record) => {
            let fact = decode::<P>(record)?;
            let processed = fact.event.processed().ok_or_else(|| unusable("the fact before it ends no transaction"))?;
            (fact.sequence, fact.at, processed.next_offset)
        }
        None if found.facts_end == 0 => (0, Timestamp::default(), 0),
        None => return Err(unusable("the facts before it are lost, so it is not known what follows").into()),
    };
    let (start, name) = (found.requests_start, requests.to_string());
    if start <= next {
        return Err(Refused::NothingLost { partition: name, next, start });
    }
    if lost != (Lost { from: next, to: start }) {
        return Err(Refused::Other { partition: name, next, start });
    }
    let now = now.max(at);
    let refusal = |offset| Refusal {
        request: format!("lost-{}-{partition}-{offset}", P::NAME).parse().expect("words and numbers are an id"),
        offset,
        code: RefusalCode::Stale,
        reason: format!("the log had removed the request before it was processed; {by} has accepted the loss"),
    };
    let refusals =
        (lost.from..lost.to).take(usize::try_from(REFUSALS_MAX).unwrap_or(usize::MAX)).map(refusal).collect();
    let fact = Fact {
        sequence: sequence + 1,
        at: now,
        actor: by.to_owned(),
        trace: None,
        cause: Cause { index: 0, count: 1, trigger: Trigger::TimerFired(TimerFired { due: now }) },
        event: P::Fact::from(Processed { next_offset: lost.to, now, refusals }),
    };
    let value = P::encode_fact(&fact).map_err(|error| unusable(&error.to_string()))?;
    let record = Record::new(fact.event.key(), value);
    Ok(Batch { records: vec![(Destination::Exact(facts), record)], consumed: vec![(requests, lost.to)] })
}

fn decode<P: Wire>(record: &StoredRecord) -> Result<Fact<P::Fact>, Error> {
    let unappliable =
        |reason: String| Error::Unappliable { partition: record.source.to_string(), offset: record.offset, reason };
    let value = record.record.value.as_deref().ok_or_else(|| unappliable("it has no value".to_owned()))?;
    P::decode_fact(value).map_err(|error| unappliable(error.to_string()))
}
