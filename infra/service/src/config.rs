//! Settings in layers: defaults (the type's own) → a TOML file → the environment → flags. The later layer wins, key by key.
//!
//! Only listed keys are taken from the environment: `s3.endpoint` is `LONGSHORE_S3_ENDPOINT`. Texts of variables and flags
//! are read as TOML values (`8080`, `true`, `["eu", "us"]`) and as plain strings where they are none.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::{Error, durable};

/// Where settings come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Must exist if it is given.
    pub file: Option<PathBuf>,
    /// Keys that the environment may set, such as `s3.endpoint`.
    pub keys: Vec<&'static str>,
    /// Keys and texts of the flags that were given; the flag of `s3.endpoint` is called `--s3-endpoint` in errors.
    pub flags: Vec<(&'static str, String)>,
}

/// One value of the environment or of the flags, and what to call its origin.
struct Override {
    origin: String,
    key: &'static str,
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
    let base = sources.file.as_deref().map_or_else(|| Ok(Table::new()), read)?;
    let mut overrides = Vec::new();
    for key in &sources.keys {
        let origin = format!("LONGSHORE_{}", key.replace(['.', '-'], "_").to_uppercase());
        if let Some(text) = environment(&origin) {
            overrides.push(Override { origin, key, value: value(text) });
        }
    }
    for (key, text) in &sources.flags {
        let origin = format!("--{}", key.replace(['.', '_'], "-"));
        overrides.push(Override { origin, key, value: value(text.clone()) });
    }
    merged(&base, overrides.iter()).map_err(|reason| {
        let source_name = culprit::<T>(&base, &overrides).unwrap_or_else(|| match &sources.file {
            Some(path) => format!("the file {path:?}"),
            None => "the configuration (no file was given)".to_owned(),
        });
        Error::Config { source_name, reason }
    })
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
fn culprit<T: DeserializeOwned>(base: &Table, overrides: &[Override]) -> Option<String> {
    let last_valid = (0..overrides.len()).rev().find(|index| {
        let others = overrides.iter().enumerate().filter(|(other, _)| other != index).map(|(_, other)| other);
        merged::<T>(base, others).is_ok()
    });
    last_valid.map(|index| overrides[index].origin.clone())
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
    fn texts_that_are_no_toml_values_are_strings() {
        for text in ["eu", "127.0.0.1:80", "a = 1", "x\ny = 2", "\"", ""] {
            assert_eq!(value(text.to_owned()), Value::String(text.to_owned()));
        }
        assert_eq!(value("8".to_owned()), Value::Integer(8));
    }
}
