//! One partition's State on this machine, and the only way it changes.
//!
//! Facts come from the log ([`Replica::follow`]) or from a commit of this process ([`Replica::lead`]); both end in one
//! RocksDB batch of changes and [`Applied`], and are then told to those who wait.

use std::sync::Arc;

use longshore_log::{StoredRecord, TopicPartition};
use longshore_processor::{Overlay, StateError, Store};
use longshore_schemas::events::{Event, Fact, FactEvent};
use tokio::sync::watch;

use crate::{
    Applied, Error, PartitionStore, Wire, outcomes::Outcomes, service::Observer, step::Transaction, store::Epoch,
    wire::apply_fact,
};

/// What others see of a partition.
pub(crate) struct Shared<F> {
    pub(crate) partition: u32,
    pub(crate) applied: watch::Sender<Applied>,
    pub(crate) outcomes: Outcomes,
    pub(crate) observer: Arc<dyn Observer<F>>,
}

pub(crate) struct Replica<P: Wire> {
    store: PartitionStore,
    facts: TopicPartition,
    applied: Applied,
    /// In which `applied` was read from the store.
    epoch: Epoch,
    shared: Arc<Shared<P::Fact>>,
}

impl<P: Wire> Replica<P> {
    /// Takes up the stored state, or starts from zero if it is of another version.
    pub(crate) fn open(
        store: PartitionStore,
        facts: TopicPartition,
        observer: Arc<dyn Observer<P::Fact>>,
    ) -> Result<Self, Error> {
        let epoch = store.epoch();
        let applied = match store.applied(P::NAME, P::STATE_VERSION)? {
            Some(applied) => applied,
            None => {
                store.clear()?;
                Applied::default()
            }
        };
        let shared = Shared {
            partition: facts.partition,
            applied: watch::Sender::new(applied),
            outcomes: Outcomes::new(applied.request_offset),
            observer,
        };
        Ok(Self { store, facts, applied, epoch, shared: Arc::new(shared) })
    }

    /// Before a role begins. After a write that failed the store may be ahead of what is known here, or behind.
    pub(crate) fn refresh(&mut self) -> Result<(), Error> {
        self.store.ready()?;
        self.epoch = self.store.epoch();
        let applied = self.store.applied(P::NAME, P::STATE_VERSION)?.unwrap_or_default();
        if applied != self.applied {
            tracing::info!(processor = P::NAME, partition = self.shared.partition, ?applied, "the stored state counts");
            self.publish(applied, &[]);
        }
        Ok(())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<P::Fact>> {
        &self.shared
    }

    pub(crate) fn applied(&self) -> Applied {
        self.applied
    }

    pub(crate) fn facts(&self) -> &TopicPartition {
        &self.facts
    }

    pub(crate) fn base(&self) -> &dyn Store {
        &self.store
    }

    /// Forgets the state, to read it from the log again.
    pub(crate) fn reset(&mut self) -> Result<(), Error> {
        self.store.clear()?;
        self.applied = Applied::default();
        self.shared.applied.send_replace(self.applied);
        self.shared.outcomes.advance(0, std::iter::empty());
        Ok(())
    }

    /// Applies committed facts of others, which are read up to `position`. If one cannot be applied, those before it are.
    pub(crate) fn follow(&mut self, records: &[StoredRecord], position: u64) -> Result<(), Error> {
        let mut overlay = Overlay::new(&self.store);
        let (mut applied, mut facts) = (self.applied, Vec::with_capacity(records.len()));
        for (index, record) in records.iter().enumerate() {
            match apply_record::<P>(&mut overlay, &mut applied, record) {
                Ok(fact) => facts.push(fact),
                Err(error) if error.halts() && index > 0 => {
                    self.follow(&records[..index], record.offset)?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        applied.fact_offset = applied.fact_offset.max(position);
        let changes = overlay.into_changes();
        self.store.apply(self.epoch, &changes, P::NAME, P::STATE_VERSION, applied)?;
        self.publish(applied, &facts);
        Ok(())
    }

    /// Applies this process's own commit; `fact_offset` is the one after its last fact.
    pub(crate) fn lead(&mut self, transaction: Transaction<P::Fact>, fact_offset: u64) -> Result<(), Error> {
        let Transaction { changes, facts, next_offset, .. } = transaction;
        let Some(last) = facts.last() else { return Ok(()) };
        let applied = Applied { fact_offset, request_offset: next_offset, sequence: last.sequence, at: last.at };
        self.store.apply(self.epoch, &changes, P::NAME, P::STATE_VERSION, applied)?;
        self.publish(applied, &facts);
        Ok(())
    }

    fn publish(&mut self, applied: Applied, facts: &[Fact<P::Fact>]) {
        self.applied = applied;
        self.shared.applied.send_replace(applied);
        self.shared.outcomes.advance(applied.request_offset, facts.iter().filter_map(|fact| fact.event.processed()));
        if !facts.is_empty() {
            self.shared.observer.applied(self.shared.partition, facts);
        }
    }
}

/// Applies one record of a fact partition and moves `applied` past it.
pub(crate) fn apply_record<P: Wire>(
    state: &mut dyn longshore_processor::StoreMut,
    applied: &mut Applied,
    record: &StoredRecord,
) -> Result<Fact<P::Fact>, Error> {
    let unappliable =
        |reason: String| Error::Unappliable { partition: record.source.to_string(), offset: record.offset, reason };
    let value = record.record.value.as_deref().ok_or_else(|| unappliable("it has no value".to_owned()))?;
    let fact = P::decode_fact(value).map_err(|error| unappliable(error.to_string()))?;
    if fact.sequence != applied.sequence + 1 {
        let Fact { sequence, .. } = fact;
        return Err(unappliable(format!("its sequence is {sequence} where {} follows", applied.sequence + 1)));
    }
    match apply_fact::<P>(state, &fact) {
        Ok(()) => {}
        // The disk, not the fact: to be tried again.
        Err(error @ StateError::Unreadable { .. }) => return Err(error.into()),
        Err(error) => return Err(unappliable(format!("{}: {error}", fact.event.kind()))),
    }
    applied.fact_offset = record.offset + 1;
    applied.sequence = fact.sequence;
    applied.at = fact.at;
    if let Some(processed) = fact.event.processed() {
        applied.request_offset = processed.next_offset;
    }
    Ok(fact)
}
