//! Whether a log is whole: what `longshore log verify` asks.
//!
//! ```text
//!   fact partitions ──▶ FactChecker ──▶ transactions, causes ─┐
//!   request partitions, goal-state ──▶ RequestChecker ◀───────┤   ──▶ Report { partitions, faults }
//!   dead letters ──▶ LetterChecker ◀──────────────────────────┘
//!   projections, stored or live ──▶ fingerprint ──compared with──▶ a replay from the first fact
//! ```
//!
//! The checkers are pure and are fed record by record, so that a simulated log is judged by the same rules as one on a
//! disk. After a fault a checker takes up where the log goes on: one missing fact is one fault, not a thousand.
//!
//! A log that is written meanwhile ([`verify_running`]) is read in an order in which what is read later has the rest of what
//! was read before: facts, then requests, then dead letters; and of the requests that processors send only those are judged
//! whose facts were read.
//!
//! Not known here: what facts mean. A log can be whole and tell of a wrong decision.

mod facts;
mod letters;
mod requests;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    time::Duration,
};

use longshore_fleet::Fleet;
use longshore_goals::Goals;
use longshore_log::{Log, ReadLimit, StoredRecord, TopicPartition};
use longshore_processor::Processor;
use longshore_queue::Queue;
use longshore_replication::Replication;
use longshore_runtime::Wire;
use longshore_schemas::{
    Timestamp,
    codec::{self, Message},
    events::{
        ArtifactRequest, BuildRequest, DeadLetter, Event, Fact, FactEvent, FleetReport, GoalRequest, GoalState, Request,
    },
    topics::{self, Topic},
};
use serde::{Deserialize, Serialize};

pub use self::{
    facts::{CheckedFacts, FactChecker},
    letters::LetterChecker,
    requests::{CheckedRequests, RequestChecker},
    state::stored_fingerprints,
};
use crate::{Error, PartitionFingerprint};

/// Faults that are told one by one; further ones are only counted.
pub const FAULTS_MAX: usize = 100;
/// Facts and requests of one transaction may be stored at times of two clocks.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60 * 60);

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Something that must be there is not.
    Gap,
    /// Something is there twice, or was consumed twice.
    Duplicate,
    /// An output or a transaction is there in part.
    Torn,
    /// A time, or what a processor has consumed, goes back.
    Backwards,
    /// A record is not what its topic's schema says.
    Undecodable,
    /// A record does not lie on its key's partition, or says it came from elsewhere.
    Misplaced,
    /// A cause names a request that the log does not have there.
    Uncaused,
    /// A stored projection is not what the facts say.
    State,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gap => "gap",
            Self::Duplicate => "duplicate",
            Self::Torn => "torn",
            Self::Backwards => "backwards",
            Self::Undecodable => "undecodable",
            Self::Misplaced => "misplaced",
            Self::Uncaused => "uncaused",
            Self::State => "state",
        })
    }
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub kind: FaultKind,
    pub topic: String,
    pub partition: u32,
    /// The record at which it shows; None for the partition as a whole.
    pub offset: Option<u64>,
    /// For people.
    pub what: String,
}

/// The faults of one checker: the first [`FAULTS_MAX`], and how many there are in all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults {
    pub first: Vec<Fault>,
    pub total: u64,
}

impl Faults {
    fn add(&mut self, kind: FaultKind, of: &TopicPartition, offset: impl Into<Option<u64>>, what: String) {
        self.total += 1;
        if self.first.len() < FAULTS_MAX {
            let (topic, partition, offset) = (of.topic.to_string(), of.partition, offset.into());
            self.first.push(Fault { kind, topic, partition, offset, what });
        }
    }

    fn extend(&mut self, other: Self) {
        self.total += other.total;
        let room = FAULTS_MAX - self.first.len();
        self.first.extend(other.first.into_iter().take(room));
    }
}

/// What one fact partition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionReport {
    pub topic: String,
    pub partition: u32,
    pub facts: u64,
    pub transactions: u64,
    /// Requests that led to facts.
    pub outputs: u64,
    pub refusals: u64,
    /// Requests that the log has and no transaction consumed yet.
    pub waiting: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub partitions: Vec<PartitionReport>,
    /// Request records read, those of `goal-state` included.
    pub requests: u64,
    pub dead_letters: u64,
    /// Partitions whose stored projection was compared with a replay.
    pub projections: u64,
    /// The first [`FAULTS_MAX`].
    pub faults: Vec<Fault>,
    pub faults_total: u64,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.faults_total == 0
    }
}

