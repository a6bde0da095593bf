//! Retention and the end of tombstones. Compaction itself happens with every write (see `write`).

use std::{sync::Arc, time::Duration};

use longshore_schemas::Timestamp;
use tokio::sync::oneshot;

use super::{
    format,
    shared::{Partition, Shared, Slot},
    store::View,
    write::Op,
    writer::unfenced,
};
use crate::Error;

/// How long a reader of a compacted topic has to see that a key is gone.
pub const TOMBSTONE_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Tombstones removed in one step.
const TOMBSTONES_PER_STEP: usize = 1_000;

/// What one run of maintenance did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Maintained {
    /// Offsets that retention took.
    pub expired: u64,
    /// Tombstones removed from compacted topics.
    pub tombstones: u64,
}

/// The first offset whose record the log took at `at` or later; the end if there is none.
pub(super) fn offset_at(view: &View<'_>, partition: &Partition, at: Timestamp) -> Result<u64, Error> {
    let end = partition.end();
    let (mut low, mut high) = (partition.start(), end);
    let mut found = end;
    // Times never decrease, so halving works; it takes at most 64 looks. The record at `middle` may be gone: the next one speaks for it.
    while low < high {
        let middle = low + (high - low) / 2;
        match first_from(view, partition, middle, end)? {
            Some((offset, time)) if time < at => low = offset + 1,
            Some((offset, _)) => {
                found = offset;
                high = middle;
            }
            None => high = middle,
        }
    }
    Ok(found)
}

fn first_from(view: &View<'_>, partition: &Partition, from: u64, end: u64) -> Result<Option<(u64, Timestamp)>, Error> {
    let mut first = None;
    view.scan(partition.id, from, end, |offset, stored| {
        let reason = "the record is damaged";
        let at = || format!("{}, offset {offset}", partition.name);
        let time = format::time_of(stored).ok_or_else(|| Error::Corrupt { at: at(), reason })?;
        first = Some((offset, time));
        Ok(false)
    })?;
    Ok(first)
}

pub(super) async fn maintain(shared: &Arc<Shared>, now: Timestamp) -> Result<Maintained, Error> {
    let mut done = Maintained::default();
    for (slot, partition) in shared.partitions.iter().enumerate() {
        if let Some(retention) = partition.retention {
            done.expired += expire(shared, slot, before(now, retention)).await?;
        }
        if partition.compacted {
            done.tombstones += bury(shared, slot, before(now, TOMBSTONE_KEPT)).await?;
        }
    }
    Ok(done)
}

fn before(now: Timestamp, duration: Duration) -> Timestamp {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(now.millis().saturating_sub(millis))
}

/// Deletes the records that the log took before `horizon`; how many offsets that are.
async fn expire(shared: &Arc<Shared>, slot: Slot, horizon: Timestamp) -> Result<u64, Error> {
    let partition = &shared.partitions[slot];
    let old = partition.start();
    let start = blocking(shared, move |shared| {
        let partition = &shared.partitions[slot];
        shared.store.with(|view| offset_at(view, partition, horizon))
    });
    let start = start.await?;
    if start <= old {
        return Ok(0);
    }
    let room = shared.room_for(0).await?;
    let (answer, outcome) = oneshot::channel();
    shared.ask(Op::Trim { slot, start, room, answer }, outcome).await.map_err(unfenced)?;
    blocking(shared, move |shared| {
        let partition = &shared.partitions[slot];
        shared.store.with(|view| view.drop_files(partition.id, start))
    })
    .await?;
    tracing::info!(partition = %partition.name, from = old, to = start, "retention removed records");
    Ok(start - old)
}

/// Removes the tombstones that the log took before `horizon`; how many.
async fn bury(shared: &Arc<Shared>, slot: Slot, horizon: Timestamp) -> Result<u64, Error> {
    let mut from = 0;
    let mut buried = 0;
    loop {
        let (tombstones, next) = blocking(shared, move |shared| tombstones(shared, slot, from, horizon)).await?;
        if !tombstones.is_empty() {
            buried += tombstones.len() as u64;
            let bytes = tombstones.iter().map(|(key, _)| key.len()).sum();
            let room = shared.room_for(bytes).await?;
            let (answer, outcome) = oneshot::channel();
            shared.ask(Op::Bury { slot, tombstones, room, answer }, outcome).await.map_err(unfenced)?;
        }
        match next {
            Some(next) => from = next,
            None => return Ok(buried),
        }
    }
}

/// Some old tombstones from `from` on, and where to look for more.
type Tombstones = (Vec<(Vec<u8>, u64)>, Option<u64>);

fn tombstones(shared: &Shared, slot: Slot, from: u64, horizon: Timestamp) -> Result<Tombstones, Error> {
    let partition = &shared.partitions[slot];
    shared.store.with(|view| {
        let end = offset_at(view, partition, horizon)?;
        let mut found = Vec::new();
        let mut next = None;
        let mut bytes = 0;
        view.scan(partition.id, from, end, |offset, stored| {
            if found.len() >= TOMBSTONES_PER_STEP || bytes >= crate::RECORD_BYTES_MAX {
                next = Some(offset);
                return Ok(false);
            }
            if format::is_tombstone(stored) {
                let key = format::key_of(stored).ok_or_else(|| {
                    let at = format!("{}, offset {offset}", partition.name);
                    Error::Corrupt { at, reason: "the tombstone is damaged" }
                })?;
                bytes += key.len();
                found.push((key.to_vec(), offset));
            }
            Ok(true)
        })?;
        Ok((found, next))
    })
}

pub(super) async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let shared = shared.clone();
    let done = tokio::task::spawn_blocking(move || work(&shared)).await;
    done.unwrap_or_else(|source| Err(Error::Storage { doing: "working in the background", source: Arc::new(source) }))
}
