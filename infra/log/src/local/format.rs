//! The bytes of keys and values in RocksDB.
//!
//! ```text
//! record key    partition id u32 · offset u64                                        (big endian: sorts by offset)
//! record value  at i64 · flags u8 · key length u32 · value length u32 · headers u16 · key · value · headers…
//! header        name length u32 · value length u32 · name · value
//! ```
//!
//! The time stands first and has a fixed size, because the writer thread fills it in last.

use bytes::{Buf, Bytes};
use longshore_schemas::Timestamp;

use crate::Record;

/// Raised with every change to what this file or `store` writes.
pub(super) const FORMAT: u32 = 1;

const TIME_BYTES: usize = 8;
pub(super) const FIXED_BYTES: usize = TIME_BYTES + 1 + 4 + 4 + 2;
const HAS_VALUE: u8 = 1;

/// Most headers of one record.
pub(super) const HEADERS_MAX: usize = u16::MAX as usize;

pub(super) type RecordKey = [u8; 12];

pub(super) fn record_key(partition_id: u32, offset: u64) -> RecordKey {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition_id.to_be_bytes());
    key[4..].copy_from_slice(&offset.to_be_bytes());
    key
}

/// The offset in a record key; `None` if it is none.
pub(super) fn offset_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(4..12)?.try_into().ok()?))
}

/// A record as RocksDB will hold it, but for its time.
pub(super) struct Encoded(Vec<u8>);

impl Encoded {
    /// The caller has checked the record against the limits, so every length fits.
    pub(super) fn new(record: &Record) -> Self {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + record.bytes());
        bytes.extend_from_slice(&[0; TIME_BYTES]);
        bytes.push(if record.value.is_some() { HAS_VALUE } else { 0 });
        let value = record.value.as_deref().unwrap_or_default();
        bytes.extend_from_slice(&(record.key.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&(record.headers.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&record.key);
        bytes.extend_from_slice(value);
        for (name, value) in &record.headers {
            bytes.extend_from_slice(&(name.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(value);
        }
        Self(bytes)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The record's own key.
    pub(super) fn key(&self) -> &[u8] {
        key_of(&self.0).expect("encoding has put the key there")
    }

    pub(super) fn stamped(&mut self, at: Timestamp) -> &[u8] {
        self.0[..TIME_BYTES].copy_from_slice(&at.millis().to_be_bytes());
        &self.0
    }
}

/// The time of a stored record, without reading the rest.
pub(super) fn time_of(value: &[u8]) -> Option<Timestamp> {
    let millis = value.get(..TIME_BYTES)?.try_into().ok()?;
    Some(Timestamp::from_millis(i64::from_be_bytes(millis)))
}

/// Whether a stored record is a tombstone.
pub(super) fn is_tombstone(value: &[u8]) -> bool {
    value.get(TIME_BYTES).is_some_and(|flags| flags & HAS_VALUE == 0)
}

/// The own key of a stored record.
pub(super) fn key_of(value: &[u8]) -> Option<&[u8]> {
    let length = u32::from_be_bytes(value.get(TIME_BYTES + 1..TIME_BYTES + 5)?.try_into().ok()?) as usize;
    value.get(FIXED_BYTES..FIXED_BYTES.checked_add(length)?)
}

/// A stored record; `None` if these bytes are none. The record shares `stored`'s memory.
pub(super) fn decode(mut stored: Bytes) -> Option<(Timestamp, Record)> {
    let at = Timestamp::from_millis(stored.try_get_i64().ok()?);
    let flags = stored.try_get_u8().ok()?;
    let key_length = stored.try_get_u32().ok()?;
    let value_length = stored.try_get_u32().ok()?;
    let header_count = stored.try_get_u16().ok()?;
    let key = take(&mut stored, key_length)?;
    let value = take(&mut stored, value_length)?;
    let mut headers = Vec::with_capacity(usize::from(header_count).min(stored.len() / 8));
    for _ in 0..header_count {
        let name_length = stored.try_get_u32().ok()?;
        let value_length = stored.try_get_u32().ok()?;
        let name = String::from_utf8(take(&mut stored, name_length)?.to_vec()).ok()?;
        headers.push((name, take(&mut stored, value_length)?));
    }
    let has_value = flags & HAS_VALUE != 0;
    stored.is_empty().then(|| (at, Record { key, value: has_value.then_some(value), headers }))
}

fn take(from: &mut Bytes, length: u32) -> Option<Bytes> {
    let length = length as usize;
    (length <= from.len()).then(|| from.split_to(length))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn record() -> impl Strategy<Value = Record> {
        (bytes(), option::of(bytes()), vec((".{0,10}", bytes()), 0..4)).prop_map(|(key, value, headers)| Record {
            key,
            value,
            headers,
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(record in record(), millis: i64) {
            let at = Timestamp::from_millis(millis);
            let mut encoded = Encoded::new(&record);
            prop_assert_eq!(encoded.key(), &record.key[..]);
            let stored = Bytes::copy_from_slice(encoded.stamped(at));
            prop_assert_eq!(time_of(&stored), Some(at));
            prop_assert_eq!(is_tombstone(&stored), record.value.is_none());
            prop_assert_eq!(decode(stored.clone()), Some((at, record)));
            for cut in 0..stored.len() {
                prop_assert_eq!(decode(stored.slice(..cut)), None);
            }
        }

        #[test]
        fn wrong_bytes_are_refused_without_a_panic(wrong in vec(any::<u8>(), 0..80)) {
            let _ = decode(Bytes::from(wrong));
        }

        #[test]
        fn keys_sort_by_partition_then_offset(a: (u32, u64), b: (u32, u64)) {
            let (key_a, key_b) = (record_key(a.0, a.1), record_key(b.0, b.1));
            prop_assert_eq!(key_a.cmp(&key_b), a.cmp(&b));
            prop_assert_eq!(offset_of(&key_a), Some(a.1));
        }
    }
}
