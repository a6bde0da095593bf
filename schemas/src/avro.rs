//! How Rust types are written as Avro where the two differ.

/// A `u64` as an Avro `long`, which every client reads. Values above `i64::MAX` are an error, never a wrong number.
pub mod long {
    use apache_avro::{
        Schema,
        schema::{Name, NamespaceRef, RecordField},
    };
    use serde::{Deserialize, Deserializer, Serializer, de, ser};
    use std::collections::HashSet;

    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        let value = i64::try_from(*value).map_err(|_| ser::Error::custom("number above 2^63-1"))?;
        serializer.serialize_i64(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let value = i64::deserialize(deserializer)?;
        u64::try_from(value).map_err(|_| de::Error::custom(format!("{value} is negative")))
    }

    pub fn get_schema_in_ctxt(_: &mut HashSet<Name>, _: NamespaceRef<'_>) -> Schema {
        Schema::Long
    }

    pub fn get_record_fields_in_ctxt(_: usize, _: &mut HashSet<Name>, _: NamespaceRef<'_>) -> Option<Vec<RecordField>> {
        None
    }
}

/// A sorted map of strings as an Avro `map`.
pub mod string_map {
    use apache_avro::{
        Schema,
        schema::{Name, NamespaceRef, RecordField},
    };
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::{BTreeMap, HashSet};

    pub fn serialize<S: Serializer>(value: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
        BTreeMap::deserialize(deserializer)
    }

    pub fn get_schema_in_ctxt(_: &mut HashSet<Name>, _: NamespaceRef<'_>) -> Schema {
        Schema::map(Schema::String).build()
    }

    pub fn get_record_fields_in_ctxt(_: usize, _: &mut HashSet<Name>, _: NamespaceRef<'_>) -> Option<Vec<RecordField>> {
        None
    }
}
