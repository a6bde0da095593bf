//! Where tables live: a sorted byte map, in memory or beneath a layer of changes that are not committed yet.

use std::{
    borrow::Borrow,
    cell::RefCell,
    cmp::Ordering,
    collections::{BTreeMap, btree_map::Entry},
    ops::ControlFlow,
};

use crate::{StateError, table::Range};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// Sees one entry of a scan, and says whether to go on.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StateError> + 'a;

/// Sorted tables of bytes.
pub trait Store {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// Visits a table's entries within the range, in key order or against it, until the visitor breaks.
    fn scan(&self, table: u8, range: &Range, order: Order, visit: &mut Visit<'_>) -> Result<(), StateError>;
}

pub trait StoreMut: Store {
    fn put(&mut self, table: u8, key: Vec<u8>, value: Vec<u8>);
    fn delete(&mut self, table: u8, key: Vec<u8>);
    /// The same store, to read from.
    fn as_store(&self) -> &dyn Store;
}

type EntryKey = (u8, Vec<u8>);
type Entries<V> = BTreeMap<EntryKey, V>;

/// A table and a key, owned or borrowed: entries are looked up without a copy of the key.
trait AsEntryKey {
    fn parts(&self) -> (u8, &[u8]);
}

impl AsEntryKey for EntryKey {
    fn parts(&self) -> (u8, &[u8]) {
        (self.0, &self.1)
    }
}

impl AsEntryKey for (u8, &[u8]) {
    fn parts(&self) -> (u8, &[u8]) {
        *self
    }
}

impl<'a> Borrow<dyn AsEntryKey + 'a> for EntryKey {
    fn borrow(&self) -> &(dyn AsEntryKey + 'a) {
        self
    }
}

impl PartialEq for dyn AsEntryKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn AsEntryKey + '_ {}

impl PartialOrd for dyn AsEntryKey + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn AsEntryKey + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

fn entry<'m, V>(entries: &'m Entries<V>, table: u8, key: &[u8]) -> Option<&'m V> {
    entries.get(&(table, key) as &dyn AsEntryKey)
}

fn bounds(table: u8, range: &Range) -> Option<(EntryKey, EntryKey)> {
    let end = match &range.end {
        Some(end) => (table, end.clone()),
        None => (table.checked_add(1).expect("table ids stay below 255"), Vec::new()),
    };
    let start = (table, range.start.clone());
    (start < end).then_some((start, end))
}

/// State in memory, for tests and simulation.
#[derive(Debug, Default, Clone)]
pub struct Memory(Entries<Vec<u8>>);

impl Store for Memory {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(entry(&self.0, table, key).cloned())
    }

    fn scan(&self, table: u8, range: &Range, order: Order, visit: &mut Visit<'_>) -> Result<(), StateError> {
        let Some((start, end)) = bounds(table, range) else { return Ok(()) };
        let mut entries = self.0.range(start..end);
        while let Some(((_, key), value)) = match order {
            Order::Ascending => entries.next(),
            Order::Descending => entries.next_back(),
        } {
            if visit(key, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl StoreMut for Memory {
    fn put(&mut self, table: u8, key: Vec<u8>, value: Vec<u8>) {
        self.0.insert((table, key), value);
    }

    fn delete(&mut self, table: u8, key: Vec<u8>) {
        self.0.remove(&(table, key));
    }

    fn as_store(&self) -> &dyn Store {
        self
    }
}

/// Changes by table and key; None is a deletion.
pub type Changes = Entries<Option<Vec<u8>>>;

/// Rows of the base that an overlay keeps: a few for each request of a transaction.
const ROWS_MAX: usize = 8_192;
const ROW_BYTES_MAX: usize = 1_024;

/// A store with changes on top, which are written to it later or never.
pub struct Overlay<'a> {
    base: &'a dyn Store,
    changes: Changes,
    /// Rows that the base has: what led to a fact is read again when the fact is applied.
    rows: RefCell<Entries<Vec<u8>>>,
    /// What [`Overlay::undo`] restores: each change since [`Overlay::begin`], as it was before. None: nothing is open.
    before: Option<Vec<(EntryKey, Before)>>,
}

/// What the changes said of a key: nothing, or a value, or a deletion.
type Before = Option<Option<Vec<u8>>>;

impl<'a> Overlay<'a> {
    pub fn new(base: &'a dyn Store) -> Self {
        Self::with(base, Changes::new())
    }

    /// Goes on with the changes of an earlier overlay.
    pub fn with(base: &'a dyn Store, changes: Changes) -> Self {
        Self { base, changes, rows: RefCell::default(), before: None }
    }

    /// From here on, changes can be undone, until they are kept.
    pub fn begin(&mut self) {
        self.before = Some(Vec::new());
    }

    /// Keeps the changes since [`Overlay::begin`].
    pub fn keep(&mut self) {
        self.before = None;
    }

    /// Drops the changes since [`Overlay::begin`].
    pub fn undo(&mut self) {
        for (key, before) in self.before.take().unwrap_or_default().into_iter().rev() {
            match before {
                Some(change) => drop(self.changes.insert(key, change)),
                None => drop(self.changes.remove(&key)),
            }
        }
    }

    fn change(&mut self, key: EntryKey, to: Option<Vec<u8>>) {
        match (&mut self.before, self.changes.entry(key)) {
            (None, Entry::Vacant(place)) => drop(place.insert(to)),
            (None, Entry::Occupied(mut place)) => drop(place.insert(to)),
            (Some(before), Entry::Vacant(place)) => {
                before.push((place.key().clone(), None));
                place.insert(to);
            }
            (Some(before), Entry::Occupied(mut place)) => {
                let changed = place.insert(to);
                before.push((place.key().clone(), Some(changed)));
            }
        }
    }

    pub fn into_changes(self) -> Changes {
        self.changes
    }
}

impl Store for Overlay<'_> {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        if let Some(change) = entry(&self.changes, table, key) {
            return Ok(change.clone());
        }
        let mut rows = self.rows.borrow_mut();
        if let Some(row) = entry(&rows, table, key) {
            return Ok(Some(row.clone()));
        }
        let row = self.base.get(table, key)?;
        if let Some(row) = &row
            && rows.len() < ROWS_MAX
            && row.len() <= ROW_BYTES_MAX
        {
            rows.insert((table, key.to_vec()), row.clone());
        }
        Ok(row)
    }

    /// Merges the two sorted sequences; where both have a key, the change wins.
    fn scan(&self, table: u8, range: &Range, order: Order, visit: &mut Visit<'_>) -> Result<(), StateError> {
        let Some((start, end)) = bounds(table, range) else { return Ok(()) };
        let mut changes = self.changes.range(start..end);
        let mut next_change = || match order {
            Order::Ascending => changes.next(),
            Order::Descending => changes.next_back(),
        };
        let comes_first = |a: &[u8], b: &[u8]| match order {
            Order::Ascending => a < b,
            Order::Descending => a > b,
        };
        let mut change = next_change();
        let mut stopped = false;
        self.base.scan(table, range, order, &mut |key, value| {
            while let Some(((_, changed), new)) = change.filter(|((_, changed), _)| !comes_first(key, changed)) {
                change = next_change();
                if let Some(new) = new
                    && visit(changed, new)?.is_break()
                {
                    stopped = true;
                    return Ok(ControlFlow::Break(()));
                }
                if changed == key {
                    return Ok(ControlFlow::Continue(()));
                }
            }
            let flow = visit(key, value)?;
            stopped = flow.is_break();
            Ok(flow)
        })?;
        while let Some(((_, changed), new)) = change.filter(|_| !stopped) {
            change = next_change();
            if let Some(new) = new {
                stopped = visit(changed, new)?.is_break();
            }
        }
        Ok(())
    }
}

