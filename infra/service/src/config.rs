//! Settings in layers: defaults (the type's own) → a TOML file → the environment → flags. The later layer wins, key by key.
//!
//! Only listed keys are taken from the environment: `s3.endpoint` is `LONGSHORE_S3_ENDPOINT`. Texts of variables and flags
//! are read as TOML values (`8080`, `true`, `["eu", "us"]`, `{ a = 1 }`), and as plain strings where they are none or where a
//! string is wanted: a key of digits alone is still a key.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::{Error, durable};

/// Of a file that is wrong all over, so many mistakes are told.
const MISTAKES_MAX: usize = 32;
/// Values of a file among which the one that is wrong is looked for.
const LEAVES_MAX: usize = 500;

/// Where settings come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Must exist if it is given.
    pub file: Option<PathBuf>,
    /// Keys that the environment may set, such as `s3.endpoint`.
    pub keys: Vec<&'static str>,
    /// Keys and texts of the flags that were given; the flag of `s3.endpoint` is called `--s3-endpoint` in errors.
    pub flags: Vec<(&'static str, String)>,
    /// Keys and texts of `--set KEY=VALUE`, for programs that have no flag for each key; they come last.
    pub set: Vec<(&'static str, String)>,
}

/// One value of the environment or of the flags, and what to call its origin.
struct Override {
    origin: String,
    key: &'static str,
    text: String,
    value: Value,
}

/// Reads the settings of this process.
pub fn load<T: DeserializeOwned>(sources: &Sources) -> Result<T, Error> {
    load_with(sources, |name| std::env::var(name).ok())
}

/// As [`load`], with a given environment.
pub fn load_with<T: DeserializeOwned>(
    sources: &Sources,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<T, Error> {
    // There is always one.
    load_to(sources, environment, 1).map_err(|mut mistakes| mistakes.swap_remove(0))
}

/// As [`load`], but with every mistake there is, and not only the first. At least one.
pub fn load_all<T: DeserializeOwned>(sources: &Sources) -> Result<T, Vec<Error>> {
    load_all_with(sources, |name| std::env::var(name).ok())
}

/// As [`load_all`], with a given environment.
pub fn load_all_with<T: DeserializeOwned>(
    sources: &Sources,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<T, Vec<Error>> {
    load_to(sources, environment, MISTAKES_MAX)
}

fn load_to<T: DeserializeOwned>(
    sources: &Sources,
    environment: impl Fn(&str) -> Option<String>,
    mistakes_max: usize,
) -> Result<T, Vec<Error>> {
    let mut base = sources.file.as_deref().map_or_else(|| Ok(Table::new()), read).map_err(|error| vec![error])?;
    let mut overrides = overrides(sources, environment);
    let mut mistakes = Vec::new();
    // Each turn takes one value away, or takes it for a string: there are finitely many.
    loop {
        let reason = match merged::<T>(&base, overrides.iter()) {
            Ok(settings) if mistakes.is_empty() => return Ok(settings),
            Err(reason) if mistakes.len() < mistakes_max => reason,
            _ => return Err(mistakes),
        };
        if let Some(index) = culprit::<T>(&base, &overrides) {
            let guilty = &mut overrides[index];
            let plain = Value::String(guilty.text.clone());
            if guilty.value != plain {
                guilty.value = plain;
                continue;
            }
            let guilty = overrides.remove(index);
            mistakes.push(Error::Config { source_name: guilty.origin, reason });
            continue;
        }
        let source_name = match &sources.file {
            Some(path) => format!("the file {path:?}"),
            None => "the configuration (no file was given)".to_owned(),
        };
        match guilty_key::<T>(&base, &overrides, &reason) {
            Some(key) => {
                remove(&mut base, &key);
                mistakes.push(Error::Config { source_name: format!("{} of {source_name}", key.join(".")), reason });
            }
            // Nothing that could be taken away helps: something is missing.
            None => {
                mistakes.push(Error::Config { source_name, reason });
                return Err(mistakes);
            }
        }
    }
}

fn overrides(sources: &Sources, environment: impl Fn(&str) -> Option<String>) -> Vec<Override> {
    let mut overrides = Vec::new();
    let mut add = |origin: String, key, text: String| {
        let value = value(text.clone());
        overrides.push(Override { origin, key, text, value });
    };
    for key in &sources.keys {
        let origin = format!("LONGSHORE_{}", key.replace(['.', '-'], "_").to_uppercase());
        if let Some(text) = environment(&origin) {
            add(origin, key, text);
        }
    }
    for (key, text) in &sources.flags {
        add(format!("--{}", key.replace(['.', '_'], "-")), key, text.clone());
    }
    for (key, text) in &sources.set {
        add(format!("--set {key}"), key, text.clone());
    }
    overrides
}

fn read(path: &Path) -> Result<Table, Error> {
    let invalid = |reason: String| Error::Config { source_name: format!("the file {path:?}"), reason };
    let bytes = durable::read(path)?.ok_or_else(|| invalid("there is no such file".to_owned()))?;
    let text = String::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8".to_owned()))?;
    text.parse().map_err(|error: toml::de::Error| invalid(error.to_string().trim_end().to_owned()))
}

fn value(text: String) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok();
    let parsed = parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    parsed.unwrap_or(Value::String(text))
}

fn merged<'a, T: DeserializeOwned>(base: &Table, overrides: impl Iterator<Item = &'a Override>) -> Result<T, String> {
    let mut table = base.clone();
    for Override { key, value, .. } in overrides {
        set(&mut table, key, value.clone());
    }
    let complete = Value::Table(table).try_into();
    complete.map_err(|error: toml::de::Error| error.to_string().trim_end().replace('\n', ", "))
}

fn set(table: &mut Table, key: &str, value: Value) {
    let Some((first, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return;
    };
    let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
    if !inner.is_table() {
        *inner = Value::Table(Table::new());
    }
    if let Value::Table(inner) = inner {
        set(inner, rest, value);
    }
}

/// The variable or flag without which the settings would be valid, or at least wrong in another place.
fn culprit<T: DeserializeOwned>(base: &Table, overrides: &[Override]) -> Option<usize> {
    let reason = merged::<T>(base, overrides.iter()).err()?;
    let without = |index: usize| {
        let others = overrides.iter().enumerate().filter(move |(other, _)| *other != index).map(|(_, other)| other);
        merged::<T>(base, others).err()
    };
    let all = || (0..overrides.len()).rev();
    all()
        .find(|index| without(*index).is_none())
        .or_else(|| all().find(|index| without(*index) != Some(reason.clone())))
}

/// The value of the file without which this would not be said.
fn guilty_key<T: DeserializeOwned>(base: &Table, overrides: &[Override], reason: &str) -> Option<Vec<String>> {
    let mut keys = Vec::new();
    leaves(base, &mut Vec::new(), &mut keys);
    keys.into_iter().take(LEAVES_MAX).find(|key| {
        let mut without = base.clone();
        remove(&mut without, key);
        merged::<T>(&without, overrides.iter()).err().as_deref() != Some(reason)
    })
}

fn leaves(table: &Table, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            Value::Table(inner) => {
                leaves(inner, path, found);
                // Taken away after what is in it: the table's own name may be what is wrong.
                found.push(path.clone());
            }
            _ => found.push(path.clone()),
        }
        path.pop();
    }
}

