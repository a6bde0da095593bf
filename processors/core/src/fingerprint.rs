//! A state's fingerprint: equal states have equal ones, wherever and however they were built.

use std::{fmt, ops::ControlFlow};

use crate::{
    Seen, StateError,
    store::{Order, Store},
    table::{Range, TableInfo},
};

/// BLAKE3 of the sorted entries of every table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The fingerprint of a processor's tables and of what it has seen.
pub fn fingerprint(store: &dyn Store, tables: &[TableInfo]) -> Result<Fingerprint, StateError> {
    let mut hasher = blake3::Hasher::new();
    for table in tables.iter().copied().chain(Seen::TABLES) {
        hasher.update(&[table.id]);
        store.scan(table.id, &Range::all(), Order::Ascending, &mut |key, value| {
            for part in [key, value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(Fingerprint(*hasher.finalize().as_bytes()))
}
