//! Readers: what is durable, partition by partition, each read beginning with another one so that none starves.
//!
//! A read looks which partitions have more, scans them on a blocking thread and only then moves its positions, which
//! makes it cancel safe. Where nothing is, it waits for the writer thread to wake it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    format,
    shared::{Shared, Slot},
};
use crate::{Error, ReadLimit, Reader, StoredRecord, TopicPartition};

/// Room made for a read's records beforehand, whatever its limit.
const RECORDS_EXPECTED: usize = 256;

struct Source {
    slot: Slot,
    position: u64,
}

/// A part of one partition to scan.
struct Span {
    source: usize,
    slot: Slot,
    from: u64,
    to: u64,
}

/// What a scan found: the records, and for each source scanned its new position.
type Found = (Vec<StoredRecord>, Vec<(usize, u64)>);

pub(super) struct LocalReader {
    shared: Arc<Shared>,
    wake: Arc<Notify>,
    sources: Vec<Source>,
    /// The source that the next read begins with.
    turn: usize,
}

impl LocalReader {
    pub(super) fn new(shared: Arc<Shared>, from: &[(TopicPartition, u64)]) -> Result<Self, Error> {
        shared.check_open()?;
        let mut sources: Vec<Source> = Vec::with_capacity(from.len());
        for (partition, position) in from {
            let slot = shared.slot(partition)?;
            if sources.iter().any(|source| source.slot == slot) {
                return Err(Error::RepeatedPartition { of: partition.clone() });
            }
            sources.push(Source { slot, position: *position });
        }
        let reader = Self { shared, wake: Arc::new(Notify::new()), sources, turn: 0 };
        for source in &reader.sources {
            reader.shared.partitions[source.slot].subscribe(&reader.wake)?;
        }
        Ok(reader)
    }

    /// What there is to scan, and whether a position moved for another reason.
    fn look(&mut self) -> Result<(Vec<Span>, bool), Error> {
        let (mut spans, mut moved) = (Vec::new(), false);
        let count = self.sources.len();
        for index in (0..count).map(|step| (self.turn + step) % count) {
            let source = &mut self.sources[index];
            let partition = &self.shared.partitions[source.slot];
            let (start, end) = (partition.start(), partition.end());
            if source.position > end {
                return Err(Error::BeyondEnd { of: partition.name.clone(), offset: source.position, end });
            }
            if source.position < start {
                source.position = start;
                moved = true;
            }
            if source.position < end {
                spans.push(Span { source: index, slot: source.slot, from: source.position, to: end });
            }
        }
        Ok((spans, moved))
    }

    async fn scan(&self, spans: Vec<Span>, limit: ReadLimit) -> Result<Found, Error> {
        let shared = self.shared.clone();
        let scanned = tokio::task::spawn_blocking(move || scan(&shared, &spans, limit)).await;
        scanned.unwrap_or_else(|source| Err(Error::Storage { doing: "reading", source: Arc::new(source) }))
    }
}

#[async_trait]
impl Reader for LocalReader {
    async fn read(&mut self, limit: ReadLimit) -> Result<Vec<StoredRecord>, Error> {
        loop {
            self.shared.check_open()?;
            let (spans, moved) = self.look()?;
            if spans.is_empty() && !moved {
                self.wake.notified().await;
                continue;
            }
            let (records, positions) = self.scan(spans, limit).await?;
            for (source, position) in positions {
                self.sources[source].position = position;
            }
            self.turn = (self.turn + 1) % self.sources.len();
            return Ok(records);
        }
    }

    fn position(&self, of: &TopicPartition) -> Option<u64> {
        let slot = self.shared.slot(of).ok()?;
        self.sources.iter().find(|source| source.slot == slot).map(|source| source.position)
    }
}

impl Drop for LocalReader {
    fn drop(&mut self) {
        for source in &self.sources {
            self.shared.partitions[source.slot].unsubscribe(&self.wake);
        }
    }
}

fn scan(shared: &Shared, spans: &[Span], limit: ReadLimit) -> Result<Found, Error> {
    let mut records = Vec::with_capacity(limit.records.min(RECORDS_EXPECTED));
    let mut positions = Vec::with_capacity(spans.len());
    let mut bytes = 0;
    for span in spans {
        let partition = &shared.partitions[span.slot];
        let mut position = span.from;
        let all = shared.store.with(|view| {
            view.scan(partition.id, span.from, span.to, |offset, stored| {
                let full = records.len() >= limit.records.max(1) || bytes + stored.len() > limit.bytes;
                if full && !records.is_empty() {
                    return Ok(false);
                }
                bytes += stored.len();
                records.push(decode(&partition.name, offset, stored)?);
                position = offset + 1;
                Ok(true)
            })
        })?;
        positions.push((span.source, if all { span.to } else { position }));
        if !all {
            break;
        }
    }
    Ok((records, positions))
}

fn decode(source: &TopicPartition, offset: u64, stored: &[u8]) -> Result<StoredRecord, Error> {
    let Some((at, record)) = format::decode(Bytes::copy_from_slice(stored)) else {
        return Err(Error::Corrupt { at: format!("{source}, offset {offset}"), reason: "the record is damaged" });
    };
    Ok(StoredRecord { source: source.clone(), offset, at, record })
}
