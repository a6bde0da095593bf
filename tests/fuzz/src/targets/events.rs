//! Events of every topic, as they stand in the log: whatever the bytes are, they are an event or an error, and apache-avro
//! agrees; and what is an event is written as apache-avro writes it, and read again as the same.
//!
//! Valid input is made from the schemas themselves, so a new event is fuzzed as soon as it has one.

use std::collections::{BTreeMap, HashMap};

use apache_avro::{
    Schema,
    schema::{Name, UnionSchema},
};
use longshore_schemas::{
    codec::{self, Message, SCHEMAS},
    events::{
        ArtifactFact, ArtifactRequest, BuildFact, BuildLog, BuildRequest, DeadLetter, Fact, FleetFact, FleetReport,
        GoalFact, GoalRequest, GoalState, NodeAnswer, NodeQuery, PackHint, Request, WorkerSignal,
    },
};

use crate::{Random, Subject, kind_of, mutate::varint};

const HEADER_BYTES: usize = 5;
/// Elements of a generated array or map.
const ELEMENTS_MAX: usize = 4;

struct Events {
    schemas: Vec<(u32, Schema)>,
}

pub(super) fn start() -> Box<dyn Subject> {
    let parse = |version: &longshore_schemas::codec::SchemaVersion| {
        (version.id, Schema::parse_str(version.json).expect("a test parses every schema"))
    };
    Box::new(Events { schemas: SCHEMAS.iter().map(parse).collect() })
}

impl Subject for Events {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let id = input.get(1..HEADER_BYTES).map_or(0, |id| id.iter().fold(0, |id, byte| id << 8 | u32::from(*byte)));
        match SCHEMAS.iter().find(|version| version.id == id).map_or("build-requests", |version| version.topic) {
            "build-requests" => check::<Request<BuildRequest>>(input),
            "builds" => check::<Fact<BuildFact>>(input),
            "artifact-requests" => check::<Request<ArtifactRequest>>(input),
            "artifacts" => check::<Fact<ArtifactFact>>(input),
            "goal-requests" => check::<Request<GoalRequest>>(input),
            "goals" => check::<Fact<GoalFact>>(input),
            "fleet-reports" => check::<Request<FleetReport>>(input),
            "fleet" => check::<Fact<FleetFact>>(input),
            "goal-state" => check::<Request<GoalState>>(input),
            "worker-signals" => check::<Request<WorkerSignal>>(input),
            "build-logs" => check::<Request<BuildLog>>(input),
            "pack-hints" => check::<Request<PackHint>>(input),
            "node-queries" => check::<Request<NodeQuery>>(input),
            "node-answers" => check::<Request<NodeAnswer>>(input),
            "dead-letters" => check::<DeadLetter>(input),
            topic => Err(format!("add topic {topic} to this target")),
        }
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let (id, schema) = &self.schemas[random.below(self.schemas.len())];
        let mut bytes = vec![0];
        bytes.extend_from_slice(&id.to_be_bytes());
        Writer { named: HashMap::new(), random, bytes: &mut bytes }.value(schema, "");
        bytes
    }

    fn golden(&self) -> Vec<Vec<u8>> {
        let folder = longshore_checkout::path("schemas/golden");
        let files = std::fs::read_dir(folder).expect("the golden bytes are part of this repository");
        let texts = files.map(|file| std::fs::read_to_string(file.expect("readable").path()).expect("text"));
        let mut golden: Vec<_> = texts
            .flat_map(|text| text.lines().filter_map(|line| unhex(line.split(' ').nth(1)?)).collect::<Vec<_>>())
            .collect();
        golden.sort();
        golden
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()).collect()
}

fn check<M: Message + PartialEq + std::fmt::Debug>(input: &[u8]) -> Result<String, String> {
    let message: M = match (codec::decode(input), codec::reference::decode::<M>(input)) {
        (Ok(message), Ok(reference)) if message == reference => message,
        (Err(error), Err(_)) => return Ok(kind_of(&error)),
        (ours, reference) => return Err(format!("it is read as {ours:?}, and by apache-avro as {reference:?}")),
    };
    let again = codec::encode(&message).map_err(|error| format!("what was read cannot be written: {error}"))?;
    let reference = codec::reference::encode(&message).map_err(|error| error.to_string())?;
    if again != reference {
        return Err(format!("it is written as {again:?}, and by apache-avro as {reference:?}"));
    }
    match codec::decode::<M>(&again) {
        Ok(read) if read == message => {}
        other => return Err(format!("what was written is read as {other:?}, not as {message:?}")),
    }
    let json = serde_json::to_string(&message).map_err(|error| format!("it is no JSON: {error}"))?;
    // Events differ by their type and by what is there at all.
    let shape: String = json.chars().filter(|c| "{[n".contains(*c)).take(60).collect();
    Ok(format!("event {}", blake3::hash(shape.as_bytes()).to_hex()))
}

/// Writes any value that a schema allows, with texts that its field may have.
struct Writer<'a, 's> {
    named: HashMap<Name, &'s Schema>,
    random: &'a mut Random,
    bytes: &'a mut Vec<u8>,
}