fn remove(table: &mut Table, key: &[String]) {
    match key {
        [] => {}
        [last] => drop(table.remove(last)),
        [first, rest @ ..] => {
            if let Some(Value::Table(inner)) = table.get_mut(first) {
                remove(inner, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        listen: String,
        regions: Vec<String>,
        s3: S3,
    }

    impl Default for Settings {
        fn default() -> Self {
            Self { listen: "127.0.0.1:1".to_owned(), regions: vec!["eu".to_owned()], s3: S3::default() }
        }
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct S3 {
        endpoint: String,
        connections_max: u32,
    }

    fn settings(
        file: Option<&str>,
        environment: &[(&str, &str)],
        flags: &[(&'static str, &str)],
    ) -> Result<Settings, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("longshore.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).expect("written");
        }
        let sources = Sources {
            file: file.map(|_| path),
            keys: vec!["listen", "regions", "s3.endpoint", "s3.connections_max"],
            flags: flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect(),
            set: Vec::new(),
        };
        let variable = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, text)| (*text).to_owned());
        load_with(&sources, variable).map_err(|error| error.to_string())
    }

    #[test]
    fn later_layers_win_key_by_key() {
        assert_eq!(settings(None, &[], &[]), Ok(Settings::default()));
        let file = "listen = \"file:1\"\n[s3]\nendpoint = \"http://file\"\nconnections_max = 5\n";
        let environment = [("LONGSHORE_S3_ENDPOINT", "http://environment"), ("LONGSHORE_REGIONS", "[\"us\", \"ap\"]")];
        let got = settings(Some(file), &environment, &[("listen", "flag:1"), ("s3.connections_max", "7")]);
        let got = got.expect("valid");
        assert_eq!((got.listen.as_str(), got.regions.len()), ("flag:1", 2));
        assert_eq!(got.s3, S3 { endpoint: "http://environment".to_owned(), connections_max: 7 });
    }

    #[test]
    fn errors_name_the_source() {
        type Case = (
            Option<&'static str>,
            &'static [(&'static str, &'static str)],
            &'static [(&'static str, &'static str)],
            &'static str,
        );
        let table: [Case; 5] = [
            (Some("listen = "), &[], &[], "longshore.toml"),
            (Some("lissten = \"x\""), &[], &[], "lissten"),
            (Some("[s3]\nconnections_max = \"many\""), &[], &[], "longshore.toml"),
            (None, &[("LONGSHORE_S3_CONNECTIONS_MAX", "many")], &[], "LONGSHORE_S3_CONNECTIONS_MAX"),
            (None, &[("LONGSHORE_LISTEN", "x")], &[("regions", "eu")], "--regions"),
        ];
        for (file, environment, flags, expected) in table {
            let error = settings(file, environment, flags).expect_err(expected);
            assert!(error.contains(expected), "{error:?} names {expected}");
        }
    }

    #[test]
    fn digits_are_a_string_where_one_is_wanted() {
        let got =
            settings(None, &[("LONGSHORE_S3_ENDPOINT", "1e5"), ("LONGSHORE_LISTEN", "true")], &[]).expect("valid");
        assert_eq!((got.s3.endpoint.as_str(), got.listen.as_str()), ("1e5", "true"));
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("longshore.toml");
        std::fs::write(&path, "lissten = \"x\"\nregions = 7\n[s3]\nconnections = 5\n").expect("written");
        let sources = Sources {
            file: Some(path),
            keys: vec!["listen", "s3.connections_max"],
            flags: Vec::new(),
            set: vec![("listen", "[1]".to_owned())],
        };
        let variable = |name: &str| (name == "LONGSHORE_S3_CONNECTIONS_MAX").then(|| "many".to_owned());
        let mistakes = load_all_with::<Settings>(&sources, variable).expect_err("wrong all over");
        let text = mistakes.iter().map(|mistake| format!("{mistake}\n")).collect::<String>();
        for place in ["lissten of", "regions of", "s3.connections of", "LONGSHORE_S3_CONNECTIONS_MAX"] {
            assert!(text.contains(place), "{text} names {place}");
        }
        assert_eq!(mistakes.len(), 4, "{text}");
    }

    #[test]
    fn texts_that_are_no_toml_values_are_strings() {
        for text in ["eu", "127.0.0.1:80", "a = 1", "x\ny = 2", "\"", ""] {
            assert_eq!(value(text.to_owned()), Value::String(text.to_owned()));
        }
        assert_eq!(value("8".to_owned()), Value::Integer(8));
    }
}