/// Reads the whole log, and the projections in `state_dir` if there are any. Nothing else may write meanwhile.
pub async fn verify(log: &dyn Log, state_dir: Option<&Path>) -> Result<Report, Error> {
    let verified = read(log, false).await?;
    let (projections, found) = match state_dir.filter(|state_dir| state_dir.is_dir()) {
        Some(state_dir) => state::compare(log, state::stored_fingerprints(log, state_dir)?).await?,
        None => (0, Faults::default()),
    };
    Ok(verified.report(projections, found))
}

/// As [`verify`], while the log is written and the projections follow it; `live` takes their fingerprints.
pub async fn verify_running(
    log: &dyn Log,
    live: impl FnOnce() -> Result<Vec<PartitionFingerprint>, Error> + Send,
) -> Result<Report, Error> {
    let verified = read(log, true).await?;
    let (projections, found) = state::compare(log, live()?).await?;
    Ok(verified.report(projections, found))
}

/// Everything but the projections.
struct Verified {
    partitions: Vec<PartitionReport>,
    requests: u64,
    dead_letters: u64,
    faults: Faults,
}

impl Verified {
    fn report(self, projections: u64, found: Faults) -> Report {
        let Self { partitions, requests, dead_letters, mut faults } = self;
        faults.extend(found);
        let Faults { first, total } = faults;
        Report { partitions, requests, dead_letters, projections, faults: first, faults_total: total }
    }
}

async fn read(log: &dyn Log, running: bool) -> Result<Verified, Error> {
    let (facts, requests, faults) = (BTreeMap::new(), BTreeMap::new(), Faults::default());
    let (dead, oldest, named) = (dead(log).await?, oldest_request(log).await?, senders_of_goal_state(log).await?);
    let mut verifier = Verifier { log, running, dead, oldest, named, facts, requests, faults };
    verifier.facts::<Queue>(&[topics::WORKER_SIGNALS]).await?;
    verifier.facts::<Replication>(&[]).await?;
    verifier.facts::<Goals>(&[]).await?;
    verifier.facts::<Fleet>(&[]).await?;
    verifier.requests::<<Queue as Processor>::Request>(Some(topics::BUILDS)).await?;
    verifier.requests::<<Replication as Processor>::Request>(Some(topics::ARTIFACTS)).await?;
    verifier.requests::<<Goals as Processor>::Request>(Some(topics::GOALS)).await?;
    verifier.requests::<<Fleet as Processor>::Request>(Some(topics::FLEET)).await?;
    verifier.requests::<GoalState>(None).await?;
    let dead_letters = verifier.letters().await?;
    let Verifier { facts, requests, faults, .. } = verifier;
    Ok(Verified {
        partitions: facts.into_values().map(|checked| checked.report).collect(),
        requests: requests.values().map(|checked| checked.records).sum(),
        dead_letters,
        faults,
    })
}