impl<'s> Writer<'_, 's> {
    fn value(&mut self, schema: &'s Schema, field: &str) {
        match schema {
            Schema::Null => {}
            Schema::Boolean => self.bytes.push(self.random.below(2) as u8),
            Schema::Int | Schema::Long | Schema::TimestampMillis => {
                let number = self.number(field);
                self.long(number);
            }
            Schema::String => {
                let text = text_for(field, self.random);
                self.counted(text.as_bytes());
            }
            Schema::Bytes => {
                // Differences of node numbers, which are small mostly; and bytes for dead letters.
                let count = self.random.below(20);
                let bytes: Vec<u8> = self.random.bytes(count).into_iter().map(|byte| byte & 0x3f).collect();
                self.counted(&bytes);
            }
            Schema::Array(array) => {
                let count = self.elements();
                (0..count).for_each(|_| self.value(&array.items, field));
                self.end(count);
            }
            Schema::Map(map) => {
                let count = self.elements();
                for number in 0..count {
                    self.counted(format!("KEY_{number}").as_bytes());
                    self.value(&map.types, "");
                }
                self.end(count);
            }
            Schema::Union(union) => self.branch(union, field),
            Schema::Record(record) => {
                self.named.insert(record.name.clone(), schema);
                for of in &record.fields {
                    self.value(&of.schema, &of.name);
                }
            }
            Schema::Enum(symbols) => {
                self.named.insert(symbols.name.clone(), schema);
                let symbol = self.random.below(symbols.symbols.len());
                self.long(symbol as i64);
            }
            Schema::Ref { name } => {
                let schema = self.named.get(name).copied();
                self.value(schema.expect("a schema's names are defined before they are used"), field);
            }
            other => panic!("no event has a {other:?} yet: write it here"),
        }
    }

    fn branch(&mut self, union: &'s UnionSchema, field: &str) {
        let chosen = self.random.below(union.variants().len());
        // A name that an earlier branch would define may be meant later: those that are passed over count as seen.
        for (at, variant) in union.variants().iter().enumerate() {
            if at != chosen {
                self.learn(variant);
            }
        }
        self.long(chosen as i64);
        self.value(&union.variants()[chosen], field);
    }

    fn learn(&mut self, schema: &'s Schema) {
        match schema {
            Schema::Record(record) => {
                self.named.insert(record.name.clone(), schema);
                record.fields.iter().for_each(|field| self.learn(&field.schema));
            }
            Schema::Enum(symbols) => drop(self.named.insert(symbols.name.clone(), schema)),
            Schema::Array(array) => self.learn(&array.items),
            Schema::Map(map) => self.learn(&map.types),
            Schema::Union(union) => union.variants().iter().for_each(|variant| self.learn(variant)),
            _ => {}
        }
    }

    /// How many elements follow. None are written as the end alone.
    fn elements(&mut self) -> usize {
        let count = self.random.below(ELEMENTS_MAX);
        if count > 0 {
            self.long(count as i64);
        }
        count
    }

    fn end(&mut self, _: usize) {
        self.long(0);
    }

    fn number(&mut self, field: &str) -> i64 {
        match self.random.below(8) {
            0 => 0,
            1 => 1,
            2 if field != "at" && field != "now" => i64::from(u32::MAX),
            3 if field == "at" || field == "now" => -1,
            _ => self.random.below(20_000) as i64,
        }
    }

    fn long(&mut self, value: i64) {
        self.bytes.extend(varint(((value << 1) ^ (value >> 63)).cast_unsigned()));
    }

    fn counted(&mut self, bytes: &[u8]) {
        self.long(bytes.len() as i64);
        self.bytes.extend_from_slice(bytes);
    }
}

/// A text that a field of this name may have.
fn text_for(field: &str, random: &mut Random) -> String {
    let texts: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("job", &["default-17", "a-b.c-1", "q-18446744073709551615"][..]),
        ("commit", &["0123456789abcdef0123456789abcdef01234567"]),
        ("actor", &["alice", "", "ä \u{1f980}"]),
    ]);
    if let Some(texts) = texts.get(field) {
        return (*random.pick(texts)).to_owned();
    }
    match field {
        "artifact" | "held" | "to" | "pack" => blake3::hash(&random.bytes(1)).to_hex().to_string(),
        "queue" | "name" | "worker" | "region" | "regions" | "added" | "zone" | "zones" | "rack" | "node" | "nodes"
        | "lost" | "returned" | "service" | "request" | "query" | "claim" | "deploy" | "id" => {
            (*random.pick(&["default", "a", "web.front_end-2", "x-17"])).to_owned()
        }
        _ => (*random.pick(&["", "some text", "line\nline", "\u{0}", "ü\u{10ffff}"])).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_from_the_schemas_is_an_event_and_is_written_as_it_was_made() {
        let mut events = Events { schemas: Vec::new() };
        for version in &SCHEMAS {
            events.schemas = vec![(version.id, Schema::parse_str(version.json).expect("valid"))];
            let mut random = Random::new(version.id.into());
            for _ in 0..300 {
                let input = events.generate(&mut random);
                let kind = events.run(&input).expect("no lie");
                assert!(kind.starts_with("event"), "{}: {kind}", version.topic);
            }
        }
    }
}
