//! What people ask of single nodes: handed on to the node, and its answer to the log.
//!
//! ```text
//! log: node-queries ─signed, of this region─▶ connected here ─▶ node ─▶ answer ─▶ log: node-answers
//!                                          └─ nowhere ─▶ says so, one process for all
//! ```
//!
//! Nothing of it is kept: what is asked while the region cannot read the log is answered late or never, to nobody who waits.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use longshore_log::{Log, ReadLimit, Reader, StoredRecord, TopicPartition};
use longshore_schemas::{
    NodeId, RegionName, RequestId,
    envelope::Envelope,
    events::{LOG_TAIL_BYTES_MAX, LogRead, NodeAnswer, NodeQuery, NotAnswered, Request},
    stream::Answer,
    topics,
};
use longshore_service::metrics::Counters;
use longshore_signing::{
    TrustedKeys,
    query::{self, QUERY},
    record,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{Error, nodes::Sessions, outbox::Outbox};

const REOPEN_WAIT: Duration = Duration::from_secs(1);
const READ: ReadLimit = ReadLimit { records: 64, bytes: 256 * 1024 };
/// A node's answer that comes later is not wanted any more.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Queries whose answers are awaited; the oldest give way.
const AWAITED_MAX: usize = 256;
/// A byte that is no text is three of them as text.
const TEXT_BYTES_MAX: usize = 3 * LOG_TAIL_BYTES_MAX as usize;
const REASON_CHARS_MAX: usize = 300;
/// Answers on their way to the log, of up to half a megabyte each; others are dropped.
pub(crate) const ANSWERS_MAX: usize = 16;

pub(crate) static QUERIES: LazyLock<Counters<1>> = LazyLock::new(|| {
    Counters::new("longshore_region_queries", "Queries to nodes of this region, by what became of them", ["outcome"])
});

/// What the node that was asked answers to a query.
pub(crate) type Answered = (RequestId, Answer);

/// See the module.
pub(crate) struct Queries {
    region: RegionName,
    log: Arc<dyn Log>,
    trusted: TrustedKeys,
    outbox: Arc<Outbox>,
    sessions: Arc<Sessions>,
    answers: mpsc::Receiver<Answered>,
    /// None: to be opened, at the end of what is there then.
    reader: Option<Box<dyn Reader>>,
}

impl Queries {
    /// What is asked after this is answered.
    pub(crate) async fn open(
        log: Arc<dyn Log>,
        trusted: TrustedKeys,
        outbox: Arc<Outbox>,
        sessions: Arc<Sessions>,
        answers: mpsc::Receiver<Answered>,
    ) -> Result<Self, Error> {
        let (region, reader) = (sessions.region.clone(), Some(open(&*log).await?));
        Ok(Self { region, log, trusted, outbox, sessions, answers, reader })
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        while let Some(Err(error)) = shutdown.run_until_cancelled(self.follow()).await {
            tracing::warn!(region = %self.region, %error, "queries cannot be followed; trying again");
            if shutdown.run_until_cancelled(tokio::time::sleep(REOPEN_WAIT)).await.is_none() {
                return;
            }
        }
    }

    /// Ends with an error only.
    async fn follow(&mut self) -> Result<std::convert::Infallible, longshore_log::Error> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => open(&*self.log).await?,
        };
        loop {
            tokio::select! {
                records = reader.read(READ) => for stored in &records? {
                    self.take(stored).await;
                },
                Some((query, answer)) = self.answers.recv() => self.answer(query, answer).await,
            }
        }
    }

    async fn take(&mut self, stored: &StoredRecord) {
        // Others' queries are not looked at any further.
        if *stored.record.key != *self.region.as_str().as_bytes() {
            return;
        }
        let (request, envelope) = match self.believed(stored) {
            Ok(believed) => believed,
            Err(reason) => {
                QUERIES.count(["not believed"], 1);
                tracing::warn!(source = %stored.source, offset = stored.offset, reason, "a query is not believed");
                return;
            }
        };
        let NodeQuery::LogWanted(wanted) = request.event;
        if wanted.region != self.region {
            return;
        }
        let node = wanted.node;
        if let Some(may_ask) = self.sessions.answers_queries(&node) {
            tracing::info!(%node, service = %wanted.service, actor = request.actor, "a service's log is asked for");
            if may_ask {
                self.sessions.ask(request.id, &node, envelope);
            } else {
                let reason = format!("the agent of node {node} is too old to answer: replace it by a newer one");
                self.answer(request.id, Answer::None(reason)).await;
            }
            return;
        }
        let reports = &self.sessions.reports;
        if !reports.is_elsewhere(&node) && reports.is_to_do(self.outbox.sender(), request.id.as_str()) {
            let reason = format!("node {node} is not connected to its region {}", self.region);
            self.answer(request.id, Answer::None(reason)).await;
        }
    }

    fn believed(&self, stored: &StoredRecord) -> Result<(Request<NodeQuery>, Envelope), String> {
        let value = stored.record.value.as_deref().ok_or("it is empty")?;
        let header = stored.record.headers_named(record::SIGNATURE).next();
        let envelope = record::envelope(&QUERY, value, header).ok_or("it is not signed")?;
        let request = query::verify(&envelope, &self.trusted).map_err(|error| error.to_string())?;
        Ok((request, envelope))
    }

    async fn answer(&mut self, query: RequestId, answer: Answer) {
        let region = self.region.clone();
        let (outcome, event) = match bounded(answer) {
            Answer::Log(text) => ("answered", NodeAnswer::from(LogRead { query, region, text })),
            Answer::None(reason) => ("not answered", NotAnswered { query, region, reason }.into()),
        };
        let sent = self.outbox.send_once(event).await;
        QUERIES.count([if sent { outcome } else { "not sent" }], 1);
    }
}

