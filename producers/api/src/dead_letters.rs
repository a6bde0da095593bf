//! What no processor could take: listed, shown, and tried again.
//!
//! ```text
//!  dead letter 17 ──retry──▶ one transaction: the record as it was, at the end of its topic (header retry-of: 17)
//!                                             a mark on dead-letters (header retried: 17)
//!                                └─▶ the processor takes it, or sets it aside anew
//! ```
//!
//! Record and mark are one transaction of an owner of which there is one at a time, and who was before is fenced before the
//! marks are read: so a letter is tried again once, however often and wherever that is asked for. The record keeps its sender's word
//! ([`longshore_schemas::auth`]): what was not believed is not believed now, unless its key has become known.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use longshore_log::{
    Batch, CommitError, Destination, Position, ReadLimit, Record, StoredRecord, TopicPartition, Writer,
};
use longshore_schemas::{
    codec,
    events::DeadLetter,
    http::{DeadLetterView, LetterContent, Page, RetryView},
    letters::{ORIGINAL, RETRIED, RETRY_OF},
    read::{Outcome, RequestPosition},
    topics::{self, Topic},
};
use serde::Deserialize;

use crate::{
    Shared,
    access::Holder,
    decode,
    extract::{App, Params, Query},
    limits::{PAGE_ITEMS, above},
    problem::{Answer, Failure},
};

/// Letters of one answer unless the query says otherwise, and at most. Their bodies are not in it.
const LIST_DEFAULT: u32 = 20;
const LIST_MAX: u32 = 200;
/// Places that are read at once, from the end backwards.
const WINDOW: u64 = 512;
/// Where letters of one call are looked for, in places: an answer comes in bounded time, and says where to go on.
const LOOKED_AT_MAX: u64 = 100_000;
/// Whoever tries letters again is this owner, which can be only one at a time.
const OWNER: &str = "dead-letters-0";
/// Those whose records are worth trying again. Signals are repeated by those who send them.
const RETRIABLE: [Topic; 4] =
    [topics::BUILD_REQUESTS, topics::ARTIFACT_REQUESTS, topics::GOAL_REQUESTS, topics::FLEET_REPORTS];
/// The mark that a letter holds less than there was.
const CUT: &str = "(only the first ";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    limit: Option<u32>,
    /// What an earlier answer said.
    after: Option<String>,
}

fn partition() -> TopicPartition {
    TopicPartition::new(topics::DEAD_LETTERS.name, 0)
}

/// A record of the topic: a letter, or the word that one was tried again.
#[expect(clippy::large_enum_variant, reason = "one at a time, and most are letters")]
enum Entry {
    Letter(StoredRecord, DeadLetter),
    Mark { of: u64, says: String },
    Unreadable,
}

fn entry(record: StoredRecord) -> Entry {
    let value = record.record.value.as_deref().unwrap_or_default();
    let Ok(letter) = codec::decode::<DeadLetter>(value) else { return Entry::Unreadable };
    let marked = record.record.headers.iter().find(|(name, _)| name == RETRIED);
    match marked.map(|(_, offset)| std::str::from_utf8(offset).ok().and_then(|offset| offset.parse().ok())) {
        Some(Some(of)) => Entry::Mark { of, says: letter.error },
        Some(None) => Entry::Unreadable,
        None => Entry::Letter(record, letter),
    }
}

/// Every record from one offset to before another, in order.
async fn each(shared: &Shared, from: u64, to: u64, mut visit: impl FnMut(StoredRecord)) -> Answer<()> {
    if from >= to {
        return Ok(());
    }
    let of = partition();
    let mut reader = shared.log.reader(vec![(of.clone(), from)])?;
    while reader.position(&of).is_some_and(|position| position < to) {
        for record in reader.read(ReadLimit::default()).await? {
            if record.offset < to {
                visit(record);
            }
        }
    }
    Ok(())
}

