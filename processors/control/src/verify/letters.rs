//! The dead letters: one for each request that no processor could take.

use std::collections::{BTreeMap, BTreeSet};

use longshore_log::{StoredRecord, TopicPartition};
use longshore_schemas::{codec, events::DeadLetter, letters, topics};

use super::{CheckedRequests, FaultKind, Faults};

/// Checks the one partition of dead letters.
pub struct LetterChecker<'a> {
    of: TopicPartition,
    requests: &'a BTreeMap<(&'static str, u32), CheckedRequests>,
    seen: BTreeSet<(&'static str, u32, u64)>,
    faults: Faults,
}

impl<'a> LetterChecker<'a> {
    pub fn new(requests: &'a BTreeMap<(&'static str, u32), CheckedRequests>) -> Self {
        let of = TopicPartition::new(topics::DEAD_LETTERS.name, 0);
        Self { of, requests, seen: BTreeSet::new(), faults: Faults::default() }
    }

    /// The next record of the partition.
    pub fn record(&mut self, record: &StoredRecord) {
        // Says that an earlier one was tried again.
        if record.record.headers.iter().any(|(name, _)| name == letters::RETRIED) {
            return;
        }
        let letter = match record.record.value.as_deref().map(codec::decode::<DeadLetter>) {
            Some(Ok(letter)) => letter,
            Some(Err(error)) => {
                return self.faults.add(FaultKind::Undecodable, &self.of, record.offset, error.to_string());
            }
            None => {
                let text = "it has no value".to_owned();
                return self.faults.add(FaultKind::Undecodable, &self.of, record.offset, text);
            }
        };
        let place =
            self.requests.keys().find(|(topic, partition)| *topic == letter.topic && *partition == letter.partition);
        // A signal may be read again by the next leader, and be dead again.
        let Some((topic, partition)) = place else { return };
        if !self.seen.insert((topic, *partition, letter.offset)) {
            let text = format!("{topic}/{partition}, offset {} has a dead letter already", letter.offset);
            self.faults.add(FaultKind::Duplicate, &self.of, record.offset, text);
        }
    }

    pub fn finish(mut self) -> Faults {
        for ((topic, partition), checked) in self.requests {
            for offset in &checked.unusable {
                if !self.seen.contains(&(*topic, *partition, *offset)) {
                    let of = TopicPartition::new(*topic, *partition);
                    let text = "it was consumed, cannot be read, and has no dead letter".to_owned();
                    self.faults.add(FaultKind::Gap, &of, *offset, text);
                }
            }
        }
        self.faults
    }
}
