//! Typed tables.

use std::{marker::PhantomData, ops::ControlFlow};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    StateError,
    key::Key,
    store::{Order, Store, StoreMut},
};

/// Room that most values need no more than.
const VALUE_BYTES_USUAL: usize = 96;

/// What the runtime needs to know of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableInfo {
    pub id: u8,
    pub name: &'static str,
}

/// A part of a table: from `start`, to before `end`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    pub start: Vec<u8>,
    /// None: to the table's end.
    pub end: Option<Vec<u8>>,
}

impl Range {
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys that begin with this one's parts.
    pub fn prefix(prefix: &impl Key) -> Self {
        let start = prefix.to_bytes();
        let end = successor(&start);
        Self { start, end }
    }

    /// Keys of this range that are at or after `key`.
    #[must_use]
    pub fn from(mut self, key: &impl Key) -> Self {
        self.start = self.start.max(key.to_bytes());
        self
    }

    /// Keys of this range that are before `key`.
    #[must_use]
    pub fn before(mut self, key: &impl Key) -> Self {
        let key = key.to_bytes();
        self.end = Some(self.end.map_or(key.clone(), |end| end.min(key)));
        self
    }
}

/// The first byte string after all that begin with `prefix`; None if there is none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|b| *b < u8::MAX)?;
    let mut next = prefix[..=last].to_vec();
    next[last] += 1;
    Some(next)
}

/// A sorted table of `V` by `K`. The descriptor is a constant; the entries live in a [`Store`].
pub struct Table<K, V> {
    info: TableInfo,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: Serialize + DeserializeOwned> Table<K, V> {
    pub const fn new(id: u8, name: &'static str) -> Self {
        Self { info: TableInfo { id, name }, types: PhantomData }
    }

    pub const fn info(&self) -> TableInfo {
        self.info
    }

    pub fn get(&self, store: &dyn Store, key: &K) -> Result<Option<V>, StateError> {
        let value = store.get(self.info.id, &key.to_bytes())?;
        value.map(|bytes| self.value(&bytes)).transpose()
    }

    pub fn contains(&self, store: &dyn Store, key: &K) -> Result<bool, StateError> {
        Ok(store.get(self.info.id, &key.to_bytes())?.is_some())
    }

    /// The entry, which a fact that is being applied relies on.
    pub fn expect(&self, store: &dyn Store, key: &K) -> Result<V, StateError>
    where
        K: std::fmt::Debug,
    {
        self.get(store, key)?
            .ok_or_else(|| StateError::Contradiction(format!("table {} has no {key:?}", self.info.name)))
    }

    pub fn put(&self, store: &mut dyn StoreMut, key: &K, value: &V) -> Result<(), StateError> {
        self.put_parts(store, key, value)
    }

    /// As [`Table::put`], of something that serialises as a `V` does, such as a struct of references to its fields.
    pub fn put_parts(&self, store: &mut dyn StoreMut, key: &K, value: &impl Serialize) -> Result<(), StateError> {
        let bytes = postcard::to_extend(value, Vec::with_capacity(VALUE_BYTES_USUAL))
            .map_err(|e| StateError::Corrupt { table: self.info.name, reason: e.to_string() })?;
        store.put(self.info.id, key.to_bytes(), bytes);
        Ok(())
    }

    pub fn delete(&self, store: &mut dyn StoreMut, key: &K) {
        store.delete(self.info.id, key.to_bytes());
    }

    /// Visits entries until the visitor breaks.
    pub fn scan(
        &self,
        store: &dyn Store,
        range: &Range,
        order: Order,
        mut visit: impl FnMut(K, V) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        store.scan(self.info.id, range, order, &mut |key, value| Ok(visit(self.key(key)?, self.value(value)?)))
    }

    /// The first entry of the range, in the given order.
    pub fn first(&self, store: &dyn Store, range: &Range, order: Order) -> Result<Option<(K, V)>, StateError> {
        let mut found = None;
        self.scan(store, range, order, |key, value| {
            found = Some((key, value));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// At most `limit` entries of the range.
    pub fn list(
        &self,
        store: &dyn Store,
        range: &Range,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(K, V)>, StateError> {
        let mut found = Vec::new();
        if limit > 0 {
            self.scan(store, range, order, |key, value| {
                found.push((key, value));
                if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        Ok(found)
    }

    fn key(&self, bytes: &[u8]) -> Result<K, StateError> {
        K::from_bytes(bytes)
            .ok_or_else(|| StateError::Corrupt { table: self.info.name, reason: format!("key {bytes:02x?}") })
    }

    fn value(&self, bytes: &[u8]) -> Result<V, StateError> {
        postcard::from_bytes(bytes).map_err(|e| StateError::Corrupt { table: self.info.name, reason: e.to_string() })
    }
}