/// Nobody need read more than was asked for, nor what is no text.
fn bounded(answer: Answer) -> Answer {
    match answer {
        Answer::Log(text) if text.len() > TEXT_BYTES_MAX => {
            Answer::None(format!("the node answers with {} bytes, which is too much", text.len()))
        }
        Answer::Log(text) => Answer::Log(text),
        Answer::None(reason) => {
            Answer::None(reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect())
        }
    }
}

/// From now on.
async fn open(log: &dyn Log) -> Result<Box<dyn Reader>, longshore_log::Error> {
    let topic = topics::NODE_QUERIES.name;
    let mut from = Vec::new();
    for partition in 0..log.partitions(topic)? {
        let of = TopicPartition::new(topic, partition);
        let end = log.end_offset(&of).await?;
        from.push((of, end));
    }
    log.reader(from)
}

/// Which node has been asked what: nothing else is taken from it as an answer.
#[derive(Default)]
pub(crate) struct Awaited(BTreeMap<RequestId, (NodeId, Instant)>);

impl Awaited {
    pub(crate) fn ask(&mut self, query: RequestId, node: NodeId, now: Instant) {
        self.0.retain(|_, (_, asked)| *asked + ANSWER_WAIT > now);
        if self.0.len() >= AWAITED_MAX {
            let oldest = self.0.iter().min_by_key(|(_, (_, asked))| *asked).map(|(query, _)| query.clone());
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        self.0.insert(query, (node, now));
    }

    /// Whether this answer is the node's to give, and comes in time. The next one is not.
    pub(crate) fn is_answered(&mut self, query: &RequestId, node: &NodeId, now: Instant) -> bool {
        let is_its = self.0.get(query).is_some_and(|(asked, at)| asked == node && *at + ANSWER_WAIT > now);
        if is_its {
            self.0.remove(query);
        }
        is_its
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_node_that_was_asked_answers_and_only_once() {
        let (mut awaited, now) = (Awaited::default(), Instant::now());
        let (query, node, other): (RequestId, NodeId, NodeId) =
            ("q-1".parse().expect("valid"), "n1".parse().expect("valid"), "n2".parse().expect("valid"));
        awaited.ask(query.clone(), node.clone(), now);
        assert!(!awaited.is_answered(&query, &other, now));
        assert!(awaited.is_answered(&query, &node, now));
        assert!(!awaited.is_answered(&query, &node, now), "once");
        awaited.ask(query.clone(), node.clone(), now);
        assert!(!awaited.is_answered(&query, &node, now + ANSWER_WAIT), "too late");
        let long = Answer::None("\u{1b}[2J".repeat(1_000));
        let Answer::None(reason) = bounded(long) else { panic!("no reason") };
        assert!(reason.len() == REASON_CHARS_MAX && !reason.contains('\u{1b}'), "{reason}");
        assert!(matches!(bounded(Answer::Log("x".repeat(TEXT_BYTES_MAX + 1))), Answer::None(_)));
        for number in 0..AWAITED_MAX * 2 {
            awaited.ask(format!("q-{number}").parse().expect("valid"), node.clone(), now + ANSWER_WAIT);
        }
        assert_eq!(awaited.0.len(), AWAITED_MAX);
    }
}
