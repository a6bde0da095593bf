//! One partition's State, and the only way it changes.
//!
//! Facts come from the log ([`Replica::follow`]) or from a commit of this process ([`Replica::lead`]); both end in one
//! write of changes and [`Applied`], and are then told to a listener.

use longshore_log::{StoredRecord, TopicPartition};
use longshore_planted::{Bug, planted};
use longshore_processor::{Changes, Overlay, StateError, Store};
use longshore_schemas::events::{Event, Fact, FactEvent};

use crate::{Applied, Error, Wire, step::Transaction, wire::apply_fact};

/// Where State is kept. After a crash it may be an older one, but always one that belongs to its own [`Applied`].
pub trait Projection: Store {
    /// Before a role begins: what is read from now on counts. After a write that failed the store may have been opened again
    /// since, with what was written last or without it.
    fn begin(&mut self) {}

    /// How far the stored state is; None if there is none that this processor and version can use.
    fn applied(&self, processor: &str, state_version: u32) -> Result<Option<Applied>, StateError>;

    /// Writes the changes and how far they bring the state, both or neither.
    fn apply(
        &mut self,
        changes: &Changes,
        processor: &str,
        state_version: u32,
        applied: Applied,
    ) -> Result<(), StateError>;

    /// Forgets everything of this partition.
    fn clear(&mut self) -> Result<(), StateError>;
}

/// Is told of every change of a State, after it was written.
pub trait Listener<F: Event>: Send {
    /// The state is so far now, by these facts; by none if only a position moved, or if the state was cleared.
    fn applied(&mut self, applied: Applied, facts: &[Fact<F>]);
}

pub struct Replica<P: Wire, S> {
    store: S,
    facts: TopicPartition,
    applied: Applied,
    listener: Box<dyn Listener<P::Fact>>,
}

impl<P: Wire, S: Projection> Replica<P, S> {
    /// Takes up the stored state, or starts from zero if it is of another version.
    pub fn open(
        mut store: S,
        facts: TopicPartition,
        listener: impl FnOnce(Applied) -> Box<dyn Listener<P::Fact>>,
    ) -> Result<Self, Error> {
        let applied = match store.applied(P::NAME, P::STATE_VERSION)? {
            Some(applied) => applied,
            None => {
                store.clear()?;
                Applied::default()
            }
        };
        Ok(Self { store, facts, applied, listener: listener(applied) })
    }

    /// Before a role begins: takes up what the store says now.
    pub fn refresh(&mut self) -> Result<(), Error> {
        self.store.begin();
        let applied = self.store.applied(P::NAME, P::STATE_VERSION)?.unwrap_or_default();
        if applied != self.applied {
            tracing::info!(processor = P::NAME, partition = %self.facts, ?applied, "the stored state counts");
            self.publish(applied, &[]);
        }
        Ok(())
    }

    pub fn applied(&self) -> Applied {
        self.applied
    }

    pub fn facts(&self) -> &TopicPartition {
        &self.facts
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    /// Forgets the state, to read it from the log again.
    pub fn reset(&mut self) -> Result<(), Error> {
        self.store.clear()?;
        self.publish(Applied::default(), &[]);
        Ok(())
    }

    /// Applies committed facts of others, which are read up to `position`. If one cannot be applied, those before it are.
    pub fn follow(&mut self, records: &[StoredRecord], position: u64) -> Result<(), Error> {
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
        if planted(Bug::AppliedAhead) && facts.len() > 1 {
            applied.fact_offset += 1;
        }
        let changes = overlay.into_changes();
        self.store.apply(&changes, P::NAME, P::STATE_VERSION, applied)?;
        self.publish(applied, &facts);
        Ok(())
    }

    /// Applies this process's own commit; `fact_offset` is the one after its last fact.
    pub fn lead(&mut self, transaction: Transaction<P::Fact>, fact_offset: u64) -> Result<(), Error> {
        let Transaction { changes, facts, next_offset, .. } = transaction;
        let Some(last) = facts.last() else { return Ok(()) };
        let applied = Applied { fact_offset, request_offset: next_offset, sequence: last.sequence, at: last.at };
        self.store.apply(&changes, P::NAME, P::STATE_VERSION, applied)?;
        self.publish(applied, &facts);
        Ok(())
    }

    fn publish(&mut self, applied: Applied, facts: &[Fact<P::Fact>]) {
        self.applied = applied;
        self.listener.applied(applied, facts);
    }
}

/// Applies one record of a fact partition and moves `applied` past it.
pub fn apply_record<P: Wire>(
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
