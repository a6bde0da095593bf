//! How things are shown: tables for people, JSON for programs.

use std::{
    io::{self, Write},
    time::Duration,
};

use comfy_table::{ContentArrangement, Table, presets};
use longshore_schemas::Timestamp;
use serde::Serialize;

use crate::error::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// For people, on stderr.
pub(crate) fn message(text: &str) {
    // Nobody reads: nothing to be done about it.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Data, on stdout. A reader that has enough (`head`) ends the program quietly.
pub(crate) fn data(text: &str) -> Result<(), Error> {
    raw(text.as_bytes())?;
    raw(b"\n")
}

pub(crate) fn raw(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(|error| Error::Other(anyhow::Error::new(error).context("cannot write to stdout"))),
    }
}

pub(crate) fn json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Other(error.into()))?;
    data(&text)
}

/// A table without frames, which `awk` reads as well as people do.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    let text = table.to_string();
    text.lines().map(|line| line.trim()).collect::<Vec<_>>().join("\n")
}

pub(crate) fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

/// "12 s ago".
pub(crate) fn ago(time: Timestamp, now: Timestamp) -> String {
    format!("{} ago", duration(now.since(time)))
}

/// The two largest units.
pub(crate) fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        s @ 10..60 => format!("{s} s"),
        s @ 60..3_600 => format!("{} min {} s", s / 60, s % 60),
        s @ 3_600..86_400 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        s => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// "12.5 MiB".
pub(crate) fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / (1024.0 * 1024.0);
    if mib < 10.0 { format!("{mib:.2} MiB") } else { format!("{mib:.1} MiB") }
}

/// A status, as the API writes it.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text.replace('_', " "),
        _ => "?".to_owned(),
    }
}

/// The first line of a message, cut to what fits a table.
pub(crate) fn brief(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let line = text.lines().next().unwrap_or("");
    if line.chars().count() <= CHARS_MAX && line.len() == text.len() {
        return line.to_owned();
    }
    format!("{}…", line.chars().take(CHARS_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_well() {
        let table = [
            (500, "0.5 s"),
            (12_000, "12 s"),
            (75_000, "1 min 15 s"),
            (2 * 3_600_000, "2 h 0 min"),
            (26 * 3_600_000, "1 d 2 h"),
        ];
        for (ms, text) in table {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(mib(64 * 1024 * 1024), "64.0 MiB");
        assert_eq!(mib(1024 * 1024 / 2), "0.50 MiB");
        assert_eq!(brief("one\ntwo"), "one…");
        assert_eq!(brief("one"), "one");
    }

    #[test]
    fn tables_are_plain() {
        let rows = vec![vec!["default-1".to_owned(), "running".to_owned()], vec!["d-10".to_owned(), "ok".to_owned()]];
        assert_eq!(table(&["job", "status"], rows), "JOB        STATUS\ndefault-1  running\nd-10       ok");
    }
}