/// `GET /v1/dead-letters`: newest first.
pub(crate) async fn list(State(shared): App, Query(query): Query<ListQuery>) -> Answer<Json<Page<DeadLetterView>>> {
    let limit = query.limit.unwrap_or(LIST_DEFAULT);
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(above(&PAGE_ITEMS, format_args!("limit: give 1 to {LIST_MAX}")));
    }
    let of = partition();
    let (start, end) = (shared.log.start_offset(&of).await?, shared.log.end_offset(&of).await?);
    let before = match query.after.as_deref() {
        Some(text) => text.parse().map_err(|_| Failure::invalid("after: give what an earlier list said".to_owned()))?,
        None => end,
    };
    let before: u64 = end.min(before);
    // Marks come after their letters, so they are all known by the time that a letter is reached from behind.
    let mut marks = BTreeMap::new();
    let mut items = Vec::new();
    let (mut to, stop) = (end, start.max(before.saturating_sub(LOOKED_AT_MAX)));
    while to > stop && items.len() < limit as usize {
        let from = to.saturating_sub(WINDOW).max(stop);
        let mut found = Vec::new();
        each(&shared, from, to, |record| match entry(record) {
            Entry::Mark { of, says } => drop(marks.insert(of, says)),
            Entry::Letter(record, letter) if record.offset < before => found.push(view(&record, letter)),
            Entry::Letter(..) | Entry::Unreadable => {}
        })
        .await?;
        items.extend(found.into_iter().rev());
        to = from;
    }
    items.truncate(limit as usize);
    for item in &mut items {
        item.retried = marks.get(&item.offset).cloned();
    }
    let reached = items.get(limit as usize - 1).map_or(to, |last| last.offset);
    let next = (reached > start).then(|| reached.to_string());
    Ok(Json(Page { items, next }))
}

fn view(record: &StoredRecord, letter: DeadLetter) -> DeadLetterView {
    let DeadLetter { topic, partition, offset, error, key, value } = letter;
    let (key, bytes) = (String::from_utf8_lossy(&key).into_owned(), value.len() as u64);
    let (at, record) = (record.at, (record.offset, offset));
    DeadLetterView {
        offset: record.0,
        at,
        topic,
        partition,
        record: record.1,
        error,
        key,
        bytes,
        retried: None,
        content: None,
    }
}

/// The letter at this offset, and what was said of it since.
async fn find(shared: &Shared, offset: u64) -> Answer<(StoredRecord, DeadLetter, Option<String>)> {
    let end = shared.log.end_offset(&partition()).await?;
    let (mut found, mut mark) = (None, None);
    each(shared, offset, end, |record| {
        let here = record.offset == offset;
        match entry(record) {
            Entry::Letter(record, letter) if here => found = Some((record, letter)),
            Entry::Mark { of, says } if of == offset => mark = Some(says),
            _ => {}
        }
    })
    .await?;
    let (record, letter) = found.ok_or_else(|| {
        Failure::not_found(format!("there is no dead letter at offset {offset}; the list has those that there are"))
    })?;
    Ok((record, letter, mark))
}

/// `GET /v1/dead-letters/{offset}`
pub(crate) async fn show(State(shared): App, Params((offset,)): Params<(u64,)>) -> Answer<Json<DeadLetterView>> {
    let (record, letter, retried) = find(&shared, offset).await?;
    let headers = decode::headers(&record.record.headers, ORIGINAL);
    let decoded = decode::value(&letter.topic, &letter.value).and_then(Result::ok);
    let hex = decoded.is_none().then(|| decode::hex(&letter.value));
    let (kind, request) = decoded.map(|(kind, request)| (kind.to_owned(), request)).unzip();
    let content = Some(LetterContent { headers, kind, request, hex });
    Ok(Json(DeadLetterView { retried, content, ..view(&record, letter) }))
}

/// `POST /v1/dead-letters/{offset}/retry`
pub(crate) async fn retry(
    State(shared): App,
    Holder(identity): Holder,
    Params((offset,)): Params<(u64,)>,
) -> Answer<Json<RetryView>> {
    // A letter that is not there fences nobody.
    find(&shared, offset).await?;
    let mut writer = shared.log.writer(OWNER).await?;
    let (record, letter, mark) = find(&shared, offset).await?;
    if let Some(outcome) = mark {
        return Ok(Json(RetryView { offset, retried: false, position: None, outcome }));
    }
    let topic = RETRIABLE.into_iter().find(|topic| topic.name == letter.topic).ok_or_else(|| {
        Failure::conflict(format!("what stood on {} is not tried again: its sender says it anew", letter.topic))
    })?;
    let again = original(&shared, &record, &letter).await?.with_header(RETRY_OF, offset.to_string());
    let end = shared.log.end_offset(&partition()).await?;
    let says = format!("tried again by {}", identity.subject);
    let position = commit(&mut *writer, topic, again, (offset, mark_of(&letter, says))).await?;
    drop(writer);
    tracing::info!(offset, by = identity.subject, partition = %position.source, record = position.offset, "dead letter tried again");
    let outcome = outcome(&shared, &position, end).await?;
    let position = Some(format!("{}/{}", position.source, position.offset));
    Ok(Json(RetryView { offset, retried: true, position, outcome }))
}

