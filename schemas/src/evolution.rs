//! How schemas may change: what every newer version of a topic's schema must keep, and what a schema registry calls it.
//!
//! Facts are kept for ever, so each version reads what every older one wrote: *backward* compatible with all of them. Where
//! programs of an older release read what a newer one writes, the older versions must read the newer ones as well. An event
//! that is new breaks that, so it is promised only where there is nothing but one record of plain fields.
//!
//! [`check`] runs in CI and whenever a process that writes to a shared log starts.

use apache_avro::{
    Schema,
    schema_compatibility::{Compatibility, SchemaCompatibility},
};

use crate::{codec::SchemaVersion, topics};

/// What the versions of a topic's schema promise each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// The newest reads what all older ones wrote.
    Backward,
    /// And all older ones read what the newest writes.
    Full,
}

impl Promise {
    pub fn of(topic: &str) -> Self {
        // Tools that look after dead letters are often older or newer than what wrote them.
        if topic == topics::DEAD_LETTERS.name { Self::Full } else { Self::Backward }
    }

    /// As Confluent's registry calls it.
    pub fn level(self) -> &'static str {
        match self {
            Self::Backward => "BACKWARD_TRANSITIVE",
            Self::Full => "FULL_TRANSITIVE",
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Broken {
    #[error("schema {topic}.v{version} is not a valid Avro schema: {reason}")]
    Invalid { topic: &'static str, version: u32, reason: String },
    #[error("the schemas of topic {topic} are numbered {found:?}: they must count from 1")]
    Numbers { topic: &'static str, found: Vec<u32> },
    #[error("schema {topic}.v{reader} cannot read what {topic}.v{writer} wrote: {reason}")]
    Unreadable { topic: &'static str, reader: u32, writer: u32, reason: String },
    #[error("the schema id {id} is given twice")]
    Id { id: u32 },
}

/// Every version of every topic against all older ones.
pub fn check(versions: &[SchemaVersion]) -> Result<(), Broken> {
    for (index, version) in versions.iter().enumerate() {
        let older = &versions[..index];
        if older.iter().any(|other| other.id == version.id) {
            return Err(Broken::Id { id: version.id });
        }
        let newer = parse(version)?;
        let older: Vec<_> = older.iter().filter(|other| other.topic == version.topic).collect();
        let found: Vec<_> = older.iter().map(|other| other.version).chain([version.version]).collect();
        if !found.iter().copied().eq(1..=found.len() as u32) {
            return Err(Broken::Numbers { topic: version.topic, found });
        }
        for other in older {
            let schema = parse(other)?;
            readable(version, &newer, other, &schema)?;
            if Promise::of(version.topic) == Promise::Full {
                readable(other, &schema, version, &newer)?;
            }
        }
    }
    Ok(())
}

fn parse(version: &SchemaVersion) -> Result<Schema, Broken> {
    let SchemaVersion { topic, version, json, .. } = *version;
    Schema::parse_str(json).map_err(|error| Broken::Invalid { topic, version, reason: error.to_string() })
}

fn readable(reader: &SchemaVersion, reads: &Schema, writer: &SchemaVersion, written: &Schema) -> Result<(), Broken> {
    can_read(reads, written).map_err(|reason| Broken::Unreadable {
        topic: reader.topic,
        reader: reader.version,
        writer: writer.version,
        reason,
    })
}

/// Whether a reader with the one schema understands everything that is written with the other; if not, why.
pub fn can_read(reader: &Schema, writer: &Schema) -> Result<(), String> {
    match SchemaCompatibility::can_read(writer, reader) {
        Ok(Compatibility::Full) => Ok(()),
        Ok(Compatibility::Partial) => Err("some of what can be written has no place in the reader's schema".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::codec::SCHEMAS;

    #[test]
    fn every_schema_keeps_what_it_promised() {
        assert_eq!(check(&SCHEMAS), Ok(()));
    }

    fn first(topic: &str) -> &'static SchemaVersion {
        SCHEMAS.iter().find(|version| version.topic == topic).expect("a schema")
    }

    /// A second version of a topic's schema, changed so.
    fn changed(topic: &str, change: impl FnOnce(&mut Value)) -> Result<(), Broken> {
        let first = first(topic);
        let mut json = serde_json::from_str(first.json).expect("JSON");
        change(&mut json);
        let second = |json: String| SchemaVersion { id: 1_000, topic: first.topic, version: 2, json: json.leak() };
        let of_first = SchemaVersion { id: first.id, topic: first.topic, version: 1, json: first.json };
        check(&[of_first, second(json.to_string())])
    }

    fn fields(schema: &mut Value) -> &mut Vec<Value> {
        schema["fields"].as_array_mut().expect("fields")
    }

    /// The union of a topic's events, which is the type of one of the envelope's fields.
    fn events(schema: &mut Value) -> &mut Vec<Value> {
        let of_field = |field: &&mut Value| field["type"].as_array().is_some_and(|union| union.len() > 2);
        let field = fields(schema).iter_mut().find(of_field).expect("a union of events");
        field["type"].as_array_mut().expect("a union")
    }

    #[track_caller]
    fn refused(result: Result<(), Broken>, reader: u32, writer: u32) {
        match result {
            Err(Broken::Unreadable { reader: of, writer: by, .. }) => assert_eq!((of, by), (reader, writer)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn good_changes_pass() {
        let event = json!({ "type": "record", "name": "Renovated", "fields": [{ "name": "why", "type": "string" }] });
        assert_eq!(changed("builds", |schema| events(schema).push(event)), Ok(()));
        let optional = json!({ "name": "hint", "type": ["null", "string"], "default": null });
        assert_eq!(changed("build-requests", |schema| fields(schema).push(optional.clone())), Ok(()));
        assert_eq!(changed("dead-letters", |schema| fields(schema).push(optional)), Ok(()));
    }

    #[test]
    fn bad_changes_are_caught() {
        let needed = json!({ "name": "hint", "type": "string" });
        refused(changed("build-requests", |schema| fields(schema).push(needed.clone())), 2, 1);
        refused(changed("build-requests", |schema| fields(schema)[0]["type"] = json!("long")), 2, 1);
        refused(changed("build-requests", |schema| fields(schema)[0]["name"] = json!("identity")), 2, 1);
        refused(changed("builds", |schema| schema["name"] = json!("Truth")), 2, 1);
        refused(changed("builds", |schema| drop(events(schema).pop())), 2, 1);
        // Old tools could not read it any more.
        refused(changed("dead-letters", |schema| drop(fields(schema).remove(0))), 1, 2);
        assert_eq!(changed("builds", |schema| drop(fields(schema).pop())), Ok(()), "what only readers of old miss");
    }

    #[test]
    fn numbers_and_ids_are_checked() {
        let copy = |id, version| SchemaVersion { id, topic: "builds", version, json: first("builds").json };
        assert_eq!(check(&[copy(1, 1), copy(2, 2)]), Ok(()));
        assert_eq!(check(&[copy(1, 1), copy(1, 2)]), Err(Broken::Id { id: 1 }));
        assert_eq!(check(&[copy(1, 1), copy(2, 3)]), Err(Broken::Numbers { topic: "builds", found: vec![1, 3] }));
        let broken = SchemaVersion { json: "{", ..copy(1, 1) };
        assert!(matches!(check(&[broken]), Err(Broken::Invalid { version: 1, .. })));
    }
}
