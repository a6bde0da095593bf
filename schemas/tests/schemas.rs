//! The schema files against the Rust types, and every released version against its pinned hash.
//!
//! After an event was added, `LONGSHORE_WRITE_SCHEMAS=1 cargo test -p longshore-schemas` writes the files that are not
//! released yet. A released file is listed in `avro/RELEASED`; a change to it is a new version instead. A release lists
//! them: `LONGSHORE_RELEASE_SCHEMAS=1 cargo test -p longshore-schemas`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use longshore_schemas::codec::{SCHEMAS, derived_schemas};

fn avro_dir() -> PathBuf {
    PathBuf::from("avro")
}

fn pretty(schema: &apache_avro::Schema) -> String {
    let json = serde_json::to_value(schema).expect("a schema is JSON");
    serde_json::to_string_pretty(&json).expect("JSON is text") + "\n"
}

fn released() -> BTreeMap<String, String> {
    let list = fs::read_to_string(avro_dir().join("RELEASED")).expect("avro/RELEASED is there");
    let line = |line: &str| line.split_once("  ").map(|(hash, file)| (file.to_owned(), hash.to_owned()));
    list.lines().map(|text| line(text).expect("HASH  FILE")).collect()
}

#[test]
fn files_are_what_the_types_say() {
    let released = released();
    for (topic, schema) in derived_schemas() {
        let version = SCHEMAS.iter().filter(|s| s.topic == topic).map(|s| s.version).max().expect("has a schema");
        let file = format!("{topic}.v{version}.avsc");
        let path = avro_dir().join(&file);
        let derived = pretty(&schema);
        if std::env::var_os("LONGSHORE_WRITE_SCHEMAS").is_some() && !released.contains_key(&file) {
            fs::write(&path, &derived).expect("schema file is writable");
        }
        let written = fs::read_to_string(&path).expect("schema file is there");
        assert!(
            written == derived,
            "{file} is not what the Rust types say. If it is released, add a version {} with the new event; otherwise \
             run this test with LONGSHORE_WRITE_SCHEMAS=1.",
            version + 1
        );
    }
}

#[test]
fn released_files_are_unchanged() {
    if std::env::var_os("LONGSHORE_RELEASE_SCHEMAS").is_some() {
        release();
    }
    for (file, hash) in released() {
        let bytes = fs::read(avro_dir().join(&file)).unwrap_or_else(|e| panic!("{file} was released: {e}"));
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), hash, "{file} was released and may not change");
    }
}

/// Lists every file that is not listed yet.
fn release() {
    let listed = released();
    let names = SCHEMAS.iter().map(|s| format!("{}.v{}.avsc", s.topic, s.version));
    let new = names.filter(|name| !listed.contains_key(name)).map(|name| {
        let bytes = fs::read(avro_dir().join(&name)).expect("schema file is there");
        format!("{}  {name}\n", blake3::hash(&bytes).to_hex())
    });
    let lines: String = new.collect();
    let before = fs::read_to_string(avro_dir().join("RELEASED")).expect("avro/RELEASED is there");
    fs::write(avro_dir().join("RELEASED"), before + &lines).expect("avro/RELEASED is writable");
}

#[test]
fn ids_are_unique_and_every_file_is_listed() {
    let mut ids: Vec<u32> = SCHEMAS.iter().map(|s| s.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), SCHEMAS.len());
    for entry in fs::read_dir(avro_dir()).expect("avro/ is there") {
        let name = entry.expect("readable").file_name().into_string().expect("text");
        let listed = SCHEMAS.iter().any(|s| name == format!("{}.v{}.avsc", s.topic, s.version));
        assert!(listed || name == "RELEASED", "{name} is not in codec::SCHEMAS");
    }
}
