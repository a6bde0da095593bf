//! Records of older schemas: what was written with one version of a topic's schema, as the newest would have written it.
//!
//! ```text
//! schemas of writer and reader ──once──▶ Resolution: a tree of steps
//! bytes of the writer ──step by step──▶ bytes of the reader ──▶ [`super::read`]
//! ```
//!
//! By Avro's rules: fields go by their names, events of a union and symbols of an enum too; what the writer did not know has its
//! default, what the reader does not know any more is dropped. apache-avro's own resolution is of no use here: it takes the first event
//! of a union that looks alike. No length is believed, as in [`super::read`].

use std::collections::HashMap;

use apache_avro::{
    Schema,
    schema::{EnumSchema, Name, RecordSchema},
};
use serde_json::Value;

use super::{DatumError, read::Reader, write::Writer};

/// No event is nested as deeply; types that contain themselves would be.
const DEPTH_MAX: usize = 64;

/// From one schema to another.
pub(super) struct Resolution(Step);

enum Step {
    Null,
    Boolean,
    Number,
    /// Bytes or a text.
    Counted,
    /// An enum: for each symbol of the writer the reader's.
    Symbol(Vec<Option<u32>>),
    /// A list, or a map, which has a text before each element.
    Elements {
        keyed: bool,
        each: Box<Step>,
    },
    /// A union of the writer.
    From(Vec<Step>),
    /// A union of the reader.
    Into(u32, Box<Step>),
    Record {
        /// In the writer's order.
        fields: Vec<Step>,
        /// In the reader's order; `None` if that is the writer's, and nothing is missing.
        arranged: Option<Vec<Field>>,
    },
    /// The reader has no place for it, which is an error where it occurs.
    Nowhere(String),
}

/// Where a field of the reader comes from.
enum Field {
    Written(usize),
    Default(Vec<u8>),
}

impl Resolution {
    pub(super) fn new(writer: &Schema, reader: &Schema) -> Result<Self, DatumError> {
        let planner = Planner { written: names(writer), read: names(reader) };
        planner.step(writer, reader, 0).map(Self).map_err(DatumError::new)
    }

    /// Takes a datum of the writer from the beginning of `bytes`; the reader's.
    pub(super) fn apply(&self, bytes: &mut &[u8]) -> Result<Vec<u8>, DatumError> {
        let mut reader = Reader { left: bytes };
        let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8);
        self.0.run(&mut reader, &mut Writer { out: &mut out })?;
        *bytes = reader.left;
        Ok(out)
    }
}

impl Step {
    fn run(&self, reader: &mut Reader<'_>, writer: &mut Writer<'_>) -> Result<(), DatumError> {
        match self {
            Self::Null => {}
            Self::Boolean => writer.out.push(reader.byte()?),
            Self::Number => writer.long(reader.long()?),
            Self::Counted => writer.counted(reader.counted()?)?,
            Self::Symbol(symbols) => {
                let index = reader.index()?;
                let symbol = symbols.get(index as usize).copied().flatten();
                let symbol = symbol.ok_or_else(|| DatumError::new(format_args!("an enum has no symbol {index}")))?;
                writer.long(symbol.into());
            }
            Self::Elements { keyed, each } => elements(*keyed, each, reader, writer)?,
            Self::From(branches) => {
                let index = reader.index()?;
                let branch = branches.get(index as usize);
                branch
                    .ok_or_else(|| DatumError::new(format_args!("a union has no branch {index}")))?
                    .run(reader, writer)?;
            }
            Self::Into(branch, step) => {
                writer.long((*branch).into());
                step.run(reader, writer)?;
            }
            Self::Record { fields, arranged: None } => {
                fields.iter().try_for_each(|field| field.run(reader, writer))?;
            }
            Self::Record { fields, arranged: Some(arranged) } => {
                let begin = writer.out.len();
                let mut ends = Vec::with_capacity(fields.len() + 1);
                ends.push(0);
                for field in fields {
                    field.run(reader, writer)?;
                    ends.push(writer.out.len() - begin);
                }
                let written = writer.out.split_off(begin);
                for field in arranged {
                    writer.out.extend_from_slice(match field {
                        Field::Written(index) => &written[ends[*index]..ends[*index + 1]],
                        Field::Default(bytes) => bytes,
                    });
                }
            }
            Self::Nowhere(what) => {
                return Err(DatumError::new(format_args!("{what} has no place in the newest schema")));
            }
        }
        Ok(())
    }
}

