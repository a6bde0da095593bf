//! The callers' side of writing: check, encode, queue, wait.

use std::{mem, sync::Arc};

use async_trait::async_trait;
use longshore_schemas::topics;
use tokio::sync::oneshot;

use super::{
    shared::{Prepared, Shared, Slot},
    write::Op,
};
use crate::{BATCH_RECORDS_MAX, Batch, CommitError, Destination, Error, Position, Record, Writer};

/// Longest owner of a writer.
const OWNER_BYTES_MAX: usize = 255;

pub(super) async fn append(shared: &Shared, topic: &str, records: &[Record]) -> Result<Vec<Position>, Error> {
    shared.check_open()?;
    let topic = shared.topic(topic)?;
    let mut prepared = Prepared::with_capacity(records.len());
    for record in records {
        let partition = topics::partition_of(&record.key, topic.partitions);
        prepared.push(topic.first + partition as usize, &topic.name, record)?;
    }
    if prepared.records.is_empty() {
        return Ok(Vec::new());
    }
    write(shared, None, prepared, Vec::new()).await.map_err(unfenced)
}

pub(super) async fn take_over(shared: &Arc<Shared>, owner: &str) -> Result<LocalWriter, Error> {
    shared.check_open()?;
    if owner.len() > OWNER_BYTES_MAX {
        return Err(Error::TooMany { what: "bytes in the owner of a writer", limit: OWNER_BYTES_MAX });
    }
    let owner: Arc<str> = owner.into();
    let room = shared.room_for(owner.len()).await?;
    let (answer, outcome) = oneshot::channel();
    let op = Op::TakeOver { owner: owner.clone(), room, answer };
    let epoch = shared.ask(op, outcome).await.map_err(unfenced)?;
    Ok(LocalWriter { shared: shared.clone(), owner, epoch, state: State::Ready })
}

/// The error of an operation that no fence applies to.
pub(super) fn unfenced(error: CommitError) -> Error {
    match error {
        CommitError::Failed(error) | CommitError::Ambiguous(error) => error,
        CommitError::Fenced => Error::WriterSpent,
    }
}

async fn write(
    shared: &Shared,
    fence: Option<(Arc<str>, u64)>,
    prepared: Prepared,
    consumed: Vec<(Slot, u64)>,
) -> Result<Vec<Position>, CommitError> {
    let room = shared.room_for(prepared.bytes()).await.map_err(CommitError::Failed)?;
    let slots = prepared.slots();
    let (answer, outcome) = oneshot::channel();
    let op = Op::Write { fence, records: prepared.records, consumed, room, answer };
    let offsets = shared.ask(op, outcome).await?;
    let position = |(slot, offset): (Slot, u64)| Position { source: shared.partitions[slot].name.clone(), offset };
    Ok(slots.into_iter().zip(offsets).map(position).collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// A commit is under way, was dropped midway, or its outcome is not known.
    Unsure,
    Fenced,
}

pub(super) struct LocalWriter {
    shared: Arc<Shared>,
    owner: Arc<str>,
    epoch: u64,
    state: State,
}

impl LocalWriter {
    fn prepare(&self, batch: &Batch) -> Result<(Prepared, Vec<(Slot, u64)>), Error> {
        self.shared.check_open()?;
        let mut prepared = Prepared::with_capacity(batch.records.len());
        for (destination, record) in &batch.records {
            let (slot, topic) = match destination {
                Destination::Keyed(topic) => {
                    let topic = self.shared.topic(topic)?;
                    let partition = topics::partition_of(&record.key, topic.partitions);
                    (topic.first + partition as usize, &topic.name)
                }
                Destination::Exact(partition) => (self.shared.slot(partition)?, &partition.topic),
            };
            prepared.push(slot, topic, record)?;
        }
        if batch.consumed.len() > BATCH_RECORDS_MAX {
            return Err(Error::TooMany { what: "consumed offsets in one batch", limit: BATCH_RECORDS_MAX });
        }
        let consumed = batch.consumed.iter().map(|(of, offset)| Ok((self.shared.slot(of)?, *offset)));
        Ok((prepared, consumed.collect::<Result<_, Error>>()?))
    }
}

#[async_trait]
impl Writer for LocalWriter {
    async fn commit(&mut self, batch: Batch) -> Result<Vec<Position>, CommitError> {
        match self.state {
            State::Ready => {}
            State::Unsure => return Err(CommitError::Failed(Error::WriterSpent)),
            State::Fenced => return Err(CommitError::Fenced),
        }
        let (prepared, consumed) = self.prepare(&batch).map_err(CommitError::Failed)?;
        // Stays so if this future is dropped while it waits.
        let before = mem::replace(&mut self.state, State::Unsure);
        let outcome = write(&self.shared, Some((self.owner.clone(), self.epoch)), prepared, consumed).await;
        self.state = match &outcome {
            Ok(_) | Err(CommitError::Failed(_)) => before,
            Err(CommitError::Fenced) => State::Fenced,
            Err(CommitError::Ambiguous(_)) => State::Unsure,
        };
        outcome
    }
}