impl StoreMut for Overlay<'_> {
    fn put(&mut self, table: u8, key: Vec<u8>, value: Vec<u8>) {
        self.change((table, key), Some(value));
    }

    fn delete(&mut self, table: u8, key: Vec<u8>) {
        self.change((table, key), None);
    }

    fn as_store(&self) -> &dyn Store {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries(store: &dyn Store, range: &Range, order: Order, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut seen = Vec::new();
        store
            .scan(1, range, order, &mut |key, value| {
                seen.push((key.to_vec(), value.to_vec()));
                Ok(if seen.len() >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })
            .expect("memory");
        seen
    }

    fn change(overlay: &mut Overlay<'_>, key: u8, value: Option<u8>) {
        match value {
            Some(value) => overlay.put(1, vec![key], vec![value]),
            None => overlay.delete(1, vec![key]),
        }
    }

    proptest! {
        #[test]
        fn what_is_undone_never_was_and_what_is_kept_stays(
            first in prop::collection::vec((0u8..6, prop::option::of(any::<u8>())), 0..10),
            second in prop::collection::vec((0u8..6, prop::option::of(any::<u8>())), 0..10),
        ) {
            let base = Memory::default();
            let mut overlay = Overlay::new(&base);
            first.iter().for_each(|(key, value)| change(&mut overlay, *key, *value));
            let before = overlay.changes.clone();
            overlay.begin();
            second.iter().for_each(|(key, value)| change(&mut overlay, *key, *value));
            let after = overlay.changes.clone();
            overlay.undo();
            prop_assert_eq!(&overlay.changes, &before);
            overlay.begin();
            second.iter().for_each(|(key, value)| change(&mut overlay, *key, *value));
            overlay.keep();
            overlay.undo();
            prop_assert_eq!(&overlay.changes, &after);
        }

        /// Whatever was written below and above, an overlay reads as one store with both.
        #[test]
        fn an_overlay_reads_as_one_store(
            base in prop::collection::vec((1u8..3, 0u8..12, any::<u8>()), 0..20),
            changes in prop::collection::vec((1u8..3, 0u8..12, prop::option::of(any::<u8>())), 0..20),
            start in 0u8..12, end in prop::option::of(0u8..12), limit in 1usize..15,
        ) {
            let mut below = Memory::default();
            for (table, key, value) in base {
                below.put(table, vec![key], vec![value]);
            }
            let mut whole = below.clone();
            let mut overlay = Overlay::new(&below);
            for (table, key, value) in changes {
                match value {
                    Some(value) => {
                        whole.put(table, vec![key], vec![value]);
                        overlay.put(table, vec![key], vec![value]);
                    }
                    None => {
                        whole.delete(table, vec![key]);
                        overlay.delete(table, vec![key]);
                    }
                }
            }
            let range = Range { start: vec![start], end: end.map(|end| vec![end]) };
            for order in [Order::Ascending, Order::Descending] {
                prop_assert_eq!(entries(&overlay, &range, order, limit), entries(&whole, &range, order, limit));
            }
            for key in 0..12 {
                prop_assert_eq!(overlay.get(1, &[key]).expect("memory"), whole.get(1, &[key]).expect("memory"));
            }
        }
    }
}
