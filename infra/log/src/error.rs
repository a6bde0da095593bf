//! What can go wrong with the log, and what to do then.

use std::{path::PathBuf, sync::Arc};

use crate::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, RECORD_BYTES_MAX, TopicPartition};

/// A cause that several waiting callers share.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Errors of the log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("there is no topic {topic:?} in this log: add it to the topics that the log is opened with")]
    UnknownTopic { topic: String },

    #[error("there is no partition {of}: the topic has {partitions} partitions, counted from 0")]
    UnknownPartition { of: TopicPartition, partitions: u32 },

    #[error("partition {of} is named twice in one reader")]
    RepeatedPartition { of: TopicPartition },

    #[error("topic {topic:?} is not configured rightly: {reason}")]
    InvalidTopic { topic: String, reason: &'static str },

    #[error(
        "topic {topic:?} was created with {existing} and is now configured with {wanted}, which cannot be changed: \
         configure {existing} again, or move the old log away to start with an empty one"
    )]
    TopicChanged { topic: String, existing: String, wanted: String },

    #[error(
        "a record for topic {topic:?} has {bytes} bytes, more than the limit of {RECORD_BYTES_MAX}: \
             put large content in the bucket and refer to it"
    )]
    RecordTooLarge { topic: Arc<str>, bytes: usize },

    #[error(
        "a batch of {records} records and {bytes} bytes exceeds the limit of {BATCH_RECORDS_MAX} records and \
             {BATCH_BYTES_MAX} bytes: split it"
    )]
    BatchTooLarge { records: usize, bytes: usize },

    #[error(
        "offset {offset} of {of} is beyond its end {end}: the log has lost records, or the offset belongs to another log"
    )]
    BeyondEnd { of: TopicPartition, offset: u64, end: u64 },

    #[error("more than {limit} {what}: the log refuses to remember more")]
    TooMany { what: &'static str, limit: usize },

    #[error("the log in {} is already in use by another longshore process: stop that one, or choose another folder", path.display())]
    InUse { path: PathBuf },

    #[error("the log in {} has format {found}, this release reads format {expected}: use the release that wrote it", path.display())]
    Format { path: PathBuf, found: String, expected: u32 },

    #[error("what the log holds at {at} cannot be read: {reason}")]
    Corrupt { at: String, reason: &'static str },

    /// Nothing was written. The log goes on by itself once its storage works again.
    #[error("the log's storage failed while {doing}: check the disk's free space and health")]
    Storage {
        doing: &'static str,
        #[source]
        source: Cause,
    },

    /// As [`Error::Storage`], but what was being written may be there or not.
    #[error("the log's storage failed, and it is not known whether the records were written: read before trying again")]
    Unconfirmed {
        #[source]
        source: Cause,
    },

    /// Nothing was written, or what was asked is not known. librdkafka tries again by itself as long as it may.
    #[error(
        "the Kafka cluster did not do its part while {doing}: see that its brokers run, and that this user may do so"
    )]
    Kafka {
        doing: &'static str,
        #[source]
        source: Cause,
    },

    #[cfg(feature = "kafka")]
    #[error("{}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    KafkaConfig { mistakes: Vec<crate::kafka::Mistake> },

    #[error("the topic {topic} is not as it must be: {problem}. To mend it: {mend}")]
    KafkaTopic { topic: String, problem: String, mend: String },

    #[error("an earlier commit of this writer was fenced, unconfirmed or abandoned: take a new writer")]
    WriterSpent,

    #[error("the log is closed")]
    Closed,
}

impl Error {
    #[cfg(feature = "kafka")]
    pub(crate) fn kafka(doing: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Kafka { doing, source: Arc::new(error) }
    }

    /// Whether a full disk is the cause: nothing but space helps.
    pub fn is_disk_full(&self) -> bool {
        let (Self::Storage { source, .. } | Self::Unconfirmed { source }) = self else { return false };
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**source);
        while let Some(error) = cause {
            // RocksDB passes on what the kernel said as text only.
            let text = error.to_string();
            if ["No space left on device", "Disk quota exceeded"].iter().any(|full| text.contains(full)) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Why a commit did not succeed, by what the caller has to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// Another writer of this owner was taken. Nothing was written. Give up, or take over again.
    #[error("fenced: a later writer has taken over from this one")]
    Fenced,
    /// The batch may be there or not. Drop this writer and all uncommitted state, and take over again.
    #[error("it is not known whether the batch was committed: take over again")]
    Ambiguous(#[source] Error),
    /// Nothing was written; the writer can go on.
    #[error("the batch was not committed")]
    Failed(#[source] Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_known_by_what_the_kernel_said() {
        let storage = |text: &str| Error::Storage { doing: "writing", source: Arc::new(std::io::Error::other(text)) };
        assert!(storage("IO error: No space left on device: While appending to file: log/000012.log").is_disk_full());
        let source: Cause = Arc::new(storage("Disk quota exceeded"));
        assert!(Error::Unconfirmed { source }.is_disk_full());
        assert!(!storage("IO error: Input/output error").is_disk_full());
        assert!(!Error::Closed.is_disk_full());
    }
}