fn elements(keyed: bool, each: &Step, reader: &mut Reader<'_>, writer: &mut Writer<'_>) -> Result<(), DatumError> {
    loop {
        let count = reader.block()?;
        writer.long(i64::try_from(count).map_err(|_| DatumError::new("a block is too long"))?);
        if count == 0 {
            return Ok(());
        }
        for _ in 0..count {
            let before = reader.left.len();
            if keyed {
                writer.counted(reader.counted()?)?;
            }
            each.run(reader, writer)?;
            if reader.left.len() == before {
                return Err(DatumError::new("an element takes no byte"));
            }
        }
    }
}

type Names<'a> = HashMap<&'a Name, &'a Schema>;

/// The named types within a schema.
fn names(schema: &Schema) -> Names<'_> {
    let (mut found, mut left) = (Names::new(), vec![schema]);
    while let Some(schema) = left.pop() {
        match schema {
            Schema::Record(record) => {
                found.insert(&record.name, schema);
                left.extend(record.fields.iter().map(|field| &field.schema));
            }
            Schema::Enum(of) => drop(found.insert(&of.name, schema)),
            Schema::Array(list) => left.push(&list.items),
            Schema::Map(map) => left.push(&map.types),
            Schema::Union(union) => left.extend(union.variants()),
            _ => {}
        }
    }
    found
}

fn named<'a>(schema: &'a Schema, names: &Names<'a>) -> &'a Schema {
    match schema {
        Schema::Ref { name } => names.get(name).copied().unwrap_or(schema),
        _ => schema,
    }
}

/// How values of a type stand on the wire; what is not here occurs in no schema.
#[derive(PartialEq, Eq, Clone, Copy, Debug)]
enum Kind {
    Null,
    Boolean,
    Number,
    Counted,
    List,
    Map,
    Union,
    Record,
    Enum,
}

fn kind(schema: &Schema) -> Result<Kind, String> {
    Ok(match schema {
        Schema::Null => Kind::Null,
        Schema::Boolean => Kind::Boolean,
        Schema::Int | Schema::Long | Schema::TimestampMillis => Kind::Number,
        Schema::Bytes | Schema::String => Kind::Counted,
        Schema::Array(_) => Kind::List,
        Schema::Map(_) => Kind::Map,
        Schema::Union(_) => Kind::Union,
        Schema::Record(_) => Kind::Record,
        Schema::Enum(_) => Kind::Enum,
        other => return Err(format!("no event has a {other:?}")),
    })
}

/// What a type is called in a union.
fn called(schema: &Schema) -> String {
    match schema {
        Schema::Record(RecordSchema { name, .. }) | Schema::Enum(EnumSchema { name, .. }) => name.name().to_owned(),
        other => kind(other).map_or_else(|reason| reason, |kind| format!("{kind:?}")),
    }
}

struct Planner<'a> {
    written: Names<'a>,
    read: Names<'a>,
}

impl<'a> Planner<'a> {
    fn step(&self, writer: &'a Schema, reader: &'a Schema, depth: usize) -> Result<Step, String> {
        if depth > DEPTH_MAX {
            return Err(format!("types are nested more than {DEPTH_MAX} deep"));
        }
        let (writer, reader) = (named(writer, &self.written), named(reader, &self.read));
        if let Schema::Union(union) = writer {
            let branches = union.variants().iter().map(|branch| self.step(branch, reader, depth + 1));
            return Ok(Step::From(branches.collect::<Result<_, _>>()?));
        }
        if let Schema::Union(union) = reader {
            let fits = |branch: &&Schema| {
                let branch = named(branch, &self.read);
                kind(branch) == kind(writer) && called(branch) == called(writer)
            };
            return Ok(match (0..).zip(union.variants()).find(|(_, branch)| fits(branch)) {
                Some((index, branch)) => Step::Into(index, Box::new(self.step(writer, branch, depth + 1)?)),
                None => Step::Nowhere(called(writer)),
            });
        }
        if kind(writer)? != kind(reader)? {
            return Ok(Step::Nowhere(called(writer)));
        }
        Ok(match (writer, reader) {
            (Schema::Record(writer), Schema::Record(reader)) => self.record(writer, reader, depth)?,
            (Schema::Enum(writer), Schema::Enum(reader)) => {
                let place = |symbol: &String| reader.symbols.iter().position(|other| other == symbol);
                let or_default = |symbol: &String| place(symbol).or_else(|| reader.default.as_ref().and_then(place));
                let index = |symbol| or_default(symbol).and_then(|index| u32::try_from(index).ok());
                Step::Symbol(writer.symbols.iter().map(index).collect())
            }
            (Schema::Array(writer), Schema::Array(reader)) => {
                Step::Elements { keyed: false, each: Box::new(self.step(&writer.items, &reader.items, depth + 1)?) }
            }
            (Schema::Map(writer), Schema::Map(reader)) => {
                Step::Elements { keyed: true, each: Box::new(self.step(&writer.types, &reader.types, depth + 1)?) }
            }
            _ => match kind(writer)? {
                Kind::Null => Step::Null,
                Kind::Boolean => Step::Boolean,
                Kind::Number => Step::Number,
                _ => Step::Counted,
            },
        })
    }