/// The record that became the letter: from its topic, if it is still there, or as the letter has it.
async fn original(shared: &Shared, record: &StoredRecord, letter: &DeadLetter) -> Answer<Record> {
    let of = TopicPartition::new(letter.topic.as_str(), letter.partition);
    let known = topics::ALL.iter().any(|topic| topic.name == letter.topic && letter.partition < topic.partitions);
    let there = known
        && shared.log.start_offset(&of).await? <= letter.offset
        && letter.offset < shared.log.end_offset(&of).await?;
    if there {
        let mut reader = shared.log.reader(vec![(of.clone(), letter.offset)])?;
        while reader.position(&of).is_some_and(|position| position <= letter.offset) {
            let read = reader.read(ReadLimit { records: 1, ..ReadLimit::default() }).await?;
            if let Some(found) = read.into_iter().find(|found| found.offset == letter.offset) {
                let Record { key, value, mut headers } = found.record;
                headers.retain(|(name, _)| name != RETRY_OF);
                return Ok(Record { key, value, headers });
            }
        }
    }
    if letter.error.contains(CUT) {
        return Err(Failure::conflict(
            "the log has kept only a part of this record, and the record itself has expired: send it anew".to_owned(),
        ));
    }
    let kept = record.record.headers.iter().filter_map(|(name, value)| {
        Some((name.strip_prefix(ORIGINAL)?.to_owned(), value.clone())).filter(|(name, _)| name != RETRY_OF)
    });
    let headers = kept.collect();
    Ok(Record { headers, ..Record::new(letter.key.clone(), letter.value.clone()) })
}

/// What says that a letter was tried again: a letter of the same place, without the content.
fn mark_of(letter: &DeadLetter, says: String) -> DeadLetter {
    DeadLetter { error: says, key: Vec::new(), value: Vec::new(), ..letter.clone() }
}

async fn commit(
    writer: &mut dyn Writer,
    topic: Topic,
    again: Record,
    (offset, mark): (u64, DeadLetter),
) -> Answer<Position> {
    let value = codec::encode(&mark).map_err(|error| Failure::internal(error.to_string()))?;
    let mark = Record::new(mark.topic, value).with_header(RETRIED, offset.to_string());
    let records = vec![(Destination::Keyed(topic.name.into()), again), (Destination::Exact(partition()), mark)];
    let committed = writer.commit(Batch { records, consumed: Vec::new() }).await;
    let positions = committed.map_err(|error| match error {
        CommitError::Fenced => Failure::conflict("somebody else tries letters again just now: repeat the call"),
        CommitError::Ambiguous(error) => Failure::unavailable(format!(
            "it is not known whether the record was written ({error}): repeat the call, it is tried again once at most"
        )),
        CommitError::Failed(error) => error.into(),
    })?;
    positions.into_iter().next().ok_or_else(|| Failure::internal("the log named no position for a record"))
}

/// What became of the record, in words. Letters from `end` on are new.
async fn outcome(shared: &Arc<Shared>, position: &Position, end: u64) -> Answer<String> {
    let Position { source, offset } = position;
    let request = RequestPosition { topic: source.topic.to_string(), partition: source.partition, offset: *offset };
    match shared.read.outcome(&request, shared.limits.outcome_wait).await? {
        Outcome::Pending => return Ok("it is on its topic, and not processed yet".to_owned()),
        Outcome::Refused(refusal) => return Ok(format!("refused: {}", refusal.reason)),
        Outcome::Processed => {}
    }
    let mut dead = None;
    each(shared, end, shared.log.end_offset(&partition()).await?, |record| {
        if let Entry::Letter(record, letter) = entry(record)
            && (letter.topic.as_str(), letter.partition, letter.offset) == (&*source.topic, source.partition, *offset)
        {
            dead = Some(format!("a dead letter again, at offset {}: {}", record.offset, letter.error));
        }
    })
    .await?;
    Ok(dead.unwrap_or_else(|| "processed".to_owned()))
}
