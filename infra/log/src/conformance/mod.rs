//! The suite that every implementation of the log must pass.
//!
//! An implementation says how to make a log ([`Subject`]) and gets one test for each case:
//!
//! ```ignore
//! longshore_log::conformance!(MySubject::new());
//! ```
//!
//! A case knows only the traits and their comments. It waits for what must happen, with [`PATIENCE`] as the bound.

#![allow(clippy::unwrap_used, reason = "these are tests, though other crates call them")]
#![allow(clippy::needless_pass_by_value, reason = "test data reads better by value")]

mod groups;
mod lasting;
mod reading;
mod writing;

use std::{fmt::Display, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::{groups::*, lasting::*, reading::*, writing::*};
use crate::{Batch, Log, Position, ReadLimit, Record, StoredRecord, TopicConfig, TopicPartition, Writer};

/// How long something that must happen may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A topic of four partitions.
pub const WIDE: &str = "conformance-wide";
/// A topic of one partition.
pub const SINGLE: &str = "conformance-single";
/// A compacted topic of one partition.
pub const COMPACTED: &str = "conformance-compacted";

/// The topics that a log under test must have.
pub fn topics() -> Vec<TopicConfig> {
    let compacted = TopicConfig { compacted: true, ..TopicConfig::new(COMPACTED, 1) };
    vec![TopicConfig::new(WIDE, 4), TopicConfig::new(SINGLE, 1), compacted]
}

/// How to make the log under test.
#[async_trait]
pub trait Subject: Send + Sync {
    /// An empty log that has [`topics`].
    async fn create(&self) -> Arc<dyn Log>;

    /// The same log as a new process finds it. The suite holds nothing else of the old one.
    async fn reopen(&self, log: Arc<dyn Log>) -> Arc<dyn Log>;
}

/// One test for each case of the suite; the expression makes a new [`Subject`].
#[macro_export]
macro_rules! conformance {
    ($subject:expr) => {
        $crate::conformance!($subject;
            order_is_kept, offsets_are_what_append_says, keys_choose_partitions_as_in_kafka, everything_of_a_record_comes_back,
            unknown_names_are_errors, limits_hold, many_writers_at_once_lose_nothing,
            a_commit_is_all_or_nothing, a_refused_batch_leaves_nothing, a_dropped_commit_is_all_or_nothing,
            a_zombie_is_fenced, fencing_is_in_order_with_commits, owners_are_independent,
            a_read_waits_for_records, a_read_waits_on_many_partitions, a_dropped_read_loses_nothing, reads_keep_to_their_limit,
            a_read_beyond_the_end_is_an_error, no_partition_starves, times_lead_to_offsets, sizes_are_told,
            reopening_keeps_everything, a_writer_of_before_is_gone_after_reopening, compaction_keeps_the_newest,
            members_share_and_hand_over, groups_are_independent,
        );
    };
    ($subject:expr; $($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::conformance::$case(&$subject).await;
            }
        )*
    };
}

/// Waits for what must happen.
pub(crate) async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(PATIENCE, what).await.expect("nothing happened for too long")
}

/// Polls a future a few times and drops it if it is not ready then.
pub(crate) async fn briefly<F: Future>(what: F) -> Option<F::Output> {
    tokio::time::timeout(Duration::from_millis(20), what).await.ok()
}

pub(crate) fn partition(topic: &str, number: u32) -> TopicPartition {
    TopicPartition::new(topic, number)
}

pub(crate) fn record(key: impl Display, value: impl Display) -> Record {
    Record::new(format!("{key}"), format!("{value}"))
}

/// Commits, and waits until readers see all of it, which may be a moment later.
pub(crate) async fn commit(log: &dyn Log, writer: &mut dyn Writer, batch: Batch) -> Vec<Position> {
    let positions = soon(writer.commit(batch)).await.unwrap();
    for position in &positions {
        soon(async {
            while log.end_offset(&position.source).await.unwrap() <= position.offset {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    positions
}

/// Everything in the partition.
pub(crate) async fn all_of(log: &dyn Log, of: &TopicPartition) -> Vec<StoredRecord> {
    let end = soon(log.end_offset(of)).await.unwrap();
    let mut reader = log.reader(vec![(of.clone(), 0)]).unwrap();
    let mut records = Vec::new();
    while reader.position(of).unwrap() < end {
        records.extend(soon(reader.read(ReadLimit::default())).await.unwrap());
    }
    records
}

/// Everything in the topic, partition after partition.
pub(crate) async fn all_in(log: &dyn Log, topic: &str) -> Vec<StoredRecord> {
    let mut records = Vec::new();
    for number in 0..log.partitions(topic).unwrap() {
        records.extend(all_of(log, &partition(topic, number)).await);
    }
    records
}

pub(crate) fn text(record: &StoredRecord) -> String {
    String::from_utf8(record.record.value.as_ref().unwrap().to_vec()).unwrap()
}

pub(crate) fn texts(records: &[StoredRecord]) -> Vec<String> {
    records.iter().map(text).collect()
}