    fn record(&self, writer: &'a RecordSchema, reader: &'a RecordSchema, depth: usize) -> Result<Step, String> {
        let mut arranged = Vec::with_capacity(reader.fields.len());
        let mut places = vec![None; writer.fields.len()];
        for (place, field) in reader.fields.iter().enumerate() {
            let is_it = |name: &String| *name == field.name || field.aliases.contains(name);
            if let Some(index) = writer.fields.iter().position(|other| is_it(&other.name)) {
                places[index] = Some(place);
                arranged.push(Field::Written(index));
                continue;
            }
            let (record, name) = (reader.name.name(), &field.name);
            let value = field.default.as_ref().ok_or_else(|| format!("{record}.{name} is new and has no default"))?;
            let mut bytes = Vec::new();
            self.default(&field.schema, value, &mut bytes)
                .ok_or_else(|| format!("the default of {record}.{name} is not of its type"))?;
            arranged.push(Field::Default(bytes));
        }
        let field = |(field, place): (&'a apache_avro::schema::RecordField, &Option<usize>)| match place {
            Some(place) => self.step(&field.schema, &reader.fields[*place].schema, depth + 1),
            // Read to be dropped.
            None => Planner { written: self.written.clone(), read: self.written.clone() }.step(
                &field.schema,
                &field.schema,
                depth + 1,
            ),
        };
        let fields = writer.fields.iter().zip(&places).map(field).collect::<Result<Vec<_>, _>>()?;
        let as_written = |(index, field): (usize, &Field)| matches!(field, Field::Written(of) if *of == index);
        let unchanged = arranged.len() == fields.len() && arranged.iter().enumerate().all(as_written);
        Ok(Step::Record { fields, arranged: (!unchanged).then_some(arranged) })
    }