/// Reads partition by partition, and carries what one checker found to the next.
struct Verifier<'a> {
    log: &'a dyn Log,
    /// Whether the log is written meanwhile.
    running: bool,
    /// Offsets of requests that were set aside, by topic and partition.
    dead: BTreeMap<(String, u32), BTreeSet<u64>>,
    /// When the first request was stored that the log still has.
    oldest: Timestamp,
    /// The transactions that `goal-state` is of, which keeps the newest of each key for ever; by the name of the sender.
    named: BTreeMap<String, BTreeSet<u64>>,
    /// By topic and partition, in the order of the processors.
    facts: BTreeMap<(&'static str, u32), CheckedFacts>,
    requests: BTreeMap<(&'static str, u32), CheckedRequests>,
    faults: Faults,
}

impl Verifier<'_> {
    async fn facts<P: Wire>(&mut self, signals: &'static [Topic]) -> Result<(), Error>
    where
        Fact<P::Fact>: Message,
        P::Fact: FactEvent,
    {
        let topic = P::Fact::TOPIC;
        for partition in 0..self.log.partitions(topic.name)? {
            let requests = TopicPartition::new(P::Request::TOPIC.name, partition);
            let mut checker = FactChecker::<P>::new(partition, topic.partitions, signals);
            checker.expired_before(self.log.start_offset(&requests).await?);
            let named = self.named.remove(&sender::<P>(partition)).unwrap_or_default();
            checker.keep_transactions(self.oldest, named);
            let of = TopicPartition::new(topic.name, partition);
            each(self.log, &of, |record| checker.record(record)).await?;
            let (start, end) = (self.log.start_offset(&requests).await?, self.log.end_offset(&requests).await?);
            let (checked, faults) = checker.finish(start, end);
            self.facts.insert((topic.name, partition), checked);
            self.faults.extend(faults);
        }
        Ok(())
    }

    /// `facts` are those of the processor that consumes these.
    async fn requests<E: Event>(&mut self, facts: Option<Topic>) -> Result<(), Error>
    where
        Request<E>: Message,
    {
        let topic = E::TOPIC;
        for partition in 0..self.log.partitions(topic.name)? {
            let consumer = facts.and_then(|facts| self.facts.get(&(facts.name, partition)));
            let mut checker = RequestChecker::<E>::new(partition, topic.partitions, consumer, &self.facts);
            checker.is_running(self.running);
            checker.set_aside(self.dead.remove(&(topic.name.to_owned(), partition)).unwrap_or_default());
            let of = TopicPartition::new(topic.name, partition);
            each(self.log, &of, |record| checker.record(record)).await?;
            let (checked, faults) = checker.finish();
            self.requests.insert((topic.name, partition), checked);
            self.faults.extend(faults);
        }
        Ok(())
    }

    async fn letters(&mut self) -> Result<u64, Error> {
        let mut checker = LetterChecker::new(&self.requests);
        let of = TopicPartition::new(topics::DEAD_LETTERS.name, 0);
        let mut letters = 0;
        each(self.log, &of, |record| {
            letters += 1;
            checker.record(record);
        })
        .await?;
        self.faults.extend(checker.finish());
        Ok(letters)
    }
}

/// Where requests stand that were set aside.
async fn dead(log: &dyn Log) -> Result<BTreeMap<(String, u32), BTreeSet<u64>>, Error> {
    let mut dead = BTreeMap::<_, BTreeSet<u64>>::new();
    each(log, &TopicPartition::new(topics::DEAD_LETTERS.name, 0), |record| {
        if let Some(Ok(letter)) = record.record.value.as_deref().map(codec::decode::<DeadLetter>) {
            dead.entry((letter.topic, letter.partition)).or_default().insert(letter.offset);
        }
    })
    .await?;
    Ok(dead)
}

/// The time of the oldest request that retention has left, but for `goal-state`, less what clocks may differ by.
async fn oldest_request(log: &dyn Log) -> Result<Timestamp, Error> {
    let mut oldest = Timestamp(i64::MAX);
    for topic in [BuildRequest::TOPIC, ArtifactRequest::TOPIC, GoalRequest::TOPIC, FleetReport::TOPIC] {
        for partition in 0..log.partitions(topic.name)? {
            let of = TopicPartition::new(topic.name, partition);
            let (start, end) = (log.start_offset(&of).await?, log.end_offset(&of).await?);
            let mut reader = log.reader(vec![(of.clone(), start)])?;
            while reader.position(&of).is_some_and(|position| position < end) {
                let records = reader.read(ReadLimit { records: 1, ..ReadLimit::default() }).await?;
                if let Some(first) = records.first() {
                    oldest = oldest.min(first.at);
                    break;
                }
            }
        }
    }
    let apart = i64::try_from(CLOCKS_APART_MAX.as_millis()).unwrap_or(i64::MAX);
    Ok(Timestamp(oldest.millis().saturating_sub(apart)))
}

async fn senders_of_goal_state(log: &dyn Log) -> Result<BTreeMap<String, BTreeSet<u64>>, Error> {
    let mut named = BTreeMap::<_, BTreeSet<u64>>::new();
    for partition in 0..log.partitions(GoalState::TOPIC.name)? {
        each(log, &TopicPartition::new(GoalState::TOPIC.name, partition), |record| {
            let request = record.record.value.as_deref().map(codec::decode::<Request<GoalState>>);
            if let Some(Ok(Request { report: Some(order), .. })) = request {
                named.entry(order.sender).or_default().insert(order.boot);
            }
        })
        .await?;
    }
    Ok(named)
}

/// The name under which a processor sends requests.
fn sender<P: Processor>(partition: u32) -> String {
    format!("{}-{partition}", P::NAME)
}

/// Every record of a partition, in order, up to the end that it has now.
async fn each(log: &dyn Log, of: &TopicPartition, mut visit: impl FnMut(&StoredRecord)) -> Result<(), Error> {
    let end = log.end_offset(of).await?;
    let start = log.start_offset(of).await?;
    if start >= end {
        return Ok(());
    }
    let mut reader = log.reader(vec![(of.clone(), start)])?;
    while reader.position(of).is_some_and(|position| position < end) {
        for record in reader.read(ReadLimit::default()).await? {
            if record.offset < end {
                visit(&record);
            }
        }
    }
    Ok(())
}

/// What is wrong with where a record lies, if anything.
fn misplaced(record: &StoredRecord, key: &str, partitions: u32) -> Option<String> {
    let found = &record.record.key;
    if key.as_bytes() != found.as_ref() {
        return Some(format!("its key is {:?}, the event's is {key:?}", String::from_utf8_lossy(found)));
    }
    let partition = topics::partition_of(found, partitions);
    (partition != record.source.partition).then(|| format!("its key {key:?} belongs on partition {partition}"))
}