    /// The bytes of a default, as schemas have them in JSON. None if it is not of the type.
    fn default(&self, schema: &'a Schema, value: &Value, out: &mut Vec<u8>) -> Option<()> {
        let schema = named(schema, &self.read);
        match (schema, value) {
            (Schema::Null, Value::Null) => {}
            (Schema::Boolean, Value::Bool(value)) => out.push((*value).into()),
            (Schema::Int | Schema::Long | Schema::TimestampMillis, value) => Writer { out }.long(value.as_i64()?),
            (Schema::String, Value::String(text)) => Writer { out }.counted(text.as_bytes()).ok()?,
            (Schema::Bytes, Value::String(text)) => {
                let bytes: Option<Vec<u8>> = text.chars().map(|char| u8::try_from(char).ok()).collect();
                Writer { out }.counted(&bytes?).ok()?;
            }
            (Schema::Enum(of), Value::String(symbol)) => {
                let index = of.symbols.iter().position(|other| other == symbol)?;
                Writer { out }.length(index).ok()?;
            }
            (Schema::Array(list), Value::Array(values)) => {
                if !values.is_empty() {
                    Writer { out }.length(values.len()).ok()?;
                    values.iter().try_for_each(|value| self.default(&list.items, value, out))?;
                }
                Writer { out }.long(0);
            }
            (Schema::Map(map), Value::Object(values)) => {
                if !values.is_empty() {
                    Writer { out }.length(values.len()).ok()?;
                    values.iter().try_for_each(|(key, value)| {
                        Writer { out: &mut *out }.counted(key.as_bytes()).ok()?;
                        self.default(&map.types, value, out)
                    })?;
                }
                Writer { out }.long(0);
            }
            (Schema::Record(record), Value::Object(values)) => record.fields.iter().try_for_each(|field| {
                self.default(&field.schema, values.get(&field.name).or(field.default.as_ref())?, out)
            })?,
            (Schema::Union(union), value) => {
                let (index, bytes) = union.variants().iter().enumerate().find_map(|(index, branch)| {
                    let mut bytes = Vec::new();
                    self.default(branch, value, &mut bytes).map(|()| (index, bytes))
                })?;
                Writer { out }.length(index).ok()?;
                out.extend(bytes);
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use apache_avro::{reader::datum::GenericDatumReader, types::Value as Avro, writer::datum::GenericDatumWriter};
    use serde_json::json;

    use super::*;
    use crate::codec::SCHEMAS;

    fn schema(json: &Value) -> Schema {
        Schema::parse_str(&json.to_string()).expect("a schema")
    }

    fn written(schema: &Schema, value: Avro) -> Vec<u8> {
        let mut bytes = Vec::new();
        let writer = GenericDatumWriter::builder(schema).build().expect("a writer");
        writer.write_value(&mut bytes, value).expect("it follows the schema");
        bytes
    }

    fn read(schema: &Schema, bytes: &[u8]) -> Avro {
        let left = &mut &bytes[..];
        let value = GenericDatumReader::builder(schema).build().expect("a reader").read_value(left).expect("a value");
        assert!(left.is_empty(), "nothing is left over");
        value
    }

    fn fields(fields: Vec<(&str, Avro)>) -> Avro {
        Avro::Record(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn record(fields: &Value) -> Value {
        json!({ "type": "record", "name": "R", "fields": fields })
    }

    fn event(name: &str) -> Value {
        json!({ "type": "record", "name": name, "fields": [{ "name": "x", "type": "string" }] })
    }

    #[test]
    fn values_go_where_their_names_are() {
        let (one, text) = (Avro::Long(1), |text: &str| Avro::String(text.to_owned()));
        let branch = |index, value| Avro::Union(index, Box::new(value));
        let old = record(&json!([{ "name": "a", "type": "long" }, { "name": "b", "type": "string" }]));
        let old_value = || fields(vec![("a", Avro::Long(1)), ("b", Avro::String("two".to_owned()))]);
        let x = || fields(vec![("x", Avro::String("it".to_owned()))]);
        let symbols =
            |symbols: &[&str]| json!({ "type": "enum", "name": "E", "symbols": symbols, "default": symbols[0] });
        let pair = json!({ "type": "record", "name": "P", "fields": [
            { "name": "n", "type": "long", "default": 7 }, { "name": "s", "type": ["null", "string"], "default": null }] });
        let defaults = json!([
            { "name": "flag", "type": "boolean", "default": true },
            { "name": "bytes", "type": "bytes", "default": "\u{ff}a" },
            { "name": "list", "type": { "type": "array", "items": "long" }, "default": [1, -2] },
            { "name": "empty", "type": { "type": "array", "items": "long" }, "default": [] },
            { "name": "map", "type": { "type": "map", "values": "string" }, "default": { "k": "v" } },
            { "name": "symbol", "type": symbols(&["p", "q"]), "default": "q" },
            { "name": "pair", "type": pair, "default": { "n": 3 } },
            { "name": "maybe", "type": ["null", "P"], "default": null },
            { "name": "b", "type": "string" },
        ]);
        let with_defaults = fields(vec![
            ("flag", Avro::Boolean(true)),
            ("bytes", Avro::Bytes(vec![0xff, b'a'])),
            ("list", Avro::Array(vec![Avro::Long(1), Avro::Long(-2)])),
            ("empty", Avro::Array(Vec::new())),
            ("map", Avro::Map([("k".to_owned(), text("v"))].into())),
            ("symbol", Avro::Enum(1, "q".to_owned())),
            ("pair", fields(vec![("n", Avro::Long(3)), ("s", branch(0, Avro::Null))])),
            ("maybe", branch(0, Avro::Null)),
            ("b", text("two")),
        ]);
        let list = |of: &Value| json!({ "type": "array", "items": of });
        let table: Vec<(Value, Avro, Value, Avro)> = vec![
            (
                old.clone(),
                old_value(),
                record(&json!([{ "name": "b", "type": "string" }, { "name": "a", "type": "long" }])),
                fields(vec![("b", text("two")), ("a", one.clone())]),
            ),
            (old.clone(), old_value(), record(&defaults), with_defaults),
            (
                old.clone(),
                old_value(),
                record(&json!([{ "name": "c", "type": ["null", "string"], "aliases": ["b"] }])),
                fields(vec![("c", branch(1, text("two")))]),
            ),
            // They look alike, and are told apart by their names.
            (
                json!([event("A"), event("B")]),
                branch(1, x()),
                json!([event("New"), event("A"), event("B")]),
                branch(2, x()),
            ),
            (
                list(&symbols(&["p", "q"])),
                Avro::Array(vec![Avro::Enum(0, "p".to_owned()), Avro::Enum(1, "q".to_owned())]),
                list(&symbols(&["o", "q"])),
                Avro::Array(vec![Avro::Enum(0, "o".to_owned()), Avro::Enum(1, "q".to_owned())]),
            ),
        ];
        for (writer, value, reader, expected) in table {
            let (writer, reader) = (schema(&writer), schema(&reader));
            let old = written(&writer, value);
            let new = Resolution::new(&writer, &reader).expect("resolves").apply(&mut &old[..]).expect("a value");
            assert_eq!(read(&reader, &new), expected);
        }
    }

    #[test]
    fn what_has_no_place_and_lies_about_lengths_are_errors() {
        let numbers = schema(&json!({ "type": "array", "items": "long" }));
        let unchanged = Resolution::new(&numbers, &numbers).expect("resolves");
        let claim = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        unchanged.apply(&mut &claim[..]).expect_err("there are not as many");
        let nothing = schema(&json!({ "type": "array", "items": "null" }));
        let unchanged = Resolution::new(&nothing, &nothing).expect("resolves");
        unchanged.apply(&mut &claim[..]).expect_err("without end");

        let (one, other) = (schema(&json!([event("A"), event("B")])), schema(&json!([event("B")])));
        let resolution = Resolution::new(&one, &other).expect("resolves");
        assert!(resolution.apply(&mut &[0, 0][..]).expect_err("A").to_string().contains("A has no place"));
        assert_eq!(resolution.apply(&mut &[2, 0][..]).expect("B"), [0, 0]);
        resolution.apply(&mut &[4, 0][..]).expect_err("no branch");
        let needs = schema(&record(&json!([{ "name": "a", "type": "long" }])));
        let empty = schema(&record(&json!([])));
        assert!(Resolution::new(&empty, &needs).err().expect("no default").to_string().contains("R.a is new"));
        let endless =
            schema(&json!({ "type": "record", "name": "N", "fields": [{ "name": "n", "type": ["null", "N"] }] }));
        assert!(Resolution::new(&endless, &endless).err().expect("too deep").to_string().contains("deep"));
    }

    /// The schema with something more in front of every record, of every union of events and of every enum.
    fn enriched(schema: &mut Value) {
        match schema {
            Value::Array(branches) => {
                branches.iter_mut().for_each(enriched);
                if branches.len() > 2 {
                    let name = format!("Gone{}", branches.len());
                    branches.insert(0, json!({ "type": "record", "name": name, "fields": [] }));
                }
            }
            Value::Object(object) => {
                if object.get("type").is_some_and(|kind| kind == "enum") {
                    object["symbols"].as_array_mut().expect("symbols").insert(0, "GONE".into());
                } else if object.get("type").is_some_and(|kind| kind == "record") {
                    let fields = object["fields"].as_array_mut().expect("fields");
                    fields.iter_mut().for_each(|field| enriched(&mut field["type"]));
                    let gone = json!({ "type": "map", "values": { "type": "array", "items": "string" } });
                    fields.insert(0, json!({ "name": "gone", "type": gone, "default": { "a": ["b", "c"], "d": [] } }));
                } else {
                    for inner in ["items", "values", "type"] {
                        object.get_mut(inner).into_iter().for_each(enriched);
                    }
                }
            }
            _ => {}
        }
    }

    /// Every golden record, as if there had been an older version that said more, is today's again.
    #[test]
    fn golden_records_of_an_older_version_are_read() {
        let mut records = 0;
        for version in &SCHEMAS {
            let file = format!("golden/{}.v{}.txt", version.topic, version.version);
            let golden = fs::read_to_string(file).expect("golden bytes");
            let mut older = serde_json::from_str(version.json).expect("JSON");
            enriched(&mut older);
            let (older, today) = (schema(&older), Schema::parse_str(version.json).expect("a schema"));
            let resolution = |from, to| Resolution::new(from, to).expect("resolves");
            let (back, forth) = (resolution(&today, &older), resolution(&older, &today));
            for line in golden.lines() {
                let hex = line.split(' ').nth(1).expect("hexadecimal").as_bytes();
                let byte =
                    |pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal");
                let bytes: Vec<u8> = hex.chunks(2).map(byte).collect();
                let datum = &bytes[super::super::HEADER_BYTES..];
                let old = back.apply(&mut &datum[..]).expect("a datum");
                assert_ne!(old, datum);
                read(&older, &old);
                assert_eq!(forth.apply(&mut &old[..]).expect("an old datum"), datum, "{line}");
                records += 1;
            }
        }
        assert!(records > SCHEMAS.len(), "{records}");
    }
}
